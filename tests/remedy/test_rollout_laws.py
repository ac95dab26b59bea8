"""What holds after every line of every journal: random plans and worlds, crashes, pauses and aborts at any line, journals that lie."""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain, repeat

import plan_builders as b
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rollout_watch import FAILURES, Watch, copied, next_is_told, watched
from rollout_world import Process, Struck, World, answers

from exitguard.model.plan import Plan
from exitguard.model.run import EventKind, HostCheck, RunEvent, StepOutcome
from exitguard.remedy.rollout import (
    CarryOut,
    Done,
    Halt,
    HostPhase,
    IllegalEvent,
    RolloutState,
    Standing,
    StepState,
    Wait,
    advance,
    begin,
    next_action,
)

LAWS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
STRIKES = st.lists(st.sampled_from((*repeat(Struck.NOTHING, 4), Struck.CRASH, Struck.PAUSE)), max_size=60)
WINDOWS = st.lists(st.booleans(), max_size=60)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    waves = [[f"h{wave}{host}" for host in range(draw(st.integers(1, 4)))] for wave in range(draw(st.integers(1, 3)))]
    steps = {}
    for host in chain.from_iterable(waves):
        guests = [b.step(host, number, reversible=draw(st.booleans())) for number in range(draw(st.integers(0, 2)))]
        others = [b.step(host, 9, remedy) for remedy in (b.MODULE, b.KERNEL) if draw(st.booleans())]
        steps[host] = [*others, *guests]
    return b.plan(
        *waves,
        steps=steps,
        in_flight=draw(st.integers(1, 4)),
        budget=draw(st.integers(0, 2)),
        pause_seconds=draw(st.sampled_from((0, 3600))),
        rollback=draw(st.booleans()),
    )


@st.composite
def worlds(draw: st.DrawFn, plan: Plan, *, secrets: bool = True) -> World:
    """Worlds in which things fail. `secrets`: where a step may take effect although it is said to have failed."""
    steps = [step.id for step in plan.steps]
    hosts = [host for wave in plan.pace.waves for host in wave.hosts]

    def some(of: list[str]) -> set[str]:
        return set(draw(st.lists(st.sampled_from(of), max_size=2))) if of else set()

    failing = {step: draw(st.sampled_from((*FAILURES, StepOutcome.CHANGED_SINCE))) for step in some(steps)}
    return World(
        in_effect=some(steps),
        ends=failing,
        secretly={step for step in failing if secrets and failing[step] is StepOutcome.TIMED_OUT},
        not_due=some(steps),
        check_fails=some(hosts) if draw(st.booleans()) else set(),
        verify_fails=some(hosts),
        undo_ends={step: draw(st.sampled_from(FAILURES)) for step in some(steps)},
        cannot_tell=some(steps) if secrets else set(),
    )


def struck(strikes: list[Struck]) -> Iterator[Struck]:
    return iter(strikes)


@LAWS
@given(st.data())
def test_every_prefix_of_every_run_keeps_the_laws(data: st.DataObject) -> None:
    plan = data.draw(plans())
    process = Process(plan, data.draw(worlds(plan)))
    strikes = [*data.draw(STRIKES), *data.draw(st.sampled_from(([], [Struck.ABORT])))]
    end = process.run(struck(strikes), windows=iter(data.draw(WINDOWS)))
    for _ in range(data.draw(st.integers(0, 2))):
        if process.state.standing is not Standing.STOPPED:
            break
        process.write(kind=EventKind.RESUMED)
        end = process.run(struck(data.draw(STRIKES)))
    watched(process)
    event(f"ends {process.state.standing}")
    assert isinstance(end, Done | Halt)
    assert process.state.standing in (Standing.FINISHED, Standing.STOPPED, Standing.ABORTED)
    assert not process.state.in_flight_in(StepState.STARTED, StepState.IN_DOUBT, StepState.UNDOING, StepState.UNDO_IN_DOUBT)


@LAWS
@given(st.data())
def test_run_in_which_nothing_fails_finishes_with_every_due_step_done_once(data: st.DataObject) -> None:
    plan = data.draw(plans())
    due = {step.id for step in plan.steps}
    before = set(data.draw(st.lists(st.sampled_from(sorted(due)), max_size=3))) if due else set()
    world = World(in_effect=set(before))
    process = Process(plan, world)
    assert process.run(struck(data.draw(STRIKES)), windows=iter(data.draw(WINDOWS))) == Done(success=True)
    watched(process)
    assert world.in_effect == due
    assert world.took_effect == dict.fromkeys(due - before, 1)
    assert {step for step in due if process.state.step(step).state is StepState.DONE} == due - before


