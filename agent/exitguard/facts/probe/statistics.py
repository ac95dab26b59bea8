"""KVM's binary statistics of one vCPU (KVM_GET_STATS_FD; Documentation/virt/kvm/api.rst section 4.133), since Linux 5.14.

The file is a header, an id, descriptors and the values. What it says of itself is checked before it is followed.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

#: struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
_HEADER = struct.Struct("=6I")
#: struct kvm_stats_desc without its name: flags, exponent, size, offset, bucket_size.
_DESCRIPTOR = struct.Struct("=IhHII")
_VALUE = struct.Struct("=Q")
_TYPE_MASK = 0xF
_CUMULATIVE = 0
#: KVM has some 60 descriptors with names of 48 bytes; far more than this is no statistics file.
_MOST_DESCRIPTORS = 1024
_LONGEST_NAME = 256
_MOST_BYTES = 1 << 20


class StatisticsError(Exception):
    """The statistics are not laid out as KVM documents it; the message says what was found."""


@dataclass(frozen=True)
class Layout:
    """Where each cumulative counter of a single value lies in the file."""

    offsets: Mapping[str, int]


def parse_layout(content: bytes) -> Layout:
    """The layout that the beginning of a statistics file describes. Raises StatisticsError."""
    if len(content) < _HEADER.size:
        raise StatisticsError(f"expected a header of {_HEADER.size} bytes, found {len(content)} bytes")
    _flags, name_size, count, _id_offset, descriptors, data = _HEADER.unpack_from(content)
    if not 0 < name_size <= _LONGEST_NAME or not 0 < count <= _MOST_DESCRIPTORS:
        raise StatisticsError(f"expected up to {_MOST_DESCRIPTORS} descriptors with names, found {count} with {name_size} bytes each")
    step = _DESCRIPTOR.size + name_size
    if descriptors + count * step > len(content):
        raise StatisticsError(f"expected {count} descriptors from byte {descriptors} on, found a file of {len(content)} bytes")
    offsets: dict[str, int] = {}
    for place in range(descriptors, descriptors + count * step, step):
        flags, _exponent, size, offset, _bucket = _DESCRIPTOR.unpack_from(content, place)
        name = content[place + _DESCRIPTOR.size : place + step].split(b"\0", 1)[0].decode("ascii", "replace")
        if flags & _TYPE_MASK == _CUMULATIVE and size == 1 and data + offset + _VALUE.size <= _MOST_BYTES:
            offsets.setdefault(name, data + offset)
    return Layout(offsets=offsets)


@dataclass(frozen=True)
class ExitCounter:
    """`exits` of one vCPU, read again and again."""

    descriptor: int
    offset: int

    def read(self) -> int:
        """How many exits the vCPU has made since it was created. Raises StatisticsError, OSError."""
        content = os.pread(self.descriptor, _VALUE.size, self.offset)
        if len(content) < _VALUE.size:
            raise StatisticsError(f"expected a value at byte {self.offset}, found the end of the file")
        return int(_VALUE.unpack(content)[0])


def exit_counter(descriptor: int) -> ExitCounter:
    """The counter of `exits` in an open statistics file. Raises StatisticsError, OSError."""
    layout = parse_layout(_read_head(descriptor))
    if "exits" not in layout.offsets:
        raise StatisticsError("this kernel's vCPU statistics have no counter named exits")
    return ExitCounter(descriptor=descriptor, offset=layout.offsets["exits"])


def _read_head(descriptor: int) -> bytes:
    content = b""
    while len(content) < _MOST_BYTES:
        piece = os.pread(descriptor, 1 << 16, len(content))
        if not piece:
            break
        content += piece
    return content
