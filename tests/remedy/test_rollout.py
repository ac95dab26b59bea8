"""A rollout, step by step."""

from datetime import timedelta

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
    started_on_one_host,
    verified,
)
from rollout_world import Process, World

from exitguard.model.run import EventKind, StepOutcome
from exitguard.remedy.rollout import (
    Announce,
    CarryOut,
    Check,
    Done,
    Halt,
    HostPhase,
    IllegalEvent,
    Settle,
    Standing,
    StepState,
    Verify,
    Wait,
    advance,
    begin,
)


def test_run_starts_with_the_line_that_names_its_plan() -> None:
    plan = b.plan(["a"])
    assert action(begin(plan)) == Announce(K.STARTED, plan=plan.hash)
    with pytest.raises(
        IllegalEvent, match=r"journal line 1 says started, which cannot follow: it names plan sha256:other, expected sha256:"
    ):
        advance(begin(plan), b.event(0, K.STARTED, plan="sha256:other"))
    with pytest.raises(IllegalEvent, match=r"line 1 says batch_started, which cannot follow: the run is new"):
        advance(begin(plan), b.event(0, K.BATCH_STARTED, wave=0, hosts=("a",)))


def test_empty_plan_is_finished_at_once() -> None:
    plan = b.plan()
    state = after(plan)
    assert action(state) == Announce(K.FINISHED)
    assert action(after(plan, {"kind": K.FINISHED})) == Done(success=True)


def test_batch_goes_from_check_over_its_steps_to_verification() -> None:
    plan = b.plan(["a", "c", "d"], steps={"a": [b.step("a"), b.step("a", 0, b.KERNEL)], "c": [b.step("c")]})
    (guest, kernel), (other,) = ids(plan, "a"), ids(plan, "c")
    state = after(plan)
    assert action(state) == Announce(K.BATCH_STARTED, wave=0, hosts=("a", "c"))
    state = after(plan, batch(0, "a", "c"), to=state)
    assert action(state) == Check(("a", "c"))
    state = after(plan, checked("a", guest, kernel), checked("c", other), to=state)
    assert action(state) == Announce(K.STEPS_STARTED, wave=0, steps=(guest, other))
    state = after(plan, started(guest, other), to=state)
    assert action(state) == CarryOut(b.GUESTS, (guest, other))
    state = after(plan, finished(guest), finished(other), to=state)
    assert action(state) == Announce(K.STEPS_STARTED, wave=0, steps=(kernel,))
    state = after(plan, started(kernel), to=state)
    assert action(state) == CarryOut(b.KERNEL, (kernel,))
    state = after(plan, finished(kernel, StepOutcome.ALREADY), to=state)
    assert action(state) == Verify(("a", "c"))
    state = after(plan, verified("a"), to=state)
    assert action(state) == Verify(("c",))  # the batch is not over
    state = after(plan, verified("c"), to=state)
    assert action(state) == Announce(K.BATCH_STARTED, wave=0, hosts=("d",))
    assert state.count_hosts() == {HostPhase.DONE: 2, HostPhase.WAITING: 1}
    assert state.count_steps() == {StepState.DONE: 2, StepState.NOT_DONE: 1, StepState.WAITING: 1}


def test_host_on_which_nothing_is_due_is_over_without_a_verification() -> None:
    plan = b.plan(["a"])
    state = after(plan, batch(0, "a"), {**checked("a"), "reason": "in maintenance"})
    assert state.phase("a") is HostPhase.LEFT
    assert (state.step(plan.steps[0].id).state, state.step(plan.steps[0].id).reason) == (StepState.LEFT, "in maintenance")
    assert action(state) == Announce(K.WAVE_PASSED, wave=0)


@pytest.mark.parametrize("outcome", [StepOutcome.ALREADY, StepOutcome.CHANGED_SINCE])
def test_step_that_is_no_longer_due_fails_no_host(outcome: StepOutcome) -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, finished(step, outcome, "somebody was faster"), verified("a"), to=state)
    assert state.failures == 0
    assert state.phase("a") is HostPhase.LEFT
    assert state.step(step).reason == "somebody was faster"


