"""A world that rollouts act on, and a process that acts on it and writes its journal, and that can be struck at any line."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

import plan_builders as b

from exitguard.model.plan import Plan
from exitguard.model.run import EventKind, HostCheck, RunEvent, StepOutcome
from exitguard.remedy.rollout import (
    Action,
    Announce,
    CarryOut,
    Check,
    Done,
    Halt,
    RolloutState,
    Settle,
    Undo,
    Verify,
    Wait,
    advance,
    begin,
    next_action,
)

Line = dict[str, object]
_TOO_LONG = 5000
_TAKE_EFFECT = (StepOutcome.DONE,)


class Struck(StrEnum):
    """What strikes between what a line tells and the line itself."""

    NOTHING = "nothing"
    CRASH = "crash"
    PAUSE = "pause"
    ABORT = "abort"


@dataclass
class World:
    """What is really so. A look at it tells the truth."""

    in_effect: set[str] = field(default_factory=set)
    #: How a step ends; done where nothing is said.
    ends: dict[str, StepOutcome] = field(default_factory=dict)
    #: Steps that take effect although they end otherwise.
    secretly: set[str] = field(default_factory=set)
    #: Steps that are no longer due.
    not_due: set[str] = field(default_factory=set)
    check_fails: set[str] = field(default_factory=set)
    verify_fails: set[str] = field(default_factory=set)
    undo_ends: dict[str, StepOutcome] = field(default_factory=dict)
    #: Steps of which no look can tell whether they are in effect.
    cannot_tell: set[str] = field(default_factory=set)
    #: How often each step took effect, and was carried out.
    took_effect: dict[str, int] = field(default_factory=dict)
    carried_out: list[str] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)

    def heal(self) -> None:
        """From now on, nothing fails."""
        for failing in (self.ends, self.undo_ends, self.check_fails, self.verify_fails, self.cannot_tell):
            failing.clear()

    def check(self, host: str, steps: tuple[str, ...]) -> Line:
        self.looked_at.append(host)
        line: Line = {"kind": EventKind.HOST_CHECKED, "host": host}
        if host in self.check_fails:
            return {**line, "check": HostCheck.FAILED, "reason": "no answer"}
        due = tuple(each for each in steps if each not in self.in_effect and each not in self.not_due)
        return {**line, "check": HostCheck.READY if due else HostCheck.LEFT, "due": due}

    def carry_out(self, step: str) -> Line:
        self.carried_out.append(step)
        outcome = self.ends.get(step, StepOutcome.DONE)
        if outcome is StepOutcome.DONE and step in self.in_effect:
            outcome = StepOutcome.ALREADY
        if outcome in _TAKE_EFFECT or step in self.secretly:
            self.in_effect.add(step)
            self.took_effect[step] = self.took_effect.get(step, 0) + 1
        undo = b.undo() if outcome is StepOutcome.DONE else None
        return {"kind": EventKind.STEP_FINISHED, "step": step, "outcome": outcome, "undo": undo}

    def take_back(self, step: str) -> Line:
        outcome = self.undo_ends.get(step, StepOutcome.DONE)
        if outcome is StepOutcome.DONE and step not in self.in_effect:
            outcome = StepOutcome.ALREADY
        if outcome is StepOutcome.DONE:
            self.in_effect.discard(step)
        return {"kind": EventKind.STEP_UNDONE, "step": step, "outcome": outcome}

    def settle(self, step: str) -> Line:
        outcome = StepOutcome.DONE if step in self.in_effect else StepOutcome.NOT_DONE
        if step in self.cannot_tell:
            outcome = StepOutcome.UNREACHABLE
        return {"kind": EventKind.STEP_SETTLED, "step": step, "outcome": outcome}

    def verify(self, host: str) -> Line:
        return {"kind": EventKind.HOST_VERIFIED, "host": host, "passed": host not in self.verify_fails, "reason": "a fresh look"}


def answers(action: Action, world: World, state: RolloutState) -> Iterator[Line]:
    """The lines that answer an action; what each tells has happened when it is taken."""
    match action:
        case Announce(kind, plan, wave, hosts, steps, reason):
            yield {"kind": kind, "plan": plan, "wave": wave, "hosts": hosts, "steps": steps, "reason": reason}
        case Check(hosts):
            yield from (world.check(host, state.index.host_steps[host]) for host in hosts)
        case CarryOut(_, steps):
            yield from (world.carry_out(step) for step in steps)
        case Settle(steps):
            yield from (world.settle(step) for step in steps)
        case Verify(hosts):
            yield from (world.verify(host) for host in hosts)
        case Undo(steps):
            yield from (world.take_back(step) for step in steps)
        case _:
            raise AssertionError(f"nothing answers {action}")


class Process:
    """One that carries out a rollout and keeps its journal; it can be struck between what a line tells and the line."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.world = world
        self.states = [begin(plan)]
        self.journal: list[RunEvent] = []
        self.now = b.T0

    @property
    def state(self) -> RolloutState:
        return self.states[-1]

    def write(self, **line: object) -> None:
        """One more journal line. Raises IllegalEvent where it cannot follow."""
        written = b.event(len(self.journal), **line).model_copy(update={"at": self.now})  # type: ignore[arg-type]
        self.states.append(advance(self.state, written))
        self.journal.append(written)

    def run(self, strikes: Iterator[Struck] | None = None, *, windows: Iterator[bool] | None = None) -> Action:
        """Goes on until nothing is left to be done; each strike but a crash is asked for by the operator, who resumes a pause at once."""
        for _ in range(_TOO_LONG):
            may_start = next(windows, True) if windows is not None else True
            action = next_action(self.state, self.now, may_start=may_start)
            match action:
                case Wait(until):
                    self.now = max(until, self.now + timedelta(seconds=1))
                case Halt() if not may_start:
                    continue
                case Halt() if self.state.standing.value == "paused":
                    self.write(kind=EventKind.RESUMED)
                case Done() | Halt():
                    return action
                case _:
                    self._carry_out(action, strikes)
        raise AssertionError("the rollout does not end")

    def _carry_out(self, action: Action, strikes: Iterator[Struck] | None) -> None:
        for line in answers(action, self.world, self.state):
            match next(strikes, Struck.NOTHING) if strikes is not None else Struck.NOTHING:
                case Struck.CRASH:
                    if self.journal and not self.state.is_ended:
                        self.write(kind=EventKind.RESUMED)
                    return
                case Struck.PAUSE if self.state.standing.value == "running":
                    self.write(kind=EventKind.PAUSED, reason="an operator asked for it")
                    if isinstance(action, Announce):  # it was not written: another may be due now
                        return
                case Struck.ABORT if self.state.standing.value in ("running", "paused"):
                    self.write(kind=EventKind.ABORTED, reason="an operator asked for it")
                    if isinstance(action, Announce):
                        return
                case _:
                    pass
            self.write(**line)


def effects(world: World, plan: Plan) -> set[str]:
    """Names of the steps that are in effect."""
    return {each.subject.name for each in plan.steps if each.id in world.in_effect}
