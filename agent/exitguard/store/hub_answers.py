"""What the hub knows, read out of its database a page at a time, so that a fleet is never in memory at once."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, RowMapping, Select, func, select, tuple_

from exitguard.model.documents import AuditReport, FactsDocument, Summary
from exitguard.model.finding import Severity, SubjectKind, Verdict
from exitguard.model.hub import FindingEvent, FleetFinding, FleetHost, GapKind, HubGap, LedgerTotal
from exitguard.model.ledger import COUNTS, LedgerRow, RunStanding
from exitguard.model.push import PushKind, stamped, stamped_json
from exitguard.model.samples import Incarnation, Samples
from exitguard.model.time import from_microseconds, to_microseconds
from exitguard.store.hub_database import HubDatabase
from exitguard.store.hub_days import DAY_MICROSECONDS, day_of
from exitguard.store.hub_tables import document, finding, finding_event, gap, host, host_key, ledger, samples, savings, standing

_HOSTS_A_PAGE = 100
#: Hosts say it about once an hour; what is older says nothing of now.
_SAVINGS_HOLD_MICROSECONDS = 2 * 3_600_000_000


@dataclass(frozen=True)
class StoredReport:
    """A report as it is stored: its JSON is made when it is told."""

    host_id: str
    #: When the hub last heard that it is so.
    received_at: datetime
    #: When the host last observed that it is so, up to the time that was asked for.
    observed_at: datetime
    body: bytes
    #: The JSON of the model.rates.HostSavings of that time, compressed; None where there is none that is recent.
    savings: bytes | None = None

    @property
    def savings_json(self) -> bytes:
        return b"null" if self.savings is None else zlib.decompress(self.savings)

    def json(self) -> bytes:
        """The JSON of the model.documents.AuditReport."""
        return stamped_json(zlib.decompress(self.body), self.observed_at)

    def report(self) -> AuditReport:
        return AuditReport.model_validate_json(self.json())


def read_hosts(connection: Connection, limit: int, after: str = "", host_id: str | None = None) -> tuple[FleetHost, ...]:
    """Hosts after an id, in the order of their ids."""
    live = select(host_key.c.host_id).where(host_key.c.host_id == host.c.host_id, host_key.c.revoked_at.is_(None)).exists()
    statement = select(host, live.label("may_write")).where(host.c.host_id > after).order_by(host.c.host_id).limit(limit)
    if host_id is not None:
        statement = statement.where(host.c.host_id == host_id)
    return tuple(_fleet_host(row) for row in connection.execute(statement).mappings())


def read_reports(database: HubDatabase, at: datetime | None, host_id: str | None = None) -> Iterator[StoredReport]:
    """Every host's newest report, or the one in force at `at`, in the order of host ids. Each page is read in a transaction of its own."""
    after = ""
    while True:
        with database.transaction() as connection:
            statement = select(host.c.host_id).where(host.c.host_id > after).order_by(host.c.host_id).limit(_HOSTS_A_PAGE)
            if host_id is not None:
                statement = statement.where(host.c.host_id == host_id)
            ids = list(connection.execute(statement).scalars())
            page = _newest_reports(connection, ids) if at is None else _reports_at(connection, ids, at)
            told = _savings_at(connection, ids, datetime.now(UTC) if at is None else at)
        yield from (replace(each, savings=told.get(each.host_id)) for each in page)
        if len(ids) < _HOSTS_A_PAGE or host_id is not None:
            return
        after = ids[-1]


@dataclass(frozen=True)
class StoredFacts:
    """Facts as they are stored: their JSON is made when they are told."""

    host_id: str
    hostname: str | None
    received_at: datetime
    observed_at: datetime
    body: bytes

    def json(self) -> bytes:
        """The JSON of the model.documents.FactsDocument."""
        return stamped_json(zlib.decompress(self.body), self.observed_at)


