"""What the daemon knows for the ledger between two bookings: what operators measured, and what the daemon itself has used."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from exitguard.bookkeeping import keep_books, note_judgement
from exitguard.facts.clock import boottime_nanoseconds
from exitguard.model.documents import AuditReport
from exitguard.model.ledger import OwnCost
from exitguard.model.measurement import Measurement
from exitguard.model.rates import OwnUse, Rates
from exitguard.model.record import unseen
from exitguard.model.samples import Incarnation
from exitguard.policy.schema import Rulebook
from exitguard.savings.account import Sums, is_outdated, rates_of
from exitguard.savings.hours import hour_of
from exitguard.savings.ledger import levers_of

if TYPE_CHECKING:
    from exitguard.store.host import HostStore

#: With the process id, one process and no other, as long as this machine is up.
_BEGAN = boottime_nanoseconds()
#: Of which the cost is told again with each booking, so that none is lost where one could not be stored.
_MOST_HOURS = 48


@dataclass
class _OwnClock:
    """The processor time of this process and its children, put into the hours in which it was looked at."""

    _seen_cpu: float = 0.0
    _seen_at: int = field(default_factory=boottime_nanoseconds)
    #: By hour, CPU seconds and nanoseconds that went by.
    _hours: dict[datetime, tuple[float, int]] = field(default_factory=dict)

    def look(self, now: datetime) -> tuple[OwnCost, ...]:
        """All hours that are remembered; what was used since the last look counts to the hour of now."""
        times = os.times()
        cpu, at = times.user + times.system + times.children_user + times.children_system, boottime_nanoseconds()
        used, ran = self._hours.get(hour_of(now), (0.0, 0))
        self._hours[hour_of(now)] = (used + cpu - self._seen_cpu, ran + at - self._seen_at)
        self._seen_cpu, self._seen_at = cpu, at
        while len(self._hours) > _MOST_HOURS:
            del self._hours[next(iter(self._hours))]
        return tuple(
            OwnCost(
                hour=hour,
                process=f"{os.getpid()}/{_BEGAN}",
                cpu_milliseconds=round(seconds * 1000),
                running_milliseconds=nanoseconds // 1_000_000,
            )
            for hour, (seconds, nanoseconds) in self._hours.items()
        )


@dataclass
class Books:
    """For one thread. A store that fails raises StoreError, and nothing is lost: the next booking goes on where it was."""

    #: What operators gave of this host and of others.
    measurements: tuple[Measurement, ...] = ()
    _own: _OwnClock = field(default_factory=_OwnClock)

    def judged(self, store: "HostStore", report: AuditReport, incarnations: Mapping[str, Incarnation | None], rulebook: Rulebook) -> None:
        """Take note of how the runs stand that a report is about."""
        note_judgement(store, report, incarnations, levers_of(report, rulebook, self.measurements))

    def keep(self, store: "HostStore", now: datetime, pulse: Callable[[], None]) -> int:
        """Bring the ledger up to date; how many samples were booked."""
        return keep_books(store, self._own.look(now), pulse=pulse)

    def last_hours(self, store: "HostStore", now: datetime) -> Rates | None:
        """How it is now, in cycles; None where nothing was booked for too long."""
        booked_until, part = store.ledger.read_now(now)
        if is_outdated(booked_until, now):
            return None
        own = OwnUse(cpu_seconds=part.own_cpu_seconds, running_seconds=part.own_running_seconds)
        return rates_of(Sums(part.since, part.until, part.by_run, part.watched_seconds, own), unseen("metrics", "in cycles only"))
