"""A whole cloud: its API's facts joined with those of its hosts, and judged instance by instance. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

from exitguard.audit.cloud_rules import CloudJudgement, check_rule
from exitguard.audit.computes import Computes, Default, compute_report, count_instances, find_computes, judge_default
from exitguard.audit.host_side import HostSide, NovaDomain, host_side
from exitguard.audit.instance_domain import Found, find_domain, index_domains
from exitguard.audit.instance_judgement import Instance, InstanceJudge
from exitguard.audit.instance_known import Records, is_of_now
from exitguard.audit.judge import waiver_findings, waivers_about
from exitguard.model.cloud import Canary, CloudFacts
from exitguard.model.finding import OF_A_CLOUD, Finding, Verdict, exit_code
from exitguard.model.instance import CloudReport, CloudSummary, PmuOrigin
from exitguard.model.pmu import PmuSetting
from exitguard.policy.schema import Rulebook
from exitguard.policy.waiver import Inhabitants, Place, WaiverUse, apply_cloud_waivers

__all__ = ["HostSide", "host_side", "judge_cloud"]


def judge_cloud(cloud: CloudFacts, hosts: Iterable[HostSide], rulebook: Rulebook) -> CloudReport:
    """What is so in a cloud, where it comes from, and what Nova will make of it. `hosts` are read once, one after another."""
    sides = _newest(hosts)
    computes = find_computes(cloud, sides)
    servers = cloud.servers.value or ()
    index = index_domains(sides)
    found = {server.uuid: find_domain(server, computes, index) for server in servers}
    defaults = _defaults(cloud, computes, found)
    judge = InstanceJudge(Records(cloud), computes, defaults)
    judged = CloudJudgement(
        cloud=cloud,
        computes=computes,
        defaults={host: default.holds for host, default in defaults.items()},
        instances=tuple(judge.judge(server, found[server.uuid]) for server in servers),
        strays=tuple(_strays(cloud, sides)),
    )
    findings, counts = _check_rules(judged, rulebook)
    instances_of = count_instances(cloud)
    return CloudReport(
        observed_at=cloud.observed_at,
        policy=f"{rulebook.policy.id} {rulebook.policy.version}",
        cloud=cloud.cloud,
        hosts_joined=len(computes.host_of_side),
        computes=tuple(compute_report(compute, defaults[host], instances_of[host]) for host, compute in computes.by_host.items()),
        instances=tuple(instance.report for instance in judged.instances),
        findings=findings,
        summary=_summarize(counts, judged.instances),
    )


def _newest(hosts: Iterable[HostSide]) -> tuple[HostSide, ...]:
    """Of several looks at one host the last one."""
    newest: dict[str, HostSide] = {}
    for side in hosts:
        before = newest.get(side.host_id)
        if before is None or before.observed_at <= side.observed_at:
            newest[side.host_id] = side
    return tuple(newest.values())


def _strays(cloud: CloudFacts, sides: Iterable[HostSide]) -> Iterator[tuple[HostSide, NovaDomain]]:
    """Domains of Nova's that are no server which was shown: deleted, another cloud's, or another project's."""
    if cloud.servers.value is not None:
        servers = cloud.servers_by_uuid
        yield from ((side, domain) for side in sides for uuid, domain in side.domains.items() if uuid not in servers)


def _defaults(cloud: CloudFacts, computes: Computes, found: Mapping[str, Found]) -> dict[str, Default]:
    """By compute host whether its Nova defaults to PMU off."""
    silent = frozenset(_known_silent(cloud, computes, found))
    canaries: dict[str, list[Canary]] = defaultdict(list)
    for canary in cloud.canaries:
        canaries[canary.host].append(canary)
    return {host: judge_default(compute, silent, tuple(canaries.get(host, ()))) for host, compute in computes.by_host.items()}


def _known_silent(cloud: CloudFacts, computes: Computes, found: Mapping[str, Found]) -> Iterator[str]:
    """Uuids of instances whose flavor and image were shown to say nothing when Nova wrote the XML that their host's facts have.

    What Glance says of an image is not enough for a proof: nova-manage may have changed the copy.
    """
    servers = cloud.servers_by_uuid
    for compute in computes.by_host.values():
        for side in compute.sides:
            for uuid, domain in side.domains.items():
                flavor, image, server = domain.flavor_hw_pmu, domain.image_hw_pmu, servers.get(uuid)
                if server is not None and found[uuid].domain is domain and is_of_now(domain, server):
                    flavor = server.flavor_hw_pmu if flavor is None else flavor
                    image = server.image_hw_pmu if image is None else image
                if flavor == image == "":
                    yield uuid


def _check_rules(judged: CloudJudgement, rulebook: Rulebook) -> tuple[tuple[Finding, ...], Counter[Verdict]]:
    """The findings that are told, waivers applied and judged themselves, and how many of each verdict there are in all."""
    counts: Counter[Verdict] = Counter()
    findings = []
    for rule in rulebook.policy.rules:
        if rule.subject in OF_A_CLOUD:
            for outcome in check_rule(rule, judged):
                if isinstance(outcome, Finding):
                    findings.append(outcome)
                else:
                    counts[outcome] += 1
    told, use = _with_waivers(tuple(findings), judged, rulebook)
    told += waiver_findings(rulebook, use, judged.cloud.observed_at, "this cloud")
    counts.update(finding.verdict for finding in told)
    return tuple(finding for finding in told if finding.verdict is not Verdict.PASS), counts


def _with_waivers(findings: tuple[Finding, ...], judged: CloudJudgement, rulebook: Rulebook) -> tuple[tuple[Finding, ...], WaiverUse]:
    waivers = waivers_about(rulebook, OF_A_CLOUD)
    if not waivers:
        return findings, WaiverUse()
    places = {each.report.uuid: Place(each.report.host_id, each.report.host) for each in judged.instances}
    return apply_cloud_waivers(findings, waivers, places=places, inhabitants=_inhabitants(judged), now=judged.cloud.observed_at)


def _inhabitants(judged: CloudJudgement) -> Inhabitants:
    cloud, computes = judged.cloud, judged.computes
    sides = [side for compute in computes.by_host.values() for side in compute.sides]
    return Inhabitants(
        flavors=frozenset(_canonical(name) for flavor in cloud.flavors.value or () for name in (flavor.id, flavor.name)),
        images=frozenset(_canonical(name) for image in cloud.images.value or () for name in (image.id, image.name)),
        domains=frozenset(name for each in judged.instances for name in (each.report.uuid, each.report.name)),
        hosts=frozenset((*computes.by_host, *(side.host_id for side in sides))),
    )


def _canonical(text: str) -> str:
    """An id as `str(UUID)` writes it: Nova takes ids of flavors without hyphens too."""
    try:
        return str(UUID(text))
    except ValueError:
        return text


def _summarize(counts: Counter[Verdict], instances: tuple[Instance, ...]) -> CloudSummary:
    """Counts with every word present, so that a reader need not know which are missing."""
    origins = Counter(instance.report.origin for instance in instances)
    settings = Counter(instance.report.next_setting for instance in instances)
    return CloudSummary(
        by_verdict={verdict.value: counts[verdict] for verdict in Verdict},
        by_origin={origin.value: origins[origin] for origin in PmuOrigin},
        by_next_setting={setting.value: settings[setting] for setting in PmuSetting},
        exit_code=exit_code({verdict for verdict, count in counts.items() if count}),
    )
