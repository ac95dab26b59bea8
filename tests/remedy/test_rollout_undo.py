"""What a rollout undoes by itself when it stops."""

import plan_builders as b
import pytest
from rollout_lines import (
    ABORTED,
    DONE,
    PAUSED,
    RESUMED,
    K,
    action,
    after,
    batch,
    checked,
    finished,
    ids,
    settled,
    started,
    verified,
)
from rollout_world import Process, World

from exitguard.model.run import EventKind, StepOutcome
from exitguard.remedy.rollout import (
    Announce,
    Done,
    Halt,
    HostPhase,
    Settle,
    Standing,
    StepState,
    Undo,
)


def rolled_back(**world: object) -> tuple[Process, World]:
    steps = {"a": [b.step("a"), b.step("a", 1), b.step("a", 2, reversible=False)]}
    acted_on = World(verify_fails={"a"}, **world)  # type: ignore[arg-type]
    process = Process(b.plan(["a"], ["c"], steps=steps, rollback=True), acted_on)
    process.run()
    return process, acted_on


def test_what_a_host_had_changed_that_fails_its_verification_is_undone_last_step_first() -> None:
    process, world = rolled_back()
    first, second, irreversible = ids(process.state.plan, "a")
    kinds = [line.kind for line in process.journal]
    assert kinds[-5:] == [K.HOST_VERIFIED, K.UNDO_STARTED, K.STEP_UNDONE, K.STEP_UNDONE, K.STOPPED]
    assert [line.step for line in process.journal[-3:-1]] == [second, first]
    assert world.in_effect == {irreversible}
    assert process.state.phase("a") is HostPhase.FAILED  # one step cannot be undone
    world.heal()
    process.write(kind=K.RESUMED)
    assert process.run() == Done(success=True)
    assert world.took_effect == {first: 2, second: 2, irreversible: 1, ids(process.state.plan, "c")[0]: 1}


def test_host_of_which_everything_was_undone_is_told_so() -> None:
    process = Process(b.plan(["a"], rollback=True), World(verify_fails={"a"}))
    process.run()
    assert process.state.phase("a") is HostPhase.UNDONE
    assert process.state.host("a").failure == "verification: a fresh look"
    without = Process(b.plan(["a"]), World(verify_fails={"a"}))
    without.run()
    assert without.state.phase("a") is HostPhase.FAILED
    assert without.state.count_steps() == {StepState.DONE: 1}


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (StepOutcome.REFUSED, StepState.DONE),
        (StepOutcome.CHANGED_SINCE, StepState.DONE),
        (StepOutcome.TIMED_OUT, StepState.UNDO_UNCERTAIN),
        (StepOutcome.ALREADY, StepState.UNDONE),
    ],
)
def test_undo_that_does_not_work_is_tried_once_and_told(outcome: StepOutcome, state: StepState) -> None:
    plan = b.plan(["a"], rollback=True)
    process = Process(plan, World(verify_fails={"a"}, undo_ends={plan.steps[0].id: outcome}))
    process.run()
    assert [line.kind for line in process.journal].count(K.UNDO_STARTED) == 1
    assert process.state.standing is Standing.STOPPED
    assert process.state.step(plan.steps[0].id).state is state
    assert process.state.phase("a") is (HostPhase.UNDONE if state is StepState.UNDONE else HostPhase.FAILED)


@pytest.mark.parametrize(("found", "then"), [(DONE, K.UNDO_STARTED), (StepOutcome.NOT_DONE, K.STOPPED)])
def test_undo_whose_end_nobody_saw_is_settled_and_repeated_only_where_it_is_needed(found: StepOutcome, then: EventKind) -> None:
    plan = b.plan(["a"], rollback=True)
    (step,) = ids(plan, "a")
    lines = [batch(0, "a"), checked("a", step), started(step), finished(step), verified("a", passed=False)]
    state = after(plan, *lines, {"kind": K.UNDO_STARTED, "steps": (step,)})
    assert action(state) == Undo((step,))
    state = after(plan, RESUMED, to=state)
    assert action(state) == Settle((step,))
    told = action(after(plan, settled(step, found), to=state))
    assert isinstance(told, Announce)
    assert told.kind is then


