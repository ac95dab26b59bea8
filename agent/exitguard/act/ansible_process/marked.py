"""The processes of one run, found by the mark in their environment, and ended.

Ansible's workers, their ssh and the modules on this machine are in sessions of their own, and where one of them dies the rest becomes
another's child: neither group nor parent leads to all of them. So each carries the run's mark, which nobody else knows: it is in the
environment that ansible-playbook is started with, and inherited. sudo clears the environment; what it starts is found as its child. The
process that keeps a shared ssh connection open writes its title over its environment; it is found by the path in that title.
What takes the mark off, as `service` does where there is no systemd, and is nobody's child any more, is left alone.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from exitguard.act.ansible_process.messages import GRACE_SECONDS, MARK_VARIABLE

#: The kernel keeps an environment below a quarter of the stack limit; the mark is near its end or its beginning, never beyond this.
_ENVIRONMENT_LIMIT_BYTES = 4 << 20
_TITLE_LIMIT_BYTES = 4096
#: How long a killed process may take to be gone: one that waits for a disk or NFS takes its time.
_KILLED_SECONDS = 5.0
_TURN_SECONDS = 0.05
_ZOMBIES = (b"Z", b"X")


@dataclass(frozen=True)
class Mark:
    """What the processes of one run are known by."""

    mark: str
    #: Directory of the sockets of its shared ssh connections.
    sockets: str


@dataclass(frozen=True)
class Ending:
    """What came of ending processes."""

    ended: int
    #: Those that are still there, each as `pid (name)`.
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    #: Clock ticks after boot: with the pid it names one process for good.
    started: int
    name: str


def end_marked(marks: Iterable[Mark], *, grace_seconds: float = GRACE_SECONDS, keep: frozenset[int] = frozenset()) -> Ending:
    """Ask every process of these runs to end, then kill what has not; those of `keep` stay. Returns when all are gone, or will not go."""
    wanted = tuple(marks)
    asked: dict[tuple[int, int], _Process] = {}
    kill_from = time.monotonic() + grace_seconds
    give_up = kill_from + _KILLED_SECONDS
    while True:
        processes = {process.pid: process for process in _processes()}
        found = {_name(process): process for process in _of_runs(processes, wanted) if process.pid not in keep}
        # Once known is always known: when a process ends, its children lead to nobody.
        alive = found | {
            name: process for name, process in asked.items() if process.pid in processes and _name(processes[process.pid]) == name
        }
        if not alive:
            return Ending(ended=len(asked))
        now = time.monotonic()
        if now >= give_up:
            return Ending(ended=len(asked) - len(alive), left=tuple(f"{process.pid} ({process.name})" for process in alive.values()))
        for name, process in alive.items():
            if now >= kill_from:
                _send(process, signal.SIGKILL)
            elif name not in asked:
                _send(process, signal.SIGTERM)
        asked |= alive
        time.sleep(_TURN_SECONDS)


def _of_runs(processes: dict[int, _Process], marks: tuple[Mark, ...]) -> Iterator[_Process]:
    """Every process that carries one of the marks, and all that descends from one."""
    entries = frozenset(f"{MARK_VARIABLE}={mark.mark}".encode() for mark in marks)
    titles = tuple(f"ssh: {mark.sockets}/".encode() for mark in marks)
    children: dict[int, list[_Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    waiting = [process for process in processes.values() if _carries(process.pid, entries, titles)]
    seen = set()
    while waiting:
        process = waiting.pop()
        if process.pid not in seen:
            seen.add(process.pid)
            yield process
            waiting += children.get(process.pid, ())


def _carries(pid: int, entries: frozenset[bytes], titles: tuple[bytes, ...]) -> bool:
    if not entries.isdisjoint(_content(pid, "environ", _ENVIRONMENT_LIMIT_BYTES).split(b"\0")):
        return True
    return _content(pid, "cmdline", _TITLE_LIMIT_BYTES).startswith(titles)


def _content(pid: int, name: str, limit_bytes: int) -> bytes:
    """Nothing for a process that is gone, or another user's: neither is of our runs, or can be ended by us."""
    with suppress(OSError), open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - thousands of them
        pieces = []
        left = limit_bytes
        while left > 0 and (piece := file.read(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
    return b""


def _processes() -> Iterator[_Process]:
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed
        if entry.isdecimal():
            process = _process(int(entry))
            if process is not None:
                yield process


def _process(pid: int) -> _Process | None:
    """None for one that is gone, or has only not been waited for."""
    # proc_pid_stat(5): pid (name) state ppid ...; the 22nd field is the start time. A name may hold anything.
    head, _, tail = _content(pid, "stat", _TITLE_LIMIT_BYTES).rpartition(b")")
    fields = tail.split()
    if not fields or fields[0] in _ZOMBIES:
        return None
    return _Process(pid, parent=int(fields[1]), started=int(fields[19]), name=head.partition(b"(")[2].decode("utf-8", "replace"))


def _name(process: _Process) -> tuple[int, int]:
    return process.pid, process.started


def _send(process: _Process, number: signal.Signals) -> None:
    """Signal exactly that process: its number may be another's by now."""
    with suppress(ProcessLookupError, PermissionError):
        descriptor = os.pidfd_open(process.pid)
        try:
            now = _process(process.pid)
            if now is not None and _name(now) == _name(process):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
