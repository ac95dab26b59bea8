"""What an exit takes in each host of a recording, by exitguard and by the loop in C, and what the cost matrix says of it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cost_recording import Counted, HostRun, Recording

from exitguard.audit.machine_code import machine_code_statement
from exitguard.model.kernel import Body, KernelState
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, LoopResult, Measurement
from exitguard.policy.schema import Cost, Costs

#: How far exitguard may be from the loop in C, of a whole exit.
MOST_APART = 0.01
#: How far what is saved may be from the matrix: the difference of two counts, each of which repeats to about one; and rows are whole.
TOLERANCE_INSTRUCTIONS = 2.5
#: isa of a processor with SVM, and its exit codes for CPUID (<asm/svm.h>: SVM_EXIT_CPUID).
_SVM, _SVM_EXIT_CPUID = 2, 0x72
#: Of `exitguard measure`: how much of an entry warms up, and exits for CPUID in an iteration.
_WARM_UP_SHARE = 8
_COMPARED = (Loop.CPUID, Loop.MSR)


@dataclass(frozen=True)
class Place:
    """One kernel under one set of mitigations."""

    body: Body
    guard: bool
    mitigations: Literal["off", "auto"]


@dataclass(frozen=True)
class Figure:
    """What an exit takes, in instructions; `counted` is what the loop in C says, None where it has no such loop."""

    lineage: str
    place: Place
    loop: Loop
    arm: Arm
    measured: float
    counted: float | None

    @property
    def agrees(self) -> bool:
        """Whether both say the same; true where there is nothing to compare."""
        return self.counted is None or abs(self.measured - self.counted) <= MOST_APART * self.counted


@dataclass(frozen=True)
class Saving:
    """What a change saves of a CPUID exit; `row` None where the cost matrix says nothing of it."""

    saved_by: str
    place: Place
    measured: float
    counted: float
    row: Cost | None

    @property
    def predicted(self) -> int | None:
        return None if self.row is None else self.row.instructions_per_exit

    @property
    def agrees(self) -> bool:
        """Whether matrix and loop in C say what exitguard measured."""
        others = (self.counted, self.measured if self.predicted is None else float(self.predicted))
        return all(abs(self.measured - other) <= TOLERANCE_INSTRUCTIONS for other in others)


@dataclass(frozen=True)
class Accounting:
    """Exits for CPUID: how many were made, and how many the kernel counted."""

    lineage: str
    place: Place
    by: str
    made: int
    counted: int
    dropped: int

    @property
    def agrees(self) -> bool:
        return self.made == self.counted and self.dropped == 0


def place_of(host: HostRun) -> Place:
    """By the machine code of its KVM, never by the name of the variant. Raises ValueError for code that decides nothing."""
    statement = machine_code_statement(host.code)
    if statement.body is None or statement.state not in {KernelState.AFFECTED, KernelState.GUARDED}:
        raise ValueError(f"{host.lineage} {host.variant}: expected affected or guarded, found {statement.state}: {statement.value}")
    return Place(body=statement.body, guard=statement.state is KernelState.GUARDED, mitigations=host.mitigations)


def figures_of(recording: Recording) -> tuple[Figure, ...]:
    """A figure for each host, loop and arm."""
    return tuple(figure for host in recording.hosts for figure in _figures(host))


def savings_of(recording: Recording, costs: Costs) -> tuple[Saving, ...]:
    """All that the matrix could say of these hosts, beside what it says."""
    figures = {(each.place, each.arm): each for each in figures_of(recording) if each.loop is Loop.CPUID}
    contrasts = {place_of(host): _contrast(host) for host in recording.hosts}
    places = dict.fromkeys((place.body, place.mitigations) for place in contrasts)
    return tuple(saving for body, mitigations in places for saving in _savings(figures, contrasts, body, mitigations, costs))


def rows_without_counterpart(savings: Iterable[Saving], costs: Costs) -> tuple[str, ...]:
    """Rows of the matrix that the lab is said to have counted, and did not."""
    compared = {saving.row.id for saving in savings if saving.row is not None}
    return tuple(row.id for row in costs.costs if row.provenance == "lab" and row.id not in compared)


def accounting_of(recording: Recording) -> tuple[Accounting, ...]:
    """Two for each host: while the loop in C ran, and while exitguard measured."""
    return tuple(
        accounting
        for host in recording.hosts
        for accounting in (
            _accounting(host, "the loop in C", host.counted_loop_exits, host.counted_loop),
            _accounting(host, "exitguard measure", exits_made(host.counted_measurement), host.counted_during_measurement),
        )
    )


def exits_made(measurement: Measurement) -> int:
    """How many exits for CPUID a measurement made, by its own document: warm-up, first entries and disturbed rounds are among them."""
    (loop,) = [each for each in measurement.loops if each.loop is Loop.CPUID]
    return _entries(loop) * (loop.iterations + max(1, loop.iterations // _WARM_UP_SHARE)) * loop.exits_per_iteration


def cpuid_exits(counted: Counted) -> int:
    """Of a histogram, the exits for CPUID."""
    return sum(each.hits for each in counted.reasons if (each.isa, each.exit_reason) == (_SVM, _SVM_EXIT_CPUID))


def _entries(loop: LoopResult) -> int:
    """One of each machine whose time counts for nothing, then groups in which each arm is entered twice."""
    return loop.pairs * len(loop.arms) + sum(arm.rounds for arm in loop.arms) + loop.disturbed * 2 * len(loop.arms)


def _figures(host: HostRun) -> Iterable[Figure]:
    place = place_of(host)
    counted: dict[tuple[str, Arm], float] = {(each.program, each.arm): each.ticks_per_exit for each in host.loops}
    for loop in host.measurement.loops:
        for arm in loop.arms:
            yield Figure(
                lineage=host.lineage,
                place=place,
                loop=loop.loop,
                arm=arm.arm,
                measured=arm.ticks_per_exit.median,
                counted=counted[loop.loop.value, arm.arm] if loop.loop in _COMPARED else None,
            )


def _contrast(host: HostRun) -> float:
    """What exitguard itself says that PMU off saves of a CPUID exit."""
    (loop,) = [each for each in host.measurement.loops if each.loop is Loop.CPUID]
    if loop.contrast is None:
        raise ValueError(f"{host.lineage} {host.variant}: expected both arms, found one: the kernel was told of no PMU")
    return loop.contrast.ticks_per_exit.median


def _savings(
    figures: dict[tuple[Place, Arm], Figure],
    contrasts: dict[Place, float],
    body: Body,
    mitigations: Literal["off", "auto"],
    costs: Costs,
) -> Iterable[Saving]:
    stock, guarded = (Place(body=body, guard=guard, mitigations=mitigations) for guard in (False, True))
    changes = (
        ("pmu_off", False, (stock, Arm.AS_CREATED), (stock, Arm.PMU_OFF)),
        ("pmu_off", True, (guarded, Arm.AS_CREATED), (guarded, Arm.PMU_OFF)),
        ("guard", None, (stock, Arm.PMU_OFF), (guarded, Arm.PMU_OFF)),
        ("guard_and_pmu_off", None, (stock, Arm.AS_CREATED), (guarded, Arm.PMU_OFF)),
        ("guard_pmu_on", None, (stock, Arm.AS_CREATED), (guarded, Arm.AS_CREATED)),
    )
    for saved_by, guard, before, after in changes:
        one, other = figures[before], figures[after]
        yield Saving(
            saved_by=saved_by,
            place=after[0],
            measured=contrasts[after[0]] if saved_by == "pmu_off" else one.measured - other.measured,
            counted=(one.counted or 0.0) - (other.counted or 0.0),
            row=_row(costs, saved_by, guard, body, mitigations),
        )


def _row(costs: Costs, saved_by: str, guard: bool | None, body: Body, mitigations: str) -> Cost | None:  # noqa: FBT001 - as in the matrix
    wanted = (saved_by, guard, body, mitigations, "svm")
    rows = [
        row
        for row in costs.costs
        if row.instructions_per_exit is not None and (row.saved_by, row.guard, row.body, row.mitigations, row.vendor_path) == wanted
    ]
    return rows[0] if rows else None


def _accounting(host: HostRun, by: str, made: int, counted: Counted) -> Accounting:
    return Accounting(lineage=host.lineage, place=place_of(host), by=by, made=made, counted=cpuid_exits(counted), dropped=counted.dropped)
