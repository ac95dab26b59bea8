"""What the PMU function does before anything costly: whether it returns at once, on what, and how it walks the counters otherwise."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from exitguard.facts.machine_code.fields import EnablePmu, pmu_field_names
from exitguard.facts.machine_code.image import Image, Symbol, base_name
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.state import State, entry_state
from exitguard.facts.machine_code.values import (
    Argument,
    Both,
    Condition,
    Constant,
    Either,
    Load,
    Narrow,
    Scanned,
    Sum,
    Value,
    known,
    parts,
    told,
    told_condition,
)
from exitguard.facts.machine_code.walk import STACK_CHECK, callee_state, walk
from exitguard.facts.machine_code.ways import Call, Walk
from exitguard.model.kernel import Body
from exitguard.model.machine_code import Callee

TRIGGER, RETIRED = "kvm_pmu_trigger_event", "kvm_pmu_instruction_retired"
HELPERS = (TRIGGER, RETIRED)
#: The wrapper beside it, for branches (Linux 6.18): it hands over the bitmap that lies next to the one for instructions.
_BRANCH = "kvm_pmu_branch_retired"
_DEEPEST_CALL = 3
_MOST_CANDIDATES = 48
_WORD_BYTES = 8
_PLAIN = frozenset(
    """mov movabs movzx movsx movsxd lea push pop leave cmp test and or xor add sub inc dec not neg shl sal shr sar bt tzcnt bsf nop endbr64
    call ret cdqe cwde cdq cqo""".split()  # noqa: SIM905 - a list to read
)
VCPU = Argument("vcpu")

Bitmap = Literal["pmc_counting_instructions", "all_valid_pmc_idx", "other"]


@dataclass(frozen=True)
class CalleeReading:
    callee: Callee
    #: The walk through its head under the assumption that decides it; None where nothing does.
    head: Walk | None = None
    #: The condition that decides it, in words.
    decides: str | None = None


def read_callee(image: Image, call: Call, enable_pmu: EnablePmu | None, *, btf_base: bytes | None) -> CalleeReading | None:
    """What a call of the PMU function leads to; None where that is not in the image."""
    function = image.function_at(call.target) if call.target is not None else None
    if function is None or function.address != call.target:
        return None
    state = callee_state(call)
    off, on = (
        (_returns_at_once(image, function.address, state, {enable_pmu.load: value}) is not None for value in (0, 1))
        if enable_pmu is not None
        else (False, False)
    )
    if off and not on and enable_pmu is not None:
        head = _returns_at_once(image, function.address, state, {enable_pmu.load: 0})
        return CalleeReading(Callee(name=function.name, returns_when_off=True), head, f"{_told(image, enable_pmu.load)} == 0 (enable_pmu)")
    if _returns_at_once(image, function.address, state, {}) is not None:
        return CalleeReading(Callee(name=function.name, other_exits=("always",)))
    try:
        whole = _follow(image, function.address, state, {})
    except Obstacle as obstacle:
        return CalleeReading(Callee(name=function.name, obstacle=str(obstacle)))
    skipped = enable_pmu.load if enable_pmu is not None else None
    exits = [each for each in _exits(image, function.address, state, whole) if each.load != skipped]
    fields = pmu_field_names(image, btf_base=btf_base)
    walked = _walked(image, whole)
    bitmaps = {each.load: _which(image, each.load, fields, walked) for each in exits if each.is_bitmap}
    empty = tuple(dict.fromkeys(bitmaps.values()))
    allowed = frozenset(load for load, name in bitmaps.items() if name == "all_valid_pmc_idx")
    others = (
        *(f"{_told(image, each.load)} == {each.value}" for each in exits if not each.is_bitmap),
        *_spared(image, whole, allowed),
    )
    callee = Callee(name=function.name, body=_body(image, whole, empty), returns_when_empty=empty, other_exits=others)
    first = next((each for each in exits if each.is_bitmap), None)
    if first is None:
        return CalleeReading(callee)
    name = bitmaps[first.load]
    words = "" if name == "other" else f" ({name})"
    return CalleeReading(
        callee, _returns_at_once(image, function.address, state, {first.load: 0}), f"{_told(image, first.load)} == 0{words}"
    )


def _spared(image: Image, whole: Walk, allowed: frozenset[Load], *, deep: int = 0) -> Iterator[str]:
    """The conditions, other than on the set of every counter, by which the walk over the counters may be passed by."""
    work = whole.looping
    for call in whole.calls.values():
        if _is_helper(call) and deep < _DEEPEST_CALL and not work:
            yield from _spared(image, _follow(image, call.target or 0, callee_state(call), {}), allowed, deep=deep + 1)
            work = frozenset({call.site})
    reaching = whole.reaching(work)
    for address, edges in sorted(whole.edges.items()):
        if address in work or len({edge.to in reaching for edge in edges}) == 1:
            continue
        condition = next(edge.condition for edge in edges if edge.to not in reaching)
        if condition is None or not all(_is_of(side, allowed) for side in (condition.left, condition.right)):
            yield told_condition(condition, image.name_at) if condition is not None else "a jump"


def _is_of(value: Value, allowed: frozenset[Load]) -> bool:
    """Whether a value is made of nothing but the set of every counter, or of that and another set of the vCPU's in one."""
    match value:
        case Constant():
            return True
        case Load():
            return value in allowed
        case Scanned(inner) | Narrow(inner, _):
            return _is_of(inner, allowed)
        case Either(values):
            return all(_is_of(each, allowed) for each in values)
        case Both("and", left, right):
            return _is_pair(value) and bool({left, right} & allowed)
        case _:
            return False


