"""What waits on a host to be pushed to its hub.

The spool follows the store: what the store has and the spool has not is taken in, in one transaction with the note of how far that went.
So nothing that is stored is passed over, whatever is killed when, and nothing is taken in twice. A record leaves once the hub says that
it has committed it, or, where there is no more room, unsent: then the gap stands in its place until the hub knows of that.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from exitguard.model.canonical import record_json
from exitguard.model.history import Gap
from exitguard.model.ledger import COUNTS, LedgerRow, RunStanding
from exitguard.model.push import (
    MOST_BATCH_BYTES,
    MOST_GAPS,
    MOST_LEDGER_ROWS,
    MOST_RECORDS,
    STANDING_KINDS,
    LedgerRows,
    PushAnswer,
    PushBatch,
    PushKind,
    PushRecord,
    SavingsText,
    SpoolGap,
    unstamped,
)
from exitguard.model.rates import HostSavings
from exitguard.model.samples import Incarnation
from exitguard.model.time import from_microseconds, to_microseconds
from exitguard.store import rows
from exitguard.store.database import Database
from exitguard.store.errors import StoreError
from exitguard.store.tables import (
    gap,
    ledger_hour,
    ledger_run,
    ledger_standing,
    observation,
    samples,
    spool,
    spool_body,
    spool_cursor,
    spool_gap,
    spool_ledger,
    spool_record,
)

#: What one transaction takes in.
_OBSERVATIONS_A_TURN, _SAMPLES_A_TURN = 2, 100
#: A batch is sent before it is larger, unless one record alone is.
_BATCH_BYTES = 4 << 20
#: What a batch is beside its payloads.
_FRAME_BYTES = 64 << 10
_ZLIB_LEVEL = 1
_FORGOTTEN = "forgotten before it was pushed"


@dataclass(frozen=True)
class SpoolState:
    """How full the spool is. `dropped` have left unsent, and the hub does not know of it yet."""

    records: int
    bytes: int
    dropped: int


class _Document(NamedTuple):
    kind: PushKind
    observed_at: int
    body: bytes


class Spool:
    """The spool of one open store. Raises StoreError as the store does."""

    def __init__(self, database: Database, host_id: str) -> None:
        self._database = database
        self._host_id = host_id

    def take_in(self, limit_bytes: int, pulse: Callable[[], None] = lambda: None) -> int:
        """Take in what the store has since the last time; the first time its newest audit and all hours of its ledger. How many records.

        Where the spool is larger than `limit_bytes` then, its oldest records leave it.
        """
        taken = 0
        while True:
            with self._writing() as connection:
                now = self._take_some(connection)
                self._make_room(connection, limit_bytes)
            pulse()
            taken += now
            if now == 0:
                return taken

    def add_savings(self, savings: HostSavings, at: datetime) -> None:
        """What the host saves at `at`; from the first `take_in` on."""
        body = record_json(SavingsText.of(savings).model_dump(mode="json"))
        with self._writing() as connection:
            cursor = _cursor(connection)
            if cursor is not None:
                self._add(connection, cursor["next_seq"], [_Document(PushKind.SAVINGS, to_microseconds(at), body)])

    def next_batch(self, sent_at: datetime, *, in_full: Collection[int] = (), most_records: int = MOST_RECORDS) -> PushBatch | None:
        """The oldest records; None where there are none. What the hub is known to have goes as a hash, unless it is asked for `in_full`."""
        with self._reading() as connection:
            cursor = _cursor(connection)
            if cursor is None:
                return None
            gaps = _gaps(connection)
            records = tuple(_records(connection, cursor, frozenset(in_full), min(most_records, MOST_RECORDS)))
            epoch = str(connection.execute(select(spool.c.epoch)).scalar_one())
        if not records and not gaps:
            return None
        return PushBatch(host_id=self._host_id, spool_epoch=epoch, sent_at=sent_at, records=records, gaps=gaps)

    def acknowledge(self, batch: PushBatch, answer: PushAnswer) -> bool:
        """What the hub has committed leaves. Whether it knows more than this spool ever had: then the spool begins anew.

        So it is after a backup of the store was put back: the numbers that would come next have been used.
        """
        acknowledged = answer.acknowledged_seq
        refused = {each.seq for each in answer.refused}
        with self._writing() as connection:
            cursor = _cursor(connection)
            epoch = connection.execute(select(spool.c.epoch)).scalar_one()
            if cursor is None or answer.spool_epoch != epoch:
                return False
            if acknowledged >= cursor["next_seq"]:
                self._begin_anew(connection, cursor)
                return True
            known = {
                f"known_{record.kind}": record.sha256
                for record in batch.records
                if record.kind in STANDING_KINDS and record.seq <= acknowledged and record.seq not in refused
            }
            if known:
                connection.execute(update(spool_cursor).values(known))
            connection.execute(delete(spool_record).where(spool_record.c.seq <= acknowledged))
            connection.execute(delete(spool_gap).where(spool_gap.c.last_seq <= acknowledged))
            _drop_unused_bodies(connection)
            return False

    def drop(self, seq: int, reason: str) -> None:
        """A record that can never be sent leaves, and is a gap."""
        with self._writing() as connection:
            found = connection.execute(select(spool_record).where(spool_record.c.seq == seq)).mappings().one_or_none()
            if found is not None:
                _drop_records(connection, [found], reason)

    def state(self) -> SpoolState:
        with self._reading() as connection:
            return SpoolState(
                records=int(connection.execute(select(func.count()).select_from(spool_record)).scalar_one()),
                bytes=_used(connection),
                dropped=int(connection.execute(select(func.coalesce(func.sum(spool_gap.c.dropped), 0))).scalar_one()),
            )

    # --- taking in ----------------------------------------------------------------------------------------------------------------

    def _take_some(self, connection: Connection) -> int:
        cursor = _cursor(connection)
        if cursor is None:
            cursor = _begin(connection)
        observed, observation_seq = self._observations(connection, cursor)
        sampled, samples_id = _samples(connection, cursor["samples_id"])
        documents = [*observed, *sampled, *_ledger(connection)]
        self._add(connection, cursor["next_seq"], documents)
        connection.execute(update(spool_cursor).values(observation_seq=observation_seq, samples_id=samples_id))
        return len(documents)

    def _add(self, connection: Connection, next_seq: int, documents: Collection[_Document]) -> None:
        for seq, document in enumerate(documents, start=next_seq):
            sha256 = "sha256:" + hashlib.sha256(document.body).hexdigest()
            packed = zlib.compress(document.body, _ZLIB_LEVEL)
            body = sqlite_insert(spool_body).values(sha256=sha256, body=packed, size=len(document.body))
            connection.execute(body.on_conflict_do_nothing())
            row = {"seq": seq, "kind": str(document.kind), "sha256": sha256, "observed_at": document.observed_at}
            connection.execute(insert(spool_record).values(row))
        connection.execute(update(spool_cursor).values(next_seq=next_seq + len(documents)))

    def _observations(self, connection: Connection, cursor: RowMapping) -> tuple[list[_Document], int]:
        """Facts and report of the next audits and updates, the gaps that ended with them, and how far that went."""
        after = cursor["observation_seq"]
        horizon = int(connection.execute(select(spool.c.horizon_seq)).scalar_one())
        kept = select(observation).where(observation.c.seq > after, observation.c.seq >= horizon)
        found = connection.execute(kept.order_by(observation.c.seq).limit(_OBSERVATIONS_A_TURN)).mappings().all()
        documents: list[_Document] = []
        for heartbeat in found:
            if heartbeat["seq"] > after + 1:  # numbers are not used twice, and none is left out
                documents.append(_forgotten(heartbeat, after + 1, heartbeat["seq"] - 1))
            facts, report = rows.read_facts(connection, heartbeat), rows.read_report(connection, heartbeat)
            documents.append(_Document(PushKind.FACTS, to_microseconds(facts.observed_at), unstamped(facts)))
            documents.append(_Document(PushKind.REPORT, heartbeat["observed_at"], unstamped(report)))
            after = heartbeat["seq"]
        ended = select(gap).where(gap.c.seq > cursor["observation_seq"], gap.c.seq <= after).order_by(gap.c.seq)
        for row in connection.execute(ended).mappings().all():
            told = Gap(
                id=row["id"],
                first_at=from_microseconds(row["first_at"]),
                last_at=from_microseconds(row["last_at"]),
                dropped=row["dropped"],
                reason=row["reason"],
            )
            documents.append(_Document(PushKind.GAP, row["last_at"], record_json(told.model_dump(mode="json"))))
        return documents, after

    def _make_room(self, connection: Connection, limit_bytes: int) -> None:
        """Too large a record goes at once, since no hub would take it; then the oldest, until the rest fits."""
        large = select(spool_record).join(spool_body, spool_body.c.sha256 == spool_record.c.sha256)
        too_large = connection.execute(large.where(spool_body.c.size > MOST_BATCH_BYTES - _FRAME_BYTES)).mappings().all()
        if too_large:
            _drop_records(connection, too_large, f"larger than {MOST_BATCH_BYTES >> 20} MiB")
        while (excess := _used(connection) - limit_bytes) > 0:
            oldest = connection.execute(select(spool_record).order_by(spool_record.c.seq).limit(MOST_RECORDS)).mappings().all()
            if not oldest:
                return
            freed, going = 0, []
            for row in oldest:
                going.append(row)
                body = select(func.length(spool_body.c.body)).where(spool_body.c.sha256 == row["sha256"])
                freed += int(connection.execute(body).scalar_one())
                if freed >= excess:
                    break
            _drop_records(connection, going, f"the spool was full ({limit_bytes >> 20} MiB)")

    # --- inner --------------------------------------------------------------------------------------------------------------------

    def _begin_anew(self, connection: Connection, cursor: RowMapping) -> None:
        """Another epoch: what waits is numbered from 1 on. What the hub has of the old one stays there."""
        connection.execute(update(spool).values(epoch=str(uuid4())))
        first = connection.execute(select(func.min(spool_record.c.seq))).scalar_one_or_none() or cursor["next_seq"]
        gaps = connection.execute(select(func.min(spool_gap.c.first_seq))).scalar_one_or_none()
        offset = min(first, first if gaps is None else gaps) - 1
        for table, columns in ((spool_record, ("seq",)), (spool_gap, ("first_seq", "last_seq"))):
            # By way of negative numbers, so that none meets one that is still there.
            connection.execute(update(table).values({name: offset - table.c[name] for name in columns}))
            connection.execute(update(table).values({name: -table.c[name] for name in columns}))
        connection.execute(update(spool_cursor).values(next_seq=cursor["next_seq"] - offset, known_facts=None, known_report=None))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._explained(), self._database.transaction("IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._explained(), self._database.transaction("DEFERRED") as connection:
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # pydantic's ValidationError is one
            what = " ".join(str(error).split())[:300]
            raise StoreError(
                f"{self._database.path}: holds what cannot be pushed: {what}. Expected what this exitguard or an older one wrote.",
                reason="a stored document cannot be read",
            ) from error


def _cursor(connection: Connection) -> RowMapping | None:
    return connection.execute(select(spool_cursor)).mappings().one_or_none()


def _begin(connection: Connection) -> RowMapping:
    """From now on this host pushes: its newest audit, the whole ledger, and what comes."""
    newest = connection.execute(select(func.coalesce(func.max(observation.c.seq), 1))).scalar_one()
    last_samples = connection.execute(select(func.coalesce(func.max(samples.c.id), 0))).scalar_one()
    values = {"observation_seq": int(newest) - 1, "samples_id": int(last_samples), "next_seq": 1}
    connection.execute(insert(spool_cursor).values(id=1, **values))
    connection.execute(insert(spool_ledger).from_select(["hour", "run_id"], select(ledger_hour.c.hour, ledger_hour.c.run_id)))
    return connection.execute(select(spool_cursor)).mappings().one()


def _forgotten(heartbeat: RowMapping, first: int, last: int) -> _Document:
    """Observations that the store's own retention took away before they were taken in."""
    at = from_microseconds(heartbeat["observed_at"])
    told = Gap(id=f"observations {first} to {last}", first_at=at, last_at=at, dropped=last - first + 1, reason=_FORGOTTEN)
    return _Document(PushKind.GAP, heartbeat["observed_at"], record_json(told.model_dump(mode="json")))


