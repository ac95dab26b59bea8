"""The guard, read from kernels that have it and from the same kernels without: what `make lab-kernels` built."""

from pathlib import Path

import pytest

from exitguard.audit.kernel import machine_code_statement
from exitguard.facts.machine_code.container import read_elf
from exitguard.facts.machine_code.image import Image, load_image, section_of
from exitguard.facts.machine_code.skip import read_skip
from exitguard.model.kernel import Body, KernelState

KERNELS = Path(__file__).parents[2] / ".local/lab-kernels"
EXPECTED = {
    (lineage, f"{state}{pmu}"): (expected, body)
    for lineage, body in (("6.1", Body.A), ("6.12", Body.B))
    for state, expected in (("stock", KernelState.AFFECTED), ("guarded", KernelState.GUARDED))
    for pmu in ("", "-pmu")
}
MODULES = ("kvm.ko", "kvm-amd.ko", "kvm-intel.ko")

every_module = pytest.mark.parametrize(("lineage", "variant"), EXPECTED)


def built(lineage: str, variant: str) -> Path:
    folder = KERNELS / lineage / variant
    if not (folder / "patches.sha256").exists():
        pytest.skip(f"the {variant} modules of Linux {lineage} are not built: `make lab-kernels` builds them")
    return folder


def elf_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return read_elf(file, name=path.name)


def image_of(path: Path) -> Image:
    return load_image(elf_of(path), path=str(path))


def debians_own(lineage: str, module: str) -> Path:
    return next((KERNELS / lineage / "debian/lib/modules").glob(f"*/kernel/arch/x86/kvm/{module}*"))


@every_module
def test_guard_is_seen_where_it_is_and_nowhere_else(lineage: str, variant: str) -> None:
    reading = read_skip(image_of(built(lineage, variant) / "kvm.ko"))
    statement = machine_code_statement(reading)
    assert (statement.state, statement.body) == EXPECTED[lineage, variant], statement.value
    assert reading.obstacle is None


@every_module
def test_both_sources_agree_on_where_enable_pmu_lies(lineage: str, variant: str) -> None:
    module = built(lineage, variant) / "kvm.ko"
    reading = read_skip(image_of(module), btf_base=section_of(elf_of(KERNELS / lineage / "vmlinuz"), ".BTF"))
    assert reading.enable_pmu is not None
    assert set(reading.enable_pmu.sources) == {"BTF", "code"}
    statement = machine_code_statement(reading)
    assert (statement.state, statement.body) == EXPECTED[lineage, variant], statement.value


@every_module
@pytest.mark.parametrize("module", MODULES)
def test_modules_are_of_the_kernel_beside_them(lineage: str, variant: str, module: str) -> None:
    release = (KERNELS / lineage).resolve().name
    image = image_of(built(lineage, variant) / module)
    assert image.release == release
    assert image_of(debians_own(lineage, module)).release == release
    assert image.build_id is not None


@pytest.mark.parametrize("lineage", ["6.1", "6.12"])
def test_stock_build_has_the_machine_code_that_debian_ships(lineage: str) -> None:
    ours = read_skip(image_of(built(lineage, "stock") / "kvm.ko"))
    debians = read_skip(image_of(debians_own(lineage, "kvm.ko")))
    assert ours.listing
    assert ours.listing == debians.listing
    assert ours.build_id != debians.build_id


@pytest.mark.parametrize("lineage", ["6.1", "6.12"])
def test_stock_and_guarded_module_are_told_apart_by_build_id(lineage: str) -> None:
    assert image_of(built(lineage, "stock") / "kvm.ko").build_id != image_of(built(lineage, "guarded") / "kvm.ko").build_id
