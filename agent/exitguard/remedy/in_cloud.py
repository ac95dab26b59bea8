"""What a look through a cloud's API says of one step: what it rests on, whether it is in force, whether it is waived. Pure."""

from datetime import datetime

from exitguard.audit.nova import wish
from exitguard.model.canonical import JsonValue, record_hash
from exitguard.model.cloud import CloudFacts, Server
from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.plan import Change, NovaFlavorChange, NovaImageChange, NovaInstanceChange, Step
from exitguard.model.pmu import Tri
from exitguard.model.record import Observed
from exitguard.policy.schema import Rulebook
from exitguard.policy.waiver import protects

STOPPED = "SHUTOFF"
_SOURCES = {NovaFlavorChange: "flavors", NovaImageChange: "images", NovaInstanceChange: "servers"}


def asking_images(cloud: CloudFacts) -> tuple[str, ...] | None:
    """Ids of the images that ask for a PMU; None where images cannot be seen, or what one of them says cannot."""
    images = cloud.images.value
    if images is None or any(image.hw_pmu is None for image in images):
        return None
    return tuple(sorted(image.id for image in images if wish(image.hw_pmu) is True))


def asking_flavors(cloud: CloudFacts) -> tuple[str, ...] | None:
    """Ids of the flavors that ask for a PMU; None likewise."""
    flavors = cloud.flavors.value
    if flavors is None or any(flavor.hw_pmu is None for flavor in flavors):
        return None
    return tuple(sorted(flavor.id for flavor in flavors if wish(flavor.hw_pmu) is True))


def basis_of(change: Change, cloud: CloudFacts) -> str | None:
    """Hash of what a change rests on, by this look; None where its subject is not in it."""
    rests_on = _rests_on(change, cloud)
    return None if rests_on is None else record_hash(rests_on)


def _rests_on(change: Change, cloud: CloudFacts) -> JsonValue:
    match change:
        case NovaFlavorChange():
            flavor = cloud.flavors_by_id.get(change.flavor_id)
            asking = asking_images(cloud)
            return None if flavor is None else {"flavor": flavor.model_dump(mode="json"), "asking": _listed(asking)}
        case NovaImageChange():
            image = cloud.images_by_id.get(change.image_id)
            if image is None:
                return None
            return {"image": image.model_dump(mode="json", exclude={"updated_at"}), "asking": _listed(asking_flavors(cloud))}
        case NovaInstanceChange():
            server = cloud.servers_by_uuid.get(change.uuid)
            known = {"uuid", "project", "locked", "flavor", "flavor_hw_pmu", "image", "image_hw_pmu", "launched_at", "status", "task_state"}
            return None if server is None else {"server": server.model_dump(mode="json", include=known)}
        case _:
            return None


def _listed(ids: tuple[str, ...] | None) -> JsonValue:
    return None if ids is None else list(ids)


def in_force(step: Step, cloud: CloudFacts) -> Tri:
    """Whether Nova or Glance say what the step wanted; unknown where this look does not show it."""
    match step.change:
        case NovaFlavorChange() as change:
            flavor = cloud.flavors_by_id.get(change.flavor_id)
            return Tri.UNKNOWN if flavor is None else _says(flavor.hw_pmu, change.after)
        case NovaImageChange() as change:
            image = cloud.images_by_id.get(change.image_id)
            return Tri.UNKNOWN if image is None else _says(image.hw_pmu, change.after)
        case NovaInstanceChange() as change:
            server = cloud.servers_by_uuid.get(change.uuid)
            if server is None:
                return Tri.UNKNOWN
            if server.image_hw_pmu is not None:
                return Tri.YES if wish(server.image_hw_pmu) is False else Tri.NO
            record = cloud.remedied_by_uuid.get(server.uuid)
            recorded = record is not None and record.still_holds(server) and wish(record.hw_pmu) is False
            return Tri.YES if recorded else Tri.UNKNOWN
        case _:
            return Tri.UNKNOWN


def _says(text: str | None, wanted: str) -> Tri:
    if text is None:
        return Tri.UNKNOWN
    return Tri.YES if text == wanted or (wanted != "" and text != "" and wish(text) is wish(wanted)) else Tri.NO


def why_blind(steps: tuple[Step, ...], cloud: CloudFacts) -> str | None:
    """Why this look says nothing of what the steps are about; None where it does."""
    for name in sorted({_SOURCES[type(step.change)] for step in steps if type(step.change) in _SOURCES}):
        observed: Observed[object] = getattr(cloud, name)
        if observed.reason is not None:
            return f"{name} cannot be seen: {observed.reason}"
    return None


def is_waived(subject: Subject, cloud: CloudFacts, rulebook: Rulebook, times: tuple[datetime, ...], *, host_id: str = "") -> bool:
    """Whether somebody answers for a failure of this flavor, image or instance at any of these times: then it is left alone."""
    server = cloud.servers_by_uuid.get(subject.id) if subject.kind is SubjectKind.INSTANCE else None
    names = (None,) if server is None else tuple({server.host, server.hypervisor_hostname})  # a waiver may name either
    rules = {
        rule.id
        for rule in rulebook.policy.rules
        if rule.subject is subject.kind or (server is not None and rule.subject is SubjectKind.DOMAIN)
    }
    return any(
        protects(waiver, subject, host_id=host_id, hostname=name)
        for waiver in rulebook.waivers
        for name in names
        if not rules.isdisjoint(waiver.rules) and any(waiver.created <= time < waiver.expires for time in times)
    )


def told_status(server: Server) -> str:
    """`ACTIVE`, or `ACTIVE (rebooting)` while Nova is doing something with it."""
    return server.status if server.task_state is None else f"{server.status} ({server.task_state})"
