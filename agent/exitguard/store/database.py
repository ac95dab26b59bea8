"""The SQLite database of one host: opened, brought to this program's schema, or refused; and its transactions.

- WAL, so that a report can be read while an audit is stored, and kill -9 at any instant leaves the last commit.
- synchronous=FULL: one fsync a commit. NORMAL would lose the last commits in a power cut, after they were acknowledged;
  at one commit an audit the difference in cost is nothing.
- Reading a WAL database needs its `-shm` file, or the right to create it. Without that right (a read-only file system, an
  unprivileged reader) there are two cases. Without a `-wal` file that holds anything, the main file is complete and is
  opened as `immutable`: no locks; so after each read the file is checked for having stayed the same. With one, SQLite
  itself reads on if the `-shm` file is still there, as after a kill; else the reader is told to copy the files.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Connection, create_engine, func, insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from exitguard.model.time import to_microseconds
from exitguard.store.errors import BUSY_TIMEOUT_SECONDS, StoreError, StoreNewer, explain_os, explain_sqlite
from exitguard.store.state_dir import create_file
from exitguard.store.tables import HEAD_REVISION, SCHEMA_VERSION, spool

_MIGRATIONS = "exitguard.store:migrations"


@dataclass(frozen=True)
class Database:
    """An open database. `unchanged` is the main file's identity where it is read without locks."""

    path: Path
    connection: Connection
    #: Device and inode of the open file. An inode is not used again while the file is open.
    file: tuple[int, int] | None
    unchanged: tuple[int, ...] | None = None

    @contextmanager
    def transaction(self, mode: str) -> Iterator[Connection]:
        """One transaction; `mode` is DEFERRED to read, IMMEDIATE to write. Raises StoreError for whatever SQLite says."""
        try:
            with _transaction(self.connection, mode):
                yield self.connection
        except DBAPIError as error:
            raise _explain(error, self.path) from error
        if self.unchanged is not None and self.unchanged != _identity(self.path):
            raise StoreError(
                f"{self.path}: changed while it was read without a lock. Expected it to stay the same for a moment: run this again, or as "
                "the user who owns it, who can take a lock.",
                reason="changed while it was read",
            )

    def still_there(self) -> bool:
        """Whether the path still leads to the open file. SQLite goes on writing into one that was deleted or moved, and says nothing."""
        return self.file is not None and self.file == _file(self.path)

    def used_bytes(self) -> int:
        """What the database holds, in whole pages; free pages inside the file do not count."""
        with self.transaction("DEFERRED") as connection:
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def empty_log(self) -> None:
        """Move what is in the write-ahead log into the main file, and cut the log to nothing, as far as readers leave it alone."""
        try:
            self.connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()
        except DBAPIError as error:
            raise _explain(error, self.path) from error

    def close(self) -> None:
        self.connection.close()
        self.connection.engine.dispose()


def open_for_writing(path: Path, *, now: datetime) -> Database:
    """The database at `path`, created or migrated where needed. Raises StoreError; what it refuses stays as it is."""
    try:
        create_file(path)
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise explain_os(error, path, "a file that this user may read and write") from error
    database = _open(path, "mode=rw")
    try:
        version = _refuse_foreign(database)
        _set_up(database)
        if version < SCHEMA_VERSION:
            _migrate(database, now)
    except DBAPIError as error:
        database.close()
        raise _explain(error, path) from error
    except BaseException:
        database.close()
        raise
    return database


def open_for_reading(path: Path) -> Database:
    """The database at `path`, which is not written to. Raises StoreError, also where an older one needs a migration first."""
    if not path.exists():
        raise StoreError(
            f"{path}: there is no such file, or this user may not see it. Expected the database that the first audit creates: run "
            f"`exitguard audit --state-dir {path.parent}` as the user who owns that directory, or wait for the service's first audit.",
            reason="no database",
        )
    try:
        return _checked_for_reading(_open(path, "mode=ro"))
    except DBAPIError as error:
        if not _needs_no_log(error, path):
            raise _explain_unreadable(error, path) from error
    unchanged = _identity(path)
    try:
        return _checked_for_reading(replace(_open(path, "mode=ro&immutable=1"), unchanged=unchanged))
    except DBAPIError as error:
        raise _explain(error, path) from error


def _open(path: Path, parameters: str) -> Database:
    file = _file(path)
    connection = _connect(path, parameters)
    # Replaced just now: then which of the two is open is not known, and neither counts as still there.
    return Database(path, connection, file if file == _file(path) else None)


