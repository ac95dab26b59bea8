"""The account of one host over a time: how often its guests exit, what is saved of that, and what holds the rest back.

Rates are means over the time that is accounted for. Cores are cycles by the frequency that is stated, and an assumption.
"""

from enum import StrEnum
from typing import Literal

from exitguard.model.documents import Tool
from exitguard.model.kernel import Body, KernelState
from exitguard.model.ledger import RunStanding, Unaccounted
from exitguard.model.record import Observed, Record
from exitguard.model.time import UtcTime


class PerSecond(Record):
    """A rate with its bounds, low <= high. `at_least`: a part of it is quantified nowhere, and comes on top."""

    low: float
    high: float
    at_least: bool = False


class StandingSavings(Record):
    """All runs that stand alike, together. What it is worth, and by which costs, is in the standing."""

    standing: RunStanding
    runs: int
    exits_per_second: float
    skip_exits_per_second: PerSecond
    saved_cycles_per_second: PerSecond | None
    available_cycles_per_second: PerSecond | None


class DomainSavings(Record):
    """One run of one domain in the time asked for, by how it stood; a run that stood in several ways is told once for each."""

    uuid: str
    name: str
    #: model.samples.Incarnation.key
    run: str
    standing: RunStanding
    #: How much of the time is accounted for, by CLOCK_BOOTTIME; of that, how much was counted over more than an hour and spread evenly.
    accounted_seconds: float
    spread_seconds: float
    #: The counters behind the rates.
    exits: int
    skip_exits_low: int
    skip_exits_high: int
    exits_per_second: float
    skip_exits_per_second: PerSecond
    saved_cycles_per_second: PerSecond | None
    available_cycles_per_second: PerSecond | None


class Period(Record):
    """One hour or day of the host."""

    begin: UtcTime
    exits: int
    #: Cycles, in sum; None where nothing of it is quantified.
    saved_cycles_low: int | None
    saved_cycles_high: int | None
    available_cycles_low: int | None
    available_cycles_high: int | None


class OwnUse(Record):
    """What the agent's daemon itself used of the processor, and how long it ran."""

    cpu_seconds: float
    running_seconds: float


class Rates(Record):
    """The host over one time. What is unquantified is in no sum of cycles, and is told beside it."""

    since: UtcTime
    until: UtcTime
    #: How long the host was watched, with guests or without: what the rates are means over.
    watched_seconds: float
    #: Against a kernel without the guard and guests with enable_pmu set; None where nothing of it is known but what is not saved.
    saved_cycles_per_second: PerSecond | None
    #: The part of it that came with changes since host and guests were first seen.
    attributable_cycles_per_second: PerSecond | None
    available_cycles_per_second: PerSecond | None
    #: Skips of which it is not known in cycles what they save, or would.
    unquantified_saved_skip_exits_per_second: PerSecond
    unquantified_available_skip_exits_per_second: PerSecond
    own: OwnUse
    own_cycles_per_second: float | None
    net_saved_cycles_per_second: PerSecond | None
    saved_cores: PerSecond | None
    available_cores: PerSecond | None
    standings: tuple[StandingSavings, ...]


class Worthwhile(StrEnum):
    """Whether a change pays on this host, net of the agent's own cost."""

    YES = "yes"  # the low bound of what is available exceeds what the agent uses
    NO = "no"
    NOTHING_LEFT = "nothing_left"  # every run that may save does
    UNKNOWN = "unknown"


class LeverInstructions(Record):
    """What a change saves of an exit in instructions, by the lab's rows of the cost matrix: it ranks and checks, and is no cycles."""

    #: guard, pmu_off, guard_and_pmu_off, guard_pmu_on: as in policies/costs.yaml.
    saved_by: str
    #: Of pmu_off: whether the kernel has the guard.
    guard: bool | None
    low: int
    high: int
    costs: tuple[str, ...]


class CostUsed(Record):
    """A row of the cost matrix behind a sum: what it says and how that is known."""

    id: str
    #: source, lab, list or inference: policy/schema.py.
    provenance: str
    cycles_per_exit: int
    #: Of the whole exit, where the row says what that cost; else None.
    percent_of_exit: float | None
    note: str


class Savings(Record):
    """The account of one host: as it is now, and over a time."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    host_id: str
    hostname: str | None
    kernel: KernelState
    body: Body | None
    #: When the host was last judged.
    judged_at: UtcTime
    #: When the last samples in the ledger were taken; None: there are none.
    booked_until: UtcTime | None
    #: By which cycles become cores, and processor time of the agent cycles: an assumption, since cores change their frequency.
    hertz: Observed[int]
    #: Of the runs that run, by how they stand now: the hour of the last samples, and the one before.
    now: Rates
    #: Whether a change pays, by what is so now.
    worthwhile: Worthwhile
    worthwhile_reason: str
    #: The time that was asked for.
    asked: Rates
    #: Each run of it, by how it stood.
    domains: tuple[DomainSavings, ...]
    #: What `asked` and `periods` are made of.
    resolution: Literal["hour", "day"]
    #: Oldest first; they may begin before the time that was asked for.
    periods: tuple[Period, ...]
    costs: tuple[CostUsed, ...]
    instructions_per_exit: tuple[LeverInstructions, ...]
    unaccounted: tuple[Unaccounted, ...]
