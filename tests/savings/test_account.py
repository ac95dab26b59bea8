"""The account of a host: sums of what is known, nothing from what is not, and every saved cycle traced to a standing and its costs."""

from datetime import timedelta

import pytest
from account_builders import (
    AVAILABLE,
    BY_CHANGE,
    HEAVY,
    ICE_LAKE,
    NOON,
    SAVED,
    SHIPPED,
    UNPRICED,
    UNPRICED_SAVED,
    VIOLATED,
    ZEN_2,
    accounted,
    summed,
)
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.mitigations import parse_classes
from exitguard.model.host import Cpu, MitigationClass
from exitguard.model.kernel import Body
from exitguard.model.ledger import GuardSaving, RunStanding
from exitguard.model.rates import PerSecond, Worthwhile
from exitguard.savings.account import LEAST_TRACED, as_traced
from exitguard.savings.matrix import percent_of_exit
from exitguard.savings.worth import Cell, available_in, levers_of_table, saved_in


def test_rates_are_means_over_the_time_that_the_host_was_watched() -> None:
    now = accounted(summed(SAVED), summed(SAVED, run=2)).now
    assert now.saved_cycles_per_second == PerSecond(low=10_000, high=24_000, at_least=True)
    assert now.saved_cores == PerSecond(low=10_000 / 2e9, high=24_000 / 2e9, at_least=True)
    assert accounted(summed(SAVED), watched_seconds=7200.0).now.saved_cycles_per_second == PerSecond(low=2_500, high=6_000, at_least=True)


def test_attributable_is_the_part_that_came_with_a_change() -> None:
    now = accounted(summed(SAVED), summed(BY_CHANGE, run=2)).now
    assert now.saved_cycles_per_second == PerSecond(low=10_000, high=24_000, at_least=True)
    assert now.attributable_cycles_per_second == PerSecond(low=5_000, high=12_000)


def test_available_is_never_counted_as_saved() -> None:
    now = accounted(summed(AVAILABLE)).now
    assert now.saved_cycles_per_second == PerSecond(low=0, high=0)
    assert now.available_cycles_per_second == PerSecond(low=5_000, high=12_000)


def test_what_is_not_quantified_is_told_as_skips_and_is_in_no_sum() -> None:
    found = accounted(summed(UNPRICED))
    assert found.now.available_cycles_per_second is None
    assert found.now.unquantified_available_skip_exits_per_second == PerSecond(low=100, high=200)
    assert found.worthwhile is Worthwhile.UNKNOWN


def test_zero_beside_a_saving_that_is_not_quantified_is_no_zero() -> None:
    now = accounted(summed(UNPRICED_SAVED), summed(AVAILABLE, run=2)).now
    assert now.saved_cycles_per_second is None
    assert now.unquantified_saved_skip_exits_per_second == PerSecond(low=100, high=200)
    assert now.net_saved_cycles_per_second is None


def test_what_is_taken_from_guests_that_asked_for_their_pmu_is_no_gain() -> None:
    found = accounted(summed(VIOLATED))
    assert found.now.saved_cycles_per_second is None
    assert found.worthwhile is Worthwhile.NOTHING_LEFT


@pytest.mark.parametrize(
    ("cpu_seconds", "answer"),
    [pytest.param(0.001, Worthwhile.YES, id="the agent uses less"), pytest.param(360.0, Worthwhile.NO, id="the agent uses more")],
)
def test_worth_changing_is_decided_by_the_low_bound_net_of_the_agent(cpu_seconds: float, answer: Worthwhile) -> None:
    found = accounted(summed(AVAILABLE), cpu_seconds=cpu_seconds)
    assert found.worthwhile is answer
    assert found.now.own_cycles_per_second == pytest.approx(cpu_seconds / 3600 * 2e9)


