"""The daemon at rest beside 500 domains: memory, and CPU by its default intervals. `python bench/idle_500.py [--domains N]`, as root.

Memory is compared with the least that could do it: a Python process that holds a connection and listens for events with
libvirt-python. CPU is what an audit, a sample and the rest take, spread over the default intervals.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))

from nova_domain import domain_xml
from private_libvirtd import private_libvirtd
from running_daemon import running_daemon

from exitguard.config import Settings

_GOAL_MIB = 80.0
_GOAL_PERCENT = 0.3
_REST_SECONDS = 60.0
_LISTENER = """
import libvirt, sys, time
libvirt.virEventRegisterDefaultImpl()
connection = libvirt.openReadOnly(sys.argv[1])
connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda *event: None, None)
print("ready", flush=True)
while True:
    libvirt.virEventRunDefaultImpl()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="memory and CPU of the daemon at rest")
    parser.add_argument("--domains", type=int, default=500)
    domains = parser.parse_args().domains
    with private_libvirtd() as libvirtd, tempfile.TemporaryDirectory() as folder:
        kind = "kvm" if libvirtd.has_kvm() else "qemu"
        for number in range(domains):
            libvirtd.define(domain_xml(number, type=kind))
        settings = {"connect": libvirtd.uri, "audit_interval_seconds": 3600, "sample_interval_seconds": 3600}
        with running_daemon(Path(folder), settings) as daemon, _listener(libvirtd.uri) as peer:
            daemon.wait_for_event("audit.finished", job="audit")
            audits = []
            for _ in range(5):
                before, count = _cpu_seconds(daemon.pid), len(daemon.named("audit.finished"))
                daemon.reload()
                daemon.wait_for("another audit", lambda count=count: len(daemon.named("audit.finished")) > count)
                time.sleep(1)
                audits.append(_cpu_seconds(daemon.pid) - before)
            before = _cpu_seconds(daemon.pid)
            time.sleep(_REST_SECONDS)
            rest = (_cpu_seconds(daemon.pid) - before) / _REST_SECONDS
            versions = libvirtd.versions
            memory, least = _memory_mib(daemon.pid), _memory_mib(peer.pid)
            peer.kill()
            daemon.end()
    audit = sorted(audits)[len(audits) // 2]
    percent = 100 * (rest + audit / Settings.model_fields["audit_interval_seconds"].default)
    print(f"{versions}, {domains} shut-off domains of type {kind}")
    print(f"memory  {memory:.1f} MiB RSS, {memory / least:.1f} x a bare listener ({least:.1f} MiB); {_goal(memory, _GOAL_MIB, 'MiB')}")
    print(f"CPU     {percent:.3f} % of a core (an audit {audit:.2f} s, at rest {100 * rest:.3f} %); {_goal(percent, _GOAL_PERCENT, '%')}")
    return 0


def _listener(uri: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", _LISTENER, uri], stdout=subprocess.PIPE)
    if process.stdout is None or process.stdout.readline() != b"ready\n":
        raise RuntimeError("the bare listener did not start")
    return process


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def _goal(value: float, goal: float, unit: str) -> str:
    return f"goal {goal:g} {unit}: {'met' if value <= goal else 'not met'}"


if __name__ == "__main__":
    sys.exit(main())