def read_all_facts(database: HubDatabase) -> Iterator[StoredFacts]:
    """Every host's newest facts, in the order of host ids. Each page is read in a transaction of its own."""
    after = ""
    while True:
        with database.transaction() as connection:
            statement = select(host.c.host_id).where(host.c.host_id > after).order_by(host.c.host_id).limit(_HOSTS_A_PAGE)
            ids = list(connection.execute(statement).scalars())
            columns = (host.c.host_id, host.c.hostname, host.c.received_at, standing.c.last_at, document.c.body)
            chosen = _current_facts(*columns).where(host.c.host_id.in_(ids)).order_by(host.c.host_id)
            page = [
                StoredFacts(host_id, hostname, from_microseconds(received), from_microseconds(last), body)
                for host_id, hostname, received, last, body in connection.execute(chosen)
            ]
        yield from page
        if len(ids) < _HOSTS_A_PAGE:
            return
        after = ids[-1]


def read_savings(database: HubDatabase, at: datetime) -> Iterator[tuple[str, str | None, bytes | None]]:
    """Every host that was let in by then: id, name, and the packed JSON of what it last said of its savings, where that is recent."""
    after = ""
    while True:
        with database.transaction() as connection:
            chosen = select(host.c.host_id, host.c.hostname).where(host.c.host_id > after, host.c.enrolled_at <= to_microseconds(at))
            found = connection.execute(chosen.order_by(host.c.host_id).limit(_HOSTS_A_PAGE)).all()
            told = _savings_at(connection, [row.host_id for row in found], at)
        yield from ((row.host_id, row.hostname, told.get(row.host_id)) for row in found)
        if len(found) < _HOSTS_A_PAGE:
            return
        after = found[-1].host_id


def read_facts(connection: Connection, host_id: str) -> FactsDocument | None:
    """The newest facts of a host, of the time of its newest report of the same or a later time."""
    statement = _current_facts(document.c.body, standing.c.last_at).where(host.c.host_id == host_id)
    row = connection.execute(statement).one_or_none()
    return None if row is None else stamped(FactsDocument, zlib.decompress(row[0]), from_microseconds(row[1]))


def read_findings(
    connection: Connection, limit: int, *, verdict: Verdict | None = None, rule: str | None = None, after: tuple[str, ...] | None = None
) -> tuple[tuple[FleetFinding, ...], tuple[str, ...] | None]:
    """Findings in the order of their keys, and the last key where there may be more."""
    keys = (finding.c.host_id, finding.c.rule, finding.c.subject_kind, finding.c.subject_id, finding.c.ordinal)
    statement = select(finding, host.c.hostname).join(host, host.c.host_id == finding.c.host_id).order_by(*keys).limit(limit)
    if verdict is not None:
        statement = statement.where(finding.c.verdict == verdict)
    if rule is not None:
        statement = statement.where(finding.c.rule == rule)
    if after is not None:
        statement = statement.where(_after(keys, (*after[:-1], int(after[-1]))))
    rows = connection.execute(statement).mappings().all()
    last = tuple(str(rows[-1][key.name]) for key in keys) if len(rows) == limit else None
    return tuple(_fleet_finding(row) for row in rows), last


def read_events(
    connection: Connection, since: datetime, limit: int, host_id: str | None = None, after: tuple[str, ...] | None = None
) -> tuple[FindingEvent, ...]:
    """Verdicts that changed, by what the hub received since then, the oldest first. `after` is the `key` of one, or of a gap."""
    keys = (finding_event.c.received_at, finding_event.c.host_id, finding_event.c.position, finding_event.c.line)
    statement = select(finding_event).where(finding_event.c.received_at >= to_microseconds(since)).order_by(*keys).limit(limit)
    if host_id is not None:
        statement = statement.where(finding_event.c.host_id == host_id)
    if after is not None:
        received, host_of, position, line = after
        statement = statement.where(_after(keys, (int(received), host_of, int(position), int(line))))
    return tuple(_event(row) for row in connection.execute(statement).mappings())


def read_gaps(
    connection: Connection, since: datetime, limit: int, host_id: str | None = None, after: tuple[str, ...] | None = None
) -> tuple[HubGap, ...]:
    """What did not arrive, by what the hub heard of since then, the oldest first."""
    keys = (gap.c.received_at, gap.c.host_id, gap.c.kind, gap.c.gap_id)
    statement = select(gap).where(gap.c.received_at >= to_microseconds(since)).order_by(*keys).limit(limit)
    if host_id is not None:
        statement = statement.where(gap.c.host_id == host_id)
    if after is not None:
        statement = statement.where(_after(keys, (int(after[0]), *after[1:])))
    return tuple(
        HubGap(
            host_id=row["host_id"],
            kind=GapKind(row["kind"]),
            gap_id=row["gap_id"],
            first_at=from_microseconds(row["first_at"]),
            last_at=from_microseconds(row["last_at"]),
            dropped=row["dropped"],
            reason=row["reason"],
            received_at=from_microseconds(row["received_at"]),
        )
        for row in connection.execute(statement).mappings()
    )


