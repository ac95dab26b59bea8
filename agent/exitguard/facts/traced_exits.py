"""How often each run of a guest exits for which kind of reason, traced for a short time: counters of perf on the tracepoint kvm:kvm_exit.

Three counters for each vCPU thread: all exits, those whose reason always skips an instruction, and those whose reason may. The kernel
counts; nothing is recorded. A counter is a descriptor of this process, so that the kernel removes it however the process ends, and
nothing else on the host changes: no file of tracefs is written.
"""

import ctypes
import errno
import fcntl
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from exitguard.facts.tree import HostTree, why
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import SampledExits, SkipReasons

_SOURCE = "tracepoint kvm:kvm_exit"
_EVENTS = ("/sys/kernel/tracing/events/kvm/kvm_exit", "/sys/kernel/debug/tracing/events/kvm/kvm_exit")
_UNLOCK = "root; or CAP_PERFMON, CAP_DAC_READ_SEARCH and kernel.perf_event_paranoid of at most 2 (docs/operations.md, drop-in 3)"
_CPUS = "/sys/devices/system/cpu"
#: Of the patch set; a mainline kernel (PREEMPT_RT since 6.12) says it in its version alone.
_REALTIME = "/sys/kernel/realtime"
_VERSION = "/proc/sys/kernel/version"
_REALTIME_VERSION = re.compile(r"\bPREEMPT[_ ]RT\b")
_NUMBER = re.compile(r"[0-9]{1,9}")
#: QEMU's threads that run a vCPU (accel/kvm/kvm-accel-ops.c).
_VCPU_THREAD = re.compile(r"CPU [0-9]+/KVM")
#: Three descriptors each; a process may have 1,024 by default.
MOST_THREADS = 128

#: <linux/perf_event.h>: struct perf_event_attr up to PERF_ATTR_SIZE_VER5, of which only the first fields are set.
_ATTRIBUTES = struct.Struct("=IIQQQQQ64x")
_TYPE_TRACEPOINT = 2
_FORMAT_GROUP = 1 << 3
_FLAG_DISABLED = 1 << 0
_OPEN_CLOEXEC = 1 << 3
_IOC_ENABLE, _IOC_DISABLE = 0x2400, 0x2401
_IOC_SET_FILTER = 0x40082406
_IOC_FLAG_GROUP = 1
#: perf_event_open(2) on x86-64.
_SYSCALL = 298
#: How many counters the group has, and each of them.
_GROUP = struct.Struct("=QQQQ")
_MEMBERS = 3
_FORBIDDEN = {errno.EPERM, errno.EACCES}


def why_never(tree: HostTree) -> str | None:
    """Why nothing may be traced on this host at all; None where it may. Whether the kernel is a real-time one has to be known for that."""
    version = tree.read_text(_VERSION)
    if version.value is None:
        return f"whether this kernel is PREEMPT_RT is not known: {version.reason}"
    if (tree.read_text(_REALTIME).value or "").strip() == "1" or _REALTIME_VERSION.search(version.value):
        return "this kernel is PREEMPT_RT, whose latencies a trace would spoil"
    for name in ("nohz_full", "isolated"):
        cpus = (tree.read_text(f"{_CPUS}/{name}").value or "").strip()
        if cpus and cpus != "(null)":
            return f"CPUs are set apart for undisturbed work ({name}: {cpus[:100]})"
    return None


def vcpu_threads(tree: HostTree, pid: int) -> tuple[int, ...]:
    """The threads of a QEMU process that run its vCPUs; none where it has ended, or runs no vCPU by KVM."""
    threads = [name for name in tree.names(f"/proc/{pid}/task").value or () if _NUMBER.fullmatch(name)]
    return tuple(
        sorted(int(name) for name in threads if _VCPU_THREAD.fullmatch(tree.read_text(f"/proc/{pid}/task/{name}/comm").value or ""))
    )


