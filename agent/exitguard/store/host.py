"""The memory of one host: every audit's facts, report and samples, what changed when, and what could not be stored.

Beside the database in the state directory lie the host id, which outlives it, and the note of dropped observations, which
can be written when the database cannot.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, select

from exitguard.model.documents import AuditReport, FactsDocument, Observation
from exitguard.model.history import Gap, Transition
from exitguard.model.host import Target
from exitguard.model.samples import Samples
from exitguard.model.time import format_rfc3339
from exitguard.store import gap, rows
from exitguard.store.database import Database, open_for_reading, open_for_writing
from exitguard.store.errors import StoreError, StoreFull, explain_os
from exitguard.store.sections import compare, split
from exitguard.store.state_dir import DATABASE_NAME, GAP_NOTE_NAME, mint_host_id, prepare_directory, read_host_id
from exitguard.store.tables import spool
from exitguard.store.verdicts import settle


class HostStore:
    """An open store: a context manager, for one thread. Everything but `record` and `machine_ids_seen` only reads."""

    def __init__(self, state_dir: Path, host_id: str, database: Database, *, read_only: bool) -> None:
        self.state_dir = state_dir
        self.host_id = host_id
        self._database = database
        self._read_only = read_only
        self._note = state_dir / GAP_NOTE_NAME

    @classmethod
    def open(cls, state_dir: Path, *, now: datetime, read_only: bool = False) -> Self:
        """The store in `state_dir`, created or migrated where needed; with `read_only` nothing is created or written.

        Raises StoreError. A store that cannot be opened for writing drops the observation that was to come: that is noted
        in the gap note, as of `now`, where the note can be written.
        """
        if read_only:
            return cls(state_dir, read_host_id(state_dir), open_for_reading(state_dir / DATABASE_NAME), read_only=True)
        prepare_directory(state_dir)
        host_id = mint_host_id(state_dir)
        note = state_dir / GAP_NOTE_NAME
        try:
            gap.prepare_note(note)
        except OSError as error:
            raise explain_os(error, note, "a file that this user may write") from error
        try:
            database = open_for_writing(state_dir / DATABASE_NAME, now=now)
        except StoreError as error:
            raise _dropped(error, note, now) from error
        store = cls(state_dir, host_id, database, read_only=False)
        with suppress(StoreError):  # a database that cannot be read says so soon enough
            store._clear_stored_note()
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    @property
    def spool_epoch(self) -> str:
        """The UUID of this database; another one after it was deleted and begun anew."""
        with self._read() as connection:
            return str(connection.execute(select(spool.c.epoch)).scalar_one())

    def machine_ids_seen(self, machine_id: str, now: datetime) -> tuple[str, ...]:
        """Every machine-id seen under this host id, `machine_id` included, the first seen first. Two mean a cloned disk.

        Where there is no room to remember `machine_id`, the answer is the same; the next call tries again.
        """
        with self._read() as connection:
            seen = rows.read_machine_ids(connection, self.host_id)
        if machine_id in seen:
            return seen
        if not self._read_only:
            # record() comes next, and says when there is no room.
            with suppress(StoreFull), self._database.transaction("IMMEDIATE") as connection:
                rows.write_machine_id(connection, self.host_id, machine_id, now)
        return (*seen, machine_id)

    def record(self, observation: Observation, report: AuditReport) -> AuditReport:
        """Store one audit, all of it or nothing, and give its report with `since` of each finding filled.

        On return it is on the disk. Raises StoreError (StoreFull where there was no room): then the observation is dropped,
        and the gap noted. Raises ValueError for a report of another observation.
        """
        if observation.facts.observed_at != report.observed_at:
            raise ValueError("the report is not of this observation: their observed_at differ")
        if self._read_only:
            raise StoreError(
                f"{self._database.path}: was opened for reading only, so nothing can be recorded in it.", reason="opened for reading"
            )
        try:
            noted = self._read_note()
            settled = self._record(observation, report, noted)
        except StoreError as error:
            raise _dropped(error, self._note, report.observed_at) from error
        except ValueError as error:
            unfit = StoreError(
                f"{self._database.path}: the observation does not fit into the database: {error}. Please report this.",
                reason=f"does not fit: {error}",
            )
            raise _dropped(unfit, self._note, report.observed_at) from error
        if noted is not None:
            self._clear_note(noted)
        return settled

    def target(self) -> Target | None:
        """What the last observation was about, without reading all of it; None where there is none."""
        with self._read() as connection:
            heartbeat = rows.observation_at(connection, None)
            return None if heartbeat is None else rows.read_target(connection, heartbeat)

    def report(self, at: datetime | None = None) -> AuditReport | None:
        """The last report, or the last observed at or before `at`, as `record` gave it; None where there is none."""
        with self._read() as connection:
            heartbeat = rows.observation_at(connection, at)
            return None if heartbeat is None else rows.read_report(connection, heartbeat)

    def facts(self, at: datetime | None = None) -> FactsDocument | None:
        """The facts behind `report(at)`, with the same hashes; domains in the order of their uuids."""
        with self._read() as connection:
            heartbeat = rows.observation_at(connection, at)
            return None if heartbeat is None else rows.read_facts(connection, heartbeat)

    def samples(self, since: datetime) -> Iterator[Samples]:
        """The samples of observations at or after `since`, oldest first, one at a time."""
        with self._read() as connection:
            sequence = rows.sequence_since(connection, since)
        for seq in sequence:  # one transaction each: the reader may take its time
            with self._read() as connection:
                document = rows.read_samples(connection, seq)
            yield document

    def transitions(self, since: datetime) -> tuple[Transition, ...]:
        """What changed in audits observed at or after `since`, oldest first."""
        with self._read() as connection:
            return rows.read_transitions(connection, since)

    def gaps(self, since: datetime) -> tuple[Gap, ...]:
        """The periods that reach to `since` or beyond in which observations were dropped; the one that still lasts comes last."""
        noted = self._read_note()
        with self._read() as connection:
            stored = rows.read_gaps(connection, since)
        if noted is None or max(noted.first_at, noted.last_at) < since:
            return stored
        return (*(old for old in stored if old.id != noted.id), noted)

    def _record(self, observation: Observation, report: AuditReport, noted: Gap | None) -> AuditReport:
        facts = observation.facts
        _ = facts.host_hash  # the slow part, and remembered: do it before others have to wait
        with self._database.transaction("IMMEDIATE") as connection:
            held = rows.read_held(connection)
            settled, transitions = settle(report, held)
            rows.write_facts(connection, facts)
            seq = rows.add_observation(connection, facts)
            rows.write_changes(connection, seq, compare(split(settled), held))
            rows.write_transitions(connection, seq, transitions)
            rows.write_samples(connection, seq, observation.samples)
            if noted is not None:
                rows.write_gap(connection, seq, noted)
        return settled

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._database.transaction("DEFERRED") as connection:
                yield connection
        except ValueError as error:  # pydantic's ValidationError is one
            what = " ".join(str(error).split())[:300]
            raise StoreError(
                f"{self._database.path}: holds a document that this exitguard cannot read: {what}. Expected one of this version or of an "
                "older one: read it with the exitguard that wrote it.",
                reason="a stored document cannot be read",
            ) from error

    def _read_note(self) -> Gap | None:
        try:
            return gap.read_note(self._note)
        except OSError as error:
            raise explain_os(error, self._note, "a file that this user may read") from error

    def _clear_note(self, stored: Gap) -> None:
        with suppress(OSError):  # it keeps its id: the next record stores the same gap over itself
            gap.clear_note(self._note, stored)

    def _clear_stored_note(self) -> None:
        """Clear the note of a gap that is stored already, as after a kill between the commit and the clearing."""
        noted = self._read_note()
        if noted is None:
            return
        with self._read() as connection:
            stored = rows.read_gaps(connection, noted.last_at)
        if noted in stored:
            self._clear_note(noted)


def _dropped(error: StoreError, note: Path, at: datetime) -> StoreError:
    """`error`, and what became of the observation of `at`; noted where that is possible."""
    try:
        gap.note_dropped(note, at, error.reason)
    except OSError as second:
        outcome = f"could not even be noted in {note} ({(second.strerror or str(second)).lower()})"
    else:
        outcome = "is shown as a gap by `exitguard report`"
    return type(error)(f"{error} The observation of {format_rfc3339(at)} was not stored; that {outcome}.", reason=error.reason)
