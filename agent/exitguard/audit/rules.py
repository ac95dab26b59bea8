"""The checks that rules name: one function a check, from a judged host to findings. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from exitguard.audit import verdicts
from exitguard.audit.chain import Run
from exitguard.audit.domain import DomainJudgement, HostJudgement
from exitguard.audit.nova_option import judge_option
from exitguard.model.documents import FactsDocument
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Subject, SubjectKind, Verdict
from exitguard.model.kernel import InstalledVerdict, KernelState, KernelStatement
from exitguard.model.pmu import Chain, ChainState, LinkName, PmuSetting, Tri
from exitguard.model.record import Observed
from exitguard.policy.parameters import NovaDefaultParameters, SourceName, SourcesParameters
from exitguard.policy.schema import Check, Rule

_WOULD_HELP = {True: "would help", False: "would not help", None: "may or may not help"}
#: More kernels than this in one sentence tell nobody anything; the evidence has all.
_MOST_TOLD = 3


@dataclass(frozen=True)
class Judged:
    """Everything the checks look at."""

    facts: FactsDocument
    host: HostJudgement
    statements: tuple[KernelStatement, ...]
    domains: tuple[DomainJudgement, ...]
    #: Every machine-id that has been seen under this host id; empty without a store.
    machine_ids_seen: tuple[str, ...]

    @property
    def host_subject(self) -> Subject:
        identity = self.facts.host.identity
        return Subject(kind=SubjectKind.HOST, id=identity.id, name=identity.hostname.value or "unknown host name")

    def evidence(self, source: str, value: str) -> Evidence:
        return Evidence(source=source, value=value, observed_at=self.host.observed_at)

    def seen(self, observed: Observed[bool]) -> Evidence:
        """One yes-or-no observation as evidence, in the words of the parameter file."""
        value = f"not seen: {observed.reason}" if observed.value is None else "Y" if observed.value else "N"
        return self.evidence(observed.source, value)


def check_rule(rule: Rule, judged: Judged) -> Iterator[Finding]:
    """The findings of one rule. A check that breaks becomes a finding of its own (`error`), and the others go on."""
    check = _CHECKS.get(rule.check)
    if check is None:
        return  # waivers are judged after everything else, in judge.py, and a fleet in fleet.py
    try:
        yield from check(rule, judged)
    except Exception as error:  # noqa: BLE001 - the outer edge of one check; the finding carries what happened
        yield finding(rule, judged.host_subject, Verdict.ERROR, f"the check itself broke: {type(error).__name__}: {error}", ())


def finding(rule: Rule, subject: Subject, verdict: Verdict, reason: str, evidence: tuple[Evidence, ...]) -> Finding:
    """A finding of `rule`; the remedy is named only where something fails."""
    return Finding(
        rule=rule.id,
        severity=rule.severity,
        subject=subject,
        verdict=verdict,
        reason=reason,
        evidence=evidence,
        remedy=rule.remedy if verdict is Verdict.FAIL else None,
    )


def kernel_evidence(judged: Judged) -> tuple[Evidence, ...]:
    """Every statement about the kernel, strongest first, and what could not be seen of it."""
    kernel = judged.facts.host.kernel
    found = [judged.evidence(f"{statement.method.value}: {statement.source}", statement.value) for statement in judged.statements]
    unseen: tuple[Observed[object], ...] = (kernel.release, kernel.machine_code, kernel.symbols, kernel.changelog)
    found += [judged.evidence(observed.source, f"not seen: {observed.reason}") for observed in unseen if observed.reason is not None]
    return tuple(found)


def _kernel_guard(rule: Rule, judged: Judged) -> Iterator[Finding]:
    verdict = judged.host.kernel
    release = judged.facts.host.kernel.release.value or "the running kernel"
    body = f", body {verdict.body.value}" if verdict.body is not None else ""
    reason = f"{release} is {verdict.state.value}{body}: {verdict.reason}"
    yield finding(rule, judged.host_subject, verdicts.kernel_guard(verdict.state), reason, kernel_evidence(judged))


def _kernel_reboot(rule: Rule, judged: Judged) -> Iterator[Finding]:
    verdict, kernel = judged.host.kernel, judged.facts.host.kernel
    installed = kernel.installed
    evidence: tuple[Evidence, ...] = (
        judged.evidence(
            installed.source,
            f"not seen: {installed.reason}" if installed.value is None else ", ".join(each.release for each in installed.value),
        ),
        *(judged.evidence(f"installed {each.release}", f"{_WOULD_HELP[each.helps]}: {each.how}") for each in verdict.installed),
    )
    if verdict.pending_release is not None:
        pending = next(each for each in verdict.installed if each.release == verdict.pending_release)
        same = pending.release == kernel.release.value
        what = f"a newer build of {pending.release} is installed and would help ({pending.how}), but the older one runs"
        if not same:
            what = f"{pending.release} is installed and would help ({pending.how}), but {kernel.release.value or 'another'} runs"
        yield finding(rule, judged.host_subject, Verdict.FAIL, f"{what}; {_next_boot(judged, pending)}", evidence)
    elif verdict.state not in (KernelState.AFFECTED, KernelState.UNKNOWN):
        reason = f"the running kernel is {verdict.state.value}: no other would help"
        yield finding(rule, judged.host_subject, Verdict.PASS, reason, evidence)
    elif (obstacle := _open_kernels(judged)) is not None:
        yield finding(rule, judged.host_subject, Verdict.UNKNOWN, obstacle, evidence)
    else:
        others = [each for each in verdict.installed if each.release != kernel.release.value]
        told = "".join(f"; {each.release} would not: {each.how}" for each in others[-_MOST_TOLD:])
        yield finding(rule, judged.host_subject, Verdict.PASS, f"no installed kernel would help by being booted{told}", evidence)


def _next_boot(judged: Judged, pending: InstalledVerdict) -> str:
    boots = judged.facts.host.kernel.boots_next
    if boots.value is None:
        return f"which kernel boots next is not known ({boots.reason})"
    other = next((each for each in judged.host.kernel.installed if each.release == boots.value), None)
    if other is None or other.release == pending.release:
        return f"the boot loader would start {boots.value}"
    return f"the boot loader would start {boots.value}, which {_WOULD_HELP[other.helps]}: {other.how}"


def _open_kernels(judged: Judged) -> str | None:
    """Why it cannot be told whether an installed kernel would help; None where it can."""
    kernel = judged.facts.host.kernel
    if kernel.installed.value is None:
        return f"which kernels are installed cannot be seen: {kernel.installed.reason}"
    if kernel.release.value is None:
        return f"whether an installed kernel would help cannot be told: which kernel runs cannot be seen: {kernel.release.reason}"
    undecided = [each for each in judged.host.kernel.installed if each.helps is None]
    if undecided:
        told = "; ".join(f"{each.release}: {each.how}" for each in undecided[-_MOST_TOLD:])
        return f"whether an installed kernel would help cannot be told: {told}"
    return None


def _qemu_pmu_capability(rule: Rule, judged: Judged) -> Iterator[Finding]:
    host, qemu = judged.host, judged.facts.host.qemu
    if host.kernel.state in (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED):
        yield finding(
            rule, judged.host_subject, Verdict.NOT_APPLICABLE, f"the kernel is {host.kernel.state.value}: there is nothing to save", ()
        )
        return
    if host.host_clears is Tri.YES:
        reason = "kvm.enable_pmu=N clears the PMU of every guest, whatever QEMU does"
        yield finding(rule, judged.host_subject, Verdict.NOT_APPLICABLE, reason, (judged.seen(judged.facts.host.kvm.enable_pmu),))
        return
    if qemu.value is None:
        reason = f"no QEMU can be seen: {qemu.reason}"
        yield finding(rule, judged.host_subject, Verdict.UNKNOWN, reason, (judged.evidence(qemu.source, f"not seen: {qemu.reason}"),))
        return
    if not qemu.value:
        yield finding(rule, judged.host_subject, Verdict.NOT_APPLICABLE, "libvirt knows no QEMU for x86 here", ())
        return
    if host.kvm_cannot_clear:
        reason = "this KVM has no KVM_PMU_CAP_DISABLE, so that no QEMU can clear kvm->arch.enable_pmu: another kernel is needed"
        device = judged.facts.host.kvm.device
        answer = judged.evidence(device.source, f"KVM_CAP_PMU_CAPABILITY is {device.get().pmu_capability}")
        yield finding(rule, judged.host_subject, Verdict.FAIL, reason, (answer,))
        return
    clears = [(binary, *host.clears_on_disk[binary.path]) for binary in qemu.value]
    evidence = tuple(judged.evidence(binary.path, why) for binary, _, why in clears)
    worst = next((tri for tri in (Tri.NO, Tri.UNKNOWN) if any(each is tri for _, each, _ in clears)), Tri.YES)
    reasons = "; ".join(why for _, each, why in clears if each is worst)
    verdict = {Tri.YES: Verdict.PASS, Tri.NO: Verdict.FAIL, Tri.UNKNOWN: Verdict.UNKNOWN}[worst]
    yield finding(rule, judged.host_subject, verdict, reasons, evidence)


def _sources(rule: Rule, judged: Judged) -> Iterator[Finding]:
    """What could not be seen although a verdict rests on it."""
    parameters = rule.parameters if isinstance(rule.parameters, SourcesParameters) else SourcesParameters()
    required = parameters.required
    missing = [(source, why) for source in required for why in _missing(source, judged)]
    if not missing:
        reason = f"all required sources were seen: {', '.join(source.value for source in required)}"
        yield finding(rule, judged.host_subject, Verdict.PASS, reason, ())
        return
    reason = "could not be seen: " + "; ".join(f"{source.value} ({observed.reason})" for source, observed in missing)
    evidence = tuple(
        judged.evidence(observed.source, f"not seen: {observed.reason}" + (f"; would need {observed.unlock}" if observed.unlock else ""))
        for _, observed in missing
    )
    yield finding(rule, judged.host_subject, Verdict.UNKNOWN, reason, evidence)


def _missing(source: SourceName, judged: Judged) -> Iterator[Observed[object]]:
    """The observations behind `source` that have a reason instead of a value, at most one a source."""
    host = judged.facts.host
    candidates: tuple[Observed[object], ...]
    match source:
        case SourceName.KERNEL_RELEASE:
            candidates = (host.kernel.release,)
        case SourceName.KERNEL_EVIDENCE:
            settled = judged.host.kernel.state is not KernelState.UNKNOWN
            candidates = () if settled else (host.kernel.symbols, host.kernel.changelog, host.kernel.machine_code)
        case SourceName.KVM_ENABLE_PMU:
            known = judged.host.host_clears is not Tri.UNKNOWN
            candidates = () if known else (host.kvm.enable_pmu,)
        case SourceName.LIBVIRT:
            candidates = (host.libvirt.listing,)
        case SourceName.PROCESSES:
            candidates = tuple(_unseen_processes(judged))
        case SourceName.ALL_GUESTS:
            candidates = tuple(_guests_outside_libvirt(judged))
    yield from [observed for observed in candidates if observed.reason is not None][:1]


def _unseen_processes(judged: Judged) -> Iterator[Observed[object]]:
    for domain in judged.facts.domains:
        process = domain.process
        if process is None:
            continue
        if process.value is None:
            yield process
        else:
            yield process.value.executable


def _guests_outside_libvirt(judged: Judged) -> Iterator[Observed[object]]:
    """Guests that libvirt does not know, where they could pay: nothing is known of their PMU."""
    unmanaged = judged.facts.host.unmanaged
    harmless = judged.host.kernel.state in (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED) or judged.host.host_clears is Tri.YES
    if unmanaged.value and not harmless:
        names = ", ".join(sorted({guest.command for guest in unmanaged.value})[:5])
        yield Observed(source=unmanaged.source, reason=f"{len(unmanaged.value)} guests outside libvirt: {names}")


def _host_identity(rule: Rule, judged: Judged) -> Iterator[Finding]:
    seen_ids, machine_id = judged.machine_ids_seen, judged.facts.host.identity.machine_id
    if not seen_ids:
        provisional = judged.facts.host.identity.provisional
        reason = (
            "the host id is provisional: nothing is stored that could be cloned"
            if provisional
            else "this audit is not stored, and compares none"
        )
        yield finding(rule, judged.host_subject, Verdict.NOT_APPLICABLE, reason, ())
    elif len(seen_ids) > 1:
        reason = f"one host id with {len(seen_ids)} machine-ids: the store was copied to another machine, or the machine-id was made anew"
        evidence = tuple(judged.evidence("store", f"machine-id {each}") for each in seen_ids)
        yield finding(rule, judged.host_subject, Verdict.FAIL, reason, evidence)
    elif machine_id.value is None:
        evidence = (judged.evidence(machine_id.source, f"not seen: {machine_id.reason}"),)
        yield finding(rule, judged.host_subject, Verdict.UNKNOWN, f"the machine-id cannot be seen: {machine_id.reason}", evidence)
    else:
        yield finding(rule, judged.host_subject, Verdict.PASS, "one host id, one machine-id", ())


def _nova_default_off(rule: Rule, judged: Judged) -> Iterator[Finding]:
    default = judged.host.nova_default
    if not default.instances:
        yield finding(rule, judged.host_subject, Verdict.NOT_APPLICABLE, "no Nova instance is here", ())
        return
    counts = f"{len(default.proofs)} witnesses for it, {len(default.disproofs)} against, of {default.instances} instances"
    evidence = tuple(judged.evidence(f"instance {uuid}", "silent flavor and image, <pmu state='off'/>") for uuid in default.proofs[:5])
    evidence += tuple(judged.evidence(f"instance {uuid}", "no <pmu> element in what Nova wrote") for uuid in default.disproofs[:5])
    match default.holds:
        case Tri.YES:
            verdict, reason = Verdict.PASS, f"Nova defaults to PMU off here: {counts}"
        case Tri.NO:
            verdict, reason = Verdict.FAIL, f"Nova leaves the PMU to QEMU here: {counts}"
        case Tri.UNKNOWN:
            verdict = Verdict.UNKNOWN
            reason = f"the witnesses contradict each other: {counts}" if default.proofs else f"no instance is a witness: {counts}"
    if isinstance(rule.parameters, NovaDefaultParameters):
        said = judge_option(judged.facts.host.nova_option, rule.parameters, default.holds)
        evidence += (judged.evidence(said.source, said.value),)
        reason = f"{reason}; {said.sentence}"
    yield finding(rule, judged.host_subject, verdict, reason, evidence)


def _domain_check(name: LinkName | None, judge: Callable[[DomainJudgement], Verdict]) -> "_Check":
    """A check of every domain; its reason is that of the link, or of the whole chain."""

    def check(rule: Rule, judged: Judged) -> Iterator[Finding]:
        for domain in judged.domains:
            report = domain.report
            verdict = judge(domain)
            link = next((link for link in report.chain.links if link.name is name), None)
            by_state = link is None or verdict is Verdict.NOT_APPLICABLE
            reason = _chain_reason(report.chain) if by_state or link is None else link.reason
            yield finding(rule, domain.subject, verdict, reason, report.evidence)

    return check


def _chain_reason(chain: Chain) -> str:
    return chain.reason if chain.state is ChainState.NOT_APPLICABLE else f"{chain.state.value}: {chain.reason}"


def _opt_out_honoured(rule: Rule, judged: Judged) -> Iterator[Finding]:
    for domain in judged.domains:
        verdict = verdicts.opt_out_honoured(domain.report.chain, domain.given)
        yield finding(rule, domain.subject, verdict, _opt_out_reason(verdict, domain), domain.report.evidence)


def _opt_out_reason(verdict: Verdict, domain: DomainJudgement) -> str:
    given, stopped = domain.given, domain.given.run is Run.NONE
    started_without = given.persistent is PmuSetting.ON and given.live in (PmuSetting.OFF, PmuSetting.DEFAULT_OFF)
    match verdict:
        case Verdict.PASS:
            return "the PMU was asked for, and the next start has it" if stopped else "the PMU was asked for, and the guest has it"
        case Verdict.FAIL if given.host_clears is Tri.YES:
            return "the PMU was asked for, and kvm.enable_pmu=N takes it away"
        case Verdict.FAIL | Verdict.UNKNOWN if started_without:
            return "the PMU was asked for, but this run was started without it: the next start has it"
        case Verdict.FAIL:
            return "the PMU was asked for, yet this run has it off, in KVM too"
        case Verdict.NOT_APPLICABLE if given.asked_on is Tri.NO:
            return "nobody asked for the PMU"
        case Verdict.NOT_APPLICABLE:
            return domain.report.chain.reason
        case _ if given.asked_on is Tri.UNKNOWN:
            return "whether somebody asked for the PMU cannot be told"
        case _:
            return "the PMU was asked for; whether the guest has it cannot be told"


_Check = Callable[[Rule, Judged], Iterator[Finding]]

_CHECKS: dict[Check, _Check] = {
    Check.KERNEL_GUARD: _kernel_guard,
    Check.KERNEL_REBOOT: _kernel_reboot,
    Check.QEMU_PMU_CAPABILITY: _qemu_pmu_capability,
    Check.SOURCES: _sources,
    Check.HOST_IDENTITY: _host_identity,
    Check.NOVA_DEFAULT_OFF: _nova_default_off,
    Check.PMU_PERSISTENT: _domain_check(LinkName.DEFINED, lambda domain: verdicts.pmu_persistent(domain.report.chain, domain.given)),
    Check.PMU_LIVE: _domain_check(LinkName.RUNNING, lambda domain: verdicts.pmu_live(domain.report.chain, domain.given)),
    Check.PMU_EFFECTIVE: _domain_check(None, lambda domain: verdicts.pmu_effective(domain.report.chain.state, domain.given.asked_on)),
    Check.OPT_OUT_HONOURED: _opt_out_honoured,
}
