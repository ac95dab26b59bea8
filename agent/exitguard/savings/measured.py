"""Levers out of measured exits: what one exit cost with and without the guard, with enable_pmu cleared and set.

Totals are compared only where nothing else differs: one host, one processor with one microcode, the same mitigations and body, kernels
of one series. The difference of two intervals is the widest that they allow. What this host measured goes before what another did.

Two boots of one kernel may differ by per cents of an exit, which no interval of one boot shows. So enable_pmu is compared within a boot,
and the guard, which takes two kernels and hence two boots, only over several boots of each: as wide as they lie apart.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import ceil, floor
from typing import Literal

from exitguard.model.host import Cpu, MitigationClass, Mitigations
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


#: Of each kernel, before the guard's worth is told by them.
LEAST_BOOTS = 2


@dataclass(frozen=True)
class Kind:
    """What has to be the same of two exits whose difference is a saving, and of hosts that serve each other."""

    cpu_model_name: str
    #: Whether the machine is itself a guest: each of its exits then includes what the hypervisor below does.
    nested: bool
    mitigations: frozenset[MitigationClass]
    #: `6.1` of `6.1.0-56-amd64`: what of a kernel's release says whose code it is.
    series: str
    body: Body


def kind_of(cpu: Cpu, mitigations: Mitigations, release: str, body: Body) -> Kind:
    """The kind of exits that a host with these makes."""
    return Kind(
        cpu_model_name=cpu.model_name,
        nested=cpu.hypervisor,
        mitigations=frozenset(mitigations.classes),
        series=".".join(release.split(".")[:2]),
        body=body,
    )


@dataclass(frozen=True)
class MeasuredExit:
    """What one CPUID exit cost in one cell on one host in one boot, in cycles."""

    #: Names the measurement, for whoever follows a saved cycle back.
    id: str
    host_id: str
    boot_id: str
    microcode: str
    measured_at: datetime
    kind: Kind
    cell: Cell
    low: float
    high: float


#: A kernel that was decided: its state, and its body where it has one.
Decided = tuple[KernelState, Body | None]


def exits_of(measurement: Measurement, builds: Mapping[str, Decided]) -> tuple[MeasuredExit, ...]:
    """The CPUID exits of a measurement by the cells that they were made in; none where something of it is not known.

    `builds` has what is decided of kernels, by KVM's build-id: a measurement does not say whether its kernel had the guard. Ticks of
    the TSC are no cycles; a measurement that could not read the processor's own counters gives nothing here.
    """
    state, body = builds.get(measurement.kvm_build_id.value or "", (KernelState.UNKNOWN, None))
    guard = {KernelState.GUARDED: True, KernelState.AFFECTED: False}.get(state)
    cpu, mitigations, release = measurement.cpu.value, measurement.mitigations.value, measurement.kernel_release.value
    boot_id, enable_pmu = measurement.boot_id.value, measurement.enable_pmu.value
    if guard is None or body is None or cpu is None or mitigations is None or release is None or boot_id is None or enable_pmu is None:
        return ()
    patches = measurement.live_patches.value
    if patches is None or any(patch.replaces_skip and (patch.enabled or patch.transition) for patch in patches):
        return ()  # what ran may be other code than that of the build-id
    return tuple(
        MeasuredExit(
            id=f"{measurement.host_id} {format_rfc3339(measurement.observed_at)} {arm.arm.value}",
            host_id=measurement.host_id,
            boot_id=boot_id,
            microcode=cpu.microcode,
            measured_at=measurement.observed_at,
            kind=kind_of(cpu, mitigations, release, body),
            cell=Cell(guard=guard, cleared=arm.arm is Arm.PMU_OFF or not enable_pmu),
            low=arm.cycles_per_exit.low,
            high=arm.cycles_per_exit.high,
        )
        for loop in measurement.loops
        if loop.loop is Loop.CPUID and measurement.refused is None
        for arm in loop.arms
        if arm.cycles_per_exit is not None
    )


#: By boot, the newest of a cell.
_Boots = dict[str, MeasuredExit]


def levers_measured(exits: Iterable[MeasuredExit], *, host_id: str, kind: Kind) -> tuple[Levers, Levers]:
    """The levers that this host measured, and those that others of the same processor, mitigations and kernel did."""
    hosts: dict[str, dict[str, dict[Cell, _Boots]]] = {}
    for each in sorted(exits, key=lambda one: one.measured_at):
        if each.kind == kind:
            microcodes = hosts.setdefault(each.host_id, {})
            cells = microcodes.pop(each.microcode, {})
            microcodes[each.microcode] = cells  # the newest comes last
            cells.setdefault(each.cell, {})[each.boot_id] = each
    here = _levers_of_host(hosts.pop(host_id, {}), "measured")
    elsewhere: dict[Lever, Worth] = {}
    for other in sorted(hosts):
        for lever, worth in _levers_of_host(hosts[other], "measured_elsewhere").items():
            known = elsewhere.get(lever)
            elsewhere[lever] = worth if known is None else _hull(known, worth)
    return here, elsewhere


def _levers_of_host(
    microcodes: Mapping[str, Mapping[Cell, _Boots]], provenance: Literal["measured", "measured_elsewhere"]
) -> dict[Lever, Worth]:
    """Of each lever what the newest microcode says that it was measured with before and after."""
    found: dict[Lever, Worth] = {}
    for cells in reversed(list(microcodes.values())):
        for lever, (before, after) in _FROM_TO.items():
            worth = _worth(cells.get(before, {}), cells.get(after, {}), provenance, one_boot=before.guard == after.guard)
            if worth is not None:
                found.setdefault(lever, worth)
    return found


def _worth(before: _Boots, after: _Boots, provenance: Literal["measured", "measured_elsewhere"], *, one_boot: bool) -> Worth | None:
    if one_boot:
        pairs = [(one, after[boot]) for boot, one in before.items() if boot in after]
    elif min(len(before), len(after)) >= LEAST_BOOTS:
        pairs = [(one, other) for one in before.values() for other in after.values()]
    else:
        return None
    if not pairs:
        return None
    return Worth(
        provenance=provenance,
        low=floor(min(one.low - other.high for one, other in pairs)),
        high=ceil(max(one.high - other.low for one, other in pairs)),
        costs=tuple(dict.fromkeys(each.id for pair in pairs for each in pair)),
    )


def _hull(one: Worth, other: Worth) -> Worth:
    """Hosts that are alike and measured otherwise: all that lies between."""
    return one.model_copy(
        update={"low": min(one.low, other.low), "high": max(one.high, other.high), "costs": tuple(dict.fromkeys(one.costs + other.costs))}
    )
