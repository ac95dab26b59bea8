"""A kernel compressed by lzop: its header and blocks, as lib/decompress_unlzo.c reads them. liblzo2 does the decompression."""

import struct
import zlib
from collections.abc import Callable
from functools import cache

from exitguard.facts.machine_code.obstacle import Obstacle

LZOP_MAGIC = b"\x89LZO\x00\r\n\x1a\n"
_LIBRARY = "liblzo2.so.2"
_LZO_E_OK = 0  # <lzo/lzoconf.h>

# Of the header, whose numbers are big endian: the versions of the format, of the library, and the one it takes to read it; method, level
# and flags; mode and time of the file that was compressed.
_HEADER = struct.Struct(">HHHBBIIII")
_VERSION_WITH_LEVEL = 0x0940  # of 1997; what is older has another header
_METHODS = range(1, 4)  # LZO1X-1, LZO1X-1(15), LZO1X-999: one decompressor for all
_ADLER32_UNPACKED, _ADLER32_PACKED, _EXTRA_FIELD = 0x1, 0x2, 0x40
_CRC32_UNPACKED, _CRC32_PACKED, _FILTER = 0x100, 0x200, 0x800

#: Both as lib/decompress_unlzo.c: the largest block; so many of them are 16 GiB.
_BLOCK_BYTES = 256 << 10
_MOST_BLOCKS = 1 << 16
_U32 = struct.Struct(">I")


class LzopError(ValueError):
    """The data are damaged; its text says how."""


def unpack_lzop(exactly: Callable[[int], bytes], write: Callable[[bytes], None], *, name: str) -> None:
    """Hand what a file of lzop holds to `write`, block by block; `exactly` gives the next so many bytes of the file.

    Raises LzopError, and Obstacle, which calls the file `name`, where liblzo2 is not installed.
    """
    decompress = _decompressor()
    if decompress is None:
        raise Obstacle(f"{name} takes {_LIBRARY} to unpack, which is not installed: apt install liblzo2-2, or dnf install lzo")
    flags = _flags(exactly)
    for _ in range(_MOST_BLOCKS):
        size = _number(exactly)
        if size == 0:
            return
        packed_size = _number(exactly)
        if not 0 < packed_size <= size <= _BLOCK_BYTES:
            raise LzopError(f"a block of {packed_size} bytes that are {size} unpacked")
        adler32 = _number(exactly) if flags & _ADLER32_UNPACKED else None
        crc32 = _number(exactly) if flags & _CRC32_UNPACKED else None
        if packed_size < size:
            # Sums of what is unpacked are enough.
            exactly(sum(_U32.size for flag in (_ADLER32_PACKED, _CRC32_PACKED) if flags & flag))
        block = exactly(packed_size)
        if packed_size < size:
            block = decompress(block, size)
        if adler32 not in (None, zlib.adler32(block)) or crc32 not in (None, zlib.crc32(block)):
            raise LzopError("the sum of a block is wrong")
        write(block)
    raise LzopError(f"more than {_MOST_BLOCKS} blocks")


def _flags(exactly: Callable[[int], bytes]) -> int:
    if exactly(len(LZOP_MAGIC)) != LZOP_MAGIC:
        raise LzopError("no header")
    version, _, _, method, _, flags, _, _, _ = _HEADER.unpack(exactly(_HEADER.size))
    if version < _VERSION_WITH_LEVEL or method not in _METHODS or flags & _FILTER:
        raise LzopError(f"version {version:#x}, method {method}, flags {flags:#x}: no kernel is made so")
    name_size = exactly(1)[0]
    exactly(name_size + _U32.size)
    if flags & _EXTRA_FIELD:
        extra_size = _number(exactly)
        if extra_size > _BLOCK_BYTES:
            raise LzopError(f"an extra field of {extra_size} bytes")
        exactly(extra_size + _U32.size)
    return int(flags)


def _number(exactly: Callable[[int], bytes]) -> int:
    return int(_U32.unpack(exactly(_U32.size))[0])


@cache
def _decompressor() -> Callable[[bytes, int], bytes] | None:
    """None where the library is not installed."""
    import ctypes

    try:
        # By its name alone: looking for it otherwise starts programs.
        function = ctypes.CDLL(_LIBRARY).lzo1x_decompress_safe
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_void_p]
    unpacked = ctypes.create_string_buffer(_BLOCK_BYTES)

    def decompress(block: bytes, size: int) -> bytes:
        written = ctypes.c_size_t(size)
        result = function(block, len(block), unpacked, ctypes.byref(written), None)
        if result != _LZO_E_OK or written.value != size:
            raise LzopError(f"a block that cannot be unpacked (LZO error {result})")
        return unpacked.raw[:size]

    return decompress
