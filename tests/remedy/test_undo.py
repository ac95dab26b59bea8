"""The plan that undoes a run."""

from datetime import timedelta

import plan_builders as b
import pytest
from rollout_world import Process, World, effects

from exitguard.model.canonical import content_hash
from exitguard.model.plan import DomainPmuChange, LeftAloneBecause, Plan, step_id
from exitguard.model.pmu import PmuElement
from exitguard.model.run import EventKind, RunEvent, StepOutcome
from exitguard.remedy.rollout import Done, IllegalEvent
from exitguard.remedy.undo import undo_plan

RUN = "20261123T020000Z-1f0c9a2b"
LATER = b.T0 + timedelta(hours=1)
KERNEL_AND_GUESTS = {"a": [b.step("a"), b.step("a", 0, b.KERNEL)], "c": [b.step("c"), b.step("c", 1)]}


def carried_out(plan: Plan, world: World | None = None) -> list[RunEvent]:
    process = Process(plan, world or World())
    process.run()
    return process.journal


def undone(plan: Plan, events: list[RunEvent]) -> Plan:
    return undo_plan(plan, events, run_id=RUN, made_at=LATER)


def id_of(plan: Plan, name: str) -> str:
    return next(step.id for step in plan.steps if step.subject.name == name)


def test_each_definition_that_the_run_changed_is_put_back_as_it_was() -> None:
    plan = b.plan(["a"])
    back = undone(plan, carried_out(plan))
    (step,) = back.steps
    assert step.change == DomainPmuChange(
        uuid="a-guest-0", before=PmuElement.OFF, after=PmuElement.ABSENT, restores=b.undo().definition_before
    )
    assert step.basis == b.undo().definition_after
    assert step.id == step_id("a", step.change, step.basis)
    assert step.subject == plan.steps[0].subject
    assert step.why == f"run {RUN} changed it: its PMU is on by default"
    assert "-    <pmu state='off'/>\n+    (no <pmu> element, as before the run)" in step.diff
    assert [saving.provenance for saving in step.savings] == ["unquantified"]


def test_undo_is_a_plan_of_its_own_that_names_its_run_and_hashes_its_content() -> None:
    plan = b.plan(["a"], rollback=True, in_flight=7, budget=3)
    back = undone(plan, carried_out(plan))
    assert (back.undoes, back.made_at) == (RUN, LATER)
    assert back.hash == content_hash(back.content()) != plan.hash
    assert back.pace.automatic_rollback is False
    assert (back.pace.max_hosts_in_flight, back.pace.failure_budget) == (7, 3)
    assert (back.mode, back.approval, back.inputs) == (plan.mode, plan.approval, plan.inputs)
    assert Plan.model_validate_json(back.model_dump_json()) == back


def test_last_wave_is_undone_first_and_hosts_without_a_change_are_in_none() -> None:
    plan = b.plan(["a"], ["c", "d"], ["e"])
    world = World(in_effect={id_of(plan, "d-guest-0"), id_of(plan, "e-guest-0")})
    back = undone(plan, carried_out(plan, world))
    assert [(wave.name, wave.hosts) for wave in back.pace.waves] == [("undo of wave 1", ("c",)), ("undo of canary", ("a",))]
    assert [step.host_id for step in back.steps] == ["c", "a"]


def test_last_step_of_a_host_is_undone_first() -> None:
    plan = b.plan(["c"], steps=KERNEL_AND_GUESTS)
    assert [step.subject.name for step in undone(plan, carried_out(plan)).steps] == ["c-guest-1", "c-guest-0"]


def test_what_has_no_exact_undo_is_left_alone_with_the_reason() -> None:
    plan = b.plan(["a"], steps=KERNEL_AND_GUESTS)
    (left,) = undone(plan, carried_out(plan)).left_alone
    assert (left.remedy, left.because, left.subject.id) == (b.KERNEL, LeftAloneBecause.NO_REMEDY, "a")
    assert left.reason.startswith("kernel_guard is done, and this version has no exact undo of it")


def test_definition_that_the_plan_calls_irreversible_is_left_alone() -> None:
    plan = b.plan(["a"], steps={"a": [b.step("a", reversible=False)]})
    back = undone(plan, carried_out(plan))
    assert back.steps == ()
    assert [left.subject.name for left in back.left_alone] == ["a-guest-0"]


def test_run_that_changed_nothing_has_nothing_to_undo() -> None:
    plan = b.plan(["a"])
    for events in ([], carried_out(plan, World(in_effect={plan.steps[0].id})), carried_out(plan, World(check_fails={"a"}))):
        back = undone(plan, events)
        assert (back.steps, back.left_alone, back.pace.waves) == ((), (), ())


