"""Small clouds: what an API showed of them, and what an audit could make of that."""

from datetime import UTC, datetime

from exitguard.model.cloud import CloudFacts, CloudIdentity, Flavor, Image, Server
from exitguard.model.finding import Finding, Severity, Subject, SubjectKind, Verdict
from exitguard.model.instance import CloudReport, CloudSummary, InstanceReport, PmuOrigin
from exitguard.model.plan import Remedy
from exitguard.model.pmu import PmuElement, PmuSetting, Tri
from exitguard.model.record import seen
from exitguard.model.time import format_rfc3339
from exitguard.policy.load import load_rulebook
from exitguard.policy.remedies import NovaRemedies
from exitguard.policy.schema import Rulebook, Waiver, WaiverScope

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
LAUNCHED_AT = "2026-11-23T07:15:51.000000"
CLOUD_ID = "7c0f2a52-3a55-5a3f-9c3b-0a4b8a3f6f11"
SILENT = Flavor(id="1", name="m1.small", hw_pmu="", is_public=True)
IMAGE = Image(id="debian", name="Debian 12", hw_pmu="", visibility="public", owner=None, created_at=None, updated_at=None)


def server(uuid: str = "a", **other: object) -> Server:
    """A stopped, silent instance, but for what is given."""
    silent = Server(
        uuid=uuid,
        name=f"web-{uuid}",
        project="p",
        status="SHUTOFF",
        task_state=None,
        locked=False,
        created_at=None,
        launched_at=LAUNCHED_AT,
        flavor=SILENT.name,
        flavor_hw_pmu="",
        image=IMAGE.id,
        image_hw_pmu=None,
        zone="nova",
        host="compute-1",
        hypervisor_hostname="compute-1.example",
        domain_name="instance-00000001",
    )
    return silent.model_copy(update=other)


def cloud(*servers: Server, flavors: tuple[Flavor, ...] = (SILENT,), images: tuple[Image, ...] = (IMAGE,), **other: object) -> CloudFacts:
    return CloudFacts(
        observed_at=NOW,
        cloud=CloudIdentity(id=CLOUD_ID, name="production", region="RegionOne", microversion="2.92", microversion_offered="2.93"),
        flavors=seen("flavors", flavors),
        images=seen("images", images),
        servers=seen("servers", servers),
        services=seen("services", ()),
        hypervisors=seen("hypervisors", ()),
        aggregates=seen("aggregates", ()),
    ).model_copy(update=other)


def instance(of: Server, **other: object) -> InstanceReport:
    """What an audit makes of it where QEMU's default switches the PMU on."""
    silent = InstanceReport(
        uuid=of.uuid,
        name=of.name,
        project=of.project,
        status=of.status,
        locked=of.locked,
        flavor=of.flavor,
        image=of.image,
        zone=of.zone,
        host=of.host,
        host_id=None,
        build=None,
        flavor_hw_pmu=of.flavor_hw_pmu,
        image_hw_pmu=of.image_hw_pmu,
        persistent=PmuSetting.DEFAULT_ON,
        live=PmuSetting.NONE,
        chain=None,
        origin=PmuOrigin.QEMU_DEFAULT,
        origin_reason="flavor and image are silent",
        next_element=PmuElement.ABSENT,
        next_setting=PmuSetting.DEFAULT_ON,
        survives=Tri.YES,
        survives_reason="Nova writes no element",
    )
    return silent.model_copy(update=other)


def finding(rule: str, kind: SubjectKind, subject: str, verdict: Verdict = Verdict.FAIL, *, name: str = "") -> Finding:
    return Finding(
        rule=rule,
        severity=Severity.MEDIUM,
        subject=Subject(kind=kind, id=subject, name=name or subject),
        verdict=verdict,
        reason=f"{rule} says {verdict.value}",
    )


def report(of: CloudFacts, *findings: Finding, instances: tuple[InstanceReport, ...] | None = None) -> CloudReport:
    return CloudReport(
        observed_at=of.observed_at,
        policy="pmu-off 1.1",
        cloud=of.cloud,
        hosts_joined=1,
        computes=(),
        instances=tuple(instance(each) for each in of.servers.value or ()) if instances is None else instances,
        findings=findings,
        summary=CloudSummary(by_verdict={}, by_origin={}, by_next_setting={}, exit_code=2),
    )


def rulebook(
    *, nova: NovaRemedies | None = None, waivers: tuple[Waiver, ...] = (), allowed: tuple[Remedy, ...] = tuple(Remedy)
) -> Rulebook:
    """The shipped one, with all remedies allowed and all images named."""
    shipped = load_rulebook((), ())
    remedies = shipped.policy.remedies.model_copy(update={"allowed": allowed, "nova": nova or NovaRemedies(images=("*",))})
    return shipped.model_copy(update={"policy": shipped.policy.model_copy(update={"remedies": remedies}), "waivers": waivers})


def waiver(rule: str, scope: WaiverScope) -> Waiver:
    return Waiver.model_validate(
        {
            "id": "profiling",
            "rules": [rule],
            "scope": scope,
            "justification": "the owner measures with it",
            "approver": "ops",
            "created": format_rfc3339(datetime(2026, 1, 1, tzinfo=UTC)),
            "expires": format_rfc3339(datetime(2027, 1, 1, tzinfo=UTC)),
        }
    )
