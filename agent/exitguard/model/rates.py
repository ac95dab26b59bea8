"""What a host saves now, and whether a change pays: rates with their bounds, by how runs stand.

Rates are means over the time that the host was watched. Cores are cycles by the frequency that is stated, and an assumption.
"""

from enum import StrEnum

from exitguard.model.ledger import RunStanding
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


class OwnUse(Record):
    """What the agent's daemon itself used of the processor, and how long it ran."""

    cpu_seconds: float
    running_seconds: float


class SampledRates(Record):
    """The same with the share of exits that was traced to skip, where it was: an estimate within the bounds, and no bound itself."""

    #: How many exits were traced, and which share of all exits is of runs of which enough were.
    traced_exits: int
    share_of_exits: float
    skip_exits_per_second: PerSecond
    saved_cycles_per_second: PerSecond | None
    available_cycles_per_second: PerSecond | None


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
    #: None where no exits were traced.
    sampled: SampledRates | None = None


class Worthwhile(StrEnum):
    """Whether a change pays on this host, net of the agent's own cost."""

    YES = "yes"  # the low bound of what is available exceeds what the agent uses
    NO = "no"
    NOTHING_LEFT = "nothing_left"  # every run that may save does
    UNKNOWN = "unknown"


class HostSavings(Record):
    """What the ledger of a host says of now."""

    #: When the last samples in the ledger were taken; None: there are none.
    booked_until: UtcTime | None
    #: By which cycles become cores, and processor time of the agent cycles: an assumption, since cores change their frequency.
    hertz: Observed[int]
    #: Of the runs that run, by how they stand now: the hour of the last samples, and the one before.
    now: Rates
    #: Whether a change pays, by what is so now.
    worthwhile: Worthwhile
    worthwhile_reason: str
