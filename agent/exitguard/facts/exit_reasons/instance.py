"""A trace instance of our own below tracefs, by whose name it can be told whose it is; and the removal of those whose process is gone.

An instance is a set of trace buffers and triggers that disturbs nobody else's. The kernel does not remove it with the process that made it,
and what was set in it goes on. So its name says which process that was: by boot, PID namespace, pid and the process's start.
"""

import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exitguard.facts.kernel import read_boot_id
from exitguard.facts.processes import read_start_ticks
from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.model.record import Observed, seen, unseen

#: Its own mount point since Linux 4.1; below debugfs for older programs.
PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
#: Memory that the kernel takes for each CPU of a new instance (TRACE_BUF_SIZE_DEFAULT in kernel/trace/trace.c), until it is told otherwise.
BUFFER_KIB_PER_CPU = 1408
_LEAST_BUFFER_KIB = 4
_NAME = re.compile(r"exitguard-(?P<boot>[0-9a-f]{8})-(?P<namespace>[0-9]{1,20})-(?P<pid>[0-9]{1,10})-(?P<ticks>[0-9]{1,20})")

_one_at_a_time = threading.Lock()


class InstanceError(Exception):
    """There is no trace instance of our own; the message says why."""


def find_tracefs(tree: HostTree) -> str | None:
    """Where tracefs is mounted and may be looked into; None where it is not."""
    return next((place for place in PLACES if tree.exists(f"{place}/events")), None)


def own_name(tree: HostTree) -> str | None:
    """The name of this process's instance, which no other process ever has; None where /proc does not tell enough."""
    boot_id = read_boot_id(tree).value
    ticks = read_start_ticks(tree, os.getpid())
    namespace = _pid_namespace()
    if boot_id is None or ticks is None or namespace is None:
        return None
    return f"exitguard-{boot_id[:8]}-{namespace}-{os.getpid()}-{ticks}"


@contextmanager
def own_instance(tree: HostTree, tracefs: str) -> Iterator[Path]:
    """The folder of an instance of this process's own, removed at the end. Raises InstanceError, OSError."""
    name = own_name(tree)
    if name is None:
        raise InstanceError("/proc does not tell this process's start, by which its trace instance would be recognised")
    if not _one_at_a_time.acquire(blocking=False):
        raise InstanceError("this process is counting exits already")
    instance = Path(tracefs, "instances", name)
    try:
        with contextlib.suppress(FileNotFoundError):
            instance.rmdir()  # an earlier one of this process that somebody had open when it was to go
        instance.mkdir()
        try:
            # Nothing is recorded: only what is set in it counts.
            write(instance / "tracing_on", "0")
            write(instance / "buffer_size_kb", str(_LEAST_BUFFER_KIB))
            yield instance
        finally:
            instance.rmdir()
    finally:
        _one_at_a_time.release()


def remove_leftovers(tree: HostTree) -> Observed[tuple[str, ...]]:
    """The names of the instances that were removed: ours, of processes that are gone. Where one could not be, the reason.

    Nobody else's are touched: not those of another name, of a process that runs, or of another PID namespace, whose processes are not seen.
    """
    tracefs = find_tracefs(tree)
    if not tree.is_this_machine or tracefs is None:
        return seen(PLACES[0], ())
    place = f"{tracefs}/instances"
    names = tree.names(place)
    if names.value is None:
        return Observed(source=place, reason=names.reason, unlock=names.unlock)
    removed = []
    for name in names.value:
        if not is_leftover(tree, name):
            continue
        try:
            Path(place, name).rmdir()
        except FileNotFoundError:
            continue  # another process of ours was faster
        except OSError as error:
            reason = "another process has one of its files open" if error.errno == errno.EBUSY else why(error)
            return unseen(
                f"{place}/{name}", f"left by a process that is gone, and could not be removed: {reason}", unlock=unlock_for(error)
            )
        removed.append(name)
    return seen(place, tuple(removed))


def is_leftover(tree: HostTree, name: str) -> bool:
    """Whether an instance of this name was made by a process of ours that has ended, as far as that is certain."""
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    boot_id = read_boot_id(tree).value
    namespace = _pid_namespace()
    if boot_id is None or namespace is None or match["boot"] != boot_id[:8] or int(match["namespace"]) != namespace:
        return False
    try:
        os.kill(int(match["pid"]), 0)  # asks only whether there is such a process; /proc may hide it (hidepid)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    ticks = read_start_ticks(tree, int(match["pid"]))
    return ticks is not None and ticks != int(match["ticks"])


def write(path: Path, text: str) -> None:
    """One write to a file of tracefs, as the kernel takes its commands. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def _pid_namespace() -> int | None:
    with contextlib.suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return None
