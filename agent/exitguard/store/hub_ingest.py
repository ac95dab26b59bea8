"""One batch of a host's records, taken in one transaction.

Records are taken in the order of their numbers, from where the host's spool stands; that number, and all that the records say, is
committed together. So a batch that comes twice, a hub that is killed anywhere, and two hubs that get the same batch at the same time
change nothing: the host's row is locked, and what is not beyond its number was taken already.
"""

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.finding import SubjectKind
from exitguard.model.history import Gap
from exitguard.model.hub import GapKind
from exitguard.model.ledger import COUNTS, LedgerRow
from exitguard.model.push import STANDING_KINDS, LedgerRows, PushAnswer, PushBatch, PushKind, RefusedRecord, SpoolGap
from exitguard.model.rates import HostSavings
from exitguard.model.samples import Samples
from exitguard.model.time import to_microseconds
from exitguard.store.errors import StoreError
from exitguard.store.hub_database import HubDatabase
from exitguard.store.hub_days import DAY_MICROSECONDS, day_of
from exitguard.store.hub_records import Prepared, clean, finding_rows, read_payload
from exitguard.store.hub_tables import document, finding, finding_event, gap, host, ledger, samples, savings, spool, standing

#: A row of `standing` lasts no longer: so precisely it is known later when a host last said something before a time.
_LONGEST_STANDING = 3_600_000_000
_ZLIB_LEVEL = 1
_LIMIT_REASON_CHARACTERS = 1000
_FINDING_KEY = ("rule", "subject_kind", "subject_id", "ordinal")
_FINDING_REST = ("subject_name", "severity", "verdict", "reason", "since")
_EVENT = tuple(column.name for column in finding_event.columns)

#: What a host that has not changed costs, made once: to put together a statement takes longer than to execute it.
_THE_HOST = select(host).where(host.c.host_id == bindparam("of_host")).with_for_update()
_EXTEND = (
    update(standing)
    .where(standing.c.host_id == bindparam("of_host"), standing.c.day == bindparam("of_day"))
    .where(standing.c.kind == bindparam("of_kind"), standing.c.position == bindparam("at_position"))
    .values(last_at=bindparam("until"), received_at=bindparam("heard_at"))
)
_HEARD_COLUMNS = ("spool_epoch", "last_seq", "position", "received_at", "clock_ahead_microseconds", "observed_at")
_HEARD = update(host).where(host.c.host_id == bindparam("of_host")).values({name: bindparam(f"now_{name}") for name in _HEARD_COLUMNS})


class UnknownHost(StoreError):  # noqa: N818 - nobody's error
    """No such host was let in."""


@dataclass
class _Standing:
    """The row of `standing` that holds by now."""

    sha256: str
    day: int
    position: int
    begun_at: int
    last_at: int
    is_stored: bool
    changed: bool = False


@dataclass
class _Batch:
    """What a transaction has taken so far, and has yet to write."""

    position: int
    #: Of the newest report before this batch.
    observed_at: int | None
    standings: dict[PushKind, _Standing]
    documents: dict[str, tuple[PushKind, bytes]] = field(default_factory=dict)
    ended: list[tuple[PushKind, _Standing]] = field(default_factory=list)
    report: AuditReport | None = None
    #: None: not read yet.
    held_before: dict[tuple[Any, ...], tuple[Any, ...]] | None = None
    held: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    samples: list[tuple[Any, ...]] = field(default_factory=list)
    savings: list[tuple[Any, ...]] = field(default_factory=list)
    ledger: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)
    gaps: dict[tuple[str, str], tuple[Any, ...]] = field(default_factory=dict)
    refused: list[RefusedRecord] = field(default_factory=list)


def needed_days(prepared: Iterable[Prepared], received_at: datetime) -> set[tuple[Table, int]]:
    """The partitions that taking these records takes."""
    today = day_of(received_at)
    days: set[tuple[Table, int]] = {(standing, today), (samples, today)}
    for each in prepared:
        if isinstance(each.read, HostSavings):
            days.add((savings, today))
        if isinstance(each.read, LedgerRows) and each.misfit is None:
            days |= {(ledger, day_of(row.hour)) for row in each.read.rows}
    return days


