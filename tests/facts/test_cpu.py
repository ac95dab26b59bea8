from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.cpu import parse_cpu, read_cpu
from exitguard.facts.tree import HostTree

RECORDED = (Path(__file__).parent / "cpuinfo" / "amd-epyc-svm" / "input").read_text()
# The beginning of an arm64 listing (arch/arm64/kernel/cpuinfo.c), which names no vendor.
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\n"


def test_processor_that_is_not_x86_has_a_reason() -> None:
    assert parse_cpu(ARM).reason == "not an x86 processor: there is no vendor_id and cpu family"


def test_s390_with_a_vendor_but_no_family_has_a_reason() -> None:
    assert not parse_cpu("vendor_id       : IBM/S390\n# processors    : 4\n").known


def test_number_that_is_none_is_named() -> None:
    assert parse_cpu(RECORDED.replace("model\t\t: 1\n", "model\t\t: 1e9\n")).reason == "expected numbers for model"


def test_unknown_stepping_is_zero() -> None:
    assert parse_cpu(RECORDED.replace("stepping\t: 2\n", "stepping\t: unknown\n")).get().stepping == 0


def test_missing_microcode_is_empty() -> None:
    assert parse_cpu(RECORDED.replace("microcode\t: 0x1000065\n", "")).get().microcode == ""


@pytest.mark.parametrize(("flags", "expected"), [("fpu vmx", "vmx"), ("fpu svm", "svm"), ("fpu vmx_extra svm_lock", "none")])
def test_virtualisation_is_a_whole_flag(flags: str, expected: str) -> None:
    text = f"vendor_id: X\ncpu family: 6\nmodel: 1\nstepping: 1\nflags: {flags}\n"
    assert parse_cpu(text).get().virtualization == expected


def test_every_logical_cpu_counts() -> None:
    assert parse_cpu(RECORDED * 3).get().logical_cpus == 6


def test_missing_file_has_a_reason(tmp_path: Path) -> None:
    assert read_cpu(HostTree(tmp_path)).reason == "no such file or directory"


@given(st.text() | st.lists(st.sampled_from(RECORDED.splitlines()), max_size=40).map("\n".join))
def test_arbitrary_text_yields_a_cpu_or_a_reason(text: str) -> None:
    parse_cpu(text)
