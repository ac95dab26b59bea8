"""A believable fleet, the same for the same seed: kernels, processors, QEMUs and chains as they go together; savings on most hosts."""

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from uuid import UUID

# The builders of accounts, and what they need.
sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("report", "savings", "audit")]

from account_builders import AVAILABLE, SAVED, UNPRICED, accounted, summed

from exitguard.model.documents import AuditReport, DecidingCode, DomainReport, HostReport, KernelReport, PmuReport, Summary
from exitguard.model.domain import Owner, OwnerKind
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Severity, Subject, SubjectKind, Verdict, exit_code
from exitguard.model.host import Cpu, KvmDevice, KvmFacts, KvmModule, LibvirtFacts, Mitigations, QemuBinary, QemuVersion, Target, TargetKind
from exitguard.model.kernel import Body, KernelState
from exitguard.model.machine_code import Instruction
from exitguard.model.pmu import Chain, ChainState, Link, LinkName, NextAction, PmuSetting, Tri
from exitguard.model.rates import HostSavings
from exitguard.model.record import seen, unseen

_KERNELS = (
    ("6.1.0-37-amd64", KernelState.AFFECTED, Body.A),
    ("6.12.41+deb13-amd64", KernelState.AFFECTED, Body.B),
    ("6.12.41+guard1-amd64", KernelState.GUARDED, Body.B),
    ("5.14.0-503.el9.x86_64", KernelState.UNKNOWN, None),
)
_QEMUS = ("7.2.22", "8.2.2", "11.1.3")
_CPUS = ("AMD EPYC 7302 16-Core Processor", "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", "AMD EPYC 9554 64-Core Processor")
_BROKEN = {
    ChainState.ON: (LinkName.DEFINED, NextAction.SET_PMU_OFF),
    ChainState.NOT_PROPAGATED: (LinkName.PROPAGATED, NextAction.UPGRADE_QEMU),
    ChainState.UNGUARDED: (LinkName.KERNEL, NextAction.INSTALL_GUARDED_KERNEL),
    ChainState.PENDING_RESTART: (LinkName.RUNNING, NextAction.RESTART_GUEST),
}
_REASONS = {
    ChainState.ON: "its definition says nothing of a PMU, and its cpu mode is host-passthrough: it has one by default",
    ChainState.NOT_PROPAGATED: "the PMU is off, and QEMU before 11.0 does not clear kvm->arch.enable_pmu for it",
    ChainState.UNGUARDED: "enable_pmu is cleared, and the running kernel has no guard",
    ChainState.PENDING_RESTART: "defined off, and this run was started with the PMU on",
    ChainState.EFFECTIVE: "every link holds",
    ChainState.UNKNOWN: "propagated is unknown: the process could not be seen",
}


def fleet(hosts: int, domains: int, seed: int, at: datetime) -> Iterator[AuditReport]:
    """So many reports of hosts with so many domains each, all observed within an hour before `at`."""
    random = Random(seed)  # noqa: S311 - a sample, no secret
    for number in range(hosts):
        yield _report(random, number, domains, at - timedelta(seconds=random.randrange(3600)))


def _report(random: Random, number: int, domains: int, at: datetime) -> AuditReport:
    release, state, body = random.choices(_KERNELS, (5, 3, 4, 1))[0]
    qemu = random.choices(_QEMUS, (4, 3, 3))[0]
    host = _host(random, f"compute-{number:04d}.example.net", _kernel(release, state, body, at), qemu)
    guests = [_domain(random, number * 1000 + place, state, qemu, at) for place in range(domains)]
    findings = [
        *_host_findings(host, at - timedelta(days=random.randrange(90))),
        *(found for guest in guests for found in _findings(guest, at)),
    ]
    return AuditReport(
        observed_at=at,
        policy="pmu-off 1.1",
        host=host,
        domains=tuple(guests),
        findings=tuple(findings),
        summary=Summary(
            by_verdict={each.value: sum(finding.verdict is each for finding in findings) for each in Verdict},
            by_chain={each.value: sum(guest.chain.state is each for guest in guests) for each in ChainState},
            exit_code=exit_code({finding.verdict for finding in findings}),
        ),
        savings=_savings(random, number) if random.random() < 0.9 else None,
    )


