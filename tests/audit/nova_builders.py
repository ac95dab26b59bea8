"""A small cloud with one compute host, what its API shows, and what its host's facts show, to be varied by a test."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from audit_builders import definition, domain, facts, nova, process

from exitguard.audit.cloud import HostSide, host_side, judge_cloud
from exitguard.model.cloud import (
    Aggregate,
    Canary,
    CloudFacts,
    CloudIdentity,
    ComputeService,
    Flavor,
    Hypervisor,
    Image,
    RemediedInstance,
    Server,
)
from exitguard.model.domain import DomainFacts
from exitguard.model.finding import Finding
from exitguard.model.instance import CloudReport, InstanceReport
from exitguard.model.pmu import PmuElement
from exitguard.model.record import seen
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Rulebook

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
CLOUD_ID = "7c0f2a52-3a55-5a3f-9c3b-0a4b8a3f6f11"
HOST_ID = "5a3c1f7e-98a5-4a83-9d0f-8a5b8f6c2d11"  # of audit_builders' host
IMAGE_ID = "d0c7a4b2-6a51-4d1a-9b35-55a0f3f5a001"
SILENT_FLAVOR = Flavor(id="1", name="m1.small", hw_pmu="", is_public=True)
SILENT_IMAGE = Image(
    id=IMAGE_ID,
    name="Debian 12",
    hw_pmu="",
    visibility="public",
    owner=None,
    created_at="2026-01-01T00:00:00Z",
    updated_at="2026-01-01T00:00:05Z",
)
RULEBOOK = load_rulebook((), ())
ZED = "26.2.2"
GENERATED_AT = "2026-11-22T11:39:25.000000Z"  # of audit_builders' instances

LAUNCHED_AT = "2026-11-22T11:39:05.000000"


def uuid(number: int) -> str:
    return str(UUID(int=number))


def server(number: int = 1, **other: object) -> Server:
    """A running instance of a silent flavor and a silent image on compute-7, as Nova before 2.98 shows one."""
    usual = Server(
        uuid=uuid(number),
        name=f"web-{number}",
        project="ac1a5197a2d94a749358820689414043",
        status="ACTIVE",
        task_state=None,
        locked=False,
        created_at="2026-11-22T11:39:00Z",
        launched_at=LAUNCHED_AT,
        flavor=SILENT_FLAVOR.name,
        flavor_hw_pmu="",
        image=IMAGE_ID,
        image_hw_pmu=None,
        zone="nova",
        host="compute-7",
        hypervisor_hostname="compute-7.example.org",
        domain_name=f"instance-{number:08x}",
    )
    return usual.model_copy(update=other)


def service(host: str = "compute-7") -> ComputeService:
    return ComputeService(id=uuid(abs(hash(host)) % 1000), host=host, zone="nova", status="enabled", state="up", disabled_reason=None)


def hypervisor(host: str = "compute-7", kind: str = "QEMU") -> Hypervisor:
    return Hypervisor(id=host, hostname=f"{host}.example.org", host=host, type=kind, servers=())


def cloud(
    *servers: Server,
    flavors: tuple[Flavor, ...] = (SILENT_FLAVOR,),
    images: tuple[Image, ...] = (SILENT_IMAGE,),
    hosts: tuple[str, ...] = ("compute-7",),
    canaries: tuple[Canary, ...] = (),
    remedied: tuple[RemediedInstance, ...] = (),
    **other: object,
) -> CloudFacts:
    return CloudFacts(
        observed_at=NOW,
        cloud=CloudIdentity(id=CLOUD_ID, name="production", region="RegionOne", microversion="2.93", microversion_offered="2.93"),
        flavors=seen("Nova: flavors", flavors),
        images=seen("Glance: images", images),
        servers=seen("Nova: servers", servers),
        services=seen("Nova: services", tuple(service(host) for host in hosts)),
        hypervisors=seen("Nova: hypervisors", tuple(hypervisor(host) for host in hosts)),
        aggregates=seen("Nova: aggregates", (Aggregate(name="fast", zone=None, hosts=hosts),)),
        canaries=canaries,
        remedied=remedied,
    ).model_copy(update=other)


def running(
    number: int = 1,
    element: PmuElement = PmuElement.ABSENT,
    *,
    defined: PmuElement | None = None,
    mode: str | None = "host-passthrough",
    generated: bool = True,
    kind: str = "kvm",
) -> DomainFacts:
    """A run that Nova 26.2.2 began, whose definition is as it wrote it unless another is given."""
    run = definition(mode, element, kind=kind)
    now = definition(mode, element if defined is None else defined, kind=kind)
    cpu = "host" if element is PmuElement.ABSENT else f"host,pmu={element.value}"
    return domain(number=number, defined=now, run=run, runs=process(cpu), nova=nova(None, None, ZED), generated=generated)


def stopped(number: int = 1, element: PmuElement = PmuElement.ABSENT, *, mode: str | None = "host-passthrough") -> DomainFacts:
    return domain(number=number, defined=definition(mode, element), nova=nova(None, None, ZED))


def side(*domains: DomainFacts, hostname: str | None = "compute-7", host_id: str = HOST_ID, rulebook: Rulebook = RULEBOOK) -> HostSide:
    """The side of one host, as its facts give it, under another name or id where one is given."""
    return replace(host_side(facts(*domains), rulebook), hostname=hostname, host_id=host_id)


def remedied(number: int = 1, *, image: str | None = IMAGE_ID, set_at: datetime = NOW - timedelta(hours=1)) -> RemediedInstance:
    return RemediedInstance(cloud=CLOUD_ID, uuid=uuid(number), hw_pmu="false", set_at=set_at, image=image, launched_at=LAUNCHED_AT)


def canary(element: str, *, version: str = ZED, host: str = "compute-7") -> Canary:
    return Canary(cloud=CLOUD_ID, host=host, version=version, element=element, observed_at=NOW)


def judged(of: CloudFacts, *sides: HostSide, rulebook: Rulebook = RULEBOOK) -> CloudReport:
    return judge_cloud(of, iter(sides), rulebook)


def only_instance(report: CloudReport) -> InstanceReport:
    (instance,) = report.instances
    return instance


def findings(report: CloudReport, rule: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.rule == rule]


def verdicts(report: CloudReport, rule: str) -> dict[str, str]:
    """By the name of the subject, what is told of it; what passes or does not apply is not told."""
    return {finding.subject.name: finding.verdict.value for finding in findings(report, rule)}


def names(of: Iterable[Finding]) -> list[str]:
    return [finding.subject.name for finding in of]
