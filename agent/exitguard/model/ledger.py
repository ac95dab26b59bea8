"""The ledger: what each run of a domain did in each hour, and what that was worth.

A row is keyed by (incarnation, hour) and is a full replacement: the highest revision wins, nothing is ever added to a row. So a row may be
made again as often as one likes, after a kill or by another program, and counts once.
"""

from typing import Literal

from pydantic import Field

from exitguard.model.pmu import LinkName
from exitguard.model.record import Record
from exitguard.model.samples import Incarnation
from exitguard.model.savings import GuardSaving
from exitguard.model.time import UtcTime


class Worth(Record):
    """What one exit that skips an instruction costs less: cycles, an interval, and where it is from."""

    provenance: Literal["measured", "measured_elsewhere", "table"]
    low: int
    high: int
    #: Whether a part of it is in no row of the matrix and was not measured: it is this much at least.
    at_least: bool = False
    #: Ids of rows of the cost matrix, or of measurements.
    costs: tuple[str, ...]


class Baseline(Record):
    """What was so when the host, or one of its domains, was first seen. It never changes: what came later is attributable."""

    #: A domain's uuid; the host's id for the host.
    subject: str
    first_seen_at: UtcTime
    #: Of the host: whether its kernel had the guard. Of a domain: whether its run had enable_pmu cleared. None: not known then.
    held: bool | None


class LedgerRow(Record):
    """One run of one domain in one hour."""

    incarnation: Incarnation
    #: The full hour in UTC at which it begins.
    hour: UtcTime
    #: 1 and up.
    revision: int
    domain_name: str
    #: How much of the hour is accounted for, by CLOCK_BOOTTIME. More than an hour only where the clock was set back in it.
    accounted_milliseconds: int
    #: Of these, the part whose exits were counted over a longer time than an hour and spread evenly.
    spread_milliseconds: int = 0
    exits: int
    #: Exits that skipped an instruction: at least, at most.
    skip_exits_low: int
    skip_exits_high: int
    guard: GuardSaving
    #: The first link that does not hold, of a run whose saving is available.
    held_back_by: LinkName | None
    #: Whether what is saved is due to a change since the host, or the domain, was first seen.
    attributable: bool
    #: Per exit, against a kernel without the guard and enable_pmu set; None: unquantified, which is no zero.
    saved: Worth | None
    #: Per exit, what the whole chain would save beyond that.
    available: Worth | None
    #: Why some of it is not accounted for, each reason once.
    unaccounted: tuple[str, ...] = Field(default=(), max_length=8)

    @property
    def saved_cycles(self) -> tuple[int, int] | None:
        """Low and high; None where unquantified."""
        return self._cycles(self.saved)

    @property
    def available_cycles(self) -> tuple[int, int] | None:
        """Low and high; None where unquantified."""
        return self._cycles(self.available)

    def _cycles(self, worth: Worth | None) -> tuple[int, int] | None:
        if worth is None:
            return None
        ends = [skips * each for skips in (self.skip_exits_low, self.skip_exits_high) for each in (worth.low, worth.high)]
        return min(ends), max(ends)
