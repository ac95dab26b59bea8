"""Kernels as their build makes them: packed by the real tools with the options of scripts/Makefile.lib, in a boot image of our own."""

import io
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.machine_code import lzop
from exitguard.facts.machine_code.container import LIMIT, read_elf, what_it_is
from exitguard.facts.machine_code.obstacle import Obstacle

#: How the kernel's build packs an image: from a pipe, so that no size is known before.
IMAGE_TOOLS = {
    "gzip": ("gzip", "-n", "-f", "-9"),
    "bzip2": ("bzip2", "-9"),
    "lzma": ("lzma", "-9"),
    "xz": ("xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"),
    "lzop": ("lzop", "-9"),
    "lz4": ("lz4", "-l", "-9", "-", "-"),
    "zstd": ("zstd", "-22", "--ultra"),
}
#: How it and others pack modules (scripts/Makefile.modinst, and what dpkg and dracut do); bzip2 was for old ones.
MODULE_TOOLS = {
    "gzip": ("gzip", "-n"),
    "bzip2": ("bzip2",),
    "xz": ("xz", "--lzma2=dict=2MiB", "--check=crc32"),
    "xz, defaults": ("xz", "-T2"),
    "zstd": ("zstd", "-T0", "-q"),
    "zstd -19": ("zstd", "-19", "-q"),
}
#: Level 1 or so, for what is only large.
FAST_TOOLS = {
    "gzip": ("gzip", "-1"),
    "bzip2": ("bzip2", "-1"),
    "lzma": ("lzma", "-0"),
    "xz": ("xz", "-0"),
    "lzop": ("lzop", "-1"),
    "lz4": ("lz4", "-l", "-1", "-", "-"),
    "zstd": ("zstd", "-1", "--long=27"),  # the window that a kernel has
}
SIGNATURE = b"signature" + bytes(12) + b"~Module signature appended~\n"
MEMORY_BYTES = 512 << 20

images = pytest.mark.parametrize("compression", IMAGE_TOOLS)


