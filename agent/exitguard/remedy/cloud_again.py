"""Whether the steps that were planned for a cloud are still true, by a fresh look through its API. Pure; the time is an argument.

Each step is decided once more, from the look and the policy alone, and has to come out as it was shown: a step that was edited, or that
the policy would not allow, is never carried out. What only facts of a host show is not looked at again.
"""

from datetime import datetime

from exitguard.model.cloud import CloudFacts, Flavor, Image
from exitguard.model.plan import LeftAlone, NovaFlavorChange, NovaImageChange, NovaInstanceChange, Step
from exitguard.model.pmu import Tri
from exitguard.policy.schema import Rulebook
from exitguard.remedy.cloud_steps import decide_again
from exitguard.remedy.in_cloud import STOPPED, basis_of, in_force, is_waived, told_status
from exitguard.remedy.in_force import StillTrue

#: Told anew each time: why a rule failed, and how many instances there are just now.
_TOLD = {"why", "takes_effect", "savings"}


def still_true(steps: tuple[Step, ...], cloud: CloudFacts, rulebook: Rulebook, *, undo: bool, now: datetime) -> StillTrue:
    """Which steps are still what this look calls for. The steps of an undo are true while what they take back is still there."""
    why = {step.id: _why_not_undone(step, cloud) if undo else _why_not(step, cloud, rulebook, now) for step in steps}
    return StillTrue(
        tuple(step.id for step in steps if why[step.id] is None), {key: reason for key, reason in why.items() if reason is not None}
    )


def _why_not(step: Step, cloud: CloudFacts, rulebook: Rulebook, now: datetime) -> str | None:
    if is_waived(step.subject, cloud, rulebook, (now, cloud.observed_at)):
        return "a failure of it is waived"
    if basis_of(step.change, cloud) is None:
        return "it is gone"
    if in_force(step, cloud) is Tri.YES:
        return "done already"
    if isinstance(step.change, NovaInstanceChange):
        server = cloud.servers_by_uuid[step.change.uuid]
        if server.locked:
            return "Nova's lock is on it"
        if server.status != STOPPED or server.task_state is not None:
            return f"it is {told_status(server)}: it can be set only while its owner has it stopped"
    again = decide_again(step, cloud, rulebook, now)
    if isinstance(again, LeftAlone):
        return f"what the step rests on has changed since it was planned: {again.reason}"
    if again is None or again.model_dump(exclude=_TOLD) != step.model_dump(exclude=_TOLD):
        return "what the step rests on has changed since it was planned: make a new plan"
    return None


def _why_not_undone(step: Step, cloud: CloudFacts) -> str | None:
    match step.change:
        case NovaFlavorChange() as change:
            found: Flavor | Image | None = cloud.flavors_by_id.get(change.flavor_id)
        case NovaImageChange() as change:
            found = cloud.images_by_id.get(change.image_id)
        case _:
            return "it cannot be undone exactly"
    if found is None:
        return "it is gone"
    if found.hw_pmu != change.before:
        return f"it was changed since: it says {found.hw_pmu!r}, expected {change.before!r}"
    return None