def test_guest_without_a_skip_has_no_say_in_what_is_worth_changing() -> None:
    idle = summed(RunStanding(guard=GuardSaving.UNKNOWN), run=2, low=0, high=0)
    assert accounted(summed(SAVED), idle, cpu_seconds=1.0).worthwhile is Worthwhile.NOTHING_LEFT


def test_guest_that_is_accounted_for_nowhere_leaves_it_open() -> None:
    assert accounted(summed(SAVED), unaccounted_runs=1).worthwhile is Worthwhile.UNKNOWN
    assert accounted(unaccounted_runs=1).worthwhile is Worthwhile.UNKNOWN
    assert accounted(summed(AVAILABLE), cpu_seconds=360.0, unaccounted_runs=1).worthwhile is Worthwhile.UNKNOWN
    assert accounted().worthwhile is Worthwhile.UNKNOWN


def test_ledger_that_ended_long_ago_says_nothing_of_now() -> None:
    fresh, old = (accounted(summed(AVAILABLE), asked_until=NOON + timedelta(hours=hours)) for hours in (3, 4))
    assert (fresh.worthwhile, old.worthwhile) == (Worthwhile.YES, Worthwhile.UNKNOWN)
    assert "is `exitguard daemon` running?" in old.worthwhile_reason


def test_what_tracing_takes_is_a_part_of_the_agent_s_own_cost() -> None:
    without, traced = (accounted(summed(SAVED, traced=counts)).now.own_cycles_per_second for counts in ((0, 0, 0), (7200, 100, 200)))
    assert without is not None
    assert traced == pytest.approx(without + 2 * 2000)


def test_runs_that_have_ended_have_no_say_either() -> None:
    found = accounted(summed(SAVED), before=(summed(AVAILABLE, run=9),))
    assert found.worthwhile is Worthwhile.NOTHING_LEFT
    assert found.asked.available_cycles_per_second == PerSecond(low=5_000, high=12_000)
    assert found.now.available_cycles_per_second == PerSecond(low=0, high=0)


def test_net_may_be_below_zero_and_says_so() -> None:
    net = accounted(summed(SAVED), cpu_seconds=360.0).now.net_saved_cycles_per_second
    assert net is not None
    assert net.high < 0


def test_host_on_which_all_is_saved_has_nothing_left() -> None:
    assert accounted(summed(SAVED)).worthwhile is Worthwhile.NOTHING_LEFT


def test_without_a_frequency_there_are_cycles_and_no_cores() -> None:
    now = accounted(summed(SAVED), hertz=None).now
    assert (now.saved_cores, now.own_cycles_per_second, now.net_saved_cycles_per_second) == (None, None, None)
    assert now.saved_cycles_per_second is not None


def test_every_saved_cycle_is_counters_times_a_cost_with_its_provenance() -> None:
    found = accounted(summed(SAVED), summed(AVAILABLE, run=2), summed(UNPRICED, run=3))
    low = sum(each.skip_exits_low * each.standing.saved.low for each in found.domains if each.standing.saved is not None)
    assert found.asked.saved_cycles_per_second is not None
    assert low / found.asked.watched_seconds == found.asked.saved_cycles_per_second.low
    assert all(each.standing.saved.costs for each in found.domains if each.standing.saved is not None and each.standing.saved.high)


def test_traced_share_makes_an_estimate_beside_the_bounds() -> None:
    now = accounted(summed(AVAILABLE, traced=(10_000, 1_500, 1_600)), summed(AVAILABLE, run=2)).now
    assert now.available_cycles_per_second == PerSecond(low=10_000, high=24_000)
    assert now.sampled is not None
    assert (now.sampled.traced_exits, now.sampled.share_of_exits) == (10_000, 0.5)
    # 150 to 160 skips a second of the traced run, 100 to 200 of the other.
    assert now.sampled.skip_exits_per_second == PerSecond(low=250, high=360)
    assert now.sampled.available_cycles_per_second == PerSecond(low=12_500, high=21_600)
    assert now.sampled.saved_cycles_per_second == PerSecond(low=0, high=0)


