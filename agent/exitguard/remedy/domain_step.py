"""domain_pmu_off: which definitions are to have their PMU off, and which are left alone. Pure.

The definition alone is changed, never a run: a guest goes on as it is until its owner starts it anew.
"""

from exitguard.audit.domain import DomainJudgement
from exitguard.model.domain import DomainFacts, OwnerKind
from exitguard.model.finding import Finding, Subject, Verdict
from exitguard.model.host import TargetKind
from exitguard.model.kernel import Body, KernelState
from exitguard.model.plan import DomainPmuChange, LeftAlone, LeftAloneBecause, Remedy, SavingPerExit
from exitguard.model.pmu import NextAction, PmuElement, Tri
from exitguard.remedy.looked_at import Decision, LookedAt
from exitguard.remedy.saving import nothing, saved_by_pmu_off

_REMEDY = Remedy.DOMAIN_PMU_OFF

_SAFE = (
    "libvirt owns the definition: no other manager claims it, and nobody has locked it",
    "nobody asked for this guest's PMU: neither its definition nor an image or flavor says so",
    "only <pmu> changes: the definition is read back, compared, and put back as it was if anything else differs",
    "the running guest is not touched",
)
_LOSES = (
    "hardware performance events inside the guest: perf with cycles or instructions, VTune, rr",
    "a PMU for guests that it runs itself",
)
_LOSES_ON_AMD = "on AMD with QEMU before 11.0 the guest keeps a working PMU in spite of this; from 11.0 on it loses it"
_DIFF_ABSENT = (
    "   <features>\n-    (no <pmu> element: QEMU's default, which is on for this CPU mode)\n+    <pmu state='off'/>\n   </features>"
)
_AT_NEXT_START = {
    True: "when the guest's owner shuts it down and starts it again; a reboot inside the guest is not enough",
    False: "at the guest's next start",
    None: "at the guest's next cold start",
}
_AFTER_SAVED_RUN = "at the cold start after its saved run has ended: a managed save brings back the PMU it was saved with"


def decide_domain(looked: LookedAt, domain: DomainFacts, judgement: DomainJudgement, finding: Finding) -> Decision:
    """What to do about one domain and one rule whose remedy is domain_pmu_off."""
    subject = judgement.subject
    if finding.verdict is Verdict.PASS:
        if judgement.report.chain.next_action is NextAction.RESTART_GUEST:
            return looked.leave(
                subject, _REMEDY, LeftAloneBecause.PENDING, "done in the definition: it waits for a cold start by its owner"
            )
        return None
    if judgement.given.asked_on is Tri.YES:
        return looked.leave(subject, _REMEDY, LeftAloneBecause.OPTED_OUT, "somebody asked for this guest's PMU: it keeps it")
    if finding.verdict is Verdict.NOT_APPLICABLE:
        return None  # nothing to save, or not KVM's
    obstacle = _obstacle(looked, domain, subject)
    if obstacle is not None:
        return obstacle
    if finding.verdict is not Verdict.FAIL:
        return looked.leave(subject, _REMEDY, LeftAloneBecause.UNKNOWN, finding.reason)
    return _step(looked, domain, subject, finding)


def _obstacle(looked: LookedAt, domain: DomainFacts, subject: Subject) -> LeftAlone | None:
    """Why the domain is not touched whatever its state; the strongest reason first."""

    def leave(because: LeftAloneBecause, reason: str) -> LeftAlone:
        return looked.leave(subject, _REMEDY, because, reason)

    if domain.locked:
        return leave(LeftAloneBecause.LOCKED, "an operator's mark in its metadata says: leave alone")
    match domain.owner.kind:
        case OwnerKind.NOVA:
            set_in_nova = (
                "Nova writes this definition anew at each hard reboot: `exitguard plan --cloud NAME` sets it in Nova, where it stays"
            )
            return leave(LeftAloneBecause.NOVA_OWNED, set_in_nova)
        case OwnerKind.OTHER:
            return leave(LeftAloneBecause.OTHER_OWNER, f"{domain.owner.name} writes this definition: it is set there")
        case OwnerKind.UNKNOWN:
            return leave(LeftAloneBecause.UNKNOWN_OWNER, f"who writes this definition cannot be told: {domain.owner.name}")
        case OwnerKind.LIBVIRT:
            pass
    if looked.is_waived(subject):
        return leave(LeftAloneBecause.WAIVED, "a failure of this domain is waived")
    if domain.definition is None:
        return leave(LeftAloneBecause.NOT_REACHABLE, "transient: there is no definition that a next start would use")
    if looked.facts.target.kind in (TargetKind.REMOTE, TargetKind.SYSROOT):
        what = "seen through a remote libvirt" if looked.facts.target.kind is TargetKind.REMOTE else "read from a file tree"
        return leave(LeftAloneBecause.NOT_REACHABLE, f"{what}: plan with facts that were gathered on the host itself")
    return None


def _step(looked: LookedAt, domain: DomainFacts, subject: Subject, finding: Finding) -> Decision:
    definition = domain.definition.value if domain.definition is not None else None
    if definition is None or definition.pmu is not PmuElement.ABSENT:
        found = "cannot be read" if definition is None else f"says <pmu state='{definition.pmu.value}'/>"
        return looked.leave(subject, _REMEDY, LeftAloneBecause.UNKNOWN, f"expected a definition without a <pmu> element; it {found}")
    cpu = looked.cpu
    amd = cpu is None or cpu.virtualization != "vmx"
    saved = domain.managed_save.value is True
    return looked.step(
        subject,
        DomainPmuChange(uuid=domain.uuid, before=PmuElement.ABSENT),
        basis={
            "definition": definition.model_dump(mode="json"),
            "owner": domain.owner.model_dump(mode="json"),
            "nova": None if domain.nova is None else domain.nova.model_dump(mode="json"),
            "locked": domain.locked,
            "uri": looked.facts.target.uri,
        },
        why=finding.reason,
        safe=_SAFE,
        takes_effect=_AFTER_SAVED_RUN if saved else _AT_NEXT_START[domain.active.value],
        guest_loses=(*_LOSES, _LOSES_ON_AMD) if amd else _LOSES,
        diff=_DIFF_ABSENT,
        savings=_savings(looked, definition.emulator),
        reversible=True,
    )


def _savings(looked: LookedAt, emulator: str | None) -> tuple[SavingPerExit, ...]:
    """Once the guest was started anew: what the kernel and the QEMU that it would be started with make of it."""
    host = looked.judged.host
    if host.host_clears is Tri.YES:
        return nothing("kvm.enable_pmu=N clears the PMU of every guest already: the definition only says the same")
    clears, why = host.clears_on_disk.get(emulator or "", (Tri.UNKNOWN, "the QEMU of its next start is not known"))
    if clears is Tri.NO:
        return nothing(f"nothing before QEMU is upgraded: {why}")
    if host.kernel.state is KernelState.AFFECTED and host.kernel.body is Body.A and host.kernel.returns_at_once is False:
        return nothing("nothing before the guarded kernel runs: this one walks its counters whether the PMU is on or off")
    savings = saved_by_pmu_off(looked.rulebook.costs, host, looked.cpu, looked.mitigation_classes)
    if clears is Tri.UNKNOWN:
        return tuple(saving.model_copy(update={"reason": f"{saving.reason}; only if QEMU tells KVM: {why}"}) for saving in savings)
    return savings
