"""From stored samples to stored rows: each exit once, whatever the clock says, whatever is missing, and whenever the books are kept."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitguard.bookkeeping import keep_books
from exitguard.model.ledger import GuardSaving
from exitguard.model.record import seen
from exitguard.model.samples import DomainSample, Incarnation, SampledExits, Samples
from exitguard.store.host import HostStore
from exitguard.store.ledger import LedgerView

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
OTHER = "11112222-98a5-4a83-9d0f-8a5b8f6c2d11"
RUN = Incarnation(host_id=ID, domain_uuid=ID, boot_id=ID, qemu_start_ticks=1)
OTHER_RUN = RUN.model_copy(update={"domain_uuid": OTHER})
#: Far from every clock of these tests.
EVER, END = datetime(1990, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)


def sample(
    seconds: float, exits: int | None, *, run: Incarnation = RUN, clock_off: float = 0, more: tuple[DomainSample, ...] = ()
) -> Samples:
    first = DomainSample(uuid=run.domain_uuid, pid=1, incarnation=run, counters=None if exits is None else {"exits": exits})
    return Samples(
        observed_at=NOON + timedelta(seconds=seconds + clock_off),
        boottime_nanoseconds=int(seconds * 1e9) + 10**15,
        boot_time=seen("/proc/stat", NOON - timedelta(days=11)),
        boot_id=ID,
        domains=(first, *more),
    )


def other(exits: int | None) -> tuple[DomainSample, ...]:
    return (DomainSample(uuid=OTHER, pid=2, incarnation=OTHER_RUN, counters=None if exits is None else {"exits": exits}),)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    with HostStore.open(tmp_path, now=NOON) as opened:
        yield opened


def view(store: HostStore) -> LedgerView:
    return store.ledger.read(EVER, END, beside=timedelta())


def counted(store: HostStore, run: Incarnation | None = None) -> int:
    return sum(each.exits for each in view(store).asked.by_run if run is None or each.run == run.key)


def test_exits_of_all_samples_are_in_the_ledger_once(store: HostStore) -> None:
    for index in range(30):
        store.record_samples(sample(300 * index, 1000 * index))
    assert keep_books(store) == 30
    assert counted(store) == 29_000
    assert keep_books(store) == 0
    assert counted(store) == 29_000


def test_books_kept_after_each_sample_are_those_kept_once(tmp_path: Path) -> None:
    documents = [sample(700 * index, 997 * index) for index in range(40)]
    with HostStore.open(tmp_path / "often", now=NOON) as often, HostStore.open(tmp_path / "once", now=NOON) as once:
        for document in documents:
            often.record_samples(document)
            once.record_samples(document)
            keep_books(often)
        keep_books(once)
        assert view(often) == view(once)


@pytest.mark.parametrize("behind", [-6 * 3600, -40 * 86_400, 7 * 3600, 365 * 86_400], ids=["hours", "weeks", "ahead", "a year ahead"])
def test_clock_that_was_wrong_for_a_while_counts_nothing_twice_and_loses_nothing(store: HostStore, behind: int) -> None:
    for index in range(40):
        store.record_samples(sample(300 * index, 1000 * index, clock_off=behind if 12 <= index < 15 else 0))
        keep_books(store)
    assert counted(store) == 39_000


def test_clock_that_was_set_back_for_good_loses_nothing(store: HostStore) -> None:
    for index in range(40):
        store.record_samples(sample(300 * index, 1000 * index, clock_off=0 if index < 12 else -7200))
        keep_books(store)
    assert counted(store) == 39_000


@pytest.mark.parametrize("hours", [8, -8], ids=["ahead and corrected", "set back"])
def test_present_rate_is_the_true_one_after_a_step_of_the_clock(store: HostStore, hours: int) -> None:
    stepped = range(12, 25) if hours > 0 else range(60, 72)
    for index in range(72):
        off = hours * 3600 if index in stepped else 0
        store.record_samples(sample(300 * index, 300_000 * index, clock_off=off))
    keep_books(store)
    _, now = store.ledger.read_now(END)
    assert sum(each.exits for each in now.by_run) / now.watched_seconds == pytest.approx(1000)


def test_present_ends_with_the_last_samples_however_late_it_is_read(store: HostStore) -> None:
    for index in range(30):
        store.record_samples(sample(300 * index, 1000 * index))
    keep_books(store)
    booked_until, now = store.ledger.read_now(END)
    assert booked_until == now.until == NOON + timedelta(seconds=300 * 29)


def test_run_that_nothing_accounts_for_is_counted_beside_those_that_are(store: HostStore) -> None:
    emulated = DomainSample(uuid=OTHER, pid=2, incarnation=OTHER_RUN, counters={"vcpus": 1})
    for index in range(30):
        store.record_samples(sample(300 * index, 1000 * index, more=(emulated,)))
    keep_books(store)
    _, now = store.ledger.read_now(END)
    assert [each.run for each in now.by_run if each.accounted_milliseconds] == [RUN.key]
    assert now.unaccounted_runs == 1


def test_guest_that_could_not_be_asked_for_hours_loses_nothing(store: HostStore) -> None:
    """As behind a migration or a stuck monitor, while other guests were asked."""
    for index in range(72):
        store.record_samples(sample(300 * index, 1000 * index, more=other(None if 10 <= index < 60 else 1000 * index)))
        keep_books(store)
    assert (counted(store, RUN), counted(store, OTHER_RUN)) == (71_000, 71_000)


def test_outage_of_the_daemon_is_spread_and_stays_counted_through_later_bookings(store: HostStore) -> None:
    for index in (*range(6), *range(200, 230)):
        store.record_samples(sample(300 * index, 1000 * index))
        keep_books(store)
    assert counted(store) == 229_000
    assert sum(each.spread_milliseconds for each in view(store).asked.by_run) == 195 * 300_000


def test_samples_that_were_forgotten_take_nothing_from_the_ledger(store: HostStore) -> None:
    for index in range(12):
        store.record_samples(sample(300 * index, 1000 * index))
    keep_books(store)
    store.prune(NOON + timedelta(days=9), history=timedelta(days=400), samples=timedelta(hours=1), limit_bytes=1 << 30)
    store.record_samples(sample(300 * 5000, 5_000_000))
    keep_books(store)
    assert counted(store) == 5_000_000


def test_traced_exits_are_booked_once_and_rolled_up(store: HostStore) -> None:
    traced = SampledExits(exits=100, skip_exits_low=60, skip_exits_high=70, milliseconds=1000)
    for index in range(5):
        document = sample(300 * index, 1000 * index)
        (domain,) = document.domains
        store.record_samples(document.model_copy(update={"domains": (domain.model_copy(update={"sampled": traced}),)}))
        keep_books(store)
    # What was traced before the first look is of no interval.
    for found in (view(store).asked.by_run, store.ledger.days_by_run(EVER, END)):
        (run,) = found
        assert (run.sampled_exits, run.sampled_skip_exits_low, run.sampled_skip_exits_high) == (400, 240, 280)


def test_runs_of_the_same_domain_are_kept_apart(store: HostStore) -> None:
    later = RUN.model_copy(update={"qemu_start_ticks": 2})
    for document in (sample(0, 5_000), sample(300, 6_000), sample(600, 10, run=later), sample(900, 110, run=later)):
        store.record_samples(document)
    keep_books(store)
    assert (counted(store, RUN), counted(store, later)) == (1000, 100)


def test_broken_counter_is_a_gap_with_its_time_and_reason(store: HostStore) -> None:
    for seconds, exits in ((0, 900), (300, 100), (600, 150)):
        store.record_samples(sample(seconds, exits))
    keep_books(store)
    assert counted(store) == 50
    (gap,) = view(store).unaccounted
    assert (gap.reason, gap.first) == ("exits went backwards, from 900 to 100", NOON)


def test_host_is_watched_while_no_guest_runs(store: HostStore) -> None:
    for index in range(13):
        document = sample(300 * index, 1000 * index)
        store.record_samples(document.model_copy(update={"domains": ()}) if index > 6 else document)
    keep_books(store)
    assert view(store).asked.watched_seconds == 3600
    assert counted(store) == 6000


def test_samples_without_an_answer_of_libvirt_s_watch_nothing_by_themselves(store: HostStore) -> None:
    store.record_samples(sample(0, None).model_copy(update={"boot_id": None}))
    store.record_samples(sample(300, None).model_copy(update={"boot_id": None}))
    keep_books(store)
    assert view(store).asked.watched_seconds == 0


def test_other_boot_is_not_watched_from_the_one_before(store: HostStore) -> None:
    store.record_samples(sample(0, 10))
    store.record_samples(sample(900, 10).model_copy(update={"boot_id": OTHER, "domains": ()}))
    keep_books(store)
    assert view(store).asked.watched_seconds == 0


def test_run_of_which_nothing_is_known_counts_its_exits(store: HostStore) -> None:
    store.record_samples(sample(0, 0))
    store.record_samples(sample(300, 1000))
    keep_books(store)
    assert [each.standing.guard for each in view(store).asked.by_run] == [GuardSaving.UNKNOWN]


def test_pulse_that_ends_it_leaves_what_was_booked(store: HostStore) -> None:
    for index in range(30):
        store.record_samples(sample(300 * index, 1000 * index))
    pulses = iter([None, None])
    with pytest.raises(StopIteration):
        keep_books(store, pulse=lambda: next(pulses))
    assert 0 < counted(store) < 29_000
    keep_books(store)
    assert counted(store) == 29_000


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    moves=st.lists(
        st.tuples(st.integers(1, 90_000), st.integers(0, 10**6), st.booleans(), st.integers(-(10**6), 10**6)), min_size=1, max_size=25
    )
)
def test_ledger_holds_exactly_what_the_counters_rose(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int, bool, int]]
) -> None:
    """With gaps of a day, clocks that jump by weeks, and books that are kept at any time."""
    with HostStore.open(tmp_path_factory.mktemp("books"), now=NOON) as opened:
        at, exits = 0, 10**6
        opened.record_samples(sample(at, exits))
        for seconds, move, keep_now, clock_off in moves:
            at, exits = at + seconds, exits + move
            opened.record_samples(sample(at, exits, clock_off=clock_off))
            if keep_now:
                keep_books(opened)
        keep_books(opened)
        assert counted(opened) == exits - 10**6
        assert view(opened).asked.watched_seconds == at
