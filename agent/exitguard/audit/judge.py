"""The whole judgement: one FactsDocument and a rulebook in, one AuditReport out. Pure."""

from collections import Counter

from exitguard.audit.domain import HostJudgement, judge_domain
from exitguard.audit.kernel import judge_kernel
from exitguard.audit.nova import judge_nova_default
from exitguard.audit.pmu import clears_enable_pmu
from exitguard.audit.rules import Judged, check_rule, finding, kernel_evidence
from exitguard.model.documents import AuditReport, DomainReport, FactsDocument, HostReport, KernelReport, Summary
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Subject, SubjectKind, Verdict, exit_code
from exitguard.model.kernel import KernelVerdict
from exitguard.model.pmu import ChainState, Tri
from exitguard.model.time import format_rfc3339
from exitguard.policy.schema import Check, Rulebook
from exitguard.policy.waiver import WaiverUse, apply_waivers


def judge(facts: FactsDocument, rulebook: Rulebook, *, machine_ids_seen: tuple[str, ...] = ()) -> AuditReport:
    """What is so, what it means, and why. `machine_ids_seen` are those known under this host id, none without a store."""
    host = facts.host
    kernel, statements = judge_kernel(host.kernel, host.kvm, rulebook.kernels)
    judgement = HostJudgement(
        observed_at=facts.observed_at,
        kernel=kernel,
        kvm=host.kvm,
        clears_on_disk=_clears_on_disk(facts, rulebook),
        qemus=rulebook.qemus,
        scope=rulebook.policy.scope,
        nova_default=judge_nova_default(facts.domains),
    )
    domains = tuple(judge_domain(domain, judgement) for domain in facts.domains)
    judged = Judged(facts, judgement, statements, domains, machine_ids_seen)
    findings = tuple(each for rule in rulebook.policy.rules for each in check_rule(rule, judged))
    findings, use = apply_waivers(
        findings, rulebook.waivers, host_id=host.identity.id, hostname=host.identity.hostname.value, now=facts.observed_at
    )
    findings += _waiver_findings(rulebook, use, facts)
    reports = tuple(domain.report for domain in domains)
    return AuditReport(
        tool=facts.tool,
        observed_at=facts.observed_at,
        policy=f"{rulebook.policy.id} {rulebook.policy.version}",
        host=_host_report(facts, kernel, kernel_evidence(judged)),
        domains=reports,
        findings=findings,
        summary=_summary(findings, reports),
    )


def _clears_on_disk(facts: FactsDocument, rulebook: Rulebook) -> dict[str, tuple[Tri, str]]:
    """By path, what each QEMU on disk does; unknown where guests run another file of that name that nobody has replaced.

    Then libvirt lives in another mount namespace (a container), and the file seen here is not the one that it starts.
    """
    on_disk = {binary.path: binary for binary in facts.host.qemu.value or ()}
    clears = {path: clears_enable_pmu(binary, rulebook.qemus) for path, binary in on_disk.items()}
    for domain in facts.domains:
        process = domain.process.value if domain.process is not None else None
        running = process.executable.value if process is not None else None
        if running is None or running.deleted or running.path not in on_disk:
            continue
        seen = on_disk[running.path]
        if (running.version.value, running.capability_string.value) != (seen.version.value, seen.capability_string.value):
            clears[running.path] = (
                Tri.UNKNOWN,
                f"guests run another file than the {running.path} that is seen here: libvirt lives elsewhere",
            )
    return clears


def _waiver_findings(rulebook: Rulebook, use: WaiverUse, facts: FactsDocument) -> tuple[Finding, ...]:
    """Waivers that do not do what somebody believes they do: expired, unmatched, malformed."""
    rules = [rule for rule in rulebook.policy.rules if rule.check is Check.WAIVERS]
    found = []
    for rule in rules:
        for group, verdict, reason in (
            (use.active, Verdict.PASS, "in force"),
            (use.expired, Verdict.FAIL, "expired: it covers nothing any more"),
            (use.not_yet, Verdict.FAIL, "created in the future: it covers nothing yet"),
            (use.unmatched, Verdict.FAIL, "in force for this host, yet it covers no failing finding: mended since, or misspelt"),
        ):
            for waiver in group:
                value = f"rules {', '.join(waiver.rules)}, approved by {waiver.approver}, expires {format_rfc3339(waiver.expires)}"
                evidence = (Evidence(source="waivers", value=value, observed_at=facts.observed_at),)
                subject = Subject(kind=SubjectKind.POLICY, id=waiver.id, name=waiver.id)
                found.append(finding(rule, subject, verdict, f"waiver {waiver.id} is {reason}", evidence))
        for problem in rulebook.waiver_problems:
            evidence = (Evidence(source=problem.where, value=problem.message, observed_at=facts.observed_at),)
            subject = Subject(kind=SubjectKind.POLICY, id=f"{problem.file}: {problem.path}", name=problem.path or problem.file)
            found.append(finding(rule, subject, Verdict.ERROR, f"not applied: {problem.sentence}", evidence))
    return tuple(found)


def _host_report(facts: FactsDocument, kernel: KernelVerdict, evidence: tuple[Evidence, ...]) -> HostReport:
    host = facts.host
    return HostReport(
        id=host.identity.id,
        id_provisional=host.identity.provisional,
        hostname=host.identity.hostname.value,
        target=host.target,
        kernel=KernelReport(
            release=host.kernel.release.value,
            state=kernel.state,
            body=kernel.body,
            reason=kernel.reason,
            pending_reboot=kernel.pending_reboot,
            pending_release=kernel.pending_release,
            evidence=evidence,
            disagreements=kernel.disagreements,
        ),
        cpu=host.cpu,
        mitigations=host.mitigations,
        kvm=host.kvm,
        qemu=host.qemu,
        libvirt=host.libvirt,
        unmanaged=host.unmanaged,
    )


def _summary(findings: tuple[Finding, ...], domains: tuple[DomainReport, ...]) -> Summary:
    """Counts with every word present, so that a reader need not know which are missing."""
    verdicts = Counter(each.verdict for each in findings)
    chains = Counter(domain.chain.state for domain in domains)
    return Summary(
        by_verdict={verdict.value: verdicts[verdict] for verdict in Verdict},
        by_chain={state.value: chains[state] for state in ChainState},
        exit_code=exit_code(set(verdicts)),
    )
