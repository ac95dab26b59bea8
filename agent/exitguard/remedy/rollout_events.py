"""What one journal line makes of a rollout, and which lines cannot follow. Pure.

Lines that announce something are held to what the state would announce next (`next_batch`, `next_due`, `next_undo` of
remedy/rollout_state.py); lines that report something, to what is under way. Times are not judged, so that a clock that was set does not
make a journal unreadable.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from exitguard.model.run import EventKind, HostCheck, RunEvent, StepOutcome
from exitguard.remedy.rollout_state import (
    HostPhase,
    HostProgress,
    RolloutError,
    RolloutState,
    Standing,
    StepProgress,
    StepState,
    next_batch,
    next_due,
    next_undo,
)

_UNCERTAIN = (StepOutcome.FAILED, StepOutcome.UNREACHABLE, StepOutcome.TIMED_OUT)
_STEP_ENDS = {
    StepOutcome.DONE: StepState.DONE,
    StepOutcome.ALREADY: StepState.NOT_DONE,
    StepOutcome.CHANGED_SINCE: StepState.NOT_DONE,
    StepOutcome.REFUSED: StepState.NOT_DONE,
    **dict.fromkeys(_UNCERTAIN, StepState.UNCERTAIN),
}
#: By these a host fails.
_STEP_FAILURES = (StepOutcome.REFUSED, *_UNCERTAIN)
#: Of a step whose end nobody saw: of a start, of an undo. A look that cannot tell leaves it uncertain.
_SETTLED_STARTS = {
    StepOutcome.DONE: StepState.DONE,
    StepOutcome.NOT_DONE: StepState.NOT_DONE,
    **dict.fromkeys(_UNCERTAIN, StepState.UNCERTAIN),
}
_SETTLED_UNDOS = {
    StepOutcome.DONE: StepState.DONE,
    StepOutcome.NOT_DONE: StepState.UNDONE,
    **dict.fromkeys(_UNCERTAIN, StepState.UNDO_UNCERTAIN),
}
_UNDO_ENDS = {
    StepOutcome.DONE: StepState.UNDONE,
    StepOutcome.ALREADY: StepState.UNDONE,
    StepOutcome.CHANGED_SINCE: StepState.DONE,
    StepOutcome.REFUSED: StepState.DONE,
    **dict.fromkeys(_UNCERTAIN, StepState.UNDO_UNCERTAIN),
}
#: What becomes of a step whose end nobody has seen when its process is gone.
_ORPHANED = {StepState.STARTED: StepState.IN_DOUBT, StepState.UNDOING: StepState.UNDO_IN_DOUBT}
#: What becomes of a step of a host that gets another chance: before anything else there, a look has to tell whether it is in effect.
_DOUBTED = {StepState.UNCERTAIN: StepState.IN_DOUBT, StepState.UNDO_UNCERTAIN: StepState.UNDO_IN_DOUBT}


class IllegalEvent(RolloutError):  # noqa: N818 - it says what the event is
    """A journal line that cannot follow those before it."""


class _CannotFollowError(Exception):
    """Why a line cannot follow."""


def advance(state: RolloutState, event: RunEvent) -> RolloutState:
    """The state after one more journal line. Raises IllegalEvent for a line that cannot follow; `state` is as it was in any case."""
    try:
        if event.seq != state.next_seq:
            _refuse(f"its seq is {event.seq}, expected {state.next_seq}")
        if event.kind not in _MAY_FOLLOW[state.standing]:
            _refuse(f"the run is {state.standing.value}")
        after = _FOLLOWS[event.kind](state, event)
    except _CannotFollowError as problem:
        raise IllegalEvent(
            f"journal line {state.next_seq + 1} says {event.kind.value}, which cannot follow: {problem}. Nothing is carried out on a "
            "journal that contradicts itself or its plan: keep both for whoever looks into it, and make a new plan."
        ) from None
    return replace(after, next_seq=event.seq + 1)


def _refuse(why: str) -> NoReturn:
    raise _CannotFollowError(why)


def _started(state: RolloutState, event: RunEvent) -> RolloutState:
    if event.plan != state.plan.hash:
        _refuse(f"it names plan {event.plan}, expected {state.plan.hash}")
    return replace(state, standing=Standing.RUNNING)


def _batch_started(state: RolloutState, event: RunEvent) -> RolloutState:
    _refuse_breached(state)
    expected = next_batch(state)
    if not expected or event.hosts != expected or event.wave != state.wave:
        _refuse(f"it names hosts {_listed(event.hosts)} of wave {event.wave}, expected {_listed(expected)} of wave {state.wave}")
    in_flight = {host_id: _taken(state.hosts[host_id]) for host_id in expected}
    return replace(state, in_flight=in_flight, queue=state.queue[len(expected) :])


def _taken(host: HostProgress) -> HostProgress:
    """A host that waited, in flight: what is uncertain from an earlier turn has to be settled, and an undo may be tried anew."""
    steps = {step_id: replace(step, state=_DOUBTED.get(step.state, step.state), undo_outcome=None) for step_id, step in host.steps.items()}
    return replace(host, phase=HostPhase.IN_FLIGHT, steps=steps)


def _host_checked(state: RolloutState, event: RunEvent) -> RolloutState:
    host = _in_flight(state, event.host)
    if not host.to_check or host.has_open_steps:
        _refuse(f"host {host.id} is not to be checked now")
    due = frozenset(event.due)
    foreign = sorted(due.difference(host.steps))
    if foreign:
        _refuse(f"it names steps as due that are not in the plan for host {host.id}: {_listed(tuple(foreign))}")
    if event.check is None or (event.check is HostCheck.READY) != bool(due):
        _refuse(f"check {event.check and event.check.value} with {len(due)} due steps: expected ready with some, left or failed with none")
    if event.check is HostCheck.FAILED:
        return _fail(state, replace(host, checked=True), event.reason or "it could not be looked at")
    # What this run has done it does not do again: where somebody has taken it back since, the verification is to say so.
    startable = frozenset(step_id for step_id in due if host.steps[step_id].state is not StepState.DONE)
    if startable != due:
        host = replace(host, unverified=True, verification=None)
    left = {
        step_id: StepProgress(StepState.LEFT, reason=event.reason)
        for step_id, step in host.steps.items()
        if step_id not in due and step.state in (StepState.WAITING, StepState.LEFT)
    }
    return _put(state, replace(host, checked=True, reason=event.reason, due=startable, steps={**host.steps, **left}))


def _steps_started(state: RolloutState, event: RunEvent) -> RolloutState:
    _refuse_breached(state)
    if any(host.has_open_steps or host.to_check for host in state.in_flight.values()):
        _refuse("hosts in flight have to be settled and checked, and what was started there has to end first")
    due = next_due(state)
    if due is None or len(event.steps) != len(due.steps) or set(event.steps) != set(due.steps):
        _refuse(f"it names steps {_listed(event.steps)}, expected {_listed(due.steps if due else ())}")
    started = frozenset(due.steps)
    in_flight = {
        host.id: replace(
            host,
            steps={**host.steps, **dict.fromkeys(host.due & started, StepProgress(StepState.STARTED))},
            due=host.due - started,
            unverified=True,
            verification=None,
        )
        if host.due & started
        else host
        for host in state.in_flight.values()
    }
    return replace(state, in_flight=in_flight)


def _step_finished(state: RolloutState, event: RunEvent) -> RolloutState:
    host, step_id = _host_of_step(state, event, (StepState.STARTED,))
    outcome = _outcome(event, _STEP_ENDS)
    ended = StepProgress(_STEP_ENDS[outcome], outcome, event.reason, event.undo)
    host = _with_step(host, step_id, ended)
    if outcome in _STEP_FAILURES:
        return _fail(state, host, f"{_told_step(state, step_id)} {outcome.value}: {event.reason or 'no reason was given'}")
    return _put(state, host)


def _step_settled(state: RolloutState, event: RunEvent) -> RolloutState:
    host, step_id = _host_of_step(state, event, (StepState.IN_DOUBT, StepState.UNDO_IN_DOUBT))
    outcome = _outcome(event, _SETTLED_STARTS)
    before = host.steps[step_id]
    undoing = before.state is StepState.UNDO_IN_DOUBT
    found = (_SETTLED_UNDOS if undoing else _SETTLED_STARTS)[outcome]
    undo = event.undo or before.undo
    host = _with_step(host, step_id, StepProgress(found, outcome, event.reason, undo))
    if found is StepState.DONE:
        host = replace(host, unverified=True)
    if outcome in _UNCERTAIN:
        reason = event.reason or "no reason was given"
        return _fail(state, host, f"whether {_told_step(state, step_id)} is in effect cannot be told: {reason}")
    return _put(state, host)


def _host_verified(state: RolloutState, event: RunEvent) -> RolloutState:
    host = _in_flight(state, event.host)
    if not host.to_verify:
        _refuse(f"host {host.id} is not to be verified now")
    if event.passed is None:
        _refuse("it does not say whether the verification was passed")
    if event.passed:
        return _put(state, replace(host, unverified=False, verification=True))
    return _fail(state, replace(host, verification=False), f"verification: {event.reason or 'not passed, and no reason was given'}")


def _wave_passed(state: RolloutState, event: RunEvent) -> RolloutState:
    _refuse_breached(state)
    if state.wave is None or event.wave != state.wave or state.queue or state.in_flight:
        _refuse(
            f"it names wave {event.wave}; wave {state.wave} has {len(state.queue)} hosts that wait and {len(state.in_flight)} in flight: "
            "a wave passes when all of its hosts are over"
        )
    return _at_first_open_wave(replace(state, passed=state.passed | {state.wave}, passed_at=event.at))


def _stopped(state: RolloutState, event: RunEvent) -> RolloutState:
    if not state.is_breached:
        _refuse(f"failed hosts: {state.failures}, which the failure budget of {state.plan.pace.failure_budget} allows")
    if state.has_work_in_flight or next_undo(state):
        _refuse("what was started has to end, to be verified and, where the plan says so, to be undone first")
    return replace(_released(state), standing=Standing.STOPPED, why=event.reason)


def _paused(state: RolloutState, event: RunEvent) -> RolloutState:
    _refuse_ended(state)
    if state.standing is not Standing.RUNNING:
        return state  # whoever asked was late: it has been paused, stopped or aborted meanwhile
    return replace(state, standing=Standing.PAUSED, why=event.reason)


def _aborted(state: RolloutState, event: RunEvent) -> RolloutState:
    _refuse_ended(state)
    if state.standing is Standing.ABORTED:
        return state
    return replace(state, standing=Standing.ABORTED, why=event.reason)


def _resumed(state: RolloutState, _event: RunEvent) -> RolloutState:
    _refuse_ended(state)
    if state.standing is Standing.STOPPED:
        return _with_another_chance(state)
    in_flight = {}
    for host in state.in_flight.values():
        steps = {step_id: replace(step, state=_ORPHANED.get(step.state, step.state)) for step_id, step in host.steps.items()}
        orphaned = replace(host, steps=steps)
        in_flight[host.id] = replace(orphaned, checked=False, due=frozenset()) if host.failure is None else orphaned
    if state.standing is Standing.ABORTED:
        return replace(state, in_flight=in_flight)
    return replace(state, in_flight=in_flight, standing=Standing.RUNNING, why="")


def _with_another_chance(state: RolloutState) -> RolloutState:
    """`state` after a stop, its failed hosts waiting again, at the first wave that has any host left."""
    again = {
        host.id: replace(host, phase=HostPhase.WAITING, checked=False, verification=None, failure=None)
        for host in state.hosts.values()
        if host.failure is not None
    }
    reopened = {state.index.wave_of[host_id] for host_id in again}
    hosts = {**state.hosts, **again}
    return _at_first_open_wave(replace(state, hosts=hosts, passed=state.passed - reopened, failures=0, standing=Standing.RUNNING, why=""))


def _undo_started(state: RolloutState, event: RunEvent) -> RolloutState:
    if not state.is_breached or state.has_work_in_flight:
        _refuse("steps are undone only once more hosts failed than the plan allows, and nothing else is under way")
    expected = next_undo(state)
    if not expected or len(event.steps) != len(expected) or set(event.steps) != set(expected):
        _refuse(f"it names steps {_listed(event.steps)}, expected {_listed(expected)}")
    state = _released(state)
    in_flight: dict[str, HostProgress] = {}
    for step_id in expected:
        host_id = state.index.steps[step_id].host_id
        host = in_flight.get(host_id) or replace(state.hosts[host_id], phase=HostPhase.IN_FLIGHT)
        in_flight[host_id] = _with_step(host, step_id, replace(host.steps[step_id], state=StepState.UNDOING))
    return replace(state, in_flight=in_flight)


def _step_undone(state: RolloutState, event: RunEvent) -> RolloutState:
    host, step_id = _host_of_step(state, event, (StepState.UNDOING,))
    outcome = _outcome(event, _UNDO_ENDS)
    step = host.steps[step_id]
    if _UNDO_ENDS[outcome] is StepState.UNDONE:
        ended = replace(step, state=StepState.UNDONE, reason=event.reason)
    else:
        ended = replace(step, state=_UNDO_ENDS[outcome], reason=event.reason, undo_outcome=outcome)
    return _put(state, _with_step(host, step_id, ended))


def _finished(state: RolloutState, event: RunEvent) -> RolloutState:
    _refuse_breached(state)
    if state.wave is not None:
        _refuse(f"wave {state.wave} has not passed")
    return replace(state, standing=Standing.FINISHED, why=event.reason)


def _refuse_ended(state: RolloutState) -> None:
    if state.is_ended:
        _refuse("the run was aborted, and nothing of it is under way")


def _refuse_breached(state: RolloutState) -> None:
    if state.is_breached:
        _refuse(f"failed hosts: {state.failures}, the plan allows {state.plan.pace.failure_budget}: nothing more is started")


def _in_flight(state: RolloutState, host_id: str | None) -> HostProgress:
    host = state.in_flight.get(host_id or "")
    if host is None:
        _refuse(f"host {host_id} is not in flight")
    return host


def _host_of_step(state: RolloutState, event: RunEvent, states: tuple[StepState, ...]) -> tuple[HostProgress, str]:
    """The host in flight whose step the event is about, and the step's id."""
    step = state.index.steps.get(event.step or "")
    if step is None:
        _refuse(f"step {event.step} is not in the plan")
    if event.host not in (None, step.host_id):
        _refuse(f"step {step.id} is one of host {step.host_id}, not of {event.host}")
    host = _in_flight(state, step.host_id)
    if host.steps[step.id].state not in states:
        _refuse(f"step {step.id} is {host.steps[step.id].state.value}, expected {' or '.join(state.value for state in states)}")
    return host, step.id


