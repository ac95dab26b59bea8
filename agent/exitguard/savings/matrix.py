"""The cost matrix, asked for one host: the rows that speak of its kernel, processor and mitigations, and of no others."""

from collections.abc import Sequence

from exitguard.model.host import Cpu, MitigationClass
from exitguard.model.kernel import Body
from exitguard.model.plan import SavingPerExit
from exitguard.policy.schema import Cost, Costs


def saving_per_exit(
    costs: Costs,
    body: Body | None,
    cpu: Cpu | None,
    mitigations: tuple[MitigationClass, ...] | None,
    *,
    saved_by: str,
    guard: bool | None,
) -> tuple[SavingPerExit, ...]:
    """In cycles, or why not, and beside that in instructions where there is a row. Cycles count; instructions rank and check."""
    if body is None:
        return (unquantified("which body the PMU function has on this kernel is not known"),)
    if cpu is None:
        return (unquantified("the processor cannot be seen"),)
    rows = [
        row
        for row in costs.costs
        if row.saved_by == saved_by
        and row.guard is guard
        and row.body is body
        and row.vendor_path == cpu.virtualization
        and _same_cpu(row, cpu)
        and _same_mitigations(row, mitigations)
    ]
    cycles = _interval([row for row in rows if row.cycles_per_exit is not None])
    instructions = _interval([row for row in rows if row.cycles_per_exit is None])
    if cycles is None:
        cycles = unquantified(f"cycles: nothing was measured for {cpu.model_name}, body {body.value} and its mitigations")
    return (cycles,) if instructions is None else (cycles, instructions)


def percent_of_exit(row: Cost) -> float | None:
    """What a row in cycles saves of the whole exit; None where the row does not say what that cost."""
    if row.cycles_per_exit is None or row.exit_cycles is None:
        return None
    return 100 * row.cycles_per_exit / row.exit_cycles


def unquantified(reason: str) -> SavingPerExit:
    """A saving that is not known, which is no zero."""
    return SavingPerExit(provenance="unquantified", reason=reason)


def _same_cpu(row: Cost, cpu: Cpu) -> bool:
    return row.cpu is None or (row.cpu.vendor == cpu.vendor and row.cpu.family == cpu.family and cpu.model in row.cpu.models)


def _same_mitigations(row: Cost, mitigations: tuple[MitigationClass, ...] | None) -> bool:
    """Rows by the kernel's command line (off, auto) are the two ends between which a host's mitigations lie."""
    return isinstance(row.mitigations, str) or (mitigations is not None and set(row.mitigations) == set(mitigations))


def _interval(rows: Sequence[Cost]) -> SavingPerExit | None:
    if not rows:
        return None
    in_cycles = rows[0].cycles_per_exit is not None
    values = [(row.cycles_per_exit if in_cycles else row.instructions_per_exit) or 0 for row in rows]
    return SavingPerExit(
        provenance="table",
        unit="cycles" if in_cycles else "instructions",
        low=min(values),
        high=max(values),
        costs=tuple(sorted(row.id for row in rows)),
        reason="of a CPUID exit, by the cost matrix; the interval is that of its rows, not of every workload",
    )
