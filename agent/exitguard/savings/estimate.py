"""Statistics of a measurement: medians, their bootstrap intervals, and the contrast of two arms that ran A B B A.

An interval covers sampling alone: how far the median would lie from this one had other rounds of the same run been taken. What differs
between a loop and a real guest, or between today and tomorrow, is not in it.
"""

from collections.abc import Callable, Sequence
from statistics import median

from exitguard.model.measurement import Estimate

#: A number from 0 up to, and without, the argument: `random.Random(seed).randrange` of whoever may use chance.
Pick = Callable[[int], int]

_RESAMPLES = 1000
#: 95 % lie between these two quantiles of the resampled medians.
_LOW, _HIGH = 0.025, 0.975
#: The median absolute deviation of a normal distribution, times this, is its standard deviation.
_MAD_TO_SIGMA = 1.4826


def estimate(groups: Sequence[Sequence[float]], pick: Pick) -> Estimate:
    """The median of all values, with its interval by resampling whole groups: rounds of one group share what disturbed them.

    Raises ValueError where there is no value.
    """
    values = [value for group in groups for value in group]
    if not values:
        raise ValueError("expected values to take the median of, found none")
    middle = median(values)
    resampled = sorted(_resampled_median(groups, pick) for _ in range(_RESAMPLES))
    # An interval that does not hold its own estimate would only puzzle; with very few groups quantiles can lie so.
    return Estimate(median=middle, low=min(middle, quantile(resampled, _LOW)), high=max(middle, quantile(resampled, _HIGH)))


def _resampled_median(groups: Sequence[Sequence[float]], pick: Pick) -> float:
    count = len(groups)
    return median([value for _ in range(count) for value in groups[pick(count)]])


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie, between two of them by proportion."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def abba_contrast(first: float, second: float, third: float, fourth: float) -> float:
    """A less B of four rounds A B B A. Whatever drifts evenly over the four is not in it."""
    return (first + fourth - second - third) / 2


def noise(values: Sequence[float]) -> float:
    """How far values lie from their median, as a share of it: 1.4826 x the median absolute deviation; robust against a few outliers."""
    middle = median(values)
    return _MAD_TO_SIGMA * median([abs(value - middle) for value in values]) / middle if middle else 0.0


def spread(values: Sequence[float]) -> float:
    """How far apart values are, as a share of their median: between their quantiles of 5 and 95 %."""
    ordered = sorted(values)
    middle = median(ordered)
    return (quantile(ordered, 0.95) - quantile(ordered, 0.05)) / middle if middle else 0.0
