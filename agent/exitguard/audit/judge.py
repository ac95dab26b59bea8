"""The whole judgement: one FactsDocument and a rulebook in, one AuditReport out. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime

from exitguard.audit.domain import HostJudgement, judge_domain
from exitguard.audit.kernel import judge_kernel
from exitguard.audit.machine_code import deciding_code
from exitguard.audit.nova import judge_nova_default
from exitguard.audit.pmu import clears_enable_pmu
from exitguard.audit.rules import Judged, check_rule, finding, kernel_evidence
from exitguard.model.documents import AuditReport, DomainUpdate, FactsDocument, HostReport, KernelReport, Summary
from exitguard.model.evidence import Evidence
from exitguard.model.finding import OF_A_CLOUD, Finding, Subject, SubjectKind, Verdict, exit_code
from exitguard.model.kernel import KernelStatement, KernelVerdict
from exitguard.model.pmu import ChainState, Tri
from exitguard.model.time import format_rfc3339
from exitguard.policy.schema import FLEET_CHECKS, Check, Rule, Rulebook, Waiver
from exitguard.policy.waiver import WaiverUse, apply_waivers


def judge(facts: FactsDocument, rulebook: Rulebook, *, machine_ids_seen: tuple[str, ...] = ()) -> AuditReport:
    """What is so, what it means, and why. `machine_ids_seen` are those known under this host id, none without a store."""
    judged, findings, use = judge_facts(facts, rulebook, machine_ids_seen=machine_ids_seen)
    judgement = judged.host
    findings += waiver_findings(rulebook, use, facts.observed_at, "this host")
    reports = tuple(domain.report for domain in judged.domains)
    return AuditReport(
        tool=facts.tool,
        observed_at=facts.observed_at,
        policy=f"{rulebook.policy.id} {rulebook.policy.version}",
        host=_host_report(facts, judgement.kernel, kernel_evidence(judged)),
        domains=reports,
        findings=findings,
        summary=summarize((each.verdict for each in findings), (report.chain.state for report in reports)),
    )


def judge_facts(
    facts: FactsDocument, rulebook: Rulebook, *, machine_ids_seen: tuple[str, ...] = ()
) -> tuple[Judged, tuple[Finding, ...], WaiverUse]:
    """The judgements that the rules rest on, the rules' findings with the waivers applied, and what became of the waivers."""
    judgement, statements = judge_host(facts, rulebook)
    domains = tuple(judge_domain(domain, judgement) for domain in facts.domains)
    judged = Judged(facts, judgement, statements, domains, machine_ids_seen)
    findings, use = _check_rules(rulebook.policy.rules, judged, rulebook)
    return judged, findings, use


def judge_host(facts: FactsDocument, rulebook: Rulebook) -> tuple[HostJudgement, tuple[KernelStatement, ...]]:
    """What is the same for every domain of the host, and every statement about its kernel."""
    kernel, statements = judge_kernel(facts.host.kernel, facts.host.kvm, rulebook.kernels, cpu=facts.host.cpu.value)
    judgement = HostJudgement(
        observed_at=facts.observed_at,
        kernel=kernel,
        kvm=facts.host.kvm,
        clears_on_disk=_clears_on_disk(facts, rulebook),
        qemus=rulebook.qemus,
        scope=rulebook.policy.scope,
        nova_default=judge_nova_default(facts.domains),
    )
    return judgement, statements


def judge_again(facts: FactsDocument, rulebook: Rulebook, uuids: frozenset[str]) -> tuple[DomainUpdate, ...]:
    """The domains in `uuids` by the facts as they are now, by the rules that judge domains; those not in the facts are gone."""
    judgement, statements = judge_host(facts, rulebook)
    domains = tuple(judge_domain(domain, judgement) for domain in facts.domains if domain.uuid in uuids)
    rules = tuple(rule for rule in rulebook.policy.rules if rule.subject is SubjectKind.DOMAIN)
    findings, _ = _check_rules(rules, Judged(facts, judgement, statements, domains, ()), rulebook)
    reports = {domain.report.uuid: domain.report for domain in domains}
    return tuple(
        DomainUpdate(uuid=uuid, report=reports.get(uuid), findings=tuple(each for each in findings if each.subject.id == uuid))
        for uuid in sorted(uuids)
    )


def _check_rules(rules: Iterable[Rule], judged: Judged, rulebook: Rulebook) -> tuple[tuple[Finding, ...], WaiverUse]:
    identity = judged.facts.host.identity
    findings = tuple(each for rule in rules if rule.subject not in OF_A_CLOUD for each in check_rule(rule, judged))
    waivers = waivers_about(rulebook, set(SubjectKind) - OF_A_CLOUD)
    return apply_waivers(findings, waivers, host_id=identity.id, hostname=identity.hostname.value, now=judged.facts.observed_at)


def waivers_about(rulebook: Rulebook, kinds: Collection[SubjectKind]) -> tuple[Waiver, ...]:
    """The waivers that name a rule about one of these kinds: the audit of a host says nothing of those for a cloud or a fleet."""
    rules = {rule.id for rule in rulebook.policy.rules if rule.subject in kinds and rule.check not in FLEET_CHECKS}
    return tuple(waiver for waiver in rulebook.waivers if not rules.isdisjoint(waiver.rules))


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


def waiver_findings(rulebook: Rulebook, use: WaiverUse, observed_at: datetime, where: str) -> tuple[Finding, ...]:
    """Waivers that do not do what somebody believes they do: expired, unmatched, malformed."""
    rules = [rule for rule in rulebook.policy.rules if rule.check is Check.WAIVERS]
    found = []
    for rule in rules:
        for group, verdict, reason in (
            (use.active, Verdict.PASS, "in force"),
            (use.expired, Verdict.FAIL, "expired: it covers nothing any more"),
            (use.not_yet, Verdict.FAIL, "created in the future: it covers nothing yet"),
            (use.unmatched, Verdict.FAIL, f"in force for {where}, yet it covers no failing finding: mended since, or misspelt"),
        ):
            for waiver in group:
                value = f"rules {', '.join(waiver.rules)}, approved by {waiver.approver}, expires {format_rfc3339(waiver.expires)}"
                evidence = (Evidence(source="waivers", value=value, observed_at=observed_at),)
                subject = Subject(kind=SubjectKind.POLICY, id=waiver.id, name=waiver.id)
                found.append(finding(rule, subject, verdict, f"waiver {waiver.id} is {reason}", evidence))
        for problem in rulebook.waiver_problems:
            evidence = (Evidence(source=problem.where, value=problem.message, observed_at=observed_at),)
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
            returns_at_once=kernel.returns_at_once,
            live_patched=kernel.live_patched,
            code=deciding_code(host.kernel.machine_code.value),
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


def summarize(verdicts: Iterable[Verdict], chains: Iterable[ChainState]) -> Summary:
    """Counts with every word present, so that a reader need not know which are missing."""
    by_verdict = Counter(verdicts)
    by_chain = Counter(chains)
    return Summary(
        by_verdict={verdict.value: by_verdict[verdict] for verdict in Verdict},
        by_chain={state.value: by_chain[state] for state in ChainState},
        exit_code=exit_code({verdict for verdict, count in by_verdict.items() if count}),
    )