def elf(size: int = 3000, *, seed: int = 5) -> bytes:
    """An ELF header of a 64-bit x86 file, and behind it what code is like to a compressor: some of it repeats, some does not."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 0, 0, 64, 0, 0, 64, 0, 0)
    random = Random(seed)  # noqa: S311 - any bytes will do
    words = [random.randbytes(24) for _ in range(16)]
    body = b"".join(random.choice(words) for _ in range(size // 24 + 1))
    return (header + body)[:size]


def require(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def packed(command: tuple[str, ...], content: bytes) -> bytes:
    require(command[0])
    return subprocess.run(command, input=content, capture_output=True, check=True, timeout=120).stdout


@cache
def small(compression: str) -> bytes:
    """A small file by one of the tools; the same in every test."""
    return packed(FAST_TOOLS[compression], elf(300))


def boot_image(payload: bytes, *, setup_sects: int = 39, version: int = 0x020F, length: int | None = None) -> bytes:
    """What arch/x86/boot/tools/build makes: the setup, the code that unpacks, the payload, and more code."""
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    setup[:2] = b"MZ"
    setup[0x1F1] = setup_sects
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, 716, len(payload) if length is None else length)
    return bytes(setup) + b"\x90" * 716 + payload + b"\xf4" * 1000


def payload_of(compression: str, packed_content: bytes, unpacked_bytes: int) -> bytes:
    """As scripts/Makefile.lib appends the size: not to gzip, which ends in it already."""
    return packed_content if compression == "gzip" else packed_content + struct.pack("<I", unpacked_bytes)


def read(content: bytes, *, limit_bytes: int = LIMIT) -> bytes:
    return read_elf(io.BytesIO(content), name="/boot/it", limit_bytes=limit_bytes)


def why_not(content: bytes, *, limit_bytes: int = LIMIT) -> str:
    with pytest.raises(Obstacle) as obstacle:
        read(content, limit_bytes=limit_bytes)
    return str(obstacle.value)


@pytest.mark.parametrize("tool", MODULE_TOOLS)
def test_module_comes_out_as_it_went_in(tool: str) -> None:
    module = elf(300_000) + SIGNATURE
    assert read(packed(MODULE_TOOLS[tool], module)) == module


@images
def test_packed_vmlinux_comes_out_as_it_went_in(compression: str) -> None:
    vmlinux = elf(300_000)
    assert read(packed(IMAGE_TOOLS[compression], vmlinux)) == vmlinux


def test_bare_elf_is_left_as_it_is_with_its_signature() -> None:
    module = elf(200_000) + SIGNATURE
    assert read(module) == module


@images
def test_boot_image_holds_the_vmlinux_that_its_header_points_to(compression: str) -> None:
    vmlinux = elf(300_000) + b"relocations"
    assert read(boot_image(payload_of(compression, packed(IMAGE_TOOLS[compression], vmlinux), len(vmlinux)))) == vmlinux


@images
def test_vmlinux_of_several_blocks_is_whole(compression: str) -> None:
    vmlinux = b"".join(elf(3 << 20, seed=seed) for seed in range(6))  # lz4 has blocks of 8 MiB, lzop of 256 KiB
    assert read(boot_image(payload_of(compression, packed(FAST_TOOLS[compression], vmlinux), len(vmlinux)))) == vmlinux


def test_boot_image_may_hold_a_bare_vmlinux() -> None:
    assert read(boot_image(elf())) == elf()


def test_no_setup_sectors_means_four() -> None:
    assert read(boot_image(small("gzip"), setup_sects=0)) == elf(300)


def test_magics_before_the_payload_do_not_mislead() -> None:
    image = bytearray(boot_image(small("gzip")))
    image[0x1000:0x1003], image[0x2000:0x2004] = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
    assert read(bytes(image)) == elf(300)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "lzop", "lz4", "zstd"])
def test_incompressible_content_comes_out_too(compression: str) -> None:
    content = elf(100) + Random(1).randbytes(1 << 20)  # noqa: S311 - any bytes will do
    assert read(packed(FAST_TOOLS[compression], content)) == content


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "lz4", "zstd"])
def test_streams_of_a_parallel_compressor_are_joined(compression: str) -> None:
    first, second = elf(200_000), elf(100_000, seed=6)
    if compression == "lz4":  # a block that is not the last is full
        first = b"".join(elf(4 << 20, seed=seed) for seed in range(2))
    streams = [packed(FAST_TOOLS[compression], part) for part in (first, second)]
    assert read(b"".join(streams)) == first + second
    assert read(boot_image(payload_of(compression, b"".join(streams), len(first + second)))) == first + second


@pytest.mark.parametrize("compression", [name for name in IMAGE_TOOLS if name != "lz4"])  # which has no end of its own
def test_rubbish_behind_a_packed_file_does_not_matter(compression: str) -> None:
    assert read(small(compression) + b"\0\0\0\0rubbish") == elf(300)


def test_it_is_read_from_a_pipe_too() -> None:
    content = boot_image(small("zstd") + struct.pack("<I", 300))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(content)
        process.stdin.close()
        assert read_elf(process.stdout, name="it") == elf(300)


def test_dictionary_of_a_kernel_is_granted_and_a_larger_one_refused() -> None:
    assert read(packed(("xz", "--check=crc32", "--x86", "--lzma2=preset=0,dict=128MiB"), elf())) == elf()
    assert "Memory usage limit" in why_not(packed(("xz", "--lzma2=preset=0,dict=129MiB"), elf()))
    alone = bytearray(small("lzma"))
    alone[1:5] = struct.pack("<I", 256 << 20)
    assert "Memory usage limit" in why_not(bytes(alone))


def test_window_of_a_kernel_is_granted_and_a_larger_one_refused() -> None:
    assert read(packed(("zstd", "-1", "--long=27"), elf())) == elf()
    assert "its zstd data cannot be unpacked" in why_not(packed(("zstd", "-1", "--long=28"), elf()))


@images
def test_what_is_cut_short_is_refused_wherever_it_ends(compression: str) -> None:
    whole = small(compression)
    for end in range(1, len(whole)):
        assert why_not(whole[:end]).startswith("/boot/it ")
    assert "cut short" in why_not(whole[:-1])


@images
def test_boot_image_that_is_cut_short_is_refused_wherever_it_ends(compression: str) -> None:
    whole = boot_image(payload_of(compression, small(compression), 300), setup_sects=1)
    for end in range(1, len(whole) - 1000):
        why_not(whole[:end])
    assert "cut short" in why_not(whole[:-1001])
    assert read(whole[:-1000]) == elf(300)


def test_bare_vmlinux_in_a_boot_image_that_is_cut_short_is_refused() -> None:
    assert "cut short" in why_not(boot_image(elf())[:-1001])


@images
def test_kernel_of_another_size_than_its_boot_image_says_is_refused(compression: str) -> None:
    image = boot_image(payload_of(compression, small(compression), 300)[:-4] + struct.pack("<I", 301))
    assert "damaged" in why_not(image)


@images
def test_damage_is_found(compression: str) -> None:
    """lz4 has no sums: there the length alone can show it."""
    content = elf(5000)
    whole = bytearray(boot_image(payload_of(compression, packed(IMAGE_TOOLS[compression], content), len(content))))
    middle = len(whole) - 1000 - 400
    whole[middle : middle + 40] = b"\xff" * 40
    assert "/boot/it is damaged" in why_not(bytes(whole))


def test_wrong_sum_of_an_lzop_block_is_found() -> None:
    """Of those that lzop writes by itself (Adler-32) and on request (CRC-32)."""
    for option, sum_of in (("-9", zlib.adler32), ("--crc32", zlib.crc32)):
        whole = packed(("lzop", option), elf(300))
        field = struct.pack(">I", sum_of(elf(300)))
        assert whole.count(field) == 1
        assert read(whole) == elf(300)
        assert "the sum of a block is wrong" in why_not(whole.replace(field, b"none"))


def lzop_file(content: bytes, *, version: int = 0x1040, method: int = 3, flags: int = 0, extra: bytes = b"") -> bytes:
    """With its content in one block as it is, where lzop would find nothing to compress."""
    header = struct.pack(">HHHBBIIIIB", version, 0x20A0, 0x0940, method, 9, flags, 0o100644, 0, 0, 4) + b"name" + bytes(4)
    return b"\x89LZO\0\r\n\x1a\n" + header + extra + struct.pack(">II", len(content), len(content)) + content + bytes(4)


def test_damage_of_an_lzop_block_without_sums_is_found() -> None:
    whole = packed(("lzop", "-9"), elf(300))
    at = whole.index(struct.pack(">I", 300)) + 4
    (size,) = struct.unpack_from(">I", whole, at)
    block = whole[at + 8 : -4]  # behind its size and its sum
    assert len(block) == size
    bare = lzop_file(elf(300)).replace(struct.pack(">II", 300, 300) + elf(300), struct.pack(">II", 300, size) + block)
    longer = bare.replace(struct.pack(">II", 300, size) + block, struct.pack(">II", 300, size + 1) + block + b"\0")
    assert read(bare) == elf(300)
    assert "a block that cannot be unpacked (LZO error -8)" in why_not(longer)  # LZO_E_INPUT_NOT_CONSUMED


def test_header_of_lzop_is_read_to_its_end() -> None:
    assert read(lzop_file(elf(), flags=0x202)) == elf()  # sums of what is compressed are left out where nothing is
    assert read(lzop_file(elf())) == elf()
    assert read(lzop_file(elf(), flags=0x40, extra=struct.pack(">I", 5) + b"extra" + bytes(4))) == elf()


@pytest.mark.parametrize("field", [{"version": 0x0900}, {"method": 4}, {"flags": 0x800}, {"flags": 0x40, "extra": b"\xff" * 4}])
def test_lzop_file_that_no_kernel_is_made_as_is_refused(field: dict[str, Any]) -> None:
    assert "/boot/it is damaged: its lzop data cannot be unpacked" in why_not(lzop_file(elf(), **field))


def test_block_of_a_lying_size_is_refused_before_it_is_read() -> None:
    assert "a block of 9437184 bytes" in why_not(b"\x02\x21\x4c\x18" + struct.pack("<I", 9 << 20) + elf())
    assert "a block of 262145 bytes" in why_not(lzop_file(elf(262_145)))
    assert "a block of 3000 bytes that are 2000 unpacked" in why_not(
        lzop_file(elf()).replace(struct.pack(">II", 3000, 3000), struct.pack(">II", 2000, 3000))
    )


def test_block_of_no_bytes_ends_an_lz4_file() -> None:
    assert read(small("lz4") + bytes(4) + b"rubbish") == elf(300)


def test_no_more_is_read_than_could_be_needed() -> None:
    file = io.BytesIO(b"\x1f\x8b\x08\x08" + bytes(6) + b"a name without end " * (1 << 20))
    with pytest.raises(Obstacle, match="ends too early"):
        read_elf(file, name="it", limit_bytes=1000)
    assert file.tell() < 2 << 20


def sample(compression: str, *, in_boot_image: bool) -> bytes:
    if not in_boot_image:
        return small(compression)
    return boot_image(payload_of(compression, small(compression), 300), setup_sects=1)


@pytest.mark.parametrize("in_boot_image", [False, True], ids=["bare", "boot image"])
@images
def test_mutated_file_is_an_elf_or_refused(compression: str, in_boot_image: bool) -> None:  # noqa: FBT001
    whole = sample(compression, in_boot_image=in_boot_image)
    start = (1024 + 716 - 8) if in_boot_image else 0
    changes = st.lists(st.tuples(st.integers(start, len(whole) - 1) | st.integers(0, len(whole) - 1), st.binary(max_size=6)), max_size=6)

    @given(changes, st.integers(0, 3))
    def mutate(changed: list[tuple[int, bytes]], dropped: int) -> None:
        content = bytearray(whole)
        for at, data in changed:
            content[at : at + (dropped or len(data))] = data
        try:
            result = read(bytes(content), limit_bytes=100_000)
        except Obstacle as obstacle:
            assert str(obstacle).startswith("/boot/it ")  # noqa: PT017 - either end is right
        else:
            assert result.startswith(b"\x7fELF")
            assert len(result) <= 100_000

    mutate()


@pytest.mark.parametrize(
    "magic", [b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x89LZO\0\r\n\x1a\n", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"MZ"]
)
def test_arbitrary_bytes_behind_a_magic_are_an_elf_or_refused(magic: bytes) -> None:
    @given(st.binary(max_size=2000))
    def reading(rest: bytes) -> None:
        for content in (magic + rest, boot_image(magic + rest, setup_sects=1)):
            try:
                assert read(content, limit_bytes=100_000).startswith(b"\x7fELF")
            except Obstacle as obstacle:
                assert str(obstacle)  # noqa: PT017

    reading()


#: More than may come out; of zstandard, which is quick, more than the memory there is as well.
BOMB_BYTES = dict.fromkeys(IMAGE_TOOLS, LIMIT + (64 << 20)) | {"zstd": 1 << 30}
READ_IN_LITTLE_MEMORY = f"""
import resource, sys
from exitguard.facts.machine_code.container import read_elf
from exitguard.facts.machine_code.obstacle import Obstacle
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
try:
    print(len(read_elf(open(sys.argv[1], "rb"), name="bomb")), "bytes came out")
