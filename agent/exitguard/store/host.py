"""The memory of one host: every audit's facts and report, samples, what changed when, and what could not be stored.

Between two audits, which look at everything, an update looks at some domains after a lifecycle event. What it did not look at
was not observed then, and is told with the time at which it was: sections.py says how.

Beside the database in the state directory lie the host id, which outlives it, and the note of dropped observations, which
can be written when the database cannot.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, select

from exitguard.model.documents import AuditReport, FactsDocument, Observation, ReportUpdate
from exitguard.model.finding import Finding, SubjectKind
from exitguard.model.history import Gap, Pruned, Transition
from exitguard.model.host import Target
from exitguard.model.samples import Samples
from exitguard.model.time import format_rfc3339
from exitguard.store import gap, rows
from exitguard.store.database import Database, open_for_reading, open_for_writing
from exitguard.store.errors import StoreError, StoreFull, StoreOutdated, explain_os
from exitguard.store.ledger import HostLedger
from exitguard.store.retention import Pruning
from exitguard.store.sections import amend, compare, split, split_update
from exitguard.store.spool import Spool
from exitguard.store.state_dir import DATABASE_NAME, GAP_NOTE_NAME, mint_host_id, prepare_directory, read_host_id
from exitguard.store.tables import BLIND, FULL, UPDATE, spool
from exitguard.store.verdicts import settle, without_domains

_DOMAIN = SubjectKind.DOMAIN


class HostStore:
    """An open store: a context manager, for one thread, and for as long as its process lives.

    `record`, `record_update`, `record_samples`, `prune` and `machine_ids_seen` write; everything else only reads.
    """

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
        self._refuse_reading("recorded")
        with self._dropping(report.observed_at):
            noted = self._read_note()
            settled = self._record(observation, report, noted)
        if noted is not None:
            self._clear_note(noted)
        return settled

    def record_update(self, facts: FactsDocument, update: ReportUpdate) -> ReportUpdate:
        """Store some domains judged anew, all of them or none, and give the update with `since` of each finding filled.

        `facts` are those of the last observation stored, with those domains as they are now: what is not in the update is
        unchanged. Raises StoreOutdated where it is not, such as after another process stored an audit: nothing is stored or
        noted, and an audit is due. Raises StoreError as `record` does, after which an audit is due too. Raises ValueError for
        an update that is not one of `facts`.
        """
        problem = _misfit(facts, update)
        if problem is not None:
            raise ValueError(f"the update is not one of these facts: {problem}")
        self._refuse_reading("recorded")
        with self._dropping(update.observed_at):
            noted = self._read_note()
            settled = self._record_update(facts, update, noted)
        if noted is not None:
            self._clear_note(noted)
        return settled

    def record_samples(self, samples: Samples) -> None:
        """Store samples that were taken between two audits. Raises StoreError as `record` does."""
        self._refuse_reading("recorded")
        with self._dropping(samples.observed_at), self._database.transaction("IMMEDIATE") as connection:
            rows.write_samples(connection, samples)

    def prune(
        self, now: datetime, *, history: timedelta, samples: timedelta, limit_bytes: int, pulse: Callable[[], None] = lambda: None
    ) -> Pruned:
        """Forget observations older than `history` and samples older than `samples`, and then the oldest until the rest fits.

        Samples go before history, and the last of each is never forgotten, nor what the report of now needs: where only those
        are left, more than `limit_bytes` may be used. Raises StoreError; what was forgotten until then stays forgotten.
        `pulse` is called all the while, between transactions, and may raise to end the pruning.
        """
        self._refuse_reading("pruned")
        self._require_still_there()
        noted = self._read_note()
        pruning = Pruning(self._database, unfinished_gap=None if noted is None else noted.id, pulse=pulse)
        pruning.forget_old(now, history=history, samples_kept=samples)
        pruning.fit(limit_bytes)
        self._database.empty_log()
        return Pruned(
            observations=pruning.observations,
            documents=pruning.documents,
            samples=pruning.samples,
            size_bytes=self._database.used_bytes(),
        )

    @property
    def ledger(self) -> HostLedger:
        """What runs did in each hour, and what that was worth. Written only by a store that may write."""
        return HostLedger(self._database)

    @property
    def spool(self) -> Spool:
        """What waits to be pushed to a hub. Written only by a store that may write."""
        return Spool(self._database, self.host_id)

    def size_bytes(self) -> int:
        """What the database holds, in whole pages. Its file may be larger: what was pruned leaves room in it that is used again."""
        return self._database.used_bytes()

    def still_there(self) -> bool:
        """Whether the database is still the file that was opened. If not (it was deleted, or replaced), open the store again."""
        return self._database.still_there()

    def horizon(self) -> datetime | None:
        """The observed_at of the oldest observation that is kept; None where there is none."""
        with self._read() as connection:
            return rows.read_horizon(connection)

    def target(self) -> Target | None:
        """What the last observation was about, without reading all of it; None where there is none."""
        with self._read() as connection:
            heartbeat = rows.observation_at(connection, None)
            return None if heartbeat is None else rows.read_target(connection, heartbeat)

    def report(self, at: datetime | None = None) -> AuditReport | None:
        """The last report, or the last observed at or before `at`; None where there is none, or none any more.

        After an audit it is as `record` gave it. After an update, what the update did not change is stamped with the time at
        which it was last observed.
        """
        with self._read() as connection:
            heartbeat = rows.observation_at(connection, at)
            return None if heartbeat is None else rows.read_report(connection, heartbeat)

    def note_dropped(self, at: datetime, reason: str) -> None:
        """Note an observation of `at` that was lost when nothing could be noted; the next record stores the gap. Raises StoreError."""
        try:
            gap.note_dropped(self._note, at, reason)
        except OSError as error:
            raise explain_os(error, self._note, "a file that this user may write") from error

    def audited_at(self, at: datetime | None = None) -> datetime | None:
        """When the last audit of the whole host was made, at or before `at`; updates of single domains may be newer."""
        with self._read() as connection:
            heartbeat = rows.observation_at(connection, at)
            return None if heartbeat is None else rows.last_full(connection, heartbeat["seq"])[1]

    def facts(self, at: datetime | None = None) -> FactsDocument | None:
        """The facts behind `report(at)`, with the same hashes, of the time of the last audit; domains in the order of their uuids."""
        with self._read() as connection:
            heartbeat = rows.observation_at(connection, at)
            return None if heartbeat is None else rows.read_facts(connection, heartbeat)

    def samples(self, since: datetime) -> Iterator[Samples]:
        """The samples of `since` and later, in the order in which they were stored, one at a time."""
        with self._read() as connection:
            found = rows.samples_since(connection, since)
        for row in found:  # one transaction each: the reader may take its time
            with self._read() as connection:
                document = rows.read_samples(connection, row)
            if document is not None:  # else it was pruned meanwhile
                yield document

    def transitions(self, since: datetime) -> tuple[Transition, ...]:
        """What changed in audits and updates observed at or after `since`, oldest first."""
        with self._read() as connection:
            return rows.read_transitions(connection, since)

    def exit_codes(self, until: datetime) -> tuple[tuple[datetime, int], ...]:
        """Whenever the reports' head became another, up to `until`: when, and the exit code from then on, oldest first."""
        with self._read() as connection:
            return rows.read_exit_codes(connection, until)

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
            # Where libvirt could not be asked, domains are neither judged nor gone; once it can be, what held before still does.
            blind = facts.host.libvirt.listing.reason is not None
            compared = without_domains(held) if blind else held | rows.read_unseen(connection)
            findings, transitions = settle(report.findings, compared, report.observed_at)
            settled = report.model_copy(update={"findings": findings})
            seq = rows.add_observation(connection, facts, kind=BLIND if blind else FULL, observed_at=report.observed_at)
            rows.write_changes(connection, seq, compare(split(settled), held))
            rows.write_transitions(connection, seq, transitions)
            rows.write_samples(connection, observation.samples)
            if noted is not None:
                rows.write_gap(connection, seq, noted)
        return settled

    def _record_update(self, facts: FactsDocument, update: ReportUpdate, noted: Gap | None) -> ReportUpdate:
        _ = facts.host_hash  # as above
        uuids = {domain.uuid for domain in update.domains}
        at = update.observed_at
        with self._database.transaction("IMMEDIATE") as connection:
            heartbeat = rows.observation_at(connection, None)
            if heartbeat is None:
                raise self._outdated("there is no audit in it")
            others = rows.other_changes(connection, heartbeat, facts, uuids)
            if others:
                raise self._outdated(f"what it holds differs in more than the update names: {', '.join(others[:3])}")
            held, order = rows.read_held_about(connection, uuids)
            findings, transitions = settle((finding for domain in update.domains for finding in domain.findings), held, at)
            settled = _with_findings(update, findings)
            _, last_full_at = rows.last_full(connection, heartbeat["seq"])
            seq = rows.add_observation(connection, facts, kind=UPDATE, observed_at=at)
            rows.write_changes(connection, seq, amend(split_update(settled, last_full_at), held, order))
            rows.write_transitions(connection, seq, transitions)
            if noted is not None:
                rows.write_gap(connection, seq, noted)
        return settled

    def _outdated(self, why: str) -> StoreOutdated:
        return StoreOutdated(
            f"{self._database.path}: the update was not stored: {why}. Expected the audit that the update began with. A full audit is "
            "due: run `exitguard audit`, or wait for the next.",
            reason="the update is of another audit",
        )

    @contextmanager
    def _dropping(self, at: datetime) -> Iterator[None]:
        """What stores the observation of `at`: if it fails, the observation is noted as dropped. Raises StoreError.

        A commit into a file that is deleted, or moved, is no failure for SQLite: so it is looked for before and afterwards.
        """
        try:
            self._require_still_there()
            yield
            self._require_still_there()
        except StoreOutdated:
            raise  # not dropped: the audit that is due will observe the same
        except StoreError as error:
            raise _dropped(error, self._note, at) from error
        except ValueError as error:
            unfit = StoreError(
                f"{self._database.path}: the observation does not fit into the database: {error}. Please report this.",
                reason=f"does not fit: {error}",
            )
            raise _dropped(unfit, self._note, at) from error

    def _require_still_there(self) -> None:
        if not self.still_there():
            raise StoreError(
                f"{self._database.path}: was deleted or replaced while it was open. Expected the file that this process opened: what "
                "would be stored in that one would be lost. The store has to be opened again, which a restart of the agent does.",
                reason="deleted or replaced while it was open",
            )

    def _refuse_reading(self, what: str) -> None:
        if self._read_only:
            raise StoreError(
                f"{self._database.path}: was opened for reading only, so nothing can be {what} in it.", reason="opened for reading"
            )

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


