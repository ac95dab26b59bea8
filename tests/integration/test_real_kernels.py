"""The guard, read from the kernels that Debian ships: what is known of each was found by people reading them."""

import pytest
from debian_kernels import SERIES, Kernel, Unavailable, fetch

from exitguard.audit.kernel import machine_code_statement
from exitguard.facts.machine_code.container import read_elf
from exitguard.facts.machine_code.image import Image, load_image, section_of
from exitguard.facts.machine_code.skip import read_skip
from exitguard.model.kernel import Body, KernelState

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

EXPECTED = {
    "5.10": (KernelState.NOT_AFFECTED, None),
    "6.1": (KernelState.AFFECTED, Body.A),
    "6.12": (KernelState.AFFECTED, Body.B),
    "6.16": (KernelState.AFFECTED, Body.B),
    "6.18": (KernelState.EQUIVALENT, None),
    "7.x": (KernelState.EQUIVALENT, None),
}


@pytest.fixture(scope="module", params=list(SERIES))
def series(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kernel(series: str) -> Kernel:
    try:
        return fetch(series)
    except Unavailable as error:
        pytest.skip(f"Debian's archive has no such kernel to give: {error}")


@pytest.fixture(scope="module")
def image(kernel: Kernel) -> Image:
    with kernel.module.open("rb") as file:
        return load_image(read_elf(file, name=str(kernel.module)), path=str(kernel.module))


@pytest.fixture(scope="module")
def base(kernel: Kernel) -> bytes | None:
    with kernel.image.open("rb") as file:
        return section_of(read_elf(file, name=str(kernel.image)), ".BTF")


def test_module_is_recognised_by_its_code_alone(series: str, image: Image) -> None:
    reading = read_skip(image)
    statement = machine_code_statement(reading)
    assert (statement.state, statement.body) == EXPECTED[series], statement.value
    assert reading.obstacle is None


def test_both_sources_agree_on_where_enable_pmu_lies(series: str, image: Image, base: bytes | None) -> None:
    reading = read_skip(image, btf_base=base)
    assert reading.obstacle is None
    if series == "5.10":  # the field came with Linux 5.18
        assert reading.enable_pmu is None
        return
    assert reading.enable_pmu is not None
    assert reading.enable_pmu.sources == ("BTF", "code")
    statement = machine_code_statement(reading)
    assert (statement.state, statement.body) == EXPECTED[series], "BTF may not change the verdict"


def test_listing_shows_what_decides(series: str, image: Image) -> None:
    noted = [line.text for line in read_skip(image).listing if line.note]
    if series == "5.10":
        assert noted == []
        return
    assert any("skip_emulated_instruction" in text for text in noted)
    assert any("kvm_pmu_" in text for text in noted)


def test_module_says_which_build_it_is(kernel: Kernel, image: Image) -> None:
    assert image.release == kernel.release
    assert image.build_id is not None
    assert len(image.build_id) == 40


def test_stripped_image_shows_nothing(kernel: Kernel) -> None:
    """Debian's vmlinuz has no symbols, and its System.map is a stub."""
    with kernel.image.open("rb") as file:
        elf = read_elf(file, name=str(kernel.image))
    with pytest.raises(Exception, match="symbols are stripped"):
        load_image(elf, path=str(kernel.image))
