"""Levers out of measured exits: what one exit cost with and without the guard, with enable_pmu cleared and set.

Totals are compared only where nothing else differs: one host, one processor, the same mitigations and body, kernels of one series. The
difference of two intervals is the widest that they allow. What this host measured goes before what another did.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from exitguard.model.host import MitigationClass
from exitguard.model.kernel import Body, KernelState
from exitguard.model.ledger import Worth
from exitguard.model.measurement import Arm, Loop, Measurement
from exitguard.model.time import format_rfc3339
from exitguard.savings.worth import BOTH, GUARD, GUARD_WITH_PMU_ON, PMU_OFF_GUARDED, PMU_OFF_UNGUARDED, Cell, Lever, Levers

_FROM_TO: dict[Lever, tuple[Cell, Cell]] = {
    GUARD: (Cell(guard=False, cleared=True), Cell(guard=True, cleared=True)),
    BOTH: (Cell(guard=False, cleared=False), Cell(guard=True, cleared=True)),
    GUARD_WITH_PMU_ON: (Cell(guard=False, cleared=False), Cell(guard=True, cleared=False)),
    PMU_OFF_GUARDED: (Cell(guard=True, cleared=False), Cell(guard=True, cleared=True)),
    PMU_OFF_UNGUARDED: (Cell(guard=False, cleared=False), Cell(guard=False, cleared=True)),
}


@dataclass(frozen=True)
class MeasuredExit:
    """What one CPUID exit cost in one cell on one host, in cycles."""

    #: Names the measurement, for whoever follows a saved cycle back.
    id: str
    host_id: str
    measured_at: datetime
    cpu_model_name: str
    mitigations: tuple[MitigationClass, ...]
    release: str
    body: Body
    cell: Cell
    low: float
    high: float

    @property
    def kind(self) -> tuple[str, str, tuple[MitigationClass, ...], str, Body]:
        """What has to be the same of two exits whose difference is a saving."""
        return self.host_id, self.cpu_model_name, tuple(sorted(self.mitigations)), series_of(self.release), self.body


#: A kernel that was decided: its state, and its body where it has one.
Decided = tuple[KernelState, Body | None]


def exits_of(measurement: Measurement, builds: Mapping[str, Decided]) -> tuple[MeasuredExit, ...]:
    """The CPUID exits of a measurement by the cells that they were made in; none where something of it is not known.

    `builds` has what is decided of kernels, by KVM's build-id: a measurement does not say whether its kernel had the guard. Ticks of
    the TSC are no cycles; a measurement that could not read the processor's own counters gives nothing here.
    """
    state, body = builds.get(measurement.kvm_build_id.value or "", (KernelState.UNKNOWN, None))
    guard = {KernelState.GUARDED: True, KernelState.AFFECTED: False}.get(state)
    known = (measurement.cpu.value, measurement.mitigations.value, measurement.kernel_release.value, measurement.enable_pmu.value)
    cpu, mitigations, release, enable_pmu = known
    if guard is None or body is None or cpu is None or mitigations is None or release is None or enable_pmu is None:
        return ()
    return tuple(
        MeasuredExit(
            id=f"{measurement.host_id} {format_rfc3339(measurement.observed_at)} {arm.arm.value}",
            host_id=measurement.host_id,
            measured_at=measurement.observed_at,
            cpu_model_name=cpu.model_name,
            mitigations=mitigations.classes,
            release=release,
            body=body,
            cell=Cell(guard=guard, cleared=arm.arm is Arm.PMU_OFF or not enable_pmu),
            low=arm.cycles_per_exit.low,
            high=arm.cycles_per_exit.high,
        )
        for loop in measurement.loops
        if loop.loop is Loop.CPUID and measurement.refused is None
        for arm in loop.arms
        if arm.cycles_per_exit is not None
    )


def series_of(release: str) -> str:
    """`6.1` of `6.1.0-56-amd64`: what of a kernel's release says whose code it is."""
    return ".".join(release.split(".")[:2])


def levers_measured(
    exits: Iterable[MeasuredExit],
    *,
    host_id: str,
    cpu_model_name: str,
    mitigations: tuple[MitigationClass, ...],
    release: str,
    body: Body,
) -> tuple[Levers, Levers]:
    """The levers that this host measured, and those that others of the same processor, mitigations and kernel did."""
    wanted = (cpu_model_name, tuple(sorted(mitigations)), series_of(release), body)
    newest: dict[str, dict[Cell, MeasuredExit]] = {}
    for each in sorted(exits, key=lambda one: one.measured_at):
        if each.kind[1:] == wanted:
            newest.setdefault(each.host_id, {})[each.cell] = each
    here = _levers(newest.pop(host_id, {}), "measured")
    elsewhere: dict[Lever, Worth] = {}
    for other in sorted(newest):
        for lever, worth in _levers(newest[other], "measured_elsewhere").items():
            known = elsewhere.get(lever)
            elsewhere[lever] = worth if known is None else _hull(known, worth)
    return here, elsewhere


def _levers(cells: dict[Cell, MeasuredExit], provenance: Literal["measured", "measured_elsewhere"]) -> dict[Lever, Worth]:
    found = {}
    for lever, (before, after) in _FROM_TO.items():
        if before in cells and after in cells:
            one, other = cells[before], cells[after]
            found[lever] = Worth(
                provenance=provenance, low=_down(one.low - other.high), high=_up(one.high - other.low), costs=(one.id, other.id)
            )
    return found


def _hull(one: Worth, other: Worth) -> Worth:
    """Hosts that are alike and measured otherwise: all that lies between."""
    return one.model_copy(
        update={"low": min(one.low, other.low), "high": max(one.high, other.high), "costs": tuple(dict.fromkeys(one.costs + other.costs))}
    )


def _down(cycles: float) -> int:
    return int(cycles // 1)


def _up(cycles: float) -> int:
    return -int(-cycles // 1)
