"""The ledger in the host's database: rows that replace each other, days made of hours, baselines that never change.

A row with no higher revision than the stored one is passed over, so that a writer that was late undoes nothing. The days that rows
belong to are made anew in the same transaction.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, delete, func, insert, literal_column, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from exitguard.model.ledger import Baseline, LedgerRow, LedgerSum, OwnCost, RunStanding
from exitguard.model.samples import Incarnation
from exitguard.model.time import from_microseconds, to_microseconds
from exitguard.store.database import Database
from exitguard.store.tables import ledger_baseline, ledger_day, ledger_hour, ledger_own_cost, ledger_run, ledger_standing

_DAY_MICROSECONDS = 86_400_000_000
_COUNTS = ("accounted_milliseconds", "spread_milliseconds", "exits", "skip_exits_low", "skip_exits_high")
#: SQLite admits 999 parameters in a statement, and since 3.32 more (SQLITE_MAX_VARIABLE_NUMBER).
_KEYS_A_QUERY = 500
#: Of the reasons of a window, as many as anybody reads.
_MOST_REASONS = 20


class HostLedger:
    """The ledger of one open store. Raises StoreError as the store does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- writing ----------------------------------------------------------------------------------------------------------------

    def record(self, rows: Collection[LedgerRow], baselines: Iterable[Baseline] = (), own_costs: Iterable[OwnCost] = ()) -> None:
        """Store all of it, or nothing: rows by their key, baselines that are not there yet, the agent's own cost."""
        with self._database.transaction("IMMEDIATE") as connection:
            _write_baselines(connection, baselines)
            for cost in own_costs:
                _write_own_cost(connection, cost)
            runs, standings = _run_ids(connection, rows), _standing_ids(connection, rows)
            for row in rows:
                _write_row(connection, row, runs[row.incarnation.key], standings[_body(row.standing)])
            for day in sorted({to_microseconds(row.hour) // _DAY_MICROSECONDS for row in rows}):
                _roll_up(connection, day * _DAY_MICROSECONDS, (day + 1) * _DAY_MICROSECONDS)

    def roll_up(self, since: datetime, until: datetime) -> None:
        """Make the days of this time anew of their hours, all of which have to be kept still. `record` does it for what it writes."""
        first, last = (to_microseconds(each) // _DAY_MICROSECONDS for each in (since, until))
        with self._database.transaction("IMMEDIATE") as connection:
            _roll_up(connection, first * _DAY_MICROSECONDS, last * _DAY_MICROSECONDS)

    def prune(self, *, hours_before: datetime, days_before: datetime) -> int:
        """Forget hours and own costs, and days, before these times, whole days only; how many rows. Baselines stay."""
        hours_limit = to_microseconds(hours_before) // _DAY_MICROSECONDS * _DAY_MICROSECONDS
        days_limit = to_microseconds(days_before) // _DAY_MICROSECONDS * _DAY_MICROSECONDS
        with self._database.transaction("IMMEDIATE") as connection:
            gone = connection.execute(delete(ledger_hour).where(ledger_hour.c.hour < hours_limit)).rowcount
            gone += connection.execute(delete(ledger_day).where(ledger_day.c.day < days_limit)).rowcount
            gone += connection.execute(delete(ledger_own_cost).where(ledger_own_cost.c.hour < days_limit)).rowcount
            if gone:
                _forget_unused(connection)
        return gone

    # --- reading ----------------------------------------------------------------------------------------------------------------

    def baselines(self) -> dict[str, Baseline]:
        """By subject."""
        with self._database.transaction("DEFERRED") as connection:
            return {
                row["subject"]: Baseline(
                    subject=row["subject"],
                    first_seen_at=from_microseconds(row["first_seen_at"]),
                    held=None if row["held"] is None else bool(row["held"]),
                )
                for row in connection.execute(select(ledger_baseline)).mappings()
            }

    def last_hour(self) -> datetime | None:
        """The newest hour that has a row."""
        with self._database.transaction("DEFERRED") as connection:
            found = connection.execute(select(func.max(ledger_hour.c.hour))).scalar_one()
        return None if found is None else from_microseconds(found)

    def first_hour(self) -> datetime | None:
        """The oldest hour that is kept; what is older is told by days."""
        with self._database.transaction("DEFERRED") as connection:
            found = connection.execute(select(func.min(ledger_hour.c.hour))).scalar_one()
        return None if found is None else from_microseconds(found)

    def rows(self, since: datetime, runs: Collection[str]) -> tuple[LedgerRow, ...]:
        """The rows of the hours from `since` on, and of these runs the last one before."""
        with self._database.transaction("DEFERRED") as connection:
            found = list(_read_rows(connection, ledger_hour.c.hour >= to_microseconds(since)))
            for keys in _chunks(sorted(runs)):
                newest = (
                    select(ledger_hour.c.run_id, func.max(ledger_hour.c.hour).label("hour"))
                    .join(ledger_run, ledger_run.c.id == ledger_hour.c.run_id)
                    .where(ledger_run.c.incarnation.in_(keys), ledger_hour.c.hour < to_microseconds(since))
                    .group_by(ledger_hour.c.run_id)
                    .subquery()
                )
                of_newest = (ledger_hour.c.run_id == newest.c.run_id) & (ledger_hour.c.hour == newest.c.hour)
                found.extend(_read_rows(connection, of_newest))
        return tuple(found)

    def sums_by_run(self, since: datetime, until: datetime) -> tuple[LedgerSum, ...]:
        """The hours that begin in this time, added up by run and way of standing, in the order of the runs' first sight."""
        return self._sums(ledger_hour, ledger_hour.c.hour, since, until, by_run=True)

    def sums_by_hour(self, since: datetime, until: datetime) -> tuple[LedgerSum, ...]:
        """All runs together, hour by hour and by way of standing."""
        return self._sums(ledger_hour, ledger_hour.c.hour, since, until, by_run=False)

    def days_by_run(self, since: datetime, until: datetime) -> tuple[LedgerSum, ...]:
        """As `sums_by_run`, of whole days, which reach further back."""
        return self._sums(ledger_day, ledger_day.c.day, since, until, by_run=True)

    def sums_by_day(self, since: datetime, until: datetime) -> tuple[LedgerSum, ...]:
        """All runs together, day by day and by way of standing."""
        return self._sums(ledger_day, ledger_day.c.day, since, until, by_run=False)

    def unaccounted(self, since: datetime, until: datetime) -> tuple[str, ...]:
        """Why something in the hours of this time is not accounted for, each reason once; at most twenty."""
        within = ledger_hour.c.hour.between(to_microseconds(since), to_microseconds(until)) & ledger_hour.c.unaccounted.is_not(None)
        with self._database.transaction("DEFERRED") as connection:
            bodies = connection.execute(select(ledger_hour.c.unaccounted).where(within).distinct().limit(_MOST_REASONS)).scalars()
            return tuple(sorted({str(reason) for body in bodies for reason in json.loads(body)})[:_MOST_REASONS])

    def own_cost(self, since: datetime, until: datetime) -> tuple[int, int]:
        """Milliseconds of processor time that the agent used in the hours of this time, and milliseconds that it ran."""
        within = ledger_own_cost.c.hour.between(to_microseconds(since), to_microseconds(until))
        columns = (func.sum(ledger_own_cost.c.cpu_milliseconds), func.sum(ledger_own_cost.c.running_milliseconds))
        with self._database.transaction("DEFERRED") as connection:
            cpu, running = connection.execute(select(*columns).where(within)).one()
        return int(cpu or 0), int(running or 0)

    def _sums(self, table: Table, time: Column[Any], since: datetime, until: datetime, *, by_run: bool) -> tuple[LedgerSum, ...]:
        sums = [func.sum(table.c[name]).label(name) for name in _COUNTS]
        sums.append(func.max(table.c.accounted_milliseconds).label("longest_milliseconds"))
        groups: list[ColumnElement[Any]] = [table.c.run_id if by_run else time, table.c.standing_id]
        within = (time >= to_microseconds(since)) & (time < to_microseconds(until))
        statement = select(*groups, *sums).where(within).group_by(*groups).order_by(*groups)
        with self._database.transaction("DEFERRED") as connection:
            found = connection.execute(statement).mappings().all()
            standings = _standings(connection)
            runs = _runs(connection) if by_run else {}
        return tuple(
            LedgerSum(
                run=runs[row["run_id"]][0] if by_run else "",
                domain_name=runs[row["run_id"]][1] if by_run else "",
                begin=None if by_run else from_microseconds(row[time.name]),
                standing=standings[row["standing_id"]],
                **{name: int(row[name]) for name in (*_COUNTS, "longest_milliseconds")},
            )
            for row in found
        )


def _roll_up(connection: Connection, begin: int, end: int) -> None:
    """Make the days from `begin` until before `end`, both full days in microseconds, anew of their hours."""
    connection.execute(delete(ledger_day).where(ledger_day.c.day >= begin, ledger_day.c.day < end))
    day = (ledger_hour.c.hour - ledger_hour.c.hour % _DAY_MICROSECONDS).label("day")
    hours = select(
        day,
        ledger_hour.c.run_id,
        ledger_hour.c.standing_id,
        func.count(),
        *(func.sum(ledger_hour.c[name]) for name in _COUNTS),
    ).where(ledger_hour.c.hour >= begin, ledger_hour.c.hour < end)
    grouped = hours.group_by(literal_column("1"), ledger_hour.c.run_id, ledger_hour.c.standing_id)
    connection.execute(insert(ledger_day).from_select(["day", "run_id", "standing_id", "hours", *_COUNTS], grouped))


def _write_row(connection: Connection, row: LedgerRow, run_id: int, standing_id: int) -> None:
    values = {
        "revision": row.revision,
        "standing_id": standing_id,
        **{name: getattr(row, name) for name in _COUNTS},
        "unaccounted": json.dumps(row.unaccounted) if row.unaccounted else None,
    }
    statement = sqlite_insert(ledger_hour).values(hour=to_microseconds(row.hour), run_id=run_id, **values)
    newer = statement.excluded.revision > ledger_hour.c.revision
    connection.execute(statement.on_conflict_do_update(index_elements=["hour", "run_id"], set_=values, where=newer))


def _write_baselines(connection: Connection, baselines: Iterable[Baseline]) -> None:
    for each in baselines:
        held = None if each.held is None else int(each.held)
        values = {"subject": each.subject, "first_seen_at": to_microseconds(each.first_seen_at), "held": held}
        connection.execute(sqlite_insert(ledger_baseline).values(values).on_conflict_do_nothing())


def _write_own_cost(connection: Connection, cost: OwnCost) -> None:
    values = {"cpu_milliseconds": cost.cpu_milliseconds, "running_milliseconds": cost.running_milliseconds}
    statement = sqlite_insert(ledger_own_cost).values(hour=to_microseconds(cost.hour), process=cost.process, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["hour", "process"], set_=values))


def _run_ids(connection: Connection, rows: Iterable[LedgerRow]) -> dict[str, int]:
    names = {row.incarnation.key: row.domain_name for row in rows}
    for key, name in names.items():
        statement = sqlite_insert(ledger_run).values(incarnation=key, domain_name=name)
        # A run that nothing was known of yet has no name.
        changed = statement.on_conflict_do_update(
            index_elements=["incarnation"], set_={"domain_name": name}, where=ledger_run.c.domain_name == ""
        )
        connection.execute(changed)
    found: dict[str, int] = {}
    for keys in _chunks(sorted(names)):
        chosen = select(ledger_run.c.incarnation, ledger_run.c.id).where(ledger_run.c.incarnation.in_(keys))
        found |= {str(text): int(number) for text, number in connection.execute(chosen)}
    return found


def _standing_ids(connection: Connection, rows: Iterable[LedgerRow]) -> dict[str, int]:
    bodies = sorted({_body(row.standing) for row in rows})
    for body in bodies:
        connection.execute(sqlite_insert(ledger_standing).values(body=body).on_conflict_do_nothing())
    found: dict[str, int] = {}
    for some in _chunks(bodies):
        chosen = select(ledger_standing.c.body, ledger_standing.c.id).where(ledger_standing.c.body.in_(some))
        found |= {str(text): int(number) for text, number in connection.execute(chosen)}
    return found


def _forget_unused(connection: Connection) -> None:
    """Runs and standings that no row has any more."""
    for table, column in ((ledger_run, "run_id"), (ledger_standing, "standing_id")):
        used = select(ledger_hour.c[column]).union(select(ledger_day.c[column]))
        connection.execute(delete(table).where(table.c.id.not_in(used)))


def _read_rows(connection: Connection, which: ColumnElement[bool]) -> Iterator[LedgerRow]:
    standings = _standings(connection)
    statement = (
        select(ledger_hour, ledger_run.c.incarnation, ledger_run.c.domain_name)
        .join(ledger_run, ledger_run.c.id == ledger_hour.c.run_id)
        .where(which)
        .order_by(ledger_hour.c.hour, ledger_hour.c.run_id)
    )
    for row in connection.execute(statement).mappings():
        yield LedgerRow(
            incarnation=Incarnation.from_key(row["incarnation"]),
            hour=from_microseconds(row["hour"]),
            revision=row["revision"],
            domain_name=row["domain_name"],
            standing=standings[row["standing_id"]],
            unaccounted=tuple(json.loads(row["unaccounted"])) if row["unaccounted"] else (),
            **{name: int(row[name]) for name in _COUNTS},
        )


def _standings(connection: Connection) -> dict[int, RunStanding]:
    rows = connection.execute(select(ledger_standing.c.id, ledger_standing.c.body))
    return {number: RunStanding.model_validate_json(body) for number, body in rows}


def _runs(connection: Connection) -> dict[int, tuple[str, str]]:
    rows = connection.execute(select(ledger_run.c.id, ledger_run.c.incarnation, ledger_run.c.domain_name))
    return {number: (incarnation, name) for number, incarnation, name in rows}


def _body(standing: RunStanding) -> str:
    return standing.model_dump_json()


def _chunks(keys: list[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while some := list(islice(rest, _KEYS_A_QUERY)):
        yield some
