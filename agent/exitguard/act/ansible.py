"""Runs one playbook over some hosts through Ansible, and tells what it came to on each.

Ansible runs in a process of its own, `exitguard.act.ansible_process`, which ends with all that it started: when it is done, when its time
is over, when its caller wants it, and when its caller dies. If that process dies itself, this one ends what it left; if both die at once,
`end_leftovers` does, which whoever takes a run up again calls first.
"""

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self

from exitguard.act.ansible_process.environment import environment_of_process
from exitguard.act.ansible_process.marked import end_marked
from exitguard.act.ansible_process.messages import GRACE_SECONDS, LINE_LIMIT_BYTES, Kind, Message, Request, Status
from exitguard.act.ansible_process.run_files import RunFiles, make_run_files, unfinished_runs, write_arguments
from exitguard.act.ansible_results import Ended, Hearing, HostOutcome, HostResult, PlaybookResult
from exitguard.model.canonical import JsonValue

__all__ = ["AnsibleError", "HostOutcome", "HostResult", "PlaybookResult", "PlaybookRun", "end_leftovers", "require_ansible", "run_playbook"]

_MODULE = "exitguard.act.ansible_process"
_PROGRAM = "ansible-playbook"
_INSTALL = "pip install 'exitguard[host]'"
#: What Ansible takes for the name of one host, and for nothing else: patterns, ranges and files begin with or hold other characters.
_HOST = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_.-]{0,252}[0-9A-Za-z_])?")
_GROUPS_OF_ALL = frozenset({"all", "ungrouped"})
_HERE = "localhost"
_CHUNK_BYTES = 1 << 16
_COMPLAINT_LIMIT_BYTES = 4096
#: Beyond its time limit and the grace of its processes, the process itself has so long to end.
_LATE_SECONDS = 15.0
#: How long the process may take to be gone after its last line.
_GONE_SECONDS = 5.0


class AnsibleError(Exception):
    """A playbook could not be started, or what an earlier one left could not be ended; the message is for the operator."""


@dataclass(frozen=True)
class PlaybookRun:
    """What is to be run, and where."""

    playbook: Path
    #: Names of the inventory; for this machine itself `localhost` alone.
    hosts: tuple[str, ...]
    #: None: this machine itself.
    inventory: Path | None
    #: By host. They win over what the inventory says of the host or its groups, and lose against `common`. No text is a template.
    variables: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)
    #: Extra variables: for every host, and stronger than all others.
    common: Mapping[str, JsonValue] = field(default_factory=dict)
    #: Only say what would be changed, with its differences.
    check: bool = False
    forks: int = 5
    #: Of the whole run.
    timeout_seconds: float = 3600

    @staticmethod
    def time_for(hosts: int, forks: int, seconds_a_host: float) -> float:
        """How long a run over so many hosts may take, so many of them at a time."""
        return seconds_a_host * -(-max(hosts, 1) // forks)


def _nobody(_host: str, _task: str, _status: str) -> None:
    return None


def run_playbook(
    run: PlaybookRun,
    directory: Path,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[str, str, str], None] = _nobody,
    pulse_seconds: float = 0.2,
) -> PlaybookResult:
    """Run a playbook to its end; when this returns, or raises, no process of it is left on this machine.

    `directory` is private to this user; a directory for this run is made in it, and the newest twenty are kept. `cancelled` is asked in
    each pulse. `progress` is told host, task, and what the task came to there. Either may raise to end the run. Raises AnsibleError
    where nothing could be started.
    """
    _check(run)
    program = _program()
    with _files(directory) as files:
        request = _request(run, files, program)
        with _Process(files) as process:
            process.ask(request)
            hearing = Hearing(run.hosts)
            give_up = time.monotonic() + run.timeout_seconds + GRACE_SECONDS + _LATE_SECONDS
            ended, reason = _listen(process, hearing, cancelled=cancelled, progress=progress, pulse_seconds=pulse_seconds, give_up=give_up)
        if ended == "timed_out" and not reason:
            reason = f"not done within {run.timeout_seconds:g} s: Ansible was ended"
        return hearing.result(ended, reason)


def require_ansible() -> None:
    """Raise AnsibleError where no playbook could be run: before an approval is spent on one."""
    _program()


