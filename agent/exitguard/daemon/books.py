"""What the daemon knows for the ledger between two bookings: how each run stands, and what the daemon itself has used.

The judgement of a run is a few words and is kept as long as the run is known; the reports that they come from are not.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from exitguard.bookkeeping import keep_books
from exitguard.facts.clock import boottime_nanoseconds
from exitguard.model.documents import AuditReport
from exitguard.model.ledger import Baseline, OwnCost
from exitguard.model.measurement import Measurement
from exitguard.model.samples import Incarnation
from exitguard.policy.schema import Rulebook
from exitguard.savings.account import Sums, sums_of
from exitguard.savings.hours import HOUR, hour_of
from exitguard.savings.ledger import Judged, baselines, judged_runs, levers_of

if TYPE_CHECKING:
    from exitguard.store.host import HostStore


#: With the process id, one process and no other, as long as this machine is up.
_BEGAN = boottime_nanoseconds()


@dataclass
class _OwnClock:
    """The processor time of this process and its children, put into the hours in which it was looked at."""

    _seen_cpu: float = 0.0
    _seen_at: int = field(default_factory=boottime_nanoseconds)
    #: Of the hour that is told next, what was used in it: CPU seconds, and nanoseconds that went by.
    _hour: datetime | None = None
    _cpu: float = 0.0
    _ran: int = 0

    def hours(self, now: datetime) -> tuple[OwnCost, ...]:
        """The hour of now; what was used since the last look counts to it."""
        times = os.times()
        cpu, at = times.user + times.system + times.children_user + times.children_system, boottime_nanoseconds()
        if self._hour != hour_of(now):
            self._hour, self._cpu, self._ran = hour_of(now), 0.0, 0
        self._cpu, self._ran = self._cpu + cpu - self._seen_cpu, self._ran + at - self._seen_at
        self._seen_cpu, self._seen_at = cpu, at
        cost = OwnCost(
            hour=self._hour,
            process=f"{os.getpid()}/{_BEGAN}",
            cpu_milliseconds=round(self._cpu * 1000),
            running_milliseconds=self._ran // 1_000_000,
        )
        return (cost,)


@dataclass
class Books:
    """For one thread. A store that fails raises StoreError, and nothing is lost: the next booking makes the same rows."""

    #: What operators gave of this host and of others.
    measurements: tuple[Measurement, ...] = ()
    _judged: dict[str, Judged] = field(default_factory=dict)
    #: None until they have been read from the store.
    _baselines: dict[str, Baseline] | None = None
    _own: _OwnClock = field(default_factory=_OwnClock)

    def judged(
        self, store: "HostStore", report: AuditReport, incarnations: Mapping[str, Incarnation | None], rulebook: Rulebook, *, of_all: bool
    ) -> None:
        """Take note of a report on the whole host (`of_all`), or on some of its domains."""
        if self._baselines is None:
            self._baselines = store.ledger.baselines()
        first_seen = baselines(report, self._baselines)
        if first_seen:
            store.ledger.record((), first_seen)
            self._baselines |= {each.subject: each for each in first_seen}
        found = judged_runs(report, incarnations, self._baselines, levers_of(report, rulebook, self.measurements))
        # Earlier runs of a domain that was looked at keep the standing of their last row.
        self._judged = found if of_all else self._judged | found

    def keep(self, store: "HostStore", now: datetime, pulse: Callable[[], None]) -> int:
        """Bring the ledger up to date; how many rows were written."""
        return keep_books(store, self._judged, self._own.hours(now), now=now, pulse=pulse)

    def last_hours(self, store: "HostStore", now: datetime) -> Sums:
        """The rates of this hour and the one before."""
        begin = hour_of(now) - HOUR
        _, agent_milliseconds = store.ledger.own_cost(begin, now)
        return sums_of(store.ledger.sums_by_run(begin, now), store.ledger.sums_by_hour(begin, now), agent_milliseconds / 1000)

    def forget(self) -> None:
        """Another store, or another host, from now on."""
        self._judged, self._baselines = {}, None
