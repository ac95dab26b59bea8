"""Whether a planned step is still true, and whether it is in force, by facts that were gathered anew. Pure."""

from dataclasses import dataclass
from datetime import datetime

from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainFacts, OwnerKind
from exitguard.model.plan import DomainPmuChange, KernelGuardChange, LeftAlone, Remedy, Step
from exitguard.model.pmu import Tri
from exitguard.policy.schema import Rulebook
from exitguard.remedy.plan import plan_host


@dataclass(frozen=True)
class StillTrue:
    """Of the steps of one host: those that are still true, and why the others are not."""

    due: tuple[str, ...]
    #: Step id to the reason.
    not_due: dict[str, str]


def still_true(steps: tuple[Step, ...], facts: FactsDocument, rulebook: Rulebook, *, undo: bool, now: datetime | None = None) -> StillTrue:
    """Which of one host's steps are still what these facts call for. The steps of an undo are in no plan that goes forward."""
    if facts.host.maintenance is not None:
        return StillTrue((), {step.id: f"the host is in maintenance: {facts.host.maintenance}" for step in steps})
    domains = {domain.uuid: domain for domain in facts.domains}
    if undo:
        reasons = {step.id: _why_not_undone(step, domains) for step in steps}
    else:
        fresh = plan_host(facts, rulebook, now=now)
        again = {step.id: step for step in fresh.steps}
        left = {(each.subject.id, each.remedy): each for each in fresh.left_alone}
        reasons = {
            step.id: None if _same(step, again.get(step.id)) else _why_not(step, facts, fresh.steps, left, domains) for step in steps
        }
    return StillTrue(
        tuple(step.id for step in steps if reasons[step.id] is None),
        {step_id: reason for step_id, reason in reasons.items() if reason is not None},
    )


def _same(planned: Step, fresh: Step | None) -> bool:
    """Whether a step of now is the planned one in all that was shown and approved, but for what depends on whether the guest runs."""
    told = {"why", "takes_effect", "savings"}
    return fresh is not None and planned.model_dump(exclude=told) == fresh.model_dump(exclude=told)


def why_blind(steps: tuple[Step, ...], facts: FactsDocument) -> str | None:
    """Why these facts say nothing of what the steps are about; None where they do."""
    reason = facts.host.libvirt.listing.reason
    if reason is None or not any(isinstance(step.change, DomainPmuChange) for step in steps):
        return None
    return f"libvirt's domains cannot be seen: {reason}"


def _why_not(
    step: Step,
    facts: FactsDocument,
    fresh: tuple[Step, ...],
    left: dict[tuple[str, Remedy | None], LeftAlone],
    domains: dict[str, DomainFacts],
) -> str:
    if isinstance(step.change, DomainPmuChange) and step.change.uuid not in domains:
        return "the domain is gone"
    if in_force(step, facts) is Tri.YES:
        return "done already"
    found = left.get((step.subject.id, step.remedy))
    if found is not None:
        return found.reason
    if any(each.subject.id == step.subject.id and each.remedy is step.remedy for each in fresh):
        return "what the step rests on has changed since it was planned: make a new plan"
    return "nothing is to be done about it any more"


def _why_not_undone(step: Step, domains: dict[str, DomainFacts]) -> str | None:
    if not isinstance(step.change, DomainPmuChange):
        return "it cannot be undone exactly"
    domain = domains.get(step.change.uuid)
    if domain is None or domain.definition is None:
        return "the domain is gone"
    if domain.locked:
        return "an operator's mark in its metadata says: leave alone"
    if domain.owner.kind is not OwnerKind.LIBVIRT:
        return f"{domain.owner.name} writes this definition now"
    if domain.definition.value is None:
        return f"its definition cannot be read: {domain.definition.reason}"
    if domain.definition.value.pmu is not step.change.before:
        return f"its definition was changed since: <pmu> is {domain.definition.value.pmu.value}, expected {step.change.before.value}"
    return None


def in_force(step: Step, facts: FactsDocument) -> Tri:
    """Whether the definition, or the host's settings, say what the step wanted; unknown where facts do not show it."""
    change = step.change
    if isinstance(change, DomainPmuChange):
        domain = next((each for each in facts.domains if each.uuid == change.uuid), None)
        definition = domain.definition.value if domain is not None and domain.definition is not None else None
        if definition is None:
            return Tri.UNKNOWN
        return Tri.YES if definition.pmu is change.after else Tri.NO
    if isinstance(change, KernelGuardChange):
        installed, boots_next = facts.host.kernel.installed.value, facts.host.kernel.boots_next.value
        if installed is None or boots_next is None:
            return Tri.UNKNOWN
        there = any(each.release == change.release for each in installed)
        return Tri.YES if there and boots_next == change.release else Tri.NO
    return Tri.UNKNOWN


def running(facts: FactsDocument) -> tuple[str, ...]:
    """The uuids of the domains that run."""
    return tuple(domain.uuid for domain in facts.domains if domain.active.value is True)


def why_not_alive(before: tuple[str, ...], facts: FactsDocument) -> str | None:
    """Which guests that ran before do not run any more; None where all do. Nobody here stopped them, and that is worth a stop."""
    if facts.host.libvirt.listing.reason is not None:
        return f"libvirt's domains cannot be seen any more: {facts.host.libvirt.listing.reason}"
    alive = {domain.uuid: domain for domain in facts.domains}
    gone = []
    for uuid in before:
        domain = alive.get(uuid)
        if domain is None:
            gone.append(f"{uuid} is gone")
        elif domain.active.value is False:
            gone.append(f"{domain.name} does not run")
        elif domain.active.value is None:
            gone.append(f"{domain.name}: whether it runs cannot be seen ({domain.active.reason})")
    if not gone:
        return None
    return "guests that ran before the steps: " + "; ".join(gone[:5]) + (f"; and {len(gone) - 5} more" if len(gone) > 5 else "")  # noqa: PLR2004
