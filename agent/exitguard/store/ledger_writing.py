"""What is written into the ledger, within one transaction that its caller holds.

Samples are booked in the order in which they were stored, from where the cursor stands; rows, looks and cursor change together, or not
at all. A row of a day whose hours are forgotten is added to that day, which nothing can make anew.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from sqlalchemy import Connection, Select, delete, func, insert, literal, literal_column, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from exitguard.model.ledger import COUNTS, Baseline, LedgerRow, OwnCost, RunStanding
from exitguard.model.samples import Incarnation, Samples
from exitguard.model.time import from_microseconds, to_microseconds
from exitguard.savings.intervals import Look
from exitguard.store.rows import read_samples
from exitguard.store.tables import (
    ledger_baseline,
    ledger_cursor,
    ledger_day,
    ledger_hour,
    ledger_own_cost,
    ledger_run,
    ledger_standing,
    ledger_unaccounted,
    ledger_watched,
    samples,
    spool_cursor,
    spool_ledger,
)

DAY_MICROSECONDS = 86_400_000_000
#: A run that nobody has looked at for a day by the time of the boot has ended.
_ENDED_NANOSECONDS = 86_400_000_000_000
#: SQLite admits 999 parameters in a statement, and since 3.32 more (SQLITE_MAX_VARIABLE_NUMBER).
_KEYS_A_QUERY = 500
_EVER = from_microseconds(0)
#: Of the reasons of one run in one hour.
_LIMIT_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Cursor:
    """How far samples are booked, and the last of them in which counters were told."""

    samples_id: int = 0
    boot_id: str | None = None
    boottime_nanoseconds: int | None = None
    observed_at: datetime | None = None
    #: Hours before this are forgotten.
    hours_since: datetime = _EVER


@dataclass(frozen=True)
class Run:
    """A run as the ledger knows it."""

    domain_name: str
    standing: RunStanding


class LedgerWriter:
    """One transaction's view of the ledger."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- reading what is to be gone on from -------------------------------------------------------------------------------------

    def cursor(self) -> Cursor:
        return read_cursor(self._connection)

    def unbooked(self, limit: int) -> list[tuple[int, Samples]]:
        """The next samples after the cursor with their ids, in the order in which they were stored."""
        after = select(samples.c.id).where(samples.c.id > self.cursor().samples_id).order_by(samples.c.id).limit(limit)
        ids = self._connection.execute(after).scalars().all()
        return [(number, document) for number in ids if (document := read_samples(self._connection, number)) is not None]

    def looks(self, keys: Collection[str]) -> dict[str, Look]:
        """The last booked look at each of these runs that has been looked at."""
        found: dict[str, Look] = {}
        for some in _chunks(keys):
            columns = (ledger_run.c.incarnation, ledger_run.c.look_boottime_nanoseconds, ledger_run.c.look_counters)
            statement = select(*columns).where(ledger_run.c.incarnation.in_(some), ledger_run.c.look_counters.is_not(None))
            for key, boottime, counters in self._connection.execute(statement):
                found[key] = Look(Incarnation.from_key(key), int(boottime), json.loads(counters))
        return found

    def runs(self, keys: Collection[str]) -> dict[str, Run]:
        """How these runs stand; those that are not known are not there."""
        found: dict[str, Run] = {}
        for some in _chunks(keys):
            statement = (
                select(ledger_run.c.incarnation, ledger_run.c.domain_name, ledger_standing.c.body)
                .join(ledger_standing, ledger_standing.c.id == ledger_run.c.standing_id)
                .where(ledger_run.c.incarnation.in_(some))
            )
            for key, name, body in self._connection.execute(statement):
                found[key] = Run(name, RunStanding.model_validate_json(body))
        return found

    def rows(self, keys: Iterable[tuple[str, datetime]]) -> dict[tuple[str, datetime], LedgerRow]:
        """The stored rows of these runs and hours."""
        hours: dict[datetime, list[str]] = {}
        for key, hour in keys:
            hours.setdefault(hour, []).append(key)
        found: dict[tuple[str, datetime], LedgerRow] = {}
        for hour, runs in hours.items():
            for some in _chunks(runs):
                statement = (
                    select(ledger_hour, ledger_run.c.incarnation, ledger_run.c.domain_name, ledger_standing.c.body)
                    .join(ledger_run, ledger_run.c.id == ledger_hour.c.run_id)
                    .join(ledger_standing, ledger_standing.c.id == ledger_hour.c.standing_id)
                    .where(ledger_hour.c.hour == to_microseconds(hour), ledger_run.c.incarnation.in_(some))
                )
                for row in self._connection.execute(statement).mappings():
                    found[row["incarnation"], hour] = LedgerRow(
                        incarnation=Incarnation.from_key(row["incarnation"]),
                        hour=hour,
                        revision=row["revision"],
                        domain_name=row["domain_name"],
                        standing=RunStanding.model_validate_json(row["body"]),
                        **{name: int(row[name]) for name in COUNTS},
                    )
        return found

    def baselines(self, subjects: Collection[str]) -> dict[str, Baseline]:
        found: dict[str, Baseline] = {}
        for some in _chunks(subjects):
            for row in self._connection.execute(select(ledger_baseline).where(ledger_baseline.c.subject.in_(some))).mappings():
                held = None if row["held"] is None else bool(row["held"])
                found[row["subject"]] = Baseline(subject=row["subject"], first_seen_at=from_microseconds(row["first_seen_at"]), held=held)
        return found

    # --- writing ----------------------------------------------------------------------------------------------------------------

    def add_baselines(self, baselines: Iterable[Baseline]) -> None:
        """Those that are not there yet."""
        for each in baselines:
            held = None if each.held is None else int(each.held)
            values = {"subject": each.subject, "first_seen_at": to_microseconds(each.first_seen_at), "held": held}
            self._connection.execute(sqlite_insert(ledger_baseline).values(values).on_conflict_do_nothing())

    def set_runs(self, runs: Mapping[str, Run]) -> None:
        """How these runs stand from now on. What was booked while nothing was known of a run gets the standing that is known now."""
        standings = self._standing_ids({run.standing for run in runs.values()})
        for key, run in runs.items():
            uuid = Incarnation.from_key(key).domain_uuid
            values = {"domain_name": run.domain_name, "standing_id": standings[run.standing]}
            statement = sqlite_insert(ledger_run).values(incarnation=key, domain_uuid=uuid, **values)
            self._connection.execute(statement.on_conflict_do_update(index_elements=["incarnation"], set_=values))

    def restate(self, keys: Collection[str], before: RunStanding) -> None:
        """Give the hours of these runs that stood as `before` the standing that their run has now."""
        (before_id,) = self._standing_ids({before}).values()
        for some in _chunks(keys):
            ids = select(ledger_run.c.id).where(ledger_run.c.incarnation.in_(some))
            concerned = ledger_hour.c.run_id.in_(ids) & (ledger_hour.c.standing_id == before_id)
            days = self._connection.execute(select(ledger_hour.c.hour).where(concerned).distinct()).scalars()
            changed = {int(hour) // DAY_MICROSECONDS for hour in days}
            now = select(ledger_run.c.standing_id).where(ledger_run.c.id == ledger_hour.c.run_id).scalar_subquery()
            self._note_for_spool(select(ledger_hour.c.hour, ledger_hour.c.run_id).where(concerned))
            self._connection.execute(update(ledger_hour).where(concerned).values(standing_id=now, revision=ledger_hour.c.revision + 1))
            for day in sorted(changed):
                roll_up(self._connection, day * DAY_MICROSECONDS, (day + 1) * DAY_MICROSECONDS)

    def book(self, rows: Collection[LedgerRow], looks: Mapping[str, Look], unaccounted: Iterable[tuple[str, datetime, str]]) -> None:
        """Rows, the looks that they end with, and what is not accounted for. Every run of them is known (`set_runs`)."""
        since = to_microseconds(self.cursor().hours_since)
        listed = list(unaccounted)
        ids = self._run_ids({row.incarnation.key for row in rows} | set(looks) | {key for key, _, _ in listed})
        standings = self._standing_ids({row.standing for row in rows})
        days: set[int] = set()
        for row in rows:
            hour = to_microseconds(row.hour)
            if hour < since:
                self._add_to_day(row, ids[row.incarnation.key], standings[row.standing])
                continue
            days.add(hour // DAY_MICROSECONDS)
            values = {"revision": row.revision, "standing_id": standings[row.standing], **{name: getattr(row, name) for name in COUNTS}}
            statement = sqlite_insert(ledger_hour).values(hour=hour, run_id=ids[row.incarnation.key], **values)
            newer = statement.excluded.revision > ledger_hour.c.revision
            self._connection.execute(statement.on_conflict_do_update(index_elements=["hour", "run_id"], set_=values, where=newer))
            self._note_for_spool(select(literal(hour), literal(ids[row.incarnation.key])))
        for day in sorted(days):
            roll_up(self._connection, day * DAY_MICROSECONDS, (day + 1) * DAY_MICROSECONDS)
        for key, look in looks.items():
            values = {"look_boottime_nanoseconds": look.boottime_nanoseconds, "look_counters": json.dumps(look.counters)}
            self._connection.execute(update(ledger_run).where(ledger_run.c.id == ids[key]).values(values))
        for key, begin, reason in listed:
            values = {"hour": to_microseconds(begin), "run_id": ids[key], "reason": reason[:_LIMIT_REASON_CHARACTERS]}
            self._connection.execute(sqlite_insert(ledger_unaccounted).values(values).on_conflict_do_nothing())

    def watch(self, hours: Mapping[datetime, int]) -> None:
        """Add milliseconds in which the host was watched to these hours."""
        for hour, milliseconds in hours.items():
            statement = sqlite_insert(ledger_watched).values(hour=to_microseconds(hour), milliseconds=milliseconds)
            added = {"milliseconds": ledger_watched.c.milliseconds + statement.excluded.milliseconds}
            self._connection.execute(statement.on_conflict_do_update(index_elements=["hour"], set_=added))

    def move(self, cursor: Cursor) -> None:
        """The samples up to there are booked."""
        values = {
            "samples_id": cursor.samples_id,
            "boot_id": cursor.boot_id,
            "boottime_nanoseconds": cursor.boottime_nanoseconds,
            "observed_at": None if cursor.observed_at is None else to_microseconds(cursor.observed_at),
            "hours_since": to_microseconds(cursor.hours_since),
        }
        statement = sqlite_insert(ledger_cursor).values(id=1, **values)
        self._connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))

    def add_own_costs(self, costs: Iterable[OwnCost]) -> None:
        """By process and hour, each a full replacement; one that tells of less than the stored one is passed over."""
        for cost in costs:
            values = {"cpu_milliseconds": cost.cpu_milliseconds, "running_milliseconds": cost.running_milliseconds}
            statement = sqlite_insert(ledger_own_cost).values(hour=to_microseconds(cost.hour), process=cost.process, **values)
            more = statement.excluded.running_milliseconds > ledger_own_cost.c.running_milliseconds
            self._connection.execute(statement.on_conflict_do_update(index_elements=["hour", "process"], set_=values, where=more))

    # --- inner --------------------------------------------------------------------------------------------------------------------

    def _note_for_spool(self, rows: "Select[int, int]") -> None:
        """These rows of hours change: where this host pushes to a hub, they are pushed again."""
        pushing = select(spool_cursor.c.id).exists()
        noted = sqlite_insert(spool_ledger).from_select(["hour", "run_id"], rows.where(pushing))
        self._connection.execute(noted.on_conflict_do_nothing())

    def _add_to_day(self, row: LedgerRow, run_id: int, standing_id: int) -> None:
        counts = {name: getattr(row, name) for name in COUNTS}
        day = to_microseconds(row.hour) // DAY_MICROSECONDS * DAY_MICROSECONDS
        statement = sqlite_insert(ledger_day).values(day=day, run_id=run_id, standing_id=standing_id, hours=1, **counts)
        added = {name: ledger_day.c[name] + statement.excluded[name] for name in COUNTS}
        self._connection.execute(statement.on_conflict_do_update(index_elements=["day", "run_id", "standing_id"], set_=added))

    def _run_ids(self, keys: Collection[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for some in _chunks(keys):
            chosen = select(ledger_run.c.incarnation, ledger_run.c.id).where(ledger_run.c.incarnation.in_(some))
            found |= {str(key): int(number) for key, number in self._connection.execute(chosen)}
        return found

    def _standing_ids(self, standings: Collection[RunStanding]) -> dict[RunStanding, int]:
        bodies = {standing.model_dump_json(): standing for standing in standings}
        for body in bodies:
            self._connection.execute(sqlite_insert(ledger_standing).values(body=body).on_conflict_do_nothing())
        found: dict[RunStanding, int] = {}
        for some in _chunks(bodies):
            chosen = select(ledger_standing.c.body, ledger_standing.c.id).where(ledger_standing.c.body.in_(some))
            found |= {bodies[str(body)]: int(number) for body, number in self._connection.execute(chosen)}
        return found


def read_cursor(connection: Connection) -> Cursor:
    row = connection.execute(select(ledger_cursor)).mappings().one_or_none()
    if row is None:
        return Cursor()
    return Cursor(
        samples_id=row["samples_id"],
        boot_id=row["boot_id"],
        boottime_nanoseconds=row["boottime_nanoseconds"],
        observed_at=None if row["observed_at"] is None else from_microseconds(row["observed_at"]),
        hours_since=from_microseconds(row["hours_since"]),
    )


def roll_up(connection: Connection, begin: int, end: int) -> None:
    """Make the days from `begin` until before `end`, both full days in microseconds, anew of their hours, all of which are kept still."""
    connection.execute(delete(ledger_day).where(ledger_day.c.day >= begin, ledger_day.c.day < end))
    day = (ledger_hour.c.hour - ledger_hour.c.hour % DAY_MICROSECONDS).label("day")
    sums = (func.sum(ledger_hour.c[name]) for name in COUNTS)
    hours = select(day, ledger_hour.c.run_id, ledger_hour.c.standing_id, func.count(), *sums)
    within = hours.where(ledger_hour.c.hour >= begin, ledger_hour.c.hour < end)
    grouped = within.group_by(literal_column("1"), ledger_hour.c.run_id, ledger_hour.c.standing_id)
    connection.execute(insert(ledger_day).from_select(["day", "run_id", "standing_id", "hours", *COUNTS], grouped))


def forget(connection: Connection, hours_before: int, days_before: int) -> int:
    """Forget hours before one full day, and all else before another; how many rows."""
    gone = connection.execute(delete(ledger_hour).where(ledger_hour.c.hour < hours_before)).rowcount
    gone += connection.execute(delete(ledger_day).where(ledger_day.c.day < days_before)).rowcount
    for table in (ledger_unaccounted, ledger_watched, ledger_own_cost):
        gone += connection.execute(delete(table).where(table.c.hour < days_before)).rowcount
    cursor = read_cursor(connection)
    if to_microseconds(cursor.hours_since) < hours_before:
        values = {"hours_since": hours_before}
        statement = sqlite_insert(ledger_cursor).values(id=1, samples_id=cursor.samples_id, **values)
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
    if gone:
        _forget_unused(connection, cursor, days_before)
    return gone


def _forget_unused(connection: Connection, cursor: Cursor, days_before: int) -> None:
    """Runs that ended and that no row names any more, standings that nobody has, and baselines of domains that are long gone."""
    used = select(ledger_hour.c.run_id).union(select(ledger_day.c.run_id), select(ledger_unaccounted.c.run_id))
    old_boot = ledger_run.c.incarnation.not_like(f"%/{cursor.boot_id}/%")
    # A run that goes on is looked at every few minutes.
    ended = (
        old_boot
        if cursor.boottime_nanoseconds is None
        else old_boot | (ledger_run.c.look_boottime_nanoseconds < cursor.boottime_nanoseconds - _ENDED_NANOSECONDS)
    )
    connection.execute(delete(ledger_run).where(ledger_run.c.id.not_in(used), ended))
    named = select(ledger_hour.c.standing_id).union(select(ledger_day.c.standing_id), select(ledger_run.c.standing_id))
    connection.execute(delete(ledger_standing).where(ledger_standing.c.id.not_in(named)))
    known = select(ledger_run.c.domain_uuid).union(select(func.substr(ledger_run.c.incarnation, 1, 36)))
    gone = (ledger_baseline.c.first_seen_at < days_before) & ledger_baseline.c.subject.not_in(known)
    connection.execute(delete(ledger_baseline).where(gone))


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(sorted(keys))
    while some := list(islice(rest, _KEYS_A_QUERY)):
        yield some
