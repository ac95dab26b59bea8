"""The hub's database: PostgreSQL 15 or newer, or one SQLite file; brought to this program's schema, and its transactions.

SQLite has one writer at a time, who waits for the other (BEGIN IMMEDIATE); PostgreSQL has as many as hosts send at once, and each batch
locks its own host's row. Both commit to the disk before they say so.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, insert, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from exitguard.store.errors import StoreError, explain_sqlite
from exitguard.store.hub_tables import HEAD_REVISION, metadata
from exitguard.store.state_dir import create_file

_MIGRATIONS = "exitguard.store:hub_migrations"
_BUSY_SECONDS = 20
_ROWS_A_BATCH = 500
#: Of pg_advisory_xact_lock: any two numbers that no other program uses here ("exit", "hub1").
_LOCK_SPACE, LOCK_MIGRATION, LOCK_PARTITIONS = 0x65786974, 0x68756231, 0x68756232
#: A client that waits for longer has gone; what it sent comes again.
_OPTIONS = "-c statement_timeout=60s -c lock_timeout=20s -c idle_in_transaction_session_timeout=60s -c timezone=UTC"


class HubUnavailable(StoreError):  # noqa: N818 - nobody's error: the same request may be sent again
    """The database does not answer, or not now."""


@dataclass
class HubDatabase:
    """An open database, for any number of threads."""

    engine: Engine
    #: What operators know it by; without a password.
    name: str
    #: Days of partitions that are known to be there, by table.
    partitions: set[tuple[str, int]] = field(default_factory=set)

    @property
    def is_postgresql(self) -> bool:
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """One transaction: committed where it ends well, else nothing of it is there. Raises StoreError for what the database says."""
        try:
            with self.engine.connect() as connection, self._within(connection, write=write):
                yield connection
        except SQLAlchemyError as error:
            raise self.explain(error) from error

    @contextmanager
    def _within(self, connection: Connection, *, write: bool) -> Iterator[None]:
        if self.is_postgresql:
            with connection.begin():
                yield
            return
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            driver = connection.connection.driver_connection
            if isinstance(driver, sqlite3.Connection) and driver.in_transaction:
                connection.exec_driver_sql("ROLLBACK")
            raise

    def lock(self, connection: Connection, what: int) -> None:
        """Until the transaction ends nobody else holds the same lock. SQLite's writers are alone anyway."""
        if self.is_postgresql:
            connection.execute(text("SELECT pg_advisory_xact_lock(:space, :what)"), {"space": _LOCK_SPACE, "what": what})

    def add_rows(self, connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """New rows in bulk: by COPY on PostgreSQL. `table` and `columns` are the program's own words."""
        if self.is_postgresql:
            cursor = connection.connection.cursor()
            with cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:  # type: ignore[attr-defined]
                for row in rows:
                    copy.write_row(row)
            return
        named = metadata.tables[table]
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(dict(zip(columns, row, strict=True)))
            if len(batch) == _ROWS_A_BATCH:
                connection.execute(insert(named), batch)
                batch = []
        if batch:
            connection.execute(insert(named), batch)

    def replace_rows(self, connection: Connection, table: Table, rows: Sequence[Sequence[Any]], *, newer: str | None = None) -> None:
        """Rows with all columns of `table`, in its order, each in the place of the one with its key, if there is any.

        With `newer`, only where it says more in that column. No two of `rows` have the same key.
        """
        if not rows:
            return
        columns = [column.name for column in table.columns]
        keys = [column.name for column in table.primary_key.columns]
        settings = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in keys)
        where = f" WHERE excluded.{newer} > {table.name}.{newer}" if newer is not None else ""
        conflict = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {settings}{where}"
        named = ", ".join(columns)
        if self.is_postgresql:
            staged = f"new_{table.name}"
            connection.exec_driver_sql(f"CREATE TEMPORARY TABLE IF NOT EXISTS {staged} (LIKE {table.name}) ON COMMIT DELETE ROWS")
            self.add_rows(connection, staged, columns, rows)
            # The words are the program's own; the values came by COPY.
            connection.exec_driver_sql(f"INSERT INTO {table.name} ({named}) SELECT {named} FROM {staged} {conflict}")  # noqa: S608
            return
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {table.name} ({named}) VALUES ({marks}) {conflict}"  # noqa: S608 - as above
        connection.exec_driver_sql(statement, [tuple(row) for row in rows])

    def check(self) -> None:
        """Whether it answers and has this program's schema. Raises StoreError."""
        with self.transaction() as connection:
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
        if revision != HEAD_REVISION:
            raise StoreError(
                f"{self.name}: has schema {revision}. Expected {HEAD_REVISION}: run this with the exitguard that wrote it, or a newer one.",
                reason="another schema",
            )

    def close(self) -> None:
        self.engine.dispose()

    def explain(self, error: SQLAlchemyError) -> StoreError:
        """`error` for the operator."""
        if isinstance(error, DBAPIError) and isinstance(error.orig, sqlite3.Error):
            if isinstance(error.orig, sqlite3.OperationalError):
                return HubUnavailable(str(explain_sqlite(error.orig, Path(self.name))), reason=str(error.orig))
            return explain_sqlite(error.orig, Path(self.name))
        what = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())[:300]
        sentence = f"{self.name}: {what}. Expected a PostgreSQL 15 or newer that answers, and a role that may use this database."
        transient = not isinstance(error, DBAPIError) or type(error).__name__ in {"OperationalError", "InterfaceError", "InternalError"}
        return (HubUnavailable if transient else StoreError)(sentence, reason=what)