def end_leftovers(directory: Path) -> int:
    """End what earlier runs in this directory left behind where nobody could: how many processes. Raises AnsibleError.

    Nothing may be running in the directory that is still wanted.
    """
    try:
        runs = tuple(unfinished_runs(directory))
        if not runs:
            return 0
        ending = end_marked(run.mark for run in runs)
        if ending.left:
            raise AnsibleError(
                f"{', '.join(ending.left)}: of an earlier run of Ansible, and could not be ended; two must never work at once. "
                "End it by hand (as root, if it is another user's), then try again."
            )
        for run in runs:
            run.forget()
    except OSError as error:
        raise _unusable(directory, error) from error
    return ending.ended


def _check(run: PlaybookRun) -> None:
    if not run.hosts or len(set(run.hosts)) < len(run.hosts):
        raise AnsibleError(f"{run.playbook.name}: expected one or more hosts to run it on, each once; there are {len(run.hosts)}.")
    if run.inventory is None and run.hosts != (_HERE,):
        raise AnsibleError(
            f"{run.playbook.name}: without an inventory it runs on this machine alone, which is called {_HERE}. Name the inventory."
        )
    for host in run.hosts:
        if _HOST.fullmatch(host) is None or host in _GROUPS_OF_ALL:
            raise AnsibleError(
                f"host {host!r}: Ansible could take this name for more than one host. Expected letters, digits, `.`, `-` and `_` in the "
                "names of the inventory; `ansible_host` holds any address."
            )
    unasked = run.variables.keys() - set(run.hosts)
    if unasked:
        raise AnsibleError(f"{run.playbook.name}: there are variables for {', '.join(sorted(unasked))}, which it does not run on.")
    for path in (run.playbook, run.inventory):
        if path is not None and not os.access(path, os.R_OK):
            raise AnsibleError(
                f"{path}: not there, or not readable for this user. Expected {'a playbook' if path is run.playbook else 'an inventory'}."
            )
    if find_spec("ansible_runner") is None:
        raise AnsibleError(
            f"ansible-runner is not installed beside {sys.executable}. Expected it with the extra exitguard[host]: {_INSTALL}"
        )


def _program() -> str:
    """ansible-playbook of the same installation, else of the PATH. Raises AnsibleError."""
    beside = Path(sys.executable).with_name(_PROGRAM)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(_PROGRAM)
    if found is None:
        raise AnsibleError(
            f"{_PROGRAM} is neither beside {sys.executable} nor in the PATH. Expected it with the extra exitguard[host]: {_INSTALL}"
        )
    return str(Path(found).absolute())


@contextmanager
def _files(directory: Path) -> Iterator[RunFiles]:
    """The files of a new run. What must not outlive it goes with it; while processes are there, their mark stays."""
    try:
        files = make_run_files(directory)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        yield files
    finally:
        if not end_marked((files.mark,), grace_seconds=0).left:
            with suppress(OSError):  # nothing is left to be ended: a mark that stays costs one look
                files.forget()


def _request(run: PlaybookRun, files: RunFiles, program: str) -> Request:
    playbook = str(run.playbook.absolute())
    try:
        arguments = write_arguments(
            files,
            hosts=run.hosts,
            inventory=None if run.inventory is None else run.inventory.absolute(),
            interpreter=sys.executable,
            variables=run.variables,
            common=run.common,
        )
    except OSError as error:
        raise _unusable(files.directory, error) from error
    how = ("--check", "--diff") if run.check else ()
    command = (program, *arguments, "--forks", str(max(run.forks, 1)), *how, playbook)
    return Request(str(files.directory), command, playbook, run.hosts, files.mark.sockets, run.timeout_seconds)


def _unusable(directory: Path, error: OSError) -> AnsibleError:
    return AnsibleError(
        f"{error.filename or directory}: {(error.strerror or str(error)).lower()}. Expected a place for the files of Ansible's runs that "
        "this user may write to, with some free space."
    )


