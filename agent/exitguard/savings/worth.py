"""What an exit is worth in each cell of {guard, no guard} x {enable_pmu cleared, set}, against the cell without either.

Two levers save separately, and how much depends on the kernel's body. The matrix has some of their combinations, and a host may have
measured others; a combination is the sum of its levers where it stands nowhere itself. A part that stands nowhere at all makes the rest
`at least`: to clear enable_pmu never costs an exit anything on a kernel without the guard, since it removes work or leaves it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from exitguard.model.host import Cpu, MitigationClass
from exitguard.model.kernel import Body
from exitguard.model.ledger import Worth
from exitguard.model.savings import LeverInstructions
from exitguard.policy.schema import Costs
from exitguard.savings.matrix import saving_per_exit


class Lever(NamedTuple):
    """A change: `saved_by` as in policy/schema.py, and for `pmu_off` alone whether the kernel has the guard."""

    saved_by: str
    guard: bool | None


GUARD = Lever("guard", None)
BOTH = Lever("guard_and_pmu_off", None)
GUARD_WITH_PMU_ON = Lever("guard_pmu_on", None)
PMU_OFF_GUARDED = Lever("pmu_off", guard=True)
PMU_OFF_UNGUARDED = Lever("pmu_off", guard=False)
LEVERS = (GUARD, BOTH, GUARD_WITH_PMU_ON, PMU_OFF_GUARDED, PMU_OFF_UNGUARDED)
#: By lever, what it saves of an exit.
Levers = Mapping[Lever, Worth]
NOTHING = Worth(provenance="table", low=0, high=0, costs=())


@dataclass(frozen=True)
class Cell:
    """How a run stands: whether the kernel has the guard, and whether KVM has cleared enable_pmu for it."""

    guard: bool
    cleared: bool


def levers_of_table(costs: Costs, body: Body | None, cpu: Cpu | None, mitigations: tuple[MitigationClass, ...] | None) -> Levers:
    """The levers that the cost matrix has for such a host, in cycles."""
    found: dict[Lever, Worth] = {}
    for lever in LEVERS:
        cycles = saving_per_exit(costs, body, cpu, mitigations, saved_by=lever.saved_by, guard=lever.guard)[0]
        if cycles.unit == "cycles" and cycles.low is not None and cycles.high is not None:
            found[lever] = Worth(provenance="table", low=cycles.low, high=cycles.high, costs=cycles.costs)
    return found


def instructions_of_table(
    costs: Costs, body: Body | None, cpu: Cpu | None, mitigations: tuple[MitigationClass, ...] | None
) -> tuple[LeverInstructions, ...]:
    """The levers that the cost matrix has for such a host in instructions."""
    return tuple(
        LeverInstructions(saved_by=lever.saved_by, guard=lever.guard, low=each.low, high=each.high, costs=each.costs)
        for lever in LEVERS
        for each in saving_per_exit(costs, body, cpu, mitigations, saved_by=lever.saved_by, guard=lever.guard)
        if each.unit == "instructions" and each.low is not None and each.high is not None
    )


def saved_in(cell: Cell, levers: Levers) -> Worth | None:
    """What an exit costs less than without the guard and with enable_pmu set; None where that is in no lever."""
    return change(Cell(guard=False, cleared=False), cell, levers)


def available_in(cell: Cell, levers: Levers) -> Worth | None:
    """What an exit would cost less than now with the guard and enable_pmu cleared; None where that is in no lever."""
    return change(cell, Cell(guard=True, cleared=True), levers)


def change(before: Cell, after: Cell, levers: Levers) -> Worth | None:
    """What an exit costs less in `after` than in `before`: one lever, two after another, or the way back; None where that is in none."""
    if before == after:
        return NOTHING
    if (before.guard, before.cleared) > (after.guard, after.cleared):
        return _negated(change(after, before, levers))
    if before.guard == after.guard:
        return levers.get(PMU_OFF_GUARDED if before.guard else PMU_OFF_UNGUARDED)
    if before.cleared == after.cleared:
        return levers.get(GUARD if before.cleared else GUARD_WITH_PMU_ON)
    if before.cleared:  # the guard came, and the PMU was switched on again
        return _sum(levers.get(GUARD), _negated(levers.get(PMU_OFF_GUARDED)))
    whole = (
        levers.get(BOTH),
        _sum(levers.get(PMU_OFF_UNGUARDED), levers.get(GUARD)),
        _sum(levers.get(GUARD_WITH_PMU_ON), levers.get(PMU_OFF_GUARDED)),
    )
    # What was measured goes before the table here too; of the same provenance the first, which adds up least.
    return min((each for each in whole if each is not None), key=_weakness, default=_at_least(levers.get(GUARD)))


def _negated(worth: Worth | None) -> Worth | None:
    """The way back; of what is known from below only, nothing is known."""
    if worth is None or worth.at_least:
        return None
    return worth.model_copy(update={"low": -worth.high, "high": -worth.low})


def _weakness(worth: Worth) -> int:
    return ("measured", "measured_elsewhere", "table").index(worth.provenance)


def _sum(one: Worth | None, other: Worth | None) -> Worth | None:
    if one is None or other is None:
        return None
    return Worth(
        provenance=max(one, other, key=_weakness).provenance,
        low=one.low + other.low,
        high=one.high + other.high,
        at_least=one.at_least or other.at_least,
        costs=(*one.costs, *other.costs),
    )


def _at_least(worth: Worth | None) -> Worth | None:
    return None if worth is None else worth.model_copy(update={"at_least": True})


def better(levers: Iterable[Levers]) -> Levers:
    """Of several sources the first that has a lever: give what was measured here first, the table last.

    An interval that holds zero does not tell the lever from nothing: it gives way to a later source that does, and that agrees with it.
    """
    found: dict[Lever, Worth] = {}
    for each in levers:
        for lever, worth in each.items():
            if lever not in found or _tells_more(worth, found[lever]):
                found[lever] = worth
    return found


def _tells_more(worth: Worth, known: Worth) -> bool:
    return known.low <= 0 <= known.high and (worth.low > 0 or worth.high < 0) and known.low <= worth.low and worth.high <= known.high