@pytest.mark.parametrize("traced", [(0, 0, 0), (LEAST_TRACED - 1, 0, 0)])
def test_few_traced_exits_estimate_nothing(traced: tuple[int, int, int]) -> None:
    assert accounted(summed(AVAILABLE, traced=traced)).now.sampled is None


@given(st.integers(LEAST_TRACED, 10**9), st.data())
def test_estimate_lies_within_the_bounds_of_the_counters(exits: int, data: st.DataObject) -> None:
    high = data.draw(st.integers(0, exits))
    run = summed(AVAILABLE, traced=(exits, data.draw(st.integers(0, high)), high))
    estimated = as_traced(run)
    assert run.skip_exits_low <= estimated.skip_exits_low <= estimated.skip_exits_high <= run.skip_exits_high


def test_one_run_that_stood_in_two_ways_is_one_run() -> None:
    (first, second) = accounted(summed(SAVED), summed(AVAILABLE)).asked.standings
    assert (first.runs, second.runs) == (1, 1)


def test_hours_are_drawn_in_their_order() -> None:
    before = summed(SAVED).model_copy(update={"begin": NOON - timedelta(hours=5)})
    assert [period.begin for period in accounted(summed(SAVED), before=(before,)).periods] == [NOON - timedelta(hours=5), NOON]


def test_no_hours_make_no_rate() -> None:
    found = accounted(watched_seconds=0.0)
    assert (found.now.saved_cycles_per_second, found.domains, found.worthwhile) == (None, (), Worthwhile.UNKNOWN)


@pytest.mark.parametrize(
    ("cpu", "classes", "cycles"), [(ZEN_2, HEAVY, 57), (ICE_LAKE, (MitigationClass.LOW,), 26)], ids=["zen 2", "ice lake"]
)
def test_hosts_of_the_patch_s_author_save_what_its_author_measured(cpu: Cpu, classes: tuple[MitigationClass, ...], cycles: int) -> None:
    """A consistency check of the table, and no measurement."""
    levers = levers_of_table(SHIPPED.costs, Body.B, cpu, classes)
    before = available_in(Cell(guard=False, cleared=True), levers)
    after = saved_in(Cell(guard=True, cleared=True), levers)
    assert before is not None
    assert after is not None
    assert (before.low, before.high, before.at_least) == (cycles, cycles, False)
    assert (after.low, after.at_least) == (cycles, True)
    (row,) = (each for each in SHIPPED.costs.costs if each.id in before.costs)
    assert percent_of_exit(row) == pytest.approx({57: 2.7, 26: 0.6}[cycles], abs=0.05)


@pytest.mark.parametrize(
    ("body", "classes"), [(Body.A, HEAVY), (Body.B, (MitigationClass.LOW,)), (None, HEAVY)], ids=["body A", "other mitigations", "no body"]
)
def test_cost_of_another_kernel_or_mitigation_is_never_used(body: Body | None, classes: tuple[MitigationClass, ...]) -> None:
    assert levers_of_table(SHIPPED.costs, body, ZEN_2, classes) == {}


@pytest.mark.parametrize(
    ("its", "cycles"),
    [({}, 26), ({"indirect_target_selection": "Mitigation: Aligned branch/return thunks"}, None)],
    ids=["before 6.12.29", "since"],
)
def test_ice_lake_whose_returns_were_made_costlier_is_not_of_its_author_s_row(its: dict[str, str], cycles: int | None) -> None:
    classes = parse_classes(
        {"retbleed": "Mitigation: Enhanced IBRS", "spectre_v2": "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional", **its}
    )
    found = available_in(Cell(guard=False, cleared=True), levers_of_table(SHIPPED.costs, Body.B, ICE_LAKE, classes))
    assert (None if found is None else found.low) == cycles


def test_instructions_are_never_taken_for_cycles() -> None:
    assert levers_of_table(SHIPPED.costs, Body.A, ZEN_2.model_copy(update={"model": 1}), HEAVY) == {}
