"""Which of the verdicts that changed did so after a run of a plan had changed the subject, or its host: pure.

That a run came before is a fact; that it was the cause is the reader's to conclude.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from exitguard.model.history import Transition
from exitguard.model.plan import Plan
from exitguard.model.run import EventKind, RunEvent, StepOutcome

_ENDS = (EventKind.STEP_FINISHED, EventKind.STEP_SETTLED, EventKind.STEP_UNDONE)


@dataclass(frozen=True)
class Deed:
    """One step that a run carried out, or undid."""

    run_id: str
    at: datetime
    host_id: str
    subject_id: str


def deeds_of(run_id: str, plan: Plan, events: Iterable[RunEvent]) -> list[Deed]:
    """What a run changed, in the order in which it did."""
    steps = {step.id: step for step in plan.steps}
    done = (event for event in events if event.kind in _ENDS and event.outcome is StepOutcome.DONE and event.step in steps)
    return [Deed(run_id, event.at, steps[event.step].host_id, steps[event.step].subject.id) for event in done if event.step is not None]


def with_runs(transitions: Sequence[Transition], deeds: Iterable[Deed]) -> tuple[Transition, ...]:
    """Each transition with the last run that changed its subject, or the host, after the same finding's verdict before it."""
    done = sorted(deeds, key=lambda deed: deed.at)
    before: dict[tuple[str, str, str], datetime] = {}
    told = []
    for transition in sorted(transitions, key=lambda each: each.at):
        key = (transition.rule, transition.subject.kind, transition.subject.id)
        since = before.get(key)
        last = next((deed for deed in reversed(done) if _concerns(deed, transition) and deed.at <= transition.at), None)
        told.append(transition if last is None or (since is not None and last.at <= since) else _after(transition, last))
        before[key] = transition.at
    return tuple(told)


def _concerns(deed: Deed, transition: Transition) -> bool:
    """A change of the host itself concerns whatever is on it; the store is of one host."""
    return deed.subject_id in (transition.subject.id, deed.host_id)


def _after(transition: Transition, deed: Deed) -> Transition:
    return transition.model_copy(update={"after_run": deed.run_id})
