"""One domain: from its facts and its host's judgement to its chain, with the evidence. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from exitguard.audit.chain import ChainInput, Run, judge_chain
from exitguard.audit.nova import NovaDefault, asked, keeps
from exitguard.audit.pmu import clears_enable_pmu, setting_of_definition, setting_of_process
from exitguard.model.documents import DomainReport, PmuReport
from exitguard.model.domain import DomainDefinition, DomainFacts, OwnerKind
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.host import KvmFacts
from exitguard.model.kernel import KernelVerdict
from exitguard.model.pmu import LinkName, PmuElement, PmuSetting, Tri
from exitguard.model.record import Observed
from exitguard.policy.schema import Qemus, Scope

_X86 = ("x86_64", "i686")


@dataclass(frozen=True)
class HostJudgement:
    """What is the same for every domain of a host: judged once."""

    observed_at: datetime
    kernel: KernelVerdict
    kvm: KvmFacts
    #: By path of a QEMU program on disk: whether it clears kvm->arch.enable_pmu, and why. Running domains bring their own.
    clears_on_disk: Mapping[str, tuple[Tri, str]]
    qemus: Qemus
    scope: Scope
    nova_default: NovaDefault

    @property
    def host_clears(self) -> Tri:
        """Whether kvm.enable_pmu=N clears the PMU of every guest."""
        return {True: Tri.NO, False: Tri.YES, None: Tri.UNKNOWN}[self.kvm.enable_pmu.value]

    @property
    def kvm_cannot_clear(self) -> bool:
        """Whether /dev/kvm itself says that it has no KVM_PMU_CAP_DISABLE (bit 0); a module with the PMU off says so too."""
        device = self.kvm.device.value
        return device is not None and not device.pmu_capability & 1 and self.host_clears is not Tri.YES


@dataclass(frozen=True)
class DomainJudgement:
    """A domain's report, and what its rules need beside it."""

    report: DomainReport
    given: ChainInput

    @cached_property
    def subject(self) -> Subject:
        return Subject(kind=SubjectKind.DOMAIN, id=self.report.uuid, name=self.report.name)


def judge_domain(domain: DomainFacts, host: HostJudgement) -> DomainJudgement:
    """The chain of one domain with its evidence."""
    definition = domain.definition.value if domain.definition is not None else None
    run = domain.run.value if domain.run is not None else None
    persistent = _persistent(domain)
    live = _live(domain)
    kept, kept_why = keeps(domain, persistent, host.nova_default)
    qemu_clears, qemu_why = _qemu_clears(domain, host)
    next_clears, _ = _on_disk(definition, host)
    given = ChainInput(
        applicable=_applicable(domain, run or definition, host.scope),
        asked_on=_asked_on(domain),
        run=_run(domain),
        persistent=persistent,
        live=live,
        host_clears=host.host_clears,
        qemu_clears=qemu_clears,
        kvm_cannot_clear=host.kvm_cannot_clear,
        kernel=host.kernel.state,
        keeps=kept,
        owner=domain.owner.kind,
        locked=domain.locked,
        next_qemu_clears=next_clears,
        helpful_kernel_installed=host.kernel.pending_reboot,
        obstacles=_obstacles(domain, host, qemu_why, kept_why),
    )
    report = DomainReport(
        uuid=domain.uuid,
        name=domain.name,
        active=domain.active.value,
        owner=domain.owner,
        project=domain.nova.project if domain.nova is not None else None,
        pmu=PmuReport(persistent=persistent, live=live),
        chain=judge_chain(given),
        evidence=_evidence(domain, host, qemu_why, kept_why),
    )
    return DomainJudgement(report, given)


def _persistent(domain: DomainFacts) -> PmuSetting:
    if domain.definition is None:
        return PmuSetting.NONE
    return setting_of_definition(domain.definition.value) if domain.definition.value is not None else PmuSetting.UNKNOWN


