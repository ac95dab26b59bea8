"""Symbolic values: what a register holds, said in terms of the function's arguments and of memory.

Every value is 64 bits wide, upper bits zero where fewer were written. A value that cannot be followed is UNKNOWN; nothing is ever
concluded from it. Two values that compare equal are the same expression; `Load` stands for what its address held when it was read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

#: A register's size, and a pointer's.
WORD_BYTES = 8
_BITS = (1 << 64) - 1
#: An expression as deep as this is not one that a person would follow either.
DEEPEST = 16
_LARGEST_DIGIT = 9
_MOST_PARTS = 64
_MOST_ALTERNATIVES = 4


@dataclass(frozen=True, slots=True)
class Unknown:
    """Anything."""


@dataclass(frozen=True, slots=True)
class Constant:
    value: int


@dataclass(frozen=True, slots=True)
class Argument:
    """What a register held when the function began: `vcpu`, `kvm`, or the register's own name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    """`base` plus a constant, which may be negative."""

    base: "Value"
    offset: int


@dataclass(frozen=True, slots=True)
class Load:
    """The `size` bytes at `address`."""

    address: "Value"
    size: int


@dataclass(frozen=True, slots=True)
class Narrow:
    """The lowest `size` bytes of a value."""

    value: "Value"
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returned, at `site`; the function's name where it is known."""

    function: str | None
    site: int


@dataclass(frozen=True, slots=True)
class Both:
    """The bitwise and, or another operation, of two values."""

    operation: Literal["and", "or", "xor", "sub", "add"]
    left: "Value"
    right: "Value"


@dataclass(frozen=True, slots=True)
class Truth:
    """1 where a condition holds, else 0."""

    condition: "Condition"


@dataclass(frozen=True, slots=True)
class Lowest:
    """A value of which only the lowest `size` bytes are known: what an 8-bit or 16-bit write leaves in a register."""

    value: "Value"
    size: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """The number of a bit that is set in a value: what tzcnt and its like give."""

    value: "Value"


@dataclass(frozen=True, slots=True)
class Either:
    """One of a few values, by the way that was taken. Nothing is computed with it; it says where a value comes from."""

    values: frozenset["Value"]


Value = Unknown | Constant | Argument | Sum | Load | Narrow | Result | Both | Truth | Lowest | Scanned | Either
UNKNOWN = Unknown()
ZERO = Constant(0)

