"""The account of one host over a time: how often its guests exit, what is saved of that, and what holds the rest back.

Rates are means over the time that is accounted for. Cores are cycles by the frequency that is stated, and an assumption.
"""

from typing import Literal

from exitguard.model.documents import Tool
from exitguard.model.kernel import Body, KernelState
from exitguard.model.ledger import RunStanding, Unaccounted
from exitguard.model.rates import HostSavings, PerSecond, Rates
from exitguard.model.record import Record
from exitguard.model.time import UtcTime


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
    sampled_exits: int
    sampled_skip_exits_low: int
    sampled_skip_exits_high: int
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


class Savings(HostSavings):
    """The account of one host: as it is now, and over a time."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    host_id: str
    hostname: str | None
    kernel: KernelState
    body: Body | None
    #: When the host was last judged.
    judged_at: UtcTime
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