def read_ledger_totals(
    connection: Connection, since: datetime, until: datetime, limit: int, after: tuple[str, ...] = ("", "")
) -> tuple[LedgerTotal, ...]:
    """The ledger of a time, `until` not included, added up by host and way of standing, in their order."""
    sums = [func.sum(ledger.c[name]).label(name) for name in ("accounted_milliseconds", "exits", "skip_exits_low", "skip_exits_high")]
    keys = (ledger.c.host_id, ledger.c.guard)
    statement = (
        select(*keys, func.count().label("rows"), *sums)
        .where(_between(since, until), _after(keys, after))
        .group_by(*keys)
        .order_by(*keys)
        .limit(limit)
    )
    names = ("rows", *(each.name for each in sums))
    return tuple(
        LedgerTotal(host_id=row["host_id"], guard=row["guard"], **{name: int(row[name]) for name in names})
        for row in connection.execute(statement).mappings()
    )


def read_ledger(connection: Connection, host_id: str, since: datetime, until: datetime) -> tuple[LedgerRow, ...]:
    """The rows of one host's ledger of a time, `until` not included, in the order of hours and runs."""
    order = (ledger.c.hour, ledger.c.domain_uuid, ledger.c.boot_id, ledger.c.qemu_start_ticks)
    statement = select(ledger).where(ledger.c.host_id == host_id, _between(since, until)).order_by(*order)
    return tuple(
        LedgerRow(
            incarnation=Incarnation(
                host_id=host_id, domain_uuid=row["domain_uuid"], boot_id=row["boot_id"], qemu_start_ticks=row["qemu_start_ticks"]
            ),
            hour=from_microseconds(row["hour"]),
            revision=row["revision"],
            domain_name=row["domain_name"],
            standing=RunStanding.model_validate_json(row["standing"]),
            **{name: int(row[name]) for name in COUNTS},
        )
        for row in connection.execute(statement).mappings()
    )


def read_samples(connection: Connection, host_id: str, limit: int, after: int = 0) -> tuple[tuple[int, Samples], ...]:
    """Samples of one host with their positions, in the order in which it made them."""
    statement = select(samples.c.position, samples.c.body).where(samples.c.host_id == host_id, samples.c.position > after)
    found = connection.execute(statement.order_by(samples.c.position).limit(limit))
    return tuple((int(position), Samples.model_validate_json(zlib.decompress(body))) for position, body in found)


def _current_facts(*columns: Column[Any]) -> Select[Any]:
    """Of hosts with facts: their rows with that document, and the row of `standing` that it holds by."""
    last = (standing.c.host_id == host.c.host_id) & (standing.c.day == host.c.facts_day) & (standing.c.position == host.c.facts_position)
    return (
        select(*columns)
        .select_from(host)
        .join(document, (document.c.host_id == host.c.host_id) & (document.c.sha256 == host.c.facts_sha256))
        .join(standing, last & (standing.c.kind == PushKind.FACTS))
    )


def _newest_reports(connection: Connection, ids: list[str]) -> list[StoredReport]:
    statement = (
        select(host.c.host_id, host.c.received_at, host.c.observed_at, document.c.body)
        .join(document, (document.c.host_id == host.c.host_id) & (document.c.sha256 == host.c.report_sha256))
        .where(host.c.host_id.in_(ids))
        .order_by(host.c.host_id)
    )
    return [
        StoredReport(host_id, from_microseconds(received), from_microseconds(observed), body)
        for host_id, received, observed, body in connection.execute(statement)
    ]


