"""Which journal lines cannot follow, and which plans no rollout can."""

from collections.abc import Iterator
from dataclasses import FrozenInstanceError

import plan_builders as b
import pytest
from rollout_lines import (
    DONE,
    LEFT,
    READY,
    RESUMED,
    K,
    after,
    batch,
    checked,
    finished,
    ids,
    settled,
    started,
    started_on_one_host,
    verified,
)

from exitguard.model.plan import Plan
from exitguard.model.run import StepOutcome
from exitguard.remedy.rollout import (
    HostPhase,
    IllegalEvent,
    IllegalPlan,
    RolloutState,
    advance,
    begin,
)


def cannot_follow() -> Iterator[tuple[dict[str, object], str]]:
    plan, _, step = started_on_one_host()
    (other,) = ids(plan, "c")
    yield finished(other), "host c is not in flight"
    yield finished("sha256:x"), "step sha256:x is not in the plan"
    yield {**finished(step), "host": "c"}, "is one of host a, not of c"
    yield finished(step, StepOutcome.NOT_DONE), "it has outcome not_done, expected one of done, already"
    yield {"kind": K.STEP_FINISHED, "step": step}, "it has no outcome"
    yield settled(step, DONE), "is started, expected in_doubt or undo_in_doubt"
    yield {"kind": K.STEP_UNDONE, "step": step, "outcome": DONE}, "is started, expected undoing"
    yield verified("a"), "host a is not to be verified now"
    yield checked("a", step), "host a is not to be checked now"
    yield started(step), "what was started there has to end first"
    yield batch(1, "c"), r"it names hosts c of wave 1, expected none of wave 0"
    yield {"kind": K.WAVE_PASSED, "wave": 0}, "a wave passes when all of its hosts are over"
    yield {"kind": K.STOPPED}, "failed hosts: 0, which the failure budget of 0 allows"
    yield {"kind": K.UNDO_STARTED, "steps": (step,)}, "only once more hosts failed than the plan allows"
    yield {"kind": K.FINISHED}, "wave 0 has not passed"
    yield {"kind": K.STARTED, "plan": plan.hash}, "the run is running"


def breached(*, rollback: bool = False, budget: int = 0) -> tuple[Plan, RolloutState]:
    """A run of which the first host's verification failed while that of the second is still to come."""
    plan = b.plan(["a", "c", "d"], rollback=rollback, budget=budget)
    steps = ids(plan, "a", "c")
    lines = [started(*steps), *map(finished, steps), verified("a", passed=False)]
    return plan, after(plan, batch(0, "a", "c"), *(checked(host, *ids(plan, host)) for host in "ac"), *lines)


def test_after_a_breach_nothing_begins_and_nothing_passes() -> None:
    plan, state = breached()
    state = after(plan, verified("c"), to=state)
    for line in (batch(0, "d"), {"kind": K.WAVE_PASSED, "wave": 0}, {"kind": K.FINISHED}):
        with pytest.raises(IllegalEvent, match="failed hosts: 1, the plan allows 0: nothing more is started"):
            after(plan, line, to=state)


def test_stop_and_undo_come_after_the_verification_and_the_undo_before_the_stop() -> None:
    plan, state = breached(rollback=True)
    undo = {"kind": K.UNDO_STARTED, "steps": ids(plan, "a")}
    for line in ({"kind": K.STOPPED}, undo):
        with pytest.raises(IllegalEvent, match=r"has to end, to be verified|nothing else is under way"):
            after(plan, line, to=state)
    state = after(plan, verified("c"), to=state)
    with pytest.raises(IllegalEvent, match="where the plan says so, to be undone first"):
        after(plan, {"kind": K.STOPPED}, to=state)
    with pytest.raises(IllegalEvent, match="it names steps none, expected sha256:"):
        after(plan, {**undo, "steps": ()}, to=state)
    assert after(plan, undo, to=state).phase("a") is HostPhase.IN_FLIGHT