def _samples(connection: Connection, after: int) -> tuple[list[_Document], int]:
    found = connection.execute(
        select(samples.c.id, samples.c.observed_at).where(samples.c.id > after).order_by(samples.c.id).limit(_SAMPLES_A_TURN)
    ).all()
    documents = []
    for row, observed_at in found:
        document = rows.read_samples(connection, row)
        if document is not None:
            documents.append(_Document(PushKind.SAMPLES, observed_at, record_json(document.model_dump(mode="json"))))
    return documents, after if not found else int(found[-1][0])


def _ledger(connection: Connection) -> list[_Document]:
    """The next rows of the ledger that changed, as one document; they count as taken in."""
    noted = connection.execute(select(spool_ledger).order_by(spool_ledger.c.hour, spool_ledger.c.run_id).limit(MOST_LEDGER_ROWS)).all()
    if not noted:
        return []
    last = noted[-1]
    up_to = (spool_ledger.c.hour < last.hour) | ((spool_ledger.c.hour == last.hour) & (spool_ledger.c.run_id <= last.run_id))
    statement = (
        select(ledger_hour, ledger_run.c.incarnation, ledger_run.c.domain_name, ledger_standing.c.body)
        .join(spool_ledger, (spool_ledger.c.hour == ledger_hour.c.hour) & (spool_ledger.c.run_id == ledger_hour.c.run_id))
        .join(ledger_run, ledger_run.c.id == ledger_hour.c.run_id)
        .join(ledger_standing, ledger_standing.c.id == ledger_hour.c.standing_id)
        .where(up_to)
        .order_by(ledger_hour.c.hour, ledger_hour.c.run_id)
    )
    told = tuple(_ledger_row(row) for row in connection.execute(statement).mappings())
    connection.execute(delete(spool_ledger).where(up_to))
    if not told:
        return []
    body = record_json(LedgerRows(rows=told).model_dump(mode="json"))
    return [_Document(PushKind.LEDGER, int(last.hour), body)]


