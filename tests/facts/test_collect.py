"""One pass over a target: this machine with libvirt's embedded test driver, a file tree, a host that is out of reach."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from exitguard.facts.collect import collect, read_identity
from exitguard.facts.libvirt import Patience, target_of
from exitguard.facts.tree import HostTree
from exitguard.model.documents import Observation
from exitguard.model.domain import OwnerKind
from exitguard.model.host import Target, TargetKind
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Observed

HERE = Path(__file__).parent
HOST_ID = "5f9d3a52-1c0a-4a1c-9d39-61b3f7a0c0de"
OBSERVED_AT = datetime(2026, 11, 22, tzinfo=UTC)
GUEST = "813b0c1a-48cc-4074-9228-2fd0b7077ef5"
NAME = "instance-00000002"


def observe(target: Target, tree: HostTree) -> Observation:
    identity = read_identity(target, tree, host_id=HOST_ID, provisional=True)
    return collect(target, identity, tree, changelog_markers=("no such entry",), patience=Patience(10), observed_at=OBSERVED_AT)


def observe_tree(root: Path) -> Observation:
    return observe(Target(kind=TargetKind.SYSROOT, sysroot=str(root)), HostTree(root))


def observed_in(record: object) -> Iterator[Observed[object]]:
    """Every observation within a record."""
    if isinstance(record, Observed):
        yield record
    elif isinstance(record, BaseModel):
        for name in type(record).model_fields:
            yield from observed_in(getattr(record, name))


def recorded(case: str) -> str:
    return (HERE / "domain_xml" / case / "input").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A file tree with one running Nova instance, its process, and its QEMU."""
    for folder, name, text in (
        ("etc/libvirt/qemu", f"{NAME}.xml", recorded("nova-26.2.2-flavor-pmu-off-inactive")),
        ("run/libvirt/qemu", f"{NAME}.xml", f"<domstatus>{recorded('nova-26.2.2-flavor-pmu-off')}</domstatus>"),
        ("var/lib/libvirt/qemu/save", "README", ""),
        ("usr/bin", "qemu-system-x86_64", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\0"),
        ("proc", "stat", "btime 1795361964\n"),
        ("proc/sys/kernel/random", "boot_id", "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004\n"),
        ("etc", "machine-id", "00000000000040008000000000000001\n"),
        ("proc/4711", "stat", "4711 (qemu-system-x86) S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 20 0 5 0 100 1 2 3"),
        ("proc/4711", "cmdline", f"qemu\0-uuid\0{GUEST}\0-accel\0tcg\0-cpu\0qemu64,pmu=off\0"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "proc/4711/exe").symlink_to("/usr/bin/qemu-system-x86_64")
    (tmp_path / "proc/4711/fd").mkdir()
    label = f"+{os.getuid()}:+{os.getgid()}"  # the user whom the process in this tree belongs to
    running = tmp_path / f"run/libvirt/qemu/{NAME}.xml"
    running.write_text(running.read_text().replace("+64055:+64055", label))
    return tmp_path


# A file tree


def test_empty_tree_yields_reasons_only(tmp_path: Path) -> None:
    observation = observe_tree(tmp_path)
    assert observation.facts.domains == ()
    assert observation.samples.domains == ()
    host = observation.facts.host
    assert host.qemu.value == ()
    for part in (host.identity, host.kernel, host.cpu, host.kvm, host.libvirt, host.unmanaged):
        for observed in observed_in(part):
            assert observed.value is None or observed.value in ((), False), observed
            assert observed.known or observed.reason
    assert "libvirt's own guests are not known" in (host.unmanaged.reason or "")
    assert observation.samples.boot_time.reason


def test_tree_of_a_host_is_read_whole(host: Path) -> None:
    observation = observe_tree(host)
    (domain,) = observation.facts.domains
    assert (domain.uuid, domain.name, domain.active.value, domain.owner.kind) == (GUEST, NAME, True, OwnerKind.NOVA)
    assert domain.process is not None
    process = domain.process.get()
    assert (process.cpu.get().pmu, process.accelerator.value) == (PmuElement.OFF, "tcg")
    assert process.executable.get().version.get().version == "7.2.22"
    assert domain.started_as_generated is not None
    assert domain.started_as_generated.value is True
    (sample,) = observation.samples.domains
    assert sample.incarnation is not None
    assert sample.incarnation.key == f"{HOST_ID}/{GUEST}/0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004/100"
    assert [binary.path for binary in observation.facts.host.qemu.get()] == ["/usr/bin/qemu-system-x86_64"]
    assert observation.facts.host.unmanaged.value == ()


def test_hash_does_not_change_from_look_to_look_nor_with_a_restart_of_the_guest(host: Path) -> None:
    before = observe_tree(host).facts
    (host / "proc/4711").rename(host / "proc/815")
    stat = host / "proc/815/stat"
    stat.write_text(stat.read_text().replace("4711", "815").replace(" 100 1 2 3", " 4200 1 2 3"))
    after = observe_tree(host).facts
    assert before.domain_hashes == after.domain_hashes
    assert before.host_hash == after.host_hash


def test_other_pmu_setting_is_another_hash(host: Path) -> None:
    before = observe_tree(host).facts
    path = host / f"etc/libvirt/qemu/{NAME}.xml"
    path.write_text(path.read_text().replace("<pmu state='off'/>", "<pmu state='on'/>"))
    after = observe_tree(host).facts
    assert before.domain_hashes != after.domain_hashes
    assert before.host_hash != after.host_hash


def test_emulators_of_definitions_and_runs_are_read_beside_the_usual_ones(host: Path) -> None:
    definition, run = host / f"etc/libvirt/qemu/{NAME}.xml", host / f"run/libvirt/qemu/{NAME}.xml"
    definition.write_text(definition.read_text().replace("/usr/bin/qemu-system-x86_64", "/opt/qemu/bin/qemu"))
    run.write_text(run.read_text().replace("/usr/bin/qemu-system-x86_64", "not/absolute"))
    binaries = observe_tree(host).facts.host.qemu.get()
    assert [(binary.path, binary.version.known) for binary in binaries] == [
        ("/opt/qemu/bin/qemu", False),
        ("/usr/bin/qemu-system-x86_64", True),
    ]


def test_number_of_emulators_that_are_read_is_bounded(host: Path) -> None:
    text = recorded("nova-26.2.2-flavor-pmu-off-inactive")
    for number in range(100):
        guest = text.replace(GUEST, f"813b0c1a-48cc-4074-9228-{number:012}").replace(
            "<emulator>/usr/bin/qemu-system-x86_64", f"<emulator>/opt/{number}"
        )
        (host / f"etc/libvirt/qemu/guest-{number}.xml").write_text(guest)
    observation = observe_tree(host)
    assert len(observation.facts.domains) == 101
    assert len(observation.facts.host.qemu.get()) == 64
    uuids = [domain.uuid for domain in observation.facts.domains]
    assert uuids == sorted(uuids)


def test_process_that_holds_a_virtual_machine_unknown_to_libvirt_is_unmanaged(host: Path) -> None:
    shutil.copytree(host / "proc/4711", host / "proc/4712", symlinks=True)
    (host / "proc/4712/cmdline").write_text("firecracker\0")
    (host / "proc/4712/comm").write_text("firecracker\n")
    for pid in (4711, 4712):
        (host / f"proc/{pid}/fd/9").symlink_to("anon_inode:kvm-vm")
    assert [guest.command for guest in observe_tree(host).facts.host.unmanaged.get()] == ["firecracker"]


# A host that is out of reach


def test_remote_host_shows_libvirt_only() -> None:
    # The socket is on this machine and nobody serves it; the kind is what a URI with a host would give.
    target = Target(kind=TargetKind.REMOTE, uri="qemu+unix:///system?socket=/nonexistent/libvirt-sock")
    observation = observe(target, HostTree())
    host = observation.facts.host
    for part in (host.kernel, host.cpu, host.mitigations, host.kvm, host.qemu, host.unmanaged):
        for observed in observed_in(part):
            assert (observed.reason or "").startswith("remote: only libvirt can be seen"), observed
    identity = host.identity
    assert {observed.reason for observed in observed_in(identity)} == {host.cpu.reason}
    assert identity.id == HOST_ID
    assert "No such file or directory" in (host.libvirt.listing.reason or "")
    assert (observation.facts.domains, observation.samples.boot_time.reason) == ((), host.cpu.reason)


def test_remote_domains_processes_are_unknown_as_remote() -> None:
    pytest.importorskip("libvirt")
    target = Target(kind=TargetKind.REMOTE, uri="test:///default")  # some domain, as if it ran elsewhere
    (domain,) = observe(target, HostTree()).facts.domains
    assert domain.active.value is True
    assert domain.process is None  # its type is `test`: no QEMU, here or there


# This machine


def test_this_machine_with_the_test_driver_yields_a_document_that_reads_back() -> None:
    pytest.importorskip("libvirt")
    observation = observe(target_of("test:///default"), HostTree())
    facts = observation.facts
    assert facts.host.target.kind is TargetKind.EMBEDDED
    assert facts.host.kernel.release.value == os.uname().release
    assert [domain.name for domain in facts.domains] == ["test"]
    assert type(facts).model_validate_json(facts.model_dump_json()) == facts
    assert observation.samples.boottime_nanoseconds > 0
    assert facts.host_hash == observe(target_of("test:///default"), HostTree()).facts.host_hash


def test_facts_hold_neither_a_pid_nor_a_time(host: Path) -> None:
    facts = observe_tree(host).facts
    document = json.loads(facts.model_dump_json())
    assert document["observed_at"] == "2026-11-22T00:00:00.000000Z"
    assert "4711" not in json.dumps(document["domains"])


def test_identity_of_this_machine_is_read_and_the_id_is_the_callers() -> None:
    identity = read_identity(target_of("test:///default"), HostTree(), host_id=HOST_ID, provisional=False)
    assert (identity.id, identity.provisional, identity.hostname.value) == (HOST_ID, False, os.uname().nodename)