_INSTRUCTIONS = tuple(
    Instruction(function="kvm_skip_emulated_instruction", address=address, text=text, note=note)
    for address, text, note in (
        (25, "call __SCT__kvm_x86_skip_emulated_instruction", "skips the instruction"),
        (32, "je +0x36", "no PMU call where nothing was skipped"),
        (42, "call kvm_pmu_trigger_event", "the PMU call"),
    )
)


def _kernel(release: str, state: KernelState, body: Body | None, at: datetime) -> KernelReport:
    path = f"/lib/modules/{release}/kernel/arch/x86/kvm/kvm.ko"
    code = Evidence(source=path, value="call kvm_pmu_trigger_event at +0x2a, and nothing asks before", observed_at=at)
    return KernelReport(
        release=release,
        state=state,
        body=body,
        reason=f"machine code: {release} is {state}",
        pending_reboot=False,
        pending_release=None,
        code=DecidingCode(path=path, instructions=_INSTRUCTIONS),
        evidence=(code,),
        disagreements=(),
    )


def _host(random: Random, name: str, kernel: KernelReport, qemu: str) -> HostReport:
    model = random.choice(_CPUS)
    amd = model.startswith("AMD")
    cpu = Cpu(
        vendor="AuthenticAMD" if amd else "GenuineIntel",
        model_name=model,
        family=23 if amd else 6,
        model=49,
        stepping=0,
        microcode="0x830107c",
        logical_cpus=64,
        virtualization="svm" if amd else "vmx",
        hypervisor=False,
    )
    version = seen("strings", QemuVersion(version=qemu, package=f"Debian 1:{qemu}"))
    binary = QemuBinary(path="/usr/bin/qemu-system-x86_64", version=version, capability_string=seen("strings", qemu.startswith("11")))
    return HostReport(
        id=str(UUID(int=random.getrandbits(128), version=4)),
        id_provisional=False,
        hostname=name,
        target=Target(kind=TargetKind.LOCAL, uri="qemu:///system"),
        kernel=kernel,
        cpu=seen("/proc/cpuinfo", cpu),
        mitigations=seen("/sys/devices/system/cpu/vulnerabilities", Mitigations(lines={}, classes=())),
        kvm=KvmFacts(
            module=seen("/sys/module/kvm", KvmModule(form="module", vendor_modules=("kvm_amd",))),
            parameters=seen("/sys/module/kvm/parameters", {"kvm.enable_pmu": "Y"}),
            enable_pmu=seen("/sys/module/kvm/parameters/enable_pmu", True),
            enable_mediated_pmu=unseen("/sys/module/kvm/parameters/enable_mediated_pmu", "this kernel has no such parameter"),
            build_id=seen("/sys/module/kvm/notes/.note.gnu.build-id", "ab" * 20),
            device=seen("/dev/kvm", KvmDevice(api_version=12, pmu_capability=1)),
        ),
        qemu=seen("/usr/bin", (binary,)),
        libvirt=LibvirtFacts(daemon_version=seen("libvirt", "9.0.0"), driver=seen("libvirt", "QEMU"), listing=seen("libvirt", True)),
        unmanaged=seen("/proc/*/fd", ()),
    )


def _host_findings(host: HostReport, since: datetime) -> Iterator[Finding]:
    subject = Subject(kind=SubjectKind.HOST, id=host.id, name=host.hostname or host.id)
    verdict = {KernelState.GUARDED: Verdict.PASS, KernelState.UNKNOWN: Verdict.UNKNOWN}.get(host.kernel.state, Verdict.FAIL)
    yield Finding(
        rule="HOST-KERNEL-GUARD",
        severity=Severity.HIGH,
        subject=subject,
        verdict=verdict,
        reason=f"{host.kernel.release} is {host.kernel.state}",
        since=since,
        evidence=host.kernel.evidence,
        remedy="kernel_guard",
    )
    yield Finding(rule="HOST-SOURCES", severity=Severity.LOW, subject=subject, verdict=Verdict.PASS, reason="every source could be seen")


