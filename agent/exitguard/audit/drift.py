"""NOVA-INSTANCE-DRIFT: where what an instance is, what Nova would make of it, and what its flavor says today are not the same. Pure."""

from collections.abc import Iterator

from exitguard.audit.instance import Said, said
from exitguard.audit.instance_domain import SHELVED_OFFLOADED
from exitguard.audit.instance_judgement import Instance
from exitguard.model.finding import Verdict
from exitguard.model.instance import PmuOrigin
from exitguard.model.pmu import PmuElement, Tri

_SAYS = {Said.ON: "hw:pmu=true", Said.OFF: "hw:pmu=false", Said.SILENT: "nothing"}
_HAS = {PmuElement.ON: "the PMU on", PmuElement.OFF: "the PMU off", PmuElement.ABSENT: "no <pmu> element"}


def judge_drift(instance: Instance, *, flavors_seen: bool) -> tuple[Verdict, str]:
    """What differs, or else what cannot be compared."""
    differs = list(_differences(instance))
    remark = _flavor_gone(instance) if flavors_seen else ""
    if differs:
        return Verdict.FAIL, "; ".join(filter(None, (*differs, remark)))
    unseen = list(_unseen(instance, flavors_seen=flavors_seen))
    if unseen:
        return Verdict.UNKNOWN, "; ".join(filter(None, (*unseen, remark)))
    return Verdict.PASS, "; ".join(filter(None, ("embedded flavor, today's flavor, definition and run agree", remark)))


def _differences(instance: Instance) -> Iterator[str]:
    today, embedded = instance.flavor_today, instance.known.flavor
    if today is not None and Said.UNKNOWN not in (embedded, said(today.hw_pmu)) and said(today.hw_pmu) is not embedded:
        yield f"flavor {today.name} says {_SAYS[said(today.hw_pmu)]} today, the copy embedded in the instance says {_SAYS[embedded]}"
    conclusion = instance.told.conclusion
    if conclusion.origin in (PmuOrigin.BEHIND_NOVA, PmuOrigin.CONFLICT):
        yield instance.told.origin_reason
    running, after = _runs_with(instance), conclusion.next_element
    if running is not None and after is not None and running is not after:
        yield f"it runs with {_HAS[running]}, and starts with {_HAS[after]} next"


def _runs_with(instance: Instance) -> PmuElement | None:
    """The element of its run, where that is of the flavor and image that it has now."""
    return instance.found.domain.runs_with if instance.known.runs and instance.found.domain is not None else None


def _unseen(instance: Instance, *, flavors_seen: bool) -> Iterator[str]:
    known, conclusion = instance.known, instance.told.conclusion
    if known.flavor is Said.UNKNOWN:
        yield instance.texts.why_flavor
    if not flavors_seen:
        yield "what its flavor says today was not shown"
    elif instance.flavor_today is not None and said(instance.flavor_today.hw_pmu) is Said.UNKNOWN:
        yield f"what flavor {instance.flavor_today.name} says today was not shown, or is no boolean"
    if known.defined is None:
        if instance.report.status != SHELVED_OFFLOADED:
            yield f"its definition was not seen: {instance.found.note or 'the XML is of another flavor or image, or of before a change'}"
    elif conclusion.next_element is None and conclusion.conflict is not Tri.YES and known.flavor is not Said.UNKNOWN:
        yield instance.told.unsettled


def _flavor_gone(instance: Instance) -> str:
    return "" if instance.flavor_today is not None else f"its flavor {instance.report.flavor} is deleted since, or not shown"
