"""Broken and hostile images: each ends in a reading or in an Obstacle, never in anything else, and never in a loop."""

import shutil
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from standin_builder import CONFIGURATIONS, VARIANTS, Build, Shape, StandinBuilder

from exitguard.facts.machine_code.image import Image, Symbol, load_image, parse_system_map, section_of
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.skip import read_skip
from exitguard.model.machine_code import MachineCode

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: no image can be compiled")

SEEDS = (
    Build(VARIANTS["plain"], Shape.B, CONFIGURATIONS[0]),
    Build(VARIANTS["none"], Shape.A, CONFIGURATIONS[1]),
    Build(VARIANTS["none"], Shape.RETIRED, CONFIGURATIONS[2]),
)
#: Values that a size, an offset or an index may have been set to by somebody who means harm.
LIES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
positions = st.floats(0, 1, exclude_max=True)
mutations = st.lists(
    st.tuples(st.sampled_from(("anywhere", "header", "sections", "code")), positions, st.sampled_from(LIES), st.sampled_from((1, 2, 4, 8))),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    builder = StandinBuilder(tmp_path_factory.mktemp("hostile"))
    try:
        return [builder.module(build).read_bytes() for build in SEEDS]
    finally:
        builder.close()


def read(elf: bytes) -> MachineCode | None:
    try:
        return read_skip(load_image(elf, path="hostile.ko"))
    except Obstacle:
        return None


def mutated(elf: bytes, changes: list[tuple[str, float, int, int]]) -> bytes:
    content = bytearray(elf)
    (sections_at,) = struct.unpack_from("<Q", elf, 0x28)
    areas = {"anywhere": (0, len(elf)), "header": (0, 64), "sections": (sections_at, len(elf)), "code": (64, min(4096, len(elf)))}
    for where, position, value, size in changes:
        start, end = areas[where]
        at = start + int(position * (end - start))
        content[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")[: len(content) - at]
    return bytes(content)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.sampled_from(range(len(SEEDS))), changes=mutations)
def test_changed_image_is_read_or_refused(seed: int, changes: list[tuple[str, float, int, int]], modules: list[bytes]) -> None:
    read(mutated(modules[seed], changes))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.sampled_from(range(len(SEEDS))), position=positions)
def test_truncated_image_is_refused(seed: int, position: float, modules: list[bytes]) -> None:
    """The section headers are at the end: without them nothing can be read."""
    whole = modules[seed]
    assert read(whole[: int(position * len(whole))]) is None


@given(content=st.binary(max_size=400))
def test_anything_behind_the_magic_is_read_or_refused(content: bytes) -> None:
    assert read(b"\x7fELF\x02\x01\x01" + content) is None
    with pytest.raises(Obstacle, match="not an ELF file"):
        section_of(b"\x7fXL" + content, ".BTF")


@given(text=st.binary(max_size=400))
def test_any_text_is_a_system_map(text: bytes) -> None:
    for symbol in parse_system_map(text + b"\nffffffff81000000 T _text\n"):
        assert symbol.name


def test_sections_without_end_are_refused_at_once(modules: list[bytes]) -> None:
    """e_shnum 0 hands the count over to the size of the first section header: four thousand million of them."""
    content = bytearray(modules[0])
    (sections_at,) = struct.unpack_from("<Q", content, 0x28)
    struct.pack_into("<H", content, 0x3C, 0)
    struct.pack_into("<Q", content, sections_at + 0x20, 1 << 32)
    with pytest.raises(Obstacle, match="broken ELF file"):
        load_image(bytes(content), path="hostile.ko")


class Code:
    """Memory that holds nothing but one function."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, address: int, size: int) -> bytes:
        if not 0x1000 <= address <= address + size <= 0x1000 + len(self.content):
            raise Obstacle("not there")
        return self.content[address - 0x1000 : address - 0x1000 + size]


@pytest.mark.parametrize(
    "code",
    [
        b"\xeb\xfe" * 400,  # jmp to itself
        b"\x75\xfc\x74\xfa" * 400,
        b"\xe9\xfb\xff\xff\xff" * 400,
        b"\x48\xff\xc0\x75\xfb" * 400,  # inc rax; jne back
        b"\x74\x7e" * 400,  # ever more ways
        b"\x50" * 1000,  # push without end
        b"\x48\x8b\x00" * 1000,  # mov rax, [rax]: an expression without end
        b"\x48\x03\x07" * 1000,  # add rax, [rdi]
        b"\x90" * 60_000,
        b"\xe8\x00\x00\x00\x00" * 400,  # calls of the next instruction
    ],
    ids=["itself", "between", "far", "counts", "forks", "pushes", "chases", "adds", "slides", "calls"],
)
def test_code_without_end_is_bounded(code: bytes) -> None:
    symbol = Symbol("kvm_skip_emulated_instruction", 0x1000, len(code), is_function=True)
    helper = Symbol("kvm_pmu_trigger_event", 0x1000 + len(code) - 5, 5, is_function=True)
    reading = read_skip(Image(path="endless", memory=Code(code), symbols=(symbol, helper)))
    assert reading.helper is None or reading.obstacle is not None