@pytest.mark.parametrize("outcome", [StepOutcome.REFUSED, StepOutcome.FAILED, StepOutcome.UNREACHABLE, StepOutcome.TIMED_OUT])
def test_failing_step_fails_its_host_whose_later_remedies_are_not_started(outcome: StepOutcome) -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a"), b.step("a", 0, b.KERNEL)]}, budget=1)
    guest, kernel = ids(plan, "a")
    state = after(plan, batch(0, "a"), checked("a", guest, kernel), started(guest), finished(guest, outcome, "no room"))
    assert action(state) == Verify(("a",))
    assert state.host("a").failure == f"domain_pmu_off of a-guest-0 {outcome.value}: no room"
    state = after(plan, verified("a"), to=state)
    assert state.phase("a") is HostPhase.FAILED
    assert state.step(kernel).state is StepState.WAITING


def test_host_that_fails_in_several_ways_counts_once() -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a"), b.step("a", 1)]}, budget=1)
    steps = ids(plan, "a")
    failing = [finished(step, StepOutcome.FAILED) for step in steps]
    state = after(plan, batch(0, "a"), checked("a", *steps), started(*steps), *failing, verified("a", passed=False))
    assert state.failures == 1
    assert [host.id for host in state.failed_hosts()] == ["a"]


@pytest.mark.parametrize(
    "world",
    [
        World(check_fails={"a"}),
        World(ends={ids(b.plan(["a"]), "a")[0]: StepOutcome.TIMED_OUT}),
        World(verify_fails={"a"}),
    ],
)
def test_failing_canary_leaves_every_other_host_untouched(world: World) -> None:
    process = Process(b.plan(["a"], ["c", "d"], ["e"]), world)
    end = process.run()
    assert isinstance(end, Halt)
    assert end.reason.startswith("stopped: 1 host failed, the plan allows 0: a.example: ")
    assert world.looked_at == ["a"]
    assert process.state.count_hosts() == {HostPhase.FAILED: 1, HostPhase.WAITING: 3}


def test_third_failure_is_one_too_many_for_a_budget_of_two() -> None:
    world = World(check_fails={"a", "c", "d"})
    process = Process(b.plan(["z"], ["a", "c"], ["d", "e", "f"], budget=2, in_flight=1), world)
    assert isinstance(process.run(), Halt)
    assert world.looked_at == ["z", "a", "c", "d"]
    assert process.state.standing is Standing.STOPPED
    assert process.state.why.startswith("3 hosts failed, the plan allows 2: a.example: no answer; c.example: no answer; d.example: ")

    within = Process(b.plan(["z"], ["a", "c"], ["d", "e", "f"], budget=2, in_flight=1), World(check_fails={"a", "c"}))
    assert within.run() == Done(success=False)
    assert within.state.count_hosts() == {HostPhase.FAILED: 2, HostPhase.DONE: 4}
    assert within.journal[-1].reason.startswith("2 hosts failed, the plan allows 2: ")


def test_stop_names_a_few_of_many_failed_hosts() -> None:
    hosts = [f"h{number}" for number in range(8)]
    process = Process(b.plan(hosts, in_flight=8), World(check_fails=set(hosts)))
    process.run()
    assert process.state.why.count("no answer") == 5
    assert process.state.why.endswith("; and 3 more")


