"""The exits of intervals, put into the hours in which they happened.

An interval that reaches over the end of an hour is divided by time, and its exits with it: whole exits, none lost, none twice.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from exitguard.model.samples import Incarnation
from exitguard.savings.intervals import Interval
from exitguard.savings.skip_exits import NO_EXITS, SkipExits, bound

HOUR = timedelta(hours=1)
_MILLISECOND = timedelta(milliseconds=1)
_MOST_REASONS = 8


@dataclass
class Hour:
    """What one run did in one hour, as it is being added up."""

    incarnation: Incarnation
    begin: datetime
    milliseconds: int = 0
    spread_milliseconds: int = 0
    skips: SkipExits = NO_EXITS
    #: Of the exits, those whose reason was traced, and how many of these skipped.
    sampled: SkipExits = NO_EXITS
    reasons: set[str] = field(default_factory=set)


def hours(intervals: Iterable[Interval]) -> dict[tuple[str, datetime], Hour]:
    """By incarnation key and begin, the hours that the intervals touch; those of which nothing is known name the reason only."""
    found: dict[tuple[str, datetime], Hour] = {}
    for interval in intervals:
        for begin, milliseconds, skips in _parts(interval):
            key = (interval.incarnation.key, begin)
            hour = found.setdefault(key, Hour(interval.incarnation, begin))
            if interval.reason is not None and len(hour.reasons) < _MOST_REASONS:
                hour.reasons.add(interval.reason)
            if skips is None:
                continue
            hour.milliseconds += milliseconds
            hour.spread_milliseconds += milliseconds if interval.seconds > HOUR.total_seconds() else 0
            hour.skips = hour.skips.plus(skips)
        if interval.sampled is not None and interval.counts is not None:
            traced = SkipExits(interval.sampled.exits, interval.sampled.skip_exits_low, interval.sampled.skip_exits_high)
            last = found[interval.incarnation.key, begin]  # traced at its end
            last.sampled = last.sampled.plus(traced)
    return found


def _parts(interval: Interval) -> Iterator[tuple[datetime, int, SkipExits | None]]:
    """The hours of one interval, and of each how long, and how many exits."""
    skips = None if interval.counts is None else bound(interval.counts)
    whole = milliseconds_of(interval.seconds)
    for begin, first, last in split(interval.ended_at, whole):
        yield begin, last - first, None if skips is None else _share(skips, first, last, whole)


def milliseconds_of(seconds: float) -> int:
    """Whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))


def split(ended_at: datetime, milliseconds: int) -> Iterator[tuple[datetime, int, int]]:
    """The hours that a time which ended then lies in: when each begins, and from and to which of its milliseconds it is in it."""
    began = ended_at - milliseconds * _MILLISECOND
    begin, done = hour_of(began), 0
    while done < milliseconds:
        upto = min(milliseconds, max(done, (begin + HOUR - began) // _MILLISECOND))
        if upto > done:
            yield begin, done, upto
        done, begin = upto, begin + HOUR


def _share(skips: SkipExits, begin: int, end: int, whole: int) -> SkipExits:
    """What of `skips` falls between `begin` and `end` of `whole`: divided kind by kind, so that the bounds of a part never cross."""
    low, between, others = (
        count * end // whole - count * begin // whole for count in (skips.low, skips.high - skips.low, skips.exits - skips.high)
    )
    return SkipExits(exits=low + between + others, low=low, high=low + between)


def hour_of(at: datetime) -> datetime:
    """The full hour in UTC in which `at` is."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
