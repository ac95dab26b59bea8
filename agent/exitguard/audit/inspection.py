"""Kernels judged by their machine code alone, without the rest of a host: for `exitguard kernel inspect`. Pure."""

from datetime import datetime

from exitguard.audit.machine_code import machine_code_statement
from exitguard.model.documents import InspectedKernel, KernelInspection
from exitguard.model.evidence import Evidence
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN
from exitguard.model.kernel import KernelState
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed

_LIVE = "exitguard kernel inspect --running --live, as root"


def judge_code(observed: Observed[MachineCode], release: str | None, observed_at: datetime) -> InspectedKernel:
    """What one reading settles, `unknown` where there is none. `release` is where the image itself names none."""
    reading = observed.value
    if reading is None:
        reason = observed.reason or ""
        return InspectedKernel(
            path=observed.source,
            release=release,
            build_id=None,
            state=KernelState.UNKNOWN,
            body=None,
            reason=reason,
            unlock=observed.unlock,
            evidence=(Evidence(source=observed.source, value=f"not seen: {reason}", observed_at=observed_at),),
            reading=None,
        )
    statement = machine_code_statement(reading)
    evidence = Evidence(source=f"{statement.method.value}: {statement.source}", value=statement.value, observed_at=observed_at)
    return InspectedKernel(
        path=reading.path,
        release=reading.release or release,
        build_id=reading.build_id,
        state=statement.state or KernelState.UNKNOWN,
        body=statement.body,
        reason=statement.value,
        evidence=(evidence,),
        reading=reading,
    )


def judge_patched(original: InspectedKernel, why: str, observed_at: datetime) -> InspectedKernel:
    """The kernel that runs, whose file is `original`, where that file says nothing about what runs, and why not."""
    evidence = Evidence(source="/sys/kernel/livepatch", value=why, observed_at=observed_at)
    return original.model_copy(
        update={
            "state": KernelState.UNKNOWN,
            "body": None,
            "reason": why,
            "unlock": _LIVE,
            "evidence": (evidence, *original.evidence),
            "reading": None,
        }
    )


def inspection_exit_code(inspection: KernelInspection) -> int:
    """2 where any kernel is affected, else 3 where any is unknown, else 0."""
    states = {kernel.state for kernel in inspection.kernels}
    if KernelState.AFFECTED in states:
        return EXIT_NOT_COMPLIANT
    return EXIT_UNKNOWN if KernelState.UNKNOWN in states else EXIT_COMPLIANT
