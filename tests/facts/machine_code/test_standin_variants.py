"""What is read out of the stand-in's variants, built by gcc and clang: never a wrong state, and `unknown` only where it is the truth."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Symbol, SymbolTableSection
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from standin_builder import (
    CONFIGURATIONS,
    VARIANTS,
    Build,
    Claim,
    Configuration,
    Shape,
    Sources,
    StandinBuilder,
    matrix,
    why_not,
)

from exitguard.audit.kernel import machine_code_statement
from exitguard.facts.machine_code.image import load_image
from exitguard.facts.machine_code.skip import read_skip
from exitguard.model.kernel import KernelState
from exitguard.model.machine_code import MachineCode

MATRIX = matrix()
#: What kernels are built with beside the matrix, and what moves code about.
OPTIONS = (
    "-falign-functions=16",
    "-fno-align-functions",
    "-fno-if-conversion",
    "-fno-inline",
    "-fno-inline-functions-called-once",
    "-fno-ipa-ra",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-reorder-blocks",
    "-fno-reorder-blocks-and-partition",
    "-fno-shrink-wrap",
    "-fno-tree-vectorize",
    "-fpatchable-function-entry=16,16",
    "-freorder-blocks-and-partition",
    "-fsanitize=bounds",
    "-fsanitize=kcfi",
    "-fsanitize=shift",
    "-fstack-protector-all",
    "-fstack-protector-strong",
    "-ftrivial-auto-var-init=zero",
    "-fzero-call-used-regs=used-gpr",
    "-mbmi",
    "-mharden-sls=all",
    "-mindirect-branch-cs-prefix",
    "-mtune=znver2",
)


@pytest.fixture(scope="session")
def standins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandinBuilder]:
    """The builder, which compiles what the selected tests will ask for while they run."""
    builder = StandinBuilder(tmp_path_factory.mktemp("standin"))
    for item in request.session.items:
        build = item.callspec.params.get("build") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
        if isinstance(build, Build) and why_not(build) is None:
            builder.begin(build)
    yield builder
    builder.close()


def module_of(build: Build, standins: StandinBuilder) -> Path:
    missing = why_not(build)
    if missing is not None:
        pytest.skip(missing)
    return standins.module(build)


def read_module(module: Path) -> MachineCode:
    return read_skip(load_image(module.read_bytes(), path=module.name))


def told(build: Build, reading: MachineCode) -> str:
    """Everything that a person needs to judge a disagreement."""
    statement = machine_code_statement(reading)
    lines = [f"{line.function}+{line.address:#x}  {line.text}  {line.note}" for line in reading.listing]
    head = f"{build.name}: {build.variant.claim.value}: read as {statement.state}: {statement.value}"
    return "\n".join([head, repr(reading.model_copy(update={"listing": ()})), *lines])


@pytest.mark.parametrize("build", MATRIX, ids=lambda build: build.name)
def test_state_of_a_build_is_what_its_source_says(build: Build, standins: StandinBuilder) -> None:
    reading = read_module(module_of(build, standins))
    statement = machine_code_statement(reading)
    assert statement.state in build.states, told(build, reading)
    if statement.state is KernelState.AFFECTED and build.body is not None:
        assert statement.body is build.body, told(build, reading)
    assert statement.value, told(build, reading)


@pytest.mark.parametrize("build", [build for build in MATRIX if build.variant.name == "plain"], ids=lambda build: build.name)
def test_offset_of_enable_pmu_is_the_compilers(build: Build, standins: StandinBuilder) -> None:
    module = module_of(build, standins)
    found = read_module(module).enable_pmu
    if build.sources is Sources.NEITHER:
        assert found is None
        return
    assert found is not None
    assert found.offset == _compiled_offset(module)
    expected = {Sources.CODE: {"code"}, Sources.BTF: {"BTF"}, Sources.BOTH: {"BTF", "code"}, Sources.PROTECTED: {"BTF", "code"}}
    if build.sources in expected:
        assert set(found.sources) == expected[build.sources]
    else:
        assert "BTF" in found.sources


def test_builds_of_the_same_code_expect_the_same(standins: StandinBuilder) -> None:
    """Two variants that a compiler makes one of cannot be told apart by anybody: then the expectations would be wrong."""
    alike: dict[tuple[object, ...], list[Build]] = defaultdict(list)
    for build in MATRIX:
        if why_not(build) is None and build.sources is Sources.BOTH:
            alike[build.shape, build.configuration, _code(standins.module(build))].append(build)
    assert alike
    differing = [[build.name for build in builds] for builds in alike.values() if len({build.states for build in builds}) > 1]
    assert differing == []


def test_matrix_has_every_variant_by_both_compilers() -> None:
    for compiler in ("gcc", "clang"):
        assert {build.variant.name for build in MATRIX if build.configuration.compiler == compiler} == set(VARIANTS)
    assert {build.shape for build in MATRIX} == set(Shape)
    assert {build.variant.claim for build in MATRIX} == set(Claim)
    assert {build.configuration for build in MATRIX} == set(CONFIGURATIONS)
    assert len(MATRIX) >= 100


configurations = st.builds(
    Configuration,
    compiler=st.sampled_from(("gcc", "clang")),
    optimisation=st.sampled_from(("-O1", "-O2", "-O3", "-Os", "-Og")),
    hardened=st.booleans(),
    options=st.lists(st.sampled_from(OPTIONS), max_size=3, unique=True).map(tuple),
)
builds = st.builds(
    Build,
    variant=st.sampled_from(list(VARIANTS.values())),
    shape=st.sampled_from(Shape),
    configuration=configurations,
    sources=st.sampled_from((Sources.BOTH, Sources.PROTECTED, Sources.CODE, Sources.BTF, Sources.MERGED)),
).filter(lambda build: build.shape in build.variant.shapes)


# A build is small as it is: to shrink one would compile dozens.
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(build=builds)
def test_no_option_of_a_compiler_makes_a_wrong_state(build: Build, standins: StandinBuilder) -> None:
    """Other options may make the code hard to follow, which is `unknown`; they never change what it does."""
    if why_not(build) is not None:
        event("not built: a compiler is missing")
        return
    reading = read_module(standins.module(build))
    statement = machine_code_statement(reading)
    event(f"{build.variant.claim.name}: {statement.state}")
    assert statement.state in build.states | {KernelState.UNKNOWN}, told(build, reading)
    if statement.state is KernelState.AFFECTED and build.body is not None:
        assert statement.body in (build.body, None), told(build, reading)
    if reading.enable_pmu is not None:
        assert reading.enable_pmu.offset == _compiled_offset(standins.module(build)), told(build, reading)


def _compiled_offset(module: Path) -> int:
    """The offset of enable_pmu that the compiler itself wrote into the module: see standin.c."""
    with module.open("rb") as file:
        elf = ELFFile(file)
        [symbol] = [each for each in _symbols(elf) if each.name == "standin_offset_of_enable_pmu"]
        section = elf.get_section(symbol["st_shndx"])
        at = symbol["st_value"]
        return int.from_bytes(section.data()[at : at + 8], "little")


def _code(module: Path) -> tuple[bytes, ...]:
    """All code of a module, and what its relocations say."""
    with module.open("rb") as file:
        elf = ELFFile(file)
        names = {section.name for section in elf.iter_sections() if section["sh_flags"] & 0x4}
        wanted = names | {f".rela{name}" for name in names} | {"__jump_table", ".rela__jump_table"}
        code = [section.data() for section in elf.iter_sections() if section.name in wanted]
        return (*code, "\n".join(symbol.name for symbol in _symbols(elf)).encode())


def _symbols(elf: ELFFile) -> list[Symbol]:
    return [symbol for section in elf.iter_sections() if isinstance(section, SymbolTableSection) for symbol in section.iter_symbols()]
