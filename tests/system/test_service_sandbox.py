"""What the service may not do, and what it sees all the same: docs/operations.md, held against the real unit."""

import json
from pathlib import Path
from typing import Any

import pytest
from audit_service import SETTINGS, UNIT, AuditService

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

OPERATIONS = (Path(__file__).parents[2] / "docs/operations.md").read_text()
OBSERVED = {"source", "value", "reason", "unlock"}
#: What docs/operations.md says is lost without CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.
LOST_WITHOUT_PRIVILEGE = {"/host/identity/dmi_uuid", "/host/unmanaged"}
EXECUTABLE = "/domains/0/process/value/executable"
#: Sources that the sandbox is most likely to shut: see docs/operations.md, "These are left out on purpose".
EASILY_LOST = {
    *("/host/kernel/symbols", "/host/kernel/installed", "/host/kernel/boots_next", "/host/kernel/changelog", "/host/kvm/device"),
    *("/host/cpu", "/host/mitigations", "/host/libvirt/listing", EXECUTABLE),
}


def documented_drop_in(after: str) -> str:
    """The first drop-in that docs/operations.md shows after these words."""
    lines = OPERATIONS[OPERATIONS.index(after) :].splitlines()
    start = next(at for at, line in enumerate(lines) if line.strip() == "[Service]")
    end = next(at for at in range(start, len(lines)) if not lines[at].strip())
    return "\n".join(line.strip() for line in lines[start:end]) + "\n"


def observed(document: Any, place: str = "") -> dict[str, dict[str, Any]]:
    """Each fact of a facts document by its place in it; of one whose value holds facts, also those."""
    if isinstance(document, list):
        document = {str(at): value for at, value in enumerate(document)}
    if not isinstance(document, dict):
        return {}
    found = {place: document} if set(document) == OBSERVED else {}
    for name, value in document.items():
        found |= observed(value, f"{place}/{name}")
    return found


def facts_of_the_unit(service: AuditService) -> dict[str, dict[str, Any]]:
    """`exitguard facts` run by a unit with every setting of the audit unit, drop-ins included, but those that belong to its verb."""
    verb = "ExecStart=/usr/bin/exitguard facts --format json --output /var/lib/exitguard/facts.json"
    edits = f"-e 's#^ExecStart=.*#{verb}#' -e 's/^Type=.*/Type=oneshot/' -e '/^\\(WatchdogSec\\|Restart\\|ExecReload\\|#\\)/d'"
    copy = f"systemctl cat {UNIT} | sed {edits} >/run/systemd/system/exitguard-facts.service"
    service.machine.output(f"{copy} && systemctl daemon-reload && systemctl start exitguard-facts.service", timeout=300)
    return observed(json.loads(service.machine.output("cat /var/lib/exitguard/facts.json")))


def values(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was seen, without how; a value that holds facts is told by those."""
    return {place: fact["value"] for place, fact in facts.items() if fact["value"] is not None and not observed(fact["value"])}


def test_daemon_runs_as_its_own_user_without_any_privilege(service: AuditService) -> None:
    status = service.machine.output(f"cat /proc/{service.pid}/status")
    fields = {name: words.split() for name, _, words in (line.partition(":") for line in status.splitlines())}
    assert set(fields["Uid"]) == {service.machine.output("id -u exitguard").strip()}
    assert {int(fields[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == (["1"], ["2"])
    kvm = service.machine.output("getent group kvm").split(":")[2]
    assert kvm in fields["Groups"]


def test_even_root_could_write_nowhere_but_to_the_state_from_where_the_daemon_sits(service: AuditService) -> None:
    inside = f"nsenter --target {service.pid} --mount"
    for place in ("/etc/exitguard", "/usr", "/opt/exitguard", "/boot", "/var/lib/libvirt", "/var/lib/exitguard-remedy", "/sys/fs/cgroup"):
        attempt = service.machine.run(f"{inside} touch {place}/written-by-exitguard")
        assert "Read-only file system" in attempt.stderr, (place, attempt)
    attempt = service.machine.run(f"{inside} sh -c 'echo 4 >/proc/sys/kernel/printk'")
    assert "Read-only file system" in attempt.stderr, attempt
    assert not service.machine.output(f"{inside} find /root /home -mindepth 1 2>/dev/null || true"), "ProtectHome"
    service.machine.output(f"{inside} sh -c 'touch /var/lib/exitguard/probe && rm /var/lib/exitguard/probe'")


def test_sandbox_denies_no_evidence_but_what_the_documentation_says(service: AuditService, guest: str) -> None:
    root, unit = observed(service.exitguard("facts")), facts_of_the_unit(service)
    assert guest
    seen_by_root, seen_by_unit = values(root), values(unit)
    assert not {place for place in EASILY_LOST if unit[place]["value"] is None}
    assert set(seen_by_root) - set(seen_by_unit) == LOST_WITHOUT_PRIVILEGE
    assert {place: seen_by_root[place] for place in seen_by_unit} == seen_by_unit
    assert "unchanged since" in unit[EXECUTABLE]["source"], "as docs/operations.md says: not the process's own link"
    for place in LOST_WITHOUT_PRIVILEGE:
        assert "CAP_DAC_READ_SEARCH" in unit[place]["unlock"], unit[place]


@pytest.mark.parametrize(
    ("words", "lost"),
    [("1. Every running guest's program", LOST_WITHOUT_PRIVILEGE), ("2. All that can be shown", set())],
    ids=["ptrace", "all"],
)
def test_documented_drop_in_grants_what_it_says(service: AuditService, guest: str, words: str, lost: set[str]) -> None:
    service.drop_in(documented_drop_in(words))
    unit = facts_of_the_unit(service)
    assert guest
    assert unit[EXECUTABLE]["source"] == "/proc/<pid>/exe"
    assert {place for place in LOST_WITHOUT_PRIVILEGE if unit[place]["value"] is None} == lost
    service.restart()
    service.wait_for_audit(stored=True)


def test_metrics_are_served_with_the_documented_drop_in(service: AuditService) -> None:
    service.drop_in(documented_drop_in("set `metrics_listen`"))
    service.configure(SETTINGS + "metrics_listen: 127.0.0.1:9478\n")
    service.restart()
    service.wait_for_audit()
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9478/metrics', timeout=60).read().decode())"
    served = service.machine.output(f'python3 -c "{fetch}"').splitlines()
    assert 'exitguard_job_runs_total{job="audit",outcome="finished"} 1.0' in served
    assert "exitguard_libvirt_connected 1.0" in served
    assert "exitguard_compliance_exit_code 2.0" in served


def test_without_that_drop_in_the_service_says_what_keeps_the_metrics_away(service: AuditService) -> None:
    mark = service.mark()
    service.configure(SETTINGS + "metrics_listen: 127.0.0.1:9478\n")
    service.reload()
    begun = service.wait_for(mark, "condition.begun", condition="metrics")
    assert "RestrictAddressFamilies" in begun["reason"]
    service.wait_for_audit()
