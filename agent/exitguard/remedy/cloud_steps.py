"""What the policy's remedies would do in an OpenStack cloud, and what is left alone there. Pure; the time is an argument.

Nova owns the definitions of its instances, so everything is set where Nova keeps it: in flavors and images for instances to come, in the
stored image properties of an instance that its owner has stopped. No instance is started, stopped, resized or rebuilt.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from exitguard.audit.nova import wish
from exitguard.model.canonical import record_hash
from exitguard.model.cloud import CloudFacts, Flavor, Image, Server
from exitguard.model.finding import OF_A_CLOUD, Finding, Subject, SubjectKind, Verdict
from exitguard.model.instance import CloudReport, InstanceReport
from exitguard.model.plan import (
    Change,
    Disruption,
    LeftAlone,
    LeftAloneBecause,
    NovaFlavorChange,
    NovaImageChange,
    NovaInstanceChange,
    PlannedHost,
    Remedy,
    SavingPerExit,
    Step,
    step_id,
)
from exitguard.policy.remedies import ALL_NAMES, NovaRemedies
from exitguard.policy.schema import Rulebook
from exitguard.remedy.in_cloud import STOPPED, asking_flavors, asking_images, basis_of, is_waived, told_status
from exitguard.remedy.plan import HostPlan, refuse_bad_waivers

_MOST_NAMES = 5
_LOSES = (
    "hardware performance events of its own: perf, VTune, rr and nested guests that rely on a PMU",
    "an owner who needs them sets hw_pmu=true on the image or uses a flavor with hw:pmu=true: that is a wish, and is never taken away",
)
_UNQUANTIFIED = (
    SavingPerExit(
        provenance="unquantified",
        reason="it depends on the host: its kernel, its QEMU and its processor. `exitguard audit` there tells what an exit costs less",
    ),
)


@dataclass(frozen=True)
class _Looked:
    """One cloud as planning looks at it."""

    cloud: CloudFacts
    #: None where only the API was looked at again.
    report: CloudReport | None
    rulebook: Rulebook
    planned_at: datetime

    @property
    def allowed(self) -> NovaRemedies:
        return self.rulebook.policy.remedies.nova

    @cached_property
    def instances(self) -> dict[str, InstanceReport]:
        return {} if self.report is None else {instance.uuid: instance for instance in self.report.instances}

    @cached_property
    def silent_instances(self) -> Counter[str]:
        """How many existing instances keep a silent copy of each flavor, by the flavor's name."""
        return Counter(server.flavor for server in self.cloud.servers.value or () if server.flavor_hw_pmu == "")

    @cached_property
    def images_in_use(self) -> Counter[str]:
        return Counter(server.image for server in self.cloud.servers.value or () if server.image is not None)

    @cached_property
    def flavors_off(self) -> tuple[str, ...]:
        return tuple(sorted(flavor.name for flavor in self.cloud.flavors.value or () if wish(flavor.hw_pmu) is False))

    def leave(self, subject: Subject, remedy: Remedy | None, because: LeftAloneBecause, reason: str) -> LeftAlone:
        return LeftAlone(host_id=self.cloud.cloud.id, subject=subject, remedy=remedy, because=because, reason=reason)

    def step(
        self, subject: Subject, why: str, change: Change, *, safe: tuple[str, ...], takes_effect: str, diff: str, reversible: bool
    ) -> Step | LeftAlone:
        basis = basis_of(change, self.cloud)
        if basis is None:
            return self.leave(subject, change.remedy, LeftAloneBecause.UNKNOWN, "the API did not show it")
        return Step(
            id=step_id(self.cloud.cloud.id, change, basis),
            host_id=self.cloud.cloud.id,
            subject=subject,
            change=change,
            basis=basis,
            why=why,
            safe=safe,
            disruption=Disruption.NONE,
            takes_effect=takes_effect,
            guest_loses=_LOSES,
            diff=diff,
            savings=_UNQUANTIFIED,
            reversible=reversible,
        )


