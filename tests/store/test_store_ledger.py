"""The ledger in a real database: rows replace each other, days are their hours, what is forgotten is forgotten whole."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from exitguard.model.ledger import Baseline, GuardSaving, LedgerRow, OwnCost, RunStanding, Worth
from exitguard.model.samples import Incarnation
from exitguard.savings.intervals import Look
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore
from exitguard.store.ledger import LedgerView
from exitguard.store.ledger_writing import Cursor, Run

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
BOOT = "11112222-98a5-4a83-9d0f-8a5b8f6c2d11"
SAVED = RunStanding(guard=GuardSaving.SAVED, saved=Worth(provenance="table", low=57, high=57, costs=("author-zen2-guard",)))
UNKNOWN = RunStanding(guard=GuardSaving.UNKNOWN)


def row(hour: int, exits: int, *, run: int = 1, revision: int = 1, standing: RunStanding = SAVED, name: str = "web-1") -> LedgerRow:
    return LedgerRow(
        incarnation=Incarnation(host_id=ID, domain_uuid=ID, boot_id=BOOT, qemu_start_ticks=run),
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
def store(tmp_path: Path) -> Iterator[HostStore]:
    with HostStore.open(tmp_path, now=NOON) as opened:
        yield opened


def write(store: HostStore, *rows: LedgerRow, booked_until: datetime = NOON) -> None:
    with store.ledger.writing() as writer:
        writer.set_runs({each.incarnation.key: Run(each.domain_name, each.standing) for each in rows})
        writer.book(rows, {}, ())
        writer.move(Cursor(0, BOOT, 10**15, booked_until, writer.cursor().hours_since))


def view(store: HostStore, since: datetime = NOON - 100 * HOUR, until: datetime = NOON + 1000 * HOUR) -> LedgerView:
    return store.ledger.read(since, until, beside=timedelta())


def exits(store: HostStore) -> int:
    return sum(each.exits for each in view(store).asked.by_run)


def stored(store: HostStore, *keys: LedgerRow) -> list[LedgerRow]:
    with store.ledger.writing() as writer:
        return list(writer.rows((each.incarnation.key, each.hour) for each in keys).values())


def test_row_comes_back_as_it_was(store: HostStore) -> None:
    written = row(0, 1000).model_copy(update={"spread_milliseconds": 7})
    write(store, written)
    assert stored(store, written) == [written]


def test_same_row_twice_counts_once(store: HostStore) -> None:
    write(store, row(0, 1000))
    write(store, row(0, 1000))
    assert exits(store) == 1000


def test_higher_revision_replaces_and_a_late_lower_one_undoes_nothing(store: HostStore) -> None:
    write(store, row(0, 1000, revision=2))
    write(store, row(0, 400, revision=1))
    assert exits(store) == 1000
    write(store, row(0, 1500, revision=3))
    assert exits(store) == 1500


def test_days_are_the_sums_of_their_hours(store: HostStore) -> None:
    write(store, *(row(hour, 10) for hour in range(-12, 36)))  # two whole days
    days = store.ledger.days_by_run(NOON - timedelta(days=2), NOON + timedelta(days=3))
    assert sum(each.exits for each in days) == 480


def test_day_is_made_anew_when_one_of_its_hours_changes(store: HostStore) -> None:
    write(store, row(0, 10), row(1, 10))
    write(store, row(1, 30, revision=2, standing=UNKNOWN))
    days = store.ledger.days_by_run(NOON - timedelta(days=1), NOON + timedelta(days=1))
    assert {each.standing.guard: each.exits for each in days} == {GuardSaving.SAVED: 10, GuardSaving.UNKNOWN: 30}


def test_hours_are_told_all_runs_together(store: HostStore) -> None:
    write(store, row(0, 10), row(0, 20, run=2), row(1, 5))
    assert [(each.begin, each.exits) for each in view(store).by_time] == [(NOON, 30), (NOON + HOUR, 5)]


def test_forgotten_hours_live_on_in_their_days(store: HostStore) -> None:
    write(store, *(row(hour, 10) for hour in range(-60, 1)))
    assert store.ledger.prune(hours_before=NOON - 24 * HOUR, days_before=NOON - timedelta(days=400)) > 0
    told = view(store)
    assert (told.resolution, sum(each.exits for each in told.asked.by_run)) == ("day", 610)


def test_all_hours_forgotten_are_still_told_by_days(store: HostStore) -> None:
    write(store, *(row(hour, 10) for hour in range(-60, -30)), booked_until=NOON + 30 * HOUR)
    store.ledger.prune(hours_before=NOON, days_before=NOON - timedelta(days=400))
    assert (view(store).resolution, exits(store)) == ("day", 300)


def test_row_of_a_day_whose_hours_are_forgotten_is_added_to_that_day(store: HostStore) -> None:
    """As after a clock that was set back by weeks: the day cannot be made anew."""
    write(store, *(row(hour, 10) for hour in range(-60, 1)))
    store.ledger.prune(hours_before=NOON, days_before=NOON - timedelta(days=400))
    write(store, row(-50, 5))
    assert exits(store) == 615


def test_clock_that_was_ahead_makes_nothing_go_before_its_time(store: HostStore) -> None:
    write(store, *(row(hour, 10) for hour in range(-60, 1)))
    ahead = NOON + timedelta(days=730)
    store.ledger.prune(hours_before=ahead, days_before=ahead)
    assert exits(store) == 130  # those of the day of the last booking


def test_forgotten_days_take_runs_of_earlier_boots_with_them(store: HostStore) -> None:
    other_boot = row(-24 * 40, 10, name="long gone")
    other_boot = other_boot.model_copy(update={"incarnation": other_boot.incarnation.model_copy(update={"boot_id": ID})})
    write(store, other_boot, row(0, 10))
    store.ledger.prune(hours_before=NOON, days_before=NOON - timedelta(days=30))
    left = store._database.connection.execute(text("SELECT domain_name FROM ledger_run")).scalars().all()
    assert left == ["web-1"]


def test_forgotten_days_take_runs_of_this_boot_with_them_that_nobody_looked_at_for_a_day(store: HostStore) -> None:
    """A host that stays up for a year and starts a guest every minute would else keep each of them."""
    long_ago = [row(-24 * 40, 10, run=run, name=name) for run, name in ((1, "ended"), (2, "goes on"), (3, "never looked at"))]
    write(store, *long_ago, row(0, 10, run=4, name="in a row"))
    boottime = 10**15  # where `write` leaves the cursor
    ended, goes_on = (row.incarnation for row in long_ago[:2])
    looks = {each.key: Look(each, at, {}) for each, at in ((ended, boottime - 25 * 3600 * 10**9), (goes_on, boottime - 60 * 10**9))}
    with store.ledger.writing() as writer:
        writer.book((), looks, ())
    store.ledger.prune(hours_before=NOON, days_before=NOON - timedelta(days=30))
    left = store._database.connection.execute(text("SELECT domain_name FROM ledger_run ORDER BY domain_name")).scalars().all()
    assert left == ["goes on", "in a row", "never looked at"]


def test_oldest_day_of_hours_goes_first_and_the_last_never(store: HostStore) -> None:
    write(store, *(row(hour, 10) for hour in range(-60, 1)))
    assert [store.ledger.forget_oldest_day() for _ in range(3)] == [True, True, False]
    assert exits(store) == 610


def test_baseline_is_written_once(store: HostStore) -> None:
    for held, hours in ((False, 0), (True, 1)):
        with store.ledger.writing() as writer:
            writer.add_baselines([Baseline(subject=ID, first_seen_at=NOON + hours * HOUR, held=held)])
            assert writer.baselines([ID]) == {ID: Baseline(subject=ID, first_seen_at=NOON, held=False)}


def test_own_cost_of_an_hour_is_replaced_by_what_tells_of_more_and_that_of_another_process_added(store: HostStore) -> None:
    for process, cpu, running in (("1/5", 100, 10), ("1/5", 300, 30), ("1/5", 1, 1), ("2/6", 50, 5)):
        with store.ledger.writing() as writer:
            writer.add_own_costs([OwnCost(hour=NOON, process=process, cpu_milliseconds=cpu, running_milliseconds=running)])
    asked = view(store).asked
    assert (asked.own_cpu_seconds, asked.own_running_seconds) == (0.35, 0.035)


def test_hours_of_which_nothing_was_known_get_the_standing_that_is_known_later(store: HostStore) -> None:
    write(store, row(0, 10, standing=UNKNOWN, name=""), row(-30, 10, standing=UNKNOWN, name=""))
    key = row(0, 0).incarnation.key
    with store.ledger.writing() as writer:
        writer.set_runs({key: Run("web-1", SAVED)})
        writer.restate([key], UNKNOWN)
    told = view(store).asked.by_run
    assert [(each.standing, each.domain_name, each.exits) for each in told] == [(SAVED, "web-1", 20)]
    days = store.ledger.days_by_run(NOON - timedelta(days=3), NOON + timedelta(days=1))
    assert {each.standing for each in days} == {SAVED}


def test_looks_come_back_as_they_were(store: HostStore) -> None:
    first = row(0, 10)
    look = Look(first.incarnation, 123, {"exits": 7, "vcpus": 1})
    with store.ledger.writing() as writer:
        writer.set_runs({first.incarnation.key: Run("web-1", SAVED)})
        writer.book([first], {first.incarnation.key: look}, [(first.incarnation.key, NOON, "exits went backwards")])
    with store.ledger.writing() as writer:
        assert writer.looks([first.incarnation.key]) == {first.incarnation.key: look}
    (gap,) = view(store).unaccounted
    assert (gap.domain_name, gap.reason, gap.first) == ("web-1", "exits went backwards", NOON)


def test_now_is_of_the_runs_that_run_by_how_they_stand_now(store: HostStore) -> None:
    alive, ended = row(0, 10, standing=UNKNOWN), row(0, 20, run=2)
    looks = {each.incarnation.key: Look(each.incarnation, at, {"exits": 1}) for each, at in ((alive, 10**15), (ended, 10**15 - 10**13))}
    with store.ledger.writing() as writer:
        writer.set_runs({each.incarnation.key: Run("web", UNKNOWN) for each in (alive, ended)})
        writer.book([alive, ended], looks, ())
        writer.move(Cursor(1, BOOT, 10**15, NOON + HOUR / 2))
        writer.set_runs({alive.incarnation.key: Run("web", SAVED)})
    assert [(each.standing, each.exits) for each in view(store).now.by_run] == [(SAVED, 10)]


def test_failed_transaction_leaves_nothing(store: HostStore) -> None:
    with pytest.raises(ZeroDivisionError), store.ledger.writing() as writer:  # noqa: PT012 - the end of the transaction is what is tested
        writer.set_runs({row(0, 0).incarnation.key: Run("web-1", SAVED)})
        writer.book([row(0, 10)], {}, ())
        raise ZeroDivisionError
    assert exits(store) == 0


def test_standing_that_cannot_be_read_is_told_as_a_fault_of_the_store(store: HostStore) -> None:
    write(store, row(0, 10))
    with store._database.transaction("IMMEDIATE") as connection:
        connection.execute(text("UPDATE ledger_standing SET body = '{}'"))
    with pytest.raises(StoreError, match="the ledger holds what this exitguard cannot read"):
        view(store)


@settings(max_examples=30, deadline=None)
@given(drawn=st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 3), st.integers(0, 10**15), st.booleans()), max_size=30))
def test_days_and_hours_always_have_the_same_sum(tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int, bool]]) -> None:
    with HostStore.open(tmp_path_factory.mktemp("ledger"), now=NOON) as opened:
        for revision, (hour, run, count, known) in enumerate(drawn, start=1):
            write(opened, row(hour, count, run=run, revision=revision, standing=SAVED if known else UNKNOWN))
        days = opened.ledger.days_by_run(NOON - timedelta(days=9), NOON + timedelta(days=9))
        assert sum(each.exits for each in days) == exits(opened)