def _misfit(facts: FactsDocument, update: ReportUpdate) -> str | None:
    """Why `update` cannot be one of `facts`, or None."""
    uuids = [domain.uuid for domain in update.domains]
    if len(set(uuids)) < len(uuids):
        return "it names a domain twice"
    if update.head.domains or update.head.findings:
        return "its head has domains or findings"
    for domain in update.domains:
        if (domain.report is None) is (domain.uuid in facts.domain_hashes):
            return f"domain {domain.uuid} is in one of them only"
        if domain.report is None and domain.findings:
            return f"domain {domain.uuid} is gone and has findings"
        if domain.report is not None and domain.report.uuid != domain.uuid:
            return f"domain {domain.uuid} has the report of {domain.report.uuid}"
        subject = next((each.subject for each in domain.findings if (each.subject.kind, each.subject.id) != (_DOMAIN, domain.uuid)), None)
        if subject is not None:
            return f"domain {domain.uuid} has a finding about {subject.kind} {subject.id}"
    return None


def _with_findings(update: ReportUpdate, findings: tuple[Finding, ...]) -> ReportUpdate:
    """`update` with `findings`, which are its own in their order."""
    rest = iter(findings)
    domains = (domain.model_copy(update={"findings": tuple(islice(rest, len(domain.findings)))}) for domain in update.domains)
    return update.model_copy(update={"domains": tuple(domains)})


def _dropped(error: StoreError, note: Path, at: datetime) -> StoreError:
    """`error`, and what became of the observation of `at`; noted where that is possible."""
    noted = True
    outcome = "is shown as a gap by `exitguard report`"
    try:
        gap.note_dropped(note, at, error.reason)
    except OSError as second:
        noted = False
        outcome = f"could not even be noted in {note} ({(second.strerror or str(second)).lower()})"
    sentence = f"{error} The observation of {format_rfc3339(at)} was not stored; that {outcome}."
    return type(error)(sentence, reason=error.reason, noted=noted)
