"""The rollout: what is to be done next, told by the journal's lines so far and nothing else. Pure; the time is an argument.

`begin(plan)` gives the state before the first line, `advance(state, event)` the state after one more, `next_action(state, now)` what is
to be done then. Whoever carries it out asks, does, and writes; each action is answered in full before the next is asked for. A process
that takes a run up again (after a crash, a pause, a stop) folds the journal and writes RESUMED before it asks.

A batch of hosts is checked; then, remedy by remedy, its due steps are announced and carried out; then those hosts where anything was
started are verified. A host fails by its check, by a step that was refused, failed, timed out or found it out of reach, or by its
verification. More failed hosts than the budget allows are a breach: what is running ends and is verified, what the plan allows to be undone
is undone, and the run stops. Such an undo waits for no maintenance window, since it disturbs nobody and the host has just been found
wanting; a pause or an abort holds it up.

What holds after every line of every journal that `advance` accepts (tests/remedy/test_rollout_laws.py proves it on every prefix):

- never more hosts in flight than the plan allows, and never hosts of two waves
- nothing outside the plan; nothing that a fresh look, after the process was last taken up, did not find due
- no step is started again before its end was seen or settled, and none that is done, unless it was undone
- after STOPPED, PAUSED or ABORTED nothing is started until RESUMED, and after ABORTED and FINISHED never
- a wave passes only when all its hosts are over and the failure budget holds
- `next_action` always has an answer, the same for the same state; a line that cannot follow raises and changes nothing
- a crash anywhere, then RESUMED, comes to the same end as no crash
"""

from dataclasses import dataclass
from datetime import datetime

from exitguard.model.plan import Remedy
from exitguard.model.run import EventKind
from exitguard.remedy.rollout_events import IllegalEvent, advance
from exitguard.remedy.rollout_state import (
    HostPhase,
    HostProgress,
    IllegalPlan,
    RolloutError,
    RolloutState,
    Standing,
    StepProgress,
    StepState,
    begin,
    next_batch,
    next_due,
    next_undo,
    next_wave_at,
    told_failures,
)

__all__ = [
    "Action",
    "Announce",
    "CarryOut",
    "Check",
    "Done",
    "Halt",
    "HostPhase",
    "HostProgress",
    "IllegalEvent",
    "IllegalPlan",
    "RolloutError",
    "RolloutState",
    "Settle",
    "Standing",
    "StepProgress",
    "StepState",
    "Undo",
    "Verify",
    "Wait",
    "advance",
    "begin",
    "next_action",
]


@dataclass(frozen=True)
class Announce:
    """Write this line; nothing else is to be done for it."""

    kind: EventKind
    plan: str | None = None
    wave: int | None = None
    hosts: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """Observe these hosts anew, and answer one HOST_CHECKED each: ready with the steps that are due, or left, or failed."""

    hosts: tuple[str, ...]


@dataclass(frozen=True)
class CarryOut:
    """Run one remedy for these steps, which have been announced, and answer one STEP_FINISHED each."""

    remedy: Remedy
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Settle:
    """Look whether these steps are in effect, whose end (or whose undo's end) nobody saw, and answer one STEP_SETTLED each.

    The outcome is done where the step is in effect, not_done where it is not; failed, unreachable or timed_out where a look cannot tell.
    """

    steps: tuple[str, ...]


@dataclass(frozen=True)
class Verify:
    """Observe these hosts anew after their steps, and answer one HOST_VERIFIED each."""

    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Undo:
    """Take back these steps, which has been announced, and answer one STEP_UNDONE each. Of one host, the last step comes first."""

    steps: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """Nothing to do until then."""

    until: datetime
    reason: str


@dataclass(frozen=True)
class Halt:
    """Nothing to do until an operator resumes the run, or until the maintenance window opens."""

    reason: str


@dataclass(frozen=True)
class Done:
    """The run is over. `success`: it went through all waves, and no host failed."""

    success: bool


Action = Announce | Check | CarryOut | Settle | Verify | Undo | Wait | Halt | Done


def next_action(state: RolloutState, now: datetime, *, may_start: bool = True) -> Action:
    """What is to be done next. `may_start`: whether steps may be started now, as they may not outside a maintenance window."""
    if state.standing is Standing.NEW:
        return Announce(EventKind.STARTED, plan=state.plan.hash)
    under_way = _under_way(state, may_start=may_start)
    if under_way is not None:
        return under_way
    match state.standing:
        case Standing.FINISHED:
            return Done(success=state.failures == 0)
        case Standing.ABORTED:
            return Done(success=False)
        case Standing.STOPPED | Standing.PAUSED:
            return Halt(f"{state.standing.value}: {state.why or 'no reason was given'}")
    if state.is_breached:
        undo = next_undo(state)
        if undo:
            return Announce(EventKind.UNDO_STARTED, steps=undo, reason=told_failures(state))
        return Announce(EventKind.STOPPED, reason=told_failures(state))
    return _go_on(state, now, may_start=may_start)


def _under_way(state: RolloutState, *, may_start: bool) -> Action | None:
    """What hosts in flight ask for: what nobody saw the end of first, then what was announced, then what is due, then the verification."""
    in_doubt = state.in_flight_in(StepState.IN_DOUBT, StepState.UNDO_IN_DOUBT)
    if in_doubt:
        return Settle(in_doubt)
    undoing = state.in_flight_in(StepState.UNDOING)
    if undoing:
        place = {step.id: number for number, step in enumerate(state.plan.steps)}
        return Undo(tuple(sorted(undoing, key=place.__getitem__, reverse=True)))
    started = state.in_flight_in(StepState.STARTED)
    if started:
        return CarryOut(state.index.steps[started[0]].remedy, started)
    if may_start and state.standing is Standing.RUNNING and not state.is_breached:
        to_check = tuple(host.id for host in state.in_flight.values() if host.to_check)
        if to_check:
            return Check(to_check)
        due = next_due(state)
        if due is not None:
            return Announce(EventKind.STEPS_STARTED, wave=state.wave, steps=due.steps)
    to_verify = tuple(host.id for host in state.in_flight.values() if host.to_verify)
    return Verify(to_verify) if to_verify else None


def _go_on(state: RolloutState, now: datetime, *, may_start: bool) -> Action:
    """The next batch, the end of the wave, or the end of the rollout."""
    if state.wave is None:
        return Announce(EventKind.FINISHED, reason=told_failures(state) if state.failures else "")
    if not state.queue and not state.in_flight:
        return Announce(EventKind.WAVE_PASSED, wave=state.wave)
    if not may_start:
        return Halt("outside the maintenance window: nothing is started until it opens")
    begins = next_wave_at(state)
    if begins is not None and now < begins:
        return Wait(begins, f"the pause before wave {state.plan.pace.waves[state.wave].name}")
    return Announce(EventKind.BATCH_STARTED, wave=state.wave, hosts=next_batch(state))
