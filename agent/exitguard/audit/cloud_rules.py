"""The checks of a cloud that rules name: one function a check, from a judged cloud to findings. Pure.

A finding is made only where something fails or is not known. What passes or does not apply is a bare verdict, to be counted: a cloud has
a hundred thousand instances, and most of them are as they should be.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from exitguard.audit.computes import Computes
from exitguard.audit.drift import judge_drift
from exitguard.audit.host_side import HostSide, NovaDomain
from exitguard.audit.instance import Said, conflict_verdict, said
from exitguard.audit.instance_judgement import Instance
from exitguard.audit.instance_reasons import recovery, why_conflict
from exitguard.model.cloud import CloudFacts, Flavor, Image
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Subject, SubjectKind, Verdict
from exitguard.model.pmu import PmuSetting, Tri
from exitguard.policy.schema import Check, Rule

#: A finding, or only its verdict where there is nothing to tell.
Outcome = Finding | Verdict

_FINDING_FIELDS = set(Finding.model_fields)
_COUNTED = frozenset({Verdict.PASS, Verdict.NOT_APPLICABLE})
#: More names than this in one sentence tell nobody anything; the evidence has more of them.
_MOST_TOLD = 3
_MOST_EVIDENCE = 50
_SAYS = {Said.ON: "true", Said.OFF: "false"}
_OTHER = {Said.ON: Said.OFF, Said.OFF: Said.ON}


@dataclass(frozen=True)
class CloudJudgement:
    """Everything the checks look at."""

    cloud: CloudFacts
    computes: Computes
    #: By compute host whether its Nova defaults to PMU off.
    defaults: Mapping[str, Tri]
    instances: tuple[Instance, ...]
    #: Domains of Nova's that no server of this cloud has.
    strays: tuple[tuple[HostSide, NovaDomain], ...]

    @property
    def subject(self) -> Subject:
        return Subject(kind=SubjectKind.CLOUD, id=self.cloud.cloud.id, name=self.cloud.cloud.name)

    def evidence(self, source: str, value: str) -> Evidence:
        return Evidence(source=source, value=value, observed_at=self.cloud.observed_at)

    @cached_property
    def default_proven(self) -> bool:
        """Whether Nova defaults to PMU off on every compute host that runs QEMU, all of them being shown."""
        shown = self.cloud.services.value is not None or self.cloud.hypervisors.value is not None
        qemu = [self.defaults[host] for host, compute in self.computes.by_host.items() if compute.qemu is not False]
        return shown and bool(qemu) and all(each is Tri.YES for each in qemu)

    @cached_property
    def default_told(self) -> str:
        """Where Nova has no such default, or may have none, in a few words."""
        by_holds = {tri: [host for host, holds in self.defaults.items() if holds is tri] for tri in Tri}
        if by_holds[Tri.NO]:
            return f"Nova leaves it to QEMU on {_some(by_holds[Tri.NO])}"
        if by_holds[Tri.UNKNOWN]:
            return f"no default of Nova's is proven on {_some(by_holds[Tri.UNKNOWN])}"
        return "no default of Nova's is proven: compute hosts were not shown"

    @cached_property
    def images_that_say(self) -> dict[Said, tuple[Image, ...]]:
        """Images by what they say of the PMU."""
        return {each: tuple(image for image in self.cloud.images.value or () if said(image.hw_pmu) is each) for each in Said}


def check_rule(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    """The outcomes of one rule. A check that breaks becomes a finding of its own (`error`), and the others go on."""
    check = _CHECKS.get(rule.check)
    if check is None:
        return
    try:
        yield from check(rule, judged)
    except Exception as error:  # noqa: BLE001 - the outer edge of one check; the finding carries what happened
        yield _outcome(rule, judged.subject, Verdict.ERROR, f"the check itself broke: {type(error).__name__}: {error}", ())


def _outcome(rule: Rule, subject: Subject, verdict: Verdict, reason: str, evidence: tuple[Evidence, ...]) -> Outcome:
    if verdict in _COUNTED:
        return verdict
    # The values are what they are declared to be: they are not checked again, and all share the set of the fields' names.
    return Finding.model_construct(
        _FINDING_FIELDS,
        rule=rule.id,
        severity=rule.severity,
        subject=subject,
        verdict=verdict,
        reason=reason,
        since=None,
        evidence=evidence,
        remedy=rule.remedy if verdict is Verdict.FAIL else None,
        waiver=None,
    )


def _many(names: list[str], what: str) -> str:
    return f"{len(names):,} {what}{'' if len(names) == 1 else 's'}"


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_TOLD
    return f"{', '.join(names[:_MOST_TOLD])}{f' and {more:,} more' if more > 0 else ''}"


def _sources(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    """What could not be seen, or does not fit together, although a verdict may rest on it."""
    missing = [*_unseen_parts(judged), *_unjoined(judged)]
    if not missing:
        yield Verdict.PASS
        return
    evidence = tuple(judged.evidence(source, value) for _, source, values in missing for value in values[:_MOST_EVIDENCE])
    yield _outcome(rule, judged.subject, Verdict.UNKNOWN, "; ".join(reason for reason, _, _ in missing), evidence)


_Missing = tuple[str, str, list[str]]


def _unseen_parts(judged: CloudJudgement) -> Iterator[_Missing]:
    cloud = judged.cloud
    parts = (
        ("flavors", cloud.flavors),
        ("images", cloud.images),
        ("servers", cloud.servers),
        ("services", cloud.services),
        ("hypervisors", cloud.hypervisors),
        ("aggregates", cloud.aggregates),
    )
    for name, observed in parts:
        if observed.reason is not None:
            needs = f"; would need {observed.unlock}" if observed.unlock else ""
            yield f"{name} could not be seen ({observed.reason}{needs})", observed.source, [f"not seen: {observed.reason}{needs}"]
    if cloud.scope == "project":
        told = "only the servers of one project were shown; would need os_compute_api:servers:detail:get_all_tenants"
        yield told, cloud.servers.source, [told]
    if cloud.notices:
        yield f"{_many(list(cloud.notices), 'note')} of playbooks could not be read", "notes of playbooks", list(cloud.notices)
    hidden = [flavor.name for flavor in cloud.flavors.value or () if flavor.hw_pmu is None]
    if hidden:
        told = f"the extra specs of {_many(hidden, 'flavor')} were not shown ({_some(hidden)})"
        yield f"{told}; would need os_compute_api:os-flavor-extra-specs:index", "flavors", hidden


def _unjoined(judged: CloudJudgement) -> Iterator[_Missing]:
    computes, with_instances = judged.computes, {each.report.host for each in judged.instances}
    blind = [host for host, each in computes.by_host.items() if each.qemu is not False and not each.sides and host in with_instances]
    if blind:
        yield f"no facts of {_many(blind, 'compute host')} with instances were given ({_some(blind)})", "facts of hosts", blind
    unlisted = [f"{side.name}: {side.unlisted}" for each in computes.by_host.values() for side in each.sides if side.unlisted is not None]
    if unlisted:
        yield f"the domains of {_many(unlisted, 'host')} could not be listed ({_some(unlisted)})", "facts of hosts", unlisted
    twice = [f"{host}: {_some([side.host_id for side in each.sides])}" for host, each in computes.by_host.items() if len(each.sides) > 1]
    if twice:
        yield f"several hosts go by the name of one compute host ({_some(twice)})", "facts of hosts", twice
    if computes.astray:
        told = [why for _, why in computes.astray]
        yield f"the facts of {_many(told, 'host')} belong to no compute host that was shown ({_some(told)})", "facts of hosts", told
    if judged.strays:
        told = [f"{domain.uuid} ({domain.name} on {side.name})" for side, domain in judged.strays]
        yield f"no server that was shown is {_many(told, 'domain')} of Nova's on these hosts ({_some(told)})", "facts of hosts", told


def _flavor_silent(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    for flavor in judged.cloud.flavors.value or ():
        subject = Subject(kind=SubjectKind.FLAVOR, id=flavor.id, name=flavor.name)
        match said(flavor.hw_pmu):
            case Said.ON:
                yield Verdict.NOT_APPLICABLE
            case Said.OFF:
                yield Verdict.PASS
            case Said.SILENT if judged.default_proven:
                yield Verdict.PASS
            case Said.SILENT:
                reason = f"it says nothing of the PMU, and {judged.default_told}: QEMU decides, unless an image says something"
                yield _outcome(rule, subject, Verdict.FAIL, reason, (judged.evidence("Nova: flavors", f"{flavor.name}: hw:pmu silent"),))
            case Said.UNKNOWN:
                yield _outcome(rule, subject, Verdict.UNKNOWN, _not_told("hw:pmu", flavor.hw_pmu), ())


def _image_silent(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    flavors = judged.cloud.flavors.value
    silent = [flavor.name for flavor in flavors or () if said(flavor.hw_pmu) is Said.SILENT]
    may_be = flavors is None or any(said(flavor.hw_pmu) is Said.UNKNOWN for flavor in flavors)
    for image in judged.cloud.images.value or ():
        subject = Subject(kind=SubjectKind.IMAGE, id=image.id, name=image.name)
        says = said(image.hw_pmu)
        evidence = (judged.evidence("Glance: images", f"{image.name}: hw_pmu silent"),)
        if says is Said.ON or not (silent or may_be):
            yield Verdict.NOT_APPLICABLE
        elif says is Said.OFF or judged.default_proven:
            yield Verdict.PASS
        elif says is Said.UNKNOWN:
            yield _outcome(rule, subject, Verdict.UNKNOWN, _not_told("hw_pmu", image.hw_pmu), ())
        elif silent:
            reason = f"it says nothing of the PMU, and neither do the flavors {_some(silent)}: QEMU decides for instances of both"
            yield _outcome(rule, subject, Verdict.FAIL, reason, evidence)
        else:
            yield _outcome(rule, subject, Verdict.UNKNOWN, "it says nothing of the PMU, and what flavors say could not be seen", evidence)


def _catalog_conflict(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    images = judged.cloud.images
    for flavor in judged.cloud.flavors.value or ():
        subject = Subject(kind=SubjectKind.FLAVOR, id=flavor.id, name=flavor.name)
        says = said(flavor.hw_pmu)
        if says is Said.UNKNOWN:
            yield _outcome(rule, subject, Verdict.UNKNOWN, _not_told("hw:pmu", flavor.hw_pmu), ())
        elif says is Said.SILENT:
            yield Verdict.NOT_APPLICABLE
        elif against := judged.images_that_say[_OTHER[says]]:
            yield _conflicting(rule, judged, flavor, against)
        elif images.value is None:
            yield _outcome(rule, subject, Verdict.UNKNOWN, f"what images say could not be seen: {images.reason}", ())
        elif unread := judged.images_that_say[Said.UNKNOWN]:
            reason = f"what some images say was not shown, or is no boolean ({_some([image.name for image in unread])})"
            yield _outcome(rule, subject, Verdict.UNKNOWN, reason, ())
        else:
            yield Verdict.PASS


def _conflicting(rule: Rule, judged: CloudJudgement, flavor: Flavor, against: tuple[Image, ...]) -> Outcome:
    says = said(flavor.hw_pmu)
    images = [image.name for image in against]
    names = _some(images)
    reason = (
        f"it says hw:pmu={_SAYS[says]}, and {_many(images, 'image')} with hw_pmu={_SAYS[_OTHER[says]]} may be asked for ({names}): "
        "Nova refuses to boot or rebuild an instance of both"
    )
    evidence = tuple(
        judged.evidence("Glance: images", f"{image.name} ({image.id}): hw_pmu = {image.hw_pmu}") for image in against[:_MOST_TOLD]
    )
    return _outcome(rule, Subject(kind=SubjectKind.FLAVOR, id=flavor.id, name=flavor.name), Verdict.FAIL, reason, evidence)


def _not_told(name: str, text: str | None) -> str:
    return f"what it says of {name} was not shown" if text is None else f"{name} says {text!r}, which is no boolean"


def _instance_conflict(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    for instance in judged.instances:
        verdict = conflict_verdict(instance.told.conclusion) if instance.outside is None else Verdict.NOT_APPLICABLE
        yield _instance_outcome(rule, instance, verdict, _conflict_reason(instance, verdict))


def _conflict_reason(instance: Instance, verdict: Verdict) -> str:
    if verdict is Verdict.FAIL:
        return f"{why_conflict(instance.told.conclusion)}: {recovery(instance.told.conclusion)}"
    if verdict is Verdict.UNKNOWN:
        return f"whether its flavor and its image contradict each other cannot be told: {instance.told.unsettled}"
    return ""


def _instance_drift(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    flavors_seen = judged.cloud.flavors.value is not None
    sentences: dict[str, str] = {}
    for instance in judged.instances:
        if instance.outside is not None:
            yield Verdict.NOT_APPLICABLE
        else:
            verdict, reason = judge_drift(instance, flavors_seen=flavors_seen)
            yield _instance_outcome(rule, instance, verdict, sentences.setdefault(reason, reason))


def _instance_pmu(rule: Rule, judged: CloudJudgement) -> Iterator[Outcome]:
    reasons: dict[str, str] = {}
    for instance in judged.instances:
        verdict = instance.told.pmu_verdict if instance.outside is None else Verdict.NOT_APPLICABLE
        reason = ""
        if verdict is Verdict.FAIL:
            reason = (
                "nobody asked for its PMU, and it has one from its next start by Nova on: Nova writes no element, and QEMU switches it on"
            )
        elif verdict is Verdict.UNKNOWN:
            told = f"what its next start by Nova will have is not known: {instance.told.unsettled}"
            reason = reasons.setdefault(told, told)
        yield _instance_outcome(rule, instance, verdict, reason)


def _instance_outcome(rule: Rule, instance: Instance, verdict: Verdict, reason: str) -> Outcome:
    if instance.report.persistent is PmuSetting.NONE and verdict is Verdict.UNKNOWN:
        reason = f"{reason}; it is shelved, and gets a host when it is unshelved"
    return _outcome(rule, instance.subject, verdict, reason, instance.report.evidence)


_CHECKS: dict[Check, Callable[[Rule, CloudJudgement], Iterator[Outcome]]] = {
    Check.NOVA_SOURCES: _sources,
    Check.NOVA_FLAVOR_SILENT: _flavor_silent,
    Check.NOVA_IMAGE_SILENT: _image_silent,
    Check.NOVA_CATALOG_CONFLICT: _catalog_conflict,
    Check.NOVA_INSTANCE_CONFLICT: _instance_conflict,
    Check.NOVA_INSTANCE_DRIFT: _instance_drift,
    Check.NOVA_INSTANCE_PMU: _instance_pmu,
}