def _outcome(event: RunEvent, known: Mapping[StepOutcome, StepState]) -> StepOutcome:
    if event.outcome is None or event.outcome not in known:
        told = "no outcome" if event.outcome is None else f"outcome {event.outcome.value}"
        _refuse(f"it has {told}, expected one of {', '.join(outcome.value for outcome in known)}")
    return event.outcome


def _fail(state: RolloutState, host: HostProgress, reason: str) -> RolloutState:
    """`state` with a failed host, which is counted once however often it fails."""
    if host.failure is not None:
        return _put(state, host)
    return _put(replace(state, failures=state.failures + 1), replace(host, failure=reason, due=frozenset()))


def _put(state: RolloutState, host: HostProgress) -> RolloutState:
    """`state` with a host in flight as it is now; one that is over leaves the batch."""
    if not host.is_over:
        return replace(state, in_flight={**state.in_flight, host.id: host})
    return replace(
        state,
        in_flight={host_id: other for host_id, other in state.in_flight.items() if host_id != host.id},
        hosts={**state.hosts, host.id: replace(host, phase=host.last_phase)},
    )


def _released(state: RolloutState) -> RolloutState:
    """`state` with nobody in flight: hosts that are not through wait for another turn."""
    if not state.in_flight:
        return state
    let_go = {host.id: replace(host, phase=HostPhase.WAITING, checked=False, due=frozenset()) for host in state.in_flight.values()}
    return replace(state, in_flight={}, hosts={**state.hosts, **let_go})