def trace_exits(
    tree: HostTree, runs: Mapping[str, Sequence[int]], reasons: SkipReasons, seconds: float
) -> Observed[dict[str, SampledExits]]:
    """By run, what its threads did in `seconds`; of the first runs, up to MOST_THREADS threads. A run that has ended is left out.

    Blocks for `seconds`.
    """
    never = why_never(tree)
    if never is not None:
        return unseen(_SOURCE, never)
    events = next((path for path in _EVENTS if tree.exists(f"{path}/id")), None)
    number = tree.read_text(f"{events or _EVENTS[0]}/id")
    if number.value is None or not _NUMBER.fullmatch(number.value.strip()):
        return unseen(_SOURCE, number.reason or f"{number.source}: expected a number", unlock=_UNLOCK)
    tracepoint = int(number.value)
    with ExitStack() as stack:
        counters: list[tuple[str, int]] = []
        try:
            for run, thread in _first(runs):
                group = _open_group(stack, tracepoint, thread, reasons)
                if group is not None:
                    counters.append((run, group))
            begin = time.monotonic_ns()
            for _, group in counters:
                fcntl.ioctl(group, _IOC_ENABLE, _IOC_FLAG_GROUP)
            time.sleep(seconds)
            for _, group in counters:
                fcntl.ioctl(group, _IOC_DISABLE, _IOC_FLAG_GROUP)
            milliseconds = (time.monotonic_ns() - begin) // 1_000_000
            return seen(_SOURCE, _added_up(counters, milliseconds))
        except OSError as error:
            return unseen(_SOURCE, f"perf_event_open: {why(error)}", unlock=_UNLOCK if error.errno in _FORBIDDEN else None)


def _first(runs: Mapping[str, Sequence[int]]) -> Iterable[tuple[str, int]]:
    """The threads of the first runs, as many as may be traced at once; a run is traced with all of its threads or not at all."""
    left = MOST_THREADS
    for run, threads in runs.items():
        if len(threads) <= left:
            left -= len(threads)
            yield from ((run, thread) for thread in threads)


def _open_group(stack: ExitStack, tracepoint: int, thread: int, reasons: SkipReasons) -> int | None:
    """The leader of the three counters of a thread; None where the thread has ended. Raises OSError."""
    try:
        leader = _open(stack, tracepoint, thread, -1)
        for chosen in (reasons.always, reasons.sometimes):
            counter = _open(stack, tracepoint, thread, leader)
            fcntl.ioctl(counter, _IOC_SET_FILTER, _filter(chosen))
    except ProcessLookupError:
        return None
    return leader


def _open(stack: ExitStack, tracepoint: int, thread: int, leader: int) -> int:
    flags = _FLAG_DISABLED if leader < 0 else 0
    attributes = _ATTRIBUTES.pack(_TYPE_TRACEPOINT, _ATTRIBUTES.size, tracepoint, 0, 0, _FORMAT_GROUP, flags)
    library = ctypes.CDLL(None, use_errno=True)
    number = library.syscall(ctypes.c_long(_SYSCALL), attributes, thread, -1, leader, ctypes.c_ulong(_OPEN_CLOEXEC))
    if number < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    stack.callback(os.close, number)
    return int(number)


def _filter(chosen: Iterable[int]) -> bytes:
    """A filter of the kernel's (Documentation/trace/events.rst); one that nothing passes where nothing is chosen."""
    ranges: list[list[int]] = []
    for number in sorted(chosen):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    tests = [f"exit_reason == {first}" if first == last else f"(exit_reason >= {first} && exit_reason <= {last})" for first, last in ranges]
    return (" || ".join(tests) or "exit_reason == 0xffffffff").encode() + b"\0"


def _added_up(counters: Iterable[tuple[str, int]], milliseconds: int) -> dict[str, SampledExits]:
    sums: dict[str, list[int]] = {}
    for run, always, sometimes, exits in _read(counters):
        total = sums.setdefault(run, [0, 0, 0])
        for place, count in enumerate((exits, always, always + sometimes)):
            total[place] += count
    return {
        run: SampledExits(exits=exits, skip_exits_low=min(low, exits), skip_exits_high=min(high, exits), milliseconds=milliseconds)
        for run, (exits, low, high) in sums.items()
    }


def _read(counters: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int, int, int]]:
    """What whole groups counted. Where a thread has ended, the kernel has taken its group apart, and reads zeros for the others."""
    for run, group in counters:
        content = os.read(group, _GROUP.size)
        if len(content) != _GROUP.size:
            continue
        members, exits, always, sometimes = _GROUP.unpack(content)
        if members == _MEMBERS:
            yield run, always, sometimes, exits