def plan_cloud(cloud: CloudFacts, report: CloudReport, rulebook: Rulebook, *, now: datetime) -> HostPlan:
    """What the policy's remedies would do in one cloud, by its facts and by what an audit made of them.

    Raises PlanError where a waiver of the rulebook is malformed.
    """
    refuse_bad_waivers(rulebook)
    looked = _Looked(cloud, report, rulebook, now)
    decisions = list(_decisions(looked, report))
    return HostPlan(
        PlannedHost(
            id=cloud.cloud.id, hostname=cloud.cloud.name, inventory_name=None, facts_hash=_facts_hash(cloud, report), cloud=cloud.cloud.name
        ),
        steps=tuple(each for each in decisions if isinstance(each, Step)),
        left_alone=tuple(each for each in decisions if isinstance(each, LeftAlone)),
    )


def decide_again(step: Step, cloud: CloudFacts, rulebook: Rulebook, now: datetime) -> Step | LeftAlone | None:
    """What would be decided about a step's subject now, by the API alone; None for a subject that is not a cloud's."""
    looked = _Looked(cloud, None, rulebook, now)
    change = step.change
    match change:
        case NovaFlavorChange() if change.flavor_id in cloud.flavors_by_id:
            flavor = cloud.flavors_by_id[change.flavor_id]
            return _allowed(looked, _flavor(looked, Subject(kind=SubjectKind.FLAVOR, id=flavor.id, name=flavor.name), step.why, flavor))
        case NovaImageChange() if change.image_id in cloud.images_by_id:
            image = cloud.images_by_id[change.image_id]
            return _allowed(looked, _image(looked, Subject(kind=SubjectKind.IMAGE, id=image.id, name=image.name), step.why, image))
        case NovaInstanceChange() if change.uuid in cloud.servers_by_uuid:
            server = cloud.servers_by_uuid[change.uuid]
            # What a tenant calls it may change at any time: the words of the plan stand for it.
            return _allowed(looked, _instance(looked, step.subject.model_copy(update={"id": server.uuid}), step.why, server))
        case _:
            return None


def _facts_hash(cloud: CloudFacts, report: CloudReport) -> str:
    """Of what the cloud's API showed and of what the hosts' facts made of each instance."""
    told = {"uuid", "origin", "next_setting", "persistent", "survives"}
    instances = [instance.model_dump(mode="json", include=told) for instance in report.instances]
    return record_hash({"cloud": cloud.hash, "instances": instances})


def _decisions(looked: _Looked, report: CloudReport) -> Iterator[Step | LeftAlone]:
    rules = {rule.id: rule for rule in looked.rulebook.policy.rules if rule.subject in OF_A_CLOUD}
    for finding in report.findings:
        rule = rules.get(finding.rule)
        if rule is None or rule.remedy is None:
            continue
        if finding.verdict is Verdict.WAIVED:
            yield looked.leave(finding.subject, rule.remedy, LeftAloneBecause.WAIVED, "its failure is waived")
        elif finding.verdict is not Verdict.FAIL:
            yield looked.leave(finding.subject, rule.remedy, LeftAloneBecause.UNKNOWN, finding.reason)
        else:
            yield _allowed(looked, _decide(looked, finding, rule.remedy))
    for instance in report.instances:
        if wish(instance.flavor_hw_pmu) is True or wish(instance.image_hw_pmu) is True:
            subject = Subject(kind=SubjectKind.INSTANCE, id=instance.uuid, name=instance.name)
            yield looked.leave(
                subject, Remedy.NOVA_INSTANCE_PMU_OFF, LeftAloneBecause.OPTED_OUT, "its flavor or image asks for the PMU: it keeps it"
            )


def _allowed(looked: _Looked, decision: Step | LeftAlone) -> Step | LeftAlone:
    policy = looked.rulebook.policy
    if not isinstance(decision, Step) or decision.remedy in policy.remedies.allowed:
        return decision
    reason = f"{policy.id} does not allow {decision.remedy.value}: name it under remedies.allowed to have it planned"
    return looked.leave(decision.subject, decision.remedy, LeftAloneBecause.NOT_ALLOWED, reason)


