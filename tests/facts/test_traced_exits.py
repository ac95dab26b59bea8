"""Exits traced by perf: on this machine's own tracepoint, and what is told where that may not be."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from exitguard.facts.traced_exits import MOST_THREADS, _added_up, _filter, _first, trace_exits, vcpu_threads, why_never
from exitguard.facts.tree import HostTree
from exitguard.model.samples import SkipReasons

REASONS = SkipReasons(always=frozenset({0x72, 0x78}), sometimes=frozenset({*range(0x40), 0x7C}))
#: In mounts of its own, so that tracefs is there whatever this machine has mounted: a vCPU thread, and what was traced of it; then
#: the descriptors that are left.
TRACE = """
import json, os, threading, time
from exitguard.facts.traced_exits import trace_exits
from exitguard.facts.tree import HostTree
from exitguard.model.samples import SkipReasons
before = set(os.listdir("/proc/self/fd"))
end = threading.Event()
worker = threading.Thread(target=end.wait)
worker.start()
reasons = SkipReasons(always=frozenset({0x72, 0x78}), sometimes=frozenset({*range(0x40), 0x7C}))
found = trace_exits(HostTree(), {"run": [worker.native_id], "ended": [2**22 - 1]}, reasons, 0.05)
end.set()
worker.join()
print(json.dumps([found.model_dump(mode="json"), sorted(set(os.listdir("/proc/self/fd")) ^ before)]))
"""


def in_own_mounts(*command: str) -> subprocess.CompletedProcess[str]:
    mounting = 'mount -t tracefs tracefs /sys/kernel/tracing && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounting, "sh", *command], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def tracefs() -> None:
    if os.geteuid() != 0 or in_own_mounts("test", "-e", "/sys/kernel/tracing/events/kvm/kvm_exit/id").returncode:
        pytest.skip("no tracepoint kvm:kvm_exit that this user may use")


@pytest.mark.usefixtures("tracefs")
def test_thread_is_traced_and_nothing_is_left_open() -> None:
    traced = in_own_mounts(sys.executable, "-c", TRACE)
    assert traced.returncode == 0, traced.stderr
    found, left = json.loads(traced.stdout)
    assert found["reason"] is None, found
    assert found["value"].keys() == {"run"}
    run = found["value"]["run"]
    assert run["milliseconds"] >= 50
    assert (run["exits"], run["skip_exits_low"], run["skip_exits_high"]) == (0, 0, 0)  # it runs no guest
    assert left == []


@pytest.mark.usefixtures("tracefs")
def test_user_without_the_privilege_is_told_which() -> None:
    dropped = TRACE.replace("reasons =", "os.setgroups([]); os.setgid(65534); os.setuid(65534)\nreasons =", 1)
    traced = in_own_mounts(sys.executable, "-c", dropped)
    assert traced.returncode == 0, traced.stderr
    found, _ = json.loads(traced.stdout)
    assert found["value"] is None
    assert "CAP_PERFMON" in found["unlock"]


VERSION = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)\n"


def host(folder: Path, **files: str) -> HostTree:
    for name, content in ({"proc__sys__kernel__version": VERSION} | files).items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return HostTree(folder)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"sys__kernel__realtime": "1\n"}, "PREEMPT_RT"),
        ({"proc__sys__kernel__version": "#1 SMP PREEMPT_RT Debian 6.12.41-1 (2026-08-12)\n"}, "PREEMPT_RT"),
        ({"proc__sys__kernel__version": "#1 SMP PREEMPT RT Wed Jul 2 2025\n"}, "PREEMPT_RT"),
        ({"sys__devices__system__cpu__nohz_full": "2-7\n"}, "nohz_full: 2-7"),
        ({"sys__devices__system__cpu__isolated": "3\n"}, "isolated: 3"),
    ],
)
def test_host_with_undisturbed_cpus_is_never_traced(tmp_path: Path, files: dict[str, str], said: str) -> None:
    tree = host(tmp_path, **files)
    assert said in (why_never(tree) or "")
    assert said in (trace_exits(tree, {"run": [os.getpid()]}, REASONS, 0.0).reason or "")


def test_other_hosts_may_be(tmp_path: Path) -> None:
    none = {"sys__kernel__realtime": "0\n", "sys__devices__system__cpu__nohz_full": "(null)\n", "sys__devices__system__cpu__isolated": "\n"}
    assert why_never(host(tmp_path, **none)) is None
    assert why_never(host(tmp_path / "none")) is None


def test_host_without_the_tracepoint_is_told_so(tmp_path: Path) -> None:
    found = trace_exits(host(tmp_path), {"run": [os.getpid()]}, REASONS, 0.0)
    assert found.value is None
    assert found.unlock is not None
    odd = host(tmp_path, sys__kernel__tracing__events__kvm__kvm_exit__id="many\n")
    assert "expected a number" in (trace_exits(odd, {}, REASONS, 0.0).reason or "")


def test_only_threads_that_run_vcpus_are_traced(tmp_path: Path) -> None:
    names = {"10": "qemu-system-x86", "11": "CPU 0/KVM", "12": "CPU 1/KVM", "13": "IO mon_iothread", "14": "CPU 0/TCG"}
    tree = host(tmp_path, **{f"proc__10__task__{thread}__comm": f"{name}\n" for thread, name in names.items()})
    assert vcpu_threads(tree, 10) == (11, 12)
    assert vcpu_threads(tree, 99) == ()


def test_run_is_traced_whole_or_not_at_all() -> None:
    runs = {"large": range(MOST_THREADS - 1), "next": range(2), "small": range(1)}
    assert [run for run, _ in _first(runs)] == ["large"] * (MOST_THREADS - 1) + ["small"]


def test_reasons_become_ranges_of_a_filter() -> None:
    assert _filter({1, 2, 3, 7}) == b"(exit_reason >= 1 && exit_reason <= 3) || exit_reason == 7\0"
    assert _filter(()) == b"exit_reason == 0xffffffff\0"


def test_thread_that_ended_while_it_was_traced_counts_for_nothing() -> None:
    """The kernel then reads a group of one, and zeros behind it (seen on Linux 6.1): exits of which none skipped, which is not so."""
    counters = []
    for run, members in (("ended", 1), ("goes on", 3)):
        reading, writing = os.pipe()
        os.write(writing, struct.pack("=QQQQ", members, 57_810, 0 if members == 1 else 50_000, 0))
        os.close(writing)
        counters.append((run, reading))
    try:
        found = _added_up(counters, 2000)
    finally:
        for _, reading in counters:
            os.close(reading)
    assert {run: (each.exits, each.skip_exits_low) for run, each in found.items()} == {"goes on": (57_810, 50_000)}