def _state(random: Random, kernel: KernelState, qemu: str) -> ChainState:
    if qemu.startswith("11") and kernel is KernelState.GUARDED:
        return ChainState.EFFECTIVE  # whoever did both did the rest too
    if random.random() < 0.35:
        return ChainState.ON
    if not qemu.startswith("11"):
        return ChainState.NOT_PROPAGATED
    if random.random() < 0.1:
        return ChainState.PENDING_RESTART
    return {KernelState.GUARDED: ChainState.EFFECTIVE, KernelState.UNKNOWN: ChainState.UNKNOWN}.get(kernel, ChainState.UNGUARDED)


def _domain(random: Random, number: int, kernel: KernelState, qemu: str, at: datetime) -> DomainReport:
    state = _state(random, kernel, qemu)
    broken, action = _BROKEN.get(state, (None, NextAction.OBSERVE if state is ChainState.UNKNOWN else NextAction.NONE))
    links = tuple(
        Link(name=name, holds=Tri.NO, reason=_REASONS[state]) if name is broken else Link(name=name, holds=Tri.YES, reason=f"{name} holds")
        for name in LinkName
    )
    off = state is not ChainState.ON
    setting = PmuSetting.OFF if off else PmuSetting.DEFAULT_ON
    nova = random.random() < 0.7
    said = f"type kvm, cpu host-passthrough, pmu {'off' if off else 'absent'}"
    return DomainReport(
        uuid=str(UUID(int=random.getrandbits(128), version=4)),
        name=f"instance-{number:08x}",
        active=True,
        owner=Owner(kind=OwnerKind.NOVA if nova else OwnerKind.LIBVIRT, name="Nova" if nova else "libvirt"),
        project=f"project-{random.randrange(30)}" if nova else None,
        pmu=PmuReport(persistent=setting, live=setting),
        chain=Chain(state=state, reason=_REASONS[state], links=links, broken_links=() if broken is None else (broken,), next_action=action),
        evidence=(
            Evidence(source="libvirt: inactive XML", value=said, observed_at=at),
            Evidence(
                source=f"/proc/{random.randrange(1000, 4_000_000)}/cmdline", value=f"-cpu host{',pmu=off' if off else ''}", observed_at=at
            ),
        ),
    )


def _findings(guest: DomainReport, at: datetime) -> Iterator[Finding]:
    subject = Subject(kind=SubjectKind.DOMAIN, id=guest.uuid, name=guest.name)
    state = guest.chain.state
    off = Verdict.PASS if guest.pmu.live is PmuSetting.OFF else Verdict.FAIL
    effective = {ChainState.EFFECTIVE: Verdict.PASS, ChainState.UNKNOWN: Verdict.UNKNOWN}.get(state, Verdict.FAIL)
    for rule, severity, verdict, remedy in (
        ("DOM-PMU-PERSISTENT", Severity.MEDIUM, off, "domain_pmu_off"),
        ("DOM-PMU-LIVE", Severity.MEDIUM, off, None),
        ("DOM-PMU-EFFECTIVE", Severity.HIGH, effective, None),
        ("DOM-OPT-OUT-HONOURED", Severity.HIGH, Verdict.NOT_APPLICABLE, None),
    ):
        yield Finding(
            rule=rule,
            severity=severity,
            subject=subject,
            verdict=verdict,
            reason="does not ask for its PMU" if verdict is Verdict.NOT_APPLICABLE else guest.chain.reason,
            since=at - timedelta(hours=7),
            evidence=guest.evidence,
            remedy=remedy if verdict is Verdict.FAIL else None,
        )


def _savings(random: Random, number: int) -> HostSavings:
    sums = [
        summed(
            random.choice((AVAILABLE, SAVED, UNPRICED)),
            run=number * 10 + run,
            low=random.randrange(400_000),
            high=random.randrange(400_000, 3_600_000),
        )
        for run in range(3)
    ]
    account = accounted(*sums, cpu_seconds=0.7)
    return HostSavings(**{name: getattr(account, name) for name in HostSavings.model_fields})
