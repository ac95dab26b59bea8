"""What one reading of machine code settles about a kernel, and why where it settles nothing. Pure.

A state other than `unknown` is concluded only from premises that prove it, whatever else is not known. Whatever contradicts
itself, or is of a shape that is not recognised, is `unknown`.
"""

from exitguard.model.documents import DecidingCode
from exitguard.model.kernel import Body, EvidenceMethod, KernelState, KernelStatement
from exitguard.model.machine_code import Callee, MachineCode

#: The function that every skipped instruction runs through.
ANCHOR = "kvm_skip_emulated_instruction"
_MOST_CONDITIONS = 3
#: Names in it are the file's own, and may be as long as a file.
_LONGEST_VALUE_CHARACTERS = 600
#: A function has a dozen at most; this is for one that is not as expected.
_MOST_DECIDING = 40
_WHAT_IT_DOES = {Body.A: "walks every counter", Body.B: "builds a bitmap of the counters and walks it"}


def machine_code_statement(reading: MachineCode) -> KernelStatement:
    """The state that the instructions prove, `unknown` where they prove none, and one line that says why."""
    state, value = _settle(reading)
    body = reading.callee.body if reading.callee is not None and state in (KernelState.AFFECTED, KernelState.GUARDED) else None
    return KernelStatement(
        method=EvidenceMethod.MACHINE_CODE,
        state=state,
        excludes=_excluded(reading) if state is KernelState.UNKNOWN else (),
        body=body,
        source=reading.path,
        value=_one_line(value),
    )


def deciding_code(reading: MachineCode | None) -> DecidingCode | None:
    """Of a reading what a person checks: the instructions that its notes are about."""
    instructions = tuple(each for each in reading.listing if each.note)[:_MOST_DECIDING] if reading is not None else ()
    return DecidingCode(path=reading.path, instructions=instructions) if reading is not None and instructions else None


def _settle(reading: MachineCode) -> tuple[KernelState, str]:
    callee = reading.callee
    if is_not_affected(reading):
        value = f"{ANCHOR} makes no PMU call, and neither kvm_pmu_trigger_event nor kvm_pmu_instruction_retired is in the image"
        return KernelState.NOT_AFFECTED, value
    if is_guarded_at_the_call(reading):
        return KernelState.GUARDED, f"{reading.helper} is called only where {_enable_pmu(reading)} is set"
    if callee is not None and is_guarded_in_the_callee(reading):
        return KernelState.GUARDED, f"{callee.name} returns at once where {_enable_pmu(reading)} is cleared"
    if callee is not None and is_equivalent(reading):
        value = f"{callee.name} returns at once where nothing counts instructions (pmc_counting_instructions is empty)"
        return KernelState.EQUIVALENT, value
    if callee is not None and callee.body is not None and is_affected(reading):
        value = f"{reading.helper} is called wherever an instruction was skipped, and {_WHAT_IT_DOES[callee.body]}"
        return KernelState.AFFECTED, value
    return KernelState.UNKNOWN, why_unknown(reading)


def is_not_affected(reading: MachineCode) -> bool:
    """No PMU call, and nothing that could be one in disguise: what is inlined brings a loop, and leaves its function in the image."""
    return reading.obstacle is None and reading.helper is None and not reading.helpers_present and not reading.has_loop


def is_guarded_at_the_call(reading: MachineCode) -> bool:
    """The call can be reached where enable_pmu is set, and cannot where it is cleared; nothing else may be inlined beside it."""
    return _may_be_guarded(reading) and reading.called_when_off is False and reading.called_when_on is True


def is_guarded_in_the_callee(reading: MachineCode) -> bool:
    """The callee returns at once where enable_pmu is cleared."""
    return _may_be_guarded(reading) and _is_reached_when_off(reading) and reading.callee is not None and reading.callee.returns_when_off


def _may_be_guarded(reading: MachineCode) -> bool:
    called = reading.obstacle is None and reading.helper is not None
    return called and reading.enable_pmu is not None and not reading.has_loop


def is_equivalent(reading: MachineCode) -> bool:
    """The callee returns at once where no counter counts instructions, whatever else stands before it."""
    called = reading.obstacle is None and reading.helper is not None and not reading.has_loop and _is_reached_when_off(reading)
    return called and reading.callee is not None and "pmc_counting_instructions" in reading.callee.returns_when_empty


def is_affected(reading: MachineCode) -> bool:
    """Only whether the skip worked decides the call, and the callee begins its work on no condition that is not understood."""
    callee = reading.callee
    if reading.obstacle is not None or reading.helper is None or callee is None or callee.body is None or callee.obstacle is not None:
        return False
    unconditional = reading.decided_by_skip and not reading.conditions and _is_reached(reading)
    spared = callee.returns_when_off or bool(callee.other_exits) or bool(_empty_sets_that_spare_the_work(callee))
    return unconditional and not spared and callee.obstacle is None