#: The comparisons, unsigned ones with a `u`.
Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "<u", "<=u", ">u", ">=u"]
_OPPOSITE: dict[Comparison, Comparison] = {
    "==": "!=", "!=": "==", "<": ">=", ">=": "<", "<=": ">", ">": "<=", "<u": ">=u", ">=u": "<u", "<=u": ">u", ">u": "<=u",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of two values, each taken as `size` bytes."""

    left: Value
    comparison: Comparison
    right: Value
    size: int

    @property
    def opposite(self) -> "Condition":
        return Condition(self.left, _OPPOSITE[self.comparison], self.right, self.size)

    @property
    def settled(self) -> bool | None:
        """Whether it holds, where both sides are constants."""
        if not isinstance(self.left, Constant) or not isinstance(self.right, Constant):
            return None
        bits = 8 * self.size
        left, right = (side.value & ((1 << bits) - 1) for side in (self.left, self.right))
        if not self.comparison.endswith("u"):
            left, right = (side - (1 << bits) if side >> (bits - 1) else side for side in (left, right))
        match self.comparison.removesuffix("u"):
            case "==":
                return left == right
            case "!=":
                return left != right
            case "<":
                return left < right
            case "<=":
                return left <= right
            case ">":
                return left > right
            case _:
                return left >= right


def depth(value: Value) -> int:
    """How deep an expression is nested."""
    match value:
        case Sum(base, _):
            return 1 + depth(base)
        case Load(inner, _) | Narrow(inner, _) | Lowest(inner, _) | Scanned(inner):
            return 1 + depth(inner)
        case Either(values):
            return 1 + max(depth(each) for each in values)
        case Both(_, left, right):
            return 1 + max(depth(left), depth(right))
        case Truth(condition):
            return 1 + max(depth(condition.left), depth(condition.right))
        case _:
            return 0


def parts(value: Value) -> Iterator[Value]:
    """A value and every value that it is made of."""
    yield value
    match value:
        case Sum(base, _):
            yield from parts(base)
        case Load(inner, _) | Narrow(inner, _) | Scanned(inner):
            yield from parts(inner)
        case Either(values):
            yield UNKNOWN
            for each in values:
                yield from parts(each)
        case Lowest(inner, _):
            yield UNKNOWN
            yield from parts(inner)
        case Both(_, left, right):
            yield from parts(left)
            yield from parts(right)
        case Truth(condition):
            yield from parts(condition.left)
            yield from parts(condition.right)
        case _:
            pass


def known(value: Value) -> bool:
    """Whether nothing in a value is unknown."""
    return not any(isinstance(part, Unknown) for part in parts(value))


def either(left: Value, right: Value) -> Value:
    """What two ways leave where they meet: one of a few values, or UNKNOWN."""
    if left == right:
        return left
    values = frozenset().union(*(side.values if isinstance(side, Either) else {side} for side in (left, right)))
    if UNKNOWN in values or len(values) > _MOST_ALTERNATIVES or any(isinstance(each, Lowest) for each in values):
        return UNKNOWN
    return bounded(Either(values))


def bounded(value: Value) -> Value:
    """A value, or UNKNOWN where it is larger than a person would follow."""
    if depth(value) > DEEPEST:
        return UNKNOWN
    return UNKNOWN if sum(1 for _ in islice(parts(value), _MOST_PARTS + 1)) > _MOST_PARTS else value


def add(value: Value, offset: int) -> Value:
    """`value` plus a constant."""
    match value:
        case Unknown() | Either():
            return UNKNOWN
        case Constant(constant):
            return Constant((constant + offset) & _BITS)
        case Sum(base, before):
            value, offset = base, before + offset
        case _:
            pass
    offset = ((offset + (1 << 63)) & _BITS) - (1 << 63)
    return value if offset == 0 else Sum(value, offset)


def narrow(value: Value, size: int) -> Value:
    """The lowest `size` bytes of a value, the rest zero."""
    if size >= WORD_BYTES:
        return value
    match value:
        case Constant(constant):
            return Constant(constant & ((1 << 8 * size) - 1))
        case Load(address, loaded):
            return Load(address, min(loaded, size))  # little-endian: the lowest bytes come first
        case Narrow(inner, narrowed):
            return value if narrowed <= size else narrow(inner, size)
        case Lowest(inner, lowest):
            return narrow(inner, size) if size <= lowest else UNKNOWN
        case Truth() | Scanned():
            return value
        case Either(values):
            return Either(frozenset(narrow(each, size) for each in values))
        case Both("and", left, Constant(mask)) if mask < 1 << 8 * size:
            return both("and", left, Constant(mask))
        case Unknown():
            return UNKNOWN
        case _:
            return Narrow(value, size)


def both(operation: Literal["and", "or", "xor", "sub", "add"], left: Value, right: Value) -> Value:
    """Two values combined, constants folded; UNKNOWN where that is all that can be said."""
    if isinstance(left, Constant) and not isinstance(right, Constant) and operation != "sub":
        left, right = right, left
    if isinstance(left, Constant) and isinstance(right, Constant):
        return Constant(_fold(operation, left.value, right.value))
    if operation != "add" and left == right and not any(isinstance(part, Unknown | Load | Result) for part in parts(left)):
        # What memory held may have changed between two equal loads: those are not the same value.
        return left if operation in ("and", "or") else ZERO
    if isinstance(right, Constant):
        folded = _with_constant(operation, left, right.value)
        if folded is not None:
            return folded
    left, right = (UNKNOWN if isinstance(side, Lowest | Either) else side for side in (left, right))
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        # Zero swallows anything under `and`, which is folded above; what else is combined with anything can be anything.
        return UNKNOWN if operation != "and" else _masked(left, right)
    return bounded(Both(operation, left, right))


def _masked(left: Value, right: Value) -> Value:
    """`x & y` with one side unknown: kept, since the other side may turn out to be zero, and a listing should name it."""
    return UNKNOWN if isinstance(left, Unknown) and isinstance(right, Unknown) else bounded(Both("and", left, right))


def _fold(operation: str, left: int, right: int) -> int:
    match operation:
        case "and":
            return left & right
        case "or":
            return left | right
        case "xor":
            return left ^ right
        case "sub":
            return (left - right) & _BITS
        case _:
            return (left + right) & _BITS


def _with_constant(operation: str, value: Value, constant: int) -> Value | None:
    if operation == "add":
        return add(value, constant)
    if operation == "sub":
        return add(value, -constant)
    if operation == "and":
        if constant == 0:
            return ZERO
        for size in (1, 2, 4):
            if constant == (1 << 8 * size) - 1:
                return narrow(value, size)
        return value if constant == _BITS else None
    return value if constant == 0 else None


def written(before: Value, value: Value, size: int) -> Value:
    """What a register holds after its lowest `size` bytes (1 or 2) were written, the rest left as it was."""
    value = narrow(value, size)
    match before, value:
        case Constant(whole), Constant(lowest):
            mask = (1 << 8 * size) - 1
            return Constant(whole & ~mask | lowest)
        case (Constant(whole), _) if whole < 1 << 8 * size:
            return value
        case ((Load(_, held) | Narrow(_, held)), _) if held <= size:
            return value
        case (Truth(), _):
            return value
        case _:
            return UNKNOWN if isinstance(value, Unknown) else Lowest(value, size)


def assume(value: Value, assumed: Mapping[Load, int]) -> Value:
    """A value with loads taken for what they are assumed to be; part of a wider load may be one."""
    match value:
        case Load() if value in assumed:
            return Constant(assumed[value])
        case Narrow(inner, size):
            return narrow(assume(inner, assumed), size)
        case Both(operation, left, right):
            return both(operation, assume(left, assumed), assume(right, assumed))
        case Truth(condition):
            settled = assume_in(condition, assumed).settled
            return value if settled is None else Constant(int(settled))
        case _:
            return value


def assume_in(condition: Condition, assumed: Mapping[Load, int]) -> Condition:
    """A condition with loads taken for what they are assumed to be."""
    left, right = assume(condition.left, assumed), assume(condition.right, assumed)
    return Condition(left, condition.comparison, right, condition.size)


Naming = Callable[[int], str | None]


def told(value: Value, name_of: Naming) -> str:  # noqa: C901, PLR0912 - one case a kind
    """A value in words: `u8[u64[vcpu+0x0]+0x18fc]`; a symbol's name for its address."""
    match value:
        case Unknown():
            return "a value that could not be followed"
        case Constant(constant):
            name = name_of(constant) if constant > 1 << 16 else None
            return name if name is not None else (f"{constant:#x}" if constant > _LARGEST_DIGIT else str(constant))
        case Argument(name):
            return name
        case Sum(base, offset):
            return f"{told(base, name_of)}{'+' if offset >= 0 else '-'}{abs(offset):#x}"
        case Load(Argument() as address, size):
            return f"u{8 * size}[{address.name}+0x0]"
        case Load(address, size):
            return f"u{8 * size}[{told(address, name_of)}]"
        case Narrow(Result() as result, _):
            return told(result, name_of)
        case Narrow(inner, size) | Lowest(inner, size):
            return f"u{8 * size}({told(inner, name_of)})"
        case Result(function, _):
            return f"{function}()" if function is not None else "the result of a call"
        case Scanned(inner):
            return f"the lowest bit of {told(inner, name_of)}"
        case Either():
            return "one of several values"
        case Both(operation, left, right):
            sign = {"and": "&", "or": "|", "xor": "^", "sub": "-", "add": "+"}[operation]
            return f"({told(left, name_of)} {sign} {told(right, name_of)})"
        case Truth(condition):
            return f"({told_condition(condition, name_of)})"


def told_condition(condition: Condition, name_of: Naming) -> str:
    """A condition in words: `u8[u64[vcpu+0x0]+0x18fc] != 0`."""
    return f"{told(condition.left, name_of)} {condition.comparison} {told(condition.right, name_of)}"