def _is_helper(call: Call) -> bool:
    return call.target is not None and call.name is not None and base_name(call.name) in HELPERS


@dataclass(frozen=True)
class _Exit:
    """A load, and the value on which alone the function returns at once."""

    load: Load
    value: int

    @property
    def is_bitmap(self) -> bool:
        return self.load.size == _WORD_BYTES and self.value == 0 and _vcpu_offset(self.load) is not None


def _follow(image: Image, entry: int, state: State, assumed: Mapping[Load, int]) -> Walk:
    """A walk that goes along where the function ends in a jump to another one of this image."""
    return walk(image, entry, state, assumed=assumed, stays=lambda address: image.function_at(address) is not None)


def _returns_at_once(image: Image, entry: int, state: State, assumed: Mapping[Load, int], *, deep: int = 0) -> Walk | None:
    """The walk, where every way through the function returns without a call, a loop or a store but to its own stack."""
    try:
        seen = _follow(image, entry, state, assumed)
    except Obstacle:
        return None
    if seen.stores or seen.patched or seen.loops or not seen.returns or not _is_plain(seen):
        return None
    for call in seen.calls.values():
        if call.name == STACK_CHECK:
            continue
        ours = call.target is not None and call.name is not None and base_name(call.name) in HELPERS and not call.is_jump
        if not ours or deep == _DEEPEST_CALL or image.function_at(call.target or 0) is None:
            return None
        if _returns_at_once(image, call.target or 0, callee_state(call), assumed, deep=deep + 1) is None:
            return None
    return seen


def _is_plain(seen: Walk) -> bool:
    """Whether nothing is done but to compute and to jump: a trap, or a privileged instruction, is no return at once."""
    words = (seen.instructions[address].mnemonic.rpartition(" ")[2] for address in seen.states)
    return all(word in _PLAIN or word.startswith(("j", "set", "cmov")) for word in words)


def _exits(image: Image, entry: int, state: State, whole: Walk) -> Iterator[_Exit]:
    """Every load that decides alone whether the function returns at once."""
    for load in _candidates(image, whole):
        for value in (0, 1) if load.size == 1 else (0,):
            if _returns_at_once(image, entry, state, {load: value}) is not None:
                yield _Exit(load, value)
                break


def _candidates(image: Image, whole: Walk, *, deep: int = 0) -> list[Load]:
    found: dict[Load, None] = {}
    for address in sorted(whole.edges):
        for edge in whole.edges[address]:
            if edge.condition is not None:
                found |= dict.fromkeys(_loads(edge.condition))
    for call in whole.calls.values():
        if deep < _DEEPEST_CALL and call.target is not None and call.name is not None and base_name(call.name) in HELPERS:
            try:
                found |= dict.fromkeys(_candidates(image, _follow(image, call.target, callee_state(call), {}), deep=deep + 1))
            except Obstacle:
                continue
    return list(found)[:_MOST_CANDIDATES]