def _live(domain: DomainFacts) -> PmuSetting:
    """The process's own -cpu is the truth for a run; libvirt's XML where the process cannot be seen."""
    if domain.process is not None and domain.process.value is not None and domain.process.value.cpu.value is not None:
        return setting_of_process(domain.process.value.cpu.value)
    if domain.run is not None:
        return setting_of_definition(domain.run.value) if domain.run.value is not None else PmuSetting.UNKNOWN
    return PmuSetting.NONE if domain.active.value is False else PmuSetting.UNKNOWN


def _run(domain: DomainFacts) -> Run:
    if domain.active.value is None:
        return Run.UNKNOWN
    if domain.active.value:
        return Run.RUNNING
    if domain.managed_save.value is None:
        return Run.UNKNOWN
    return Run.SAVED if domain.managed_save.value else Run.NONE


def _applicable(domain: DomainFacts, definition: DomainDefinition | None, scope: Scope) -> Tri:
    kind = definition.type if definition is not None else ""
    process = domain.process.value if domain.process is not None else None
    if not kind and process is not None and process.accelerator.value is not None:
        kind = "kvm" if process.accelerator.value == "kvm" else "qemu"
    if not kind:
        return Tri.UNKNOWN
    if kind != "kvm" and not (kind == "qemu" and scope.admit_tcg):
        return Tri.NO
    if definition is None:
        return Tri.YES  # a QEMU process with its uuid, under KVM: libvirt runs no other architecture's guests there
    if not definition.arch:
        return Tri.UNKNOWN
    return Tri.NO if definition.arch not in _X86 or definition.launch_security == "tdx" else Tri.YES


def _asked_on(domain: DomainFacts) -> Tri:
    """Whether somebody asked for the PMU. The definition speaks; the running XML only for a transient domain."""
    by_nova = asked(domain.nova) if domain.nova is not None else Tri.NO
    if by_nova is Tri.YES:
        return Tri.YES
    spoken = domain.definition if domain.definition is not None else domain.run
    if spoken is None or spoken.value is None or spoken.value.overrides:
        return Tri.UNKNOWN
    if spoken.value.pmu is PmuElement.ON:
        return Tri.YES
    return _asked_of_nova(domain, spoken.value) if by_nova is Tri.UNKNOWN else Tri.NO


def _asked_of_nova(domain: DomainFacts, definition: DomainDefinition) -> Tri:
    """Where Nova does not store what was asked: Nova writes an element for whatever flavor or image say, so its own XML tells.

    A definition is Nova's own only as far as nobody has changed it since.
    """
    run = domain.run.value if domain.run is not None else None
    if run is not None and run.pmu is PmuElement.ON:
        return Tri.YES
    if run is not None and run.pmu is not definition.pmu:
        return Tri.UNKNOWN
    if definition.pmu is PmuElement.ABSENT:
        return Tri.NO
    generated = domain.started_as_generated
    return Tri.NO if run is not None and generated is not None and generated.value else Tri.UNKNOWN


def _qemu_clears(domain: DomainFacts, host: HostJudgement) -> tuple[Tri, str]:
    """Of a running domain the file that its process runs; of a saved one the file that would restore it."""
    if host.kvm_cannot_clear:
        return Tri.NO, f"{host.kvm.device.source}: this KVM has no KVM_PMU_CAP_DISABLE, whatever QEMU does"
    if domain.active.value is not False:
        if domain.process is None:
            return Tri.UNKNOWN, "no QEMU process is known"
        if domain.process.value is None:
            return Tri.UNKNOWN, f"{domain.process.source}: {domain.process.reason}"
        executable = domain.process.value.executable
        if executable.value is None:
            return Tri.UNKNOWN, f"{executable.source}: {executable.reason}"
        return clears_enable_pmu(executable.value, host.qemus)
    saved = domain.run if domain.run is not None else domain.definition
    return _on_disk(saved.value if saved is not None else None, host)