def _decide(looked: _Looked, finding: Finding, remedy: Remedy) -> Step | LeftAlone:
    subject, cloud = finding.subject, looked.cloud
    times = (looked.planned_at, cloud.observed_at)
    instance = looked.instances.get(subject.id)
    if is_waived(subject, cloud, looked.rulebook, times, host_id=(instance.host_id if instance is not None else None) or ""):
        return looked.leave(subject, remedy, LeftAloneBecause.WAIVED, "a failure of it is waived")
    if remedy is Remedy.NOVA_FLAVOR_DEFAULT and subject.id in cloud.flavors_by_id:
        return _flavor(looked, subject, finding.reason, cloud.flavors_by_id[subject.id])
    if remedy is Remedy.NOVA_IMAGE_DEFAULT and subject.id in cloud.images_by_id:
        return _image(looked, subject, finding.reason, cloud.images_by_id[subject.id])
    if remedy is Remedy.NOVA_INSTANCE_PMU_OFF and subject.id in cloud.servers_by_uuid:
        return _instance(looked, subject, finding.reason, cloud.servers_by_uuid[subject.id])
    return looked.leave(subject, remedy, LeftAloneBecause.NO_REMEDY, f"{remedy.value} has no playbook for {subject.kind.value}s")


def _flavor(looked: _Looked, subject: Subject, why: str, flavor: Flavor) -> Step | LeftAlone:
    remedy = Remedy.NOVA_FLAVOR_DEFAULT
    obstacle = _catalogue_obstacle(
        looked, subject, remedy, flavor.hw_pmu, asking_images(looked.cloud), kinds=("flavor", "image"), named=looked.allowed.flavors
    )
    if obstacle is not None:
        return obstacle
    many = looked.silent_instances[flavor.name]
    keep = f"{many:,} existing instances of it keep their silent copy" if many else "no existing instance has a copy of it"
    return looked.step(
        subject,
        why,
        NovaFlavorChange(flavor_id=flavor.id, before=flavor.hw_pmu or ""),
        safe=(
            "existing instances keep their own copy of the flavor, whatever they go through but a resize",
            "no image asks for a PMU, so no boot will be refused for it"
            if not asking_images(looked.cloud)
            else "the policy accepts that boots are refused where an image asks for a PMU",
            "it is read back",
        ),
        takes_effect=f"for instances that are made with it or resized to it from then on; {keep} (`exitguard nova audit` names them)",
        diff=f"   flavor {flavor.name}\n-    (no hw:pmu)\n+    hw:pmu=false",
        reversible=True,
    )


def _image(looked: _Looked, subject: Subject, why: str, image: Image) -> Step | LeftAlone:
    remedy = Remedy.NOVA_IMAGE_DEFAULT
    obstacle = _catalogue_obstacle(
        looked,
        subject,
        remedy,
        image.hw_pmu,
        asking_flavors(looked.cloud),
        kinds=("image", "flavor"),
        named=looked.allowed.images,
        public=image.visibility == "public",
    )
    if obstacle is not None:
        return obstacle
    many = looked.images_in_use[image.id]
    return looked.step(
        subject,
        why,
        NovaImageChange(image_id=image.id, before=image.hw_pmu or ""),
        safe=(
            "existing instances keep their own copy of its properties",
            "no flavor asks for a PMU, so no boot will be refused for it"
            if not asking_flavors(looked.cloud)
            else "the policy accepts that boots are refused where a flavor asks for a PMU",
            "it is read back",
        ),
        takes_effect=f"for instances that are made or rebuilt from it from then on; {many:,} existing instances keep their copy",
        diff=f"   image {image.name}\n-    (no hw_pmu)\n+    hw_pmu=false",
        reversible=True,
    )


