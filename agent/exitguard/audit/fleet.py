"""What only a hub can tell of hosts: who is silent, whose clock is off, and where a migration changes what a guest saves. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from exitguard.audit.judge import summarize
from exitguard.audit.pmu import clears_enable_pmu
from exitguard.audit.rules import finding
from exitguard.model.documents import AuditReport, HostReport, KernelReport
from exitguard.model.evidence import Evidence
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN, Finding, Subject, SubjectKind, Verdict
from exitguard.model.host import KvmFacts, LibvirtFacts, QemuBinary, Target, TargetKind
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import Tri
from exitguard.model.record import Observed, unseen
from exitguard.model.time import format_rfc3339
from exitguard.policy.parameters import FleetClockParameters, FleetQemuParameters, FleetSilentParameters
from exitguard.policy.schema import FLEET_CHECKS, Check, Qemus, Rule, Rulebook
from exitguard.policy.waiver import apply_waivers

#: More names than this in one sentence tell nobody anything.
_MOST_TOLD = 3
_HUB = "the hub"


@dataclass(frozen=True)
class Member:
    """One host of a fleet: what the hub knows of it, and what of its report bears on others. Times are as of when is asked about."""

    host_id: str
    name: str
    enrolled_at: datetime
    #: Whether a key of its counts.
    may_write: bool
    #: None: never.
    heard_at: datetime | None
    #: None where that is not known of the time asked about.
    clock_ahead_seconds: float | None
    #: None where there is no report.
    cpu_model_name: str | None = None
    #: Whether guests with the PMU off have enable_pmu cleared here; None where there is no QEMU.
    clears: Tri | None = None


def clears_here(kvm: KvmFacts, qemu: Observed[tuple[QemuBinary, ...]], qemus: Qemus) -> Tri | None:
    """Whether a guest that starts on this host, or comes to it, with its PMU off has enable_pmu cleared; None where no QEMU is."""
    if kvm.enable_pmu.value is False:
        return Tri.YES
    if qemu.value is None:
        return Tri.UNKNOWN
    found = {clears_enable_pmu(binary, qemus)[0] for binary in qemu.value if not binary.deleted}
    if not found:
        return None
    cannot = kvm.device.value is not None and not kvm.device.value.pmu_capability & 1  # KVM_PMU_CAP_DISABLE
    return Tri.NO if cannot else found.pop() if len(found) == 1 else Tri.UNKNOWN


def judge_fleet(members: Iterable[Member], rulebook: Rulebook, at: datetime) -> dict[str, tuple[Finding, ...]]:
    """The findings of a fleet at `at` by the ids of its hosts, with the waivers for them applied."""
    known = tuple(members)
    found: dict[str, list[Finding]] = {member.host_id: [] for member in known}
    rules = [rule for rule in rulebook.policy.rules if rule.check in FLEET_CHECKS]
    for rule in rules:
        for member, verdict, reason, evidence in _CHECKS[rule.check](rule, known, at):
            subject = Subject(kind=SubjectKind.HOST, id=member.host_id, name=member.name)
            found[member.host_id].append(finding(rule, subject, verdict, reason, evidence))
    ids = {rule.id for rule in rules}
    waivers = tuple(waiver for waiver in rulebook.waivers if not ids.isdisjoint(waiver.rules))
    return {
        member.host_id: apply_waivers(tuple(found[member.host_id]), waivers, host_id=member.host_id, hostname=member.name, now=at)[0]
        for member in known
    }


def with_findings(report: AuditReport, findings: tuple[Finding, ...]) -> AuditReport:
    """The report of a host with these added, and counted."""
    told = (*report.findings, *findings)
    counted = summarize((each.verdict for each in told), ())
    summary = counted.model_copy(update={"by_chain": report.summary.by_chain})
    return report.model_copy(update={"findings": told, "summary": summary})


def report_of_unheard(member: Member, findings: tuple[Finding, ...], policy: str, at: datetime) -> AuditReport:
    """What can be said of a host that was let in and has not reported: that nothing is known."""
    why = "the host has not reported to the hub"

    def nothing() -> Observed[object]:
        return unseen(_HUB, why)

    kernel = KernelReport(
        release=None,
        state=KernelState.UNKNOWN,
        body=None,
        reason=why,
        pending_reboot=False,
        pending_release=None,
        evidence=(),
        disagreements=(),
    )
    host = HostReport.model_validate(
        {
            "id": member.host_id,
            "id_provisional": False,
            "hostname": member.name,
            "target": Target(kind=TargetKind.LOCAL),
            "kernel": kernel,
            "kvm": KvmFacts.model_validate({name: unseen(_HUB, why).model_dump() for name in KvmFacts.model_fields}),
            "libvirt": LibvirtFacts.model_validate({name: unseen(_HUB, why).model_dump() for name in LibvirtFacts.model_fields}),
            **{name: nothing().model_dump() for name in ("cpu", "mitigations", "qemu", "unmanaged")},
        }
    )
    empty = AuditReport(observed_at=at, policy=policy, host=host, domains=(), findings=(), summary=summarize((), ()))
    told = with_findings(empty, findings)
    if told.summary.exit_code != EXIT_COMPLIANT:
        return told
    # That the hub hears of it, or that it is shut out, says nothing of its kernel and its guests.
    return told.model_copy(update={"summary": told.summary.model_copy(update={"exit_code": EXIT_UNKNOWN})})


Outcome = tuple[Member, Verdict, str, tuple[Evidence, ...]]


def _silent(rule: Rule, members: tuple[Member, ...], at: datetime) -> Iterable[Outcome]:
    parameters = rule.parameters if isinstance(rule.parameters, FleetSilentParameters) else FleetSilentParameters()
    for member in members:
        heard = member.heard_at
        told = "never" if heard is None else format_rfc3339(heard)
        evidence = (Evidence(source=_HUB, value=f"let in {format_rfc3339(member.enrolled_at)}, heard of {told}", observed_at=at),)
        if not member.may_write:
            yield member, Verdict.NOT_APPLICABLE, "the host is shut out at the hub", evidence
        elif heard is None:
            late = at - member.enrolled_at > timedelta(minutes=parameters.after_minutes)
            reason = "the host was let in, and has never reported"
            yield member, Verdict.FAIL if late else Verdict.UNKNOWN, reason, evidence
        elif at - heard > timedelta(minutes=parameters.after_minutes):
            yield member, Verdict.FAIL, f"nothing was heard of the host for more than {parameters.after_minutes} minutes", evidence
        else:
            yield member, Verdict.PASS, f"the host was heard of in the last {parameters.after_minutes} minutes", evidence


def _clock(rule: Rule, members: tuple[Member, ...], at: datetime) -> Iterable[Outcome]:
    parameters = rule.parameters if isinstance(rule.parameters, FleetClockParameters) else FleetClockParameters()
    for member in members:
        ahead = member.clock_ahead_seconds
        if ahead is None:
            yield member, Verdict.NOT_APPLICABLE, "how far a clock is off is known of hosts that push, and of now alone", ()
            continue
        evidence = (Evidence(source=_HUB, value=f"the host's clock less the hub's: {ahead:+.1f} s", observed_at=at),)
        if abs(ahead) <= parameters.most_seconds:
            yield member, Verdict.PASS, f"the clock is at most {parameters.most_seconds} s off the hub's", evidence
        else:
            way = "ahead of" if ahead > 0 else "behind"
            yield member, Verdict.FAIL, f"the clock is more than {parameters.most_seconds} s {way} the hub's", evidence


def _qemu_mixed(rule: Rule, members: tuple[Member, ...], at: datetime) -> Iterable[Outcome]:
    parameters = rule.parameters if isinstance(rule.parameters, FleetQemuParameters) else FleetQemuParameters()
    groups: dict[str, list[Member]] = {}
    for member in members:
        group = _group(member, parameters.groups)
        if group is None or member.clears is None:
            yield member, Verdict.NOT_APPLICABLE, _no_group(member, parameters.groups), ()
        else:
            groups.setdefault(group, []).append(member)
    for name, group_members in groups.items():
        sides = {tri: [member for member in group_members if member.clears is tri] for tri in Tri}
        evidence = tuple(
            Evidence(source=f"hosts of group {name}", value=f"{_SIDES[tri]}: {_some(side)}", observed_at=at)
            for tri, side in sides.items()
            if side
        )
        for member in group_members:
            yield member, *_mixed(member, sides, name), evidence


def _mixed(member: Member, sides: Mapping[Tri, list[Member]], group: str) -> tuple[Verdict, str]:
    yes, no, unknown = (len(sides[tri]) for tri in (Tri.YES, Tri.NO, Tri.UNKNOWN))
    if yes and no:
        here = {Tri.YES: "this one clears it", Tri.NO: "this one does not", Tri.UNKNOWN: "of this one it is not known"}
        counts = f"of group {group} {_hosts(yes)} enable_pmu of guests without a PMU, and {no:,} {'does' if no == 1 else 'do'} not"
        return Verdict.FAIL, f"{counts}; {here[member.clears or Tri.UNKNOWN]}: a guest that migrates begins or ceases to save"
    if unknown and len(sides[Tri.UNKNOWN]) < yes + no + unknown:
        return Verdict.UNKNOWN, f"of {unknown:,} of the hosts of group {group} it is not known whether they clear enable_pmu"
    if unknown:
        return Verdict.UNKNOWN, f"of no host of group {group} it is known whether it clears enable_pmu"
    return Verdict.PASS, f"all hosts of group {group} treat a guest without a PMU alike"


_SIDES = {Tri.YES: "clear it", Tri.NO: "do not", Tri.UNKNOWN: "not known"}


def _hosts(count: int) -> str:
    return "1 host clears" if count == 1 else f"{count:,} hosts clear"


def _group(member: Member, patterns: tuple[str, ...]) -> str | None:
    if not patterns:
        return member.cpu_model_name
    for pattern in patterns:
        match = re.fullmatch(pattern, member.name)
        if match is not None:
            return "/".join(part or "" for part in match.groups()) if match.re.groups else pattern
    return None


def _no_group(member: Member, patterns: tuple[str, ...]) -> str:
    if member.clears is None:
        return "no QEMU for x86 is known here"
    return "the host is in none of the policy's groups" if patterns else "which processor the host has is not known"


def _some(members: list[Member]) -> str:
    names = sorted(member.name for member in members)
    more = len(names) - _MOST_TOLD
    return f"{', '.join(names[:_MOST_TOLD])}{f' and {more:,} more' if more > 0 else ''}"


_CHECKS: dict[Check, Callable[[Rule, tuple[Member, ...], datetime], Iterable[Outcome]]] = {
    Check.FLEET_HOST_SILENT: _silent,
    Check.FLEET_CLOCK: _clock,
    Check.FLEET_QEMU_MIXED: _qemu_mixed,
}
