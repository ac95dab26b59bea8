"""Where a field lies in a structure, by the type information that a kernel carries: BTF (Documentation/bpf/btf.rst).

A module's BTF is *split*: its type ids and name offsets go on where those of its base end. The base is the BTF of the vmlinux that it was
built with or, since Linux 6.11, a distilled one of its own (section .BTF.base), which may know no more of a structure than its size.

A vmlinux has some 100,000 types in 5 MB. They are passed over once, to note where each begins; what leads to the field alone is looked at.
"""

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from exitguard.facts.machine_code.obstacle import Obstacle

# include/uapi/linux/btf.h
_MAGIC, _VERSION = 0xEB9F, 1
_HEADER = struct.Struct("<HBBIIIII")
#: Where the layout section is, in the headers that tell of one (since 2026).
_LAYOUT = struct.Struct("<II")
_LAYOUT_ENTRY = struct.Struct("<BBH")
_INT, _ARRAY, _STRUCT, _UNION, _ENUM, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 1, 3, 4, 5, 6, 13, 14, 15, 17, 19
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG = 8, 9, 10, 11, 18
_LAST_KIND = 19
_MOST_TYPES = 0x000F_FFFF  # BTF_MAX_TYPE

#: A record begins with three words: name, info, and size or type. What follows, in words: once, and for each element.
_RECORD_WORDS = 3
_ONCE = {_INT: 1, _ARRAY: 3, _VAR: 1, _DECL_TAG: 1}
_EACH = {_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, _DATASEC: 3, _ENUM64: 3}
#: Fits no section: where nobody knows how long a record is, none can follow it.
_ENDLESS = 1 << 40
# The info word. Until 2026 the kind had 5 bits and the count 16; the bits between were 0, so that one reading does for both.
_KINDS, _KIND_SHIFT, _COUNT_MASK, _FLAG_SHIFT = 0x80, 24, 0x00FF_FFFF, 31

_WITHOUT_MEANING = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_DEEPEST = 32  # MAX_RESOLVE_DEPTH (kernel/bpf/btf.c)
#: Some hundred are looked at for a field of struct kvm.
_MOST_MEMBERS = 1 << 17
#: Six times the BTF of a distribution's kernel.
_LARGEST_BYTES = 32 << 20
_BITS_PER_BYTE = 8


def field_offset(module: bytes, structure: str, fields: tuple[str, ...], *, base: bytes | None = None) -> int | None:
    """The offset in bytes of a field from the beginning of `struct structure`, or None where there is no such structure or field.

    `fields` leads to it through structures that lie inside: ("arch", "enable_pmu"). A pointer is not followed: what it points to lies
    elsewhere. `base` is what the BTF continues; one that continues nothing does without it. Raises Obstacle where the BTF is broken or
    does not fit its base, where the field does not begin at a byte, and where several structures of that name answer differently.
    """
    types = _types(module, base)
    wanted = tuple(_as_stored(field) for field in fields)
    places = {types.place(found, wanted) for found in types.structures(_as_stored(structure))}
    if len(places) > 1:
        shown = ", ".join(sorted("no such field" if place is None else f"{place:#x}" for place in places)[:4])
        raise Obstacle(f"BTF has several structures {structure}, in which {'.'.join(fields)} lies differently: {shown}")
    return places.pop() if places else None


def needs_base(module: bytes) -> bool:
    """Whether this BTF continues another. Raises Obstacle for one that is broken.

    Nothing in it says so. The kernel takes one that stands alone only if its strings begin with the empty one (btf_parse_str_sec() in
    kernel/bpf/btf.c); a split one has that from its base, and begins with its first own name. One that begins with an empty string
    nevertheless is split if it names something beyond its own strings, since the offsets of these begin after the base's.
    """
    return _index(module).is_split


