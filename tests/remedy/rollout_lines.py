"""Journal lines in short, and the states that they lead to."""

from datetime import timedelta

import plan_builders as b

from exitguard.model.plan import Plan
from exitguard.model.run import EventKind, HostCheck, StepOutcome
from exitguard.remedy.rollout import Action, RolloutState, advance, begin, next_action

DONE, READY, LEFT = StepOutcome.DONE, HostCheck.READY, HostCheck.LEFT
K = EventKind


def ids(plan: Plan, *hosts: str) -> tuple[str, ...]:
    return tuple(step.id for step in plan.steps if step.host_id in hosts)


def after(plan: Plan, *lines: dict[str, object], to: RolloutState | None = None) -> RolloutState:
    """The state after these lines; the first, which starts the run, goes without saying."""
    state = to or advance(begin(plan), b.event(0, K.STARTED, plan=plan.hash))
    for line in lines:
        state = advance(state, b.event(state.next_seq, **line))  # type: ignore[arg-type]
    return state


def batch(wave: int, *hosts: str) -> dict[str, object]:
    return {"kind": K.BATCH_STARTED, "wave": wave, "hosts": hosts}


def checked(host: str, *due: str) -> dict[str, object]:
    return {"kind": K.HOST_CHECKED, "host": host, "check": READY if due else LEFT, "due": due}


def started(*steps: str) -> dict[str, object]:
    return {"kind": K.STEPS_STARTED, "steps": steps}


def finished(step: str, outcome: StepOutcome = DONE, reason: str = "") -> dict[str, object]:
    return {"kind": K.STEP_FINISHED, "step": step, "outcome": outcome, "reason": reason}


def settled(step: str, outcome: StepOutcome) -> dict[str, object]:
    return {"kind": K.STEP_SETTLED, "step": step, "outcome": outcome}


def verified(host: str, *, passed: bool = True) -> dict[str, object]:
    return {"kind": K.HOST_VERIFIED, "host": host, "passed": passed, "reason": "" if passed else "the guest is gone"}


RESUMED: dict[str, object] = {"kind": K.RESUMED}
PAUSED: dict[str, object] = {"kind": K.PAUSED, "reason": "asked for"}
ABORTED: dict[str, object] = {"kind": K.ABORTED, "reason": "asked for"}


def action(state: RolloutState, *, seconds: int = 0, may_start: bool = True) -> Action:
    """What is next, so many seconds after the plan was made."""
    return next_action(state, b.T0 + timedelta(seconds=seconds), may_start=may_start)


def started_on_one_host() -> tuple[Plan, RolloutState, str]:
    """A plan with two hosts in one wave, one of which has its step announced."""
    plan = b.plan(["a"], ["c"])
    (step,) = ids(plan, "a")
    return plan, after(plan, batch(0, "a"), checked("a", step), started(step)), step
