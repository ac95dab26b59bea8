"""What one exit costs less once a step is in force, by the cost matrix (savings/matrix.py). Pure.

Cycles count, instructions rank and check: each is told
in its own unit, and where no row fits, that is told too. How often a guest exits is another matter, and not in here.
"""

from exitguard.audit.domain import HostJudgement
from exitguard.model.host import Cpu, MitigationClass
from exitguard.model.kernel import KernelState
from exitguard.model.plan import SavingPerExit
from exitguard.policy.schema import Costs
from exitguard.savings.matrix import saving_per_exit, unquantified


def saved_by_pmu_off(
    costs: Costs, host: HostJudgement, cpu: Cpu | None, mitigations: tuple[MitigationClass, ...] | None
) -> tuple[SavingPerExit, ...]:
    """Of a guest whose PMU is on and will be off, on this kernel as it is, with a QEMU that tells KVM."""
    state = host.kernel.state
    if state in (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED):
        return (unquantified(f"the kernel is {state.value}: there is nothing to save on it"),)
    if state is KernelState.UNKNOWN:
        return (unquantified("whether the running kernel has the guard is not known"),)
    guarded = state is KernelState.GUARDED
    return saving_per_exit(costs, host.kernel.body, cpu, mitigations, saved_by="pmu_off", guard=guarded)


def saved_by_guard(
    costs: Costs, host: HostJudgement, cpu: Cpu | None, mitigations: tuple[MitigationClass, ...] | None
) -> tuple[SavingPerExit, ...]:
    """Of a guest whose PMU is off in KVM, once the guarded kernel runs."""
    return saving_per_exit(costs, host.kernel.body, cpu, mitigations, saved_by="guard", guard=None)


def nothing(reason: str) -> tuple[SavingPerExit, ...]:
    """No saving by this step alone, and what else it takes: that is known, so it is a zero and not `unquantified`."""
    return (SavingPerExit(provenance="table", unit="instructions", low=0, high=0, reason=reason),)