def take_batch(
    database: HubDatabase, connection: Connection, batch: PushBatch, prepared: Sequence[Prepared], received_at: datetime
) -> PushAnswer:
    """Take what of the batch was not taken before, within the caller's transaction. Raises UnknownHost, StoreError."""
    return _Taking(database, connection, batch, received_at).take(prepared)


class _Taking:
    def __init__(self, database: HubDatabase, connection: Connection, batch: PushBatch, received_at: datetime) -> None:
        self._database = database
        self._connection = connection
        self._batch = batch
        self._host_id = batch.host_id
        self._received_at = to_microseconds(received_at)
        self._clock_ahead = (batch.sent_at - received_at) // timedelta(microseconds=1)
        self._today = day_of(received_at)

    def take(self, prepared: Sequence[Prepared]) -> PushAnswer:
        before = self._locked_host()
        # Replicas' clocks differ, and this batch may have waited for another: what is taken later was not received earlier.
        self._received_at = max(self._received_at, before["received_at"] or 0)
        taken_seq = self._last_seq(before)
        fresh = [each for each in prepared if each.record.seq > taken_seq]
        told = [each for each in self._batch.gaps if each.last_seq > taken_seq]
        unknown = self._unknown(fresh, before)
        end = unknown[0] if unknown else None
        state = _Batch(before["position"], before["observed_at"], _standings_of(before))
        items: list[SpoolGap | Prepared] = [*fresh, *told]
        for item in sorted(items, key=lambda each: _numbers(each)[1]):
            first, last = _numbers(item)
            if end is not None and last >= end:
                break
            if first > taken_seq + 1:
                at = item.first_at if isinstance(item, SpoolGap) else item.record.observed_at
                self._lose(state, GapKind.MISSING, _lost(taken_seq + 1, first - 1, at, "never arrived"))
            if isinstance(item, SpoolGap):
                begin = max(first, taken_seq + 1)
                rest = {"first_seq": begin, "dropped": min(item.dropped, last - begin + 1)}
                self._lose(state, GapKind.SPOOL, item.model_copy(update=rest))
            else:
                self._take_record(state, item)
            taken_seq = max(taken_seq, last)
        self._write(state, taken_seq)
        return PushAnswer(
            spool_epoch=self._batch.spool_epoch, acknowledged_seq=taken_seq, send_in_full=tuple(unknown), refused=tuple(state.refused)
        )

    # --- what is there ------------------------------------------------------------------------------------------------------------

    def _locked_host(self) -> RowMapping:
        row = self._connection.execute(_THE_HOST, {"of_host": self._host_id}).mappings().one_or_none()
        if row is None:
            raise UnknownHost(f"host {self._host_id}: is not known. Expected one that was let in.", reason="unknown host")
        return row

    def _last_seq(self, before: RowMapping) -> int:
        """How far this spool is taken. Where it is another than the host's newest, that one's number is put aside."""
        epoch = self._batch.spool_epoch
        if before["spool_epoch"] == epoch:
            return int(before["last_seq"])
        found = self._connection.execute(
            select(spool.c.last_seq).where(spool.c.host_id == self._host_id, spool.c.spool_epoch == epoch)
        ).scalar_one_or_none()
        if before["spool_epoch"] is not None:
            self._database.replace_rows(
                self._connection, spool, [(self._host_id, before["spool_epoch"], before["last_seq"])], newer="last_seq"
            )
        return 0 if found is None else int(found)

    def _unknown(self, fresh: Iterable[Prepared], before: RowMapping) -> list[int]:
        """The numbers of the records that came as a hash which the hub has not."""
        here = {(PushKind(kind), before[f"{kind}_sha256"]) for kind in STANDING_KINDS}
        asked: dict[int, str] = {}
        for each in fresh:
            key = (each.record.kind, each.record.sha256)
            if each.record.payload is not None and each.misfit is None:
                here.add(key)
            elif each.record.payload is None and key not in here:
                asked[each.record.seq] = each.record.sha256
        if not asked:
            return []
        known = self._known_documents(set(asked.values()))
        return [each.record.seq for each in fresh if each.record.seq in asked and (each.record.kind, each.record.sha256) not in known]

    def _known_documents(self, hashes: Collection[str]) -> set[tuple[PushKind, str]]:
        """Which of these are there. They are touched first, so that nothing forgets them before this transaction ends."""
        concerned = (document.c.host_id == self._host_id) & document.c.sha256.in_(hashes)
        self._connection.execute(update(document).where(concerned, document.c.last_day < self._today).values(last_day=self._today))
        found = self._connection.execute(select(document.c.kind, document.c.sha256).where(concerned))
        return {(PushKind(kind), str(sha256)) for kind, sha256 in found}

    # --- taking -------------------------------------------------------------------------------------------------------------------

    def _take_record(self, state: _Batch, item: Prepared) -> None:
        record = item.record
        if item.misfit is not None:
            state.refused.append(RefusedRecord(seq=record.seq, reason=item.misfit))
            self._lose(state, GapKind.REFUSED, _lost(record.seq, record.seq, record.observed_at, item.misfit))
            return
        state.position += 1
        at = to_microseconds(record.observed_at)
        match item.read:
            case LedgerRows():
                self._take_ledger(state, item.read.rows)
            case Samples():
                body = zlib.compress(item.body or b"", _ZLIB_LEVEL)
                row = (self._host_id, self._today, state.position, to_microseconds(item.read.observed_at), self._received_at, body)
                state.samples.append(row)
            case HostSavings():
                body = zlib.compress(item.read.model_dump_json().encode("utf-8"), _ZLIB_LEVEL)
                state.savings.append((self._host_id, self._today, state.position, at, self._received_at, body))
            case Gap():
                self._note_gap(state, GapKind.HOST, item.read)
            case FactsDocument() | AuditReport() | None:
                self._take_standing(state, item, at)

    def _take_standing(self, state: _Batch, item: Prepared, at: int) -> None:
        record, now = item.record, state.standings.get(item.record.kind)
        same = now is not None and now.sha256 == record.sha256
        if item.body is not None and not same:
            state.documents[record.sha256] = (record.kind, item.body)
        if record.kind is PushKind.REPORT and not same:
            self._take_report(state, self._report_of(state, item), at)
        if now is not None and same and now.day == self._today and 0 <= at - now.begun_at < _LONGEST_STANDING:
            now.last_at, now.changed = at, True
            return
        if now is not None:
            state.ended.append((record.kind, now))
        state.standings[record.kind] = _Standing(record.sha256, self._today, state.position, at, at, is_stored=False, changed=True)

    def _report_of(self, state: _Batch, item: Prepared) -> AuditReport:
        """The report; of one that came as a hash, what an earlier one of the same hash said."""
        if isinstance(item.read, AuditReport):
            return item.read
        if item.record.sha256 in state.documents:
            body = state.documents[item.record.sha256][1]
        else:
            chosen = select(document.c.body).where(document.c.host_id == self._host_id, document.c.sha256 == item.record.sha256)
            body = zlib.decompress(self._connection.execute(chosen).scalar_one())
        read = read_payload(item.record, body)
        if not isinstance(read, AuditReport):
            raise StoreError(f"host {self._host_id}: {item.record.sha256} is no report. Please report this.", reason="no report")
        return read

    def _take_report(self, state: _Batch, report: AuditReport, at: int) -> None:
        state.report = report
        if state.held_before is None:
            state.held_before = self._held_findings()
            state.held = dict(state.held_before)
        now = {key: (*row[:-1], None if row[-1] is None else to_microseconds(row[-1])) for key, row in finding_rows(report).items()}
        if report.host.libvirt.listing.reason is not None:  # no domain was looked at, so none is gone
            now |= {key: row for key, row in state.held.items() if key[1] == SubjectKind.DOMAIN and key not in now}
        line = 0
        for key in [*now, *(key for key in state.held if key not in now)]:
            was, became = state.held.get(key), now.get(key)
            if (was and was[2]) == (became and became[2]):
                continue
            name, _, _, reason, _ = became or was or ("", "", "", "", None)
            told = (None if was is None else was[2], None if became is None else became[2], reason if became is not None else "is gone")
            state.events.append((self._host_id, state.position, line, at, self._received_at, *key[:3], name, *told))
            line += 1
        state.held = now

    def _take_ledger(self, state: _Batch, rows: Iterable[LedgerRow]) -> None:
        for row in rows:
            hour, run = to_microseconds(row.hour), row.incarnation
            key = (self._host_id, hour // DAY_MICROSECONDS, hour, clean(run.domain_uuid), clean(run.boot_id), run.qemu_start_ticks)
            before = state.ledger.get(key)
            if before is not None and before[len(key)] >= row.revision:
                continue
            body = row.standing.model_dump_json().replace("\\u0000", "\\ufffd")
            counts = (getattr(row, name) for name in COUNTS)
            state.ledger[key] = (*key, row.revision, clean(row.domain_name), str(row.standing.guard), body, *counts)

    def _lose(self, state: _Batch, kind: GapKind, lost: SpoolGap) -> None:
        gap_id = f"{self._batch.spool_epoch}/{lost.first_seq}"
        numbers = f"record {lost.first_seq}" if lost.first_seq == lost.last_seq else f"records {lost.first_seq} to {lost.last_seq}"
        reason = f"{numbers}: {lost.reason}"
        self._note_gap(state, kind, Gap(id=gap_id, first_at=lost.first_at, last_at=lost.last_at, dropped=lost.dropped, reason=reason))

    def _note_gap(self, state: _Batch, kind: GapKind, noted: Gap) -> None:
        begin, end = to_microseconds(noted.first_at), to_microseconds(noted.last_at)
        reason = clean(noted.reason, _LIMIT_REASON_CHARACTERS)
        row = (self._host_id, str(kind), clean(noted.id), begin, end, noted.dropped, reason, self._received_at)
        before = state.gaps.get((kind, noted.id))
        if before is None or before[5] < noted.dropped:
            state.gaps[kind, noted.id] = row

    # --- writing ------------------------------------------------------------------------------------------------------------------

    def _write(self, state: _Batch, taken_seq: int) -> None:
        add, connection = self._database.add_rows, self._connection
        self._write_documents(state)
        self._write_standings(state)
        if state.held_before is not None:
            self._write_findings(state.held_before, state.held)
        if state.events:
            add(connection, "finding_event", _EVENT, state.events)
        if state.samples:
            add(connection, "samples", tuple(column.name for column in samples.columns), state.samples)
        if state.savings:
            add(connection, "savings", tuple(column.name for column in savings.columns), state.savings)
        self._database.replace_rows(connection, ledger, list(state.ledger.values()), newer="revision")
        self._database.replace_rows(connection, gap, list(state.gaps.values()), newer="dropped")
        report = state.standings.get(PushKind.REPORT)
        heard = {
            "spool_epoch": self._batch.spool_epoch,
            "last_seq": taken_seq,
            "position": state.position,
            "received_at": self._received_at,
            "clock_ahead_microseconds": self._clock_ahead,
            "observed_at": report.last_at if report is not None and report.changed else state.observed_at,
        }
        connection.execute(_HEARD, {"of_host": self._host_id, **{f"now_{name}": value for name, value in heard.items()}})
        values: dict[str, Any] = {} if state.report is None else _told_of(state.report)
        for kind, now in state.standings.items():
            if not now.is_stored:
                told = {"sha256": now.sha256, "day": now.day, "position": now.position, "begun_at": now.begun_at}
                values |= {f"{kind}_{name}": value for name, value in told.items()}
        if values:
            connection.execute(update(host).where(host.c.host_id == self._host_id).values(values))

    def _write_documents(self, state: _Batch) -> None:
        """Those that are new; what was said before is said today again."""
        if not state.documents and not any(not now.is_stored for now in state.standings.values()):
            return
        insert = postgresql_insert if self._database.is_postgresql else sqlite_insert
        for sha256, (kind, body) in state.documents.items():
            row = {"host_id": self._host_id, "sha256": sha256, "kind": str(kind), "last_day": self._today}
            statement = insert(document).values(**row, body=zlib.compress(body, _ZLIB_LEVEL))
            again = statement.on_conflict_do_update(index_elements=["host_id", "sha256"], set_={"last_day": self._today})
            self._connection.execute(again)
        older = {now.sha256 for now in state.standings.values() if not now.is_stored} - set(state.documents)
        if older:
            self._known_documents(older)

    def _write_standings(self, state: _Batch) -> None:
        current = [(kind, now) for kind, now in state.standings.items() if now.changed]
        touched = [(kind, now) for kind, now in [*state.ended, *current] if now.changed]
        extended = [
            {
                "of_host": self._host_id,
                "of_day": now.day,
                "of_kind": str(kind),
                "at_position": now.position,
                "until": now.last_at,
                "heard_at": self._received_at,
            }
            for kind, now in touched
            if now.is_stored
        ]
        if extended:
            self._connection.execute(_EXTEND, extended)
        new = [
            (self._host_id, now.day, str(kind), now.position, now.sha256, now.begun_at, now.last_at, self._received_at)
            for kind, now in touched
            if not now.is_stored
        ]
        if new:
            self._database.add_rows(self._connection, "standing", tuple(column.name for column in standing.columns), new)

    def _held_findings(self) -> dict[tuple[Any, ...], tuple[Any, ...]]:
        columns = [finding.c[name] for name in (*_FINDING_KEY, *_FINDING_REST)]
        found = self._connection.execute(select(*columns).where(finding.c.host_id == self._host_id))
        return {tuple(row[: len(_FINDING_KEY)]): tuple(row[len(_FINDING_KEY) :]) for row in found}

    def _write_findings(self, before: dict[tuple[Any, ...], tuple[Any, ...]], now: dict[tuple[Any, ...], tuple[Any, ...]]) -> None:
        gone = [key for key in before if key not in now]
        if len(gone) == len(before) > 0:
            self._connection.execute(delete(finding).where(finding.c.host_id == self._host_id))
        else:
            for key in gone:
                row = finding.c.host_id == self._host_id
                for name, value in zip(_FINDING_KEY, key, strict=True):
                    row &= finding.c[name] == value
                self._connection.execute(delete(finding).where(row))
        changed = [(self._host_id, *key, *row) for key, row in now.items() if before.get(key) != row]
        if before:
            self._database.replace_rows(self._connection, finding, changed)
        elif changed:
            self._database.add_rows(self._connection, "finding", ("host_id", *_FINDING_KEY, *_FINDING_REST), changed)


def _numbers(item: SpoolGap | Prepared) -> tuple[int, int]:
    return (item.first_seq, item.last_seq) if isinstance(item, SpoolGap) else (item.record.seq, item.record.seq)


def _lost(first_seq: int, last_seq: int, at: datetime, reason: str) -> SpoolGap:
    dropped = last_seq - first_seq + 1
    return SpoolGap(first_seq=first_seq, last_seq=last_seq, dropped=dropped, first_at=at, last_at=at, reason=reason)


def _standings_of(row: RowMapping) -> dict[PushKind, _Standing]:
    found = {}
    for kind in sorted(STANDING_KINDS):
        sha256, day, position, begun_at = (row[f"{kind}_{name}"] for name in ("sha256", "day", "position", "begun_at"))
        if sha256 is not None:
            found[kind] = _Standing(sha256, day, position, begun_at, begun_at, is_stored=True)
    return found


def _told_of(report: AuditReport) -> dict[str, Any]:
    """What of a report stands in its host's row."""
    kernel = report.host.kernel
    return {
        "hostname": None if report.host.hostname is None else clean(report.host.hostname),
        "policy": clean(report.policy),
        "exit_code": report.summary.exit_code,
        "kernel_state": str(kernel.state),
        "kernel_release": None if kernel.release is None else clean(kernel.release),
        "domains": len(report.domains),
        "summary": report.summary.model_dump_json().replace("\\u0000", "\\ufffd"),
    }
