"""What goes wrong around the service: libvirtd, the clock, sleep, the disk. It stays up, says so once, and catches up."""

from collections.abc import Iterator

import pytest
from audit_service import EVENTS_ONLY, STATE_DIR, UNIT, AuditService
from guests import DEFINE, DESTROY, START, UNDEFINE, wait_for_guest, write_guest
from machine import Machine

# Emulated processors.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture
def same_process(service: AuditService) -> Iterator[AuditService]:
    """The service, which must be the same process afterwards: neither the watchdog nor a failure ended it."""
    pid = service.pid
    yield service
    assert (service["ActiveState"], service.pid) == ("active", pid)


# --- libvirtd -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blow", ["systemctl restart libvirtd", "systemctl kill --signal=KILL libvirtd"], ids=["restarted", "killed"])
def test_domains_are_heard_of_again_after_libvirtd_was(same_process: AuditService, blow: str) -> None:
    service, machine = same_process, same_process.machine
    service.configure(EVENTS_ONLY)
    service.reload()
    write_guest(machine)
    mark = service.mark()
    machine.output(blow)
    machine.wait_until("libvirtd answers", lambda: machine.succeeds("virsh -q list"))
    service.wait_for(mark, "condition.over", condition="events")
    try:
        mark = service.mark()
        machine.output(f"{DEFINE} && {START}")
        wait_for_guest(service, mark)
    finally:
        machine.run(f"{DESTROY}; {UNDEFINE}")


def test_libvirtd_that_hangs_is_told_once_and_the_guest_is_known_again_after_it(same_process: AuditService, guest: str) -> None:
    service, machine = same_process, same_process.machine
    mark = service.mark()
    machine.output("systemctl kill --signal=STOP libvirtd")
    try:
        service.wait_for_audit(mark, job="audit", domains=0)
        assert service.chain_state("guest") is None, "nobody can tell which guests there are"
        assert len(service.events(mark, "condition.begun", condition="libvirt")) == 1, "said once"
    finally:
        machine.output("systemctl kill --signal=CONT libvirtd")
    service.wait_for(mark, "condition.over", condition="libvirt")
    assert guest in {domain["uuid"] for domain in service.report()["domains"]}
    assert service.chain_state("guest") == "unguarded"


# --- time -----------------------------------------------------------------------------------------------------------------------


def test_audits_go_on_after_the_clock_was_stepped_an_hour_forward_and_back(same_process: AuditService) -> None:
    service = same_process
    for seconds in (3600, -3600):
        mark = service.mark()
        service.machine.step_clock(seconds)
        assert abs(service.wait_for(mark, "clock.stepped")["seconds"] - seconds) < 60
        service.wait_for_audit(job="audit", stored=True)
        assert service.events(mark, "job.missed") == []


def test_audits_go_on_after_a_suspend_and_the_watchdog_does_not_bite(service: AuditService) -> None:
    service.drop_in("[Service]\nWatchdogSec=20\nRestart=no\n")
    service.restart()
    pid = service.pid
    service.machine.suspend(40)
    service.wait_for_audit(job="audit", stored=True)
    assert (service["ActiveState"], service.pid) == ("active", pid)


# --- the store ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(service: AuditService) -> Iterator[Machine]:
    """A state directory on a disk of its own, 16 MiB large."""
    machine = service.machine
    machine.output(f"systemctl stop {UNIT}")
    machine.output(f"mount -t tmpfs -o size=16m,mode=0750,uid=exitguard,gid=exitguard tmpfs {STATE_DIR}")
    machine.output(f"systemctl start {UNIT}")
    yield machine
    machine.output(f"systemctl stop {UNIT}; umount {STATE_DIR}")


def test_full_disk_is_said_once_and_leaves_a_visible_gap(service: AuditService, small_disk: Machine) -> None:
    pid, mark, since = service.pid, service.mark(), _now(small_disk)
    assert not small_disk.succeeds(f"dd if=/dev/zero of={STATE_DIR}/ballast bs=4k")
    service.wait_for(mark, "condition.begun", condition="store")
    service.wait_for_audit(stored=False)
    small_disk.output(f"rm {STATE_DIR}/ballast")
    _recovers_with_a_gap(service, mark, since)
    assert (service["ActiveState"], service.pid) == ("active", pid)


def test_state_that_cannot_be_written_is_said_once_and_leaves_a_visible_gap(service: AuditService) -> None:
    machine, mark, since, pid = service.machine, service.mark(), _now(service.machine), service.pid
    # No disk can be made read-only under a program that writes to it, but for one that breaks. This denies every write all the same,
    # through files that are open too, and the note of a gap with the rest. SQLite's shared memory is a mapped file: the kernel may
    # end a process that writes to it (SIGBUS), and systemd then starts another.
    machine.output(f"chattr -R +i {STATE_DIR}")
    try:
        service.wait_for(mark, "condition.begun", condition="store")
        service.wait_for_audit(stored=False)
    finally:
        machine.output(f"chattr -R -i {STATE_DIR}")
    if service.pid == pid:
        _recovers_with_a_gap(service, mark, since)
    else:  # what it had lost is lost with it
        service.wait_for_audit(stored=True)
    assert service["ActiveState"] == "active"


def _recovers_with_a_gap(service: AuditService, mark: str, since: str) -> None:
    service.wait_for(mark, "condition.over", condition="store")
    said = [entry.pid for entry in service.entries(mark) if entry.says("condition.begun", {"condition": "store"})]
    assert len(said) == len(set(said)), "each process says it once"
    gaps = service.gaps(since)
    assert [gap["dropped"] > 0 for gap in gaps] == [True], gaps


def _now(machine: Machine) -> str:
    return machine.output("date -u +%FT%TZ").strip()
