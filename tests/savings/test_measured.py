"""Levers out of measurements: only of like and like, as wide as the intervals allow, this host before others."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from account_builders import REPORT, SHIPPED

from exitguard.model.host import LivePatch, MitigationClass
from exitguard.model.kernel import Body, KernelState
from exitguard.model.measurement import Arm, ArmResult, Estimate, Loop, LoopResult, Measurement, Refused
from exitguard.model.record import seen, unseen
from exitguard.policy.schema import BuildVerdict, Provenance
from exitguard.savings.ledger import levers_of
from exitguard.savings.measured import Decided, Kind, MeasuredExit, exits_of, levers_measured
from exitguard.savings.worth import BOTH, GUARD, PMU_OFF_GUARDED, Cell, Levers

NOW = datetime(2026, 11, 1, tzinfo=UTC)
HEAVY = (MitigationClass.HEAVY_RETURN_TAX,)
STOCK_ON, STOCK_OFF = Cell(guard=False, cleared=False), Cell(guard=False, cleared=True)
GUARDED_ON, GUARDED_OFF = Cell(guard=True, cleared=False), Cell(guard=True, cleared=True)
KIND = Kind(cpu_model_name="AMD EPYC 7302 16-Core Processor", nested=False, mitigations=frozenset(HEAVY), series="6.1", body=Body.A)


def measured(cell: Cell, low: float, high: float, boot: int = 1, **other: object) -> MeasuredExit:
    """One exit of a kernel with or without the guard: they have boots of their own."""
    values: dict[str, object] = {
        "id": f"m-{cell.guard:d}{cell.cleared:d}-{boot}",
        "host_id": "here",
        "boot_id": f"{'guarded' if cell.guard else 'stock'}-{boot}",
        "microcode": "0x830107a",
        "measured_at": NOW + timedelta(hours=boot),
        "kind": KIND,
    }
    return MeasuredExit(cell=cell, low=low, high=high, **{**values, **other})  # type: ignore[arg-type]


def twice(cell: Cell, low: float, high: float, **other: object) -> tuple[MeasuredExit, MeasuredExit]:
    """The same in two boots."""
    return measured(cell, low, high, 1, **other), measured(cell, low, high, 2, **other)


def levers(*exits: MeasuredExit) -> tuple[Levers, Levers]:
    return levers_measured(exits, host_id="here", kind=KIND)


def test_difference_of_two_intervals_is_the_widest_that_they_allow() -> None:
    here, _ = levers(*twice(STOCK_OFF, 2450.2, 2460.0), *twice(GUARDED_OFF, 2250.0, 2255.5))
    assert set(here) == {GUARD}
    assert (here[GUARD].low, here[GUARD].high, here[GUARD].provenance) == (194, 210, "measured")
    assert set(here[GUARD].costs) == {"m-01-1", "m-01-2", "m-11-1", "m-11-2"}


def test_guard_takes_several_boots_of_each_kernel_and_is_as_wide_as_they_lie_apart() -> None:
    stock = (measured(STOCK_OFF, 2450, 2452, 1), measured(STOCK_OFF, 2490, 2492, 2))
    assert levers(*stock, measured(GUARDED_OFF, 2250, 2252)) == ({}, {})
    here, _ = levers(*stock, measured(GUARDED_OFF, 2250, 2252, 1), measured(GUARDED_OFF, 2230, 2232, 2))
    assert (here[GUARD].low, here[GUARD].high) == (198, 262)


def test_one_boot_alone_tells_what_clearing_enable_pmu_saves_on_its_kernel() -> None:
    here, _ = levers(measured(GUARDED_ON, 2459, 2460), measured(GUARDED_OFF, 2255, 2256))
    assert set(here) == {PMU_OFF_GUARDED}


def test_enable_pmu_is_never_compared_between_boots() -> None:
    assert levers(measured(GUARDED_ON, 2459, 2460, 1), measured(GUARDED_OFF, 2255, 2256, 2)) == ({}, {})


def test_boots_that_differ_leave_all_that_lies_between() -> None:
    boots = [(1, 2459, 2255), (2, 2480, 2260)]
    here, _ = levers(
        *(measured(cell, total, total, boot) for boot, on, off in boots for cell, total in ((GUARDED_ON, on), (GUARDED_OFF, off)))
    )
    assert (here[PMU_OFF_GUARDED].low, here[PMU_OFF_GUARDED].high) == (204, 220)


def test_before_and_after_the_whole_change_tell_both_levers_together() -> None:
    here, _ = levers(*twice(STOCK_ON, 2455, 2456), *twice(GUARDED_OFF, 2255, 2256))
    assert set(here) == {BOTH}


@pytest.mark.parametrize(
    "other",
    [
        {"kind": replace(KIND, cpu_model_name="AMD EPYC 7313 16-Core Processor")},
        {"kind": replace(KIND, nested=True)},
        {"kind": replace(KIND, mitigations=frozenset({MitigationClass.LOW}))},
        {"kind": replace(KIND, series="6.12")},
        {"kind": replace(KIND, body=Body.B)},
        {"microcode": "0x830107b"},
        {"host_id": "elsewhere"},
    ],
    ids=["processor", "nested", "mitigations", "kernel", "body", "microcode", "host"],
)
def test_what_was_measured_of_something_else_is_no_counterpart(other: dict[str, object]) -> None:
    assert levers(*twice(STOCK_OFF, 2450, 2460), *twice(GUARDED_OFF, 2250, 2255, **other)) == ({}, {})


def test_newest_microcode_that_was_measured_before_and_after_counts() -> None:
    old = (*twice(STOCK_OFF, 9000, 9000, microcode="old"), *twice(GUARDED_OFF, 2000, 2000, microcode="old"))
    new = [replace(each, measured_at=NOW + timedelta(days=1)) for each in (*twice(STOCK_OFF, 2450, 2450), *twice(GUARDED_OFF, 2250, 2250))]
    assert levers(*new, *old)[0][GUARD].low == 200
    assert levers(*old, *new[:2])[0][GUARD].low == 7000


def test_newer_measurement_replaces_an_older_one_of_the_same_boot() -> None:
    old = measured(STOCK_OFF, 9000, 9000, measured_at=NOW - timedelta(days=9))
    here, _ = levers(*twice(STOCK_OFF, 2450, 2450), old, *twice(GUARDED_OFF, 2250, 2250))
    assert here[GUARD].high == 200


def test_other_hosts_of_the_same_kind_are_told_as_elsewhere_and_all_between_them() -> None:
    pairs = [("a", 2450, 2250), ("b", 2500, 2260)]
    exits = [
        each
        for host, *totals in pairs
        for cell, total in zip((STOCK_OFF, GUARDED_OFF), totals, strict=True)
        for each in twice(cell, total, total, host_id=host)
    ]
    here, elsewhere = levers(*exits)
    assert here == {}
    assert (elsewhere[GUARD].low, elsewhere[GUARD].high, elsewhere[GUARD].provenance) == (200, 240, "measured_elsewhere")


def test_noise_may_leave_a_saving_below_zero_and_it_is_told_so() -> None:
    here, _ = levers(*twice(STOCK_OFF, 2400, 2500), *twice(GUARDED_OFF, 2380, 2480))
    assert (here[GUARD].low, here[GUARD].high) == (-80, 120)


def measurement(build_id: str, *, enable_pmu: bool, cycles: dict[Arm, float], boot_id: str = "x") -> Measurement:
    """A whole measurement of CPUID exits: ticks in each arm, and cycles where given."""

    def estimate(value: float) -> Estimate:
        return Estimate(median=value, low=value - 1, high=value + 1)

    arms = tuple(
        ArmResult(
            arm=arm,
            rounds=9,
            ticks_per_exit=estimate(1500),
            cycles_per_exit=estimate(value) if value else None,
            noise=0.01,
            spread=0.02,
            drift=0.001,
            ticks_per_exit_by_round=(),
        )
        for arm, value in cycles.items()
    )
    return Measurement(
        observed_at=NOW,
        host_id=REPORT.host.id,
        host_id_provisional=False,
        kernel_release=seen("uname", REPORT.host.kernel.release or ""),
        kvm_build_id=seen("notes", build_id),
        boot_id=seen("boot_id", boot_id),
        cpu=REPORT.host.cpu,
        mitigations=REPORT.host.mitigations,
        enable_pmu=seen("parameters", enable_pmu),
        live_patches=seen("livepatch", ()),
        measured_on=1,
        tsc_kilohertz=2_000_000,
        seconds=9.0,
        loops=(LoopResult(loop=Loop.CPUID, iterations=1000, exits_per_iteration=1, pairs=5, disturbed=0, arms=arms, contrast=None),),
        checks=(),
        caveats=(),
        refused=None,
    )


STOCK_BUILD, GUARDED_BUILD = "aa" * 20, "bb" * 20
DECIDED: dict[str, Decided] = {STOCK_BUILD: (KernelState.AFFECTED, Body.A), GUARDED_BUILD: (KernelState.GUARDED, Body.A)}


def test_arms_are_the_cells_that_they_were_made_in() -> None:
    both = measurement(GUARDED_BUILD, enable_pmu=True, cycles={Arm.AS_CREATED: 2459, Arm.PMU_OFF: 2255})
    assert [each.cell for each in exits_of(both, DECIDED)] == [GUARDED_ON, GUARDED_OFF]
    everywhere_off = measurement(STOCK_BUILD, enable_pmu=False, cycles={Arm.AS_CREATED: 2455})
    assert [each.cell for each in exits_of(everywhere_off, DECIDED)] == [STOCK_OFF]


def test_ticks_of_the_tsc_are_never_taken_for_cycles() -> None:
    assert exits_of(measurement(STOCK_BUILD, enable_pmu=True, cycles={Arm.AS_CREATED: 0}), DECIDED) == ()


def test_kernel_that_nobody_decided_gives_nothing() -> None:
    assert exits_of(measurement("cc" * 20, enable_pmu=True, cycles={Arm.AS_CREATED: 2455}), DECIDED) == ()


def test_refused_measurement_gives_nothing() -> None:
    refused = measurement(STOCK_BUILD, enable_pmu=True, cycles={Arm.AS_CREATED: 2455})
    refused = refused.model_copy(update={"refused": Refused(reason="noise", next_step="again")})
    assert exits_of(refused, DECIDED) == ()


@pytest.mark.parametrize(
    ("patch", "stands"),
    [({"replaces_skip": True}, False), ({"replaces_skip": True, "enabled": False, "transition": True}, False), ({}, True)],
    ids=["enabled", "on its way out", "of something else"],
)
def test_live_patch_of_the_skip_is_other_code_than_that_of_the_build_id(patch: dict[str, bool], stands: bool) -> None:  # noqa: FBT001 - a parameter of the test
    live = LivePatch(name="p", **{"enabled": True, "transition": False, "replaces_skip": False, **patch})
    found = measurement(GUARDED_BUILD, enable_pmu=True, cycles={Arm.AS_CREATED: 2459})
    assert bool(exits_of(found.model_copy(update={"live_patches": seen("livepatch", (live,))}), DECIDED)) is stands


@pytest.mark.parametrize("unknown", ["live_patches", "boot_id", "cpu", "mitigations", "enable_pmu", "kvm_build_id", "kernel_release"])
def test_measurement_of_which_something_is_not_known_gives_nothing(unknown: str) -> None:
    found = measurement(GUARDED_BUILD, enable_pmu=True, cycles={Arm.AS_CREATED: 2459})
    assert exits_of(found, DECIDED)
    assert exits_of(found.model_copy(update={unknown: unseen("a test", "hidden")}), DECIDED) == ()


def test_before_and_after_on_this_host_go_before_the_table() -> None:
    """The kernel of before is known by its build-id, as `kernel inspect --save` keeps it; that of now by the audit."""
    kernel = REPORT.host.kernel.model_copy(update={"state": KernelState.GUARDED, "body": Body.A})
    kvm = REPORT.host.kvm.model_copy(update={"build_id": seen("notes", GUARDED_BUILD)})
    report = REPORT.model_copy(update={"host": REPORT.host.model_copy(update={"kernel": kernel, "kvm": kvm})})
    before = BuildVerdict(
        build_id=STOCK_BUILD,
        release="6.1.0-56-amd64",
        state=KernelState.AFFECTED,
        body=Body.A,
        provenance=Provenance.LAB,
        note="decided in a test",
    )
    rulebook = SHIPPED.model_copy(update={"kernels": SHIPPED.kernels.model_copy(update={"builds": (before,)})})
    found = levers_of(
        report,
        rulebook,
        [
            measurement(build, enable_pmu=True, cycles=dict(zip(Arm, cycles, strict=True)), boot_id=f"{build[:2]}{boot}")
            for build, *cycles in ((STOCK_BUILD, 2455, 2455), (GUARDED_BUILD, 2459, 2255))
            for boot in range(2)
        ],
    )
    assert {lever.saved_by: (worth.low, worth.high, worth.provenance) for lever, worth in found.items() if lever in (GUARD, BOTH)} == {
        "guard": (198, 202, "measured"),
        "guard_and_pmu_off": (198, 202, "measured"),
    }
