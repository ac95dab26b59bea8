"""The ELF file in a file: bare, compressed as modules are, or the payload of a kernel that boots.

What a file is, its content tells, never its name. Nothing that it says of itself is believed: bytes go through in pieces, a decoder
gets no more memory than the kernel's own formats take, and what comes out ends at a limit.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Protocol

from exitguard.facts.machine_code.lzop import LZOP_MAGIC, LzopError, unpack_lzop
from exitguard.facts.machine_code.obstacle import Obstacle

#: A distribution's vmlinux without debug information has 40 to 110 MB.
LIMIT = 256 << 20
_ELF = b"\x7fELF"
_EXPECTED = "Expected a kernel module (kvm.ko) or a kernel image (vmlinuz, vmlinux)"
_INSTALL_AGAIN = "Install its package again, or name a whole copy"

#: So much is read, and asked of a decoder, at once.
_PIECE_BYTES = 64 << 10
#: A decoder that gives all it has gets so little at once that this is at most some 16 MiB (zstandard: 128 KiB from 4 bytes).
_BITE_BYTES = 512
#: What a compressed file may have beyond what may come out of it: headers, and the code before the payload of a kernel.
_OVERHEAD_BYTES = 1 << 20
#: The dictionary of xz (scripts/xz_wrap.sh) and the window of `zstd --ultra -22` (scripts/Makefile.lib) of a kernel: both 128 MiB.
_WINDOW_BYTES = 128 << 20
_LZMA_MEMORY_BYTES = _WINDOW_BYTES + (8 << 20)
#: Compressors that work in parallel (pbzip2, pigz -i, pzstd) make one stream a piece: some hundred.
_MOST_STREAMS = 4096
_MAGIC_BYTES = 3  # as many as every magic has that a further stream may begin with

#: lib/decompress_unlz4.c: blocks of 8 MiB, each behind its size. Incompressible ones grow a little (LZ4_compressBound).
_LZ4_MAGIC = b"\x02\x21\x4c\x18"
_LZ4_BLOCK_BYTES = 8 << 20
_LZ4_LARGEST_BYTES = _LZ4_BLOCK_BYTES + _LZ4_BLOCK_BYTES // 255 + 16
_MOST_BLOCKS = 1 << 16

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
_SETUP_SECTS_AT, _BOOT_MAGIC_AT, _BOOT_VERSION_AT, _PAYLOAD_AT = 0x1F1, 0x202, 0x206, 0x248
_BOOT_MAGIC = b"HdrS"
_BOOT_VERSION_WITH_PAYLOAD = 0x0208  # Linux 2.6.26
_SECTOR_BYTES = 512
_USUAL_SETUP_SECTS = 4  # what 0 means
_HEAD_BYTES = 1024
_U16, _U32, _PAYLOAD = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<II")


def read_elf(file: BinaryIO, *, name: str, limit_bytes: int = LIMIT) -> bytes:
    """The ELF file in what is read from where `file` stands. At most `limit_bytes` come out, and little more than that is read.

    `name` is what the reasons call it. Raises Obstacle for what is no kernel, or is damaged, or needs what is not installed here.
    """
    source = _Source(file, name=name, most_bytes=limit_bytes + _OVERHEAD_BYTES)
    head = source.peek(_HEAD_BYTES)
    output = _Output(source, what_it_is(head), limit_bytes)
    compression = _compression_of(head)
    if compression is not None:
        _unpack(source, compression, output)
    elif _is_boot_image(head):
        _unpack_payload(source, head, output)
    elif head.startswith(_ELF):
        _copy(source, output)
    else:
        raise Obstacle(f"{name} is {what_it_is(head)}. {_EXPECTED}")
    return output.elf()


_KINDS = (
    (0, _ELF, "an ELF file"),
    (_BOOT_MAGIC_AT, _BOOT_MAGIC, "a kernel's boot image"),
    (4, b"zimg", "an EFI zboot image, which no x86 kernel is"),
    (0, b"MZ", "an EFI program and no kernel by itself (a unified kernel image has the kernel in its section .linux)"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file in the newer frame format, where a kernel's is the older one (lz4 -l)"),
    (0, b"!<arch>\ndebian-binary", "a Debian package, which has to be unpacked first (dpkg-deb --extract)"),
    (0, b"!<arch>\n", "an ar archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package, which has to be unpacked first (rpm2cpio)"),
    (0, b"0707", "a cpio archive, such as an initramfs"),
    (257, b"ustar", "a tar archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x9f\xeb", "bare BTF"),
)


def what_it_is(head: bytes) -> str:
    """What a file that begins so is, in an operator's words: "a gzip file", "an empty file", "a text"."""
    if not head:
        return "an empty file"
    compression = _compression_of(head)
    if compression is not None:
        return compression.words
    named = next((words for at, magic, words in _KINDS if head.startswith(magic, at)), None)
    if named is not None:
        return named
    if not head.strip(b"\0"):
        return "a file of zeros, as a crash of the machine can leave one"
    return "a text" if _is_text(head) else "a file of an unknown kind"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":  # a head may end within a character
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


