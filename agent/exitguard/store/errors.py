"""What can go wrong with the store, in sentences for the operator: what, where, what was expected, what to do next."""

import errno
import sqlite3
from pathlib import Path

BUSY_TIMEOUT_SECONDS = 5

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Result codes of SQLite are (detail << 8) | primary code (https://sqlite.org/rescode.html).
_PRIMARY = 0xFF


class StoreError(Exception):
    """The store cannot be used, or an observation could not be stored. `reason` is the short form, for the note of a gap."""

    def __init__(self, sentence: str, *, reason: str, noted: bool = False) -> None:
        super().__init__(sentence)
        self.reason = reason
        #: Whether the observation that could not be stored stands in the note of a gap: else whoever made it has to remember that.
        self.noted = noted


class StoreOfAnother(StoreError):  # noqa: N818 - nobody's error
    """The directory belongs to another user, whose own process keeps it current."""


class StoreFull(StoreError):  # noqa: N818 - the disk is full; nothing is in error
    """There was no room to write: a full disk, a quota or a file size limit."""


class StoreNewer(StoreError):  # noqa: N818 - as above
    """The database was written by a newer exitguard; it was left untouched."""


class StoreOutdated(StoreError):  # noqa: N818 - as above
    """An update of another audit than the last one that is stored: nothing was stored, and a full audit is due."""


def explain_os(error: OSError, path: Path, expected: str) -> StoreError:
    """`error` at `path` for the operator; `expected` says what the path should have been."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return _full(path, reason)
    return StoreError(f"{path}: {reason}. Expected {expected}. {_remedy_for(error)}", reason=reason)


def explain_sqlite(error: sqlite3.Error, path: Path) -> StoreError:
    """`error` of the database at `path` for the operator."""
    code = getattr(error, "sqlite_errorcode", 0)
    reason = f"{error} ({getattr(error, 'sqlite_errorname', 'no SQLite code')})"
    match code & _PRIMARY:
        # Past a file size limit or a quota, and where the log's index cannot grow, SQLite says IOERR instead of FULL.
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return _full(path, reason)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(
                f"{path}: another process has kept the database locked for {BUSY_TIMEOUT_SECONDS} seconds. Expected a lock of well under a "
                "second. See who holds it with `fuser -v` on the file, then try again.",
                reason=reason,
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreError(
                f"{path}: {reason}. Expected a SQLite database. It was left as it is: move it and the files of the same name with -wal and "
                "-shm aside, together, and keep them for a look; the next audit begins a new database under the same host id.",
                reason=reason,
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StoreError(
                f"{path}: {reason}. Expected a file that this user may read and write, in a directory where it may create files. Run as "
                "the user who owns the directory (of the package: exitguard), or name another one.",
                reason=reason,
            )
        case _:
            return StoreError(
                f"{path}: {reason}. Expected a database in order: check it with `sqlite3 {path} 'PRAGMA integrity_check'`.", reason=reason
            )


def _full(path: Path, reason: str) -> StoreFull:
    return StoreFull(
        f"{path}: there was no room to write: {reason}. Expected free space on the file system that holds {path.parent}. Free some there "
        "(`df -h`, `df -i`), or lift the quota or the file size limit; if there is room, look for a failing disk in the kernel log.",
        reason=reason,
    )


def _remedy_for(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "Run as the user who owns the directory (of the package: exitguard), or name another one."
    return "Correct the path, or name another directory with --state-dir."