@dataclass(frozen=True, slots=True)
class _Index:
    """One BTF, and where in it things begin."""

    btf: bytes
    #: The type section.
    words: "array[int]"
    #: Where each type begins in `words`, in the order of their ids; and where each structure does.
    records: "array[int]"
    structures: "array[int]"
    names_at: int
    names_size: int
    is_split: bool

    def is_name(self, offset: int) -> bool:
        """Whether a name begins here, in its own strings."""
        return offset < self.names_size and (offset == 0 or self.btf[self.names_at + offset - 1] == 0)


@lru_cache(maxsize=2)  # several fields are asked for of one module and one base
def _index(btf: bytes) -> _Index:
    if len(btf) > _LARGEST_BYTES:
        raise Obstacle(f"BTF of {len(btf)} bytes: expected at most {_LARGEST_BYTES}")
    if len(btf) < _HEADER.size:
        raise Obstacle(f"truncated BTF: {len(btf)} bytes, expected a header of {_HEADER.size}")
    magic, version, _, header_size, types_at, types_size, names_at, names_size = _HEADER.unpack_from(btf)
    if magic != _MAGIC:
        raise Obstacle(f"no BTF, or not of a little-endian machine: it begins with {magic:#06x}, expected {_MAGIC:#06x}")
    if version != _VERSION:
        raise Obstacle(f"BTF of version {version}: expected {_VERSION}, the only one this program knows")
    if not _HEADER.size <= header_size <= len(btf):
        raise Obstacle(f"broken BTF: its header says that it has {header_size} bytes, expected {_HEADER.size} to {len(btf)}")
    for section, at, size in (("types", types_at, types_size), ("strings", names_at, names_size)):
        if header_size + at + size > len(btf):
            raise Obstacle(f"truncated BTF: its {section} end at byte {header_size + at + size}, and it has {len(btf)}")
    if types_size % 4:
        raise Obstacle(f"broken BTF: {types_size} bytes of types, expected a multiple of 4")
    words = _words(btf[header_size + types_at : header_size + types_at + types_size])
    records, structures = _passed_over(words, *_lengths(btf, header_size))
    names_at += header_size
    if names_size and btf[names_at + names_size - 1]:
        raise Obstacle("broken BTF: its strings do not end with a NUL byte")
    stands_alone = names_size > 0 and btf[names_at] == 0
    is_split = not stands_alone or any(words[record] >= names_size for record in records)
    return _Index(btf, words, records, structures, names_at, names_size, is_split)


