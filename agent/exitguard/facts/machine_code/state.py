"""What is known before an instruction: registers, the stack, the flags; and what two ways have in common where they meet."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from exitguard.facts.machine_code.instructions import Memory
from exitguard.facts.machine_code.values import (
    UNKNOWN,
    WORD_BYTES,
    ZERO,
    Argument,
    Comparison,
    Condition,
    Constant,
    Sum,
    Truth,
    Value,
    add,
    bounded,
    either,
    narrow,
    parts,
)

#: The stack pointer at the function's entry.
STACK = Argument("rsp")
ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")

#: The predicates of conditional instructions, as a comparison of the two sides of `cmp`.
_AFTER_COMPARE: Mapping[str, Comparison] = {
    "e": "==", "ne": "!=", "b": "<u", "ae": ">=u", "be": "<=u", "a": ">u", "l": "<", "ge": ">=", "le": "<=", "g": ">",
}  # fmt: skip
#: The same after an instruction that clears the carry flag and sets the others by its result, compared with zero.
_AFTER_RESULT: Mapping[str, Comparison] = {
    "e": "==", "ne": "!=", "be": "==", "a": "!=", "s": "<", "ns": ">=", "l": "<", "ge": ">=", "le": "<=", "g": ">",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flags:
    """What set the flags: a comparison of two values, or a result."""

    left: Value
    right: Value
    size: int
    #: "compare": as cmp leaves them; "logic": by the result, carry and overflow clear; "result": only zero and sign are known.
    kind: str


@dataclass(frozen=True, slots=True)
class State:
    """What is known before an instruction."""

    registers: Mapping[str, Value]
    #: By offset from the stack pointer at the function's entry: size and value.
    stack: Mapping[int, tuple[int, Value]] = field(default_factory=dict)
    flags: Flags | None = None
    #: Whether the address of something on the stack is known to others, who may then change it.
    escaped: bool = False

    def register(self, name: str) -> Value:
        return self.registers.get(name, UNKNOWN)


def entry_state(*arguments: Value) -> State:
    """The state at a function's entry: its arguments, and whatever a caller left in the other registers."""
    names = ("rax", "rbx", "rbp", "r10", "r11", "r12", "r13", "r14", "r15")
    registers: dict[str, Value] = {name: Argument(name) for name in names}
    registers |= {name: arguments[index] if index < len(arguments) else UNKNOWN for index, name in enumerate(ARGUMENTS)}
    return State(registers | {"rsp": STACK})


def address_of(memory: Memory, state: State) -> Value:
    """The address that an operand means; UNKNOWN for per-CPU data, and where a register is."""
    if memory.segment:
        return UNKNOWN
    if memory.absolute is not None:
        return Constant(memory.absolute)
    base = state.register(memory.base.name) if memory.base is not None else ZERO
    if memory.base is not None and memory.base.size < WORD_BYTES:
        return UNKNOWN
    if memory.index is not None:
        index = state.register(memory.index.name)
        if not isinstance(index, Constant):
            return UNKNOWN
        base = add(base, index.value * memory.scale)
    return add(base, memory.displacement)


def given_away(state: State, memory: Memory) -> State:
    """The state after the address of something on the stack was put together with what is not known: it may be anywhere then."""
    parts_of_address = [state.register(each.name) for each in (memory.base, memory.index) if each is not None]
    lost = any(map(on_stack, parts_of_address)) and not on_stack(address_of(memory, state))
    return replace(state, escaped=True) if lost else state


def join(left: State, right: State) -> State:
    joined = {name: either(value, right.register(name)) for name, value in left.registers.items()}
    registers = {name: value for name, value in joined.items() if value != UNKNOWN}
    gone = [side.register(name) for side in (left, right) for name in side.registers if name not in registers]
    stack = {at: held for at, held in left.stack.items() if right.stack.get(at) == held}
    flags = _join_flags(left.flags, right.flags)
    return State(registers, stack, flags, left.escaped or right.escaped or any(map(on_stack, gone)))


def _join_flags(left: Flags | None, right: Flags | None) -> Flags | None:
    if left is None or right is None or (left.size, left.kind) != (right.size, right.kind):
        return None
    return Flags(either(left.left, right.left), either(left.right, right.right), left.size, left.kind)


def condition_of(predicate: str, flags: Flags | None) -> Condition | None:
    """The condition that a conditional instruction tests, where what set the flags is known."""
    if flags is None:
        return None
    if flags.kind == "compare":
        comparison = _AFTER_COMPARE.get(predicate)
        if comparison is None:
            return None
        return Condition(narrow(flags.left, flags.size), comparison, narrow(flags.right, flags.size), flags.size)
    comparison = _AFTER_RESULT.get(predicate) if flags.kind == "logic" or predicate in ("e", "ne") else None
    if comparison is None:
        return None
    if isinstance(flags.left, Truth) and comparison in ("==", "!="):
        return flags.left.condition if comparison == "!=" else flags.left.condition.opposite
    return Condition(flags.left, comparison, ZERO, flags.size)


def truth(condition: Condition | None) -> Value:
    if condition is None:
        return UNKNOWN
    settled = condition.settled
    return bounded(Truth(condition)) if settled is None else Constant(int(settled))


def stack_offset(address: Value) -> int | None:
    match address:
        case Argument("rsp"):
            return 0
        case Sum(Argument("rsp"), offset):
            return offset
        case _:
            return None


def on_stack(value: Value) -> bool:
    return any(part == STACK for part in parts(value))
