"""The ledger: what each run of a domain did in each hour, and what that was worth.

A row is keyed by (incarnation, hour) and is a full replacement: the highest revision wins. Samples become rows in the order in which they
were stored, each once, in one transaction with the note of how far that went; so a kill loses nothing and counts nothing twice.
"""

from enum import StrEnum
from typing import Literal

from exitguard.model.pmu import LinkName
from exitguard.model.record import Record
from exitguard.model.samples import Incarnation
from exitguard.model.time import UtcTime

#: What of a row is added up.
COUNTS = (
    "accounted_milliseconds",
    "spread_milliseconds",
    "exits",
    "skip_exits_low",
    "skip_exits_high",
    "sampled_exits",
    "sampled_skip_exits_low",
    "sampled_skip_exits_high",
)


class GuardSaving(StrEnum):
    """What the guard is worth to one run of a domain."""

    SAVED = "saved"  # the guard is there, and this run's PMU is off in KVM
    AVAILABLE = "available"  # it would be saved if no link were broken
    OPTED_OUT = "opted_out"  # the guest asked for its PMU: it is to keep it
    VIOLATED = "violated"  # the guest asked for its PMU and does not get it: what that saves is nobody's gain
    NOTHING = "nothing"  # this kernel does no work that a guard would spare
    UNKNOWN = "unknown"


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


class RunStanding(Record):
    """How a run stands: which levers are in force for it, and what one exit is worth by them. None of a worth: unquantified, no zero."""

    guard: GuardSaving
    #: Whether the kernel has the guard, and whether KVM has cleared enable_pmu for this run; None where that is not known.
    kernel_guard: bool | None = None
    enable_pmu_cleared: bool | None = None
    #: The first link that does not hold, of a run whose saving is available.
    held_back_by: LinkName | None = None
    #: Per exit, against a kernel without the guard and enable_pmu set.
    saved: Worth | None = None
    #: Per exit, the part of it that did not hold when the host, and the domain, were first seen.
    attributable: Worth | None = None
    #: Per exit, what the whole chain would save beyond that.
    available: Worth | None = None


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
    #: Of the exits, those whose reason was traced, and how many of these skipped by it: at least, at most.
    sampled_exits: int = 0
    sampled_skip_exits_low: int = 0
    sampled_skip_exits_high: int = 0
    standing: RunStanding


class OwnCost(Record):
    """What one process of the agent used of the processor in one hour."""

    #: The full hour in UTC.
    hour: UtcTime
    #: `pid/nanoseconds since boot`: one process, however often its hour is written.
    process: str
    cpu_milliseconds: int
    #: How long the process ran in that hour.
    running_milliseconds: int


class LedgerSum(Record):
    """Rows of one way of standing added up: of one run, of one hour, or of one day, by what was asked for."""

    #: The run and its domain's name; empty where it was not asked for by run.
    run: str = ""
    domain_name: str = ""
    #: The hour or day; None where it was not asked for by time.
    begin: UtcTime | None = None
    standing: RunStanding
    accounted_milliseconds: int
    spread_milliseconds: int
    exits: int
    skip_exits_low: int
    skip_exits_high: int
    sampled_exits: int = 0
    sampled_skip_exits_low: int = 0
    sampled_skip_exits_high: int = 0


class Unaccounted(Record):
    """Why exits of a run are not accounted for, and when."""

    run: str
    domain_name: str
    reason: str
    #: The first and the last hour in which that was so.
    first: UtcTime
    last: UtcTime


def cycles(worth: Worth | None, skip_exits_low: int, skip_exits_high: int) -> tuple[int, int] | None:
    """What so many skips are worth, low and high; None where unquantified."""
    if worth is None:
        return None
    ends = [skips * each for skips in (skip_exits_low, skip_exits_high) for each in (worth.low, worth.high)]
    return min(ends), max(ends)
