"""The shape of everything under policies/: the only definition; the JSON Schemas and the reference are generated from it.

Files are read strictly (policy/load.py): text is text, `true` is true, and nothing is guessed into another type. A fault
between two values is raised as `fault`, which names the value to blame, so that the operator gets its line.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from exitguard.model.finding import Severity, SubjectKind
from exitguard.model.host import MitigationClass
from exitguard.model.kernel import Body, KernelState
from exitguard.model.plan import Remedy
from exitguard.model.time import UtcTime
from exitguard.policy.parameters import (
    FleetClockParameters,
    FleetQemuParameters,
    FleetSilentParameters,
    NovaDefaultParameters,
    Parameters,
    SourcesParameters,
)
from exitguard.policy.part import (
    BUILD_ID_PATTERN,
    WAIVER_ID_PATTERN,
    Identifier,
    Line,
    Pattern,
    PolicyId,
    PolicyPart,
    Text,
    Version,
    fault,
    refuse_empty_range,
    refuse_repeats,
)
from exitguard.policy.problem import Problem
from exitguard.policy.remedies import Remedies


class Provenance(StrEnum):
    """How a statement is known."""

    SOURCE = "source"  # read in the released source or binary
    LIST = "list"  # on a mailing list or in project documentation
    LAB = "lab"  # measured
    INFERENCE = "inference"  # a hypothesis that better evidence may overrule


class Check(StrEnum):
    """The checks that a rule can name; rules.py, cloud_rules.py and fleet.py of audit/ hold one function for each."""

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
    NOVA_SOURCES = "nova_sources"
    NOVA_FLAVOR_SILENT = "nova_flavor_silent"
    NOVA_IMAGE_SILENT = "nova_image_silent"
    NOVA_CATALOG_CONFLICT = "nova_catalog_conflict"
    NOVA_INSTANCE_CONFLICT = "nova_instance_conflict"
    NOVA_INSTANCE_DRIFT = "nova_instance_drift"
    NOVA_INSTANCE_PMU = "nova_instance_pmu"
    FLEET_HOST_SILENT = "fleet_host_silent"
    FLEET_CLOCK = "fleet_clock"
    FLEET_QEMU_MIXED = "fleet_qemu_mixed"
    WAIVERS = "waivers"


#: Whom each check judges: a rule that says otherwise would never find a subject.
SUBJECT_OF: dict[Check, SubjectKind] = {
    Check.KERNEL_GUARD: SubjectKind.HOST,
    Check.KERNEL_REBOOT: SubjectKind.HOST,
    Check.QEMU_PMU_CAPABILITY: SubjectKind.HOST,
    Check.SOURCES: SubjectKind.HOST,
    Check.HOST_IDENTITY: SubjectKind.HOST,
    Check.PMU_PERSISTENT: SubjectKind.DOMAIN,
    Check.PMU_LIVE: SubjectKind.DOMAIN,
    Check.PMU_EFFECTIVE: SubjectKind.DOMAIN,
    Check.OPT_OUT_HONOURED: SubjectKind.DOMAIN,
    Check.NOVA_DEFAULT_OFF: SubjectKind.HOST,
    Check.NOVA_SOURCES: SubjectKind.CLOUD,
    Check.NOVA_FLAVOR_SILENT: SubjectKind.FLAVOR,
    Check.NOVA_IMAGE_SILENT: SubjectKind.IMAGE,
    Check.NOVA_CATALOG_CONFLICT: SubjectKind.FLAVOR,
    Check.NOVA_INSTANCE_CONFLICT: SubjectKind.INSTANCE,
    Check.NOVA_INSTANCE_DRIFT: SubjectKind.INSTANCE,
    Check.NOVA_INSTANCE_PMU: SubjectKind.INSTANCE,
    Check.FLEET_HOST_SILENT: SubjectKind.HOST,
    Check.FLEET_CLOCK: SubjectKind.HOST,
    Check.FLEET_QEMU_MIXED: SubjectKind.HOST,
    Check.WAIVERS: SubjectKind.POLICY,
}

#: What only a hub can tell of a host: the audit of the host itself has nothing to say of them.
FLEET_CHECKS = frozenset({Check.FLEET_HOST_SILENT, Check.FLEET_CLOCK, Check.FLEET_QEMU_MIXED})


_PARAMETERS_OF: dict[Check, type[PolicyPart]] = {
    Check.SOURCES: SourcesParameters,
    Check.NOVA_DEFAULT_OFF: NovaDefaultParameters,
    Check.FLEET_HOST_SILENT: FleetSilentParameters,
    Check.FLEET_CLOCK: FleetClockParameters,
    Check.FLEET_QEMU_MIXED: FleetQemuParameters,
}


class Rule(PolicyPart):
    """One rule: what it demands, why, of whom, and the check that decides it."""

    id: Identifier
    severity: Severity
    title: Annotated[Line, Field(max_length=120)]
    rationale: Text = Field(description="why an operator cares, in plain words")
    references: tuple[Line, ...] = ()
    subject: SubjectKind
    check: Check
    parameters: Parameters | None = Field(
        default=None, description="parameters of the check; `sources`, `nova_default_off` and those of a fleet take some"
    )
    remedy: Remedy | None = Field(default=None, description="the remedy that mends a failure, or none")

    @model_validator(mode="after")
    def _fits_its_check(self) -> Self:
        taken = _PARAMETERS_OF.get(self.check)
        if self.parameters is not None and taken is None:
            raise fault(("parameters",), f"check {self.check} takes no parameters: remove them")
        if self.parameters is not None and taken is not None and not isinstance(self.parameters, taken):
            keys = ", ".join(taken.model_fields)
            raise fault(("parameters",), f"expected parameters of check {self.check}, which are {keys}; found another check's")
        if self.subject is not SUBJECT_OF[self.check]:
            raise fault(
                ("subject",), f"expected {str(SUBJECT_OF[self.check])!r}, which check {self.check} judges, found {str(self.subject)!r}"
            )
        return self


class Scope(PolicyPart):
    """Which domains the policy is about."""

    admit_tcg: bool = Field(default=False, description="judge TCG (type='qemu') domains as if they were KVM's; for tests and labs")


class Policy(PolicyPart):
    """A policy file: what should be, rule by rule."""

    kind: Literal["policy"] = "policy"
    schema_version: Literal[1]
    id: PolicyId
    version: Line
    title: Line
    scope: Scope = Scope()
    remedies: Remedies = Remedies()
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        refuse_repeats("rules", "id", (rule.id for rule in self.rules))
        return self


class KernelLineage(PolicyPart):
    """What is known of a range of kernels. The first lineage that matches speaks (policy/lineage.py).

    Versions are compared on the leading x.y.z of the release.
    """

    id: Line
    release: Pattern = Field(description="a regular expression that matches the whole of `uname -r`")
    since: Version | None = Field(default=None, description="first version of the range; null for no lower end")
    before: Version | None = Field(default=None, description="first version after the range; null for no upper end")
    state: KernelState
    body: Body | None = None
    provenance: Provenance
    note: Text

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        refuse_empty_range(self.since, self.before)
        _refuse_body_without_call(self.state, self.body)
        return self


class BuildVerdict(PolicyPart):
    """A kernel build that was decided once, by file; hosts recognise it by build-id."""

    build_id: str = Field(pattern=BUILD_ID_PATTERN)
    release: Line
    state: KernelState
    body: Body | None = None
    provenance: Provenance
    note: Text

    @property
    def verdict(self) -> tuple[KernelState, Body | None]:
        """What was decided: all else about a build may differ from file to file."""
        return self.state, self.body

    @property
    def verdict_in_words(self) -> str:
        """`affected, body A`."""
        return self.state.value if self.body is None else f"{self.state.value}, body {self.body.value}"

    @model_validator(mode="after")
    def _body_has_a_call(self) -> Self:
        _refuse_body_without_call(self.state, self.body)
        return self


def _refuse_body_without_call(state: KernelState, body: Body | None) -> None:
    if body is not None and state in {KernelState.EQUIVALENT, KernelState.NOT_AFFECTED}:
        raise fault(("body",), f"expected null: a kernel that is {state} has neither body, found {str(body)!r}")


class Kernels(PolicyPart):
    """policies/kernels.yaml: what is known of kernels by release and by build-id.

    A file with neither changelog_markers nor lineages brings builds alone: it adds them to those of the others (policy/load.py).
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"dependentRequired": {"changelog_markers": ["lineages"], "lineages": ["changelog_markers"]}},
    )

    kind: Literal["kernels"] = "kernels"
    schema_version: Literal[1]
    changelog_markers: tuple[Line, ...] = Field(default=(), description="a changelog entry that contains one of these names the guard")
    lineages: tuple[KernelLineage, ...] = Field(default=(), description="given together with changelog_markers, or not at all")
    builds: tuple[BuildVerdict, ...] = ()

    @property
    def brings_builds_alone(self) -> bool:
        """Whether this is an addition to what is known of kernels, and not all of it."""
        return self.model_fields_set.isdisjoint(("changelog_markers", "lineages"))

    @model_validator(mode="after")
    def _whole_or_an_addition(self) -> Self:
        for here, missing in (("changelog_markers", "lineages"), ("lineages", "changelog_markers")):
            if here in self.model_fields_set and missing not in self.model_fields_set:
                raise fault((missing,), f"expected this key beside {here}, found none; a file that only adds builds has neither")
        return self

    @model_validator(mode="after")
    def _unique(self) -> Self:
        refuse_repeats("lineages", "id", (lineage.id for lineage in self.lineages))
        refuse_repeats("builds", "build_id", (build.build_id for build in self.builds))
        return self