def _is_reached_when_off(reading: MachineCode) -> bool:
    """Whether the call is reached with enable_pmu cleared, as far as its offset is known."""
    return reading.called_when_off is not False


def _is_reached(reading: MachineCode) -> bool:
    """Whether the call is reached with enable_pmu cleared and set alike, as far as its offset is known."""
    return _is_reached_when_off(reading) and reading.called_when_on is not False


def _empty_sets_that_spare_the_work(callee: Callee) -> frozenset[str]:
    """All but the set of every counter: that one is what body A and B walk, and it is not empty for every PMU-off guest."""
    return frozenset(callee.returns_when_empty).difference(("all_valid_pmc_idx",))


def _enable_pmu(reading: MachineCode) -> str:
    field = reading.enable_pmu
    where = "" if field is None else f" (at {field.offset:#x} of struct kvm, by {' and '.join(field.sources)})"
    return f"kvm->arch.enable_pmu{where}"


def why_unknown(reading: MachineCode) -> str:
    """Why a reading proves no state, in an operator's words."""
    if reading.obstacle is not None:
        return reading.obstacle
    if reading.helper is None:
        return _why_not_called(reading)
    if not _is_reached(reading):
        return _why_half_reached(reading)
    if reading.conditions:
        return f"{reading.helper} is called only where {_listed(reading.conditions)}: a condition that is not recognised"
    if reading.callee is None:
        return f"{reading.helper} is called, and is not in the image: what it does is not known"
    return _why_not_of_the_callee(reading, reading.callee)


def _why_not_called(reading: MachineCode) -> str:
    if not reading.helpers_present:
        return f"{ANCHOR} calls no PMU function, but has a loop: one may be inlined"
    there = " and ".join(reading.helpers_present)
    exist, are, they = ("exists", "is", "it") if len(reading.helpers_present) == 1 else ("exist", "are", "they")
    return f"{there} {exist} and {are} not called directly by {ANCHOR}: {they} may be inlined"


def _why_not_of_the_callee(reading: MachineCode, callee: Callee) -> str:
    if reading.has_loop and (callee.returns_when_off or "pmc_counting_instructions" in callee.returns_when_empty):
        return f"{callee.name} returns at once for a PMU-off guest, but {ANCHOR} has a loop: more PMU work may be inlined"
    if callee.returns_when_off:
        return f"{callee.name} returns at once on a field taken for enable_pmu, whose offset is not known"
    if callee.other_exits:
        return f"{callee.name} returns at once where {_listed(callee.other_exits)}: a condition that is not recognised"
    if _empty_sets_that_spare_the_work(callee):
        return f"{callee.name} returns at once where a set of counters is empty, and which one is not recognised"
    if callee.obstacle is not None:
        return f"{callee.name} is called, and what it does could not be followed: {callee.obstacle}"
    if callee.body is None:
        return f"{callee.name} is called, and what it does is of no shape that is recognised (neither body A nor B, nor an early exit)"
    return f"{reading.helper} is called, and whether that depends on the skip having worked is not recognised"


def _why_half_reached(reading: MachineCode) -> str:
    if reading.called_when_off is not False:
        return f"{reading.helper} is called only where kvm->arch.enable_pmu is cleared: a guard the wrong way round"
    if reading.called_when_on is not True:
        return (
            f"{reading.helper} is not seen to be reached where kvm->arch.enable_pmu is set either: what decides the call is not recognised"
        )
    if reading.enable_pmu is None:
        return f"{reading.helper} is called only where a field taken for enable_pmu is set, whose offset is not known"
    return f"{reading.helper} is called only where kvm->arch.enable_pmu is set, but {ANCHOR} has a loop: more PMU work may be inlined"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_VALUE_CHARACTERS else f"{line[: _LONGEST_VALUE_CHARACTERS - 1]}…"


def _listed(conditions: tuple[str, ...]) -> str:
    more = len(conditions) - _MOST_CONDITIONS
    return " and ".join(conditions[:_MOST_CONDITIONS]) + (f" and {more} more" if more > 0 else "")


def _excluded(reading: MachineCode) -> tuple[KernelState, ...]:
    """What code that does not settle the state contradicts all the same: weaker evidence must then not conclude that."""
    if reading.obstacle is not None or reading.helper is None:
        return ()
    callee = reading.callee
    conditional = bool(reading.conditions) or not _is_reached(reading)
    spared = callee is not None and (callee.returns_when_off or bool(callee.other_exits) or bool(_empty_sets_that_spare_the_work(callee)))
    return (KernelState.NOT_AFFECTED, *((KernelState.AFFECTED,) if conditional or spared else ()))