def _connect(path: Path, parameters: str) -> Connection:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"{path.absolute().as_uri()}?{parameters}", uri=True, timeout=BUSY_TIMEOUT_SECONDS)

    # AUTOCOMMIT leaves BEGIN and COMMIT to _transaction(); one connection is all there is, so nothing is pooled.
    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        return engine.connect()
    except DBAPIError as error:
        raise _explain(error, path) from error


def _checked_for_reading(database: Database) -> Database:
    try:
        version = _refuse_foreign(database)
    except BaseException:
        database.close()
        raise
    if version == SCHEMA_VERSION:
        return database
    database.close()
    raise StoreError(
        f"{database.path}: was written by an older exitguard, and cannot be migrated while it is only read. Expected schema "
        f"{SCHEMA_VERSION}: run `exitguard audit --state-dir {database.path.parent}` once as the user who owns the directory.",
        reason="older schema",
    )


def _refuse_foreign(database: Database) -> int:
    """The schema version, 0 for a new database. Raises StoreError for a newer one and for another program's."""
    connection = database.connection
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if version > SCHEMA_VERSION:
        raise StoreNewer(
            f"{database.path}: has schema {version}, written by a newer exitguard. Expected at most {SCHEMA_VERSION}. It was left "
            "untouched: install the newer exitguard again, or name another directory with --state-dir.",
            reason=f"schema {version} is newer than this program",
        )
    tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
    if tables and "alembic_version" not in tables:
        raise StoreError(
            f"{database.path}: is another program's database (tables {', '.join(sorted(tables)[:3])}). Expected exitguard's, or none. "
            "It was left untouched: name another directory with --state-dir.",
            reason="another program's database",
        )
    return version


def _set_up(database: Database) -> None:
    connection = database.connection
    journal_mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar_one()
    if journal_mode != "wal":
        raise StoreError(
            f"{database.path}: the file system allows no write-ahead log (SQLite says {journal_mode!r}). Expected a local file system, "
            "such as ext4 or XFS: name a directory on one with --state-dir.",
            reason="no write-ahead log",
        )
    connection.exec_driver_sql("PRAGMA synchronous = FULL")
    connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    # Debian's SQLite overwrites what it deletes with zeros, which costs as much as writing it did; nothing here is that secret.
    connection.exec_driver_sql("PRAGMA secure_delete = FAST")


def _migrate(database: Database, now: datetime) -> None:
    """Bring the database to this program's schema, in one transaction: all of it, or nothing."""
    from alembic import command  # noqa: PLC0415 - slow to import, and needed once in the life of a database
    from alembic.config import Config  # noqa: PLC0415 - as above

    connection = database.connection
    with _transaction(connection, "IMMEDIATE"):
        # Another process may have been first.
        if int(connection.exec_driver_sql("PRAGMA user_version").scalar_one()) == SCHEMA_VERSION:
            return
        config = Config()
        config.set_main_option("script_location", _MIGRATIONS)
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD_REVISION)
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if connection.execute(select(func.count()).select_from(spool)).scalar_one() == 0:
            connection.execute(insert(spool).values(id=1, epoch=str(uuid4()), created_at=to_microseconds(now)))


@contextmanager
def _transaction(connection: Connection, mode: str) -> Iterator[None]:
    connection.exec_driver_sql(f"BEGIN {mode}")
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, a full disk among them.
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection) and driver.in_transaction:
            connection.exec_driver_sql("ROLLBACK")
        raise


def _needs_no_log(error: DBAPIError, path: Path) -> bool:
    """Whether SQLite failed for want of its `-shm` file, and the main file is complete without the log."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR} and _log_bytes(path) == 0


def _log_bytes(path: Path) -> int:
    try:
        return Path(f"{path}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def _file(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, _log_bytes(path))


def _explain_unreadable(error: DBAPIError, path: Path) -> StoreError:
    if os.access(path, os.R_OK) and _log_bytes(path) > 0:
        return StoreError(
            f"{path}: the newest observations are still in {path.name}-wal, which cannot be read without creating {path.name}-shm beside "
            f"it. Expected a directory that this user may write to: copy {path.name}, {path.name}-wal and host-id to one and name it with "
            "--state-dir, or run as the user who owns it.",
            reason="the write-ahead log cannot be read here",
        )
    return _explain(error, path)


def _explain(error: DBAPIError, path: Path) -> StoreError:
    if isinstance(error.orig, sqlite3.Error):
        return explain_sqlite(error.orig, path)
    return StoreError(f"{path}: {error.orig}. Expected a database in order.", reason=str(error.orig))