class QemuLineage(PolicyPart):
    """Whether a range of QEMU versions clears kvm->arch.enable_pmu for pmu=off. The first lineage that matches speaks."""

    id: Line
    package: Pattern = Field(
        description="a regular expression that matches the whole text in parentheses of --version; '' where there is none"
    )
    since: Version | None = Field(default=None, description="first version of the range; null for no lower end")
    before: Version | None = Field(default=None, description="first version after the range; null for no upper end")
    clears_enable_pmu: bool
    provenance: Provenance
    note: Text

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        refuse_empty_range(self.since, self.before)
        return self


class Qemus(PolicyPart):
    """policies/qemu.yaml: for binaries whose capability string is missing; where it is present, it decides."""

    kind: Literal["qemu"] = "qemu"
    schema_version: Literal[1]
    lineages: tuple[QemuLineage, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        refuse_repeats("lineages", "id", (lineage.id for lineage in self.lineages))
        return self


class Microarchitecture(PolicyPart):
    """Which CPUs a table row is about, by vendor, family and models as /proc/cpuinfo numbers them."""

    vendor: Literal["AuthenticAMD", "GenuineIntel"]
    family: int
    models: tuple[int, ...] = Field(min_length=1)
    name: Line


class Cost(PolicyPart):
    """One cell of the cost matrix: what one exit costs less when enable_pmu is cleared, when the guard is there, or both.

    `saved_by` says what changes and what stays: `guard` adds the guard for a guest whose PMU is off; `pmu_off` clears
    enable_pmu and leaves the kernel as `guard` says it is; `guard_and_pmu_off` does both, from an unguarded kernel and a
    guest with its PMU on; `guard_pmu_on` adds the guard for a guest whose PMU stays on, and is negative where that costs.
    Cycles and instructions are different units; a row has exactly one of them.
    """

    id: Line
    saved_by: Literal["guard", "pmu_off", "guard_and_pmu_off", "guard_pmu_on"]
    body: Body | None = Field(description="the kernel body it was measured on; null where the source does not say")
    guard: bool | None = Field(description="whether the kernel had the guard: for rows saved by pmu_off, else null")
    cpu: Microarchitecture | None = Field(default=None, description="the processor; null where the count does not depend on it")
    vendor_path: Literal["svm", "vmx"]
    mitigations: Literal["off", "auto"] | tuple[MitigationClass, ...] = Field(
        description="the mitigations= of the kernel's command line, or the mitigation classes that were in force"
    )
    cycles_per_exit: int | None = None
    instructions_per_exit: int | None = None
    exit_cycles: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="what the whole exit cost before, in cycles, where the source says; null elsewhere"
    )
    provenance: Provenance
    note: Text

    @model_validator(mode="after")
    def _whole_is_more_than_its_part(self) -> Self:
        if self.exit_cycles is not None and (self.cycles_per_exit is None or self.cycles_per_exit > self.exit_cycles):
            raise fault(("exit_cycles",), f"expected more than cycles_per_exit, of which it is the whole, found {self.exit_cycles}")
        return self

    @model_validator(mode="after")
    def _one_unit_and_one_kernel(self) -> Self:
        if (self.cycles_per_exit is None) == (self.instructions_per_exit is None):
            raise ValueError("a cost has either cycles_per_exit or instructions_per_exit: they are different units")
        if (self.guard is None) == (self.saved_by == "pmu_off"):
            expected = (
                "true or false: a row saved by pmu_off says which" if self.guard is None else "null: only a row saved by pmu_off says which"
            )
            raise fault(
                ("guard",),
                f"expected {expected} kernel it was measured on, found {'null' if self.guard is None else str(self.guard).lower()}",
            )
        return self


