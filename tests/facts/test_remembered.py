"""What is remembered from one cycle to the next: only what cannot have changed, and only so much of it."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from exitguard.cycle import AuditRequest, observe, run_audit
from exitguard.facts import domain_xml, kernel, qemu
from exitguard.facts.qemu import CAPABILITY_STRING, QemuReader
from exitguard.facts.tree import HostTree
from exitguard.model.record import Observed, seen, unseen
from exitguard.policy.load import PolicyError, load_rulebook

VERSION = b"QEMU emulator version 11.1.3\0"
UUID = "5a0e2b1c-7d3f-4e6a-9b8c-0d1e2f3a4b5c"


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (domain_xml, kernel, qemu):
        monkeypatch.setattr(module, "_remembered", {})


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files count as left alone as soon as they are written."""
    monkeypatch.setattr(qemu, "_SETTLED_NANOSECONDS", -1)
    return


def definition(name: str) -> str:
    return f"<domain type='kvm'><name>{name}</name><uuid>{UUID}</uuid></domain>"


def refuse(*_: object) -> None:
    raise AssertionError("it was read again")


@pytest.mark.usefixtures("settled")
def test_program_that_nobody_touched_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(VERSION)
    first = QemuReader(HostTree()).read_file(str(program))
    monkeypatch.setattr(qemu, "_scan", refuse)
    assert QemuReader(HostTree()).read_file(str(program)) == first


@pytest.mark.usefixtures("settled")
def test_replaced_program_is_scanned_anew(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(VERSION)
    assert QemuReader(HostTree()).read_file(str(program)).capability_string.value is False
    program.with_name("new").write_bytes(VERSION + CAPABILITY_STRING)
    program.with_name("new").replace(program)
    assert QemuReader(HostTree()).read_file(str(program)).capability_string.value is True


def test_program_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(VERSION)
    QemuReader(HostTree()).read_file(str(program))
    assert qemu._remembered == {}


@pytest.mark.usefixtures("settled")
def test_few_programs_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "_MAX_REMEMBERED", 2)
    for number in range(5):
        program = tmp_path / f"qemu-{number}"
        program.write_bytes(VERSION)
        QemuReader(HostTree()).read_file(str(program))
    assert len(qemu._remembered) <= 2


def test_definition_of_the_same_text_is_parsed_once() -> None:
    assert domain_xml.parse(definition("a")) is domain_xml.parse(definition("a"))
    assert domain_xml.parse(definition("b")).name == "b"


def test_few_definitions_are_remembered_and_no_huge_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_xml, "_MAX_REMEMBERED", 2)
    for number in range(5):
        domain_xml.parse(definition(f"domain-{number}"))
    assert len(domain_xml._remembered) <= 2
    monkeypatch.setattr(domain_xml, "_remembered", {})
    domain_xml.parse(definition("a") + " " * domain_xml._REMEMBERED_CHARACTERS)
    assert domain_xml._remembered == {}


def test_symbols_are_listed_once_for_the_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    listings: Iterator[Observed[tuple[str, ...]]] = iter([seen("/proc/kallsyms", ("first",)), seen("/proc/kallsyms", ("second",))])
    running = [(b"boot",)]
    monkeypatch.setattr(kernel, "_running_code", lambda _tree: running[0])
    monkeypatch.setattr(kernel, "_list_symbols", lambda _tree: next(listings))
    assert kernel.read_symbols(HostTree()).value == ("first",)
    assert kernel.read_symbols(HostTree()).value == ("first",)
    running[0] = (b"boot", b"kvm", b"another build")
    assert kernel.read_symbols(HostTree()).value == ("second",)


@pytest.mark.parametrize(
    ("codes", "listing"),
    [
        pytest.param([(b"boot",), (b"boot",)], unseen("/proc/kallsyms", "truncated"), id="not whole"),
        pytest.param([(b"boot",), (b"boot", b"kvm")], seen("/proc/kallsyms", ("x",)), id="a module came meanwhile"),
        pytest.param([None, None], seen("/proc/kallsyms", ("x",)), id="the code cannot be identified"),
    ],
)
def test_listing_that_may_not_be_of_this_code_is_not_remembered(
    codes: list[tuple[bytes, ...] | None], listing: Observed[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    following = iter(codes)
    monkeypatch.setattr(kernel, "_running_code", lambda _tree: next(following))
    monkeypatch.setattr(kernel, "_list_symbols", lambda _tree: listing)
    assert kernel.read_symbols(HostTree()) == listing
    assert kernel._remembered == {}


def test_symbols_of_a_file_tree_are_never_remembered(tmp_path: Path) -> None:
    boot_id = tmp_path / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text(UUID)
    assert kernel.read_boot_id(HostTree(tmp_path)).value == UUID
    assert kernel._running_code(HostTree(tmp_path)) is None


def test_edited_policy_is_loaded_anew(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    shipped = load_rulebook().policy
    text = (Path(__file__).resolve().parents[2] / "policies" / "pmu-off.yaml").read_text()
    policy.write_text(text)
    assert load_rulebook((policy,)).policy == shipped
    policy.write_text(text.replace(shipped.title, "Edited", 1))
    assert load_rulebook((policy,)).policy.title == "Edited"


def test_collector_is_back_after_an_audit_and_after_one_that_failed(tmp_path: Path) -> None:
    assert gc.isenabled()
    observe(AuditRequest(sysroot=tmp_path))
    assert gc.isenabled()
    with pytest.raises(PolicyError):
        run_audit(AuditRequest(sysroot=tmp_path, policy_files=(tmp_path / "missing.yaml",)))
    assert gc.isenabled()
