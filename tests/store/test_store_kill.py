"""kill -9 at any instant: what was acknowledged is there, once, and the database is in order."""

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from store_builders import START, domain_count, minutes

from exitguard.model.time import to_microseconds
from exitguard.store.host import HostStore

PROGRAM = Path(__file__).with_name("record_and_say.py")
ROUNDS = 12


def kill_while_recording(state_dir: Path, first: int, delay_seconds: float) -> list[int]:
    """The minutes that a process acknowledged before it was killed, at some instant after its first."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(state_dir), str(first), "100000"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline())]
        try:
            process.wait(delay_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        rest = process.stdout.read()
    assert process.returncode == -9
    # The last line may have been cut short by the kill: then it was not acknowledged.
    return acknowledged + [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]


def test_acknowledged_observations_survive_sigkill_exactly_once(tmp_path: Path) -> None:
    chance = random.Random(20260301)  # noqa: S311 - not for secrets
    acknowledged: list[int] = []
    for number in range(ROUNDS):
        first = (acknowledged[-1] + 2) if acknowledged else 0  # past one that may be stored and not acknowledged
        acknowledged += kill_while_recording(tmp_path, first, chance.uniform(0, 0.3))
        with closing(sqlite3.connect(tmp_path / "host.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            stored = [at for (at,) in connection.execute("SELECT observed_at FROM observation ORDER BY seq")]
            sampled = [at for (at,) in connection.execute("SELECT observed_at FROM samples ORDER BY id")]
        assert len(stored) == len(set(stored)), "stored twice"
        missing = {to_microseconds(minutes(minute)) for minute in acknowledged} - set(stored)
        assert not missing
        assert len(stored) <= len(acknowledged) + number + 1, "at most one a kill is stored and not acknowledged"
        assert sampled == stored
    with HostStore.open(tmp_path, now=START) as store:
        for minute in acknowledged:
            report = store.report(minutes(minute))
            assert report is not None
            assert report.observed_at == minutes(minute)
            assert len(report.findings) == len(report.domains) == domain_count(minute)
        assert store.gaps(START) == ()


@pytest.mark.parametrize("delay_seconds", [0.0, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7])
def test_kill_while_the_database_is_created_leaves_none_or_a_whole_one(tmp_path: Path, delay_seconds: float) -> None:
    with subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path), "0", "100000"], stdout=subprocess.DEVNULL) as process:
        try:
            process.wait(delay_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    with HostStore.open(tmp_path, now=START) as store:
        host_id, epoch = store.host_id, store.spool_epoch
        assert store.gaps(START) == ()
    with HostStore.open(tmp_path, now=START) as store:
        assert (store.host_id, store.spool_epoch) == (host_id, epoch)
