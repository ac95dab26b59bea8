"""Where fields lie, by BTF that no compiler makes: rare forms, broken ones, and what is made to harm."""

import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from hand_made_btf import CONST, FLAG, FORWARD, POINTER, RESTRICT, STRUCT, TYPE_TAG, TYPEDEF, UNION, VOLATILE, HandMade, hand_made

from exitguard.facts.machine_code.btf import field_offset, needs_base
from exitguard.facts.machine_code.obstacle import Obstacle


def test_bit_fields_and_fields_are_told_apart_in_structures_with_the_flag() -> None:
    btf = hand_made()
    number = btf.integer()
    btf.structure("s", 12, [("plain", number, 32), ("narrow", number, 3 << 24 | 64), ("shifted", number, 67)], info=FLAG)
    assert field_offset(btf.encoded(), "s", ("plain",)) == 4
    for name in ("narrow", "shifted"):
        with pytest.raises(Obstacle, match=f"{name} is a bit-field"):
            field_offset(btf.encoded(), "s", (name,))


def test_bit_fields_by_their_integer_type_alone_are_refused() -> None:
    btf = hand_made()
    three_bits, shifted, whole = btf.integer(bits=3), btf.integer(bits=5 << 16 | 32), btf.integer()
    renamed = btf.type(TYPEDEF, "three_bits", size=three_bits)
    btf.structure("s", 16, [("narrow", renamed, 0), ("shifted", shifted, 32), ("whole", whole, 64)])
    assert field_offset(btf.encoded(), "s", ("whole",)) == 8
    for name in ("narrow", "shifted"):
        with pytest.raises(Obstacle, match="bit-field"):
            field_offset(btf.encoded(), "s", (name,))


def test_offsets_beyond_24_bits_are_whole_without_the_flag() -> None:
    btf = hand_made()
    number = btf.integer()
    btf.structure("s", 1 << 28, [("far", number, (1 << 27) * 8)])
    assert field_offset(btf.encoded(), "s", ("far",)) == 1 << 27


def test_names_and_qualifiers_are_followed() -> None:
    btf = hand_made()
    at = btf.structure("inner", 8, [("wanted", btf.integer(), 32)])
    for kind in (TYPEDEF, CONST, VOLATILE, RESTRICT, TYPE_TAG, TYPEDEF):
        at = btf.type(kind, "named" if kind in (TYPEDEF, TYPE_TAG) else "", size=at)
    btf.structure("s", 16, [("inner", at, 64)])
    assert field_offset(btf.encoded(), "s", ("inner", "wanted")) == 12


def test_anonymous_members_of_qualified_types_are_looked_into() -> None:
    btf = hand_made()
    deepest = btf.structure("", 4, [("wanted", btf.integer(), 0)], kind=UNION)
    middle = btf.structure("", 12, [("", btf.type(CONST, size=deepest), 64), ("", 1, 0)])
    btf.structure("s", 32, [("other", 1, 0), ("", middle, 96)], kind=STRUCT)
    assert field_offset(btf.encoded(), "s", ("wanted",)) == 20


def _on_a_distilled_base() -> tuple[bytes, bytes]:
    base = hand_made()
    number, sized = base.integer(), base.structure("sized", 24, [])
    base.type(FORWARD, "promised")
    own = base.continued()
    own.structure("kvm", 40, [("count", number, 0), ("sized", sized, 64), ("after", number, 256)])
    return own.encoded(), base.encoded()


def test_fields_of_a_module_are_found_over_a_distilled_base() -> None:
    own, base = _on_a_distilled_base()
    assert needs_base(own)
    assert [field_offset(own, "kvm", (name,), base=base) for name in ("count", "sized", "after", "nothing")] == [0, 8, 32, None]
    assert field_offset(own, "promised", ("x",), base=base) is None


@pytest.mark.parametrize(("structure", "fields"), [("kvm", ("sized", "inside")), ("sized", ("inside",))])
def test_a_field_in_what_a_distilled_base_only_sizes_is_refused_with_the_reason(structure: str, fields: tuple[str, ...]) -> None:
    own, base = _on_a_distilled_base()
    with pytest.raises(Obstacle, match=r"no more than the size of a structure.*\.BTF\.base"):
        field_offset(own, structure, fields, base=base)


def test_split_btf_that_begins_with_an_empty_string_is_split_all_the_same() -> None:
    base = hand_made()
    number = base.integer()
    own = base.continued()
    own.names += b"\0"
    own.structure("s", 8, [("wanted", number, 32)])
    assert needs_base(own.encoded())
    assert field_offset(own.encoded(), "s", ("wanted",), base=base.encoded()) == 4


def test_split_btf_whose_names_might_all_be_its_own_is_split_by_the_first_of_them() -> None:
    base = hand_made()
    number = base.integer()
    own = base.continued()
    own.structure("s", 8, [("wanted", number, 32)])
    own.names += b"a name that no type bears\0"
    assert needs_base(own.encoded())
    assert field_offset(own.encoded(), "s", ("wanted",), base=base.encoded()) == 4