class _Source:
    """The bytes of a file, one after another and so many at most; some of them can be given back."""

    def __init__(self, file: BinaryIO, *, name: str, most_bytes: int) -> None:
        self.name = name
        #: How many may still be read.
        self.left = most_bytes
        self._file = file
        self._waiting = b""

    def read(self, size: int) -> bytes:
        """At most so many bytes, and none only at the end."""
        size = min(size, self.left)
        if self._waiting:
            data, self._waiting = self._waiting[:size], self._waiting[size:]
        else:
            try:
                data = self._file.read(size)
            except OSError as error:
                raise Obstacle(f"{self.name} cannot be read to its end: {error.strerror or error}") from None
        self.left -= len(data)
        return data

    def upto(self, size: int) -> bytes:
        """So many bytes; fewer only at the end."""
        data = self.read(size)
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        return data

    def exactly(self, size: int) -> bytes:
        """So many bytes. Raises Obstacle where there are fewer."""
        data = self.upto(size)
        if len(data) < size:
            raise self.cut_short()
        return data

    def some(self, size: int) -> bytes:
        """Some bytes, `size` at most. Raises Obstacle where there are none."""
        data = self.read(size)
        if not data:
            raise self.cut_short()
        return data

    def skip(self, size: int) -> None:
        """Leave so many bytes out. Raises Obstacle where there are fewer."""
        while size:
            size -= len(self.some(min(size, _PIECE_BYTES)))

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay; fewer than `size` only at the end."""
        data = self.upto(size)
        self.give_back(data)
        return data

    def give_back(self, data: bytes) -> None:
        self._waiting = data + self._waiting
        self.left += len(data)

    def cut_short(self) -> Obstacle:
        """Why something that is expected is not there."""
        return Obstacle(f"{self.name} ends too early: it was cut short, or its sizes are wrong. {_INSTALL_AGAIN}")


class _Output:
    """What came out so far: an ELF file, no larger than it may be."""

    def __init__(self, source: _Source, kind: str, limit_bytes: int) -> None:
        self.size = 0
        self._name, self._kind, self._limit_bytes = source.name, kind, limit_bytes
        # Its buffer grows where it is and is handed out as it is, so that there is never a second copy.
        self._buffer = BytesIO()
        self._head = b""

    def write(self, piece: bytes) -> None:
        if len(self._head) < _HEAD_BYTES:
            self._head += piece[:_HEAD_BYTES]
            if not self._head.startswith(_ELF[: len(self._head)]):
                self._refuse()
        self.size += len(piece)
        if self.size > self._limit_bytes:
            raise Obstacle(
                f"{self._name} is {self._kind} with more than {_told(self._limit_bytes)} of content. "
                "Expected a kernel without debug information, which has far less (strip --strip-debug makes one)"
            )
        self._buffer.write(piece)

    def elf(self) -> bytes:
        """All of it. Raises Obstacle where it is too short to be ELF."""
        if not self._head.startswith(_ELF):
            self._refuse()
        return self._buffer.getvalue()

    def _refuse(self) -> None:
        inside = what_it_is(self._head)
        raise Obstacle(f"{self._name} is {self._kind} that holds {inside}. {_EXPECTED} in it")


def _told(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MiB" if size_bytes >= 1 << 20 else f"{size_bytes} bytes"


def _copy(source: _Source, output: _Output) -> None:
    while piece := source.read(_PIECE_BYTES):
        output.write(piece)


def _is_boot_image(head: bytes) -> bool:
    return head.startswith(_BOOT_MAGIC, _BOOT_MAGIC_AT)


def _unpack_payload(source: _Source, head: bytes, output: _Output) -> None:
    """The vmlinux in a boot image lies where its header says."""
    if len(head) < _PAYLOAD_AT + _PAYLOAD.size:
        raise source.cut_short()
    (version,) = _U16.unpack_from(head, _BOOT_VERSION_AT)
    offset, length = _PAYLOAD.unpack_from(head, _PAYLOAD_AT)
    if version < _BOOT_VERSION_WITH_PAYLOAD or length <= _U32.size:
        raise Obstacle(
            f"{source.name} is a kernel's boot image that does not say where the kernel in it lies (boot protocol "
            f"{version >> 8}.{version & 0xFF:02}, {length} bytes). Expected boot protocol 2.08, as of Linux 2.6.26, and a payload"
        )
    source.skip(((head[_SETUP_SECTS_AT] or _USUAL_SETUP_SECTS) + 1) * _SECTOR_BYTES + offset)
    if length > source.left:
        raise Obstacle(
            f"{source.name} says that the kernel in it has {_told(length)} compressed, which is more than any has. {_INSTALL_AGAIN}"
        )
    source.left = length
    payload = source.peek(min(length, _HEAD_BYTES))
    compression = _compression_of(payload)
    if compression is None:
        if not payload.startswith(_ELF):  # CONFIG_KERNEL_UNCOMPRESSED
            raise Obstacle(f"{source.name} is a kernel's boot image that holds {what_it_is(payload)}. Expected a kernel in it")
        _copy(source, output)
        if source.left:
            raise source.cut_short()
        return
    if compression.size_follows:
        source.left -= _U32.size
    _unpack(source, compression, output)
    if compression.size_follows:
        source.skip(source.left)
        source.left = _U32.size
        (size,) = _U32.unpack(source.exactly(_U32.size))
        if size != output.size:
            raise Obstacle(f"{source.name} is damaged: the kernel in it has {output.size} bytes where it says {size}. {_INSTALL_AGAIN}")


class _Damaged(Exception):  # noqa: N818 - never leaves this file
    """Compressed data that cannot be unpacked, in the words of the library."""


def _unpack(source: _Source, compression: "_Compression", output: _Output) -> None:
    try:
        compression.unpack(source, output)
    except _Damaged as error:
        raise Obstacle(f"{source.name} is damaged: its {compression.name} data cannot be unpacked ({error}). {_INSTALL_AGAIN}") from None


class _Decoder(Protocol):
    """One stream's state, as zlib, bz2, lzma and zstandard have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _PatientDecoder(_Decoder, Protocol):
    """Those of bz2 and lzma can be told how much to give at once, and keep the rest."""

    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _gzip(source: _Source, output: _Output) -> None:
    _streams(source, lambda: _in_bites(source, output, zlib.decompressobj(zlib.MAX_WBITS | 16)), broken=zlib.error)