def _reports_at(connection: Connection, ids: list[str], at: datetime) -> list[StoredReport]:
    """By the hosts' own clocks, and of what was begun by then the last that arrived."""
    until = to_microseconds(at)
    of_reports = (standing.c.kind == PushKind.REPORT) & (standing.c.begun_at <= until) & standing.c.host_id.in_(ids)
    last = (
        select(standing.c.host_id, func.max(standing.c.position).label("position"))
        .where(of_reports)
        .group_by(standing.c.host_id)
        .subquery()
    )
    same = (standing.c.host_id == last.c.host_id) & (standing.c.position == last.c.position) & (standing.c.kind == PushKind.REPORT)
    statement = (
        select(standing, document.c.body)
        .join(last, same)
        .join(document, (document.c.host_id == standing.c.host_id) & (document.c.sha256 == standing.c.sha256))
        .order_by(standing.c.host_id)
    )
    return [
        StoredReport(
            host_id=row["host_id"],
            received_at=from_microseconds(row["received_at"]),
            # Within a row's hour it is not known when it was last said before `at`: when it began is.
            observed_at=from_microseconds(row["last_at"] if row["last_at"] <= until else row["begun_at"]),
            body=row["body"],
        )
        for row in connection.execute(statement).mappings()
    ]


def _savings_at(connection: Connection, ids: list[str], at: datetime) -> dict[str, bytes]:
    """By host, what it last said of its savings, where that is of the two hours before."""
    until, today = to_microseconds(at), day_of(at)
    days = savings.c.day.between(today - 1, today)
    timely = savings.c.received_at.between(until - _SAVINGS_HOLD_MICROSECONDS, until)
    statement = select(savings.c.host_id, savings.c.body).where(savings.c.host_id.in_(ids), days, timely)
    statement = statement.order_by(savings.c.host_id, savings.c.position)  # the last one stays
    return {row.host_id: row.body for row in connection.execute(statement)}


def _after(keys: tuple[Any, ...], values: tuple[Any, ...]) -> ColumnElement[bool]:
    """Rows whose keys come after these, compared one after the other."""
    return tuple_(*keys) > tuple_(*values)


def _between(since: datetime, until: datetime) -> ColumnElement[bool]:
    """The hours, and by their days the partitions."""
    begin, end = to_microseconds(since), to_microseconds(until)
    days = (ledger.c.day >= begin // DAY_MICROSECONDS) & (ledger.c.day <= end // DAY_MICROSECONDS)
    return days & (ledger.c.hour >= begin) & (ledger.c.hour < end)


def _fleet_host(row: RowMapping) -> FleetHost:
    ahead = row["clock_ahead_microseconds"]
    return FleetHost(
        host_id=row["host_id"],
        hostname=row["hostname"],
        enrolled_at=from_microseconds(row["enrolled_at"]),
        may_write=bool(row["may_write"]),
        received_at=_time(row["received_at"]),
        clock_ahead_seconds=None if ahead is None else ahead / 1_000_000,
        observed_at=_time(row["observed_at"]),
        policy=row["policy"],
        exit_code=row["exit_code"],
        kernel_state=row["kernel_state"],
        kernel_release=row["kernel_release"],
        domains=row["domains"],
        summary=None if row["summary"] is None else Summary.model_validate_json(row["summary"]),
    )


def _fleet_finding(row: RowMapping) -> FleetFinding:
    return FleetFinding(
        host_id=row["host_id"],
        hostname=row["hostname"],
        rule=row["rule"],
        subject_kind=SubjectKind(row["subject_kind"]),
        subject_id=row["subject_id"],
        subject_name=row["subject_name"],
        severity=Severity(row["severity"]),
        verdict=Verdict(row["verdict"]),
        reason=row["reason"],
        since=_time(row["since"]),
    )


def _event(row: RowMapping) -> FindingEvent:
    return FindingEvent(
        host_id=row["host_id"],
        position=row["position"],
        line=row["line"],
        observed_at=from_microseconds(row["observed_at"]),
        received_at=from_microseconds(row["received_at"]),
        rule=row["rule"],
        subject_kind=SubjectKind(row["subject_kind"]),
        subject_id=row["subject_id"],
        subject_name=row["subject_name"],
        before=None if row["before"] is None else Verdict(row["before"]),
        now=None if row["now"] is None else Verdict(row["now"]),
        reason=row["reason"],
    )


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_microseconds(microseconds)
