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


class LedgerCost(Record):
    """What one exit that skips an instruction is worth: cycles, an interval, and where it is from."""

    provenance: Literal["measured", "table"]
    low: int
    high: int
    #: Whether a part of the saving is in no row of the matrix: it is this much at least.
    at_least: bool = False
    #: Ids of rows of the cost matrix, or of measurements.
    costs: tuple[str, ...]


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
    held_back_by: LinkName | None
    #: Whether what is saved is due to a change since the host, or the domain, was first seen.
    attributable: bool
    #: None: unquantified, and then neither saved nor available cycles are known.
    cost: LedgerCost | None
    #: Why some of it is not accounted for, each reason once.
    unaccounted: tuple[str, ...] = Field(default=(), max_length=8)

    @property
    def cycles(self) -> tuple[int, int] | None:
        """What the skips of the row are worth, low and high; None where unquantified."""
        if self.cost is None:
            return None
        ends = [skips * each for skips in (self.skip_exits_low, self.skip_exits_high) for each in (self.cost.low, self.cost.high)]
        return min(ends), max(ends)