def test_after_a_breach_hosts_in_flight_are_verified_and_nothing_more_is_started_on_them() -> None:
    plan = b.plan(["a", "c"], steps={host: [b.step(host), b.step(host, 0, b.KERNEL)] for host in "ac"})
    (guest_a, kernel_a), (guest_c, kernel_c) = ids(plan, "a"), ids(plan, "c")
    state = after(plan, batch(0, "a", "c"), checked("a", guest_a, kernel_a), checked("c", guest_c, kernel_c))
    state = after(plan, started(guest_a, guest_c), finished(guest_a, StepOutcome.REFUSED), finished(guest_c), to=state)
    assert action(state) == Verify(("a", "c"))
    with pytest.raises(IllegalEvent, match=r"steps_started, which cannot follow: failed hosts: 1, the plan allows 0"):
        after(plan, started(kernel_c), to=state)
    state = after(plan, verified("a"), verified("c"), to=state)
    told = action(state)
    assert isinstance(told, Announce)
    assert told.kind is K.STOPPED
    state = after(plan, {"kind": K.STOPPED, "reason": told.reason}, to=state)
    assert state.count_hosts() == {HostPhase.FAILED: 1, HostPhase.WAITING: 1}
    assert state.step(guest_c).state is StepState.DONE
    assert not state.in_flight


def test_failed_hosts_get_another_chance_after_a_stop_and_what_is_done_is_not_done_again() -> None:
    plan = b.plan(["a", "c"], ["d"], steps={"c": [b.step("c"), b.step("c", 1)]})
    world = World(check_fails={"a"}, ends={ids(plan, "c")[1]: StepOutcome.REFUSED})
    process = Process(plan, world)
    process.run()
    assert process.state.standing is Standing.STOPPED
    world.heal()
    process.write(kind=K.RESUMED)
    assert (process.state.failures, process.state.why) == (0, "")
    assert process.run() == Done(success=True)
    assert set(world.took_effect.values()) == {1}
    assert world.in_effect == set(ids(plan, "a", "c", "d"))


def test_failed_host_of_an_earlier_wave_comes_first_after_a_stop() -> None:
    world = World(check_fails={"a", "d"})
    process = Process(b.plan(["a"], ["c"], ["d"], budget=1), world)
    process.run()
    world.heal()
    process.write(kind=K.RESUMED)
    assert process.state.wave == 0
    world.looked_at.clear()
    assert process.run() == Done(success=True)
    assert world.looked_at == ["a", "d"]


def test_step_that_timed_out_is_settled_before_its_host_is_looked_at_again() -> None:
    plan = b.plan(["a"])
    (step,) = ids(plan, "a")
    world = World(ends={step: StepOutcome.TIMED_OUT}, secretly={step})
    process = Process(plan, world)
    process.run()
    assert process.state.step(step).state is StepState.UNCERTAIN
    world.heal()
    process.write(kind=K.RESUMED)
    process.write(**batch(0, "a"))
    assert action(process.state) == Settle((step,))
    assert process.run() == Done(success=True)
    assert world.carried_out == [step]
    assert process.state.step(step).state is StepState.DONE
    assert process.journal[-3].kind is K.HOST_VERIFIED


def test_step_whose_end_nobody_saw_is_settled_first_and_a_done_one_is_not_repeated() -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, RESUMED, to=state)
    assert action(state) == Settle((step,))
    assert action(state, may_start=False) == Settle((step,))  # it only looks
    state = after(plan, settled(step, DONE), to=state)
    assert action(state) == Check(("a",))
    state = after(plan, checked("a"), to=state)
    assert action(state) == Verify(("a",))


def test_step_that_never_took_effect_is_started_once_more_if_a_fresh_look_finds_it_due() -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, RESUMED, settled(step, StepOutcome.NOT_DONE), to=state)
    with pytest.raises(IllegalEvent, match="have to be settled and checked"):
        after(plan, started(step), to=state)
    state = after(plan, checked("a", step), to=state)
    assert action(state) == Announce(K.STEPS_STARTED, wave=0, steps=(step,))


def test_host_that_cannot_be_looked_at_after_a_crash_fails() -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, RESUMED, {**settled(step, StepOutcome.UNREACHABLE), "reason": "no route"}, to=state)
    assert state.host("a").failure == "whether domain_pmu_off of a-guest-0 is in effect cannot be told: no route"
    assert state.step(step).state is StepState.UNCERTAIN
    assert action(state) == Verify(("a",))