@LAWS
@given(st.data())
def test_interrupted_run_comes_to_the_same_end_as_the_uninterrupted_one(data: st.DataObject) -> None:
    plan = data.draw(plans())
    undisturbed = data.draw(worlds(plan, secrets=False))
    world = deepcopy(undisturbed)
    straight, interrupted = Process(plan, undisturbed), Process(plan, world)
    straight.run()
    strikes, windows = data.draw(STRIKES), data.draw(st.just([]) | WINDOWS)
    interrupted.run(struck(strikes), windows=iter(windows))
    watched(straight)
    watched(interrupted)
    assert interrupted.state.standing is straight.state.standing
    if straight.state.standing is Standing.FINISHED:
        # A pause or a closing window has hosts verified at once: those that do not pass have then come less far.
        early = {host.id for host in straight.state.failed_hosts()} if Struck.PAUSE in strikes or False in windows else set()
        assert on_others(world, plan, early) == on_others(undisturbed, plan, early)
        assert world.in_effect <= undisturbed.in_effect
        assert {host.id: host.phase for host in interrupted.state.every_host()} == {
            host.id: host.phase for host in straight.state.every_host()
        }
    else:  # which of a batch's steps had run when the stop came depends on when; that no other host was reached does not
        assert reached(interrupted) <= reached(straight)
        for process in (straight, interrupted):
            process.world.heal()
            process.write(kind=EventKind.RESUMED)
            assert process.run() == Done(success=True)
            watched(process)
        assert world.in_effect == undisturbed.in_effect


def on_others(world: World, plan: Plan, hosts: set[str]) -> set[str]:
    """The steps in effect on all but these hosts."""
    return {step.id for step in plan.steps if step.id in world.in_effect and step.host_id not in hosts}


def reached(process: Process) -> set[str]:
    return {host for line in process.journal if line.kind is EventKind.BATCH_STARTED for host in line.hosts}


EVERY_STAGE = b.plan(
    ["a"],
    ["c", "d", "e"],
    steps={
        "a": [b.step("a"), b.step("a", 0, b.KERNEL)],
        "c": [b.step("c"), b.step("c", 1)],
        "d": [b.step("d", 0, b.MODULE), b.step("d")],
    },
    budget=1,
    rollback=True,
)


def step_of(plan: Plan, host: str, number: int = 0) -> str:
    return [step.id for step in plan.steps if step.host_id == host][number]


WORLDS = {
    "nothing fails": World(),
    "one host fails by a step, within the budget": World(ends={step_of(EVERY_STAGE, "c"): StepOutcome.REFUSED}),
    "two hosts fail their verification and are undone": World(verify_fails={"c", "d"}),
}


def test_each_of_these_worlds_ends_as_its_name_says() -> None:
    ends = [Process(EVERY_STAGE, deepcopy(world)) for world in WORLDS.values()]
    assert [process.run() for process in ends[:2]] == [Done(success=True), Done(success=False)]
    assert isinstance(ends[2].run(), Halt)
    assert ends[2].state.count_hosts() == {HostPhase.DONE: 1, HostPhase.UNDONE: 1, HostPhase.FAILED: 1, HostPhase.WAITING: 1}
    assert StepState.UNDONE in ends[2].state.count_steps()


@pytest.mark.parametrize("how", [Struck.CRASH, Struck.PAUSE])
@pytest.mark.parametrize("name", WORLDS)
def test_interruption_at_each_single_line_and_at_each_pair_of_lines_changes_nothing_in_the_end(name: str, how: Struck) -> None:
    straight = Process(EVERY_STAGE, deepcopy(WORLDS[name]))
    straight.run()
    lines = len(straight.journal)
    assert lines > 20
    for first in range(lines + 2):
        for second in range(first, lines + 6, 3):
            process = Process(EVERY_STAGE, deepcopy(WORLDS[name]))
            process.run(struck([how if number in (first, second) else Struck.NOTHING for number in range(second + 1)]))
            assert process.state.standing is straight.state.standing
            if straight.state.standing is Standing.FINISHED or how is Struck.CRASH:
                assert process.world.in_effect == straight.world.in_effect, (first, second)
                assert process.state.count_hosts() == straight.state.count_hosts()
                assert process.state.count_steps() == straight.state.count_steps()
            else:  # a pause has the hosts verified at once, so that the stop comes before some steps
                assert process.world.in_effect <= straight.world.in_effect, (first, second)
            watch = Watch(EVERY_STAGE)
            for line, after in zip(process.journal, process.states[1:], strict=True):
                watch.see(line, after)


