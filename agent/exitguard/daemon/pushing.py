"""What the daemon pushes to a hub: the store into the spool, the spool to the hub, oldest first, a few batches a job.

Everything here may fail and be done again. A hub that does not answer is left alone for pauses that grow, with a share of chance, so that
thousands of hosts do not come back at the same moment; meanwhile the spool fills, up to its limit.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from exitguard.bookkeeping import savings_of
from exitguard.daemon.conditions import Conditions
from exitguard.daemon.log import get_logger
from exitguard.daemon.metrics import Metrics
from exitguard.fleet.client import BatchRefused, HubAccess, HubClient, HubUnreachable, PushError
from exitguard.model.push import MOST_RECORDS, PushAnswer, PushBatch
from exitguard.savings.account import is_outdated
from exitguard.savings.hours import hour_of

if TYPE_CHECKING:
    from exitguard.store.host import HostStore
    from exitguard.store.spool import Spool

_log = get_logger()

#: A job ends after so long, however much waits: audits come first.
_JOB_SECONDS = 20.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 900.0


@dataclass(frozen=True)
class Pushing:
    """To which hub, and how much may wait for it."""

    access: HubAccess
    limit_bytes: int


@dataclass
class Pusher:
    """For one thread. A store that fails raises StoreError."""

    pushing: Pushing
    metrics: Metrics
    conditions: Conditions
    pulse: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    _client: HubClient | None = None
    #: The hour in which the host's savings were last put into the spool.
    _saved_in: datetime | None = None
    _failures: int = 0
    _not_before: float = 0.0
    #: Of the next batch: records that the hub wants in full, and how many records it may have at most.
    _in_full: tuple[int, ...] = ()
    _most_records: int = MOST_RECORDS

    def push(self, store: "HostStore", hostname: str | None) -> None:
        """Take in what is new, and send what waits, as far as time allows and the hub answers."""
        spool = store.spool
        spool.take_in(self.pushing.limit_bytes, self.pulse)
        self._add_savings(store, spool, datetime.now(UTC))
        if self.clock() >= self._not_before:
            self._send(store, spool, hostname)
        self._tell(spool)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _add_savings(self, store: "HostStore", spool: "Spool", now: datetime) -> None:
        """Once an hour: the ledger's own hours are pushed beside it."""
        if self._saved_in == (hour := hour_of(now)):
            return
        savings = savings_of(store, now)
        if savings is not None and not is_outdated(savings.booked_until, now):
            spool.add_savings(savings, now)
            self._saved_in = hour

    def _send(self, store: "HostStore", spool: "Spool", hostname: str | None) -> None:
        if self._client is None:
            self._client = HubClient(self.pushing.access, store.host_id)
        began = self.clock()
        try:
            while self.clock() - began < _JOB_SECONDS:
                self.pulse()
                batch = spool.next_batch(datetime.now(UTC), in_full=self._in_full, most_records=self._most_records)
                if batch is None or not self._send_batch(self._client, spool, batch, hostname):
                    break
        except PushError as error:
            asked = error.retry_after_seconds if isinstance(error, HubUnreachable) else 0.0
            self._failures += 1
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10))
            self._not_before = self.clock() + max(asked, pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            self.conditions.holds("hub", str(error))
        else:
            self._failures, self._not_before = 0, 0.0
            self.conditions.holds("hub", None)

    def _send_batch(self, client: HubClient, spool: "Spool", batch: PushBatch, hostname: str | None) -> bool:
        """Whether there may be more to send now. Raises PushError."""
        try:
            answer = client.push(batch, hostname)
        except BatchRefused as refusal:
            if len(batch.records) <= 1:
                self._give_up(spool, batch, str(refusal))
                return True
            self._most_records = len(batch.records) // 2  # one of them is at fault: the halves tell which
            return True
        self._most_records = min(MOST_RECORDS, self._most_records * 2)
        went_on = answer.acknowledged_seq >= _first_seq(batch)
        if not went_on and self._in_full:  # they were in full: to ask once more would go on for ever
            raise PushError(
                f"{self.pushing.access.url}: acknowledged nothing, though all was sent in full. Expected a hub of this version."
            )
        self._in_full = answer.send_in_full
        if spool.acknowledge(batch, answer):
            _log.warning("spool.begun_anew", acknowledged=answer.acknowledged_seq)
        self._tell_answer(batch, answer)
        return True

    def _give_up(self, spool: "Spool", batch: PushBatch, reason: str) -> None:
        if not batch.records:  # nothing but gaps: there is nothing to leave out
            raise PushError(reason)
        record = batch.records[0]
        spool.drop(record.seq, "the hub refused it as a whole")
        self.metrics.push_refused(1)
        _log.error("push.refused", seq=record.seq, kind=record.kind, reason=reason)

    def _tell_answer(self, batch: PushBatch, answer: PushAnswer) -> None:
        acknowledged = sum(record.seq <= answer.acknowledged_seq for record in batch.records)
        self.metrics.pushed(acknowledged - len(answer.refused), datetime.now(UTC))
        self.metrics.push_refused(len(answer.refused))
        for refused in answer.refused:
            _log.error("push.refused", seq=refused.seq, reason=refused.reason)
        _log.debug("push.acknowledged", seq=answer.acknowledged_seq, records=acknowledged, in_full=len(answer.send_in_full))

    def _tell(self, spool: "Spool") -> None:
        state = spool.state()
        self.metrics.spooled(state.records, state.bytes)
        dropped = f"{state.dropped} records left the spool unsent, and the hub does not know yet" if state.dropped else None
        self.conditions.holds("spool", dropped)


def _first_seq(batch: PushBatch) -> int:
    """What the hub acknowledges at least where it takes anything."""
    seqs = [record.seq for record in batch.records[:1]] + [gap.last_seq for gap in batch.gaps[:1]]
    return min(seqs)
