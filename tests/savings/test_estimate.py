"""Medians, their intervals and contrasts: against values that are known, and by laws that hold for any."""

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.savings.estimate import drift, estimate, estimate_difference, noise, quantile, spread

_TICKS = st.floats(1.0, 1e6)


def picked(seed: int = 1) -> random.Random:
    return random.Random(seed)  # noqa: S311 - statistics, no secret


@given(st.lists(st.lists(_TICKS, min_size=1, max_size=4), min_size=1, max_size=12), st.integers(0, 100))
def test_interval_holds_its_median_and_lies_within_the_values(pairs: list[list[float]], seed: int) -> None:
    found = estimate(pairs, picked(seed).randrange)
    values = [value for pair in pairs for value in pair]
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.median == median(values)


def test_rounds_that_are_all_alike_leave_no_doubt() -> None:
    found = estimate([[2455.5, 2455.5]] * 10, picked().randrange)
    assert (found.low, found.median, found.high) == (2455.5, 2455.5, 2455.5)


def test_same_generator_gives_the_same_interval() -> None:
    groups = [[float(value)] for value in picked(3).sample(range(1000), 40)]
    assert estimate(groups, picked(7).randrange) == estimate(groups, picked(7).randrange)


def test_interval_of_known_noise_holds_the_true_median_about_as_often_as_it_says() -> None:
    draw = picked(11)
    hits = 0
    for _ in range(100):
        groups = [[draw.gauss(2000, 20)] for _ in range(30)]
        found = estimate(groups, draw.randrange)
        hits += found.low <= 2000 <= found.high
    assert 88 <= hits <= 100  # 95 % of them; the generator is seeded, so this is one fixed number


def test_pairs_are_resampled_whole() -> None:
    # Two pairs that differ, and rounds that do not within them: as single values their median would seem far better known.
    pairs = [[100.0] * 50, [200.0] * 50]
    found = estimate(pairs, picked().randrange)
    assert (found.low, found.high) == (100.0, 200.0)


def test_what_stands_for_a_long_run_has_its_median() -> None:
    draw = picked(5)
    pairs = [[draw.gauss(2000, 20) for _ in range(2000)] for _ in range(10)]
    found = estimate(pairs, draw.randrange)
    assert found.median == pytest.approx(median(value for pair in pairs for value in pair), abs=0.5)


@pytest.mark.parametrize("pairs", [[], [[]], [[1.0], []]])
def test_nothing_has_no_median(pairs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="none"):
        estimate(pairs, picked().randrange)


@given(st.lists(st.tuples(_TICKS, _TICKS), min_size=1, max_size=12), st.integers(0, 100))
def test_difference_is_that_of_the_two_estimates(pairs: list[tuple[float, float]], seed: int) -> None:
    ones, others = [[one] for one, _ in pairs], [[other] for _, other in pairs]
    found = estimate_difference(ones, others, picked(seed).randrange)
    assert found.median == median(one for one, _ in pairs) - median(other for _, other in pairs)
    assert found.low <= found.median <= found.high


def test_what_a_pair_does_to_both_arms_is_not_in_the_difference() -> None:
    at = [2000.0, 2100.0, 2500.0, 2300.0, 2200.0]
    found = estimate_difference([[each + 200] for each in at], [[each] for each in at], picked().randrange)
    assert (found.low, found.median, found.high) == (200.0, 200.0, 200.0)


def test_difference_needs_both_arms_of_each_pair() -> None:
    with pytest.raises(ValueError, match="2 of the one and 1 of the other"):
        estimate_difference([[1.0], [2.0]], [[1.0]], picked().randrange)


@pytest.mark.parametrize(("share", "value"), [(0, 1.0), (0.5, 2.0), (1, 3.0), (0.25, 1.5)])
def test_quantile_lies_between_two_values_by_proportion(share: float, value: float) -> None:
    assert quantile([1.0, 2.0, 3.0], share) == value


def test_one_outlier_is_no_noise_and_half_the_rounds_are() -> None:
    assert noise([100.0] * 9 + [1000.0]) == 0
    assert noise([100.0, 100.0, 110.0, 110.0, 120.0]) == pytest.approx(1.4826 * 10 / 110)
    assert noise([0.0, 0.0]) == 0


def test_spread_is_between_the_fifth_and_the_ninety_fifth_quantile() -> None:
    assert spread([float(value) for value in range(1, 102)]) == pytest.approx(90 / 51)
    assert spread([2.0]) == 0


def test_drift_is_between_the_halves_and_has_no_sign() -> None:
    assert drift([100.0, 100.0, 102.0, 102.0]) == pytest.approx(0.02)
    assert drift([100.0, 100.0, 98.0, 98.0]) == pytest.approx(0.02)
    assert drift([100.0]) == 0
    assert drift([]) == 0
