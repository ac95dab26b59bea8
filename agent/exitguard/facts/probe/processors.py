"""Which CPU may be measured on: one that is nobody's own, and the least busy of those."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from exitguard.facts.probe.errors import CannotMeasureError
from exitguard.facts.tree import HostTree

_CPUS = "/sys/devices/system/cpu"
_STAT = "/proc/stat"
#: One line for every interrupt source of every CPU: large hosts have megabytes.
_STAT_LIMIT_BYTES = 16 << 20
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
#: CONFIG_NR_CPUS of any kernel is at most this.
_MOST_CPUS = 8192
_CPU_LINE = re.compile(r"^cpu([0-9]{1,5})((?: [0-9]{1,20})+)$", re.MULTILINE)
#: Columns of /proc/stat (proc(5)): user nice system idle iowait irq softirq steal.
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
#: QEMU's threads that run a vCPU (accel/kvm/kvm-accel-ops.c).
_VCPU_THREAD = re.compile(r"CPU [0-9]+/KVM")
_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*([0-9,-]+)$", re.MULTILINE)
_PID = re.compile(r"[0-9]{1,10}")
_WATCHED_SECONDS = 0.2


@dataclass(frozen=True)
class CpuTimes:
    """What one CPU did since boot, in USER_HZ."""

    idle: int
    total: int
    steal: int | None


def parse_cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list such as `0-3,8` (cpuset(7)); an empty list, `(null)` or anything else that is none gives none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
            found.update(range(first, min(last, _MOST_CPUS) + 1))
    return frozenset(found)


def parse_cpu_times(text: str) -> dict[int, CpuTimes]:
    """By CPU, its times out of /proc/stat."""
    found = {}
    for match in _CPU_LINE.finditer(text):
        columns = [int(column) for column in match[2].split()]
        if len(columns) > _IDLE:
            idle = columns[_IDLE] + (columns[_IOWAIT] if len(columns) > _IOWAIT else 0)
            steal = columns[_STEAL] if len(columns) > _STEAL else None
            found[int(match[1])] = CpuTimes(idle=idle, total=sum(columns[: _STEAL + 1]), steal=steal)
    return found


def read_cpu_times(tree: HostTree) -> dict[int, CpuTimes]:
    """By CPU, its times; empty where /proc/stat cannot be read."""
    text = tree.read_text(_STAT, limit_bytes=_STAT_LIMIT_BYTES)
    return parse_cpu_times(text.value or "")


def dedicated_cpus(tree: HostTree) -> dict[int, str]:
    """The CPUs that are somebody's own, and why: set apart at boot, or a guest's vCPU is pinned to that one alone."""
    found: dict[int, str] = {}
    for cpu, thread in _pinned_vcpus(tree):
        found.setdefault(cpu, f"a guest's vCPU is pinned to it alone (thread {thread})")
    for name in ("nohz_full", "isolated"):
        for cpu in parse_cpu_list(tree.read_text(f"{_CPUS}/{name}").value or ""):
            found[cpu] = f"it is in {_CPUS}/{name}"
    for cpu in tuple(found):
        # The other hyperthread of a core is no CPU apart: what runs on it slows the dedicated one.
        for sibling in parse_cpu_list(tree.read_text(f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list").value or ""):
            found.setdefault(sibling, f"it shares a core with CPU {cpu}, of which {found[cpu]}")
    return found


def _pinned_vcpus(tree: HostTree) -> list[tuple[int, str]]:
    found = []
    for process in tree.names("/proc").value or ():
        # One of QEMU's threads is as good as any to tell whether a process is QEMU; most processes are not, and cost one look.
        if not _PID.fullmatch(process) or not (tree.read_text(f"/proc/{process}/comm").value or "").startswith(("qemu", "kvm", "CPU ")):
            continue
        for thread in tree.names(f"/proc/{process}/task").value or ():
            folder = f"/proc/{process}/task/{thread}"
            if not _VCPU_THREAD.fullmatch(tree.read_text(f"{folder}/comm").value or ""):
                continue
            allowed = _ALLOWED.search(tree.read_text(f"{folder}/status").value or "")
            cpus = parse_cpu_list(allowed[1]) if allowed is not None else frozenset()
            found += [(cpu, thread) for cpu in cpus if len(cpus) == 1]
    return found


def choose_cpu(tree: HostTree, allowed: frozenset[int], asked: int | None) -> int:
    """The CPU to measure on: the one asked for, else the least busy. Raises CannotMeasureError where it is somebody's own."""
    dedicated = dedicated_cpus(tree)
    if asked is not None:
        if asked not in allowed:
            listed = ", ".join(map(str, sorted(allowed)))
            raise CannotMeasureError(f"CPU {asked} is not one that this process may run on: {listed}", "give --cpu one of these")
        if asked in dedicated:
            raise CannotMeasureError(
                f"CPU {asked} is dedicated: {dedicated[asked]}", "give --cpu another, or none: the least busy is chosen"
            )
        return asked
    candidates = sorted(allowed - dedicated.keys())
    if not candidates:
        raise CannotMeasureError(
            "every CPU that this process may run on is dedicated (isolated, nohz_full, or a guest's vCPU is pinned to it alone)",
            "run it where a housekeeping CPU is allowed (taskset), or in a maintenance window of the host",
        )
    return _least_busy(tree, candidates) if len(candidates) > 1 else candidates[0]


def _least_busy(tree: HostTree, candidates: list[int]) -> int:
    before = read_cpu_times(tree)
    time.sleep(_WATCHED_SECONDS)
    return least_busy(before, read_cpu_times(tree), candidates)


def least_busy(before: Mapping[int, CpuTimes], after: Mapping[int, CpuTimes], candidates: list[int]) -> int:
    """The candidate that was idle for the largest share between two readings; the first where that is not known."""
    shares = {}
    for cpu in candidates:
        if cpu in before and cpu in after and after[cpu].total > before[cpu].total:
            shares[cpu] = (after[cpu].idle - before[cpu].idle) / (after[cpu].total - before[cpu].total)
    return max(candidates, key=lambda cpu: shares.get(cpu, 0.0))