def test_step_that_the_run_has_undone_itself_is_not_undone_again() -> None:
    plan = b.plan(["a"], rollback=True)
    back = undone(plan, carried_out(plan, World(verify_fails={"a"})))
    assert (back.steps, back.left_alone) == ((), ())


def test_step_whose_automatic_undo_was_refused_is_undone_by_plan() -> None:
    plan = b.plan(["a"], rollback=True)
    world = World(verify_fails={"a"}, undo_ends={plan.steps[0].id: StepOutcome.REFUSED})
    assert [step.subject.name for step in undone(plan, carried_out(plan, world)).steps] == ["a-guest-0"]


@pytest.mark.parametrize(
    ("world", "reason"),
    [
        (World(ends={b.step("a").id: StepOutcome.TIMED_OUT}), "it ended timed_out: whether it is in effect is not known"),
        (World(ends={b.step("a").id: StepOutcome.FAILED}), "it ended failed: whether"),
        (World(verify_fails={"a"}, undo_ends={b.step("a").id: StepOutcome.UNREACHABLE}), "its undo ended unreachable: whether it is still"),
    ],
)
def test_step_of_which_nobody_knows_whether_it_is_in_effect_is_left_alone(world: World, reason: str) -> None:
    plan = b.plan(["a"], rollback=True)
    back = undone(plan, carried_out(plan, world))
    assert back.steps == ()
    assert back.left_alone[0].reason.startswith(reason)


def test_step_that_was_refused_has_changed_nothing_to_undo() -> None:
    plan = b.plan(["a"])
    back = undone(plan, carried_out(plan, World(ends={plan.steps[0].id: StepOutcome.REFUSED})))
    assert (back.steps, back.left_alone) == ((), ())


def killed_after_the_start(plan: Plan, **settled: object) -> list[RunEvent]:
    """The journal of a run that was killed while it carried out its one step, and the line that settles it, where there is one."""
    journal = carried_out(plan)
    cut = next(number for number, line in enumerate(journal) if line.kind is EventKind.STEPS_STARTED) + 1
    lines = [*journal[:cut], b.event(cut, EventKind.RESUMED)]
    if settled:
        lines.append(b.event(cut + 1, EventKind.STEP_SETTLED, step=plan.steps[0].id, **settled))
    return lines


def test_step_whose_end_nobody_saw_is_undone_only_once_it_is_settled_and_what_was_there_is_known() -> None:
    plan = b.plan(["a"])
    (unsettled,) = undone(plan, killed_after_the_start(plan)).left_alone
    assert unsettled.reason.startswith("its end was not seen")
    (unrecorded,) = undone(plan, killed_after_the_start(plan, outcome=StepOutcome.DONE)).left_alone
    assert "`virsh edit a-guest-0`" in unrecorded.reason
    assert len(undone(plan, killed_after_the_start(plan, outcome=StepOutcome.DONE, undo=b.undo())).steps) == 1
    assert undone(plan, killed_after_the_start(plan, outcome=StepOutcome.NOT_DONE)).left_alone == ()


def test_journal_that_tells_of_another_definition_than_the_plan_undoes_nothing() -> None:
    plan = b.plan(["a"])
    other = b.undo().model_copy(update={"element": "<pmu/>"})
    back = undone(plan, killed_after_the_start(plan, outcome=StepOutcome.DONE, undo=other))
    assert back.steps == ()
    assert back.left_alone[0].reason.startswith("the journal says that <pmu> was '<pmu/>' before, the plan 'absent'")


def test_journal_of_another_plan_is_refused() -> None:
    with pytest.raises(IllegalEvent, match="it names plan sha256:"):
        undone(b.plan(["a"]), carried_out(b.plan(["a", "c"])))


def test_undo_plan_can_be_rolled_out_and_undone_in_its_turn() -> None:
    plan = b.plan(["a"], ["c", "d"], steps={"c": [b.step("c"), b.step("c", 1)]})
    world = World()
    back = undone(plan, carried_out(plan, world))
    assert effects(world, plan) == {"a-guest-0", "c-guest-0", "c-guest-1", "d-guest-0"}
    backward = Process(back, World())
    assert backward.run() == Done(success=True)
    assert [line.hosts for line in backward.journal if line.kind is EventKind.BATCH_STARTED] == [("c", "d"), ("a",)]
    found = b.undo().model_copy(update={"element": "off"})
    lines = [line if line.undo is None else line.model_copy(update={"undo": found}) for line in backward.journal]
    forth = undo_plan(back, lines, run_id="second", made_at=LATER)
    assert [wave.hosts for wave in forth.pace.waves] == [("a",), ("c", "d")]
    assert {step.change.after for step in forth.steps if isinstance(step.change, DomainPmuChange)} == {PmuElement.OFF}
    assert len(forth.steps) == 4