def _at_first_open_wave(state: RolloutState) -> RolloutState:
    waves = state.index.waves
    wave = next((number for number in range(len(waves)) if number not in state.passed), None)
    waiting = () if wave is None else tuple(host_id for host_id in waves[wave] if state.hosts[host_id].phase is HostPhase.WAITING)
    return replace(state, wave=wave, queue=waiting)


def _with_step(host: HostProgress, step_id: str, step: StepProgress) -> HostProgress:
    return replace(host, steps={**host.steps, step_id: step})


def _told_step(state: RolloutState, step_id: str) -> str:
    step = state.index.steps[step_id]
    return f"{step.remedy.value} of {step.subject.name}"


def _listed(ids: tuple[str, ...]) -> str:
    shown = ", ".join(ids[:3]) or "none"
    return f"{shown} and {len(ids) - 3} more" if len(ids) > 3 else shown  # noqa: PLR2004 - three tell enough of a contradiction


_FOLLOWS: dict[EventKind, Callable[[RolloutState, RunEvent], RolloutState]] = {
    EventKind.STARTED: _started,
    EventKind.BATCH_STARTED: _batch_started,
    EventKind.HOST_CHECKED: _host_checked,
    EventKind.STEPS_STARTED: _steps_started,
    EventKind.STEP_FINISHED: _step_finished,
    EventKind.STEP_SETTLED: _step_settled,
    EventKind.HOST_VERIFIED: _host_verified,
    EventKind.WAVE_PASSED: _wave_passed,
    EventKind.STOPPED: _stopped,
    EventKind.PAUSED: _paused,
    EventKind.RESUMED: _resumed,
    EventKind.ABORTED: _aborted,
    EventKind.UNDO_STARTED: _undo_started,
    EventKind.STEP_UNDONE: _step_undone,
    EventKind.FINISHED: _finished,
}
#: What is under way ends, whoever has asked for a pause or an abort meanwhile; and operators may ask at any time, twice too.
_REPORTS = frozenset(
    {EventKind.HOST_CHECKED, EventKind.STEP_FINISHED, EventKind.STEP_SETTLED, EventKind.HOST_VERIFIED, EventKind.STEP_UNDONE}
)
_OPERATORS = frozenset({EventKind.PAUSED, EventKind.ABORTED, EventKind.RESUMED})
_MAY_FOLLOW: dict[Standing, frozenset[EventKind]] = {
    Standing.NEW: frozenset({EventKind.STARTED}),
    Standing.RUNNING: frozenset(EventKind) - {EventKind.STARTED},
    Standing.PAUSED: _REPORTS | _OPERATORS,
    Standing.STOPPED: _OPERATORS,
    Standing.ABORTED: _REPORTS | _OPERATORS,
    Standing.FINISHED: frozenset(),
}
