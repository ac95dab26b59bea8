"""The days of the hub's partitioned tables: made when the first row of one comes, and forgotten whole."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, Table, delete, select, text

from exitguard.model.time import to_microseconds
from exitguard.store.hub_database import LOCK_PARTITIONS, HubDatabase
from exitguard.store.hub_tables import PARTITIONED, document, finding_event, gap, host

DAY_MICROSECONDS = 86_400_000_000


def day_of(at: datetime) -> int:
    """Days since 1970 in UTC."""
    return to_microseconds(at) // DAY_MICROSECONDS


def provide_days(database: HubDatabase, needed: Iterable[tuple[Table, int]]) -> None:
    """Make the partitions that are missing, in a transaction of their own; nothing to do on SQLite. Raises StoreError."""
    missing = sorted({(table.name, day) for table, day in needed} - database.partitions)
    if not missing:
        return
    if database.is_postgresql:
        with database.transaction(write=True) as connection:
            database.lock(connection, LOCK_PARTITIONS)
            for table, day in missing:
                connection.execute(
                    text(f"CREATE TABLE IF NOT EXISTS {_partition(table, day)} PARTITION OF {table} FOR VALUES FROM ({day}) TO ({day + 1})")
                )
    database.partitions.update(missing)


def forget_days(database: HubDatabase, table: Table, before: int) -> int:
    """Forget the days of a partitioned table before `before`: how many partitions were dropped, or rows deleted on SQLite."""
    with database.transaction(write=True) as connection:
        if not database.is_postgresql:
            return connection.execute(delete(table).where(table.c.day < before)).rowcount
        database.lock(connection, LOCK_PARTITIONS)
        old = [day for day in _days(connection, table) if day < before]
        for day in old:
            connection.execute(text(f"DROP TABLE {_partition(table.name, day)}"))
    database.partitions.difference_update((table.name, day) for day in old)
    return len(old)


def forget_history(database: HubDatabase, before: datetime) -> int:
    """Forget transitions and gaps received before that time, and documents that nobody has said since; how many rows.

    What a host says now stays, however long ago it said so first.
    """
    limit = to_microseconds(before)
    current = select(host.c.host_id).where(
        host.c.host_id == document.c.host_id, (host.c.report_sha256 == document.c.sha256) | (host.c.facts_sha256 == document.c.sha256)
    )
    statements = (
        delete(finding_event).where(finding_event.c.received_at < limit),
        delete(gap).where(gap.c.received_at < limit),
        delete(document).where(document.c.last_day < limit // DAY_MICROSECONDS, ~current.exists()),
    )
    with database.transaction(write=True) as connection:
        return sum(connection.execute(statement).rowcount for statement in statements)


def forget_all(database: HubDatabase, now: datetime, *, history_days: int, samples_days: int, ledger_days: int) -> int:
    """Forget whatever is older than it is to be kept."""
    today = day_of(now)
    kept = {"standing": history_days, "samples": samples_days, "savings": ledger_days, "ledger": ledger_days}
    forgotten = sum(forget_days(database, table, today - kept[table.name]) for table in PARTITIONED)
    from_day = (today - history_days) * DAY_MICROSECONDS
    return forgotten + forget_history(database, datetime.fromtimestamp(from_day / 1_000_000, tz=now.tzinfo))


def _days(connection: Connection, table: Table) -> list[int]:
    statement = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:parent AS regclass)")
    names = connection.execute(statement, {"parent": table.name}).scalars()
    return sorted(int(str(name).rpartition("_d")[2]) for name in names)


def _partition(table: str, day: int) -> str:
    return f"{table}_d{day}"
