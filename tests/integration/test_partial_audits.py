"""Audits that cannot see everything: no libvirt, no privilege, no /dev, no /proc, no /sys. Unknown with reasons, never a traceback."""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audits import CommandResult, run_command
from domain_documents import guest_xml, uuid_of
from libvirt_lab import LibvirtLab, uri_of

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN

pytestmark = pytest.mark.integration

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
#: What can be told on every machine, whatever its kernel is: whether libvirt and the processes of its guests were seen.
ONLY_SOURCES = """
kind: policy
schema_version: 1
id: only-sources
version: "1"
title: What this audit needs can be seen
scope: {admit_tcg: true}
rules:
  - id: HOST-SOURCES
    severity: low
    title: Libvirt and the processes can be seen
    rationale: Told apart from this machine's kernel, which may be anything.
    subject: host
    check: sources
    parameters: {required: [libvirt, processes]}
  - id: POLICY-WAIVERS
    severity: low
    title: Waivers are in force
    rationale: One that has expired fails on every machine.
    subject: policy
    check: waivers
"""
EXPIRED_WAIVER = """
kind: waivers
schema_version: 1
waivers:
  - id: CHG-1
    rules: [HOST-SOURCES]
    scope: {hosts: ['*']}
    justification: long enough to be taken for one
    approver: somebody
    created: 2026-01-01T00:00:00Z
    expires: 2026-01-02T00:00:00Z
"""