def _catalogue_obstacle(
    looked: _Looked,
    subject: Subject,
    remedy: Remedy,
    hw_pmu: str | None,
    asking: tuple[str, ...] | None,
    *,
    kinds: tuple[str, str],
    named: tuple[str, ...],
    public: bool = True,
) -> LeftAlone | None:
    """Why a flavor or image is not touched. `asking` are the others that ask for a PMU, whose boots would then be refused."""
    kind, other = kinds
    if hw_pmu != "":
        found = "what it says was not shown" if hw_pmu is None else f"it says {hw_pmu!r}"
        return looked.leave(subject, remedy, LeftAloneBecause.UNKNOWN, f"expected a {kind} that says nothing; {found}")
    if not (subject.id in named or (public and (subject.name in named or ALL_NAMES in named))):
        reason = f"remedies.nova.{kind}s of the policy does not name it"
        return looked.leave(subject, remedy, LeftAloneBecause.NOT_ALLOWED, reason)
    if asking is None:
        return looked.leave(
            subject, remedy, LeftAloneBecause.UNKNOWN, f"whether any {other} asks for a PMU cannot be seen: its boots would be refused"
        )
    if asking and not looked.allowed.refused_boots_accepted:
        names = f"{', '.join(asking[:_MOST_NAMES])}{f' and {len(asking) - _MOST_NAMES} more' if len(asking) > _MOST_NAMES else ''}"
        reason = (
            f"{other}s ask for a PMU ({names}): Nova would refuse new instances of both. Waive it, so that one {kind} is left for them, "
            "or set remedies.nova.refused_boots_accepted"
        )
        return looked.leave(subject, remedy, LeftAloneBecause.WOULD_CONFLICT, reason)
    return None


def _instance(looked: _Looked, subject: Subject, why: str, server: Server) -> Step | LeftAlone:
    remedy = Remedy.NOVA_INSTANCE_PMU_OFF
    refused = _instance_obstacle(looked, server)
    if refused is not None:
        return looked.leave(subject, remedy, *refused)
    return looked.step(
        subject,
        why,
        NovaInstanceChange(uuid=server.uuid, image=server.image, launched_at=server.launched_at),
        safe=(
            "its owner has it stopped, and it is not started for this",
            "its embedded flavor says nothing, so the two cannot contradict each other",
            "Nova keeps the property over hard reboots, stops and starts; a rebuild drops it",
        ),
        takes_effect="when its owner starts it",
        diff="   stored image properties\n-    (no hw_pmu)\n+    hw_pmu=false",
        reversible=False,
    )


def _instance_obstacle(looked: _Looked, server: Server) -> tuple[LeftAloneBecause, str] | None:
    instance = looked.instances.get(server.uuid)
    if server.locked or (instance is not None and instance.locked):
        return LeftAloneBecause.LOCKED, "Nova's lock is on it" if server.locked else "an operator's mark in its metadata says: leave alone"
    if server.locked is None:
        return LeftAloneBecause.UNKNOWN, "whether Nova's lock is on it was not shown"
    judged = () if instance is None else (instance.flavor_hw_pmu, instance.image_hw_pmu)
    wishes = (*judged, server.flavor_hw_pmu, server.image_hw_pmu)
    if any(wish(text) is True for text in wishes):
        return LeftAloneBecause.OPTED_OUT, "its flavor or image asks for the PMU: it keeps it"
    if server.flavor_hw_pmu != "":
        reason = "what its embedded flavor says is not known: with hw:pmu=true in it, the next start would destroy the instance"
        return LeftAloneBecause.WOULD_CONFLICT, reason
    if server.image is None:
        return LeftAloneBecause.NO_REMEDY, f"it boots from a volume: {_resize(looked)}"
    if server.status != STOPPED or server.task_state is not None:
        reason = f"it is {told_status(server)}: it can be set only while its owner has it stopped. Else {_resize(looked)}"
        return LeftAloneBecause.NOT_STOPPED, reason
    return None


def _resize(looked: _Looked) -> str:
    """The other way, which its owner has to want."""
    if not looked.flavors_off:
        return "a resize to a flavor with hw:pmu=false does it, and there is none yet"
    names = ", ".join(looked.flavors_off[:_MOST_NAMES])
    return f"a resize to a flavor with hw:pmu=false does it ({names}): playbooks/nova_instance_resize.yml"
