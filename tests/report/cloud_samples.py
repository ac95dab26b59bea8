"""Reports of clouds: each builder gives a whole, valid record, with what the test is about replaced."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

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
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Severity, Subject, SubjectKind, Verdict, exit_code
from exitguard.model.instance import CloudReport, CloudSummary, ComputeReport, InstanceReport, PmuOrigin
from exitguard.model.pmu import PmuElement, PmuSetting, Tri
from exitguard.model.record import seen, unseen

MOMENT = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
CLOUD_ID = "7c0f2a52-3a55-5a3f-9c3b-0a4b8a3f6f11"
PROJECT = "5f6c1d0e9b8a4c7d8e9f0a1b2c3d4e5f"
#: What makes each standing: origin, hw:pmu embedded, hw_pmu stored, defined, running, next.
KINDS: dict[str, tuple[PmuOrigin, str | None, str | None, PmuSetting, PmuSetting, PmuSetting]] = {
    "off_and_kept": (PmuOrigin.FLAVOR, "false", "", PmuSetting.OFF, PmuSetting.OFF, PmuSetting.OFF),
    "off_next": (PmuOrigin.REMEDY, "", "false", PmuSetting.DEFAULT_ON, PmuSetting.NONE, PmuSetting.OFF),
    "on_by_default": (PmuOrigin.QEMU_DEFAULT, "", "", PmuSetting.DEFAULT_ON, PmuSetting.DEFAULT_ON, PmuSetting.DEFAULT_ON),
    "opted_out": (PmuOrigin.IMAGE, "", "true", PmuSetting.ON, PmuSetting.ON, PmuSetting.ON),
    "conflict": (PmuOrigin.CONFLICT, "true", "false", PmuSetting.ON, PmuSetting.ON, PmuSetting.UNKNOWN),
    "behind_nova": (PmuOrigin.BEHIND_NOVA, "", "", PmuSetting.OFF, PmuSetting.DEFAULT_ON, PmuSetting.DEFAULT_ON),
    "unknown": (PmuOrigin.UNKNOWN, None, None, PmuSetting.UNKNOWN, PmuSetting.UNKNOWN, PmuSetting.UNKNOWN),
}


def identity(**changes: Any) -> CloudIdentity:
    fields = {"id": CLOUD_ID, "name": "production", "region": "RegionOne", "microversion": "2.92", "microversion_offered": "2.93"}
    return CloudIdentity(**(fields | changes))


def instance(name: str = "web-1", kind: str = "on_by_default", *, number: int = 1, **changes: Any) -> InstanceReport:
    """An instance that stands as `kind` says."""
    origin, flavor_hw_pmu, image_hw_pmu, persistent, live, next_setting = KINDS[kind]
    fields: dict[str, Any] = {
        "uuid": f"00000000-0000-4000-8000-{number:012d}",
        "name": name,
        "project": PROJECT,
        "status": "ACTIVE",
        "locked": False,
        "flavor": "m1.small",
        "image": "00000000-0000-4000-9000-000000000001",
        "zone": "nova",
        "host": "compute-1",
        "host_id": "7f0c2a4e-0d51-4c6e-9b1f-2f1f5a3f9a10",
        "build": "26.2.2",
        "flavor_hw_pmu": flavor_hw_pmu,
        "image_hw_pmu": image_hw_pmu,
        "persistent": persistent,
        "live": live,
        "chain": None,
        "origin": origin,
        "origin_reason": f"as {kind} is",
        "next_element": PmuElement.ABSENT,
        "next_setting": next_setting,
        "survives": Tri.UNKNOWN if persistent is PmuSetting.UNKNOWN else Tri.YES if persistent is next_setting else Tri.NO,
        "survives_reason": f"as {kind} is",
        "evidence": (Evidence(source="servers/detail", value="silent", observed_at=MOMENT),),
    }
    return InstanceReport(**(fields | changes))


def one_of_each() -> tuple[InstanceReport, ...]:
    return tuple(instance(f"{kind}-1", kind, number=number) for number, kind in enumerate(KINDS, start=1))


def compute(host: str = "compute-1", default_off: Tri = Tri.NO, **changes: Any) -> ComputeReport:
    fields: dict[str, Any] = {
        "host": host,
        "host_id": "7f0c2a4e-0d51-4c6e-9b1f-2f1f5a3f9a10",
        "zone": "nova",
        "aggregates": (),
        "builds": ("26.2.2",),
        "default_off": default_off,
        "reason": "2 instances run without the element",
        "witnesses_for": 0,
        "witnesses_against": 2,
        "instances": 7,
    }
    return ComputeReport(**(fields | changes))


def finding(
    rule: str = "NOVA-INSTANCE-PMU", verdict: Verdict = Verdict.FAIL, *, about: InstanceReport | None = None, **changes: Any
) -> Finding:
    of = about or instance()
    fields: dict[str, Any] = {
        "rule": rule,
        "severity": Severity.MEDIUM,
        "subject": Subject(kind=SubjectKind.INSTANCE, id=of.uuid, name=of.name),
        "verdict": verdict,
        "reason": "its next start by Nova has the PMU on, and nobody asked for it",
        "evidence": (Evidence(source="servers/detail", value="no hw:pmu", observed_at=MOMENT),),
    }
    return Finding(**(fields | changes))


def cloud_finding(reason: str = "os_compute_api:os-hypervisors:list-detail is not allowed to this role") -> Finding:
    subject = Subject(kind=SubjectKind.CLOUD, id=CLOUD_ID, name="production")
    return finding("NOVA-SOURCES", Verdict.UNKNOWN, subject=subject, reason=reason)


def report(
    instances: tuple[InstanceReport, ...] = (),
    findings: tuple[Finding, ...] = (),
    computes: tuple[ComputeReport, ...] = (),
    **changes: Any,
) -> CloudReport:
    tally = Counter(each.verdict.value for each in findings)
    fields: dict[str, Any] = {
        "observed_at": MOMENT,
        "policy": "pmu-off 1.1",
        "cloud": identity(),
        "hosts_joined": len(computes),
        "computes": computes,
        "instances": instances,
        "findings": findings,
        "summary": CloudSummary(
            by_verdict={verdict.value: tally[verdict.value] for verdict in Verdict} | {Verdict.PASS.value: 11, "not_applicable": 4},
            by_origin=dict(Counter(each.origin.value for each in instances)),
            by_next_setting=dict(Counter(each.next_setting.value for each in instances)),
            exit_code=exit_code({each.verdict for each in findings}),
        ),
    }
    return CloudReport(**(fields | changes))


def flavor(name: str = "m1.small", hw_pmu: str | None = "", *, is_public: bool = True) -> Flavor:
    return Flavor(id=f"id-of-{name}", name=name, hw_pmu=hw_pmu, is_public=is_public)


def server(of: InstanceReport) -> Server:
    return Server(
        uuid=of.uuid,
        name=of.name,
        project=of.project,
        status=of.status,
        task_state=None,
        locked=of.locked,
        created_at="2026-11-01T00:00:00Z",
        flavor=of.flavor,
        flavor_hw_pmu=of.flavor_hw_pmu,
        image=of.image,
        image_hw_pmu=of.image_hw_pmu,
        zone=of.zone,
        host=of.host,
        hypervisor_hostname=of.host,
        domain_name="instance-00000001",
    )


def facts(instances: tuple[InstanceReport, ...] = (), flavors: tuple[Flavor, ...] = (flavor(),), **changes: Any) -> CloudFacts:
    image = Image(
        id="00000000-0000-4000-9000-000000000001",
        name="Debian 12",
        hw_pmu="",
        visibility="public",
        owner=None,
        created_at=None,
        updated_at=None,
    )
    service = ComputeService(id="s1", host="compute-1", zone="nova", status="enabled", state="up", disabled_reason=None)
    hypervisor = Hypervisor(
        id="h1", hostname="compute-1.example", host="compute-1", type="QEMU", servers=tuple(each.uuid for each in instances)
    )
    fields: dict[str, Any] = {
        "observed_at": MOMENT,
        "cloud": identity(),
        "flavors": seen("flavors/detail", flavors),
        "images": seen("images", (image,)),
        "servers": seen("servers/detail", tuple(server(each) for each in instances)),
        "services": seen("os-services", (service,)),
        "hypervisors": seen("os-hypervisors/detail", (hypervisor,)),
        "aggregates": seen("os-aggregates", (Aggregate(name="fast", zone=None, hosts=("compute-1",)),)),
    }
    return CloudFacts(**(fields | changes))


def notes() -> dict[str, Any]:
    """What playbooks noted, for `facts`."""
    return {
        "remedied": (RemediedInstance(cloud=CLOUD_ID, uuid="u", hw_pmu="false", set_at=MOMENT, image=None),),
        "canaries": (Canary(cloud=CLOUD_ID, host="compute-1", version="26.2.2", element="absent", observed_at=MOMENT),),
    }


def forbidden(source: str = "os-hypervisors/detail") -> Any:
    return unseen(source, "403: the role may not", unlock="os_compute_api:os-hypervisors:list-detail")
