"""The shape of everything under policies/: the only definition; the JSON Schemas and the reference are generated from it."""

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from exitguard.model.finding import Severity, SubjectKind
from exitguard.model.host import MitigationClass
from exitguard.model.kernel import Body, KernelState
from exitguard.model.time import UtcTime


class PolicyPart(BaseModel):
    """A piece of policy: frozen, and an unknown key is an error, since a misspelt rule must not silently do nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


Pattern = Annotated[str, Field(max_length=500), AfterValidator(_pattern)]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+){0,3}$", description="dotted numbers, for example 6.9")]
Identifier = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9]*(-[A-Z0-9]+)+$", max_length=64)]


class Provenance(StrEnum):
    """How a statement is known (docs/architecture.md)."""

    SOURCE = "source"  # read in the released source or binary
    LIST = "list"  # on a mailing list or in project documentation
    LAB = "lab"  # measured
    INFERENCE = "inference"  # a hypothesis that better evidence may overrule


class Check(StrEnum):
    """The checks that a rule can name; audit/rules.py holds one function for each."""

    KERNEL_GUARD = "kernel_guard"
    KERNEL_REBOOT = "kernel_reboot"
    QEMU_PMU_CAPABILITY = "qemu_pmu_capability"
    SOURCES = "sources"
    HOST_IDENTITY = "host_identity"
    PMU_PERSISTENT = "pmu_persistent"
    PMU_LIVE = "pmu_live"
    PMU_EFFECTIVE = "pmu_effective"
    OPT_OUT_HONOURED = "opt_out_honoured"
    NOVA_DEFAULT_OFF = "nova_default_off"
    WAIVERS = "waivers"


class SourceName(StrEnum):
    """The sources that the `sources` check can require."""

    KERNEL_RELEASE = "kernel_release"
    KERNEL_EVIDENCE = "kernel_evidence"
    KVM_ENABLE_PMU = "kvm_enable_pmu"
    LIBVIRT = "libvirt"
    PROCESSES = "processes"


class SourcesParameters(PolicyPart):
    required: tuple[SourceName, ...] = tuple(SourceName)


class Rule(PolicyPart):
    """One rule: what it demands, why, of whom, and the check that decides it."""

    id: Identifier
    severity: Severity
    title: str = Field(max_length=120)
    rationale: str
    references: tuple[str, ...] = ()
    subject: SubjectKind
    check: Check
    #: Parameters of the check; today only `sources` takes any.
    parameters: SourcesParameters | None = None
    remedy: str | None = Field(default=None, description="the remedy that mends a failure, or none")

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
        if self.parameters is not None and self.check is not Check.SOURCES:
            raise ValueError(f"check {self.check} takes no parameters")
        return self


class Scope(PolicyPart):
    """Which domains the policy is about."""

    admit_tcg: bool = Field(default=False, description="judge TCG (type='qemu') domains as if they were KVM's; for tests and labs")


class Policy(PolicyPart):
    """A policy file: what should be, rule by rule."""

    schema_version: Literal[1]
    id: str = Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)
    version: str
    title: str
    scope: Scope = Scope()
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        ids = [rule.id for rule in self.rules]
        repeated = sorted({rule_id for rule_id in ids if ids.count(rule_id) > 1})
        if repeated:
            raise ValueError(f"rule ids must be unique, repeated: {', '.join(repeated)}")
        return self


class KernelLineage(PolicyPart):
    """What is known of a range of kernels. `release` matches the whole `uname -r`; the first lineage that matches speaks."""

    id: str
    release: Pattern
    since: Version | None = None  # inclusive, compared on the leading x.y.z of the release
    before: Version | None = None  # exclusive
    state: KernelState
    body: Body | None = None
    provenance: Provenance
    note: str


class BuildVerdict(PolicyPart):
    """A kernel build that was decided once, by file; hosts recognise it by build-id."""

    build_id: str = Field(pattern=r"^[0-9a-f]{16,64}$")
    release: str
    state: KernelState
    body: Body | None = None
    provenance: Provenance
    note: str


class Kernels(PolicyPart):
    """policies/kernels.yaml."""

    schema_version: Literal[1]
    #: A changelog entry that contains one of these names the guard.
    changelog_markers: tuple[str, ...]
    lineages: tuple[KernelLineage, ...]
    builds: tuple[BuildVerdict, ...] = ()


class QemuLineage(PolicyPart):
    """Whether a range of QEMU versions clears kvm->arch.enable_pmu for pmu=off. `package` matches the text in parentheses."""

    id: str
    package: Pattern
    since: Version | None = None
    before: Version | None = None
    clears_enable_pmu: bool
    provenance: Provenance
    note: str


class Qemus(PolicyPart):
    """policies/qemu.yaml: for binaries whose capability string is missing; where it is present, it decides."""

    schema_version: Literal[1]
    lineages: tuple[QemuLineage, ...]


class Microarchitecture(PolicyPart):
    """Which CPUs a table row is about, by vendor, family and models as /proc/cpuinfo numbers them."""

    vendor: Literal["AuthenticAMD", "GenuineIntel"]
    family: int
    models: tuple[int, ...]
    name: str


class Cost(PolicyPart):
    """One cell of the cost matrix: what an exit costs less when enable_pmu is cleared or the guard is there.

    Cycles and instructions are different units; a row has exactly one of them.
    """

    id: str
    saved_by: Literal["guard", "pmu_off", "guard_and_pmu_off"]
    body: Body | None = Field(description="the kernel body it was measured on; null where the source does not say")
    guard: bool | None = Field(description="whether the kernel had the guard, for rows saved by pmu_off")
    cpu: Microarchitecture | None = None
    vendor_path: Literal["svm", "vmx"]
    mitigations: Literal["off", "auto"] | tuple[MitigationClass, ...]
    cycles_per_exit: int | None = None
    instructions_per_exit: int | None = None
    provenance: Provenance
    note: str

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.cycles_per_exit is None) == (self.instructions_per_exit is None):
            raise ValueError("a cost has either cycles_per_exit or instructions_per_exit: they are different units")
        return self


class Costs(PolicyPart):
    """policies/costs.yaml."""

    schema_version: Literal[1]
    costs: tuple[Cost, ...]


class WaiverScope(PolicyPart):
    """Whom a waiver covers: every given key must match; at least one is needed. Host and domain by id or name."""

    hosts: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.hosts and not self.domains:
            raise ValueError("an empty scope would waive everything: name hosts, domains, or both; '*' stands for all")
        return self


class Waiver(PolicyPart):
    """A failing finding that somebody has answered for, until a date."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    rules: tuple[Identifier, ...] = Field(min_length=1)
    scope: WaiverScope
    justification: str = Field(min_length=10)
    approver: str = Field(min_length=1)
    created: UtcTime
    expires: UtcTime

    @model_validator(mode="after")
    def _ends_after_start(self) -> Self:
        if self.expires <= self.created:
            raise ValueError("expires must be later than created")
        return self


class Waivers(PolicyPart):
    """A waiver file."""

    schema_version: Literal[1]
    waivers: tuple[Waiver, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> Self:
        ids = [waiver.id for waiver in self.waivers]
        repeated = sorted({waiver_id for waiver_id in ids if ids.count(waiver_id) > 1})
        if repeated:
            raise ValueError(f"waiver ids must be unique, repeated: {', '.join(repeated)}")
        return self


class Rulebook(PolicyPart):
    """Everything that a host is judged by, loaded and checked."""

    policy: Policy
    kernels: Kernels
    qemus: Qemus
    costs: Costs
    waivers: tuple[Waiver, ...] = ()
