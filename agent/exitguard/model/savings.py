"""The account of one host: how often its guests exit, and what the guard saves of that, or would."""

from enum import StrEnum
from typing import Literal

from exitguard.model.documents import Tool
from exitguard.model.plan import SavingPerExit
from exitguard.model.pmu import ChainState, LinkName
from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class GuardSaving(StrEnum):
    """What the guard is worth to one run of a domain."""

    SAVED = "saved"  # the guard is there, and this run's PMU is off in KVM
    AVAILABLE = "available"  # it would be saved if no link were broken
    OPTED_OUT = "opted_out"  # the guest asked for its PMU: it is to keep it
    NOTHING = "nothing"  # this kernel does no work that a guard would spare
    UNKNOWN = "unknown"


class PerSecond(Record):
    """A rate with its bounds, 0 <= low <= high."""

    low: float
    high: float


class DomainSavings(Record):
    """One running domain: its exits since its run was first sampled, or since the time asked for."""

    uuid: str
    name: str
    chain: ChainState
    #: The first link that does not hold; None where all do, or where that cannot be told.
    held_back_by: LinkName | None
    guard: GuardSaving
    #: How much of the time is accounted for, by CLOCK_BOOTTIME.
    seconds: float
    exits_per_second: float
    #: Exits that skipped an instruction, as far as the counters bound them.
    skip_exits_per_second: PerSecond
    #: By the cost of one exit, where that is known in cycles; never below zero unless a row of the matrix is.
    cycles_per_second: PerSecond | None
    #: Why some of the time is not accounted for, each reason once.
    unaccounted: tuple[str, ...] = ()


class Savings(Record):
    """The account of one host. Sums are over its running domains; what is unquantified is in no sum, and is told beside it."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    host_id: str
    hostname: str | None
    since: UtcTime
    #: The time of the judgement that tells which links hold.
    judged_at: UtcTime
    #: Against the same kernel without the guard and a guest whose PMU is off in KVM: the least of the matrix' savings.
    per_exit: tuple[SavingPerExit, ...]
    saved_cycles_per_second: PerSecond | None
    available_cycles_per_second: PerSecond | None
    domains: tuple[DomainSavings, ...]