def _bzip2(source: _Source, output: _Output) -> None:
    _streams(source, lambda: _in_pieces(source, output, bz2.BZ2Decompressor()), broken=OSError)


def _xz(source: _Source, output: _Output) -> None:
    _lzma_streams(source, output, lzma.FORMAT_XZ)


def _lzma(source: _Source, output: _Output) -> None:
    _lzma_streams(source, output, lzma.FORMAT_ALONE)


def _lzma_streams(source: _Source, output: _Output, form: int) -> None:
    def one() -> None:
        _in_pieces(source, output, lzma.LZMADecompressor(form, memlimit=_LZMA_MEMORY_BYTES))

    _streams(source, one, broken=lzma.LZMAError)


def _zstd(source: _Source, output: _Output) -> None:
    try:
        import zstandard
    except ImportError:
        raise _not_installed(source, "zstandard") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    _streams(source, lambda: _in_bites(source, output, decompressor.decompressobj()), broken=zstandard.ZstdError)


def _streams(source: _Source, one: Callable[[], None], *, broken: type[Exception]) -> None:
    """One stream, and those that follow and begin alike; anything else behind it does not matter."""
    magic = source.peek(_MAGIC_BYTES)
    for _ in range(_MOST_STREAMS):
        try:
            one()
        except broken as error:
            raise _Damaged(str(error)) from None
        if source.peek(_MAGIC_BYTES) != magic:
            return
    raise _Damaged(f"more than {_MOST_STREAMS} streams")


