"""From stored samples to stored rows: the same rows whenever, and however often, the books are brought up to date."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitguard.bookkeeping import keep_books
from exitguard.model.ledger import LedgerRow
from exitguard.model.record import seen
from exitguard.model.samples import DomainSample, Incarnation, Samples
from exitguard.store.host import HostStore

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
RUN = Incarnation(host_id=ID, domain_uuid=ID, boot_id=ID, qemu_start_ticks=1)


def sample(seconds: float, exits: int | None, *, run: Incarnation = RUN, clock_off: float = 0) -> Samples:
    return Samples(
        observed_at=NOON + timedelta(seconds=seconds + clock_off),
        boottime_nanoseconds=int(seconds * 1e9) + 10**15,
        boot_time=seen("/proc/stat", NOON - timedelta(days=11)),
        domains=(DomainSample(uuid=ID, pid=1, incarnation=run, counters=None if exits is None else {"exits": exits}),),
    )


@pytest.fixture
def store(tmp_path: Path) -> HostStore:
    return HostStore.open(tmp_path, now=NOON)


def keep(store: HostStore, seconds: float) -> int:
    return keep_books(store, {}, (), now=NOON + timedelta(seconds=seconds))


def all_rows(store: HostStore) -> list[LedgerRow]:
    return [row.model_copy(update={"revision": 1}) for row in store.ledger.rows(NOON - timedelta(days=30), set())]


def counted(store: HostStore) -> int:
    return sum(row.exits for row in all_rows(store))


def test_exits_of_all_samples_are_in_the_ledger_once(store: HostStore) -> None:
    for index in range(30):
        store.record_samples(sample(300 * index, 1000 * index))
    keep(store, 9000)
    assert counted(store) == 29_000
    assert keep(store, 9000) == 0
    assert counted(store) == 29_000


def test_books_kept_after_each_sample_are_those_kept_once(tmp_path: Path) -> None:
    documents = [sample(700 * index, 997 * index) for index in range(40)]
    with HostStore.open(tmp_path / "often", now=NOON) as often, HostStore.open(tmp_path / "once", now=NOON) as once:
        for index, document in enumerate(documents):
            often.record_samples(document)
            once.record_samples(document)
            keep(often, 700 * index)
        keep(once, 700 * 40)
        assert all_rows(often) == all_rows(once)


def test_clock_that_was_set_back_counts_nothing_twice_and_loses_nothing(store: HostStore) -> None:
    for index in range(12):
        store.record_samples(sample(300 * index, 1000 * index))
    keep(store, 3600)
    for index in range(12, 36):
        store.record_samples(sample(300 * index, 1000 * index, clock_off=-7200))
        keep(store, 300 * index - 7200)
    assert counted(store) == 35_000


def test_clock_that_was_wrong_for_a_while_does_not_stop_the_books(store: HostStore) -> None:
    year = 365 * 86_400
    store.record_samples(sample(0, 0, clock_off=year))
    store.record_samples(sample(300, 1000, clock_off=year))
    keep(store, 300 + year)
    for index in range(2, 10):
        store.record_samples(sample(300 * index, 1000 * index))
    keep(store, 3000)
    assert sum(row.exits for row in store.ledger.rows(NOON - timedelta(days=1), set())) == 9_000


def test_day_in_which_the_daemon_was_down_is_spread_over_its_hours(store: HostStore) -> None:
    store.record_samples(sample(0, 0))
    store.record_samples(sample(300, 1000))
    keep(store, 300)
    store.record_samples(sample(300 + 86_400, 87_400))
    keep(store, 300 + 86_400)
    assert counted(store) == 87_400
    assert sum(row.spread_milliseconds for row in all_rows(store)) == 86_400_000


def test_samples_that_were_forgotten_take_nothing_from_the_ledger(store: HostStore) -> None:
    for index in range(12):
        store.record_samples(sample(300 * index, 1000 * index))
    keep(store, 3600)
    store.prune(NOON + timedelta(days=9), history=timedelta(days=400), samples=timedelta(hours=1), limit_bytes=1 << 30)
    keep(store, 3600)
    assert counted(store) == 11_000


def test_runs_of_the_same_domain_are_kept_apart(store: HostStore) -> None:
    other = RUN.model_copy(update={"qemu_start_ticks": 2})
    for document in (sample(0, 5_000), sample(300, 6_000), sample(600, 10, run=other), sample(900, 110, run=other)):
        store.record_samples(document)
    keep(store, 900)
    assert sorted(row.exits for row in all_rows(store)) == [100, 1000]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    moves=st.lists(
        st.tuples(st.integers(1, 4000), st.integers(-1000, 10**6), st.booleans(), st.integers(-4000, 4000)), min_size=1, max_size=25
    )
)
def test_ledger_never_holds_more_than_the_counters_rose(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int, bool, int]]
) -> None:
    """With gaps, counters that fall, clocks that jump, and books that are kept at any time."""
    with HostStore.open(tmp_path_factory.mktemp("books"), now=NOON) as opened:
        at, exits, rose = 0, 10**6, 0
        opened.record_samples(sample(at, exits))
        for seconds, move, keep_now, clock_off in moves:
            at, exits = at + seconds, max(0, exits + move)
            rose += max(0, move)
            opened.record_samples(sample(at, exits, clock_off=clock_off))
            if keep_now:
                keep(opened, at + clock_off)
        keep(opened, at)
        assert 0 <= counted(opened) <= rose
