"""`exitguard hub`: secrets are told once, and count at a hub of the same database; what is wrong is told in words."""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exitguard.fleet.keys import enrolment_sha256, new_host_key, parse_operator_token, sha256_of
from exitguard.model.hub import Role
from exitguard.model.push import Enrolment
from exitguard.store.hub import HubStore
from exitguard.store.hub_access import NotAdmitted, enrol, live_keys, operator_of_token, read_log

HOST_ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"


def run(*words: str, database: Path | str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    if database is not None:
        environment["EXITGUARD_HUB_DATABASE"] = str(database)
    return subprocess.run(
        [sys.executable, "-m", "exitguard", "hub", *words], capture_output=True, text=True, env=environment, check=False, timeout=60
    )


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "hub.sqlite"


def let_in(database: Path, secret: str) -> None:
    now = datetime.now(UTC)
    asked = Enrolment(secret=secret, host_id=HOST_ID, key=new_host_key(HOST_ID).public)
    with HubStore.open(str(database)) as store, store.writing() as connection:
        enrol(connection, asked, str(enrolment_sha256(secret)), now)


def test_an_enrolment_secret_lets_a_host_in_and_revoked_none(database: Path) -> None:
    made = run("enrolment", "--name", "rack-7", "--hosts", "2", database=database)
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"exg-enrol\.[A-Za-z0-9_-]{43}\n", made.stdout)
    assert "2 hosts" in made.stderr
    let_in(database, made.stdout.strip())
    again = run("enrolment", "--name", "rack-7", database=database)
    assert (again.returncode, again.stdout) == (1, "")
    assert "choose another --name" in again.stderr
    assert run("enrolment", "--name", "rack-7", "--revoke", database=database).returncode == 0
    assert run("enrolment", "--name", "rack-7", "--revoke", database=database).returncode == 1
    with pytest.raises(NotAdmitted):
        let_in(database, made.stdout.strip())


def test_a_token_is_its_owners_until_it_is_revoked(database: Path) -> None:
    made = run("token", "--name", "ops", "--role", "operator", database=database)
    token = parse_operator_token(made.stdout.strip())
    assert token is not None, made.stderr

    def role() -> Role | None:
        with HubStore.open(str(database)) as store, store.reading() as connection:
            found = operator_of_token(connection, token.token_id, sha256_of(token.secret), datetime.now(UTC))
        return None if found is None else found.role

    assert role() is Role.OPERATOR
    assert run("token", "--name", "ops", "--revoke", database=database).returncode == 0
    assert role() is None
    assert run("token", "--name", "ops", "--revoke", database=database).returncode == 1


def test_a_host_is_shut_out(database: Path) -> None:
    let_in(database, run("enrolment", "--name", "one", database=database).stdout.strip())
    revoked = run("host", "revoke", HOST_ID, database=database)
    assert (revoked.returncode, revoked.stderr) == (0, f"1 key of host {HOST_ID} no longer counts.\n")
    assert run("host", "revoke", HOST_ID.replace("7", "8"), database=database).returncode == 1
    with HubStore.open(str(database)) as store, store.reading() as connection:
        assert live_keys(connection, HOST_ID) == 0
        assert [entry.action for entry in read_log(connection, 2)] == ["host.revoked", "host.enrolled"]


def test_no_secret_is_in_the_database(database: Path) -> None:
    secret = run("enrolment", "--name", "one", database=database).stdout.strip()
    token = run("token", "--name", "ops", database=database).stdout.strip()
    with closing(sqlite3.connect(database)) as connection:
        text = "\n".join(connection.iterdump())
    assert secret.rpartition(".")[2] not in text
    assert token.rpartition(".")[2] not in text


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("token", "--name", "x"), 1, "no database is named"),
        (("token", "--name", "x", "--database", "postgresql://user:secret@db/hub"), 64, "a password belongs in"),
        (("token", "--name", "x", "--database", "/nonexistent/hub.sqlite"), 1, "no such file or directory"),
        (("token", "--name", "x", "--role", "root"), 64, "root"),
        (("serve", "--database", "x", "--listen", "8470"), 64, "such as 127.0.0.1:8470"),
        (("serve", "--database", "x", "--listen", "127.0.0.1:99999"), 64, "such as 127.0.0.1:8470"),
    ],
)
def test_what_is_wrong_is_told(words: tuple[str, ...], code: int, what: str) -> None:
    told = run(*words)
    assert told.returncode == code
    assert what in " ".join(told.stderr.split())
    assert "secret@" not in told.stderr
