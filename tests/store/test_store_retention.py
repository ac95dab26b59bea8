"""What is forgotten, what never is, and that forgetting is safe whatever happens meanwhile."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from store_builders import START, VERDICT_CYCLE, finding, judge, judge_again, minutes, observe

from exitguard.model.documents import AuditReport
from exitguard.model.finding import Verdict
from exitguard.model.pmu import PmuElement
from exitguard.store import retention
from exitguard.store.errors import StoreError, StoreFull
from exitguard.store.gap import clear_note, note_dropped, read_note
from exitguard.store.host import HostStore

FAIL, PASS = Verdict.FAIL, Verdict.PASS
EVER = START - timedelta(days=365)
FOREVER = timedelta(days=3650)
UNLIMITED = 2**40
HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    with HostStore.open(tmp_path, now=START) as opened:
        yield opened


def audit(store: HostStore, minute: int, *, domains: int = 3, verdict: Verdict | None = None) -> AuditReport:
    """An audit that differs from the one before it, unless `verdict` says what it finds."""
    pmu = {0: (PmuElement.ON, PmuElement.OFF, PmuElement.ABSENT)[minute % 3]} if verdict is None else {}
    observation = observe(minutes(minute), domains=domains, pmu=pmu)
    found = VERDICT_CYCLE[minute % 3] if verdict is None else verdict
    return store.record(observation, judge(observation, tuple(finding(n, found, minutes(minute)) for n in range(domains))))


def seqs(state_dir: Path, column: str = "seq", table: str = "observation") -> list[int]:
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        return [value for (value,) in connection.execute(f"SELECT {column} FROM {table} ORDER BY 1")]  # noqa: S608 - our names


def in_order(state_dir: Path) -> None:
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_empty_store_has_no_horizon_and_nothing_to_forget(store: HostStore) -> None:
    assert store.horizon() is None
    pruned = store.prune(START, history=timedelta(0), samples=timedelta(0), limit_bytes=UNLIMITED)
    assert (pruned.observations, pruned.documents, pruned.samples) == (0, 0, 0)
    assert pruned.size_bytes == store.size_bytes() > 0


def test_what_is_older_is_forgotten_and_the_rest_is_told_as_before(store: HostStore, tmp_path: Path) -> None:
    reports = {minute: audit(store, minute) for minute in range(10)}
    pruned = store.prune(minutes(10), history=timedelta(minutes=4), samples=timedelta(minutes=2), limit_bytes=UNLIMITED)
    # Three states of the facts take turns: of those of the minutes 0 to 5, all come back later.
    assert (pruned.observations, pruned.documents, pruned.samples) == (6, 0, 8)
    assert store.horizon() == minutes(6)
    assert store.report(minutes(5)) is None
    assert store.facts(minutes(5)) is None
    assert {minute: store.report(minutes(minute)) for minute in range(6, 10)} == {minute: reports[minute] for minute in range(6, 10)}
    assert [change.at for change in store.transitions(EVER)] == [minutes(minute) for minute in range(6, 10) for _ in range(3)]
    assert [samples.observed_at for samples in store.samples(EVER)] == [minutes(8), minutes(9)]
    in_order(tmp_path)


def test_facts_that_nothing_names_any_more_are_forgotten(store: HostStore, tmp_path: Path) -> None:
    for minute, pmu in enumerate((PmuElement.ON, PmuElement.OFF, PmuElement.ABSENT, PmuElement.OFF)):
        observation = observe(minutes(minute), pmu={0: pmu})
        store.record(observation, judge(observation))
    before = len(seqs(tmp_path, "hash", "facts_document"))
    pruned = store.prune(minutes(3), history=timedelta(minutes=1), samples=FOREVER, limit_bytes=UNLIMITED)
    assert pruned.documents == 2  # of the domain with the PMU on, and of the host then
    assert len(seqs(tmp_path, "hash", "facts_document")) == before - 2
    assert store.facts() == observation.facts
    assert store.facts(minutes(2)) is not None


def test_verdict_keeps_its_since_when_the_audit_that_saw_it_first_is_forgotten(store: HostStore) -> None:
    for minute in range(5):
        audit(store, minute, verdict=FAIL)
    store.prune(minutes(5), history=timedelta(minutes=1), samples=FOREVER, limit_bytes=UNLIMITED)
    assert store.horizon() == minutes(4)
    report = store.report()
    assert report is not None
    assert {entry.since for entry in report.findings} == {START}
    assert {entry.since for entry in audit(store, 6, verdict=FAIL).findings} == {START}


def test_last_audit_stays_however_old_it_is(store: HostStore, tmp_path: Path) -> None:
    for minute in range(3):
        last = audit(store, minute)
    store.prune(START + FOREVER, history=timedelta(days=1), samples=timedelta(days=1), limit_bytes=0)
    assert seqs(tmp_path) == [3]
    assert store.report() == last
    assert [samples.observed_at for samples in store.samples(EVER)] == [minutes(2)]
    in_order(tmp_path)


def test_updates_after_the_last_audit_stay_with_it(store: HostStore, tmp_path: Path) -> None:
    for minute in range(3):
        audit(store, minute, verdict=FAIL)
    for minute, pmu in ((3, PmuElement.OFF), (4, PmuElement.ON)):
        facts = observe(minutes(2), pmu={1: pmu}).facts
        looked_at = {1: (finding(1, PASS, minutes(minute), reason=pmu),)}
        store.record_update(facts, judge_again(facts, looked_at, minutes(minute), judge(observe(minutes(2)))))
    told = [store.report(minutes(minute)) for minute in (2, 3, 4)]
    store.prune(START + FOREVER, history=timedelta(days=1), samples=FOREVER, limit_bytes=0)
    assert seqs(tmp_path) == [3, 4, 5]
    assert [store.report(minutes(minute)) for minute in (2, 3, 4)] == told
    assert store.horizon() == minutes(2)


def test_audit_behind_an_update_that_is_kept_is_kept(store: HostStore) -> None:
    audit(store, 0, verdict=FAIL)
    facts = observe(START, pmu={1: PmuElement.OFF}).facts
    store.record_update(facts, judge_again(facts, {1: (finding(1, PASS, minutes(5)),)}, minutes(5), judge(observe(START))))
    update = store.report()
    audit(store, 10, verdict=FAIL)
    store.prune(minutes(10), history=timedelta(minutes=6), samples=FOREVER, limit_bytes=UNLIMITED)
    assert store.horizon() == START
    assert store.report(minutes(5)) == update
    store.prune(minutes(10), history=timedelta(minutes=4), samples=FOREVER, limit_bytes=UNLIMITED)
    assert store.horizon() == minutes(10)


def test_rows_from_the_future_do_not_keep_what_is_older_than_they_are_for_ever(store: HostStore, tmp_path: Path) -> None:
    far = 60 * 24 * 365 * 70
    for minute in (far, far + 1, 0, 5, 10):  # the clock was wrong at boot
        audit(store, minute)
    prune = {"samples": FOREVER, "limit_bytes": UNLIMITED}
    store.prune(minutes(10), history=timedelta(minutes=15), **prune)
    assert seqs(tmp_path) == [1, 2, 3, 4, 5]
    store.prune(minutes(14), history=timedelta(minutes=10), **prune)
    assert seqs(tmp_path) == [4, 5]


def test_clock_that_was_set_back_forgets_nothing(store: HostStore, tmp_path: Path) -> None:
    for minute in (0, 5, 10):
        audit(store, minute)
    audit(store, -60 * 24 * 365 * 50)  # as at boot without a battery
    everything = seqs(tmp_path)
    for now in (minutes(10), minutes(-60 * 24 * 365 * 50), minutes(-60 * 24 * 365 * 50 + 20)):
        store.prune(now, history=timedelta(days=1), samples=timedelta(days=1), limit_bytes=UNLIMITED)
        assert seqs(tmp_path) == everything
        assert len(seqs(tmp_path, "id", "samples")) == len(everything)


def test_gap_goes_with_the_audit_after_it(store: HostStore, tmp_path: Path) -> None:
    for minute in (0, 10, 20):
        note_dropped(tmp_path / "gap-note", minutes(minute), "full")
        audit(store, minute + 5)
    store.prune(minutes(26), history=timedelta(minutes=12), samples=FOREVER, limit_bytes=UNLIMITED)
    assert store.horizon() == minutes(15)
    assert [gap.first_at for gap in store.gaps(EVER)] == [minutes(10), minutes(20)]
    store.prune(minutes(26), history=timedelta(minutes=2), samples=FOREVER, limit_bytes=UNLIMITED)
    assert [gap.first_at for gap in store.gaps(EVER)] == [minutes(20)]


def test_gap_that_may_still_grow_is_not_forgotten(store: HostStore, tmp_path: Path) -> None:
    note = tmp_path / "gap-note"
    note_dropped(note, START, "full")
    as_noted = note.read_bytes()
    for minute in (5, 10, 15):
        audit(store, minute)
    note.write_bytes(as_noted)  # as if clearing it had failed
    noted = read_note(note)
    assert noted is not None
    store.prune(minutes(15), history=timedelta(0), samples=FOREVER, limit_bytes=UNLIMITED)
    in_order(tmp_path)
    clear_note(note, noted)  # as by a process that stored it, and was slow to clear it
    assert store.gaps(EVER) == (noted,)
    note.write_bytes(as_noted)
    note_dropped(note, minutes(16), "full")
    audit(store, 20)
    assert [(gap.first_at, gap.last_at, gap.dropped) for gap in store.gaps(EVER)] == [(START, minutes(16), 2)]


def test_samples_go_first_where_the_database_is_too_large(store: HostStore) -> None:
    for minute in range(30):
        audit(store, minute, domains=40, verdict=FAIL)
        store.record_samples(observe(minutes(minute), domains=200).samples)
    used = store.size_bytes()
    pruned = store.prune(minutes(30), history=FOREVER, samples=FOREVER, limit_bytes=used - 40_000)
    assert pruned.size_bytes == store.size_bytes() <= used - 40_000
    assert pruned.observations == 0
    assert 0 < pruned.samples < 60
    left = [samples.observed_at for samples in store.samples(EVER)]
    assert left == sorted(left)
    assert left[-1] == minutes(29)  # the oldest went


def test_oldest_history_goes_until_the_rest_fits(store: HostStore, tmp_path: Path) -> None:
    reports = [audit(store, minute, domains=20) for minute in range(60)]
    used = store.size_bytes()
    pruned = store.prune(minutes(60), history=FOREVER, samples=FOREVER, limit_bytes=used // 2)
    kept = seqs(tmp_path)
    assert pruned.size_bytes <= used // 2
    assert pruned.samples == 59
    assert kept == list(range(61 - len(kept), 61))
    assert pruned.observations == 60 - len(kept)
    assert 10 < len(kept) < 50, "about as much as had to go"
    assert store.horizon() == reports[-len(kept)].observed_at
    for report in reports[-len(kept) :]:
        assert store.report(report.observed_at) == report
    in_order(tmp_path)


def test_log_beside_the_database_is_empty_after_pruning(store: HostStore, tmp_path: Path) -> None:
    for minute in range(20):
        audit(store, minute, domains=50)
    assert (tmp_path / "host.sqlite-wal").stat().st_size > 0
    store.prune(minutes(20), history=timedelta(minutes=5), samples=FOREVER, limit_bytes=UNLIMITED)
    assert (tmp_path / "host.sqlite-wal").stat().st_size == 0


def test_reader_in_the_middle_of_pruning_is_left_alone(store: HostStore, tmp_path: Path) -> None:
    reports = [audit(store, minute) for minute in range(10)]
    store._database.connection.exec_driver_sql("PRAGMA busy_timeout = 50")  # emptying the log waits for the reader in vain
    with closing(sqlite3.connect(tmp_path / "host.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM observation").fetchone() == (10,)
        store.prune(minutes(10), history=timedelta(minutes=2), samples=FOREVER, limit_bytes=UNLIMITED)
        assert reader.execute("SELECT count(*) FROM observation").fetchone() == (10,)
    assert store.report() == reports[-1]


def test_samples_that_are_pruned_while_they_are_read_are_passed_over(store: HostStore) -> None:
    for minute in range(4):
        store.record_samples(observe(minutes(minute)).samples)
    reading = store.samples(EVER)
    assert next(reading).observed_at == START
    store.prune(minutes(4), history=FOREVER, samples=timedelta(minutes=1), limit_bytes=UNLIMITED)
    assert [samples.observed_at for samples in reading] == [minutes(3)]


def test_others_write_and_read_between_the_transactions_of_a_pruning(
    store: HostStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH_ROWS", 3)
    reports = {minute: audit(store, minute) for minute in range(20)}
    with HostStore.open(tmp_path, now=START) as other:
        other._database.connection.exec_driver_sql("PRAGMA busy_timeout = 0")  # whoever holds a lock now is found out
        minute = 20

        def interleave() -> None:
            nonlocal minute
            reports[minute] = audit(other, minute)
            horizon = other.horizon()
            assert horizon is not None
            for told, report in reports.items():
                assert other.report(minutes(told)) == (report if minutes(told) >= horizon else None)
            minute += 1

        pruned = store.prune(minutes(20), history=timedelta(minutes=2), samples=FOREVER, limit_bytes=UNLIMITED, pulse=interleave)
    assert minute > 40, "as many transactions as that"
    assert pruned.observations == 18
    assert seqs(tmp_path) == list(range(19, minute + 1))
    in_order(tmp_path)


def test_pruning_that_is_ended_goes_on_the_next_time(store: HostStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH_ROWS", 2)
    reports = [audit(store, minute) for minute in range(20)]
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 0 and calls < 60:
            raise KeyboardInterrupt

    ended = 0
    while True:
        try:
            store.prune(minutes(20), history=timedelta(minutes=2), samples=timedelta(minutes=2), limit_bytes=UNLIMITED, pulse=stop)
        except KeyboardInterrupt:
            ended += 1
        else:
            break
        in_order(tmp_path)
        assert store.report() == reports[-1]
        assert store.report(minutes(17)) in (None, reports[17])
    assert ended > 2
    assert seqs(tmp_path) == [19, 20]
    assert [store.report(minutes(minute)) for minute in (17, 18, 19)] == [None, *reports[18:]]


def test_store_opened_for_reading_is_not_pruned(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    with HostStore.open(tmp_path, now=START, read_only=True) as reader, pytest.raises(StoreError, match="nothing can be pruned in it"):
        reader.prune(START, history=FOREVER, samples=FOREVER, limit_bytes=0)


def test_database_that_cannot_be_written_is_told(store: HostStore) -> None:
    for minute in range(3):
        last = audit(store, minute)
    store._database.connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match=r"host\.sqlite: attempt to write a readonly database.*Expected a file that this user may"):
        store.prune(minutes(3), history=timedelta(0), samples=FOREVER, limit_bytes=UNLIMITED)
    store._database.connection.exec_driver_sql("PRAGMA query_only = OFF")
    assert store.report() == last
    assert store.gaps(EVER) == ()


# In a process of its own, since the limit cannot be raised again without privilege: the log may not grow, as on a full disk.
FULL = """
import resource, sys
from datetime import timedelta
from pathlib import Path
from store_builders import START, judge, minutes, observe
from exitguard.store.errors import StoreFull
from exitguard.store.host import HostStore