def test_split_btf_without_names_of_its_own_is_split() -> None:
    base = hand_made()
    base.integer()
    own = base.continued()
    own.type(POINTER, size=1)
    assert needs_base(own.encoded())


def test_one_structure_told_twice_is_no_doubt_and_two_different_ones_are() -> None:
    btf = hand_made()
    number = btf.integer()
    for bits in (32, 32):
        btf.structure("s", 16, [("wanted", number, bits)])
    assert field_offset(btf.encoded(), "s", ("wanted",)) == 4
    btf.structure("s", 16, [("wanted", number, 64)])
    with pytest.raises(Obstacle, match="several structures s, in which wanted lies differently: 0x4, 0x8"):
        field_offset(btf.encoded(), "s", ("wanted",))
    assert field_offset(btf.encoded(), "s", ("nothing",)) is None


def test_a_structure_told_twice_with_and_without_the_field_is_refused() -> None:
    btf = hand_made()
    number = btf.integer()
    btf.structure("s", 16, [("wanted", number, 32)])
    btf.structure("s", 16, [("other", number, 32)])
    with pytest.raises(Obstacle, match="0x4, no such field"):
        field_offset(btf.encoded(), "s", ("wanted",))


def test_a_name_that_ends_another_is_found_in_it() -> None:
    btf = hand_made()
    number = btf.integer()
    longer = btf.name("not_wanted")
    btf.records += struct.pack("<6I", btf.name("s"), STRUCT << 24 | 1, 8, longer + len("not_"), number, 32)
    assert field_offset(btf.encoded(), "s", ("wanted",)) == 4
    assert field_offset(btf.encoded(), "s", ("not_wanted",)) is None


def test_a_kind_from_the_future_needs_a_layout_section() -> None:
    btf = hand_made()
    btf.type(77, "novelty", info=2, more=(1, 2, 3, 4, 5))
    btf.structure("s", 8, [("wanted", btf.integer(), 32)])
    with pytest.raises(Obstacle, match="a type of kind 77: expected kinds 1 to 19, or a layout section"):
        field_offset(btf.encoded(), "s", ("wanted",))
    btf.layout = bytes(77 * 4) + struct.pack("<BBH", 4, 8, 0)
    assert field_offset(btf.encoded(), "s", ("wanted",)) == 4


@pytest.mark.parametrize(
    ("layout", "reason"), [(bytes(77 * 4) + b"\x04\x06\0\0", "no multiple of 4 bytes"), (bytes(77 * 4) + b"\x05\0\0\0", "no multiple of 4")]
)
def test_a_layout_that_cannot_be_is_told(layout: bytes, reason: str) -> None:
    btf = hand_made()
    btf.type(77, "novelty", more=(1,))
    btf.layout = layout
    with pytest.raises(Obstacle, match=f"gives types of kind 77 a length that is {reason}"):
        needs_base(btf.encoded())
    with pytest.raises(Obstacle, match="its layout ends at byte"):
        needs_base(btf.encoded()[:-1])


#: What follows the three words of a type with two elements, in words (Documentation/bpf/btf.rst, "Type Encoding").
_WORDS_OF_KINDS = {
    1: 1,
    2: 0,
    3: 3,
    4: 6,
    5: 6,
    6: 4,
    7: 0,
    8: 0,
    9: 0,
    10: 0,
    11: 0,
    12: 0,
    13: 4,
    14: 1,
    15: 6,
    16: 0,
    17: 1,
    18: 0,
    19: 6,
}


@pytest.mark.parametrize(("kind", "words"), _WORDS_OF_KINDS.items())
def test_a_type_of_every_kind_is_passed_over(kind: int, words: int) -> None:
    btf = hand_made()
    btf.type(kind, "other", size=64, info=2, more=[0] * words)
    btf.structure("s", 8, [("wanted", btf.integer(), 32)])
    assert field_offset(btf.encoded(), "s", ("wanted",)) == 4


def test_more_elements_than_16_bits_count_are_passed_over() -> None:
    btf = hand_made()
    btf.type(6, "enumeration", size=4, info=70_000, more=[0] * 140_000)
    btf.structure("s", 8, [("wanted", btf.integer(), 32)])
    assert field_offset(btf.encoded(), "s", ("wanted",)) == 4


# ---- What is broken, or made to harm ----


def _asked(btf: bytes, base: bytes | None = None) -> int | None:
    return field_offset(btf, "s", ("inner", "wanted"), base=base)


def _well_formed() -> HandMade:
    btf = hand_made()
    union = btf.structure("", 4, [("wanted", btf.integer(), 0)], kind=UNION)
    inner = btf.structure("inner", 8, [("", union, 32)])
    btf.structure("s", 16, [("inner", btf.type(TYPEDEF, "inner_type", size=inner), 64)])
    return btf


