"""What is too old, or too much, is forgotten: from the old end, in small transactions, each of which leaves the store in order.

History first gets a new horizon, in one short transaction: from then on, what is before it is not there any more for anybody.
Then it is swept away, batch by batch; so a kill leaves some of it for the next pruning, and nothing in between to be read.

- The horizon is a full audit, since an update says when most of its parts were observed by the full audit before it.
- It is never after the last full audit: what is told now, with its `since`, stays, whatever its age.
- Order is by sequence number. A row from the future (the clock was wrong then, or is wrong now) counts as old as the next
  that is not; so neither rows from the future nor a clock that was set back makes anything go before its time.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, delete, func, literal, select, update

from exitguard.model.time import to_microseconds
from exitguard.store.database import Database
from exitguard.store.ledger import HostLedger
from exitguard.store.tables import UPDATE, facts_document, gap, observation, samples, section, spool, transition

#: What one transaction deletes at most: well under a second of work, even on a slow disk.
_BATCH_ROWS = 500
_BATCH_BYTES = 4 * 2**20
#: Where the database is too large, this part of the audits goes before it is measured again.
_STEPS = 32
_NO_BODY = literal(b"")


@dataclass
class Pruning:
    """One pruning under way, and what it has deleted so far."""

    database: Database
    #: The id of a gap that may still grow: it stays.
    unfinished_gap: str | None
    #: Called after each transaction; may raise to end the pruning there.
    pulse: Callable[[], None]
    observations: int = 0
    documents: int = 0
    samples: int = 0

    def forget_old(self, now: datetime, *, history: timedelta, samples_kept: timedelta) -> None:
        """Forget observations older than `history`, samples older than `samples_kept`, and what a kill left behind earlier."""
        last = self._last_before(samples.c.id, samples.c.observed_at, now - samples_kept, now)
        self.samples += self._forget_all(samples.c.id, samples.c.body, samples.c.id, (samples.c.id <= last) & _but_last(samples.c.id))
        last = self._last_before(observation.c.seq, observation.c.observed_at, now - history, now)
        self._forget_before(lambda connection, _: _last_full(connection, last + 1))

    def fit(self, limit_bytes: int) -> None:
        """Forget the oldest samples, hours of the ledger, then history, until no more than `limit_bytes` are used, or no more may go."""
        while (excess := self.database.used_bytes() - limit_bytes) > 0:
            forgotten = self._forget_batch(samples.c.id, samples.c.body, samples.c.id, _but_last(samples.c.id), most_bytes=excess)
            if not forgotten:
                break
            self.samples += forgotten
        while self.database.used_bytes() > limit_bytes and HostLedger(self.database).forget_oldest_day():
            self.pulse()
        while self.database.used_bytes() > limit_bytes and self._forget_before(_step):
            pass

    def _forget_before(self, next_horizon: Callable[[Connection, int], int]) -> bool:
        """Move the horizon to where `next_horizon` says, given the one of now, and delete what nothing after it needs; whether it moved."""
        with self.database.transaction("IMMEDIATE") as connection:
            before = int(connection.execute(select(spool.c.horizon_seq)).scalar_one())
            horizon = max(before, next_horizon(connection, before))
            if horizon > before:
                connection.execute(update(spool).values(horizon_seq=horizon))
        self._forget_all(section.c.id, section.c.body, section.c.until_seq, section.c.until_seq <= horizon)
        # What still holds begins at the horizon now, since the observation that it began with goes. verdict_since says since when.
        self._move_all(section.c.id, section.c.since_seq, horizon)
        self._forget_all(transition.c.id, _NO_BODY, transition.c.seq, transition.c.seq < horizon)
        self._forget_all(gap.c.id, _NO_BODY, gap.c.seq, (gap.c.seq < horizon) & (gap.c.id != (self.unfinished_gap or "")))
        self._move_all(gap.c.id, gap.c.seq, horizon)
        self.observations += self._forget_all(observation.c.seq, _NO_BODY, observation.c.seq, observation.c.seq < horizon)
        ended = facts_document.c.until_seq
        self.documents += self._forget_all(facts_document.c.hash, facts_document.c.body, ended, ended <= horizon)
        return horizon > before

    def _last_before(self, key: Column[Any], observed_at: Column[Any], oldest: datetime, now: datetime) -> int:
        """The key of the last row that is older than `oldest`, before any that is not; 0 where there is none."""
        with self.database.transaction("DEFERRED") as connection:
            young = observed_at.between(to_microseconds(oldest), to_microseconds(now))
            first_young = connection.execute(select(func.min(key)).where(young)).scalar_one()
            old = observed_at < to_microseconds(oldest)
            if first_young is not None:
                old &= key < first_young
            return int(connection.execute(select(func.coalesce(func.max(key), 0)).where(old)).scalar_one())

    def _forget_all(self, key: Column[Any], body: ColumnElement[Any], order: Column[Any], which: ColumnElement[bool]) -> int:
        return sum(iter(lambda: self._forget_batch(key, body, order, which), 0))

    def _forget_batch(
        self, key: Column[Any], body: ColumnElement[Any], order: Column[Any], which: ColumnElement[bool], *, most_bytes: int = _BATCH_BYTES
    ) -> int:
        """Delete the first by `order` of the rows `which`, as many as make one transaction; how many. 0 where none is left."""

        def batch(connection: Connection) -> int:
            rows = connection.execute(select(key, func.length(body)).where(which).order_by(order).limit(_BATCH_ROWS))
            keys = list(_until_bytes(((row, size) for row, size in rows), min(most_bytes, _BATCH_BYTES)))
            if keys:
                connection.execute(delete(key.table).where(key.in_(keys)))
            return len(keys)

        return self._in_turn(batch)

    def _move_all(self, key: Column[Any], seq: Column[Any], horizon: int) -> None:
        def batch(connection: Connection) -> int:
            keys = list(connection.execute(select(key).where(seq < horizon).limit(_BATCH_ROWS)).scalars())
            if keys:
                connection.execute(update(key.table).where(key.in_(keys)).values({seq: horizon}))
            return len(keys)

        while self._in_turn(batch):
            pass

    def _in_turn(self, batch: Callable[[Connection], int]) -> int:
        """Run `batch` in a transaction of its own, then leave the database to others for as long as that took.

        SQLite's writers do not queue: each asks again now and then, for BUSY_TIMEOUT_SECONDS. Without the pause, one that comes
        meanwhile might never meet a moment at which nobody writes.
        """
        began = time.monotonic()
        with self.database.transaction("IMMEDIATE") as connection:
            done = batch(connection)
        if done:
            time.sleep(time.monotonic() - began)
        self.pulse()
        return done


def _last_full(connection: Connection, seq: int) -> int:
    """The last full observation up to `seq`, 0 where there is none."""
    fulls = select(func.coalesce(func.max(observation.c.seq), 0)).where(observation.c.kind != UPDATE, observation.c.seq <= seq)
    return int(connection.execute(fulls).scalar_one())


def _step(connection: Connection, horizon: int) -> int:
    """The full observation to be the horizon after `horizon`: some way from there to the last, where it stays."""
    later = select(observation.c.seq).where(observation.c.kind != UPDATE, observation.c.seq > horizon).order_by(observation.c.seq)
    count = connection.execute(select(func.count()).select_from(later.subquery())).scalar_one()
    found = connection.execute(later.offset(count // _STEPS).limit(1)).scalar_one_or_none()
    return horizon if found is None else int(found)


def _but_last(key: Column[Any]) -> ColumnElement[bool]:
    return key < select(func.max(key)).scalar_subquery()


def _until_bytes(rows: Iterator[tuple[Any, int]], most_bytes: int) -> Iterator[Any]:
    """The keys of (key, bytes) until their bytes reach `most_bytes`; at least the first."""
    total = 0
    for key, size in rows:
        yield key
        total += size
        if total >= most_bytes:
            return