def open_hub_database(where: str, *, connections: int = 8) -> HubDatabase:
    """The database at a `postgresql://` URL or in a SQLite file, created and migrated where needed. Raises StoreError."""
    database = _postgresql(where, connections) if where.startswith(("postgresql://", "postgres://")) else _sqlite(Path(where), connections)
    try:
        _migrate(database)
    except SQLAlchemyError as error:
        database.close()
        raise database.explain(error) from error
    except BaseException:
        database.close()
        raise
    return database


def _postgresql(where: str, connections: int) -> HubDatabase:
    try:
        url: URL = make_url("postgresql" + where[where.index(":") :]).set(drivername="postgresql+psycopg")
        engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5, "options": _OPTIONS, "application_name": "exitguard-hub"},
        )
    except (ArgumentError, ValueError) as error:
        raise StoreError(
            "the hub's database: is no PostgreSQL URL. Expected postgresql://user@host:5432/name, or the path of a SQLite file.",
            reason="no URL",
        ) from error
    except ModuleNotFoundError as error:
        raise StoreError(
            f"the hub's database: {error.name} is not installed. Expected exitguard[hub]: install that.", reason="no driver"
        ) from error
    return HubDatabase(engine, url.set(query={}).render_as_string(hide_password=True))


def _sqlite(path: Path, connections: int) -> HubDatabase:
    try:
        create_file(path)
    except OSError as error:
        raise StoreError(
            f"{path}: {(error.strerror or str(error)).lower()}. Expected a file that this user may write, or a postgresql:// URL.",
            reason="cannot be created",
        ) from error

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None)

    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=10,
        isolation_level="AUTOCOMMIT",
    )

    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    event.listen(engine, "connect", set_up)
    return HubDatabase(engine, str(path))


def _migrate(database: HubDatabase) -> None:
    """Bring the database to this program's schema, in one transaction; of processes that race, one does it. Raises StoreError."""
    from alembic import command  # noqa: PLC0415 - slow to import
    from alembic.config import Config  # noqa: PLC0415 - as above

    with database.transaction(write=True) as connection:
        database.lock(connection, LOCK_MIGRATION)
        revision = _revision(connection)
        if revision == HEAD_REVISION:
            return
        if revision is None and (others := _tables(connection)):
            raise StoreError(
                f"{database.name}: is another program's database (tables {', '.join(sorted(others)[:3])}). Expected the hub's, or an empty "
                "one. It was left untouched.",
                reason="another program's database",
            )
        if revision is not None and revision > HEAD_REVISION:
            raise StoreError(
                f"{database.name}: has schema {revision}, written by a newer exitguard. Expected at most {HEAD_REVISION}. It was left "
                "untouched: install the newer exitguard again.",
                reason=f"schema {revision} is newer than this program",
            )
        config = Config()
        config.set_main_option("script_location", _MIGRATIONS)
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD_REVISION)


def _tables(connection: Connection) -> set[str]:
    query = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
        "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()",
    }[connection.dialect.name]
    return set(connection.execute(text(query)).scalars())


def _revision(connection: Connection) -> str | None:
    if "alembic_version" not in _tables(connection):
        return None
    found = connection.execute(select(text("version_num")).select_from(text("alembic_version"))).scalar_one_or_none()
    return None if found is None else str(found)