with HostStore.open(Path(sys.argv[1]), now=START) as store:
    for minute in range(20):
        observation = observe(minutes(minute), domains=minute)
        report = store.record(observation, judge(observation))
    store._database.empty_log()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        store.prune(minutes(20), history=timedelta(0), samples=timedelta(0), limit_bytes=0)
    except StoreFull as error:
        print(error)
    else:
        raise SystemExit("pruned without room for the log")
    assert store.report() == report
"""


def test_full_disk_is_told_and_pruning_works_when_there_is_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    said = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "there was no room to write" in said.stdout
    assert issubclass(StoreFull, StoreError)
    with HostStore.open(tmp_path, now=START) as store:
        assert store.prune(minutes(20), history=timedelta(0), samples=FOREVER, limit_bytes=UNLIMITED).observations == 19
    in_order(tmp_path)


def test_kill_while_pruning_leaves_a_store_in_order(tmp_path: Path) -> None:
    count = 40
    with HostStore.open(tmp_path / "whole", now=START) as store:
        reports = [audit(store, minute, domains=10) for minute in range(count)]
    chance = random.Random(20260301)  # noqa: S311 - not for secrets
    kills = 0
    for number in range(8):
        state_dir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", state_dir)
        command = [sys.executable, str(HERE / "prune_and_say.py"), str(state_dir), "4", str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 120)):
                process.stdout.readline()
            process.kill()
        kills += process.returncode == -9
        in_order(state_dir)
        with HostStore.open(state_dir, now=START) as store:
            horizon = store.horizon()
            assert horizon is not None
            for report in reports:
                told = store.report(report.observed_at)
                assert told == (report if report.observed_at >= horizon else None)
            store.prune(minutes(count), history=timedelta(0), samples=FOREVER, limit_bytes=UNLIMITED)
            assert store.report() == reports[-1]
            assert store.facts() is not None
        assert seqs(state_dir) == [count]
        assert len(seqs(state_dir, "hash", "facts_document")) == 11
        in_order(state_dir)
    assert kills > 4
