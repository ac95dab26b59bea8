"""libvirt's real files, copied into a tree of their own: what they say is what the live audit said. And trees made to do harm."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from audits import CommandResult, domain_facts, observe_uri, run_command
from domain_documents import LOCKED_METADATA, NOVA_METADATA, guest_xml, uuid_of
from libvirt_lab import LibvirtLab

from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainDefinition
from exitguard.model.finding import EXIT_NOT_COMPLIANT, EXIT_UNKNOWN
from exitguard.model.record import Observed

pytestmark = pytest.mark.integration

RECORDED = Path(__file__).resolve().parents[1] / "facts"
LIBVIRTS_FOLDERS = ("etc/libvirt/qemu", "run/libvirt/qemu", "var/lib/libvirt/qemu/save")
NAMES = ("rests", "runs", "changed", "saved", "passing", "of-nova", "locked", "-uuid; touch owned")


@pytest.fixture(scope="module")
def guests(lab: LibvirtLab) -> LibvirtLab:
    """Guests in every state that libvirt keeps in files."""
    lab.define(
        guest_xml("rests", mode="maximum", pmu="on"),
        guest_xml("runs", mode="maximum", pmu="off"),
        guest_xml("changed", mode="maximum"),
        guest_xml("saved", mode="maximum"),
        guest_xml("of-nova", mode="maximum", metadata=NOVA_METADATA),
        guest_xml("locked", mode="custom", metadata=LOCKED_METADATA),
        guest_xml("-uuid; touch owned"),
    )
    lab.start("runs", "changed", "saved", "locked")
    lab.start_transient(guest_xml("passing", mode="custom", pmu="off"))
    lab.save("saved")
    lab.define(guest_xml("changed", mode="maximum", pmu="off"), guest_xml("saved", mode="maximum", pmu="off"))
    return lab


@pytest.fixture(scope="module")
def live(guests: LibvirtLab) -> FactsDocument:
    return observe_uri(guests.uri)


@pytest.fixture(scope="module")
def tree(guests: LibvirtLab, live: FactsDocument, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libvirt's files of that moment, on a Debian 12 host whose KVM has its PMU."""
    assert live.domains
    root = tmp_path_factory.mktemp("sysroot")
    for folder in LIBVIRTS_FOLDERS:
        (root / folder).mkdir(parents=True)
        for file in (guests.root / folder).iterdir():
            if file.is_file():
                shutil.copy(file, root / folder)
    shutil.copytree(RECORDED / "kvm/debian12-6.1-module/tree", root, dirs_exist_ok=True)
    (root / "proc/sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text("6.1.0-56-amd64\n")
    shutil.copy(RECORDED / "kallsyms/debian12-6.1-kvm-module/input", root / "proc/kallsyms")
    switch = root / "sys/module/kvm/parameters/enable_pmu"
    switch.unlink()
    switch.write_text("Y\n")
    return root


@pytest.fixture(scope="module")
def from_files(tree: Path) -> FactsDocument:
    return observe(AuditRequest(sysroot=tree)).facts


def said(observed: Observed[DomainDefinition] | None) -> DomainDefinition | None:
    return observed.get() if observed is not None else None


def test_files_and_daemon_name_the_same_domains(live: FactsDocument, from_files: FactsDocument) -> None:
    assert sorted(domain.name for domain in from_files.domains) == sorted(NAMES)
    assert {domain.name: domain.uuid for domain in from_files.domains} == {domain.name: domain.uuid for domain in live.domains}


@pytest.mark.parametrize("name", NAMES)
def test_files_say_of_a_domain_what_the_daemon_says(live: FactsDocument, from_files: FactsDocument, name: str) -> None:
    by_daemon, by_file = domain_facts(live, name), domain_facts(from_files, name)
    assert said(by_file.definition) == said(by_daemon.definition)
    assert said(by_file.run) == said(by_daemon.run)
    assert by_file.active.get() == by_daemon.active.get()
    assert by_file.managed_save.get() == by_daemon.managed_save.get()
    assert (by_file.owner, by_file.nova, by_file.locked) == (by_daemon.owner, by_daemon.nova, by_daemon.locked)


def test_processes_of_this_machine_do_not_show_in_a_tree(from_files: FactsDocument) -> None:
    for name in ("runs", "changed", "locked", "passing"):
        process = domain_facts(from_files, name).process
        assert process is not None
        assert process.reason


def test_audit_of_the_tree_by_the_command_line(tree: Path, tmp_path: Path, tcg_policy: Path) -> None:
    result = run_command(tmp_path, "--sysroot", tree, "--policy", tcg_policy, "--format", "json", "--no-store")
    pmu = {domain["name"]: (domain["pmu"]["persistent"], domain["pmu"]["live"]) for domain in result.document["domains"]}
    assert pmu["runs"] == ("off", "off")
    assert pmu["changed"] == ("off", "default_on")
    assert pmu["saved"] == ("off", "default_on")
    assert pmu["rests"] == ("on", "none")
    assert pmu["passing"] == ("none", "off")
    failing = {finding["subject"]["name"] for finding in result.document["findings"] if finding["verdict"] == "fail"}
    assert {"changed", "saved", "of-nova"} <= failing
    assert result.exit_code == EXIT_NOT_COMPLIANT
    assert list(tmp_path.rglob("owned")) == []


def test_empty_tree_is_a_partial_audit(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run_command(tmp_path / "home", "--sysroot", empty, "--format", "json", "--no-store")
    assert result.exit_code == EXIT_UNKNOWN
    assert result.document["domains"] == []
    assert result.document["summary"]["by_verdict"]["pass"] <= 2
    assert result.document["host"]["libvirt"]["listing"]["reason"] == "no such file or directory"


# --- trees made to do harm --------------------------------------------------------------------------------------------------------

BOMB = """<!DOCTYPE domain [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
]><domain type='kvm'><name>&c;</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid></domain>"""


@pytest.fixture
def hostile_tree(tmp_path: Path) -> Path:
    """One honest definition among files that no libvirt ever wrote."""
    root = tmp_path / "hostile"
    definitions, running, saves = (root / folder for folder in LIBVIRTS_FOLDERS)
    for folder in (definitions, running, saves):
        folder.mkdir(parents=True)
    honest = guest_xml("honest", kind="kvm", mode="host-passthrough")
    (definitions / "honest.xml").write_text(honest)
    (definitions / "bomb.xml").write_text(BOMB)
    (definitions / "external.xml").write_text(BOMB.replace('"aaaaaaaaaa"', 'SYSTEM "file:///etc/passwd"'))
    (definitions / "same-uuid.xml").write_text(honest.replace(">honest<", ">same-uuid<"))
    (definitions / "deep.xml").write_text("<domain>" * 100_000 + "</domain>" * 100_000)
    inner = "<a:d>" * 50_000 + "</a:d>" * 50_000
    (definitions / "deep-metadata.xml").write_text(guest_xml("deep-metadata", metadata=f"<a:d xmlns:a='urn:a'>{inner}</a:d>"))
    (definitions / "large.xml").write_text("<domain>" + " " * (5 << 20) + "</domain>")
    (definitions / "empty.xml").write_text("")
    (definitions / "binary.xml").write_bytes(os.urandom(4096))
    (definitions / "utf-16.xml").write_bytes(honest.encode("utf-16"))
    (definitions / "folder.xml").mkdir()
    os.mkfifo(definitions / "fifo.xml")
    (definitions / "loop.xml").symlink_to("loop.xml")
    (definitions / "outside.xml").symlink_to("../../../../../../../../etc/passwd")
    (definitions / "absolute.xml").symlink_to("/etc/passwd")
    (definitions / "line\nfeed.xml").write_text(guest_xml("line feed"))
    (definitions / os.fsdecode(b"\xff\xfe.xml")).write_text(honest)
    (running / "honest.xml").write_text("<domstatus><domain/></domstatus>")
    (running / "fifo.xml").symlink_to("/dev/zero")
    (saves / "same-uuid.save").write_bytes(b"LibvirtQemudSave" + b"\xff" * 76 + b"\0" * 100)
    process = root / "proc/7"
    process.mkdir(parents=True)
    (process / "cmdline").write_bytes(b"qemu\0-uuid\0" + uuid_of("honest").encode() + b"\0")
    (process / "stat").write_text("7 (qemu) " + "0 " * 40)
    os.mkfifo(root / "proc/fifo")
    (process / "exe").symlink_to("../fifo")
    (root / "dev").mkdir()
    os.mkfifo(root / "dev/kvm")
    return root


def audit_hostile(root: Path, home: Path, *options: str | Path) -> CommandResult:
    return run_command(home, "--sysroot", root, "--format", "json", *options)


def test_hostile_tree_costs_its_own_domains_and_nothing_else(hostile_tree: Path, tmp_path: Path) -> None:
    result = audit_hostile(hostile_tree, tmp_path / "home", "--no-store")
    assert result.exit_code in (EXIT_NOT_COMPLIANT, EXIT_UNKNOWN)
    by_name = {domain["name"]: domain for domain in result.document["domains"]}
    assert by_name["honest"]["pmu"]["persistent"] == "default_on"
    uuids = [domain["uuid"] for domain in result.document["domains"]]
    assert len(uuids) == len(set(uuids)), "two domains under one uuid"
    for name in ("same-uuid", "bomb", "external", "deep", "large", "empty", "binary", "folder", "fifo", "loop", "outside", "absolute"):
        assert by_name[name]["pmu"]["persistent"] == "unknown", name
        assert any("not seen: " in evidence["value"] for evidence in by_name[name]["evidence"]), name
    assert "root:" not in result.stdout, "a file of this machine was read"


def test_hostile_tree_can_be_remembered(hostile_tree: Path, tmp_path: Path) -> None:
    result = audit_hostile(hostile_tree, tmp_path / "home", "--state-dir", tmp_path / "state")
    assert "Not stored" not in result.stderr
    assert result.exit_code in (EXIT_NOT_COMPLIANT, EXIT_UNKNOWN)
    command = [sys.executable, "-m", "exitguard", "report", "--format", "json", "--state-dir", str(tmp_path / "state")]
    told = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)
    assert json.loads(told.stdout)["domains"] == result.document["domains"], told.stderr
