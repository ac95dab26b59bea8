"""What a walk over a function saw: its instructions, what was known before each, and the ways from one to another."""

from dataclasses import dataclass, field

from exitguard.facts.machine_code.instructions import Decoded
from exitguard.facts.machine_code.state import State
from exitguard.facts.machine_code.values import UNKNOWN, Both, Condition, Value


@dataclass(frozen=True, slots=True)
class Edge:
    """One way out of an instruction; None: the walk ends there (a return, or a jump out of what is walked)."""

    to: int | None
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call, or a jump out of the function that stands for one."""

    site: int
    #: None for an indirect one.
    target: int | None
    name: str | None
    state: State
    is_jump: bool = False
    #: Of an indirect one: the pointer that was called.
    pointer: Value = UNKNOWN


@dataclass(frozen=True, slots=True)
class Store:
    site: int
    address: Value
    size: int
    value: Value


@dataclass
class Walk:
    """What was seen: by address, the instruction, the last state before it, and the ways out of it."""

    entry: int
    instructions: dict[int, Decoded] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    edges: dict[int, tuple[Edge, ...]] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    stores: dict[int, Store] = field(default_factory=dict)
    #: Where two values were combined by `and`, and which: by address of the instruction.
    masked: dict[int, Both] = field(default_factory=dict)
    #: The values of which the lowest or highest bit is looked for, on whatever way: the first round of a loop is one.
    scanned: set[Value] = field(default_factory=set)
    #: Where instructions may be replaced while the kernel runs.
    patched: dict[int, str] = field(default_factory=dict)

    def reaching(self, targets: frozenset[int]) -> frozenset[int]:
        """Every address from which one of the targets can be reached, themselves included."""
        before: dict[int, list[int]] = {}
        for address, edges in self.edges.items():
            for edge in edges:
                if edge.to is not None:
                    before.setdefault(edge.to, []).append(address)
        found = set(targets)
        pending = list(targets)
        while pending:
            for address in before.get(pending.pop(), ()):
                if address not in found:
                    found.add(address)
                    pending.append(address)
        return frozenset(found)

    @property
    def looping(self) -> frozenset[int]:
        """Every address from which some way leads back to it."""
        return frozenset(address for address in self.edges if address in self._beyond(address))

    def _beyond(self, address: int) -> set[int]:
        found: set[int] = set()
        pending = self._next(address)
        while pending:
            at = pending.pop()
            if at not in found:
                found.add(at)
                pending += self._next(at)
        return found

    @property
    def returns(self) -> bool:
        """Whether some way ends in a return."""
        ends = (address for address, edges in self.edges.items() if any(edge.to is None for edge in edges))
        return any(address not in self.calls for address in ends)

    @property
    def loops(self) -> bool:
        """Whether some way leads back to where it was."""
        done: set[int] = set()
        on_the_way: set[int] = set()
        stack = [(self.entry, iter(self._next(self.entry)))]
        on_the_way.add(self.entry)
        while stack:
            address, following = stack[-1]
            after = next(following, None)
            if after is None:
                stack.pop()
                on_the_way.discard(address)
                done.add(address)
            elif after in on_the_way:
                return True
            elif after not in done:
                on_the_way.add(after)
                stack.append((after, iter(self._next(after))))
        return False

    def _next(self, address: int) -> list[int]:
        return [edge.to for edge in self.edges.get(address, ()) if edge.to is not None]
