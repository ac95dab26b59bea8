"""Observations and reports as an audit of a real host would make them, small enough to read."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from exitguard.model.documents import (
    AuditReport,
    DomainReport,
    DomainUpdate,
    FactsDocument,
    HostReport,
    KernelReport,
    Observation,
    PmuReport,
    ReportUpdate,
    Summary,
)
from exitguard.model.domain import CpuArgument, DomainDefinition, DomainFacts, Owner, OwnerKind, QemuProcess
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Severity, Subject, SubjectKind, Verdict
from exitguard.model.host import (
    Changelog,
    Cpu,
    Distribution,
    HostFacts,
    HostIdentity,
    InstalledKernel,
    KernelFacts,
    KvmFacts,
    KvmModule,
    LibvirtFacts,
    MitigationClass,
    Mitigations,
    QemuBinary,
    QemuVersion,
    Target,
    TargetKind,
)
from exitguard.model.kernel import Body, KernelState
from exitguard.model.pmu import Chain, ChainState, Link, LinkName, NextAction, PmuElement, PmuSetting, Tri
from exitguard.model.record import seen, unseen
from exitguard.model.samples import DomainSample, Incarnation, Samples

START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
HOST_ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
BOOT_ID = "0b4f6c0e-41f5-4c8e-8a53-5a0f7f1f9f10"
RELEASE = "6.1.0-56-amd64"
QEMU = QemuBinary(
    path="/usr/bin/qemu-system-x86_64",
    version=seen("/usr/bin/qemu-system-x86_64", QemuVersion(version="7.2.22", package="Debian 1:7.2+dfsg-7")),
    capability_string=seen("/usr/bin/qemu-system-x86_64", False),
)


def minutes(count: int) -> datetime:
    """`count` minutes after START."""
    return START + timedelta(minutes=count)


def domain_uuid(number: int) -> str:
    return str(UUID(int=(0x5D0E << 112) | (4 << 76) | (8 << 60) | number))


def domain_name(number: int) -> str:
    return f"instance-{number:08x}"


def host_facts(hostname: str = "compute-17") -> HostFacts:
    return HostFacts(
        target=Target(kind=TargetKind.LOCAL, uri="qemu:///system"),
        identity=HostIdentity(
            id=HOST_ID,
            provisional=False,
            hostname=seen("/etc/hostname", hostname),
            machine_id=seen("/etc/machine-id", "5f0d6b7bb0a84c3fa8f8a4b8d9be9d34"),
            dmi_uuid=unseen("/sys/class/dmi/id/product_uuid", "permission denied", unlock="run as root"),
        ),
        kernel=KernelFacts(
            release=seen("uname", RELEASE),
            architecture=seen("uname", "x86_64"),
            distribution=seen("/etc/os-release", Distribution(id="debian", version_id="12", name="Debian GNU/Linux 12")),
            build_id=seen("/sys/kernel/notes", "9f6d2c8e5a0b4c1d8e7f6a5b4c3d2e1f00112233"),
            boot_id=seen("/proc/sys/kernel/random/boot_id", BOOT_ID),
            installed=seen("/boot", (InstalledKernel(release=RELEASE),)),
            boots_next=seen("/boot/grub/grub.cfg", RELEASE),
            live_patches=seen("/sys/kernel/livepatch", ()),
            symbols=unseen("/proc/kallsyms", "addresses are hidden", unlock="run as root"),
            changelog=seen("linux-image-6.1.0-56-amd64", Changelog(package="linux-image-6.1.0-56-amd64", guard_entries=())),
        ),
        cpu=seen(
            "/proc/cpuinfo",
            Cpu(
                vendor="AuthenticAMD",
                model_name="AMD EPYC 7302 16-Core Processor",
                family=23,
                model=49,
                stepping=0,
                microcode="0x8301055",
                logical_cpus=64,
                virtualization="svm",
                hypervisor=False,
            ),
        ),
        mitigations=seen(
            "/sys/devices/system/cpu/vulnerabilities",
            Mitigations(
                lines={"retbleed": "Mitigation: untrained return thunk; SMT enabled", "spec_rstack_overflow": "Mitigation: Safe RET"},
                classes=(MitigationClass.HEAVY_RETURN_TAX,),
            ),
        ),
        kvm=KvmFacts(
            module=seen("/proc/modules", KvmModule(form="module", vendor_modules=("kvm_amd",))),
            parameters=seen("/sys/module/kvm/parameters", {"kvm.enable_pmu": "Y"}),
            enable_pmu=seen("/sys/module/kvm/parameters/enable_pmu", True),
            enable_mediated_pmu=unseen("/sys/module/kvm/parameters/enable_mediated_pmu", "no such file or directory"),
            build_id=seen("/sys/module/kvm/notes/.note.gnu.build-id", "00ff"),
            device=unseen("/dev/kvm", "permission denied", unlock="join the group kvm"),
        ),
        qemu=seen("processes", (QEMU,)),
        libvirt=LibvirtFacts(
            daemon_version=seen("qemu:///system", "9.0.0"),
            driver=seen("qemu:///system", "QEMU"),
            listing=seen("qemu:///system", True),
        ),
        unmanaged=seen("/proc", ()),
    )


def domain_facts(number: int, pmu: PmuElement) -> DomainFacts:
    definition = DomainDefinition(
        type="kvm",
        arch="x86_64",
        machine="pc-q35-7.2",
        emulator=QEMU.path,
        cpu_mode="host-passthrough",
        cpu_model=None,
        pmu=pmu,
    )
    return DomainFacts(
        uuid=domain_uuid(number),
        name=domain_name(number),
        active=seen("libvirt", True),
        managed_save=seen("libvirt", False),
        definition=seen("persistent XML", definition),
        run=seen("live XML", definition),
        process=seen(
            f"/proc/{4000 + number}",
            QemuProcess(
                cpu=seen("cmdline", CpuArgument(model="host", pmu=pmu)),
                accelerator=seen("cmdline", "kvm"),
                executable=seen(f"/proc/{4000 + number}/exe", QEMU),
                incoming=seen("cmdline", False),
            ),
        ),
        owner=Owner(kind=OwnerKind.LIBVIRT, name="libvirt"),
    )


def observe(
    at: datetime,
    *,
    domains: int = 3,
    numbers: Collection[int] | None = None,
    pmu: Mapping[int, PmuElement] | None = None,
    hostname: str = "compute-17",
    blind: bool = False,
) -> Observation:
    """An observation of `domains` domains, or of those that are numbered so, with PMU absent where `pmu` does not say otherwise.

    A `blind` one is of a host whose libvirt could not be asked: no domain is in it.
    """
    numbers = () if blind else range(domains) if numbers is None else sorted(numbers)
    host = host_facts(hostname)
    if blind:
        host = host.model_copy(update={"libvirt": host.libvirt.model_copy(update={"listing": unseen("qemu:///system", "no such socket")})})
    facts = FactsDocument(
        observed_at=at,
        host=host,
        domains=tuple(domain_facts(number, (pmu or {}).get(number, PmuElement.ABSENT)) for number in numbers),
    )
    incarnations = {
        number: Incarnation(host_id=HOST_ID, domain_uuid=domain_uuid(number), boot_id=BOOT_ID, qemu_start_ticks=100_000 + number)
        for number in numbers
    }
    return Observation(
        facts=facts,
        samples=Samples(
            observed_at=at,
            boottime_nanoseconds=(at - START) // timedelta(microseconds=1) * 1000 + 10**15,
            boot_time=seen("/proc/stat", START - timedelta(days=11)),
            domains=tuple(DomainSample(uuid=domain_uuid(n), pid=4000 + n, incarnation=incarnations[n]) for n in numbers),
        ),
    )


def finding(
    number: int, verdict: Verdict, at: datetime, *, rule: str = "DOM-PMU-LIVE", reason: str = "the run has the PMU on by default"
) -> Finding:
    return Finding(
        rule=rule,
        severity=Severity.MEDIUM,
        subject=Subject(kind=SubjectKind.DOMAIN, id=domain_uuid(number), name=domain_name(number)),
        verdict=verdict,
        reason=reason,
        evidence=(Evidence(source="live XML", value="<cpu mode='host-passthrough'/> \"quoted\" ünïcode", observed_at=at),),
        remedy="domain_pmu_off" if verdict is Verdict.FAIL else None,
    )


def host_finding(verdict: Verdict, at: datetime) -> Finding:
    return Finding(
        rule="HOST-KERNEL-GUARD",
        severity=Severity.HIGH,
        subject=Subject(kind=SubjectKind.HOST, id=HOST_ID, name="compute-17"),
        verdict=verdict,
        reason="the running kernel has no guard",
        evidence=(Evidence(source="uname", value=RELEASE, observed_at=at),),
    )


def judge(observation: Observation, findings: tuple[Finding, ...] | None = None) -> AuditReport:
    """A report of `observation`; without `findings`, the host and each domain fail one rule each."""
    facts = observation.facts
    at = facts.observed_at
    if findings is None:
        findings = (
            host_finding(Verdict.FAIL, at),
            *(finding(number, Verdict.FAIL, at) for number in range(len(facts.domains))),
        )
    verdicts = [entry.verdict for entry in findings]
    evidence = (Evidence(source="uname", value=RELEASE, observed_at=at),)
    host = facts.host
    return AuditReport(
        observed_at=at,
        policy="pmu-off 1",
        host=HostReport(
            id=host.identity.id,
            id_provisional=False,
            hostname=host.identity.hostname.value,
            target=host.target,
            kernel=KernelReport(
                release=host.kernel.release.value,
                state=KernelState.AFFECTED,
                body=Body.A,
                reason="6.1 walks every counter",
                pending_reboot=False,
                pending_release=None,
                evidence=evidence,
                disagreements=(),
            ),
            cpu=host.cpu,
            mitigations=host.mitigations,
            kvm=host.kvm,
            qemu=host.qemu,
            libvirt=host.libvirt,
            unmanaged=host.unmanaged,
        ),
        domains=tuple(domain_report(domain, at) for domain in facts.domains),
        findings=findings,
        summary=Summary(
            by_verdict={verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
            by_chain={"on": len(facts.domains)},
            exit_code=2,
        ),
    )


def judge_again(facts: FactsDocument, looked_at: Mapping[int, tuple[Finding, ...]], at: datetime, head: AuditReport) -> ReportUpdate:
    """The domains `looked_at` judged anew at `at` with these findings; those that `facts` no longer has are gone.

    `head` is a report of the whole host as the last audit observed it, with the summary of now.
    """
    there = {domain.uuid: domain for domain in facts.domains}
    updates = []
    for number, findings in sorted(looked_at.items()):
        domain = there.get(domain_uuid(number))
        report = None if domain is None else domain_report(domain, at)
        updates.append(DomainUpdate(uuid=domain_uuid(number), report=report, findings=findings))
    return ReportUpdate(
        observed_at=at, head=head.model_copy(update={"observed_at": at, "domains": (), "findings": ()}), domains=tuple(updates)
    )


def domain_report(domain: DomainFacts, at: datetime) -> DomainReport:
    definition = None if domain.definition is None else domain.definition.value
    return DomainReport(
        uuid=domain.uuid,
        name=domain.name,
        active=domain.active.value,
        owner=domain.owner,
        pmu=PmuReport(persistent=PmuSetting.DEFAULT_ON, live=PmuSetting.DEFAULT_ON),
        chain=Chain(
            state=ChainState.ON,
            reason="defined on and running on, by default",
            links=tuple(Link(name=name, holds=Tri.NO, reason="the PMU is on") for name in LinkName),
            broken_links=tuple(LinkName),
            next_action=NextAction.SET_PMU_OFF,
        ),
        evidence=(Evidence(source="persistent XML", value=f"pmu {definition and definition.pmu}", observed_at=at),),
    )


#: What record_and_say.py cycles through, so that every observation changes something.
VERDICT_CYCLE = (Verdict.FAIL, Verdict.PASS, Verdict.UNKNOWN)


def domain_count(minute: int) -> int:
    """How many domains record_and_say.py observes in a minute."""
    return 20 + minute % 7
