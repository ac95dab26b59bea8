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
    directory: Path
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"hub_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Skips where PostgreSQL is not installed, or where root has no other user to run it as."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL 15 or newer is not installed")
    with tempfile.TemporaryDirectory(prefix="exitguard-pg-") as made:
        directory = Path(made)
        account = _account()
        owner = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        if account is not None:
            os.chown(directory, account.pw_uid, account.pw_gid)
        data, log = directory / "data", directory / "log"
        words = [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
        subprocess.run(words, check=True, capture_output=True, cwd=directory, **owner)
        settings = ("listen_addresses=", f"unix_socket_directories={directory}", "max_connections=60", "shared_buffers=64MB")
        words = [str(programs / "postgres"), "-D", str(data), *(word for setting in settings for word in ("-c", setting))]
        with log.open("wb") as output, subprocess.Popen(words, stdout=output, stderr=output, cwd=directory, **owner) as server:
            try:
                cluster = Cluster(directory)
                _wait_for(cluster, server, log)
                yield cluster
            finally:
                server.send_signal(signal.SIGQUIT)  # at once: nobody reads it again
                server.wait(_START_SECONDS)


def _account() -> pwd.struct_passwd | None:
    """PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("root has no user postgres or nobody to run PostgreSQL as")


def _wait_for(cluster: Cluster, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(cluster.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return