def _on_disk(definition: DomainDefinition | None, host: HostJudgement) -> tuple[Tri, str]:
    path = definition.emulator if definition is not None else None
    known = host.clears_on_disk.get(path or "")
    return known or (Tri.UNKNOWN, f"the QEMU that would start it is not known: {path or 'the definition names none'}")


def _obstacles(domain: DomainFacts, host: HostJudgement, qemu_why: str, kept_why: str) -> tuple[tuple[LinkName, str], ...]:
    """Why a link would be unknown, link by link."""
    found = [(LinkName.KERNEL, host.kernel.reason), (LinkName.PROPAGATED, qemu_why), (LinkName.KEPT, kept_why)]
    if domain.definition is None:
        found.append((LinkName.DEFINED, "transient: libvirt keeps no definition, whoever starts it next decides"))
    elif domain.definition.value is None:
        found.append((LinkName.DEFINED, f"{domain.definition.source}: {domain.definition.reason}"))
    elif domain.definition.value.overrides:
        found.append((LinkName.DEFINED, f"<qemu:commandline> has {domain.definition.value.overrides[0]!r}"))
    if domain.run is not None and domain.run.value is None:
        found.append((LinkName.RUNNING, f"{domain.run.source}: {domain.run.reason}"))
    return tuple(found)


def _evidence(domain: DomainFacts, host: HostJudgement, qemu_why: str, kept_why: str) -> tuple[Evidence, ...]:
    """Everything that the chain rests on, the sources that could not be seen included."""
    when = host.observed_at
    found = []
    if domain.definition is not None:
        found.append(Evidence(source=domain.definition.source, value=_definition_text(domain.definition), observed_at=when))
    if domain.run is not None:
        found.append(Evidence(source=domain.run.source, value=_definition_text(domain.run), observed_at=when))
    process = domain.process
    if process is not None:
        cpu = process.value.cpu if process.value is not None else None
        if cpu is None:
            found.append(Evidence(source=process.source, value=f"not seen: {process.reason}", observed_at=when))
        elif cpu.value is None:
            found.append(Evidence(source=cpu.source, value=f"not seen: {cpu.reason}", observed_at=when))
        else:
            found.append(
                Evidence(source=cpu.source, value=f"-cpu {cpu.value.model or '(none)'}, pmu {cpu.value.pmu.value}", observed_at=when)
            )
        disagreement = _disagreement(domain)
        if disagreement is not None:
            found.append(Evidence(source="disagreement", value=disagreement, observed_at=when))
    if domain.active.value is not False or domain.managed_save.value:
        found.append(Evidence(source="QEMU", value=qemu_why, observed_at=when))
    if domain.owner.kind is not OwnerKind.LIBVIRT:
        found.append(Evidence(source="owner", value=f"{domain.owner.name}: {kept_why}", observed_at=when))
    if domain.locked:
        found.append(Evidence(source="metadata", value="locked by an operator's mark", observed_at=when))
    return tuple(found)


def _definition_text(definition: Observed[DomainDefinition]) -> str:
    if definition.value is None:
        return f"not seen: {definition.reason}"
    value = definition.value
    text = f"type {value.type}, cpu {value.cpu_mode or 'default'}, pmu {value.pmu.value}"
    return f"{text}, but {value.overrides[0]!r} in <qemu:commandline>" if value.overrides else text


def _disagreement(domain: DomainFacts) -> str | None:
    """The running XML and the process's own -cpu, where they say different things."""
    if domain.run is None or domain.run.value is None or domain.process is None or domain.process.value is None:
        return None
    by_xml, cpu = setting_of_definition(domain.run.value), domain.process.value.cpu.value
    off = (PmuSetting.OFF, PmuSetting.DEFAULT_OFF)
    if cpu is None or by_xml is PmuSetting.UNKNOWN or (by_xml in off) == (setting_of_process(cpu) in off):
        return None
    return f"libvirt's live XML says pmu {by_xml.value}, the process runs with pmu {setting_of_process(cpu).value}: the process decides"