def test_stop_without_an_undo_waits_for_the_verification_too() -> None:
    plan, state = breached()
    with pytest.raises(IllegalEvent, match="what was started has to end, to be verified"):
        after(plan, {"kind": K.STOPPED}, to=state)


def test_nothing_is_undone_while_the_budget_holds() -> None:
    plan, state = breached(rollback=True, budget=1)
    state = after(plan, verified("c"), to=state)
    with pytest.raises(IllegalEvent, match="only once more hosts failed than the plan allows"):
        after(plan, {"kind": K.UNDO_STARTED, "steps": ids(plan, "a")}, to=state)


def test_no_batch_begins_before_the_one_in_flight_is_over() -> None:
    plan = b.plan(["a", "c"], in_flight=1)
    with pytest.raises(IllegalEvent, match="it names hosts c of wave 0, expected none of wave 0"):
        after(plan, batch(0, "a"), batch(0, "c"))


def test_batch_takes_the_hosts_whose_turn_it_is_and_no_others() -> None:
    plan = b.plan(["a", "c", "d"])
    for hosts in (("c", "d"), ("a",), ("a", "c", "d"), ("c", "a"), ()):
        with pytest.raises(IllegalEvent, match="expected a, c of wave 0"):
            after(plan, batch(0, *hosts))


def test_host_is_checked_only_once_its_doubts_are_settled() -> None:
    plan, state, step = started_on_one_host()
    with pytest.raises(IllegalEvent, match="host a is not to be checked now"):
        after(plan, RESUMED, checked("a", step), to=state)


@pytest.mark.parametrize(("line", "why"), list(cannot_follow()))
def test_line_that_cannot_follow_says_which_and_why(line: dict[str, object], why: str) -> None:
    plan, state, _ = started_on_one_host()
    with pytest.raises(IllegalEvent, match=why) as raised:
        after(plan, line, to=state)
    assert str(raised.value).startswith(f"journal line 5 says {K(line['kind']).value}, which cannot follow: ")
    assert str(raised.value).endswith("make a new plan.")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"check": READY}, "check ready with 0 due steps"),
        ({"check": LEFT, "due": ids(b.plan(["a"]), "a")}, "check left with 1 due steps"),
        ({}, "check None with 0 due steps"),
        ({"check": READY, "due": ("sha256:x",)}, "not in the plan for host a: sha256:x"),
    ],
)
def test_check_that_does_not_fit_the_plan_is_refused(line: dict[str, object], why: str) -> None:
    with pytest.raises(IllegalEvent, match=why):
        after(b.plan(["a"]), batch(0, "a"), {"kind": K.HOST_CHECKED, "host": "a", **line})


def test_verification_says_whether_it_was_passed() -> None:
    plan, state, step = started_on_one_host()
    with pytest.raises(IllegalEvent, match="does not say whether"):
        after(plan, finished(step), {"kind": K.HOST_VERIFIED, "host": "a"}, to=state)


def test_gap_in_the_journal_is_refused() -> None:
    _, state, step = started_on_one_host()
    with pytest.raises(IllegalEvent, match=r"journal line 5 says step_finished, which cannot follow: its seq is 7, expected 4"):
        advance(state, b.event(7, **finished(step)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (b.plan(["a"], ["a"]), "host a is in the plan's waves twice"),
        (b.plan(["a"], steps={"a": [b.step("a"), b.step("a")]}), "is in the plan twice"),
        (b.plan(["a"], steps={"a": [b.step("stranger")]}), "host stranger has a step and is in no wave"),
        (b.plan(["a"], in_flight=0), "lets 0 hosts be in flight"),
        (b.plan(["a"], budget=-1), "a failure budget of -1"),
    ],
)
def test_plan_that_contradicts_itself_is_refused(plan: Plan, why: str) -> None:
    with pytest.raises(IllegalPlan, match=why):
        begin(plan)


def test_state_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        begin(b.plan(["a"])).failures = 7  # type: ignore[misc]
