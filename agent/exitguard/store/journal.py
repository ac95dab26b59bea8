"""The runs of this machine: for each a directory with its plan, the journal of its events, and what an operator asks of it.

    lock                                      held while any run is being carried out, so that two never meet on one host
    20261123T024601Z-1f0c9a2b/
      plan.json  journal.jsonl                written whole, before the directory has this name; then only the journal grows
      lock                                    held while this run is being carried out
      request-pause  request-abort            there: an operator asks for it
      ansible/                                artifacts of Ansible

An id has the time at which its run was made, or, where the clock says no later than the id of the run before, one second after that: so
ids sort in the order in which runs were made, whatever the clock does.
"""

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from exitguard.model.canonical import record_hash
from exitguard.model.plan import Plan
from exitguard.model.record import Record
from exitguard.model.run import EventKind, Request, RunEvent
from exitguard.model.time import UtcTime
from exitguard.store import process_lock
from exitguard.store.errors import StoreError
from exitguard.store.event_log import EventLog, read_log
from exitguard.store.private import check_private_directory, explain_private, make_private_directory
from exitguard.store.process_lock import ProcessLock
from exitguard.store.run_directory import ANSIBLE, JOURNAL, LOCK, make_run, read_plan, write_durably
from exitguard.store.state_dir import sync_directory

_REQUEST = "request-"
#: Names of directories on the way in and on the way out: no run's.
_COMING, _GOING = ".coming-", ".going-"
_TIME = "%Y%m%dT%H%M%SZ"
_TIME_CHARACTERS = 16
_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}", re.ASCII)
_OVER = frozenset({EventKind.FINISHED, EventKind.ABORTED})
_EXPECTED_RUN = "a directory of exitguard's own, made by `exitguard apply`"
_SHOWN = 12


class Asked(Record):
    """What a request's file says to whoever looks into it; that it is there is the request."""

    request: Request
    at: UtcTime


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as its journal tells it. `held`: a process is carrying it out."""

    run_id: str
    plan: Plan
    events: Sequence[RunEvent]
    held: bool

    @property
    def finished(self) -> bool:
        """Whether nothing more will be changed by it: what follows an abort only looks."""
        return any(event.kind in _OVER for event in reversed(self.events))


class RunJournal:
    """One run, held by this process for acting. A context manager; its end lets go of the run."""

    def __init__(self, directory: Path, plan: Plan, log: EventLog, locks: ExitStack) -> None:
        self.plan = plan
        self._directory = directory
        self._log = log
        self._locks = locks
        self._answered: tuple[Request, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._locks.close()

    @property
    def run_id(self) -> str:
        return self._directory.name

    @property
    def events(self) -> Sequence[RunEvent]:
        """All events so far, in order. It grows with each `append`."""
        return self._log.events

    @property
    def ansible_dir(self) -> Path:
        """Where Ansible's private data of this run go; mode 0700."""
        return self._directory / ANSIBLE

    def append(self, kind: EventKind, at: datetime, **fields: Any) -> RunEvent:
        """The event, written with the next sequence number and on the disk. `fields` are those of RunEvent.

        Raises StoreError where it cannot be written; then it is not in the journal, and what it announces must not be done.
        """
        unknown = fields.keys() - RunEvent.model_fields.keys()
        if unknown:
            raise TypeError(f"an event has no {', '.join(sorted(unknown))}")
        if "reason" in fields:  # it may quote a program's output, and bytes that were no UTF-8 there cannot be written as JSON
            fields["reason"] = fields["reason"].encode("utf-8", "replace").decode("utf-8")
        event = RunEvent(seq=len(self._log.events), at=at, kind=kind, **fields)
        self._log.append(event)
        return event

    def requested(self) -> Request | None:
        """What an operator asks for; of two, to abort. Raises StoreError."""
        try:
            asked = tuple(request for request in Request if (self._directory / f"{_REQUEST}{request}").exists())
        except OSError as error:
            raise explain_private(error, self._directory, _EXPECTED_RUN) from error
        self._answered = asked
        return Request.ABORT if Request.ABORT in asked else next(iter(asked), None)

    def forget_request(self) -> None:
        """Remove what `requested` found last; what was asked for since then stays. Raises StoreError."""
        try:
            for request in self._answered:
                (self._directory / f"{_REQUEST}{request}").unlink(missing_ok=True)
            sync_directory(self._directory)
        except OSError as error:
            raise explain_private(error, self._directory, _EXPECTED_RUN) from error
        self._answered = ()