def test_done_step_that_somebody_took_back_is_verified_not_repeated() -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, finished(step), RESUMED, checked("a", step), to=state)
    assert action(state) == Verify(("a",))


def test_verified_step_that_somebody_took_back_is_verified_again() -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a"), b.step("a", 0, b.KERNEL)]})
    guest, kernel = ids(plan, "a")
    state = after(plan, batch(0, "a"), checked("a", guest, kernel), started(guest), finished(guest), verified("a"), RESUMED)
    assert action(after(plan, checked("a", guest), to=state)) == Verify(("a",))
    assert after(plan, checked("a"), to=state).phase("a") is HostPhase.DONE


def test_step_that_is_left_is_told_by_the_latest_look() -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a"), b.step("a", 1)]})
    due, left = ids(plan, "a")
    looks = [{**checked("a", due), "reason": reason} for reason in ("locked", "waived")]
    state = after(plan, batch(0, "a"), looks[0], RESUMED, looks[1])
    assert state.step(left).reason == "waived"


def test_host_that_was_verified_before_the_stop_is_not_verified_again_where_nothing_is_left_to_do() -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a"), b.step("a", 1)]})
    done, refused = ids(plan, "a")
    lines = [started(done, refused), finished(done), finished(refused, StepOutcome.REFUSED), verified("a"), {"kind": K.STOPPED}]
    state = after(plan, batch(0, "a"), checked("a", done, refused), *lines, RESUMED, batch(0, "a"), checked("a"))
    assert state.phase("a") is HostPhase.DONE


def test_pause_lets_what_runs_end_and_starts_nothing_until_it_is_resumed() -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, PAUSED, to=state)
    assert action(state) == CarryOut(b.GUESTS, (step,))
    state = after(plan, finished(step), to=state)
    assert action(state) == Verify(("a",))
    state = after(plan, verified("a"), to=state)
    assert action(state) == Halt("paused: asked for")
    with pytest.raises(IllegalEvent, match="wave_passed, which cannot follow: the run is paused"):
        after(plan, {"kind": K.WAVE_PASSED, "wave": 0}, to=state)
    state = after(plan, RESUMED, to=state)
    assert action(state) == Announce(K.WAVE_PASSED, wave=0)


def test_pause_before_the_check_has_the_host_checked_after_it() -> None:
    plan = b.plan(["a"])
    (step,) = ids(plan, "a")
    state = after(plan, batch(0, "a"), checked("a", step), PAUSED)
    assert action(state) == Halt("paused: asked for")
    assert action(after(plan, RESUMED, to=state)) == Check(("a",))


def test_abort_is_for_good() -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, ABORTED, to=state)
    assert action(state) == CarryOut(b.GUESTS, (step,))
    state = after(plan, finished(step), to=state)
    assert action(state) == Verify(("a",))
    state = after(plan, verified("a"), to=state)
    assert action(state) == Done(success=False)
    for line in (RESUMED, PAUSED, ABORTED):
        with pytest.raises(IllegalEvent, match=r"which cannot follow: the run was aborted, and nothing of it is under way"):
            after(plan, line, to=state)


def test_aborted_run_whose_process_died_is_taken_up_only_to_see_the_end_of_what_it_had_started() -> None:
    plan, state, step = started_on_one_host()
    state = after(plan, ABORTED, RESUMED, to=state)
    assert action(state) == Settle((step,))
    state = after(plan, settled(step, DONE), to=state)
    assert action(state) == Verify(("a",))
    assert action(after(plan, verified("a"), to=state)) == Done(success=False)
    untouched = after(
        plan, settled(step, StepOutcome.NOT_DONE), verified("a"), to=after(plan, ABORTED, RESUMED, to=started_on_one_host()[1])
    )
    assert action(untouched) == Done(success=False)
    assert untouched.phase("a") is HostPhase.WAITING


