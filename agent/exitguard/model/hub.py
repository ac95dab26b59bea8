"""What a hub knows of its fleet, and who may ask it: the records of its answers."""

from enum import StrEnum

from pydantic import JsonValue

from exitguard.model.documents import Summary
from exitguard.model.finding import Severity, SubjectKind, Verdict
from exitguard.model.rates import HostSavings
from exitguard.model.record import Record
from exitguard.model.time import UtcTime, to_microseconds


class Role(StrEnum):
    """What an operator token may do; each may what those before it may."""

    VIEWER = "viewer"  # read
    OPERATOR = "operator"  # shut hosts out
    APPROVER = "approver"  # approve what changes hosts

    def may(self, needed: "Role") -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


class GapKind(StrEnum):
    """Where observations were lost."""

    HOST = "host"  # the host could not store them itself
    SPOOL = "spool"  # they left its spool unsent, and it says so
    MISSING = "missing"  # their numbers were passed over, and nobody said why
    REFUSED = "refused"  # the hub would never have taken them


class HubGap(Record):
    """Observations that are not in the hub."""

    host_id: str
    kind: GapKind
    #: The same gap keeps it.
    gap_id: str
    first_at: UtcTime
    last_at: UtcTime
    dropped: int
    reason: str
    received_at: UtcTime

    @property
    def key(self) -> tuple[str, ...]:
        """Its place in the order of pages."""
        return (str(to_microseconds(self.received_at)), self.host_id, str(self.kind), self.gap_id)


class FleetHost(Record):
    """One host in a line."""

    host_id: str
    hostname: str | None
    enrolled_at: UtcTime
    #: Whether it has a key that counts.
    may_write: bool
    #: When the hub last heard of it; None: never.
    received_at: UtcTime | None
    #: The host's clock less the hub's, when it last sent; None: it never did.
    clock_ahead_seconds: float | None
    #: Of its newest report; these and all that follow are None before there is one.
    observed_at: UtcTime | None
    policy: str | None
    exit_code: int | None
    kernel_state: str | None
    kernel_release: str | None
    domains: int | None
    summary: Summary | None


class HostPage(Record):
    """Some hosts in the order of their ids; `after` asks for the next ones, None: these were the last."""

    hosts: tuple[FleetHost, ...]
    after: str | None


class FleetReport(Record):
    """A line of /v1/reports: a host's report in force at the time that was asked for."""

    host_id: str
    received_at: UtcTime
    #: model.documents.AuditReport
    report: dict[str, JsonValue]
    #: What the host said of its savings in the two hours before that time: model.rates.HostSavings.
    savings: dict[str, JsonValue] | None = None


class FleetFacts(Record):
    """A line of /v1/facts: the newest facts of a host."""

    host_id: str
    hostname: str | None
    #: When the hub last heard of the host.
    received_at: UtcTime
    #: model.documents.FactsDocument
    facts: dict[str, JsonValue]


class FleetSavingsLine(Record):
    """A line of /v1/savings: what a host said in the two hours before the time that was asked for."""

    host_id: str
    hostname: str | None
    #: None where it said nothing then.
    savings: HostSavings | None


class FleetFinding(Record):
    """A finding of a host's newest report."""

    host_id: str
    hostname: str | None
    rule: str
    subject_kind: SubjectKind
    subject_id: str
    subject_name: str
    severity: Severity
    verdict: Verdict
    reason: str
    since: UtcTime | None


class FindingPage(Record):
    findings: tuple[FleetFinding, ...]
    #: Give it back as `after` for the next ones; None: these were the last.
    after: str | None


class FindingEvent(Record):
    """One rule's verdict on one subject of a host became another."""

    host_id: str
    #: Of the report that showed it, among the host's, and of this among what that report changed.
    position: int
    line: int
    observed_at: UtcTime
    received_at: UtcTime
    rule: str
    subject_kind: SubjectKind
    subject_id: str
    subject_name: str
    before: Verdict | None
    now: Verdict | None
    reason: str

    @property
    def key(self) -> tuple[str, ...]:
        """Its place in the order of pages."""
        return (str(to_microseconds(self.received_at)), self.host_id, str(self.position), str(self.line))


class LedgerTotal(Record):
    """The rows of the ledger of one host that stand alike, added up."""

    host_id: str
    guard: str
    rows: int
    accounted_milliseconds: int
    exits: int
    skip_exits_low: int
    skip_exits_high: int


class LedgerPage(Record):
    totals: tuple[LedgerTotal, ...]
    after: str | None


class LogEntry(Record):
    """A line of the audit log."""

    at: UtcTime
    actor: str
    action: str
    host_id: str | None
    detail: str


class EventPage(Record):
    """The oldest first."""

    events: tuple[FindingEvent, ...]
    #: Give it back as `after`, with the same `since`, for the next ones; None: these were the last.
    after: str | None = None


class GapPage(Record):
    """The oldest first."""

    gaps: tuple[HubGap, ...]
    #: As of an EventPage.
    after: str | None = None


class LogPage(Record):
    """The newest first."""

    entries: tuple[LogEntry, ...]


class Revoked(Record):
    host_id: str
    #: How many keys no longer count.
    keys: int


class Refused(Record):
    """Why a request was not answered. `error` is a word for programs, `message` a sentence for people."""

    error: str
    message: str


class Health(Record):
    status: str
