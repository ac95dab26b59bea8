"""Medians, their intervals and contrasts: against values that are known, and by laws that hold for any."""

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.savings.estimate import abba_contrast, estimate, noise, quantile, spread

_TICKS = st.floats(1.0, 1e6)


def picked(seed: int = 1) -> random.Random:
    return random.Random(seed)  # noqa: S311 - statistics, no secret


@given(st.lists(st.lists(_TICKS, min_size=1, max_size=4), min_size=1, max_size=12), st.integers(0, 100))
def test_interval_holds_its_median_and_lies_within_the_values(groups: list[list[float]], seed: int) -> None:
    found = estimate(groups, picked(seed).randrange)
    values = [value for group in groups for value in group]
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


def test_groups_are_resampled_whole() -> None:
    # Two groups that differ, and rounds that do not within them: as single values their median would seem far better known.
    groups = [[100.0] * 50, [200.0] * 50]
    found = estimate(groups, picked().randrange)
    assert (found.low, found.high) == (100.0, 200.0)


def test_nothing_has_no_median() -> None:
    with pytest.raises(ValueError, match="none"):
        estimate([], picked().randrange)


@given(_TICKS, st.floats(-100, 100), st.floats(-50, 50))
def test_even_drift_is_not_in_an_abba_contrast(base: float, difference: float, drift: float) -> None:
    a, b = base + difference, base
    contrast = abba_contrast(a, b + drift, b + 2 * drift, a + 3 * drift)
    assert contrast == pytest.approx(difference, abs=1e-6)


def test_contrast_of_the_other_order_has_the_other_sign() -> None:
    assert abba_contrast(2460, 2255, 2255, 2460) == 205
    assert abba_contrast(2255, 2460, 2460, 2255) == -205


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
