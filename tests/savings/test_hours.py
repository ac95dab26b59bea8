"""Exits in hours: whole, none lost, none twice, however the intervals lie."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.samples import Incarnation, SampledExits
from exitguard.savings.hours import HOUR, hour_of, hours
from exitguard.savings.intervals import Interval
from exitguard.savings.skip_exits import SkipExits

NOON = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
UUID = "0a0b0c0d-1111-4222-8333-444455556666"
RUN = Incarnation(host_id=UUID, domain_uuid=UUID, boot_id=UUID, qemu_start_ticks=1)


def interval(ended_at: datetime, seconds: float, exits: int | None, reason: str | None = None) -> Interval:
    return Interval(RUN, ended_at, seconds, None if exits is None else {"exits": exits, "halt_exits": exits // 2}, reason)


def test_interval_within_an_hour_is_of_that_hour() -> None:
    found = hours([interval(NOON + timedelta(minutes=10), 300, 1000)])
    (hour,) = found.values()
    assert (hour.begin, hour.milliseconds, hour.skips.exits, hour.skips.low) == (NOON, 300_000, 1000, 500)


def test_interval_over_the_full_hour_is_divided_by_time() -> None:
    found = hours([interval(NOON + timedelta(seconds=100), 300, 900)])
    assert [(hour.begin, hour.milliseconds, hour.skips.exits) for hour in found.values()] == [
        (NOON - HOUR, 200_000, 600),
        (NOON, 100_000, 300),
    ]


def test_exits_over_many_hours_are_marked_as_spread() -> None:
    found = hours([interval(NOON + 3 * HOUR, 3 * 3600, 3000)])
    assert [(hour.skips.exits, hour.spread_milliseconds) for hour in found.values()] == [(1000, 3_600_000)] * 3


def test_traced_exits_are_of_the_hour_in_which_they_were_traced() -> None:
    traced = SampledExits(exits=90, skip_exits_low=30, skip_exits_high=40, milliseconds=1000)
    both = [replace(interval(NOON + timedelta(seconds=end), 300, 900), sampled=traced) for end in (100, 200)]
    found = hours([*both, replace(interval(NOON + timedelta(seconds=300), 100, None, "a reason"), sampled=traced)])
    assert [(hour.begin, hour.sampled) for hour in found.values()] == [(NOON - HOUR, SkipExits(0, 0, 0)), (NOON, SkipExits(180, 60, 80))]


def test_interval_without_counts_is_a_gap_with_its_reason() -> None:
    (hour,) = hours([interval(NOON + timedelta(minutes=10), 300, None, "exits went backwards")]).values()
    assert (hour.milliseconds, hour.skips.exits, hour.reasons) == (0, 0, {"exits went backwards"})


@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.floats(0.001, 10**5), st.integers(0, 10**9)),
        max_size=10,
    )
)
def test_parts_make_the_whole(drawn: list[tuple[int, float, int]]) -> None:
    given_intervals = [interval(NOON + timedelta(milliseconds=end), seconds, exits) for end, seconds, exits in drawn]
    found = hours(given_intervals).values()
    assert sum(hour.skips.exits for hour in found) == sum(exits for _, _, exits in drawn)
    assert sum(hour.skips.low for hour in found) == sum(exits // 2 for _, _, exits in drawn)
    assert sum(hour.milliseconds for hour in found) == sum(max(1, round(seconds * 1000)) for _, seconds, _ in drawn)
    assert all(0 <= hour.skips.low <= hour.skips.high <= hour.skips.exits for hour in found)


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2040, 1, 1)))  # noqa: DTZ001 - hypothesis draws naive ones
def test_hour_of_a_time_is_the_full_hour_before_it(at: datetime) -> None:
    begin = hour_of(at.replace(tzinfo=UTC))
    assert begin <= at.replace(tzinfo=UTC) < begin + HOUR
    assert (begin.minute, begin.second, begin.microsecond) == (0, 0, 0)