def test_every_truncation_is_told() -> None:
    whole = _well_formed().encoded()
    assert _asked(whole) == 12
    for size in range(len(whole)):
        with pytest.raises(Obstacle, match=r"truncated|broken"):
            _asked(whole[:size])


@pytest.mark.parametrize(
    ("at", "written", "reason"),
    [
        (0, b"\xeb\x9f", "not of a little-endian machine"),
        (2, b"\x02", "version 2: expected 1"),
        (4, b"\x00\x00\x00\x00", "its header says that it has 0 bytes"),
        (4, b"\xff\xff\xff\xff", "its header says that it has 4294967295 bytes"),
        (8, b"\xff\xff\xff\xff", "its types end at byte"),
        (12, b"\xff\xff\xff\xff", "its types end at byte"),
        (12, b"\x09\x00\x00\x00", "expected a multiple of 4"),
        (12, b"\x1c\x00\x00\x00", "its last type reaches beyond"),
        (20, b"\xff\xff\xff\x7f", "its strings end at byte"),
        (20, b"\x03\x00\x00\x00", "do not end with a NUL"),
        (28, b"\x00\x00\x00\x00", "a type of kind 0"),
        (28, b"\xff\xff\xff\x04", "its last type reaches beyond"),
    ],
)
def test_what_a_header_or_a_type_says_falsely_is_told(at: int, written: bytes, reason: str) -> None:
    broken = bytearray(_well_formed().encoded())
    broken[at : at + len(written)] = written
    with pytest.raises(Obstacle, match=reason):
        _asked(bytes(broken))


def test_what_is_wrong_with_a_base_is_said_of_the_base() -> None:
    own, base = _on_a_distilled_base()
    with pytest.raises(Obstacle, match="what the module's BTF continues: truncated BTF"):
        field_offset(own, "kvm", ("count",), base=base[:-1])


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("inner", 0, 0), "type 0, which does not exist"),
        (("inner", 99, 0), "type 99, which does not exist"),
        (("inner", 0xFFFF_FFFF, 0), "type 4294967295, which does not exist"),
        (("inner", 1, 65), "a member at bit 65 of a structure of 8 bytes"),
        (("inner", 1, 0xFFFF_FFFF), "a member at bit 4294967295 of a structure of 8 bytes"),
    ],
)
def test_a_member_that_cannot_be_is_told(member: tuple[str, int, int], reason: str) -> None:
    btf = hand_made()
    btf.integer()
    btf.structure("s", 8, [member])
    with pytest.raises(Obstacle, match=reason):
        field_offset(btf.encoded(), "s", ("inner",))


def test_a_name_beyond_the_strings_is_told() -> None:
    btf = hand_made()
    number = btf.integer()
    btf.records += struct.pack("<6I", btf.name("s"), STRUCT << 24 | 1, 8, 0x00FF_FFFF, number, 0)
    with pytest.raises(Obstacle, match="a name lies beyond its strings"):
        field_offset(btf.encoded(), "s", ("wanted",))


def test_two_fields_of_one_name_are_told() -> None:
    btf = hand_made()
    inside = btf.structure("", 4, [("wanted", btf.integer(), 0)])
    btf.structure("s", 16, [("wanted", 1, 0), ("", inside, 64)])
    with pytest.raises(Obstacle, match="a structure with 2 fields wanted"):
        field_offset(btf.encoded(), "s", ("wanted",))


def test_a_circle_of_names_ends() -> None:
    btf = hand_made()
    btf.type(TYPEDEF, "a", size=2)
    btf.type(CONST, size=1)
    btf.structure("s", 8, [("inner", 1, 0)])
    with pytest.raises(Obstacle, match="or a circle of them"):
        _asked(btf.encoded())


def test_a_structure_inside_itself_ends() -> None:
    btf = hand_made()
    btf.structure("s", 8, [("", 1, 0), ("inner", 1, 0)])
    with pytest.raises(Obstacle, match="more than 32 deep"):
        _asked(btf.encoded())


@pytest.mark.parametrize(("levels", "members"), [(30, 2), (2, 60_000)])
def test_more_ways_than_can_be_looked_at_end(levels: int, members: int) -> None:
    btf = hand_made()
    inside = btf.integer()
    for _ in range(levels):
        inside = btf.structure("", 8, [("", inside, 0)] * members)
    btf.structure("s", 8, [("", inside, 0)])
    with pytest.raises(Obstacle, match="more than 131072 members on the way to one field"):
        _asked(btf.encoded())


def test_more_types_than_there_can_be_are_told() -> None:
    btf = hand_made()
    btf.records = bytearray(struct.pack("<3I", 0, POINTER << 24, 0)) * (1 << 20)
    with pytest.raises(Obstacle, match="1048576 types, expected at most 1048575"):
        _asked(btf.encoded())


def test_more_bytes_than_any_kernel_has_are_not_looked_at() -> None:
    with pytest.raises(Obstacle, match="expected at most 33554432"):
        needs_base(bytes((32 << 20) + 1))