class Costs(PolicyPart):
    """policies/costs.yaml: the cost matrix."""

    kind: Literal["costs"] = "costs"
    schema_version: Literal[1]
    costs: tuple[Cost, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        refuse_repeats("costs", "id", (cost.id for cost in self.costs))
        return self


class WaiverScope(PolicyPart):
    """Whom a waiver covers: `hosts`, `domains` or both, or `flavors`, or `images` (policy/waiver.py says what each covers)."""

    hosts: tuple[Line, ...] = Field(
        default=(), description="host ids or exact host names, of an instance also its compute host's name; '*' stands for all"
    )
    domains: tuple[Line, ...] = Field(
        default=(), description="uuids of domains or instances, or exact names; '*' stands for all. Tenants may choose names: prefer uuids"
    )
    flavors: tuple[Line, ...] = Field(default=(), description="names or ids of a cloud's flavors; '*' stands for all; alone in its scope")
    images: tuple[Line, ...] = Field(
        default=(), description="ids or exact names of a cloud's images; '*' stands for all; alone in its scope. Prefer ids here too"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name)]
        if not given:
            raise ValueError("an empty scope would waive everything: name hosts, domains, flavors or images; '*' stands for all")
        for name in ("flavors", "images"):
            if name in given and len(given) > 1:
                others = " and ".join(other for other in given if other != name)
                raise fault((name,), f"expected {name} alone, found {others} beside: no failure is about both, so that it would cover none")
        return self


class Waiver(PolicyPart):
    """A failing finding that somebody has answered for, until a date."""

    id: str = Field(pattern=WAIVER_ID_PATTERN, max_length=64)
    rules: tuple[Identifier, ...] = Field(min_length=1)
    scope: WaiverScope
    justification: Annotated[Text, Field(min_length=10)]
    approver: Line
    created: UtcTime
    expires: UtcTime

    @model_validator(mode="after")
    def _ends_after_start(self) -> Self:
        if self.expires <= self.created:
            raise fault(("expires",), "expected a time later than created: this waiver would never apply")
        return self


class Waivers(PolicyPart):
    """A waiver file. Its waivers are read one by one: a malformed one does not take the others with it (policy/load.py)."""

    kind: Literal["waivers"] = "waivers"
    schema_version: Literal[1]
    waivers: tuple[Waiver, ...] = ()


#: A fault of a waiver file: what it is about was not applied, and the audit reports it.
WaiverProblem = Problem


class Rulebook(PolicyPart):
    """Everything that a host is judged by, loaded and checked."""

    policy: Policy
    kernels: Kernels
    qemus: Qemus
    costs: Costs
    waivers: tuple[Waiver, ...] = ()
    waiver_problems: tuple[WaiverProblem, ...] = ()
