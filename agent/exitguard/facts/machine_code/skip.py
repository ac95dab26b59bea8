"""kvm_skip_emulated_instruction() read: whether its PMU call can happen for a guest whose PMU is off, and what decides that.

The function is walked three times: as it is, with kvm->arch.enable_pmu taken for 0, and for 1. Block layout, cold parts, branches or
conditional moves make no difference to what can be reached; a test of another field, an inverted one or one that is or-ed away does.
"""

from dataclasses import dataclass
from typing import cast

from exitguard.facts.machine_code.callee import HELPERS, VCPU, CalleeReading, read_callee
from exitguard.facts.machine_code.fields import EnablePmu, find_enable_pmu
from exitguard.facts.machine_code.image import Image, Symbol, base_name
from exitguard.facts.machine_code.instructions import Decoded, Immediate, Memory, decode
from exitguard.facts.machine_code.listing import list_instructions
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.state import address_of, entry_state
from exitguard.facts.machine_code.values import Condition, Constant, Load, Narrow, Result, Sum, Value, known, told_condition
from exitguard.facts.machine_code.walk import is_indirect, walk
from exitguard.facts.machine_code.ways import Call, Walk
from exitguard.model.machine_code import Helper, Instruction, MachineCode

ANCHOR = "kvm_skip_emulated_instruction"
#: In every spelling of the call that moves the guest's instruction pointer: __SCT__kvm_x86_..., svm_..., vmx_..., vt_...
_SKIPS = "skip_emulated_instruction"
_READS_FLAGS = "get_rflags"
_PMU_WORDS = ("pmu", "pmc_")
#: Where the vendor's functions are called through, before static calls: kvm_x86_ops.
_OPERATIONS = "kvm_x86_ops"
_OF_TEXT = frozenset({"_text", "_stext"})
#: Smaller numbers are no addresses of a kernel.
_LARGEST_NUMBER = 1 << 32
#: So many functions are looked at for a PMU call that hides behind others.
_MOST_FUNCTIONS = 1000


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
    calls = _pmu_calls(image, plain)
    if not calls:
        if not reading.helpers_present:
            _refuse_other_names(image, plain)
        return reading.model_copy(update={"listing": list_instructions(image, function, plain, {})})
    if len({call.target for call in calls}) > 1:
        raise Obstacle(f"{ANCHOR} calls more than one PMU function: expected one")
    decisions = _decisions(plain, frozenset(call.site for call in calls))
    off = on = None
    if enable_pmu is not None:
        without = _walk(image, function, {enable_pmu.load: 0})
        with_pmu = _walk(image, function, {enable_pmu.load: 1})
        off, on = bool(_pmu_calls(image, without)), bool(_pmu_calls(image, with_pmu))
        if not off:
            _refuse_changed(plain, enable_pmu)
            _refuse_hidden(image, without, with_pmu)
    callee = read_callee(image, calls[0], enable_pmu, btf_base=btf_base)
    notes = _notes(image, plain, calls, decisions, enable_pmu)
    return reading.model_copy(
        update={
            "helper": _helper_name(image, calls[0]),
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


def _pmu_calls(image: Image, seen: Walk) -> list[Call]:
    return [call for _, call in sorted(seen.calls.items()) if _is_helper_at(image, call.target)]


def _helper_name(image: Image, call: Call) -> str:
    function = image.function_at(call.target) if call.target is not None else None
    if function is not None and function.address != call.target:
        raise Obstacle(f"{ANCHOR} calls into the middle of {function.name}")
    return base_name(function.name if function is not None else call.name or "")


def _is_helper_at(image: Image, address: int | None) -> bool:
    """Whether an address is one of the PMU functions, or inside one."""
    function = image.function_at(address) if address is not None else None
    name = function.name if function is not None else image.name_at(address) if address is not None else None
    return name is not None and base_name(name) in HELPERS


def _refuse_hidden(image: Image, without: Walk, with_pmu: Walk) -> None:
    """Where the PMU call is not reached with enable_pmu cleared, it may hide in a function that is called.

    It is followed as far as calls, jumps and addresses lead. A pointer that is called, or a loop, ends that, but only in what is called
    in place of the PMU call: what is called either way is no guard's doing. What moves the guest's instruction pointer comes before.
    """
    _refuse_nameless(image, without)
    either_way = {call.target for call in with_pmu.calls.values()}
    pending: list[tuple[int, bool]] = []
    for call in without.calls.values():
        if call.target is None:
            raise Obstacle(
                f"{ANCHOR} calls through a pointer (`{without.instructions[call.site].text}`): where that leads is not in the image"
            )
        if not any(word in (call.name or "") for word in (_SKIPS, _READS_FLAGS)):
            pending.append((call.target, call.target not in either_way))
    pending.sort(key=lambda each: not each[1])  # what is called in place of it first: it is looked at more closely
    passed: set[int] = set()
    while pending:
        target, instead = pending.pop(0)
        function = image.function_at(target)
        if function is None or function.address in passed:
            continue
        if len(passed) == _MOST_FUNCTIONS:
            raise Obstacle(f"more than {_MOST_FUNCTIONS} functions can be reached from what {ANCHOR} calls: not all were looked at")
        passed.add(function.address)
        targets, doubt = _places_named(image, function)
        if any(_is_helper_at(image, each) for each in targets):
            raise Obstacle(f"{function.name}, which {ANCHOR} calls or leads to, makes the PMU call too")
        if instead and doubt is not None:
            raise Obstacle(f"{function.name}, which {ANCHOR} calls or leads to only where the PMU is off, {doubt}: PMU work may be in it")
        pending += [(each, instead) for each in sorted(targets)]


def _refuse_nameless(image: Image, seen: Walk) -> None:
    """A call of a function without a name may be any call: only a part of the symbols is there."""
    for call in seen.calls.values():
        if call.target is not None and (call.name is None or (call.name in _OF_TEXT)):
            raise Obstacle(f"{ANCHOR} calls a function without a name ({image.place(call.target)}): some of the symbols are stripped")


def _refuse_other_names(image: Image, seen: Walk) -> None:
    """Where neither PMU function is called, nothing that is called may be another one: by name, one level deep, or by pointer."""
    _refuse_nameless(image, seen)
    for call in seen.calls.values():
        if call.target is None:
            slot = call.pointer.address.value if isinstance(call.pointer, Load) and isinstance(call.pointer.address, Constant) else None
            owner = image.object_at(slot) if slot is not None else None
            if owner is None or not owner.startswith(_OPERATIONS):
                raise Obstacle(f"{ANCHOR} calls through a pointer (`{seen.instructions[call.site].text}`): where that leads is not known")
            continue
        function = image.function_at(call.target)
        called = [call.name, *(image.name_at(target) for target in (_places_named(image, function)[0] if function is not None else ()))]
        doubtful = next((name for name in called if name is not None and any(word in name for word in _PMU_WORDS)), None)
        if doubtful is not None:
            raise Obstacle(f"{ANCHOR} calls {doubtful}, or leads to it: a PMU function of another name?")
    if any(isinstance(store.address, Sum) and store.address.base == VCPU for store in seen.stores.values()):
        raise Obstacle(f"{ANCHOR} writes to the vCPU: what a PMU function does may be inlined in it")


def _places_named(image: Image, function: Symbol) -> tuple[set[int], str | None]:
    """Every address outside that the instructions of a function name, and what in it could be the PMU call all the same."""
    code = image.memory.read(function.address, image.extent(function))
    named: set[int] = set()
    doubt: str | None = None
    at = 0
    while at < len(code):
        try:
            instruction: Decoded = decode(code[at : at + 15], function.address + at)
        except Obstacle:
            at += 1
            continue
        for operand in instruction.operands:
            if isinstance(operand, Immediate) and operand.value % (1 << 64) > _LARGEST_NUMBER:
                named.add(operand.value % (1 << 64))
            elif isinstance(operand, Memory) and operand.absolute is not None:
                named.add(operand.absolute)
            if instruction.mnemonic in ("call", "jmp") and not isinstance(operand, Immediate):
                doubt = "calls through a pointer"
            if instruction.mnemonic.startswith("j") and isinstance(operand, Immediate):
                backwards = function.address <= operand.value % (1 << 64) <= instruction.address
                doubt = doubt or ("has a loop" if backwards else None)
        at += instruction.size
    if any(is_indirect(image.name_at(address) or "") for address in named):
        doubt = "calls through a pointer"
    outside = {address for address in named if not function.address <= address < function.address + image.extent(function)}
    return outside, doubt


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
