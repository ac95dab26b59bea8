"""The documents that leave the agent: facts, and the audit report. Each carries a schema_version; schemas only grow.

Hashes make a tree: a domain's hash covers its facts, the host's hash covers the host's facts and the sorted hashes of its
domains. So an unchanged host has an unchanged hash, and a changed domain is found without comparing the others.
"""

from datetime import datetime
from functools import cached_property
from typing import Literal

from pydantic import Field

from exitguard import __version__
from exitguard.model.canonical import record_hash
from exitguard.model.domain import DomainFacts, Owner
from exitguard.model.evidence import Evidence
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN, Finding
from exitguard.model.host import Cpu, HostFacts, KvmFacts, LibvirtFacts, Mitigations, QemuBinary, Target, UnmanagedGuest
from exitguard.model.kernel import Body, KernelState
from exitguard.model.machine_code import Instruction, MachineCode
from exitguard.model.pmu import Chain, PmuSetting
from exitguard.model.rates import HostSavings
from exitguard.model.record import Observed, Record
from exitguard.model.samples import Samples
from exitguard.model.time import UtcTime


class Tool(Record):
    name: Literal["exitguard"] = "exitguard"
    version: str = __version__


class FactsDocument(Record):
    """Everything that was observed of one host and its domains at one time. The input of judging and of planning."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    observed_at: UtcTime
    host: HostFacts
    domains: tuple[DomainFacts, ...] = ()

    @cached_property
    def domain_hashes(self) -> dict[str, str]:
        """Domain uuid to `sha256:` of its facts."""
        return {domain.uuid: record_hash(domain.model_dump(mode="json")) for domain in self.domains}

    @cached_property
    def host_hash(self) -> str:
        """`sha256:` over the host's facts and the sorted hashes of its domains; times and samples are not in it."""
        return record_hash({"host": self.host.model_dump(mode="json"), "domains": sorted(self.domain_hashes.values())})

    def seen_again(self, host: HostFacts, domains: tuple[DomainFacts, ...], observed_at: datetime) -> "FactsDocument":
        """The facts after another look. A domain that is the very same object keeps its hash: one of many costs one."""
        known = {id(domain): self.domain_hashes[domain.uuid] for domain in self.domains}
        hashes = {domain.uuid: known.get(id(domain)) or record_hash(domain.model_dump(mode="json")) for domain in domains}
        document = FactsDocument(tool=self.tool, observed_at=observed_at, host=host, domains=domains)
        document.__dict__["domain_hashes"] = hashes  # where cached_property looks first
        return document


class Observation(Record):
    """What one look at a host yields: facts and samples, kept apart."""

    facts: FactsDocument
    samples: Samples


class DecidingCode(Record):
    """The instructions of the running KVM that decide, of the image at `path`; the evidence with this source is what they say."""

    path: str
    #: Those that have a note, in their order.
    instructions: tuple[Instruction, ...]


class KernelReport(Record):
    #: None where it is not known; why not is in the evidence.
    release: str | None
    state: KernelState
    body: Body | None
    reason: str
    pending_reboot: bool
    pending_release: str | None
    #: Of an affected kernel: whether the PMU function returns at once for a PMU-off guest on this host's vendor; None: not known.
    returns_at_once: bool | None = None
    #: Whether a live patch replaces the code that decides, so that what runs is another than the file says.
    live_patched: bool = Field(default=False, exclude_if=lambda patched: not patched)
    #: None where the machine code was not read, or shows nothing.
    code: DecidingCode | None = Field(default=None, exclude_if=lambda code: code is None)
    evidence: tuple[Evidence, ...]
    disagreements: tuple[str, ...]


class HostReport(Record):
    id: str
    id_provisional: bool
    #: None where it is not known.
    hostname: str | None
    target: Target
    kernel: KernelReport
    cpu: Observed[Cpu]
    mitigations: Observed[Mitigations]
    kvm: KvmFacts
    qemu: Observed[tuple[QemuBinary, ...]]
    libvirt: LibvirtFacts
    unmanaged: Observed[tuple[UnmanagedGuest, ...]]


class PmuReport(Record):
    """Set and in force are two columns: the next start, and this run."""

    persistent: PmuSetting
    live: PmuSetting


class DomainReport(Record):
    uuid: str
    name: str
    #: Whether it runs; None where that is not known.
    active: bool | None
    owner: Owner
    #: Nova's project, where Nova's metadata names one.
    project: str | None = Field(default=None, exclude_if=lambda project: project is None)
    pmu: PmuReport
    chain: Chain
    evidence: tuple[Evidence, ...]


class Summary(Record):
    by_verdict: dict[str, int]
    by_chain: dict[str, int]
    exit_code: int = Field(ge=EXIT_COMPLIANT, le=EXIT_UNKNOWN)


class AuditReport(Record):
    """The result of one audit: what is so, what it means, and why."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    observed_at: UtcTime
    policy: str = Field(description="id and version of the policy that was judged by")
    host: HostReport
    domains: tuple[DomainReport, ...]
    findings: tuple[Finding, ...]
    summary: Summary
    #: What the ledger of this host says of now; None where no daemon keeps one, and in a report of an earlier time. It is never stored.
    savings: HostSavings | None = None


class DomainUpdate(Record):
    """One domain judged anew between two audits; `report` is None where the domain is gone, and then it has no findings."""

    uuid: str
    report: DomainReport | None
    findings: tuple[Finding, ...] = ()


class ReportUpdate(Record):
    """Some domains judged anew, after lifecycle events. All else stands as the last audit found it, at its own time."""

    observed_at: UtcTime
    #: The report's head with the summary as it is now: no domains, no findings.
    head: AuditReport
    domains: tuple[DomainUpdate, ...]


class InspectedKernel(Record):
    """What the machine code of one kernel settles, and why."""

    #: What was read: a file, or the kernel's memory.
    path: str
    #: Of the image, as far as it says; None where it was not read that far.
    release: str | None
    build_id: str | None
    state: KernelState
    body: Body | None
    #: What decides, or why nothing does.
    reason: str
    #: The privilege, package or option that would show it, where one would.
    unlock: str | None = None
    evidence: tuple[Evidence, ...]
    #: None where nothing could be read, or where what was read is not what runs.
    reading: MachineCode | None


class KernelInspection(Record):
    """Kernels decided by their machine code alone: files first, then releases, each in the order asked for, then what runs."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    kernels: tuple[InspectedKernel, ...]
