"""The ledger in the host's database: what it holds of a time, read as of one instant; and the transactions that write it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Column, ColumnElement, Connection, Table, func, select

from exitguard.model.ledger import COUNTS, GuardSaving, LedgerSum, RunStanding, Unaccounted
from exitguard.model.time import from_microseconds, to_microseconds
from exitguard.store.database import Database
from exitguard.store.errors import StoreError
from exitguard.store.ledger_writing import DAY_MICROSECONDS, Cursor, LedgerWriter, forget, read_cursor, roll_up
from exitguard.store.tables import (
    ledger_day,
    ledger_hour,
    ledger_own_cost,
    ledger_run,
    ledger_standing,
    ledger_unaccounted,
    ledger_watched,
)

_HOUR = timedelta(hours=1)
#: A run that was looked at so shortly before the last samples is one that runs now.
_ALIVE_NANOSECONDS = 1_800_000_000_000
_MOST_UNACCOUNTED = 50


@dataclass(frozen=True)
class LedgerPart:
    """What the ledger holds of a time."""

    since: datetime
    until: datetime
    by_run: tuple[LedgerSum, ...]
    watched_seconds: float
    own_cpu_seconds: float
    own_running_seconds: float
    #: Of now: runs that run, may save more or are not judged yet, and are accounted for nowhere in this time.
    unaccounted_runs: int = 0


@dataclass(frozen=True)
class LedgerView:
    """The ledger as of one instant."""

    #: When the last samples that are booked were taken; None: none are.
    booked_until: datetime | None
    #: The hour of that time and the one before, of the runs that run, by how they stand now.
    now: LedgerPart
    #: The time that was asked for.
    asked: LedgerPart
    resolution: Literal["hour", "day"]
    by_time: tuple[LedgerSum, ...]
    unaccounted: tuple[Unaccounted, ...]


class HostLedger:
    """The ledger of one open store. Raises StoreError as the store does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def writing(self) -> Iterator[LedgerWriter]:
        """One transaction: all that is written within is stored when it ends well, or nothing of it."""
        with self._explained(), self._database.transaction("IMMEDIATE") as connection:
            yield LedgerWriter(connection)

    def prune(self, *, hours_before: datetime, days_before: datetime) -> int:
        """Forget hours, and days with all that belongs to them, before these times, whole days only; how many rows.

        Never more than up to the day of the last booked samples: a clock that was wrong for a while makes nothing go before its time.
        """
        with self._database.transaction("IMMEDIATE") as connection:
            booked = read_cursor(connection).observed_at
            if booked is None:
                return 0
            hours_limit, days_limit = (_day(min(each, booked)) for each in (hours_before, days_before))
            return forget(connection, hours_limit, days_limit)

    def forget_oldest_day(self) -> bool:
        """Forget the hours of the oldest day that has any but the last one; whether there was one."""
        with self._database.transaction("IMMEDIATE") as connection:
            first, last = connection.execute(select(func.min(ledger_hour.c.hour), func.max(ledger_hour.c.hour))).one()
            if first is None or int(first) // DAY_MICROSECONDS == int(last) // DAY_MICROSECONDS:
                return False
            return forget(connection, (int(first) // DAY_MICROSECONDS + 1) * DAY_MICROSECONDS, 0) > 0

    def roll_up(self, since: datetime, until: datetime) -> None:
        """Make the days of this time anew of their hours, all of which have to be kept still. Booking does it for what it writes."""
        with self._database.transaction("IMMEDIATE") as connection:
            roll_up(connection, _day(since), _day(until))

    def days_by_run(self, since: datetime, until: datetime) -> tuple[LedgerSum, ...]:
        """Whole days, added up by run and way of standing."""
        with self._explained(), self._database.transaction("DEFERRED") as connection:
            return _by_run(connection, ledger_day, _between(ledger_day.c.day, since, until))

    def read_now(self, until: datetime) -> tuple[datetime | None, LedgerPart]:
        """When the last booked samples were taken, and the hour of that time and the one before: `LedgerView.now` alone."""
        with self._explained(), self._database.transaction("DEFERRED") as connection:
            cursor = read_cursor(connection)
            return cursor.observed_at, _now(connection, cursor, until)

    def read(self, since: datetime, until: datetime, *, beside: timedelta) -> LedgerView:
        """What is held from the hour of `since` on; by days where its hours are forgotten. `by_time` reaches back `beside` at least."""
        with self._explained(), self._database.transaction("DEFERRED") as connection:
            cursor = read_cursor(connection)
            by_days = since < cursor.hours_since
            begin = from_microseconds(_day(since)) if by_days else since
            table, column = (ledger_day, ledger_day.c.day) if by_days else (ledger_hour, ledger_hour.c.hour)
            drawn_since = begin if by_days else max(cursor.hours_since, min(begin, until - beside))
            return LedgerView(
                booked_until=cursor.observed_at,
                now=_now(connection, cursor, until),
                asked=_part(connection, begin, until, _by_run(connection, table, _between(column, begin, until))),
                resolution="day" if by_days else "hour",
                by_time=_by_time(connection, table, column, _between(column, drawn_since, until)),
                unaccounted=_unaccounted(connection, begin, until),
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # pydantic's ValidationError is one
            what = " ".join(str(error).split())[:300]
            raise StoreError(
                f"{Path(self._database.path)}: the ledger holds what this exitguard cannot read: {what}. Expected what this version or an "
                "older one wrote: read it with the exitguard that wrote it.",
                reason="the ledger cannot be read",
            ) from error


def _now(connection: Connection, cursor: Cursor, until: datetime) -> LedgerPart:
    """Up to the last booked samples, however long ago that was; what a clock that was ahead has put after them is not of now."""
    end = cursor.observed_at or until
    since = end.replace(minute=0, second=0, microsecond=0) - _HOUR
    alive = _alive(cursor)
    found = () if alive is None else _now_by_run(connection, alive, _between(ledger_hour.c.hour, since, end))
    part = _part(connection, since, end, found)
    return part if alive is None else replace(part, unaccounted_runs=_without_account(connection, alive, since, end))


def _alive(cursor: Cursor) -> ColumnElement[bool] | None:
    """Runs that were looked at shortly before the last booked samples."""
    if cursor.boot_id is None or cursor.boottime_nanoseconds is None:
        return None
    of_this_boot = ledger_run.c.incarnation.like(f"%/{cursor.boot_id}/%")
    return of_this_boot & (ledger_run.c.look_boottime_nanoseconds >= cursor.boottime_nanoseconds - _ALIVE_NANOSECONDS)


def _without_account(connection: Connection, alive: ColumnElement[bool], since: datetime, until: datetime) -> int:
    """How many of the runs that run may save more, or are not judged yet, and have no accounted time in these hours."""
    accounted = select(ledger_hour.c.run_id).where(_between(ledger_hour.c.hour, since, until), ledger_hour.c.accounted_milliseconds > 0)
    statement = (
        select(ledger_standing.c.body)
        .join(ledger_run, ledger_run.c.standing_id == ledger_standing.c.id)
        .where(alive, ledger_run.c.id.not_in(accounted))
    )
    standings = (RunStanding.model_validate_json(body) for body in connection.execute(statement).scalars())
    return sum(each.guard in (GuardSaving.AVAILABLE, GuardSaving.UNKNOWN) for each in standings)


def _part(connection: Connection, since: datetime, until: datetime, by_run: tuple[LedgerSum, ...]) -> LedgerPart:
    watched = select(func.coalesce(func.sum(ledger_watched.c.milliseconds), 0)).where(_between(ledger_watched.c.hour, since, until))
    columns = (func.coalesce(func.sum(ledger_own_cost.c[name]), 0) for name in ("cpu_milliseconds", "running_milliseconds"))
    cpu, running = connection.execute(select(*columns).where(_between(ledger_own_cost.c.hour, since, until))).one()
    return LedgerPart(
        since=since,
        until=until,
        by_run=by_run,
        watched_seconds=int(connection.execute(watched).scalar_one()) / 1000,
        own_cpu_seconds=int(cpu) / 1000,
        own_running_seconds=int(running) / 1000,
    )


def _by_run(connection: Connection, table: Table, which: ColumnElement[bool]) -> tuple[LedgerSum, ...]:
    statement = (
        select(ledger_run.c.incarnation, ledger_run.c.domain_name, table.c.standing_id, *_sums(table))
        .join(ledger_run, ledger_run.c.id == table.c.run_id)
        .where(which)
        .group_by(table.c.run_id, table.c.standing_id)
        .order_by(table.c.run_id, table.c.standing_id)
    )
    return _summed(connection, statement, run=True)


def _now_by_run(connection: Connection, alive: ColumnElement[bool], hours: ColumnElement[bool]) -> tuple[LedgerSum, ...]:
    """These hours of the runs that run, by their present standing."""
    statement = (
        select(ledger_run.c.incarnation, ledger_run.c.domain_name, ledger_run.c.standing_id, *_sums(ledger_hour))
        .join(ledger_run, ledger_run.c.id == ledger_hour.c.run_id)
        .where(hours, alive)
        .group_by(ledger_run.c.id)
        .order_by(ledger_run.c.id)
    )
    return _summed(connection, statement, run=True)


def _by_time(connection: Connection, table: Table, time: Column[Any], which: ColumnElement[bool]) -> tuple[LedgerSum, ...]:
    statement = (
        select(time.label("begin"), table.c.standing_id, *_sums(table)).where(which).group_by(time, table.c.standing_id).order_by(time)
    )
    return _summed(connection, statement, run=False)


def _sums(table: Table) -> list[Any]:
    return [func.sum(table.c[name]).label(name) for name in COUNTS]


def _summed(connection: Connection, statement: Any, *, run: bool) -> tuple[LedgerSum, ...]:
    rows = connection.execute(statement).mappings().all()
    bodies = connection.execute(select(ledger_standing.c.id, ledger_standing.c.body))
    standings = {number: RunStanding.model_validate_json(body) for number, body in bodies}
    return tuple(
        LedgerSum(
            run=row["incarnation"] if run else "",
            domain_name=row["domain_name"] if run else "",
            begin=None if run else from_microseconds(row["begin"]),
            standing=standings[row["standing_id"]],
            **{name: int(row[name]) for name in COUNTS},
        )
        for row in rows
    )


def _unaccounted(connection: Connection, since: datetime, until: datetime) -> tuple[Unaccounted, ...]:
    first, last = func.min(ledger_unaccounted.c.hour).label("first"), func.max(ledger_unaccounted.c.hour).label("last")
    statement = (
        select(ledger_run.c.incarnation, ledger_run.c.domain_name, ledger_unaccounted.c.reason, first, last)
        .join(ledger_run, ledger_run.c.id == ledger_unaccounted.c.run_id)
        .where(_between(ledger_unaccounted.c.hour, since, until))
        .group_by(ledger_unaccounted.c.run_id, ledger_unaccounted.c.reason)
        .order_by(last.desc(), ledger_run.c.id)
        .limit(_MOST_UNACCOUNTED)
    )
    return tuple(
        Unaccounted(
            run=row["incarnation"],
            domain_name=row["domain_name"],
            reason=row["reason"],
            first=from_microseconds(row["first"]),
            last=from_microseconds(row["last"]),
        )
        for row in connection.execute(statement).mappings()
    )


def _between(time: Column[Any], since: datetime, until: datetime) -> ColumnElement[bool]:
    return (time >= to_microseconds(since)) & (time <= to_microseconds(until))


def _day(at: datetime) -> int:
    return to_microseconds(at) // DAY_MICROSECONDS * DAY_MICROSECONDS