class _Process:
    """The process that runs Ansible, as its parent sees it. To be left with `with`, and it is gone."""

    def __init__(self, files: RunFiles) -> None:
        words = [sys.executable, "-I" if sys.flags.isolated else "-P", *(["-B"] if sys.dont_write_bytecode else []), "-m", _MODULE]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very program
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=_current_directory(files),
                env=environment_of_process(os.environ, files),
                start_new_session=True,  # a terminal's Ctrl-C is for its parent, which then ends it in order
                bufsize=0,
            )
        except OSError as error:
            raise AnsibleError(
                f"{sys.executable}: the process that runs Ansible could not be started: {error.strerror or error}."
            ) from error
        self._selector = selectors.DefaultSelector()
        self._lines: deque[bytes] = deque()
        self._rest = bytearray()
        self._complaint = b""
        self._broken = ""
        for stream in (self._process.stdout, self._process.stderr):
            os.set_blocking(_open(stream).fileno(), False)
            self._selector.register(_open(stream), selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """An orderly end was asked for before, where there was time for one."""
        self.stop()
        if not self._selector.get_map():
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GONE_SECONDS)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2 * GRACE_SECONDS)
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            _open(stream).close()

    def ask(self, request: Request) -> None:
        with suppress(BrokenPipeError):  # it ended at once: that is heard on its other streams
            rest = memoryview(request.to_line())
            while rest:
                rest = rest[os.write(_open(self._process.stdin).fileno(), rest) :]

    def stop(self) -> None:
        """Let it end everything, and tell what there is to tell."""
        _open(self._process.stdin).close()

    def listen(self, seconds: float) -> bool:
        """Take what it said within so long; False once it will say no more."""
        for key, _ in self._selector.select(seconds):
            chunk = os.read(key.fd, _CHUNK_BYTES)
            if not chunk:
                self._selector.unregister(key.fileobj)
            elif key.fileobj is self._process.stderr:
                self._complaint = (self._complaint + chunk)[-_COMPLAINT_LIMIT_BYTES:]
            else:
                self._rest += chunk
                if b"\n" in chunk:
                    *lines, self._rest = self._rest.split(b"\n")
                    self._lines.extend(bytes(line) for line in lines)
        if len(self._rest) > LINE_LIMIT_BYTES:
            self._broken = "the process that runs Ansible said more than can be kept"
            return False
        return bool(self._selector.get_map())

    def messages(self) -> Iterator[Message]:
        """What was taken and not looked at yet. Raises ValueError for what is none."""
        while self._lines:
            yield Message.from_line(self._lines.popleft())

    def why_silent(self) -> str:
        """Why it ended without a last message."""
        if self._broken:
            return self._broken
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GONE_SECONDS)
        code = self._process.poll()
        said = self._complaint.decode("utf-8", "replace").strip().splitlines()
        last = f": {said[-1]}" if said else ""
        if code is None:
            return "the process that runs Ansible closed its output"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the process that runs Ansible {how}{last}; what it had started was ended"


def _listen(
    process: _Process,
    hearing: Hearing,
    *,
    cancelled: Callable[[], bool],
    progress: Callable[[str, str, str], None],
    pulse_seconds: float,
    give_up: float,
) -> tuple[Ended, str]:
    """Hear it to its end: how that was, and why."""
    wanted = True
    going_on = True
    while going_on and time.monotonic() < give_up:
        going_on = process.listen(pulse_seconds)
        try:
            for message in process.messages():
                hearing.hear(message)
                if message.kind is Kind.TASK:
                    progress(message.host, message.task, message.status)
        except ValueError as error:
            return "broken", f"the process that runs Ansible could not be understood: {error}"
        if wanted and going_on and cancelled():
            wanted = False
            process.stop()
            give_up = min(give_up, time.monotonic() + 2 * GRACE_SECONDS + _LATE_SECONDS)
    last = hearing.last
    match None if last is None else Status(last.status):
        case Status.COMPLETED:
            return "completed", last.text if last else ""
        case Status.TIMED_OUT:
            return "timed_out", last.text if last else ""
        case Status.STOPPED if not wanted:
            return "cancelled", (last.text if last else "") or "cancelled: Ansible was ended"
        case None if going_on:
            return ("timed_out", "") if wanted else ("cancelled", "cancelled: Ansible had to be killed")
        case None if not wanted:
            return "cancelled", "cancelled: Ansible was ended"
    return "broken", (last.text if last else process.why_silent()) or "it was ended from outside"


def _current_directory(files: RunFiles) -> str:
    """The caller's, since relative paths of inventories and settings are meant from there; the run's own where that is gone."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return str(files.directory)


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("a stream that was asked for as a pipe is none")
    return stream
