"""The cells of the two levers: what the lab measured adds up, and what stands nowhere is never a zero."""

import pytest

from exitguard.model.ledger import Worth
from exitguard.savings.worth import (
    BOTH,
    GUARD,
    GUARD_WITH_PMU_ON,
    PMU_OFF_GUARDED,
    PMU_OFF_UNGUARDED,
    Cell,
    Lever,
    available_in,
    better,
    saved_in,
)

CELLS = [Cell(guard=guard, cleared=cleared) for guard in (False, True) for cleared in (False, True)]
#: Totals of one exit in the cells, by body: Linux 6.1 and 6.12 in the lab, mitigations off (policies/costs.yaml has the differences).
TOTALS = {
    "A": {(False, False): 2455, (False, True): 2455, (True, False): 2459, (True, True): 2255},
    "B": {(False, False): 2595, (False, True): 2410, (True, False): 2599, (True, True): 2383},
}


def worth(cycles: int, provenance: str = "measured") -> Worth:
    return Worth.model_validate({"provenance": provenance, "low": cycles, "high": cycles, "costs": ("row",)}, strict=False)


def levers(body: str) -> dict[Lever, Worth]:
    totals = TOTALS[body]
    return {
        GUARD: worth(totals[False, True] - totals[True, True]),
        GUARD_WITH_PMU_ON: worth(totals[False, False] - totals[True, False]),
        PMU_OFF_GUARDED: worth(totals[True, False] - totals[True, True]),
        PMU_OFF_UNGUARDED: worth(totals[False, False] - totals[False, True]),
        BOTH: worth(totals[False, False] - totals[True, True]),
    }


def low(found: Worth | None) -> int | None:
    return None if found is None else found.low


@pytest.mark.parametrize("body", ["A", "B"])
@pytest.mark.parametrize("cell", CELLS)
def test_saved_is_the_difference_of_the_totals(body: str, cell: Cell) -> None:
    totals = TOTALS[body]
    assert low(saved_in(cell, levers(body))) == totals[False, False] - totals[cell.guard, cell.cleared]
    assert low(available_in(cell, levers(body))) == totals[cell.guard, cell.cleared] - totals[True, True]


@pytest.mark.parametrize("body", ["A", "B"])
def test_a_combination_that_stands_nowhere_is_the_sum_of_its_levers(body: str) -> None:
    known = levers(body)
    del known[BOTH]
    totals = TOTALS[body]
    assert low(saved_in(Cell(guard=True, cleared=True), known)) == totals[False, False] - totals[True, True]
    del known[PMU_OFF_UNGUARDED]
    assert low(saved_in(Cell(guard=True, cleared=True), known)) == totals[False, False] - totals[True, True]


def test_guard_alone_is_at_least_what_the_whole_chain_saves() -> None:
    found = saved_in(Cell(guard=True, cleared=True), {GUARD: worth(57, "table")})
    assert found is not None
    assert (found.low, found.at_least) == (57, True)


def test_off_guest_on_an_unguarded_kernel_lacks_exactly_the_guard() -> None:
    found = available_in(Cell(guard=False, cleared=True), {GUARD: worth(57, "table")})
    assert found is not None
    assert (found.low, found.at_least) == (57, False)


@pytest.mark.parametrize("cell", [each for each in CELLS if each.guard or each.cleared])
def test_what_stands_nowhere_is_unquantified_and_not_zero(cell: Cell) -> None:
    assert saved_in(cell, {}) is None


def test_neither_lever_saves_nothing_and_both_leave_nothing() -> None:
    assert low(saved_in(Cell(guard=False, cleared=False), {})) == 0
    assert low(available_in(Cell(guard=True, cleared=True), {})) == 0


def test_sum_is_no_better_known_than_its_weaker_part() -> None:
    found = saved_in(Cell(guard=True, cleared=True), {PMU_OFF_UNGUARDED: worth(10), GUARD: worth(57, "table")})
    assert found is not None
    assert (found.low, found.provenance) == (67, "table")


def test_what_was_measured_here_beats_the_table() -> None:
    found = better(({GUARD: worth(40)}, {GUARD: worth(57, "table"), BOTH: worth(60, "table")}))
    assert (found[GUARD].low, found[BOTH].low) == (40, 60)


def test_interval_that_holds_zero_gives_way_to_a_row_that_tells_the_lever_and_agrees() -> None:
    wide = worth(40).model_copy(update={"low": -20, "high": 100})
    assert better(({GUARD: wide}, {GUARD: worth(57, "table")}))[GUARD].low == 57


@pytest.mark.parametrize(("low", "high"), [(-20, 50), (10, 100)], ids=["contradicts the table", "tells the lever"])
def test_measured_interval_stays_where_the_table_says_otherwise_or_no_more(low: int, high: int) -> None:
    here = worth(0).model_copy(update={"low": low, "high": high})
    assert better(({GUARD: here}, {GUARD: worth(57, "table")}))[GUARD] == here


def test_measured_levers_that_add_up_go_before_a_row_of_both() -> None:
    known = {PMU_OFF_UNGUARDED: worth(185), GUARD: worth(26), BOTH: worth(300, "table")}
    found = saved_in(Cell(guard=True, cleared=True), known)
    assert found is not None
    assert (found.low, found.provenance) == (211, "measured")