def test_abort_at_each_single_line_starts_nothing_more_and_leaves_no_end_unseen() -> None:
    straight = Process(EVERY_STAGE, World())
    straight.run()
    for number in range(1, len(straight.journal)):
        process = Process(EVERY_STAGE, World())
        end = process.run(struck([*repeat(Struck.NOTHING, number), Struck.ABORT]))
        watched(process)
        assert end == Done(success=False)
        assert not process.state.has_work_in_flight
        done = {step.id for step in EVERY_STAGE.steps if process.state.step(step.id).state is StepState.DONE}
        assert done == process.world.in_effect


def test_folding_a_journal_gives_the_state_that_wrote_it() -> None:
    process = Process(EVERY_STAGE, deepcopy(WORLDS["two hosts fail their verification and are undone"]))
    process.run(struck([Struck.NOTHING, Struck.NOTHING, Struck.CRASH, Struck.PAUSE, Struck.NOTHING, Struck.CRASH]))
    state = begin(EVERY_STAGE)
    for line in process.journal:
        state = advance(state, RunEvent.model_validate_json(line.model_dump_json()))
    assert state == process.state


@st.composite
def any_line(draw: st.DrawFn, plan: Plan) -> dict[str, object]:
    """A line about this plan that may or may not make sense."""
    hosts = st.sampled_from([host for wave in plan.pace.waves for host in wave.hosts] + ["stranger"])
    steps = st.sampled_from([step.id for step in plan.steps] + ["sha256:stranger"])
    return {
        "kind": draw(st.sampled_from(EventKind)),
        "plan": draw(st.sampled_from((plan.hash, None))),
        "wave": draw(st.sampled_from((None, 0, 1, 2))),
        "hosts": tuple(draw(st.lists(hosts, max_size=3))),
        "host": draw(st.none() | hosts),
        "step": draw(st.none() | steps),
        "steps": tuple(draw(st.lists(steps, max_size=3))),
        "check": draw(st.none() | st.sampled_from(HostCheck)),
        "outcome": draw(st.none() | st.sampled_from(StepOutcome)),
        "passed": draw(st.sampled_from((None, True, False))),
        "due": tuple(draw(st.lists(steps, max_size=2))),
    }


def lying_line(data: st.DataObject, state: RolloutState) -> dict[str, object] | None:
    """One line of the right kind about the right thing, whose outcome is any; None where the action has no answer."""
    action = next_action(state, b.T0.replace(year=2030))
    if isinstance(action, Done | Halt | Wait):
        return None
    line = data.draw(st.sampled_from(list(answers(action, World(), state))))
    match line["kind"]:
        case EventKind.HOST_CHECKED:
            due = data.draw(st.lists(st.sampled_from(state.index.host_steps[str(line["host"])] or ("none",)), unique=True))
            line |= {"due": tuple(due), "check": data.draw(st.sampled_from(HostCheck))}
        case EventKind.STEP_FINISHED | EventKind.STEP_SETTLED | EventKind.STEP_UNDONE:
            line |= {"outcome": data.draw(st.sampled_from(StepOutcome))}
        case EventKind.HOST_VERIFIED:
            line |= {"passed": data.draw(st.booleans())}
        case _:
            pass
    return line


@LAWS
@given(st.data())
def test_whatever_is_accepted_keeps_the_laws_and_whatever_is_not_changes_nothing(data: st.DataObject) -> None:
    plan = data.draw(plans())
    state, watch, seen = begin(plan), Watch(plan), Counter[bool]()
    for _ in range(data.draw(st.integers(10, 60))):
        line = lying_line(data, state) if data.draw(st.integers(0, 3)) else None
        written = b.event(state.next_seq, **(line or data.draw(any_line(plan))))  # type: ignore[arg-type]
        before = copied(state)
        try:
            after = advance(state, written)
        except IllegalEvent as raised:
            problem = str(raised)
        else:
            problem = ""
        assert state == before
        seen[not problem] += 1
        if problem:
            assert f"line {written.seq + 1} says {written.kind.value}, which cannot follow: " in problem
            continue
        state = after
        watch.see(written, state)
        next_is_told(state)
    event(f"accepted {seen[True] // 5 * 5}+ lines")


def test_what_is_announced_can_follow_and_is_carried_out_next() -> None:
    process = Process(EVERY_STAGE, World())
    process.run()
    for before, line, after in zip(process.states, process.journal, process.states[1:], strict=False):
        if line.kind is EventKind.STEPS_STARTED:
            told = next_action(after, process.now)
            assert isinstance(told, CarryOut)
            assert told.steps == line.steps
            assert not before.in_flight_in(StepState.STARTED)
