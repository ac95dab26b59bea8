"""What one exit costs less once a step is in force, by the cost matrix. Pure.

A row speaks of its body, its processor and its mitigations, and of no others. Cycles count, instructions rank and check: each is told
in its own unit, and where no row fits, that is told too. How often a guest exits is another matter, and not in here.
"""

from exitguard.audit.domain import HostJudgement
from exitguard.model.host import Cpu, MitigationClass
from exitguard.model.kernel import KernelState
from exitguard.model.plan import SavingPerExit
from exitguard.policy.schema import Cost, Costs


def saved_by_pmu_off(
    costs: Costs, host: HostJudgement, cpu: Cpu | None, mitigations: tuple[MitigationClass, ...] | None
) -> tuple[SavingPerExit, ...]:
    """Of a guest whose PMU is on and will be off, on this kernel as it is, with a QEMU that tells KVM."""
    state = host.kernel.state
    if state in (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED):
        return (_unquantified(f"the kernel is {state.value}: there is nothing to save on it"),)
    if state is KernelState.UNKNOWN:
        return (_unquantified("whether the running kernel has the guard is not known"),)
    return _by_rows(costs, host, cpu, mitigations, saved_by="pmu_off", guard=state is KernelState.GUARDED)


def saved_by_guard(
    costs: Costs, host: HostJudgement, cpu: Cpu | None, mitigations: tuple[MitigationClass, ...] | None
) -> tuple[SavingPerExit, ...]:
    """Of a guest whose PMU is off in KVM, once the guarded kernel runs."""
    return _by_rows(costs, host, cpu, mitigations, saved_by="guard", guard=None)


def nothing(reason: str) -> tuple[SavingPerExit, ...]:
    """No saving by this step alone, and what else it takes: that is known, so it is a zero and not `unquantified`."""
    return (SavingPerExit(provenance="table", unit="instructions", low=0, high=0, reason=reason),)


def _by_rows(
    costs: Costs,
    host: HostJudgement,
    cpu: Cpu | None,
    mitigations: tuple[MitigationClass, ...] | None,
    *,
    saved_by: str,
    guard: bool | None,
) -> tuple[SavingPerExit, ...]:
    body = host.kernel.body
    if body is None:
        return (_unquantified("which body the PMU function has on this kernel is not known"),)
    if cpu is None:
        return (_unquantified("the processor cannot be seen"),)
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
        cycles = _unquantified(f"cycles: nothing was measured for {cpu.model_name}, body {body.value} and its mitigations")
    return (cycles,) if instructions is None else (cycles, instructions)


def _same_cpu(row: Cost, cpu: Cpu) -> bool:
    return row.cpu is None or (row.cpu.vendor == cpu.vendor and row.cpu.family == cpu.family and cpu.model in row.cpu.models)


def _same_mitigations(row: Cost, mitigations: tuple[MitigationClass, ...] | None) -> bool:
    """Rows by the kernel's command line (off, auto) are the two ends between which a host's mitigations lie."""
    return isinstance(row.mitigations, str) or (mitigations is not None and set(row.mitigations) == set(mitigations))


def _interval(rows: list[Cost]) -> SavingPerExit | None:
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


def _unquantified(reason: str) -> SavingPerExit:
    return SavingPerExit(provenance="unquantified", reason=reason)
