"""A PostgreSQL of the tests' own: a new cluster on a socket in a directory of its own, started as a user who may, and stopped again."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

_START_SECONDS = 30


def _programs() -> Path | None:
    """Where initdb and postgres of the newest version from 15 on are; None where there are none."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).parent
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit() and int(path.parent.name) >= 15]
    return max(versions, key=lambda path: int(path.parent.name), default=None)


@dataclass
class Cluster:
    """It may be killed and started again."""

    directory: Path
    programs: Path
    account: pwd.struct_passwd | None
    _numbers: Iterator[int] = field(default_factory=count)
    _server: "subprocess.Popen[bytes] | None" = None

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"hub_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def initialise(self) -> None:
        if self.account is not None:
            os.chown(self.directory, self.account.pw_uid, self.account.pw_gid)
        words = ["-D", str(self.directory / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
        subprocess.run([str(self.programs / "initdb"), *words], check=True, capture_output=True, cwd=self.directory, **self._owner)

    def start(self) -> None:
        """Start the server, and wait until it takes connections; after a kill it recovers first."""
        log = self.directory / "log"
        settings = ("listen_addresses=", f"unix_socket_directories={self.directory}", "max_connections=60", "shared_buffers=64MB")
        words = ["-D", str(self.directory / "data"), *(word for setting in settings for word in ("-c", setting))]
        with log.open("ab") as output:
            self._server = subprocess.Popen(
                [str(self.programs / "postgres"), *words], stdout=output, stderr=output, cwd=self.directory, **self._owner
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.05)
            else:
                return

    def end(self) -> None:
        """At once (SIGQUIT), without a word to the disk: what was committed has to be found again by recovery."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(_START_SECONDS)

    @property
    def _owner(self) -> dict[str, Any]:
        """PostgreSQL does not run as root."""
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Skips where PostgreSQL is not installed, or where root has no other user to run it as."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL 15 or newer is not installed")
    with tempfile.TemporaryDirectory(prefix="exitguard-pg-") as directory:
        cluster = Cluster(Path(directory), programs, _account())
        cluster.initialise()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.end()


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("root has no user postgres or nobody to run PostgreSQL as")
