"""ELF notes, as /sys/kernel/notes and /sys/module/<name>/notes/<section> hold them (elf(5), "Notes (Nhdr)"). Hostile input is expected."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from exitguard.facts.tree import HostTree, unseen_like
from exitguard.model.record import Observed, seen, unseen

#: The notes of the running kernel's image (kernel/ksysfs.c).
KERNEL_NOTES = "/sys/kernel/notes"
#: NT_GNU_BUILD_ID in <elf.h>, owner "GNU".
_NT_GNU_BUILD_ID = 3
_HEADER = struct.Struct("<III")  # name size, descriptor size, type; little-endian as every x86 kernel is
_MAX_NOTES = 1000
#: SHA-1 ids have 20 bytes, the linker's md5 and uuid styles 16, sha256 32, fast 8; `--build-id=0x...` may be any length.
_BUILD_ID_BYTES = range(8, 65)


@dataclass(frozen=True)
class Note:
    owner: bytes
    type: int
    descriptor: bytes


def parse_notes(section: bytes) -> Iterator[Note]:
    """The notes of a section, in order, up to the first that does not fit into it."""
    offset = 0
    for _ in range(_MAX_NOTES):
        if offset + _HEADER.size > len(section):
            return
        name_bytes, descriptor_bytes, note_type = _HEADER.unpack_from(section, offset)
        name_at = offset + _HEADER.size
        descriptor_at = name_at + _padded(name_bytes)
        if descriptor_at + descriptor_bytes > len(section):
            return
        owner = section[name_at : name_at + name_bytes].rstrip(b"\0")
        yield Note(owner=owner, type=note_type, descriptor=section[descriptor_at : descriptor_at + descriptor_bytes])
        offset = descriptor_at + _padded(descriptor_bytes)


def parse_build_id(section: bytes) -> str | None:
    """The GNU build-id in hex, or None where no note holds one."""
    for note in parse_notes(section):
        if note.owner == b"GNU" and note.type == _NT_GNU_BUILD_ID and len(note.descriptor) in _BUILD_ID_BYTES:
            return note.descriptor.hex()
    return None


def read_build_id(tree: HostTree, path: str) -> Observed[str]:
    """The build-id in a file of notes, in hex, or why there is none."""
    notes = tree.read_bytes(path)
    if notes.value is None:
        return unseen_like(notes)
    build_id = parse_build_id(notes.value)
    return seen(path, build_id) if build_id is not None else unseen(path, "holds no GNU build-id note")


def _padded(size: int) -> int:
    return (size + 3) & ~3