def _ledger_row(row: RowMapping) -> LedgerRow:
    counts: dict[str, Any] = {name: int(row[name]) for name in COUNTS}
    return LedgerRow(
        incarnation=Incarnation.from_key(row["incarnation"]),
        hour=from_microseconds(row["hour"]),
        revision=row["revision"],
        domain_name=row["domain_name"],
        standing=RunStanding.model_validate_json(row["body"]),
        **counts,
    )


def _records(connection: Connection, cursor: RowMapping, in_full: frozenset[int], limit: int) -> Iterator[PushRecord]:
    known = {kind: cursor[f"known_{kind}"] for kind in STANDING_KINDS}
    size = 0
    listed = connection.execute(
        select(spool_record, spool_body.c.size)
        .join(spool_body, spool_body.c.sha256 == spool_record.c.sha256)
        .order_by(spool_record.c.seq)
        .limit(limit)
    ).mappings()
    for number, row in enumerate(listed.all()):
        kind = PushKind(row["kind"])
        payload = None
        if row["seq"] in in_full or kind not in STANDING_KINDS or known[kind] != row["sha256"]:
            size += row["size"]
            if number > 0 and size > _BATCH_BYTES:
                return
            chosen = select(spool_body.c.body).where(spool_body.c.sha256 == row["sha256"])
            payload = json.loads(zlib.decompress(connection.execute(chosen).scalar_one()))
            if kind in STANDING_KINDS:
                known[kind] = row["sha256"]
        at = from_microseconds(row["observed_at"])
        yield PushRecord(seq=row["seq"], kind=kind, sha256=row["sha256"], observed_at=at, payload=payload)