except Obstacle as obstacle:
    print(obstacle)
"""


@pytest.mark.parametrize("in_boot_image", [False, True], ids=["bare", "boot image"])
@images
def test_bomb_is_refused_in_little_memory(compression: str, in_boot_image: bool, tmp_path_factory: pytest.TempPathFactory) -> None:  # noqa: FBT001
    content = bomb(compression)
    file = tmp_path_factory.mktemp("bomb") / "bomb"
    file.write_bytes(boot_image(payload_of(compression, content, BOMB_BYTES[compression])) if in_boot_image else content)
    told = subprocess.run([sys.executable, "-c", READ_IN_LITTLE_MEMORY, file], capture_output=True, text=True, check=False, timeout=240)
    assert "with more than 256 MiB of content" in told.stdout, told


@cache
def bomb(compression: str) -> bytes:
    require(FAST_TOOLS[compression][0])
    return packed(("sh", "-c", f"cat - /dev/zero | head -c {BOMB_BYTES[compression]} | {' '.join(FAST_TOOLS[compression])}"), elf(64))


@images
def test_small_limit_holds_to_the_byte(compression: str) -> None:
    assert read(small(compression), limit_bytes=300) == elf(300)
    assert "with more than 299 bytes of content" in why_not(small(compression), limit_bytes=299)


def test_streams_without_end_are_refused() -> None:
    nothing = packed(IMAGE_TOOLS["bzip2"], b"")
    assert "more than 4096 streams" in why_not(small("bzip2") + nothing * 4096)


def test_elf_without_end_is_refused() -> None:
    with subprocess.Popen(["sh", "-c", "printf '\\177ELF'; exec cat /dev/zero"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with pytest.raises(Obstacle, match="an ELF file with more than 1 MiB"):
            read_elf(process.stdout, name="it", limit_bytes=1 << 20)
        process.kill()


@images
def test_what_is_packed_is_named_as_soon_as_it_is_seen(compression: str) -> None:
    text = packed(FAST_TOOLS[compression], b"not a kernel, but many words\n" * 1000)
    assert "file that holds a text. Expected a kernel module (kvm.ko)" in why_not(text)
    assert "a kernel's boot image that holds a text" in why_not(boot_image(payload_of(compression, text, 29_000)))
    assert "that holds an empty file" in why_not(packed(FAST_TOOLS[compression], b""))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: boot_image(small("gzip"), version=0x0207), "boot protocol 2.07"),
        (lambda: boot_image(small("gzip"), length=0), "does not say where the kernel in it lies"),
        (lambda: boot_image(small("gzip"), length=0xFFFF_FFFF), "has 4095 MiB compressed"),
        (lambda: boot_image(b"some text that is no kernel"), "holds a text"),
        (lambda: boot_image(b""), "does not say where the kernel in it lies"),
    ],
    ids=["old protocol", "no payload", "lying length", "text", "empty"],
)
def test_boot_image_that_cannot_be_read_says_why(make: Callable[[], bytes], reason: str) -> None:
    assert reason in why_not(make())


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "an empty file"),
        (b"MZ\0\0zimg" + bytes(600), "an EFI zboot image, which no x86 kernel is"),
        (b"MZ" + bytes(600), "an EFI program"),
        (b"\x04\x22\x4d\x18rest", "newer frame format"),
        (b"!<arch>\ndebian-binary   ", "a Debian package, which has to be unpacked"),
        (b"!<arch>\nlib.o/", "an ar archive"),
        (b"\xed\xab\xee\xdb\x03", "an RPM package, which has to be unpacked"),
        (b"070701" + b"0" * 100, "a cpio archive"),
        (b"name".ljust(257, b"\0") + b"ustar", "a tar archive"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x9f\xeb\x01\0", "bare BTF"),
        (bytes(1024), "a file of zeros"),
        (b"#!/bin/sh\nexit 0\n", "a text"),
        ("größer".encode()[:3], "a text"),
        (b"\xff\xfe\x01", "a file of an unknown kind"),
        (b"\x01\x02\x03", "a file of an unknown kind"),
    ],
)
def test_what_is_no_kernel_is_named(head: bytes, words: str) -> None:
    assert words in what_it_is(head)
    assert why_not(head).startswith(f"/boot/it is {what_it_is(head)}. Expected a kernel module (kvm.ko) or a kernel image")


def test_elf_and_boot_image_have_their_names() -> None:
    assert what_it_is(elf()) == "an ELF file"
    assert what_it_is(boot_image(b"")) == "a kernel's boot image"


def test_file_that_cannot_be_read_says_why() -> None:
    with open("/proc/self/mem", "rb") as file, pytest.raises(Obstacle, match="cannot be read to its end: Input/output error"):  # noqa: PTH123
        read_elf(file, name="it")


@pytest.mark.parametrize(("compression", "package"), [("zstd", "zstandard"), ("lz4", "lz4")])
def test_package_that_is_missing_is_named(compression: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = small(compression)
    for module in (package, "lz4.block"):
        monkeypatch.setitem(sys.modules, module, None)
    assert f"takes the Python package {package}" in why_not(content)
    assert "exitguard[kernel]" in why_not(content)
    assert read(elf()) == elf()
    assert read(small("xz")) == elf(300)


def test_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = small("lzop")
    monkeypatch.setattr(lzop, "_LIBRARY", "liblzo2.so.none")
    lzop._decompressor.cache_clear()
    reason = why_not(content)
    monkeypatch.undo()
    lzop._decompressor.cache_clear()
    assert reason.startswith("/boot/it takes liblzo2.so.none")
    assert "liblzo2-2" in reason
    assert read(content) == elf(300)
