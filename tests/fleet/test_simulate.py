"""`exitguard simulate` against a real hub, over HTTP and into its database: all of it arrives, once, and never beside real hosts."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hub_process import RunningHub
from sqlalchemy import func, select

from exitguard.store.hub import HubStore
from exitguard.store.hub_tables import document, finding, finding_event, gap, host, ledger, samples, savings, standing

pytestmark = pytest.mark.integration

HOSTS = 64  # more than a hub lets in at once
TABLES = (host, document, finding, finding_event, gap, ledger, samples, savings, standing)
AT = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return str(tmp_path_factory.mktemp("loaded") / "hub.sqlite")
    return str(request.getfixturevalue("postgresql").new_database())


@pytest.fixture
def own_hub(tmp_path: Path) -> Iterator[RunningHub]:
    with RunningHub(str(tmp_path / "hub.sqlite"), tmp_path / "log") as running:
        yield running


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exitguard", "simulate", "--hosts", str(HOSTS), "--domains", "5", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TERM": "dumb"}, timeout=240, check=False)


def counts(database: str) -> dict[str, int]:
    with HubStore.open(database, connections=1) as store, store.reading() as connection:
        return {table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one()) for table in TABLES}


def reports(database: str) -> dict[str, Any]:
    with HubStore.open(database, connections=1) as store:
        return {each.host_id: json.loads(each.json()) for each in store.reports()}


def test_a_fleet_is_loaded_once_however_often_it_is_tried(database: str, tmp_path: Path) -> None:
    words = ("--load", database, "--looks", "3", "--at", AT, "--keys", str(tmp_path / "keys"), "--workers", "2")
    done = simulate(*words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"{HOSTS} hosts" in done.stderr
    first = counts(database)
    assert first["host"] == HOSTS
    assert first["samples"] > HOSTS
    assert first["savings"] > 0
    assert simulate(*words).returncode == 0
    assert counts(database) == first, "nothing is there twice"
    assert simulate(*words[:-4], "--workers", "2").returncode == 1, "the hosts have keys that a run without the file does not know"
    assert counts(database) == first


def test_a_fleet_over_http_says_what_a_loaded_one_says(own_hub: RunningHub, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(own_hub.new_secret("simulated", HOSTS))
    words = ("--hub", own_hub.url, "--at", AT, "--keys", str(tmp_path / "keys"), "--looks")
    done = simulate(*words, "2", "--enrolment-file", str(secret))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    before = counts(own_hub.database)
    assert simulate(*words, "2").returncode == 0, "the keys of the first run count"
    assert counts(own_hub.database) == before, "nothing is there twice"
    assert simulate(*words, "3", "--from-look", "2").returncode == 0
    loaded = str(tmp_path / "loaded.sqlite")
    assert simulate("--load", loaded, "--at", AT, "--looks", "3").returncode == 0
    pushed, expected = reports(own_hub.database), reports(loaded)
    for host_id, report in expected.items():
        stamp = {"observed_at": pushed[host_id]["observed_at"]}
        assert {**report, **stamp} == pushed[host_id] or report["host"]["hostname"] in _silent(), report["host"]["hostname"]
    assert {line["error"] for line in own_hub.logged() if line["event"] == "request.refused"} <= {"too_often"}


def _silent() -> set[str]:
    from exitguard.simulation.host import SimulatedHost  # noqa: PLC0415 - for these names alone

    return {each.hostname for each in (SimulatedHost(1, number, 5) for number in range(HOSTS)) if each.silent}


def test_simulated_hosts_are_never_mixed_with_others(own_hub: RunningHub) -> None:
    own_hub.let_in(str(uuid4()))
    before = counts(own_hub.database)
    done = simulate("--load", own_hub.database)
    assert done.returncode == 1
    assert "which is not simulated" in done.stderr
    assert counts(own_hub.database) == before


def test_what_is_missing_is_said(own_hub: RunningHub, tmp_path: Path) -> None:
    assert simulate().returncode == 64
    assert simulate("--hub", own_hub.url, "--load", "x").returncode == 64
    secret_url = simulate("--load", "postgresql://hub:hunter2@127.0.0.1:1/hub")
    assert (secret_url.returncode, "hunter2" in secret_url.stderr) == (64, False)
    assert simulate("--load", "x", "--looks", "2", "--from-look", "2").returncode == 64
    bare = simulate("--hub", own_hub.url)
    assert (bare.returncode, "--enrolment-file" in bare.stderr) == (1, True)
    secret = tmp_path / "secret"
    secret.write_text(own_hub.new_secret("too few", 3))
    few = simulate("--hub", own_hub.url, "--enrolment-file", str(secret))
    assert (few.returncode, "does not let sim-" in few.stderr) == (1, True)
    (tmp_path / "keys").write_text("no key\n")
    wrong = simulate("--hub", own_hub.url, "--keys", str(tmp_path / "keys"))
    assert (wrong.returncode, "something else than keys" in wrong.stderr) == (1, True)
    gone = simulate("--hub", "http://127.0.0.1:1", "--enrolment-file", str(secret))
    assert (gone.returncode, "Expected the hub to answer there" in gone.stderr) == (1, True)
