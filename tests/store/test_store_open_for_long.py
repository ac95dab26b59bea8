"""A store that stays open for as long as the agent runs: nothing in it grows, and nothing is stored where nobody would find it."""

import gc
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from store_builders import START, finding, judge, judge_again, minutes, observe

from exitguard.model.finding import Verdict
from exitguard.model.pmu import PmuElement
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

EVER = START - timedelta(days=365)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    with HostStore.open(tmp_path, now=START) as opened:
        yield opened


def audit(store: HostStore, minute: int) -> None:
    observation = observe(minutes(minute))
    store.record(observation, judge(observation))


def live_through(store: HostStore, first: int, count: int) -> None:
    """What the agent does in `count` turns: audits, updates, samples, prunings, and reading."""
    for minute in range(first, first + count):
        audit(store, minute)
        pmu = {1: PmuElement.OFF if minute % 2 else PmuElement.ON}
        facts = observe(minutes(minute), pmu=pmu).facts
        looked_at = {1: (finding(1, Verdict.PASS, minutes(minute)),)}
        store.record_update(facts, judge_again(facts, looked_at, minutes(minute), judge(observe(minutes(minute)))))
        store.record_samples(observe(minutes(minute)).samples)
        store.prune(minutes(minute), history=timedelta(minutes=10), samples=timedelta(minutes=10), limit_bytes=2**20)
        assert store.still_there()
        assert store.report() is not None
        assert len(list(store.samples(minutes(minute - 2)))) > 0


def test_nothing_grows_in_a_store_that_stays_open(store: HostStore, tmp_path: Path) -> None:
    def measure() -> tuple[int, int, int]:
        gc.collect()
        return len(gc.get_objects()), len(list(Path("/proc/self/fd").iterdir())), (tmp_path / "host.sqlite").stat().st_size

    live_through(store, 0, 30)
    objects, descriptors, size = measure()
    live_through(store, 30, 60)
    objects_later, descriptors_later, size_later = measure()
    assert objects_later - objects < 60, "less than one object a turn"
    assert descriptors_later == descriptors
    assert size_later <= size * 1.2


def test_samples_between_audits_come_back_in_the_order_of_storing(store: HostStore) -> None:
    audit(store, 0)
    for minute in (1, 3, 2):
        store.record_samples(observe(minutes(minute)).samples)
    audit(store, 5)
    assert [samples.observed_at for samples in store.samples(EVER)] == [minutes(minute) for minute in (0, 1, 3, 2, 5)]
    assert [samples.observed_at for samples in store.samples(minutes(2))] == [minutes(minute) for minute in (3, 2, 5)]
    assert store.report() is not None


def test_samples_need_no_audit_before_them(store: HostStore) -> None:
    samples = observe(START).samples
    store.record_samples(samples)
    assert list(store.samples(EVER)) == [samples]
    assert store.report() is None


def test_samples_that_cannot_be_stored_are_a_gap(store: HostStore) -> None:
    store._database.connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match=r"readonly.*was not stored; that is shown as a gap"):
        store.record_samples(observe(minutes(3)).samples)
    assert [(gap.first_at, gap.dropped) for gap in store.gaps(EVER)] == [(minutes(3), 1)]


def test_store_opened_for_reading_records_no_samples(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    with (
        HostStore.open(tmp_path, now=START, read_only=True) as reader,
        pytest.raises(StoreError, match="nothing can be recorded in it"),
    ):
        reader.record_samples(observe(START).samples)
    assert store.gaps(EVER) == ()


def vanish(state_dir: Path, how: str) -> None:
    path = state_dir / "host.sqlite"
    match how:
        case "deleted":
            for each in state_dir.glob("host.sqlite*"):
                each.unlink()
        case "moved":
            path.rename(state_dir / "aside.sqlite")
        case "replaced":
            shutil.copyfile(path, state_dir / "copy")
            (state_dir / "copy").rename(path)
        case "begun anew":
            for each in state_dir.glob("host.sqlite*"):
                each.unlink()
            HostStore.open(state_dir, now=START).close()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced", "begun anew"])
def test_observation_is_not_stored_where_nobody_would_find_it(store: HostStore, tmp_path: Path, how: str) -> None:
    audit(store, 0)
    assert store.still_there()
    vanish(tmp_path, how)
    assert not store.still_there()
    with pytest.raises(StoreError, match=r"host\.sqlite: was deleted or replaced while it was open.*shown as a gap"):
        audit(store, 5)
    with pytest.raises(StoreError, match="was deleted or replaced"):
        store.record_samples(observe(minutes(6)).samples)
    with pytest.raises(StoreError, match="was deleted or replaced"):
        store.prune(minutes(6), history=timedelta(0), samples=timedelta(0), limit_bytes=0)
    store.close()
    with HostStore.open(tmp_path, now=minutes(10)) as again:
        assert again.still_there()
        audit(again, 10)
        assert [(gap.first_at, gap.last_at, gap.dropped) for gap in again.gaps(EVER)] == [(minutes(5), minutes(6), 2)]


def test_database_that_vanishes_while_an_observation_is_stored_is_noticed(
    store: HostStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exitguard.store.host as module  # noqa: PLC0415 - only to make the moment of the deletion certain

    settle = module.settle

    def deleted_meanwhile(*arguments: object) -> object:
        vanish(tmp_path, "deleted")
        return settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "settle", deleted_meanwhile)
    with pytest.raises(StoreError, match="was deleted or replaced"):
        audit(store, 5)
    assert [gap.dropped for gap in _gaps_noted(tmp_path)] == [1]


def _gaps_noted(state_dir: Path) -> list:  # type: ignore[type-arg]
    with HostStore.open(state_dir, now=START) as store:
        return list(store.gaps(EVER))


def test_state_directory_that_vanishes_is_said_since_the_gap_cannot_be_noted(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    for each in tmp_path.iterdir():
        each.unlink()
    with pytest.raises(StoreError, match=r"was deleted or replaced.*could not even be noted in .*gap-note"):
        audit(store, 5)


def test_mode_that_is_changed_under_an_open_store_loses_nothing(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    (tmp_path / "host.sqlite").chmod(0o444)
    assert store.still_there()
    audit(store, 5)
    with HostStore.open(tmp_path, now=START, read_only=True) as reader:
        assert reader.report() == store.report()
        assert reader.still_there()


def test_size_is_what_is_used_and_falls_when_something_is_forgotten(store: HostStore, tmp_path: Path) -> None:
    for minute in range(120):
        store.record_samples(observe(minutes(minute), domains=100).samples)
    before = store.size_bytes()
    store.prune(minutes(120), history=timedelta(0), samples=timedelta(minutes=1), limit_bytes=2**40)
    assert store.size_bytes() < before / 2
    assert before == (tmp_path / "host.sqlite").stat().st_size
