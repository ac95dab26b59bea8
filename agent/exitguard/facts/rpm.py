"""Changelogs out of an rpm database, asked of rpm(8) itself: bounded in time and output, and never through a shell."""

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.model.record import Observed, seen, unseen

_PROGRAM = "rpm"
#: A fixed search path: what runs must not depend on the caller's environment.
_SEARCH_PATH = "/usr/bin:/bin:/usr/local/bin"
_ENVIRONMENT = {"PATH": _SEARCH_PATH, "LC_ALL": "C", "HOME": "/nonexistent"}
#: Where distributions keep the database (rpm's macro _dbpath), and the files of its formats: sqlite, ndb, Berkeley DB.
_FOLDERS = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
_FILES = ("rpmdb.sqlite", "Packages.db", "Packages")
_COMPANIONS = ("rpmdb.sqlite-wal", "Index.db")
_MAX_DATABASE_BYTES = 1 << 30
_MAX_OUTPUT_BYTES = 64 << 20
#: For all queries of one audit together.
_LIMIT_SECONDS = 10.0
_CHUNK_BYTES = 64 << 10


class RpmError(Exception):
    """rpm gave no usable answer; the message says why."""


class RpmTimeoutError(RpmError):
    """The time for all queries together is over: asking again would wait in vain."""


def query_deadline() -> float:
    """When queries that begin now must all have ended, in seconds of the monotonic clock."""
    return time.monotonic() + _LIMIT_SECONDS


@contextlib.contextmanager
def rpm_database(tree: HostTree) -> Iterator[Observed[str] | None]:
    """The folder to give to `query_changelog`, or why the host's rpm database cannot be read; None where the host has none.

    A sysroot's database is copied first: rpm, as root, writes beside the database that it reads, and follows links in it.
    """
    folder = next((folder for folder in _FOLDERS if any(tree.exists(f"{folder}/{file}") for file in _FILES)), None)
    if folder is None:
        yield None
    elif shutil.which(_PROGRAM, path=_SEARCH_PATH) is None:
        yield unseen(folder, "the program rpm, which reads the rpm database, is not installed here", unlock="install the package rpm")
    elif tree.is_this_machine:
        yield seen(folder, folder)
    else:
        with tempfile.TemporaryDirectory(prefix="exitguard-rpmdb-") as copy:
            try:
                _copy_database(tree, folder, Path(copy))
            except OSError as error:
                yield unseen(folder, why(error), unlock=unlock_for(error))
            else:
                yield seen(folder, copy)


def query_changelog(database: str, package: str, *, deadline: float) -> Iterator[bytes]:
    """The changelog of an installed package, in chunks. Raises RpmError, at the latest after the last, where rpm does not know it.

    Raises RpmTimeoutError at the `deadline`, which is that of `query_deadline`.
    """
    argv = [_PROGRAM, "--dbpath", database, "-q", "--changelog", "--", package]
    if time.monotonic() >= deadline:
        raise _timeout()
    try:
        process = subprocess.Popen(  # noqa: S603 - a fixed program; the package name is checked by the caller to be no option or pattern
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_ENVIRONMENT, cwd="/"
        )
    except OSError as error:
        raise RpmError(f"rpm could not be started: {why(error)}") from error
    with process:
        try:
            yield from _output(process, deadline)
            if process.wait(timeout=max(deadline - time.monotonic(), 0.1)) != 0:
                raise RpmError(f"rpm knows no installed package {package}")
        except subprocess.TimeoutExpired:
            raise _timeout() from None
        finally:
            process.kill()


def _output(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    if process.stdout is None:
        return
    descriptor = process.stdout.fileno()
    total_bytes = 0
    while True:
        readable, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        if not readable:
            raise _timeout()
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            return
        total_bytes += len(chunk)
        if total_bytes > _MAX_OUTPUT_BYTES:
            raise RpmError(f"rpm wrote more than {_MAX_OUTPUT_BYTES} bytes, which is more than a changelog can rightly hold")
        yield chunk


def _timeout() -> RpmTimeoutError:
    return RpmTimeoutError(f"rpm did not finish within {_LIMIT_SECONDS:.0f} s, the time for all of its answers together")


def _copy_database(tree: HostTree, folder: str, target: Path) -> None:
    remaining_bytes = _MAX_DATABASE_BYTES
    for file in (*_FILES, *_COMPANIONS):
        if not tree.exists(f"{folder}/{file}"):
            continue
        with tree.open(f"{folder}/{file}") as source, (target / file).open("wb") as copy:
            while chunk := source.read(1 << 20):
                remaining_bytes -= len(chunk)
                if remaining_bytes < 0:
                    raise OSError(0, f"the rpm database is larger than {_MAX_DATABASE_BYTES} bytes")
                copy.write(chunk)
