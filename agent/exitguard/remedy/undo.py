"""A plan that undoes a run: what the run changed and has not undone itself, put back as it was. Pure.

Only definitions, flavors and images can be put back exactly, and only with what the journal says of them; everything else that the run
changed, or may have changed, is left alone with the reason.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from exitguard.model.canonical import record_hash
from exitguard.model.documents import Tool
from exitguard.model.plan import (
    Disruption,
    DomainPmuChange,
    LeftAlone,
    LeftAloneBecause,
    NovaFlavorChange,
    NovaImageChange,
    Plan,
    SavingPerExit,
    Step,
    Wave,
    step_id,
)
from exitguard.model.pmu import PmuElement
from exitguard.model.run import RunEvent, Undo
from exitguard.remedy.rollout_events import advance
from exitguard.remedy.rollout_state import RolloutState, StepProgress, StepState, begin

_SAFE = (
    "only <pmu> changes: the definition is read back, and has to be exactly what it was before the run",
    "it is changed only where it is still what the run made of it",
    "the running guest is not touched",
)
_TAKES_EFFECT = "at the guest's next cold start; where it was started anew since the run, it goes on without a PMU until then"
_END_NOT_SEEN = (
    "its end was not seen: whether it is in effect is not known. `exitguard rollout resume` settles it; make the plan anew after that"
)
_ELEMENTS = {
    PmuElement.ON: "<pmu state='on'/>",
    PmuElement.OFF: "<pmu state='off'/>",
    PmuElement.ABSENT: "(no <pmu> element, as before the run)",
}


def undo_plan(plan: Plan, events: Iterable[RunEvent], *, run_id: str, made_at: datetime) -> Plan:
    """The plan that undoes the run `run_id` of `plan` whose journal is `events`, its last wave first.

    What cannot be undone is left alone, each with its reason. Raises RolloutError for a plan or a journal that contradicts itself.
    """
    state = begin(plan)
    for event in events:
        state = advance(state, event)
    waves = []
    steps: list[Step] = []
    left_alone: list[LeftAlone] = []
    for wave in reversed(plan.pace.waves):
        hosts = []
        for host_id in wave.hosts:
            decisions = list(_decisions(state, host_id, run_id))
            undone = [each for each in decisions if isinstance(each, Step)]
            steps += undone
            left_alone += [each for each in decisions if isinstance(each, LeftAlone)]
            if undone:
                hosts.append(host_id)
        if hosts:
            waves.append(Wave(name=f"undo of {wave.name}", hosts=tuple(hosts)))
    made = plan.model_copy(
        update={
            "tool": Tool(),
            "made_at": made_at,
            "pace": plan.pace.model_copy(update={"waves": tuple(waves), "automatic_rollback": False}),
            "steps": tuple(steps),
            "left_alone": tuple(left_alone),
            "undoes": run_id,
        }
    )
    return made.model_copy(update={"hash": record_hash(made.content())})


def _decisions(state: RolloutState, host_id: str, run_id: str) -> Iterator[Step | LeftAlone]:
    """What is to be done about each step of a host that changed something or may have, the last one first."""
    for original in reversed(state.index.host_steps[host_id]):
        step, progress = state.index.steps[original], state.step(original)
        match progress.state:
            case StepState.DONE:
                yield _reverse(step, progress, run_id)
            case StepState.STARTED | StepState.IN_DOUBT | StepState.UNDOING | StepState.UNDO_IN_DOUBT:
                yield _leave(step, _END_NOT_SEEN)
            case StepState.UNCERTAIN:
                yield _leave(step, f"it ended {_told(progress)}: whether it is in effect is not known. Look at it before anything else")
            case StepState.UNDO_UNCERTAIN:
                yield _leave(
                    step, f"its undo ended {_told(progress)}: whether it is still in effect is not known. Look at it before anything else"
                )
            case StepState.WAITING | StepState.LEFT | StepState.NOT_DONE | StepState.UNDONE:
                pass


def _reverse(step: Step, progress: StepProgress, run_id: str) -> Step | LeftAlone:
    """The step that puts back what `step` changed."""
    change = step.change
    if isinstance(change, NovaFlavorChange | NovaImageChange):
        return _reverse_in_cloud(step, change, progress.undo, run_id)
    if not isinstance(change, DomainPmuChange) or not step.reversible:
        return _leave(
            step, f"{step.remedy.value} is done, and this version has no exact undo of it: docs/operations.md says how to go back"
        )
    undo = progress.undo
    if undo is None:
        return _leave(
            step,
            "it is in effect, but what was there before is not on record, since its process ended before it could say so: the plan says "
            f"{_ELEMENTS[change.before]}. `virsh edit {change.uuid}` on the host puts it back",
        )
    if undo.element != change.before.value:
        return _leave(
            step, f"the journal says that <pmu> was {undo.element!r} before, the plan {change.before.value!r}: look at both first"
        )
    return _reversed_step(step, change, undo, run_id)


def _reversed_step(step: Step, change: DomainPmuChange, undo: Undo, run_id: str) -> Step:
    definition_after = undo.definition_after or ""
    back = DomainPmuChange(uuid=change.uuid, before=change.after, after=change.before, restores=undo.definition_before)
    return Step(
        id=step_id(step.host_id, back, definition_after),
        host_id=step.host_id,
        subject=step.subject,
        change=back,
        basis=definition_after,
        why=f"run {run_id} changed it: {step.why}",
        safe=_SAFE,
        disruption=Disruption.NONE,
        takes_effect=_TAKES_EFFECT,
        diff=f"   <features>\n-    {_ELEMENTS[back.before]}\n+    {_ELEMENTS[back.after]}\n   </features>",
        savings=(
            SavingPerExit(provenance="unquantified", reason="an undo saves nothing: what the step saved, or would have, is given up"),
        ),
        reversible=True,
    )


def _reverse_in_cloud(step: Step, change: NovaFlavorChange | NovaImageChange, undo: Undo | None, run_id: str) -> Step | LeftAlone:
    if undo is None or undo.element != change.before:
        found = "is not on record" if undo is None else f"was {undo.element!r} by the journal"
        return _leave(step, f"what {step.subject.name} said before {found}, the plan says {change.before!r}: look at it first")
    back = change.model_copy(update={"before": change.after, "after": change.before})
    basis = f"run {run_id}"
    return step.model_copy(
        update={
            "id": step_id(step.host_id, back, basis),
            "change": back,
            "basis": basis,
            "why": f"run {run_id} changed it: {step.why}",
            "safe": ("it is changed only where it still says what the run made of it", "existing instances keep their own copy"),
            "takes_effect": "for instances that are made with it from then on; those made meanwhile keep what they have",
            "guest_loses": (),
            "diff": "\n".join(_exchanged(line) for line in step.diff.split("\n")),
            "savings": (
                SavingPerExit(provenance="unquantified", reason="an undo saves nothing: what the step saved, or would have, is given up"),
            ),
        }
    )


def _exchanged(line: str) -> str:
    """A line of a diff, of the way back."""
    return {"+": "-", "-": "+"}.get(line[:1], line[:1]) + line[1:]


def _leave(step: Step, reason: str) -> LeftAlone:
    return LeftAlone(host_id=step.host_id, subject=step.subject, remedy=step.remedy, because=LeftAloneBecause.NO_REMEDY, reason=reason)


def _told(progress: StepProgress) -> str:
    outcome = progress.undo_outcome or progress.outcome
    told = outcome.value if outcome is not None else "without an outcome"
    return f"{told} ({progress.reason})" if progress.reason else told