def test_undo_waits_while_the_run_is_paused_and_never_begins_once_it_is_aborted() -> None:
    plan = b.plan(["a"], rollback=True)
    (step,) = ids(plan, "a")
    failing = [batch(0, "a"), checked("a", step), started(step), finished(step), verified("a", passed=False)]
    paused = after(plan, *failing, PAUSED)
    assert action(paused) == Halt("paused: asked for")
    told = action(after(plan, RESUMED, to=paused), may_start=False)
    assert isinstance(told, Announce)
    assert told.kind is K.UNDO_STARTED
    assert action(after(plan, *failing, ABORTED)) == Done(success=False)


def test_undo_takes_no_more_hosts_at_once_than_the_plan_allows_and_the_last_wave_first() -> None:
    hosts = ["c", "d", "e", "f"]
    process = Process(b.plan(["a"], hosts, budget=3, in_flight=2, rollback=True), World(verify_fails={"a", *hosts}))
    process.run()
    plan = process.state.plan
    undone = [set(line.steps) for line in process.journal if line.kind is K.UNDO_STARTED]
    assert undone == [set(ids(plan, "c", "d")), set(ids(plan, "e", "f")), set(ids(plan, "a"))]
    assert process.state.count_hosts() == {HostPhase.UNDONE: 5}


def test_what_was_done_on_a_failed_host_stays_where_its_verification_was_passed() -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a"), b.step("a", 1)]}, rollback=True)
    process = Process(plan, World(ends={ids(plan, "a")[1]: StepOutcome.REFUSED}))
    process.run()
    assert process.state.phase("a") is HostPhase.FAILED
    assert process.state.count_steps() == {StepState.DONE: 1, StepState.NOT_DONE: 1}


def test_undo_that_was_refused_is_tried_again_after_the_stop() -> None:
    plan = b.plan(["a"], rollback=True)
    world = World(verify_fails={"a"}, undo_ends={plan.steps[0].id: StepOutcome.REFUSED})
    process = Process(plan, world)
    process.run()
    world.undo_ends.clear()
    process.write(kind=K.RESUMED)
    process.run()
    assert process.state.phase("a") is HostPhase.UNDONE
    assert world.in_effect == set()


def test_undo_lets_go_of_the_other_hosts_of_the_batch_with_what_is_done_there() -> None:
    plan = b.plan(["a", "c"], steps={host: [b.step(host), b.step(host, 0, b.KERNEL)] for host in "ac"}, rollback=True)
    (guest_a, kernel_a), (guest_c, kernel_c) = ids(plan, "a"), ids(plan, "c")
    lines = [batch(0, "a", "c"), checked("a", guest_a, kernel_a), checked("c", guest_c, kernel_c), started(guest_a, guest_c)]
    # The window closes: what has been done is verified before the rest is started.
    state = after(plan, *lines, finished(guest_a), finished(guest_c), verified("a", passed=False), verified("c"))
    state = after(plan, {"kind": K.UNDO_STARTED, "steps": (guest_a,)}, to=state)
    assert tuple(state.in_flight) == ("a",)
    assert (state.phase("c"), state.step(guest_c).state) == (HostPhase.WAITING, StepState.DONE)


def test_settled_undo_keeps_what_was_there_before() -> None:
    plan = b.plan(["a"], rollback=True)
    (step,) = ids(plan, "a")
    lines = [batch(0, "a"), checked("a", step), started(step), {**finished(step), "undo": b.undo()}, verified("a", passed=False)]
    state = after(plan, *lines, {"kind": K.UNDO_STARTED, "steps": (step,)}, RESUMED, settled(step, DONE))
    assert state.step(step).undo == b.undo()
