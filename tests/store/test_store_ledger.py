"""The ledger in a real database: rows replace each other, days are their hours, what is forgotten is forgotten whole."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exitguard.model.ledger import Baseline, GuardSaving, LedgerRow, OwnCost, RunStanding, Worth
from exitguard.model.samples import Incarnation
from exitguard.store.host import HostStore

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
SAVED = RunStanding(
    guard=GuardSaving.SAVED,
    held_back_by=None,
    attributable=True,
    saved=Worth(provenance="table", low=57, high=57, costs=("author-zen2-guard",)),
    available=Worth(provenance="table", low=0, high=0, costs=()),
)
UNKNOWN = RunStanding(guard=GuardSaving.UNKNOWN, held_back_by=None, attributable=False, saved=None, available=None)


def row(hour: int, exits: int, *, run: int = 1, revision: int = 1, standing: RunStanding = SAVED, name: str = "web-1") -> LedgerRow:
    return LedgerRow(
        incarnation=Incarnation(host_id=ID, domain_uuid=ID, boot_id=ID, qemu_start_ticks=run),
        hour=NOON + hour * HOUR,
        revision=revision,
        domain_name=name,
        accounted_milliseconds=3_600_000,
        exits=exits,
        skip_exits_low=exits // 4,
        skip_exits_high=exits // 2,
        standing=standing,
    )


@pytest.fixture
def store(tmp_path: Path) -> HostStore:
    return HostStore.open(tmp_path, now=NOON)


def exits(store: HostStore, since: datetime = NOON - 100 * HOUR, until: datetime = NOON + 1000 * HOUR) -> int:
    return sum(each.exits for each in store.ledger.sums_by_run(since, until))


def test_row_comes_back_as_it_was(store: HostStore) -> None:
    written = row(0, 1000).model_copy(update={"unaccounted": ("exits went backwards",), "spread_milliseconds": 7})
    store.ledger.record([written])
    assert store.ledger.rows(NOON, set()) == (written,)
    assert store.ledger.unaccounted(NOON, NOON) == ("exits went backwards",)


def test_same_row_twice_counts_once(store: HostStore) -> None:
    store.ledger.record([row(0, 1000)])
    store.ledger.record([row(0, 1000)])
    assert exits(store) == 1000


def test_higher_revision_replaces_and_a_late_lower_one_undoes_nothing(store: HostStore) -> None:
    store.ledger.record([row(0, 1000, revision=2)])
    store.ledger.record([row(0, 400, revision=1)])
    assert exits(store) == 1000
    store.ledger.record([row(0, 1500, revision=3)])
    assert exits(store) == 1500


def test_last_row_of_a_run_before_is_found(store: HostStore) -> None:
    store.ledger.record([row(-3, 1), row(-2, 2), row(-2, 9, run=2), row(0, 3)])
    found = store.ledger.rows(NOON, {row(0, 0).incarnation.key})
    assert [(each.hour, each.exits) for each in found] == [(NOON, 3), (NOON - 2 * HOUR, 2)]
    assert store.ledger.last_hour() == NOON


def test_days_are_the_sums_of_their_hours(store: HostStore) -> None:
    store.ledger.record([row(hour, 10) for hour in range(-12, 36)])  # two whole days
    days = store.ledger.sums_by_day(NOON - timedelta(days=2), NOON + timedelta(days=3))
    assert [(each.begin, each.exits) for each in days] == [(NOON - 12 * HOUR, 240), (NOON + 12 * HOUR, 240)]


def test_day_is_made_anew_when_one_of_its_hours_changes(store: HostStore) -> None:
    store.ledger.record([row(0, 10), row(1, 10)])
    store.ledger.record([row(1, 30, revision=2, standing=UNKNOWN)])
    days = store.ledger.sums_by_day(NOON - timedelta(days=1), NOON + timedelta(days=1))
    assert {each.standing.guard: each.exits for each in days} == {GuardSaving.SAVED: 10, GuardSaving.UNKNOWN: 30}


def test_hours_are_told_all_runs_together(store: HostStore) -> None:
    store.ledger.record([row(0, 10), row(0, 20, run=2), row(1, 5)])
    assert [(each.begin, each.exits) for each in store.ledger.sums_by_hour(NOON, NOON + 5 * HOUR)] == [(NOON, 30), (NOON + HOUR, 5)]


def test_forgotten_hours_live_on_in_their_days(store: HostStore) -> None:
    store.ledger.record([row(hour, 10) for hour in range(-60, 1)])
    kept = NOON - 24 * HOUR
    assert store.ledger.prune(hours_before=kept, days_before=NOON - timedelta(days=400)) > 0
    # Whole days go, so that no day is made anew of a part of its hours.
    assert store.ledger.first_hour() == kept.replace(hour=0)
    assert sum(each.exits for each in store.ledger.sums_by_day(NOON - timedelta(days=9), NOON + HOUR)) == 610


def test_forgotten_days_take_their_runs_with_them(store: HostStore) -> None:
    store.ledger.record([row(-24 * 40, 10, run=9, name="long gone"), row(0, 10)])
    store.ledger.prune(hours_before=NOON, days_before=NOON - timedelta(days=30))
    left = store._database.connection.exec_driver_sql("SELECT domain_name FROM ledger_run").all()
    assert left == [("web-1",)]


def test_baseline_is_written_once(store: HostStore) -> None:
    store.ledger.record((), [Baseline(subject=ID, first_seen_at=NOON, held=False)])
    store.ledger.record((), [Baseline(subject=ID, first_seen_at=NOON + HOUR, held=True)])
    assert store.ledger.baselines() == {ID: Baseline(subject=ID, first_seen_at=NOON, held=False)}


def test_own_cost_of_an_hour_is_replaced_and_that_of_another_process_added(store: HostStore) -> None:
    for process, cpu in (("1/5", 100), ("1/5", 300), ("2/6", 50)):
        store.ledger.record((), (), [OwnCost(hour=NOON, process=process, cpu_milliseconds=cpu, running_milliseconds=1000)])
    assert store.ledger.own_cost(NOON, NOON) == (350, 2000)


def test_run_that_was_not_known_gets_its_name_later_and_keeps_it(store: HostStore) -> None:
    store.ledger.record([row(0, 1, name="", standing=UNKNOWN)])
    store.ledger.record([row(1, 1, name="web-1")])
    store.ledger.record([row(2, 1, name="")])
    assert {each.domain_name for each in store.ledger.rows(NOON, set())} == {"web-1"}


@settings(max_examples=30, deadline=None)
@given(drawn=st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 3), st.integers(0, 10**15), st.booleans()), max_size=30))
def test_days_and_hours_always_have_the_same_sum(tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int, bool]]) -> None:
    with HostStore.open(tmp_path_factory.mktemp("ledger"), now=NOON) as opened:
        for revision, (hour, run, count, known) in enumerate(drawn, start=1):
            opened.ledger.record([row(hour, count, run=run, revision=revision, standing=SAVED if known else UNKNOWN)])
        begin, end = NOON - timedelta(days=9), NOON + timedelta(days=9)
        by_day, by_hour = opened.ledger.sums_by_day(begin, end), opened.ledger.sums_by_hour(begin, end)
        assert sum(each.exits for each in by_day) == sum(each.exits for each in by_hour) == exits(opened)
