"""What counters moved by: never negative, never twice, and nothing made up where they are broken."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.record import seen
from exitguard.model.samples import DomainSample, Incarnation, Samples
from exitguard.savings.intervals import Interval, Look, intervals

HOST = "6f0e0b5e-1111-4222-8333-444455556666"
GUEST = "0a0b0c0d-1111-4222-8333-444455556666"
BOOT = "11111111-2222-4333-8444-555555555555"
BEGIN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def sample(
    second: float, counters: dict[str, int] | None, *, start_ticks: int = 100, boot_id: str = BOOT, wall_clock_off: float = 0
) -> Samples:
    incarnation = Incarnation(host_id=HOST, domain_uuid=GUEST, boot_id=boot_id, qemu_start_ticks=start_ticks)
    return Samples(
        observed_at=BEGIN + timedelta(seconds=second + wall_clock_off),
        boottime_nanoseconds=int((1000 + second) * 1e9),
        boot_time=seen("/proc/stat", BEGIN - timedelta(seconds=1000)),
        domains=(DomainSample(uuid=GUEST, pid=1, incarnation=incarnation, counters=counters),),
    )


def of(*samples: Samples) -> list[Interval]:
    return list(intervals(samples, {}))


def test_an_interval_is_what_the_counters_moved_by() -> None:
    (interval,) = of(sample(0, {"exits": 100, "io_exits": 5}), sample(300, {"exits": 900, "io_exits": 7}))
    assert interval.counts == {"exits": 800, "io_exits": 2}
    assert interval.seconds == 300
    assert interval.ended_at == BEGIN + timedelta(seconds=300)


def test_first_sample_of_a_run_begins_and_counts_nothing() -> None:
    assert of(sample(0, {"exits": 10**12})) == []


def test_another_run_of_the_domain_is_never_compared_with_the_one_before() -> None:
    assert of(sample(0, {"exits": 100}), sample(300, {"exits": 900}, start_ticks=101)) == []


def test_another_boot_is_another_run_even_with_the_same_start_ticks() -> None:
    other = "99999999-2222-4333-8444-555555555555"
    assert of(sample(0, {"exits": 100}), sample(300, {"exits": 900}, boot_id=other)) == []


def test_counter_that_went_backwards_counts_nothing_and_the_next_interval_begins_with_it() -> None:
    broken, whole = of(sample(0, {"exits": 900}), sample(300, {"exits": 100}), sample(600, {"exits": 150}))
    assert broken.counts is None
    assert broken.reason == "exits went backwards, from 900 to 100"
    assert whole.counts == {"exits": 50}


def test_jump_by_two_to_the_63_counts_nothing() -> None:
    (interval,) = of(sample(0, {"exits": 100}), sample(300, {"exits": 100 + (1 << 63)}))
    assert interval.counts is None
    assert "more than any guest makes" in (interval.reason or "")


def test_counter_that_vanished_makes_the_interval_unknown() -> None:
    (interval,) = of(sample(0, {"exits": 100, "io_exits": 1}), sample(300, {"exits": 200}))
    assert (interval.counts, interval.reason) == (None, "not in both samples: io_exits")


def test_counter_that_is_new_is_left_out() -> None:
    (interval,) = of(sample(0, {"exits": 100}), sample(300, {"exits": 200, "io_exits": 10**6}))
    assert interval.counts == {"exits": 100}


def test_run_without_any_counter_says_so() -> None:
    (interval,) = of(sample(0, {}), sample(300, {}))
    assert interval.counts is None
    assert "TCG" in (interval.reason or "")


def test_look_without_counters_is_bridged_by_the_next_one() -> None:
    (interval,) = of(sample(0, {"exits": 100}), sample(300, None), sample(600, {"exits": 400}))
    assert (interval.counts, interval.seconds) == ({"exits": 300}, 600)


def test_stepped_clock_changes_no_duration() -> None:
    (interval,) = of(sample(0, {"exits": 0}), sample(300, {"exits": 600}, wall_clock_off=-3600))
    assert (interval.seconds, interval.counts) == (300, {"exits": 600})


def test_vcpu_that_came_or_went_makes_the_interval_unknown() -> None:
    """A vCPU that is plugged in again brings all that it counted before."""
    gone, back = of(
        sample(0, {"exits": 10**9, "vcpus": 2}), sample(300, {"exits": 500, "vcpus": 1}), sample(600, {"exits": 10**9 + 900, "vcpus": 2})
    )
    assert (gone.counts, back.counts) == (None, None)
    assert gone.reason == "vCPUs came or went: 2, then 1"


def test_looks_that_are_kept_are_gone_on_from_however_long_ago() -> None:
    looks: dict[str, Look] = {}
    assert list(intervals([sample(0, {"exits": 100})], looks)) == []
    (interval,) = intervals([sample(86_400, {"exits": 400})], looks)
    assert (interval.seconds, interval.counts) == (86_400, {"exits": 300})


def test_same_look_twice_counts_once() -> None:
    first, second = sample(0, {"exits": 0}), sample(300, {"exits": 600})
    assert [interval.counts for interval in of(first, second, second, first)] == [{"exits": 600}]


@given(st.lists(st.integers(min_value=0, max_value=(1 << 64) - 1), min_size=2, max_size=20))
def test_no_interval_is_negative_and_the_sum_is_never_more_than_the_rises(values: list[int]) -> None:
    found = of(*(sample(300 * index, {"exits": value}) for index, value in enumerate(values)))
    assert len(found) == len(values) - 1
    counted = [interval.counts["exits"] for interval in found if interval.counts is not None]
    assert all(count >= 0 for count in counted)
    assert sum(counted) <= sum(max(0, after - before) for before, after in pairwise(values))


@given(st.lists(st.integers(min_value=0, max_value=10**6), min_size=1, max_size=30), st.data())
def test_samples_left_out_lose_no_exit_of_a_run_in_order(moves: list[int], data: st.DataObject) -> None:
    totals = [sum(moves[: index + 1]) for index in range(len(moves))]
    documents = [sample(300 * index, {"exits": total}) for index, total in enumerate(totals)]
    kept = [document for document in documents[1:-1] if data.draw(st.booleans())]
    ends = [documents[0], *kept, documents[-1]] if len(documents) > 1 else documents
    counted = sum(interval.counts["exits"] for interval in of(*ends) if interval.counts is not None)
    assert counted == totals[-1] - totals[0]