def _gaps(connection: Connection) -> tuple[SpoolGap, ...]:
    """The oldest. Of more than fit in, the hub finds that their numbers are missing."""
    found = connection.execute(select(spool_gap).order_by(spool_gap.c.first_seq).limit(MOST_GAPS)).mappings()
    return tuple(
        SpoolGap(
            first_seq=row["first_seq"],
            last_seq=row["last_seq"],
            dropped=row["dropped"],
            first_at=from_microseconds(row["first_at"]),
            last_at=from_microseconds(row["last_at"]),
            reason=row["reason"],
        )
        for row in found
    )


def _drop_records(connection: Connection, going: Collection[RowMapping], reason: str) -> None:
    """These leave unsent. A gap that ends where one of them begins, for the same reason, grows."""
    for row in sorted(going, key=lambda each: int(each["seq"])):
        seq, at = row["seq"], row["observed_at"]
        connection.execute(delete(spool_record).where(spool_record.c.seq == seq))
        grown = update(spool_gap).where(spool_gap.c.last_seq == seq - 1, spool_gap.c.reason == reason)
        values = {"last_seq": seq, "dropped": spool_gap.c.dropped + 1, "last_at": at}
        if connection.execute(grown.values(values)).rowcount == 0:
            told = {"first_seq": seq, "last_seq": seq, "dropped": 1, "first_at": at, "last_at": at, "reason": reason}
            connection.execute(insert(spool_gap).values(told))
    _drop_unused_bodies(connection)


def _drop_unused_bodies(connection: Connection) -> None:
    used = select(spool_record.c.seq).where(spool_record.c.sha256 == spool_body.c.sha256).exists()
    connection.execute(delete(spool_body).where(~used))


def _used(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.sum(func.length(spool_body.c.body)), 0))).scalar_one())
