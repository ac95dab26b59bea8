"""Levers out of measurements: only of like and like, as wide as the intervals allow, this host before others."""

from datetime import UTC, datetime, timedelta

import pytest

from exitguard.model.host import MitigationClass
from exitguard.model.kernel import Body
from exitguard.savings.measured import MeasuredExit, levers_measured
from exitguard.savings.worth import BOTH, GUARD, PMU_OFF_GUARDED, Cell, Levers

NOW = datetime(2026, 11, 1, tzinfo=UTC)
HEAVY = (MitigationClass.HEAVY_RETURN_TAX,)
STOCK_ON, STOCK_OFF = Cell(guard=False, cleared=False), Cell(guard=False, cleared=True)
GUARDED_ON, GUARDED_OFF = Cell(guard=True, cleared=False), Cell(guard=True, cleared=True)


def measured(cell: Cell, low: float, high: float, **other: object) -> MeasuredExit:
    values: dict[str, object] = {
        "id": f"m-{cell.guard:d}{cell.cleared:d}",
        "host_id": "here",
        "measured_at": NOW,
        "cpu_model_name": "AMD EPYC 7302 16-Core Processor",
        "mitigations": HEAVY,
        "release": "6.1.0-56-amd64",
        "body": Body.A,
    }
    return MeasuredExit(cell=cell, low=low, high=high, **{**values, **other})  # type: ignore[arg-type]


def levers(*exits: MeasuredExit) -> tuple[Levers, Levers]:
    return levers_measured(
        exits,
        host_id="here",
        cpu_model_name="AMD EPYC 7302 16-Core Processor",
        mitigations=HEAVY,
        release="6.1.0-57-amd64",
        body=Body.A,
    )


def test_difference_of_two_intervals_is_the_widest_that_they_allow() -> None:
    here, _ = levers(measured(STOCK_OFF, 2450.2, 2460.0), measured(GUARDED_OFF, 2250.0, 2255.5))
    assert set(here) == {GUARD}
    assert (here[GUARD].low, here[GUARD].high, here[GUARD].provenance) == (194, 210, "measured")
    assert here[GUARD].costs == ("m-01", "m-11")


def test_one_kernel_alone_tells_what_clearing_enable_pmu_saves_on_it() -> None:
    here, _ = levers(measured(GUARDED_ON, 2459, 2460), measured(GUARDED_OFF, 2255, 2256))
    assert set(here) == {PMU_OFF_GUARDED}


def test_before_and_after_the_whole_change_tell_both_levers_together() -> None:
    here, _ = levers(measured(STOCK_ON, 2455, 2456), measured(GUARDED_OFF, 2255, 2256))
    assert set(here) == {BOTH}


@pytest.mark.parametrize(
    "other",
    [
        {"cpu_model_name": "AMD EPYC 7313 16-Core Processor"},
        {"mitigations": (MitigationClass.LOW,)},
        {"release": "6.12.3-amd64"},
        {"body": Body.B},
        {"host_id": "elsewhere"},
    ],
    ids=["processor", "mitigations", "kernel", "body", "host"],
)
def test_what_was_measured_of_something_else_is_no_counterpart(other: dict[str, object]) -> None:
    assert levers(measured(STOCK_OFF, 2450, 2460), measured(GUARDED_OFF, 2250, 2255, **other)) == ({}, {})


def test_newer_measurement_replaces_an_older_one() -> None:
    old = measured(STOCK_OFF, 9000, 9000, measured_at=NOW - timedelta(days=9))
    here, _ = levers(measured(STOCK_OFF, 2450, 2450), old, measured(GUARDED_OFF, 2250, 2250))
    assert here[GUARD].low == 200


def test_other_hosts_of_the_same_kind_are_told_as_elsewhere_and_all_between_them() -> None:
    pairs = [("a", 2450, 2250), ("b", 2500, 2260)]
    exits = [
        measured(cell, total, total, host_id=host)
        for host, *totals in pairs
        for cell, total in zip((STOCK_OFF, GUARDED_OFF), totals, strict=True)
    ]
    here, elsewhere = levers(*exits)
    assert here == {}
    assert (elsewhere[GUARD].low, elsewhere[GUARD].high, elsewhere[GUARD].provenance) == (200, 240, "measured_elsewhere")


def test_noise_may_leave_a_saving_below_zero_and_it_is_told_so() -> None:
    here, _ = levers(measured(STOCK_OFF, 2400, 2500), measured(GUARDED_OFF, 2380, 2480))
    assert (here[GUARD].low, here[GUARD].high) == (-80, 120)
