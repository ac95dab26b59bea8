"""A rollout, driven: ask the state machine what comes next, write it down, do it, write down what was seen.

Everything that is announced is on the disk before it is done, so that whoever takes the run up after a crash knows what may have
happened, and looks instead of guessing. remedy/rollout.py decides, world.py acts; this loop only goes between them and the journal.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from exitguard.act.world import Answer, Interrupted, World
from exitguard.model.plan import Plan
from exitguard.model.run import EventKind, Request, RunEvent, StepOutcome, Undo
from exitguard.remedy.rollout import (
    Announce,
    CarryOut,
    Check,
    Done,
    Halt,
    RolloutState,
    Settle,
    Standing,
    Verify,
    Wait,
    advance,
    begin,
    next_action,
)
from exitguard.remedy.rollout import (
    Undo as UndoSteps,
)

if TYPE_CHECKING:
    from exitguard.store.journal import RunJournal

_ABORTED = "aborted before it was begun: nothing was changed"
_OF_REQUEST = {Request.PAUSE: EventKind.PAUSED, Request.ABORT: EventKind.ABORTED}
#: How often a wait looks for an operator's request.
_PULSE_SECONDS = 1.0


class Ended(StrEnum):
    """How one process's work on a run ended."""

    FINISHED = "finished"
    FINISHED_WITH_FAILURES = "finished_with_failures"  # no more hosts failed than the budget allows
    STOPPED = "stopped"
    PAUSED = "paused"
    ABORTED = "aborted"
    OUTSIDE_WINDOW = "outside_window"
    INTERRUPTED = "interrupted"


_HALTED = {Standing.STOPPED: Ended.STOPPED, Standing.PAUSED: Ended.PAUSED}


@dataclass(frozen=True)
class Ending:
    """How it ended, and why."""

    how: Ended
    reason: str
    #: Of a run that finished: how many of the plan's steps are not in force, since they were no longer true.
    left: int = 0


@dataclass(frozen=True)
class Surroundings:
    """What a rollout needs of the world outside its hosts: time, windows, and an operator's word."""

    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    #: None where steps may begin; else why not.
    closed: Callable[[datetime], str | None]
    #: What an operator asks for, by `exitguard rollout` or by a signal.
    asked: Callable[[], Request | None]


@dataclass(frozen=True)
class Remembered:
    """What a journal says that World needs to go on."""

    undos: dict[str, Undo]
    ran: dict[str, tuple[str, ...]]
    done: set[str]


def remembered(events: Iterable[RunEvent]) -> Remembered:
    """Of the events of one run."""
    found = Remembered({}, {}, set())
    for event in events:
        if event.kind is EventKind.STOPPED:  # whoever resumes has seen how things are: from then on they count as they are
            found.ran.clear()
        if event.kind is EventKind.HOST_CHECKED and event.host is not None:
            found.ran.setdefault(event.host, event.running)
        if event.step is None:
            continue
        if event.undo is not None:
            found.undos[event.step] = event.undo
        if event.kind in (EventKind.STEP_FINISHED, EventKind.STEP_SETTLED):
            if event.outcome in (StepOutcome.DONE, StepOutcome.ALREADY):
                found.done.add(event.step)
        elif event.kind is EventKind.STEP_UNDONE and event.outcome is StepOutcome.DONE:
            found.done.discard(event.step)
    return found


def replay(plan: Plan, events: Iterable[RunEvent]) -> RolloutState:
    """The state that a journal leads to. Raises remedy.rollout.RolloutError for one that no run of this plan writes."""
    state = begin(plan)
    for event in events:
        state = advance(state, event)
    return state


def conduct(journal: "RunJournal", world: World, around: Surroundings) -> Ending:
    """Go on with a run until it ends or has to wait for an operator. Raises StoreError where nothing can be written down any more."""
    run = _Run(journal, world, around, replay(journal.plan, journal.events))
    if journal.events and not run.is_over:
        run.write({"kind": EventKind.RESUMED})
    while True:
        run.hear()
        ending = run.take_a_step()
        if ending is not None:
            return ending


@dataclass
class _Run:
    """One run under way: where it stands, by what is written down."""

    journal: "RunJournal"
    world: World
    around: Surroundings
    state: RolloutState

    @property
    def is_over(self) -> bool:
        return isinstance(next_action(self.state, self.around.now()), Done)

    def write(self, answer: Answer) -> None:
        event = RunEvent(seq=len(self.journal.events), at=self.around.now(), **answer)
        self.state = advance(self.state, event)  # refuses what cannot follow before it is on the disk
        self.journal.append(**{"at": event.at, **answer})

    def hear(self) -> None:
        """Write down what an operator asks for."""
        asked = self.around.asked()
        if asked is not None and self.state.standing is not Standing.NEW and not self.is_over:
            self.write({"kind": _OF_REQUEST[asked], "reason": "asked by an operator"})
            self.journal.forget_request()

    def take_a_step(self) -> Ending | None:
        """Do what comes next; how the run ends for now, where it does."""
        closed = self.around.closed(self.around.now())
        action = next_action(self.state, self.around.now(), may_start=closed is None)
        match action:
            case Done(success=success):
                return self._ended(success=success)
            case Halt():
                how = _HALTED.get(self.state.standing, Ended.OUTSIDE_WINDOW)
                return Ending(how, (closed or "") if how is Ended.OUTSIDE_WINDOW else self.state.why)
            case Wait(until=until):
                self.around.sleep(min(_PULSE_SECONDS, max(0.0, (until - self.around.now()).total_seconds())))
            case Announce():
                self.write({name: value for name, value in asdict(action).items() if value not in (None, (), "")})
            case CarryOut(steps=steps) if self.state.standing is Standing.ABORTED:
                for step in steps:  # announced, and the abort came before the playbook was begun
                    self.write({"kind": EventKind.STEP_FINISHED, "step": step, "outcome": StepOutcome.REFUSED, "reason": _ABORTED})
            case _:
                return self._act(action)
        return None

    def _act(self, action: Check | CarryOut | Settle | Verify | UndoSteps) -> Ending | None:
        try:
            for answer in _answers(self.world, action):
                self.write(answer)
        except Interrupted:
            if self.state.standing is Standing.RUNNING:  # whoever ended it wants to be asked before it goes on
                self.write({"kind": EventKind.PAUSED, "reason": "ended by a signal in the middle of a playbook"})
            return Ending(
                Ended.INTERRUPTED, "ended by a signal in the middle of a playbook: its steps are looked at first when it is resumed"
            )
        return None

    def _ended(self, *, success: bool) -> Ending:
        if self.state.standing is Standing.ABORTED:
            return Ending(Ended.ABORTED, self.state.why)
        how = Ended.FINISHED if success else Ended.FINISHED_WITH_FAILURES
        return Ending(how, self.journal.events[-1].reason, left=len(self.world.not_in_force()))


def _answers(world: World, action: Check | CarryOut | Settle | Verify | UndoSteps) -> Iterable[Answer]:
    match action:
        case Check(hosts=hosts):
            return world.check(hosts)
        case CarryOut(remedy=remedy, steps=steps):
            return world.carry_out(remedy, steps)
        case Settle(steps=steps):
            return world.settle(steps)
        case Verify(hosts=hosts):
            return world.verify(hosts)
        case UndoSteps(steps=steps):
            return world.undo(steps)
