"""kvm_skip_emulated_instruction() read: whether its PMU call can happen for a guest whose PMU is off, and what decides that.

The function is walked three times: as it is, with kvm->arch.enable_pmu taken for 0, and for 1. Block layout, cold parts, branches or
conditional moves make no difference to what can be reached; a test of another field, an inverted one or one that is or-ed away does.
"""

from dataclasses import dataclass
from typing import cast

from exitguard.facts.machine_code.callee import HELPERS, VCPU, CalleeReading, read_callee
from exitguard.facts.machine_code.fields import EnablePmu, find_enable_pmu
from exitguard.facts.machine_code.image import Image, Symbol, base_name
from exitguard.facts.machine_code.instructions import Decoded, Memory, decode
from exitguard.facts.machine_code.listing import list_instructions
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.values import Condition, Constant, Load, Narrow, Result, Sum, Value, known, told_condition
from exitguard.facts.machine_code.walk import Call, Walk, address_of, entry_state, walk
from exitguard.model.machine_code import Helper, Instruction, MachineCode

ANCHOR = "kvm_skip_emulated_instruction"
#: In every spelling of the call that moves the guest's instruction pointer: __SCT__kvm_x86_..., svm_..., vmx_..., vt_...
_SKIPS = "skip_emulated_instruction"
#: So many functions are looked at for a PMU call that hides behind others.
_MOST_FUNCTIONS = 200


@dataclass(frozen=True)
class Decision:
    """A branch on which reaching the PMU call depends, and the condition under which it is reached."""

    site: int
    condition: Condition

    @property
    def is_skip_result(self) -> bool:
        """Whether this is `if (!r) return 0;`, r being what the vendor's function returned."""
        left = self.condition.left.value if isinstance(self.condition.left, Narrow) else self.condition.left
        of_skip = isinstance(left, Result) and left.function is not None and _SKIPS in left.function
        return of_skip and self.condition.comparison == "!=" and self.condition.right == Constant(0)


def read_skip(image: Image, *, btf_base: bytes | None = None) -> MachineCode:
    """What the code of an image shows. Nothing is raised for code that cannot be read: then `obstacle` says why."""
    present = tuple(cast(Helper, name) for name in HELPERS if image.functions(name))
    reading = MachineCode(path=image.path, build_id=image.build_id, release=image.release, helpers_present=present)
    try:
        return _read(image, reading, btf_base)
    except Obstacle as obstacle:
        return reading.model_copy(update={"obstacle": str(obstacle)})


def _read(image: Image, reading: MachineCode, btf_base: bytes | None) -> MachineCode:
    function = _anchor(image)
    enable_pmu = find_enable_pmu(image, btf_base=btf_base)
    plain = _walk(image, function, {})
    _refuse_patched(plain)
    _refuse_computed_jumps(plain)
    reading = reading.model_copy(update={"enable_pmu": enable_pmu.offset if enable_pmu is not None else None, "has_loop": plain.loops})
    calls = _pmu_calls(plain)
    if not calls:
        _refuse_nameless(image, plain)
        return reading.model_copy(update={"listing": list_instructions(image, function, plain, {})})
    if len({call.target for call in calls}) > 1:
        raise Obstacle(f"{ANCHOR} calls more than one PMU function: expected one")
    decisions = _decisions(plain, frozenset(call.site for call in calls))
    off = on = None
    if enable_pmu is not None:
        without = _walk(image, function, {enable_pmu.load: 0})
        off, on = bool(_pmu_calls(without)), bool(_pmu_calls(_walk(image, function, {enable_pmu.load: 1})))
        if not off:
            _refuse_changed(plain, enable_pmu)
            _refuse_hidden(image, without, calls[0])
    callee = read_callee(image, calls[0], enable_pmu, btf_base=btf_base)
    notes = _notes(image, plain, calls, decisions, enable_pmu)
    return reading.model_copy(
        update={
            "helper": base_name(calls[0].name or ""),
            "called_when_off": off,
            "called_when_on": on,
            "decided_by_skip": any(decision.is_skip_result for decision in decisions),
            "conditions": tuple(_told(image, decision.condition, enable_pmu) for decision in decisions if not decision.is_skip_result),
            "callee": callee.callee if callee is not None else None,
            "listing": (*list_instructions(image, function, plain, notes), *(() if off is False else _callee_listing(image, callee))),
        }
    )


def _anchor(image: Image) -> Symbol:
    found = image.functions(ANCHOR)
    whole = [symbol for symbol in found if ".part" not in symbol.name]
    if not whole:
        raise Obstacle(f"has no function {ANCHOR}: expected KVM's own module (kvm.ko), or a kernel that KVM is built into")
    if len({symbol.address for symbol in whole}) > 1:
        raise Obstacle(f"has several functions {ANCHOR}: which of them runs cannot be told")
    return whole[0]


def _walk(image: Image, function: Symbol, assumed: dict[Load, int]) -> Walk:
    def stays(address: int) -> bool:
        there = image.function_at(address)
        return there is not None and base_name(there.name) == ANCHOR

    return walk(image, function.address, entry_state(VCPU), assumed=assumed, stays=stays)


def _refuse_patched(seen: Walk) -> None:
    for address, what in seen.patched.items():
        raise Obstacle(
            f"the kernel replaces `{seen.instructions[address].text}` in {ANCHOR} when it starts ({what}): what it becomes is not known"
        )


def _refuse_computed_jumps(seen: Walk) -> None:
    for call in seen.calls.values():
        if call.is_jump and call.target is None:
            raise Obstacle(f"{ANCHOR} jumps through a register (`{seen.instructions[call.site].text}`): where to is not known")