def _words(section: bytes) -> "array[int]":
    words = array("I", section)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _lengths(btf: bytes, header_size: int) -> tuple[list[int], list[int]]:
    """How many words each kind of type has in all but its elements, and how many for each of these.

    The layout section has them for every kind that its writer knew. The format's own kinds are as they always were.
    """
    once, each = [_ENDLESS] * _KINDS, [0] * _KINDS
    if header_size >= _HEADER.size + _LAYOUT.size:
        at, size = _LAYOUT.unpack_from(btf, _HEADER.size)
        at += header_size
        if at + size > len(btf):
            raise Obstacle(f"truncated BTF: its layout ends at byte {at + size}, and it has {len(btf)}")
        for kind in range(_LAST_KIND + 1, min(size // _LAYOUT_ENTRY.size, _KINDS)):
            once_bytes, each_bytes, _ = _LAYOUT_ENTRY.unpack_from(btf, at + kind * _LAYOUT_ENTRY.size)
            if once_bytes % 4 or each_bytes % 4:
                raise Obstacle(f"broken BTF: its layout gives types of kind {kind} a length that is no multiple of 4 bytes")
            once[kind], each[kind] = _RECORD_WORDS + once_bytes // 4, each_bytes // 4
    for kind in range(1, _LAST_KIND + 1):
        once[kind], each[kind] = _RECORD_WORDS + _ONCE.get(kind, 0), _EACH.get(kind, 0)
    return once, each


def _passed_over(words: "array[int]", once: list[int], each: list[int]) -> tuple["array[int]", "array[int]"]:
    """Where every type begins, and where every structure does."""
    records, structures = array("I"), array("I")
    note = records.append
    at, end = 0, len(words)
    last = end - _RECORD_WORDS
    while at <= last:
        note(at)
        info = words[at + 1]
        kind = info >> _KIND_SHIFT & (_KINDS - 1)
        if kind == _STRUCT:
            structures.append(at)
        at += once[kind] + each[kind] * (info & _COUNT_MASK)
    if at >= _ENDLESS:
        kind = words[records[-1] + 1] >> _KIND_SHIFT & (_KINDS - 1)
        raise Obstacle(f"BTF with a type of kind {kind}: expected kinds 1 to {_LAST_KIND}, or a layout section that says how long it is")
    if at != end:
        raise Obstacle("broken BTF: its last type reaches beyond the types' end")
    if len(records) > _MOST_TYPES:
        raise Obstacle(f"broken BTF: {len(records)} types, expected at most {_MOST_TYPES}")
    return records, structures


@dataclass(frozen=True, slots=True)
class _Type:
    """One type of one BTF: where it begins, and its first words."""

    words: "array[int]"
    at: int

    @property
    def kind(self) -> int:
        return self.words[self.at + 1] >> _KIND_SHIFT & (_KINDS - 1)

    @property
    def count(self) -> int:
        return self.words[self.at + 1] & _COUNT_MASK

    @property
    def has_flag(self) -> bool:
        return bool(self.words[self.at + 1] >> _FLAG_SHIFT)

    @property
    def size_or_type(self) -> int:
        return self.words[self.at + 2]

    @property
    def is_compound(self) -> bool:
        return self.kind in (_STRUCT, _UNION)


@dataclass(frozen=True, slots=True)
class _Member:
    name: int
    type: int
    #: From the beginning of the structure.
    bits: int
    #: How many bits a bit-field has; 0 where it is none, or where only its type says so.
    width: int


@dataclass(slots=True)
class _Types:
    """The types of a BTF and of its base, by ids that run on from one to the other; for one question."""

    own: _Index
    base: _Index | None
    members_left: int = _MOST_MEMBERS

    def structures(self, name: bytes) -> Iterator[_Type]:
        """Every structure of that name."""
        for index in (self.base, self.own):
            if index is not None:
                yield from (_Type(index.words, at) for at in index.structures if self._is_called(index.words[at], name))

    def place(self, structure: _Type, fields: tuple[bytes, ...]) -> int | None:
        """The offset in bytes of a field, or None where there is none of that name."""
        bits, width, within = 0, 0, structure
        for field in fields:
            if not within.is_compound:
                return None
            member = self._member(within, field)
            if member is None:
                return None
            bits += member.bits
            within = self._resolved(member.type)
            width = member.width or _width_by_type(within)
        if width or bits % _BITS_PER_BYTE:
            raise Obstacle(f"{_shown(fields)} is a bit-field in BTF, or does not begin at a byte: expected one that does, and fills it")
        return bits // _BITS_PER_BYTE

    def _member(self, structure: _Type, name: bytes) -> _Member | None:
        """The member of that name, those of anonymous structures and unions inside included, as in C."""
        found: set[_Member] = set()
        inside = [(structure, 0, 0)]
        while inside:
            compound, begins, depth = inside.pop()
            for member in self._members(compound, begins):
                if self._is_called(member.name, name):
                    found.add(member)
                elif self._is_called(member.name, b"\0"):
                    within = self._resolved(member.type)
                    if within.is_compound:
                        if depth == _DEEPEST:
                            raise Obstacle(f"broken BTF: structures lie in one another more than {_DEEPEST} deep")
                        inside.append((within, member.bits, depth + 1))
        if len(found) > 1:
            raise Obstacle(f"broken BTF: a structure with {len(found)} fields {_shown((name,))}")
        return found.pop() if found else None

    def _members(self, compound: _Type, begins: int) -> Iterator[_Member]:
        size = compound.size_or_type
        if compound.count == 0 and size > 0:
            raise Obstacle(
                "BTF tells no more than the size of a structure on the way to the field, as a module's own base does (.BTF.base): "
                "expected the BTF of a kernel image that has KVM built in, or of a module with its structures in full"
            )
        self.members_left -= compound.count + 1
        if self.members_left < 0:
            raise Obstacle(f"broken BTF: more than {_MOST_MEMBERS} members on the way to one field")
        words, has_flag = compound.words, compound.has_flag
        first = compound.at + _RECORD_WORDS
        for at in range(first, first + 3 * compound.count, 3):
            name, type_id, bits = words[at : at + 3]
            # With the flag, the upper 8 of the 32 bits are the width of a bit-field.
            width = bits >> 24 if has_flag else 0
            bits &= 0x00FF_FFFF if has_flag else 0xFFFF_FFFF
            if bits + width > size * _BITS_PER_BYTE:
                raise Obstacle(f"broken BTF: a member at bit {bits} of a structure of {size} bytes")
            yield _Member(name, type_id, begins + bits, width)

    def _resolved(self, type_id: int) -> _Type:
        """What a type is, behind its names and qualifiers."""
        for _ in range(_DEEPEST):
            found = self._type(type_id)
            if found.kind not in _WITHOUT_MEANING:
                return found
            type_id = found.size_or_type
        raise Obstacle(f"broken BTF: more than {_DEEPEST} names and qualifiers of one type, or a circle of them")

    def _type(self, type_id: int) -> _Type:
        at = type_id - 1  # type 0 is void, which no BTF holds and no member is of
        for index in (self.base, self.own):
            if index is not None:
                if 0 <= at < len(index.records):
                    return _Type(index.words, index.records[at])
                at -= len(index.records)
        raise Obstacle(f"broken BTF: a member of type {type_id}, which does not exist")

    def _is_called(self, offset: int, name: bytes) -> bool:
        """Whether the name at an offset is this one. It ends with its NUL, so that nothing longer fits."""
        for index in (self.base, self.own):
            if index is not None:
                if offset < index.names_size:
                    # What follows a BTF's strings cannot complete a name: they end with a NUL byte.
                    return index.btf.startswith(name, index.names_at + offset)
                offset -= index.names_size
        raise Obstacle("broken BTF: a name lies beyond its strings")


def _types(module: bytes, base: bytes | None) -> _Types:
    own = _index(module)
    if not own.is_split:
        return _Types(own, None)
    if base is None:
        raise Obstacle(
            "the BTF continues that of the kernel it was built with: expected that as well (its vmlinuz, or /sys/kernel/btf/vmlinux)"
        )
    try:
        below = _index(base)
    except Obstacle as obstacle:
        raise Obstacle(f"what the module's BTF continues: {obstacle}") from None
    if below.is_split:
        raise Obstacle("what the module's BTF continues is a module's itself: expected the BTF of a vmlinux")
    # With the wrong base an offset falls into the middle of some name; and writers of split BTF never name one name's end another.
    for record in own.records:
        name = own.words[record]
        if not (below.is_name(name) if name < below.names_size else own.is_name(name - below.names_size)):
            raise Obstacle("a module's BTF does not fit what it is said to continue: expected the BTF of the very kernel it was built with")
    return _Types(own, below)


def _width_by_type(found: _Type) -> int:
    """The bits of a bit-field whose integer type alone says that it is one: structures without the flag have those."""
    if found.kind != _INT:
        return 0
    encoding = found.words[found.at + _RECORD_WORDS]
    width, shift = encoding & 0xFF, encoding >> 16 & 0xFF
    return width if shift or width != found.size_or_type * _BITS_PER_BYTE else 0


def _as_stored(name: str) -> bytes:
    return name.encode() + b"\0"


def _shown(names: tuple[bytes, ...]) -> str:
    return ".".join(name[:-1].decode() for name in names)
