"""The service for real: Debian's systemd, journal and libvirtd, KVM guests on a stock kernel that is affected.

Faults are in test_service_faults.py, what the sandbox lets through in test_service_sandbox.py.
"""

import re

import pytest
from audit_service import CONFIG, EVENTS_ONLY, SETTINGS, UNIT, AuditService, Entry
from guests import DEFINE, DESTROY, GUEST_UUID, START, UNDEFINE, write_guest

# Emulated processors, and audits that are a minute apart.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


# --- installed, enabled, ready --------------------------------------------------------------------------------------------------


def test_enabled_service_is_ready_and_says_how_the_host_stands(service: AuditService) -> None:
    assert (service["ActiveState"], service["SubState"], service["UnitFileState"]) == ("active", "running", "enabled")
    service.machine.wait_until("its status tells of an audit", lambda: "observed" in service["StatusText"])
    assert service["StatusText"].startswith("not compliant"), "this machine's kernel is affected"


def test_scheduled_audit_is_in_the_journal_and_in_the_report(service: AuditService) -> None:
    first = next(entry.event for entry in service.entries() if entry.says("audit.finished", {"job": "audit"}))
    second = service.wait_for_audit(job="audit")
    assert re.fullmatch(r"[0-9a-f]+", first["run_id"])
    assert first["run_id"] != second["run_id"]
    assert (second["host"], second["stored"]) == ("machine", True)
    report = service.report()
    assert report["summary"]["exit_code"] == second["exit_code"] == 2
    assert report["host"]["kernel"]["state"] == "affected"
    assert not report["host"]["id_provisional"]


def test_every_line_of_the_daemon_is_json_with_its_priority(service: AuditService) -> None:
    mark = service.mark()
    service.restart()
    pid = service.pid  # the one before may end an audit after the mark

    def lines() -> list[Entry]:
        return [entry for entry in service.entries(mark) if entry.pid == pid]

    expected = {"daemon.started", "finding", "audit.finished"}
    service.machine.wait_until("it has audited", lambda: expected <= {line.event.get("event") for line in lines()})
    for line in lines():
        assert line.priority == {"info": 6, "warning": 4}[line.event["level"]], line


# --- the watchdog, and the end --------------------------------------------------------------------------------------------------


def test_daemon_that_hangs_is_killed_by_the_watchdog_and_started_again(service: AuditService) -> None:
    service.drop_in("[Service]\nWatchdogSec=20\nRestartSec=1\n")
    service.restart()
    mark, hung = service.mark(), service.pid
    service.machine.output(f"kill -STOP {hung}")
    service.machine.wait_until("another process runs", lambda: service["ActiveState"] == "active" and service.pid not in {0, hung})
    service.wait_for_audit(mark, stored=True)
    said = [entry.message for entry in service.entries(mark)]
    assert any("Watchdog timeout" in message for message in said), said
    assert service["NRestarts"] == "1"


def test_daemon_ends_cleanly_in_the_middle_of_an_audit(service: AuditService, guest: str) -> None:
    machine = service.machine
    machine.output("systemctl kill --signal=STOP libvirtd")
    try:
        mark = service.mark()
        service.restart()  # its first audit waits for libvirtd
        machine.output(f"systemctl stop {UNIT}", timeout=120)
        assert service.events(mark, "audit.finished") == []
        assert (service["ActiveState"], service["Result"], service["ExecMainStatus"]) == ("inactive", "success", "0")
        assert service.events(mark, "daemon.ended")
    finally:
        machine.output("systemctl kill --signal=CONT libvirtd")
    assert guest in {domain["uuid"] for domain in service.report()["domains"]}, "the last audit that was stored"


# --- reload ---------------------------------------------------------------------------------------------------------------------


def test_reload_takes_up_a_new_policy(service: AuditService) -> None:
    machine, pid = service.machine, service.pid
    policy = "$(find /opt/exitguard -name pmu-off.yaml)"
    machine.output(f"sed 's/^version: .*/version: \"7.7\"/' {policy} >/etc/exitguard/policy.yaml")
    service.configure(SETTINGS + "policy_files: [/etc/exitguard/policy.yaml]\n")
    mark = service.mark()
    service.reload()
    assert service.wait_for(mark, "reload.applied")["policy"] == "pmu-off 7.7"
    service.wait_for_audit(mark, stored=True)
    assert "7.7" in service.report()["policy"]
    assert (service["ActiveState"], service.pid) == ("active", pid)


def test_reload_of_a_bad_policy_keeps_the_old_one_and_says_so_once(service: AuditService) -> None:
    pid, before = service.pid, service.report()["policy"]
    service.machine.write("/etc/exitguard/policy.yaml", "kind: policy\nrules: garbage\n")
    service.configure(SETTINGS + "policy_files: [/etc/exitguard/policy.yaml]\n")
    mark = service.mark()
    service.reload()
    assert "/etc/exitguard/policy.yaml" in service.wait_for(mark, "reload.refused")["problem"]
    service.wait_for_audit(stored=True)
    assert service.report()["policy"] == before
    assert len(service.events(mark, "condition.begun", condition="reload")) == 1
    assert (service["ActiveState"], service.pid) == ("active", pid)


def test_reload_of_bad_settings_keeps_the_old_ones_until_they_are_mended(service: AuditService) -> None:
    pid = service.pid
    service.configure(SETTINGS + "audit_interval: 5\n")
    mark = service.mark()
    service.reload()
    assert f"{CONFIG}:3" in service.wait_for(mark, "reload.refused")["problem"]
    service.configure(SETTINGS)
    service.reload()
    service.wait_for(mark, "reload.applied")
    service.wait_for(mark, "condition.over", condition="reload")
    assert service.pid == pid


# --- the guests -----------------------------------------------------------------------------------------------------------------


def test_domain_is_judged_again_at_every_change_of_its_life(service: AuditService) -> None:
    machine = service.machine
    service.configure(EVENTS_ONLY)
    service.reload()
    write_guest(machine)
    try:
        for command, chain in ((DEFINE, "not_running"), (START, "unguarded"), (DESTROY, "not_running")):
            mark = service.mark()
            machine.output(command)
            judged = service.wait_for(mark, "domain.judged", domain=GUEST_UUID, chain=chain)
            assert (judged["name"], judged["job"]) == ("guest", "events")
            assert service.chain_state("guest") == chain
        mark = service.mark()
        machine.output(UNDEFINE)
        service.wait_for(mark, "domain.gone", domain=GUEST_UUID)
        assert service.chain_state("guest") is None
    finally:
        machine.run(f"{DESTROY}; {UNDEFINE}")
