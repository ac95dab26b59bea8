"""Recorded real inputs: tests/facts/<source>/<case>/ holds an input, its origin.yaml and the facts expected of it.

A new distribution or version is a new case folder. A new source is one line in PARSERS: a function that takes the case folder
and gives the parsed value, which is compared as JSON with expected.json. origin.yaml says how the input was come by:

    command: cat /proc/cpuinfo                     # or an honest account, where no single command made it
    versions: {linux: 6.1.0-56-amd64}              # of whatever wrote the input
    date: 2026-01-31
    note: an excerpt                               # optional
"""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from exitguard.facts import domain_xml, qemu_command_line
from exitguard.facts.boot import read_boots_next, read_installed
from exitguard.facts.changelog import search_changelog
from exitguard.facts.cpu import parse_cpu
from exitguard.facts.elf_notes import parse_build_id
from exitguard.facts.kernel import parse_os_release, parse_symbols
from exitguard.facts.kernel_packages import parse_running_version
from exitguard.facts.kvm import read_kvm
from exitguard.facts.libvirt_files import parse_save_header
from exitguard.facts.livepatch import read_live_patches
from exitguard.facts.mitigations import parse_classes
from exitguard.facts.tree import HostTree

HERE = Path(__file__).parent
LARGEST_INPUT_BYTES = 60_000

#: What a release without the guard would have to say, and a wrapped entry that Debian's changelog does hold.
CHANGELOG_MARKERS = (
    "x86/kvm: skip PMU event trigger when guest PMU is disabled",
    "VSTOR-132543",
    "media: rkvdec: reduce stack usage in rkvdec_init_v4l2_vp9_count_tbl()",
)


def recorded_bytes(case: Path) -> bytes:
    return (case / "input").read_bytes()


def recorded_text(case: Path) -> str:
    return (case / "input").read_text()


def recorded_tree(case: Path) -> HostTree:
    return HostTree(case / "tree")


def vulnerability_lines(case: Path) -> dict[str, str]:
    """Of the output of `grep . /sys/devices/system/cpu/vulnerabilities/*`."""
    pairs = (line.split(":", 1) for line in recorded_text(case).splitlines())
    return {path.rsplit("/", 1)[-1]: text for path, text in pairs}


def recorded_argv(case: Path) -> tuple[str, ...]:
    """Of a /proc/<pid>/cmdline."""
    return tuple(recorded_text(case).rstrip("\0").split("\0"))


PARSERS: dict[str, Callable[[Path], object]] = {
    "boot": lambda case: {"installed": read_installed(recorded_tree(case)), "boots_next": read_boots_next(recorded_tree(case))},
    "changelog": lambda case: search_changelog(
        [recorded_bytes(case)], CHANGELOG_MARKERS, version="6.1.192-2" if "debian" in case.name else None
    ),
    "cpuinfo": lambda case: parse_cpu(recorded_text(case)),
    "domain_xml": lambda case: domain_xml.parse(recorded_text(case)),
    "kallsyms": lambda case: parse_symbols(recorded_bytes(case)),
    "kernel_notes": lambda case: parse_build_id(recorded_bytes(case)),
    "kernel_version": lambda case: parse_running_version(recorded_text(case), ""),
    "kvm": lambda case: read_kvm(recorded_tree(case)),
    "livepatch": lambda case: read_live_patches(recorded_tree(case)),
    "mitigations": lambda case: parse_classes(vulnerability_lines(case)),
    "nova": lambda case: domain_xml.parse(recorded_text(case)).nova,
    "os_release": lambda case: parse_os_release("/etc/os-release", recorded_text(case)),
    "qemu_command_line": lambda case: qemu_command_line.parse(recorded_argv(case)),
    "save_file": lambda case: parse_save_header(recorded_bytes(case)),
}

CASES = sorted(
    case
    for source in HERE.iterdir()
    if source.is_dir() and source.name not in ("__pycache__", "machine_code", "openstack", "probe", "exit_reasons")
    for case in source.iterdir()
)


class Origin(BaseModel):
    """How a recorded input was come by."""

    model_config = ConfigDict(extra="forbid")

    command: str
    versions: dict[str, str]
    date: date
    note: str | None = None


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_recorded_input_yields_the_expected_facts(case: Path) -> None:
    origin = Origin.model_validate(yaml.safe_load((case / "origin.yaml").read_text()))
    assert origin.command.strip()
    assert origin.versions
    parsed = to_jsonable_python(PARSERS[case.parent.name](case))
    assert parsed == json.loads((case / "expected.json").read_text()), json.dumps(parsed, indent=2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_recorded_inputs_stay_small(case: Path) -> None:
    assert [str(file) for file in case.rglob("*") if file.is_file() and file.stat().st_size > LARGEST_INPUT_BYTES] == []


def test_every_parser_has_a_recorded_input() -> None:
    assert set(PARSERS) <= {case.parent.name for case in CASES}


@pytest.mark.parametrize("missing", ["command", "versions", "date"])
def test_origin_that_lacks_a_key_is_refused(missing: str) -> None:
    whole = {"command": "cat /proc/cpuinfo", "versions": {"linux": "6.1"}, "date": date(2026, 1, 31)}
    assert Origin.model_validate(whole).note is None
    with pytest.raises(ValidationError, match=missing):
        Origin.model_validate({key: value for key, value in whole.items() if key != missing})
