"""Exits traced from within the service's sandbox, with the documented drop-in, on a real KVM whose guest makes nothing but CPUID exits."""

import json
import re
from pathlib import Path

import pytest
from audit_service import UNIT, AuditService

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

OPERATIONS = (Path(__file__).parents[2] / "docs/operations.md").read_text()
TRACING_UNIT = "/run/systemd/system/exitguard-trace.service"
#: The guest of `exitguard measure` runs in its main thread.
GUEST = "exitguard measure --loop cpuid --iterations 2000 --rounds 10000 --seconds 60"
TRACE = """
import sys
from exitguard.facts.traced_exits import trace_exits
from exitguard.facts.tree import HostTree
from exitguard.savings.exit_reasons import SKIP_REASONS
found = trace_exits(HostTree(), {"guest": [int(sys.argv[1])]}, SKIP_REASONS["svm"], 2.0)
print(found.model_dump_json())
"""


def drop_in() -> str:
    after = OPERATIONS[OPERATIONS.index("3. How many exits skip") :]
    found = re.search(r"^ +\[Service\]\n(?: +\S.*\n)+", after, re.MULTILINE)
    assert found is not None
    return "\n".join(line.strip() for line in found[0].splitlines()) + "\n"


def traced(service: AuditService, thread: str) -> dict[str, object]:
    """What a unit with every setting of the audit unit, drop-ins included, traces of a thread."""
    machine = service.machine
    machine.write("/run/exitguard-trace.py", TRACE)
    run = f"ExecStart=/opt/exitguard/bin/python -I -B /run/exitguard-trace.py {thread}"
    out = "StandardOutput=truncate:/run/exitguard-trace.json"
    edits = f"-e 's#^ExecStart=.*#{run}\\n{out}#' -e 's/^Type=.*/Type=oneshot/' -e '/^\\(WatchdogSec\\|Restart\\|ExecReload\\|#\\)/d'"
    install = f"systemctl cat {UNIT} | sed {edits} >{TRACING_UNIT} && systemctl daemon-reload"
    machine.output(f"{install} && systemctl start exitguard-trace.service", timeout=120)
    found: dict[str, object] = json.loads(machine.output("cat /run/exitguard-trace.json"))
    return found


def counted_by_the_kernel(service: AuditService, thread: str) -> dict[int, int]:
    """The exits of a thread in a second by reason, by the kernel's own histogram: what the guest really does."""
    here = "/sys/kernel/tracing/instances/test"
    hist = "hist:keys=exit_reason if common_pid == " + thread
    text = service.machine.output(
        f"mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing; mkdir {here}; "
        f"echo '{hist}' >{here}/events/kvm/kvm_exit/trigger; sleep 1; cat {here}/events/kvm/kvm_exit/hist; rmdir {here}"
    )
    return {int(reason): int(hits) for reason, hits in re.findall(r"exit_reason: +([0-9]+) } hitcount: +([0-9]+)", text)}


def start_guest(service: AuditService) -> str:
    """The thread of a guest that makes CPUID exits by now; it does so for less than a minute."""
    service.machine.output(f"nohup {GUEST} >/run/measure.log 2>&1 & echo $! >/run/measure.pid")
    thread = service.machine.output("cat /run/measure.pid").strip()
    service.machine.wait_until("the guest makes CPUID exits", lambda: is_on_track(counted_by_the_kernel(service, thread)), timeout=120)
    return thread


def is_on_track(exits: dict[int, int]) -> bool:
    return exits.get(0x72, 0) >= 0.9 * sum(exits.values()) > 100


def test_exits_are_traced_with_the_documented_drop_in_and_not_without(service: AuditService) -> None:
    machine = service.machine
    paranoid = machine.output("sysctl -n kernel.perf_event_paranoid").strip()
    thread = start_guest(service)
    try:
        without = traced(service, thread)
        service.drop_in(drop_in())
        refused = traced(service, thread)
        machine.output(f"kill -9 {thread}; sysctl -w kernel.perf_event_paranoid=2")
        thread = start_guest(service)
        found = traced(service, thread)
        really = counted_by_the_kernel(service, thread)
    finally:
        machine.output(f"sysctl -w kernel.perf_event_paranoid={paranoid}")
        log = machine.output(f"kill -9 {thread}; cat /run/measure.log; rm -f {TRACING_UNIT}; systemctl daemon-reload")
    assert without["value"] is None
    assert "CAP_PERFMON" in str(without["unlock"])
    assert refused["value"] is None, "Debian's own default"
    assert "perf_event_paranoid" in str(refused["unlock"])
    assert found["reason"] is None, (found, log)
    value = found["value"]
    assert isinstance(value, dict)
    guest = value["guest"]
    assert guest["exits"] > 1000, (found, log)
    # Nearly all are CPUID; the rest are interrupts of the host, and the one port that ends a round.
    assert guest["skip_exits_low"] >= 0.9 * guest["exits"], (found, really, log)
    assert guest["skip_exits_low"] <= guest["skip_exits_high"] <= guest["exits"]
