"""BTF put together by hand, for what no compiler makes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

# include/uapi/linux/btf.h
INT, POINTER, STRUCT, UNION, FORWARD, TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG = 1, 2, 4, 5, 7, 8, 9, 10, 11, 18
FLAG = 1 << 31


@dataclass
class HandMade:
    """BTF put together type by type; the first has id 1, or the one after the base's last."""

    names: bytearray
    names_before: int = 0
    types: int = 0
    records: bytearray = field(default_factory=bytearray)
    layout: bytes = b""

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return self.names_before + len(self.names) - len(text) - 1

    def type(self, kind: int, name: str = "", *, size: int = 0, info: int = 0, more: Sequence[int] = ()) -> int:
        self.records += struct.pack(f"<{3 + len(more)}I", self.name(name), kind << 24 | info, size, *more)
        self.types += 1
        return self.types

    def integer(self, bits: int = 32, size: int = 4) -> int:
        return self.type(INT, "int", size=size, more=(bits,))

    def structure(self, name: str, size: int, members: Sequence[tuple[str, int, int]], *, kind: int = STRUCT, info: int = 0) -> int:
        more = [word for text, of_type, bits in members for word in (self.name(text), of_type, bits)]
        return self.type(kind, name, size=size, info=info | len(members), more=more)

    def encoded(self) -> bytes:
        header = struct.pack("<II", len(self.records) + len(self.names), len(self.layout)) if self.layout else b""
        sections = (0, len(self.records), len(self.records), len(self.names))
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24 + len(header), *sections) + header + self.records + self.names + self.layout

    def continued(self) -> "HandMade":
        return HandMade(bytearray(), len(self.names), self.types)


def hand_made() -> HandMade:
    return HandMade(bytearray(b"\0"))