def test_operator_who_asks_late_or_twice_changes_nothing() -> None:
    process = Process(b.plan(["a"]), World(check_fails={"a"}))
    process.run()
    plan, why = process.state.plan, process.state.why
    stopped = after(plan, PAUSED, to=process.state)
    assert (stopped.standing, stopped.why) == (Standing.STOPPED, why)
    assert after(plan, RESUMED, to=stopped).failures == 0
    _, state, _ = started_on_one_host()
    paused = after(state.plan, PAUSED, {**PAUSED, "reason": "again"}, to=state)
    assert (paused.standing, paused.why) == (Standing.PAUSED, "asked for")
    aborted = after(state.plan, ABORTED, {**ABORTED, "reason": "again"}, PAUSED, to=state)
    assert (aborted.standing, aborted.why) == (Standing.ABORTED, "asked for")


def test_stopped_run_can_be_aborted_and_a_finished_one_takes_nothing_more() -> None:
    process = Process(b.plan(["a"]), World(check_fails={"a"}))
    process.run()
    assert action(after(process.state.plan, ABORTED, to=process.state)) == Done(success=False)
    over = Process(b.plan(["a"]), World())
    over.run()
    for kind in EventKind:
        with pytest.raises(IllegalEvent, match="the run is finished"):
            over.write(kind=kind)


def test_window_that_closes_in_mid_batch_lets_the_started_step_end_and_has_it_verified() -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a"), b.step("a", 0, b.KERNEL)]})
    guest, kernel = ids(plan, "a")
    state = after(plan, batch(0, "a"), checked("a", guest, kernel), started(guest))
    assert action(state, may_start=False) == CarryOut(b.GUESTS, (guest,))
    state = after(plan, finished(guest), to=state)
    assert action(state, may_start=False) == Verify(("a",))
    state = after(plan, verified("a"), to=state)
    assert action(state, may_start=False) == Halt("outside the maintenance window: nothing is started until it opens")
    assert action(state) == Announce(K.STEPS_STARTED, wave=0, steps=(kernel,))
    later = after(plan, started(kernel), finished(kernel), to=state)
    assert action(later, may_start=False) == Verify(("a",))  # what was verified before says nothing of this step
    state = after(plan, RESUMED, to=state)
    assert isinstance(action(state, may_start=False), Halt)
    assert action(state) == Check(("a",))


def test_outside_the_window_no_batch_begins_and_a_wave_may_pass() -> None:
    plan = b.plan(["a"], ["c"])
    assert isinstance(action(after(plan), may_start=False), Halt)
    state = after(plan, batch(0, "a"), checked("a"))
    assert action(state, may_start=False) == Announce(K.WAVE_PASSED, wave=0)


def test_next_wave_waits_for_the_pause_after_the_one_before_it() -> None:
    plan = b.plan(["a"], ["c"], pause_seconds=3600)
    state = after(plan, batch(0, "a"), checked("a"), {"kind": K.WAVE_PASSED, "wave": 0})
    until = b.T0 + timedelta(seconds=3600 + 3)  # the line was the journal's fourth
    assert action(state, seconds=10) == Wait(until, "the pause before wave wave 1")
    assert action(state, seconds=3603) == Announce(K.BATCH_STARTED, wave=1, hosts=("c",))
    assert action(after(plan, batch(1, "c"), checked("c"), {"kind": K.WAVE_PASSED, "wave": 1}, to=state)) == Announce(K.FINISHED)


def test_large_rollout_ends_with_everything_done() -> None:
    hosts = [f"h{number}" for number in range(300)]
    steps = {host: [b.step(host, number) for number in range(5)] for host in hosts}
    world = World()
    process = Process(b.plan(hosts[:1], hosts[1:], steps=steps, in_flight=20), world)
    assert process.run() == Done(success=True)
    assert len(world.in_effect) == 1500
    assert [line.host for line in process.journal if line.kind is K.HOST_VERIFIED] == hosts
