"""The frequency by which cycles become cores, and where it is from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.frequency import parse_cpuinfo_frequency, read_frequency
from exitguard.facts.tree import HostTree

NAMED = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz\ncpu MHz\t\t: 3199.998\n"
EPYC = "processor\t: 0\nmodel name\t: AMD EPYC 7302 16-Core Processor\ncpu MHz\t\t: 1497.123\n"


def tree(root: Path, files: dict[str, str]) -> HostTree:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HostTree(root)


def test_rated_frequency_goes_before_the_name_and_the_name_before_what_runs(tmp_path: Path) -> None:
    rated = {"/sys/devices/system/cpu/cpu0/cpufreq/base_frequency": "2100000\n", "/proc/cpuinfo": NAMED}
    found = read_frequency(tree(tmp_path / "a", rated))
    assert (found.value, found.source) == (2_100_000_000, "/sys/devices/system/cpu/cpu0/cpufreq/base_frequency")
    assert read_frequency(tree(tmp_path / "b", {"/proc/cpuinfo": NAMED})).value == 2_000_000_000


def test_nominal_frequency_of_an_amd_host_is_in_mhz(tmp_path: Path) -> None:
    files = {"/sys/devices/system/cpu/cpu0/acpi_cppc/nominal_freq": "3000\n", "/proc/cpuinfo": EPYC}
    assert read_frequency(tree(tmp_path, files)).value == 3_000_000_000


def test_current_frequency_says_that_it_changes() -> None:
    found = parse_cpuinfo_frequency(EPYC)
    assert found.value == 1_497_123_000
    assert "which changes" in found.source


@pytest.mark.parametrize("text", ["", "cpu MHz : 0.000\n", "model name : X @ 99.99GHz\n"])
def test_no_frequency_or_one_that_does_not_exist_is_none(text: str) -> None:
    assert parse_cpuinfo_frequency(text).value is None


def test_host_without_any_of_it_says_why(tmp_path: Path) -> None:
    assert read_frequency(HostTree(tmp_path)).reason


@given(st.text())
def test_any_text_gives_a_frequency_or_a_reason(text: str) -> None:
    found = parse_cpuinfo_frequency(text)
    assert (found.value is None) != (found.reason is None)