class RunStore:
    """The runs in `directory`, which is created when the first run is. Every method raises StoreError."""

    def __init__(self, directory: Path) -> None:
        self._runs = directory

    def create(self, plan: Plan, now: datetime) -> RunJournal:
        """A new run of `plan`, without an event, held by this process."""
        if record_hash(plan.content()) != plan.hash:
            raise StoreError(
                f"the plan says that its hash is {plan.hash}, and that is not the hash of what is in it: it was changed after it was made, "
                "or made by another version. Expected a plan as `exitguard plan` of this version wrote it: make it again.",
                reason="the plan was changed",
            )
        make_private_directory(self._runs)
        with ExitStack() as stack:
            store_lock = self._take_store(stack)
            self._sweep(_COMING)
            run_id = _new_id(self.run_ids(), plan, now)
            coming = self._runs / f"{_COMING}{run_id}"
            directory = self._runs / run_id
            try:
                run_lock = make_run(coming, directory, plan)
                stack.callback(run_lock.release)
                store_lock.say(f"process {os.getpid()} run {run_id}")
            except OSError as error:
                shutil.rmtree(coming, ignore_errors=True)  # what is left of it is swept away by the next one
                raise explain_private(error, directory, "to create the directory of the new run") from error
            log = EventLog.open(directory / JOURNAL)
            stack.callback(log.close)
            return RunJournal(directory, plan, log, stack.pop_all())

    def open(self, run_id: str) -> RunJournal:
        """The run, held by this process; an event that was cut short by a kill or a power cut is cut off."""
        directory = self._directory_of(run_id)
        with ExitStack() as stack:
            store_lock = self._take_store(stack)
            try:
                run_lock = process_lock.take(directory / LOCK)
                if run_lock is None:
                    raise _held(directory / LOCK, run_id)
                stack.callback(run_lock.release)
                run_lock.say(f"process {os.getpid()}")
                store_lock.say(f"process {os.getpid()} run {run_id}")
            except OSError as error:
                raise explain_private(error, directory, _EXPECTED_RUN) from error
            log = EventLog.open(directory / JOURNAL)
            stack.callback(log.close)
            return RunJournal(directory, read_plan(directory, log.header), log, stack.pop_all())

    def read(self, run_id: str) -> RunRecord:
        """The run as it is now. Nothing is locked or changed, and the process that carries it out is not disturbed."""
        directory = self._directory_of(run_id)
        content = read_log(directory / JOURNAL)
        plan = read_plan(directory, content.header)
        try:
            held = process_lock.is_held(directory / LOCK)
        except OSError as error:
            raise explain_private(error, directory, _EXPECTED_RUN) from error
        return RunRecord(run_id=run_id, plan=plan, events=tuple(content.events), held=held)

    def run_ids(self) -> tuple[str, ...]:
        """The ids of all runs, oldest first; none where no run was ever made."""
        try:
            self._runs.lstat()
        except FileNotFoundError:
            return ()
        except OSError as error:  # who may not look must not be told that there is nothing
            raise explain_private(error, self._runs, _EXPECTED_RUN) from error
        check_private_directory(self._runs)
        try:
            return tuple(sorted(entry.name for entry in os.scandir(self._runs) if _is_run_id(entry.name)))
        except OSError as error:
            raise explain_private(error, self._runs, _EXPECTED_RUN) from error

    def latest(self) -> str | None:
        """The id of the run that was made last."""
        return next(reversed(self.run_ids()), None)

    def resolve(self, prefix: str) -> str:
        """The one run id that begins with `prefix`."""
        run_ids = self.run_ids()
        fitting = [run_id for run_id in run_ids if run_id.startswith(prefix)]
        if len(fitting) == 1:
            return fitting[0]
        where = f"{self._runs}: {prefix!r} is the beginning of "
        if fitting:
            raise StoreError(f"{where}{len(fitting)} runs. Expected one: add characters. {_listed(fitting)}", reason="an ambiguous run id")
        next_step = _listed(run_ids) if run_ids else "There is none yet: `exitguard apply PLAN` makes one."
        raise StoreError(f"{where}no run. Expected the id of one, or the beginning of it. {next_step}", reason="an unknown run id")

    def request(self, run_id: str, request: Request, now: datetime) -> None:
        """Ask whichever process carries the run out. It does not read the journal: a run can be stopped whatever else is wrong."""
        directory = self._directory_of(run_id)
        path = directory / f"{_REQUEST}{request}"
        temporary = directory / f".{path.name}.{secrets.token_hex(4)}"
        try:
            try:
                write_durably(temporary, Asked(request=request, at=now).model_dump_json().encode("utf-8") + b"\n")
                temporary.rename(path)
            except OSError:
                with suppress(OSError):  # it does no harm where it lies, and the first fault is the one to tell
                    temporary.unlink(missing_ok=True)
                raise
            sync_directory(directory)
        except OSError as error:
            raise explain_private(error, path, "to create it, which asks the run's process") from error

    def forget(self, keep: int) -> tuple[str, ...]:
        """The ids of the finished runs that were removed, oldest first: all but the newest `keep`.

        One that is held, unfinished, or cannot be read is neither removed nor counted.
        """
        if keep < 0:
            raise ValueError(f"cannot keep {keep} runs")
        finished = [run_id for run_id in self.run_ids() if self._is_over(run_id)]
        surplus = finished[: max(0, len(finished) - keep)]
        removed = tuple(run_id for run_id in surplus if self._remove(run_id))
        self._sweep(_GOING)
        return removed

    def _directory_of(self, run_id: str) -> Path:
        if run_id not in self.run_ids():
            raise StoreError(
                f"{self._runs}: there is no run {run_id!r}. Expected the id of one. {_listed(self.run_ids())}", reason="an unknown run id"
            )
        directory = self._runs / run_id
        check_private_directory(directory)
        return directory

    def _take_store(self, stack: ExitStack) -> ProcessLock:
        path = self._runs / LOCK
        try:
            lock = process_lock.take(path)
            if lock is None:
                raise _held(path, None)
            stack.callback(lock.release)
            lock.say(f"process {os.getpid()}")
        except OSError as error:
            raise explain_private(error, path, "a file that this user may write to") from error
        return lock

    def _is_over(self, run_id: str) -> bool:
        try:
            record = self.read(run_id)
        except StoreError:
            return False  # nobody knows; whoever asks for the run is told what is wrong with it
        return record.finished and not record.held

    def _remove(self, run_id: str) -> bool:
        """Whether the run was there, and is not any more. Under another name first: half a run is never found."""
        directory = self._runs / run_id
        try:
            lock = process_lock.take(directory / LOCK)
            if lock is None:
                return False  # somebody took it up in this moment
            try:
                directory.rename(self._runs / f"{_GOING}{run_id}")
                sync_directory(self._runs)
            finally:
                lock.release()
        except FileNotFoundError:
            return False  # another process was faster
        except OSError as error:
            raise explain_private(error, directory, "to remove this finished run") from error
        return True

    def _sweep(self, prefix: str) -> None:
        """Remove what is no run any more, or never became one."""
        try:
            for entry in self._runs.glob(f"{prefix}*"):
                shutil.rmtree(entry)
        except FileNotFoundError:
            return  # another process sweeps too
        except OSError as error:
            raise explain_private(error, self._runs, "to remove what is left of a run") from error


