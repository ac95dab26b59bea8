"""Statistics of a measurement: medians, and their bootstrap intervals.

Rounds that one pair of virtual machines made share where its pages came to lie, so pairs are what is resampled. An interval covers
sampling alone: how far the figure would lie from this one had other pairs of the same run been taken. What differs between a loop and a
real guest, or between two boots, is not in it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

from exitguard.model.measurement import Estimate

#: A number from 0 up to, and without, the argument: `random.Random(seed).randrange` of whoever may use chance.
Pick = Callable[[int], int]

_RESAMPLES = 1000
#: 95 % lie between these two quantiles of the resampled medians.
_LOW, _HIGH = 0.025, 0.975
#: The median absolute deviation of a normal distribution, times this, is its standard deviation.
_MAD_TO_SIGMA = 1.4826
#: Of a pair with more rounds so many stand for all of them, evenly from least to most: a thousand medians of all would take minutes.
_MOST_OF_PAIR = 50


def estimate(pairs: Sequence[Sequence[float]], pick: Pick) -> Estimate:
    """The median of all values, with its interval by resampling pairs.

    Raises ValueError where there is no pair, or one without values.
    """
    values = _thinned(pairs)
    return _interval(_median_of(values), [_median_of(_resampled(values, _picked(len(values), pick))) for _ in range(_RESAMPLES)])


def estimate_difference(ones: Sequence[Sequence[float]], others: Sequence[Sequence[float]], pick: Pick) -> Estimate:
    """The estimate of `ones` less that of `others`, arms of the same pairs in the same order: a resampled pair comes with both.

    Raises ValueError where there is no pair, one without values, or where their numbers differ.
    """
    if len(ones) != len(others):
        raise ValueError(f"expected both arms of each pair, found {len(ones)} of the one and {len(others)} of the other")
    first, second = _thinned(ones), _thinned(others)
    resampled = []
    for _ in range(_RESAMPLES):
        places = _picked(len(first), pick)
        resampled.append(_median_of(_resampled(first, places)) - _median_of(_resampled(second, places)))
    return _interval(_median_of(first) - _median_of(second), resampled)


def _thinned(pairs: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    if not pairs or not all(pairs):
        raise ValueError("expected pairs with values to take the median of, found none")
    return [_evenly(values) if len(values) > _MOST_OF_PAIR else values for values in pairs]


def _evenly(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [quantile(ordered, (place + 0.5) / _MOST_OF_PAIR) for place in range(_MOST_OF_PAIR)]


def _median_of(pairs: Iterable[Sequence[float]]) -> float:
    return median([value for values in pairs for value in values])


def _picked(count: int, pick: Pick) -> list[int]:
    return [pick(count) for _ in range(count)]


def _resampled(pairs: Sequence[Sequence[float]], places: Sequence[int]) -> Iterator[Sequence[float]]:
    return (pairs[place] for place in places)


def _interval(middle: float, resampled: list[float]) -> Estimate:
    resampled.sort()
    # An interval that does not hold its own estimate would only puzzle; with very few pairs quantiles can lie so.
    return Estimate(median=middle, low=min(middle, quantile(resampled, _LOW)), high=max(middle, quantile(resampled, _HIGH)))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie, between two of them by proportion."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def noise(values: Sequence[float]) -> float:
    """How far values lie from their median, as a share of it: 1.4826 x the median absolute deviation; robust against a few outliers."""
    middle = median(values)
    return _MAD_TO_SIGMA * median([abs(value - middle) for value in values]) / middle if middle else 0.0


def spread(values: Sequence[float]) -> float:
    """How far apart values are, as a share of their median: between their quantiles of 5 and 95 %."""
    ordered = sorted(values)
    middle = median(ordered)
    return (quantile(ordered, 0.95) - quantile(ordered, 0.05)) / middle if middle else 0.0


def drift(values: Sequence[float]) -> float:
    """How far the median of the second half of values in time order lies from that of the first, as a share of it."""
    half = len(values) // 2
    first, second = (median(part) if part else 0.0 for part in (values[:half], values[half:]))
    return abs(second - first) / first if first else 0.0