def _loads(condition: Condition) -> Iterator[Load]:
    for side in (condition.left, condition.right):
        for part in parts(side):
            if isinstance(part, Load) and known(part):
                yield part


def _vcpu_offset(value: Value) -> int | None:
    match value:
        case Load(Sum(Argument("vcpu"), offset), 8):
            return offset
        case _:
            return None


def _walked(image: Image, whole: Walk, *, deep: int = 0) -> frozenset[Value]:
    """The values whose bits are walked, each by itself: where the version decides whether it is masked, the bare one is among them."""
    found = {each for value in whole.scanned for each in (value.values if isinstance(value, Either) else (value,))}
    for call in whole.calls.values():
        if _is_helper(call) and deep < _DEEPEST_CALL:
            found |= _walked(image, _follow(image, call.target or 0, callee_state(call), {}), deep=deep + 1)
    return frozenset(found)


def _which(image: Image, load: Load, by_btf: Mapping[int, str], walked: frozenset[Value]) -> Bitmap:
    """Which bitmap a load is of: by BTF, and by what the code for branches tests in its place. Two that disagree are `other`."""
    offset = _vcpu_offset(load)
    if offset is None:
        return "other"
    named = by_btf.get(offset) if by_btf else None
    by_code = _by_branches(image, offset, walked=load in walked)
    if by_btf:
        if named == "pmc_counting_instructions" and by_code != "all_valid_pmc_idx":
            return "pmc_counting_instructions"
        if named == "all_valid_pmc_idx" and by_code != "pmc_counting_instructions":
            return "all_valid_pmc_idx"
        return "other"
    return by_code


def _by_branches(image: Image, offset: int, *, walked: bool) -> Bitmap:
    """A bitmap that the code for both instructions and branches tests is for every event; two that lie side by side are one for each.

    struct kvm_pmu has pmc_counting_instructions right before pmc_counting_branches (Linux 6.18, arch/x86/include/asm/kvm_host.h).
    Where the wrappers of 6.18 are not there at all, there is only the one for every event: it is the one that is walked.
    """
    branches = image.functions(_BRANCH)
    if not branches:
        return "all_valid_pmc_idx" if walked and not image.functions(RETIRED) else "other"
    tested = {each for symbol in branches for each in _bitmaps_tested(image, symbol)}
    if tested == {offset}:
        return "all_valid_pmc_idx"
    return "pmc_counting_instructions" if tested == {offset + _WORD_BYTES} else "other"


def _bitmaps_tested(image: Image, function: Symbol) -> Iterator[int]:
    state = entry_state(VCPU)
    try:
        whole = _follow(image, function.address, state, {})
    except Obstacle:
        return
    for each in _exits(image, function.address, state, whole):
        offset = _vcpu_offset(each.load)
        if offset is not None and each.is_bitmap:
            yield offset


def _body(image: Image, whole: Walk, empty: tuple[Bitmap, ...]) -> Body | None:
    """B takes one bitmap of the vCPU and another in one go; A asks for each counter by its number. Neither may be about what counts."""
    walks, masks, asks = _shape(image, whole)
    settled = "all_valid_pmc_idx" in empty or not image.functions(RETIRED)
    if not walks or not settled or "pmc_counting_instructions" in empty or "other" in empty:
        return None
    if masks:
        return Body.B
    return Body.A if asks else None


def _shape(image: Image, whole: Walk, *, deep: int = 0) -> tuple[bool, bool, bool]:
    """Whether it loops, whether it combines two of the vCPU's bitmaps, and whether it asks for a counter by its number."""
    walks = whole.loops
    masks = any(_is_pair(value) for value in whole.masked.values())
    asks = any("pmc_idx_to_pmc" in (call.name or "") or call.target is None for call in whole.calls.values())
    for call in whole.calls.values():
        if deep < _DEEPEST_CALL and call.target is not None and call.name is not None and base_name(call.name) in HELPERS:
            try:
                more = _shape(image, _follow(image, call.target, callee_state(call), {}), deep=deep + 1)
            except Obstacle:
                continue
            walks, masks, asks = walks or more[0], masks or more[1], asks or more[2]
    return walks, masks, asks


def _is_pair(value: Both) -> bool:
    return _vcpu_offset(value.left) is not None and _vcpu_offset(value.right) is not None


def _told(image: Image, value: Value) -> str:
    return told(value, image.name_at)