def _is_run_id(name: str) -> bool:
    try:
        return _RUN_ID.fullmatch(name) is not None and bool(_made(name))
    except ValueError:
        return False  # of a day that does not exist: made by somebody else


def _made(run_id: str) -> datetime:
    """The time in a run id, in UTC."""
    return datetime.strptime(run_id[:_TIME_CHARACTERS], _TIME).replace(tzinfo=UTC)


def _new_id(run_ids: tuple[str, ...], plan: Plan, now: datetime) -> str:
    second = now.astimezone(UTC).replace(microsecond=0)
    if run_ids:
        second = max(second, _made(run_ids[-1]) + timedelta(seconds=1))
    return f"{second.strftime(_TIME)}-{plan.hash.removeprefix('sha256:')[:8]}"


def _held(path: Path, run_id: str | None) -> StoreError:
    """For the operator: who holds the lock at `path`, of the run or of all runs."""
    said = process_lock.holder(path).split()
    process = " ".join(said[:2]) or "another process"
    which = run_id or (said[3] if len(said) > 3 else None)  # noqa: PLR2004 - process PID run ID
    what = f"run {which}" if which else "a run"
    next_step = f"`exitguard rollout pause {which}`" if which else "`exitguard rollout status`"
    return StoreError(
        f"{path}: {what} is being carried out by {process}. Expected no other: one run at a time, so that two never meet on a host. "
        f"Wait for its end, or {next_step}.",
        reason="a run is being carried out",
    )


def _listed(run_ids: Sequence[str]) -> str:
    shown = ", ".join(run_ids[-_SHOWN:])
    more = "" if len(run_ids) <= _SHOWN else f" and {len(run_ids) - _SHOWN} older"
    return f"These fit: {shown}{more}." if run_ids else "There is none."