def _in_pieces(source: _Source, output: _Output, decoder: _PatientDecoder) -> None:
    while not decoder.eof:
        output.write(decoder.decompress(source.some(_PIECE_BYTES) if decoder.needs_input else b"", _PIECE_BYTES))
    source.give_back(decoder.unused_data)


def _in_bites(source: _Source, output: _Output, decoder: _Decoder) -> None:
    while not decoder.eof:
        output.write(decoder.decompress(source.some(_BITE_BYTES)))
    source.give_back(decoder.unused_data)


def _lz4(source: _Source, output: _Output) -> None:
    try:
        import lz4.block
    except ImportError:
        raise _not_installed(source, "lz4") from None
    for _ in range(_MOST_BLOCKS):
        # No mark ends it but the end itself; a file may be several behind each other.
        if not source.peek(1):
            return
        field = source.exactly(_U32.size)
        (size,) = _U32.unpack(field)
        if size == 0:
            return
        if field == _LZ4_MAGIC:
            continue
        if size > _LZ4_LARGEST_BYTES:
            raise _Damaged(f"a block of {size} bytes")
        try:
            block = lz4.block.decompress(source.exactly(size), uncompressed_size=_LZ4_BLOCK_BYTES)
        except lz4.block.LZ4BlockError as error:
            raise _Damaged(str(error)) from None
        output.write(block)
    raise _Damaged(f"more than {_MOST_BLOCKS} blocks")


def _lzo(source: _Source, output: _Output) -> None:
    try:
        unpack_lzop(source.exactly, output.write, name=source.name)
    except LzopError as error:
        raise _Damaged(str(error)) from None


def _not_installed(source: _Source, package: str) -> Obstacle:
    return Obstacle(
        f"{source.name} takes the Python package {package} to unpack, which is not installed. "
        "Install what reads kernels: pip install 'exitguard[kernel]'"
    )


@dataclass(frozen=True)
class _Compression:
    name: str
    #: "a gzip file"
    words: str
    magic: bytes
    unpack: Callable[[_Source, _Output], None]
    #: Whether a kernel's build appends the size of what is compressed (scripts/Makefile.lib, size_append); gzip has it itself.
    size_follows: bool = True


_COMPRESSIONS = (
    _Compression("gzip", "a gzip file", b"\x1f\x8b\x08", _gzip, size_follows=False),
    _Compression("bzip2", "a bzip2 file", b"BZh", _bzip2),
    _Compression("xz", "an xz file", b"\xfd7zXZ\0", _xz),
    _Compression("lzma", "an lzma file", b"\x5d\0\0", _lzma),
    _Compression("lzop", "an lzop file", LZOP_MAGIC, _lzo),
    _Compression("lz4", "an lz4 file", _LZ4_MAGIC, _lz4),
    _Compression("zstd", "a zstd file", b"\x28\xb5\x2f\xfd", _zstd),
)


def _compression_of(head: bytes) -> _Compression | None:
    return next((each for each in _COMPRESSIONS if head.startswith(each.magic)), None)
