"""Which exits skip, and when tracing them pays: never for more than a tenth of what it measures."""

import pytest
from account_builders import AVAILABLE, SAVED, UNPRICED, accounted, summed
from hypothesis import given
from hypothesis import strategies as st

from exitguard.savings.exit_reasons import (
    MOST_SAMPLES_APART,
    MOST_SHARE_OF_SAVING,
    SKIP_REASONS,
    TRACED_EXIT_CYCLES,
    samples_apart,
)

CPUID = {"vmx": 10, "svm": 0x72}
INTERRUPT = {"vmx": 1, "svm": 0x60}
PAGE_FAULT = {"vmx": 48, "svm": 0x400}


@pytest.mark.parametrize("vendor", ["vmx", "svm"])
def test_reasons_are_told_apart(vendor: str) -> None:
    reasons = SKIP_REASONS[vendor]
    assert not reasons.always & reasons.sometimes
    assert CPUID[vendor] in reasons.always
    assert {INTERRUPT[vendor], PAGE_FAULT[vendor]}.isdisjoint(reasons.always | reasons.sometimes)


def test_tracing_is_spread_until_it_costs_a_tenth_of_what_it_measures() -> None:
    # 1,000 exits a second, of which 100 to 200 skip and save 50 to 60 cycles: 12,000 cycles a second at most.
    rates = accounted(summed(AVAILABLE)).now
    # For 0.1 s of 300 s: 667 cycles a second before each sample, of 1,200 that may be spent.
    assert samples_apart(rates, 0.1, 300) == 1
    assert samples_apart(rates, 0.5, 300) == 3
    refused = samples_apart(rates, 2.0, 30)
    assert isinstance(refused, str)
    assert "more than 10% of the 12,000 that it would measure" in refused


def test_once_traced_the_low_bound_of_the_estimate_decides() -> None:
    rates = accounted(summed(AVAILABLE, traced=(10_000, 1_200, 2_000))).now
    # 120 skips a second at least, 50 cycles each: 6,000 instead of 12,000.
    assert samples_apart(rates, 0.5, 300) == 6


def test_what_cannot_be_measured_in_cycles_is_not_traced() -> None:
    assert samples_apart(accounted(summed(UNPRICED)).now, 0.1, 300) == (
        "what it would measure is nothing, or not known in cycles for this kernel, processor and mitigations"
    )
    assert samples_apart(accounted(before=(summed(SAVED),)).now, 0.1, 300) == "no guest exits"


@given(st.integers(0, 3_600_000), st.floats(0.001, 2), st.floats(10, 3600))
def test_cost_stays_within_its_share(low: int, seconds: float, interval: float) -> None:
    rates = accounted(summed(SAVED, low=low, high=3_600_000)).now
    assert rates.saved_cycles_per_second is not None
    apart = samples_apart(rates, seconds, interval)
    exits = sum(each.exits_per_second for each in rates.standings)
    cost = exits * TRACED_EXIT_CYCLES * seconds / interval
    if isinstance(apart, int):
        assert 1 <= apart <= MOST_SAMPLES_APART
        assert cost / apart <= rates.saved_cycles_per_second.high * MOST_SHARE_OF_SAVING * (1 + 1e-9)