@pytest.fixture(scope="module")
def guests(lab: LibvirtLab) -> LibvirtLab:
    """One guest that runs, one that does not. What runs is a fresh copy: too young to be known without looking into the process."""
    lab.define(guest_xml("runs", mode="maximum", pmu="off", emulator=lab.copy_qemu("runs")), guest_xml("rests", mode="maximum", pmu="off"))
    lab.start("runs")
    return lab


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where an unprivileged user may read: pytest's own folders are root's alone."""
    with tempfile.TemporaryDirectory(prefix="exitguard-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "only-sources.yaml").write_text(ONLY_SOURCES)
        (path / "expired.yaml").write_text(EXPIRED_WAIVER)
        yield path


def audit(folder: Path, uri: str, *options: str | Path, prefix: tuple[str, ...] = ()) -> CommandResult:
    """One audit by the policy of this file."""
    policy = folder / "only-sources.yaml"
    return run_command(folder / "home", "--connect", uri, "--policy", policy, "--format", "json", "--no-store", *options, prefix=prefix)


def sources(result: CommandResult) -> dict[str, Any]:
    """The one finding of HOST-SOURCES."""
    found: list[dict[str, Any]] = [finding for finding in result.document["findings"] if finding["rule"] == "HOST-SOURCES"]
    assert len(found) == 1
    return found[0]


def settings(result: CommandResult) -> dict[str, tuple[str, str]]:
    return {domain["name"]: (domain["pmu"]["persistent"], domain["pmu"]["live"]) for domain in result.document["domains"]}


def assert_libvirt_unseen(result: CommandResult) -> tuple[str, str | None]:
    """The reason and what would unlock it, of an audit that saw no libvirt: partial, and unknown."""
    listing = result.document["host"]["libvirt"]["listing"]
    assert result.exit_code == EXIT_UNKNOWN
    assert result.document["summary"]["exit_code"] == EXIT_UNKNOWN
    assert sources(result)["verdict"] == "unknown"
    assert listing["reason"] in sources(result)["reason"]
    assert result.document["domains"] == []
    assert result.document["host"]["kernel"]["release"], "the rest of the host is still told"
    return listing["reason"], listing["unlock"]


# --- the exit codes, the same on every machine ----------------------------------------------------------------------------------


def test_everything_seen_is_compliant(guests: LibvirtLab, folder: Path) -> None:
    result = audit(folder, guests.uri)
    assert sources(result)["verdict"] == "pass"
    assert settings(result) == {"runs": ("off", "off"), "rests": ("off", "none")}
    assert result.exit_code == EXIT_COMPLIANT


def test_one_failure_is_not_compliant(guests: LibvirtLab, folder: Path) -> None:
    result = audit(folder, guests.uri, "--waivers", folder / "expired.yaml")
    assert result.exit_code == EXIT_NOT_COMPLIANT
    assert result.document["summary"]["by_verdict"]["fail"] == 1


def test_failure_beats_unknown(folder: Path) -> None:
    result = audit(folder, uri_of(folder / "nowhere"), "--waivers", folder / "expired.yaml")
    assert result.document["summary"]["by_verdict"]["unknown"] == 1
    assert result.exit_code == EXIT_NOT_COMPLIANT


# --- no libvirt -----------------------------------------------------------------------------------------------------------------


def test_host_without_libvirt_says_what_to_install(folder: Path) -> None:
    reason, unlock = assert_libvirt_unseen(audit(folder, uri_of(folder / "libvirt-sock")))
    assert "No such file or directory" in reason
    assert unlock is not None
    assert "libvirt-daemon-system" in unlock


def test_socket_that_nobody_serves_is_a_reason(folder: Path) -> None:
    path = folder / "abandoned"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    reason, _ = assert_libvirt_unseen(audit(folder, uri_of(path)))
    assert "Connection refused" in reason


def test_python_without_libvirts_binding_says_which_package(folder: Path) -> None:
    stub = folder / "stub"
    stub.mkdir()
    (stub / "libvirt.py").write_text("raise ImportError('libvirt.so.0: cannot open shared object file')\n")
    reason, unlock = assert_libvirt_unseen(audit(folder, "qemu:///system", prefix=("env", f"PYTHONPATH={stub}")))
    assert "libvirt.so.0: cannot open shared object file" in reason
    assert unlock == "the package exitguard[host]"


def test_shipped_policy_without_libvirt_is_a_partial_audit_too(folder: Path) -> None:
    result = run_command(folder / "home", "--connect", uri_of(folder / "nowhere"), "--format", "json", "--no-store")
    assert sources(result)["verdict"] == "unknown"
    assert result.exit_code == (EXIT_NOT_COMPLIANT if result.document["summary"]["by_verdict"]["fail"] else EXIT_UNKNOWN)


# --- no privilege ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody() -> tuple[str, ...]:
    """The command line's beginning that makes the rest run as nobody."""
    tried = subprocess.run([*NOBODY, sys.executable, "-c", "import exitguard.cycle, libvirt"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"an unprivileged user cannot run this Python: {tried.stderr.strip().splitlines()[-1]}")
    return NOBODY


def test_unprivileged_user_reads_libvirts_read_only_socket(guests: LibvirtLab, folder: Path, nobody: tuple[str, ...]) -> None:
    result = audit(folder, uri_of(guests.read_only_socket), prefix=nobody)
    assert settings(result) == {"runs": ("off", "off"), "rests": ("off", "none")}


def test_what_an_unprivileged_user_cannot_see_names_the_privilege(guests: LibvirtLab, folder: Path, nobody: tuple[str, ...]) -> None:
    result = audit(folder, uri_of(guests.read_only_socket), prefix=nobody)
    assert result.exit_code == EXIT_UNKNOWN
    finding = sources(result)
    assert "processes (permission denied, and " in finding["reason"]
    assert "run as root, or grant CAP_SYS_PTRACE" in str(finding["evidence"])


def test_unprivileged_user_before_a_closed_socket_is_told_which_group(guests: LibvirtLab, folder: Path, nobody: tuple[str, ...]) -> None:
    reason, unlock = assert_libvirt_unseen(audit(folder, guests.uri, prefix=nobody))
    assert "Permission denied" in reason
    assert unlock is not None
    assert "group libvirt" in unlock


# --- no /dev, no /proc, no /sys -------------------------------------------------------------------------------------------------


def without(*folders: str) -> tuple[str, ...]:
    """The command line's beginning that makes the rest find these folders empty."""
    hide = "mount --make-rprivate / && " + " && ".join(f"mount -t tmpfs -o ro tmpfs {folder}" for folder in folders)
    return ("unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh")


def test_empty_proc_leaves_the_processes_unknown_and_the_definitions_known(guests: LibvirtLab, folder: Path) -> None:
    result = audit(folder, guests.uri, prefix=without("/proc"))
    assert result.exit_code == EXIT_UNKNOWN
    assert "no process is visible there" in sources(result)["reason"]
    # libvirt's own word stands in for the process's, and says so.
    assert settings(result) == {"runs": ("off", "off"), "rests": ("off", "none")}
    evidence = result.domains[uuid_of("runs")]["evidence"]
    assert {each["source"]: each["value"] for each in evidence if each["source"].startswith("/proc")} == {
        "/proc": "not seen: no process is visible there"
    }
    assert result.document["host"]["kernel"]["release"] is None


def test_machine_without_a_kvm_device_says_so(guests: LibvirtLab, folder: Path) -> None:
    result = audit(folder, guests.uri, prefix=without("/dev"))
    assert result.document["host"]["kvm"]["device"]["reason"]
    assert settings(result)["runs"] == ("off", "off")
    assert result.exit_code == EXIT_COMPLIANT


def test_machine_without_sysfs_does_not_know_its_kvm_nor_its_kernel(guests: LibvirtLab, folder: Path) -> None:
    result = run_command(
        folder / "home", "--connect", guests.uri, "--format", "json", "--no-store", prefix=without("/sys", "/proc", "/dev")
    )
    kvm = result.document["host"]["kvm"]
    assert {name: value["value"] for name, value in kvm.items()} == dict.fromkeys(kvm)
    assert all(value["reason"] for value in kvm.values())
    assert result.document["host"]["kernel"]["state"] == "unknown"
    # The file of this machine's QEMU is still there, and may fail by itself.
    failed = {finding["rule"] for finding in result.document["findings"] if finding["verdict"] == "fail"}
    assert failed <= {"HOST-QEMU-PMU-CAP"}
    assert result.exit_code == (EXIT_NOT_COMPLIANT if failed else EXIT_UNKNOWN)


@pytest.mark.usefixtures("guests")  # it needs the same namespaces
def test_blind_audit_is_a_table_for_people_too(folder: Path) -> None:
    options = ("--connect", uri_of(folder / "nowhere"), "--policy", folder / "only-sources.yaml", "--no-store")
    result = run_command(folder / "home", *options, prefix=without("/sys", "/proc", "/dev"))
    assert result.exit_code == EXIT_UNKNOWN
    assert "UNKNOWN" in result.stdout
    assert "No such file or directory" in " ".join(result.stdout.split())
