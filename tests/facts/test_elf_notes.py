import struct

from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.elf_notes import Note, parse_build_id, parse_notes


def note(owner: bytes, note_type: int, descriptor: bytes) -> bytes:
    name = owner + b"\0"
    header = struct.pack("<III", len(name), len(descriptor), note_type)
    return header + name.ljust(len(name) + 3 & ~3, b"\0") + descriptor.ljust(len(descriptor) + 3 & ~3, b"\0")


def test_build_id_is_found_behind_other_notes() -> None:
    section = note(b"Xen", 3, b"\0" * 20) + note(b"GNU", 1, b"\0" * 16) + note(b"GNU", 3, bytes(range(20)))
    assert parse_build_id(section) == bytes(range(20)).hex()


def test_note_that_does_not_fit_ends_the_list() -> None:
    section = note(b"GNU", 1, b"abcd") + struct.pack("<III", 4, 0xFFFFFFFF, 3) + b"GNU\0" + b"x" * 20
    assert list(parse_notes(section)) == [Note(owner=b"GNU", type=1, descriptor=b"abcd")]
    assert parse_build_id(section) is None


def test_empty_or_giant_build_id_is_none() -> None:
    assert parse_build_id(note(b"GNU", 3, b"")) is None
    assert parse_build_id(note(b"GNU", 3, b"x" * 1000)) is None


def test_notes_without_end_are_bounded() -> None:
    assert len(list(parse_notes(b"\0" * (1 << 20)))) == 1000


@given(st.binary(max_size=400))
def test_arbitrary_bytes_yield_a_hex_id_or_none(section: bytes) -> None:
    build_id = parse_build_id(section)
    assert build_id is None or len(bytes.fromhex(build_id)) >= 8


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=9).filter(lambda owner: not owner.endswith(b"\0")),
            st.integers(0, 2**32 - 1),
            st.binary(max_size=40),
        ),
        max_size=6,
    )
)
def test_every_note_is_read_back(notes: list[tuple[bytes, int, bytes]]) -> None:
    section = b"".join(note(*parts) for parts in notes)
    assert list(parse_notes(section)) == [Note(*parts) for parts in notes]