def _refuse_changed(seen: Walk, enable_pmu: EnablePmu) -> None:
    """A function that writes what decides cannot be judged by one value of it."""
    read = (enable_pmu.load, cast(Load, enable_pmu.pointer))
    for store in seen.stores.values():
        for load in read:
            if not known(store.address) or _overlap(store.address, store.size, load.address, load.size):
                raise Obstacle(f"{ANCHOR} may write to what decides: {seen.instructions[store.site].text}")


def _overlap(left: Value, left_size: int, right: Value, right_size: int) -> bool:
    (left_base, left_at), (right_base, right_at) = ((v.base, v.offset) if isinstance(v, Sum) else (v, 0) for v in (left, right))
    return left_base == right_base and left_at < right_at + right_size and right_at < left_at + left_size


def _pmu_calls(seen: Walk) -> list[Call]:
    return [call for _, call in sorted(seen.calls.items()) if call.name is not None and base_name(call.name) in HELPERS]


def _refuse_hidden(image: Image, without: Walk, pmu_call: Call) -> None:
    """The call may hide in a function that is called instead, or in one that this calls, as far as direct calls lead."""
    _refuse_nameless(image, without)
    passed: set[int] = set()
    pending: list[int] = []
    for call in without.calls.values():
        if call.target is None:
            raise Obstacle(
                f"{ANCHOR} calls through a pointer (`{without.instructions[call.site].text}`): where that leads is not in the image"
            )
        pending.append(call.target)
    while pending and len(passed) < _MOST_FUNCTIONS:
        function = image.function_at(pending.pop(0))
        if function is None or function.address in passed:
            continue
        passed.add(function.address)
        targets = _direct_targets(image, function)
        if pmu_call.target in targets:
            raise Obstacle(f"{function.name}, which {ANCHOR} calls or leads to, calls {pmu_call.name} too")
        pending += sorted(targets)


def _refuse_nameless(image: Image, seen: Walk) -> None:
    """A call of a function without a name may be any call: only a part of the symbols is there."""
    for call in seen.calls.values():
        if call.target is not None and call.name is None and image.function_at(call.target) is None:
            raise Obstacle(f"{ANCHOR} calls a function without a name: some of the symbols are stripped")


def _direct_targets(image: Image, function: Symbol) -> set[int]:
    """Where the direct calls and jumps of a function lead, read from its beginning to its end."""
    code = image.memory.read(function.address, image.extent(function))
    targets: set[int] = set()
    at = 0
    while at < len(code):
        try:
            instruction: Decoded = decode(code[at : at + 15], function.address + at)
        except Obstacle:
            at += 1
            continue
        if instruction.mnemonic in ("call", "jmp") and instruction.operands and hasattr(instruction.operands[0], "value"):
            targets.add(instruction.operands[0].value % (1 << 64))
        at += instruction.size
    return targets


def _decisions(seen: Walk, sites: frozenset[int]) -> list[Decision]:
    """The branches of which one way can lead to the call and the other cannot."""
    reaching = seen.reaching(sites)
    found = []
    for address, edges in sorted(seen.edges.items()):
        leads = [edge.to in reaching if edge.to is not None else address in sites for edge in edges]
        if len(set(leads)) > 1:
            condition = edges[leads.index(True)].condition
            if condition is not None:
                found.append(Decision(address, condition))
    return found


def _told(image: Image, condition: Condition, enable_pmu: EnablePmu | None) -> str:
    words = told_condition(condition, image.name_at)
    if enable_pmu is not None and enable_pmu.load in (condition.left, condition.right):
        words += " (enable_pmu)"
    return words


def _notes(image: Image, seen: Walk, calls: list[Call], decisions: list[Decision], enable_pmu: EnablePmu | None) -> dict[int, str]:
    notes = _reads(seen, enable_pmu)
    notes |= {call.site: "skips the instruction" for call in seen.calls.values() if call.name is not None and _SKIPS in call.name}
    notes |= {call.site: "the PMU call" for call in calls}
    for decision in decisions:
        if decision.is_skip_result:
            notes[decision.site] = "no PMU call where nothing was skipped"
        else:
            notes[decision.site] = f"the PMU call only where {_told(image, decision.condition, enable_pmu)}"
    return notes


def _reads(seen: Walk, enable_pmu: EnablePmu | None) -> dict[int, str]:
    """The instructions that read what a guard is about; none where only the pointer is read, which has other uses."""
    if enable_pmu is None:
        return {}
    words = {enable_pmu.load: "reads kvm->arch.enable_pmu", enable_pmu.pointer: "vcpu->kvm"}
    notes: dict[int, str] = {}
    for address, instruction in seen.instructions.items():
        for operand in instruction.operands:
            if isinstance(operand, Memory) and not operand.segment and instruction.mnemonic != "lea":
                read = Load(address_of(operand, seen.states[address]), operand.size)
                if read in words:
                    notes[address] = words[read]
    return notes if words[enable_pmu.load] in notes.values() else {}


def _callee_listing(image: Image, reading: CalleeReading | None) -> tuple[Instruction, ...]:
    if reading is None or reading.head is None or reading.decides is None:
        return ()
    function = image.function_at(reading.head.entry)
    if function is None:
        return ()
    branches = [address for address, edges in reading.head.edges.items() if any(edge.condition is not None for edge in edges)]
    notes = {max(branches): f"returns at once where {reading.decides}"} if branches else {}
    return list_instructions(image, function, reading.head, notes)
