"""The words for change: a plan with its steps and what it leaves alone, and what each step rests on.

A plan is content-addressed. Its hash covers everything in it but when and by which version it was made: the facts of every host, the
policy, the waivers, the playbooks with their roles and modules, the inventory, the steps and what is left alone. A step's id covers what
it does, to whom, and what it rests on; its texts are not in it, so that the same step of a later plan has the same id.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from exitguard.model.canonical import JsonValue, record_hash
from exitguard.model.documents import Tool
from exitguard.model.finding import Subject
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class Remedy(StrEnum):
    """What mends a failing rule: one playbook each."""

    DOMAIN_PMU_OFF = "domain_pmu_off"
    KERNEL_GUARD = "kernel_guard"
    QEMU_PMU_CAP = "qemu_pmu_cap"
    KVM_ENABLE_PMU_OFF = "kvm_enable_pmu_off"
    NOVA_FLAVOR_DEFAULT = "nova_flavor_default"
    NOVA_IMAGE_DEFAULT = "nova_image_default"
    NOVA_INSTANCE_PMU_OFF = "nova_instance_pmu_off"


class Mode(StrEnum):
    """How far remedies may go."""

    REPORT = "report"  # plans are shown, none is carried out
    OPPORTUNISTIC = "opportunistic"  # only what disturbs nobody; it takes effect when the owner restarts
    WINDOWED = "windowed"  # only inside a declared maintenance window


class Approval(StrEnum):
    """Whether a person has to name a plan's hash before it may be carried out."""

    REQUIRED = "required"
    NONE = "none"


class Disruption(StrEnum):
    """What the step itself does to what runs. Steps that restart a guest or a host are not planned by this version."""

    NONE = "none"


class PinnedPackage(Record):
    """A package in exactly the version that an operator chose."""

    name: str
    version: str


class DomainPmuChange(Record):
    """The `<pmu>` element of one persistent definition: what it says, and what it is to say."""

    remedy: Literal[Remedy.DOMAIN_PMU_OFF] = Remedy.DOMAIN_PMU_OFF
    uuid: str
    before: PmuElement
    after: PmuElement = PmuElement.OFF
    #: sha256 of the definition without its secrets, as it has to be afterwards: of a change that restores an earlier one.
    restores: str | None = None


class KernelGuardChange(Record):
    """Pinned kernel packages to install, booted once; or, once that kernel runs and is healthy, made the default."""

    remedy: Literal[Remedy.KERNEL_GUARD] = Remedy.KERNEL_GUARD
    stage: Literal["install", "promote"]
    packages: tuple[PinnedPackage, ...]
    release: str


class QemuPmuCapChange(Record):
    """Pinned QEMU packages to install. `machine_types` are those that guests of this host use, and that it must still have."""

    remedy: Literal[Remedy.QEMU_PMU_CAP] = Remedy.QEMU_PMU_CAP
    packages: tuple[PinnedPackage, ...]
    machine_types: tuple[str, ...]


class KvmEnablePmuOffChange(Record):
    """`kvm.enable_pmu=N` from the next load of the module on, for every guest of the host."""

    remedy: Literal[Remedy.KVM_ENABLE_PMU_OFF] = Remedy.KVM_ENABLE_PMU_OFF


class NovaFlavorChange(Record):
    """`hw:pmu` of a flavor's extra specs; "" is silent. Existing instances keep their own copy."""

    remedy: Literal[Remedy.NOVA_FLAVOR_DEFAULT] = Remedy.NOVA_FLAVOR_DEFAULT
    flavor_id: str
    before: str = ""
    after: str = "false"


class NovaImageChange(Record):
    """`hw_pmu` of an image's properties; "" is silent. Existing instances keep their own copy."""

    remedy: Literal[Remedy.NOVA_IMAGE_DEFAULT] = Remedy.NOVA_IMAGE_DEFAULT
    image_id: str
    before: str = ""
    after: str = "false"


class NovaInstanceChange(Record):
    """`hw_pmu=false` among the stored image properties of a stopped instance. Nova knows no way to unset it."""

    remedy: Literal[Remedy.NOVA_INSTANCE_PMU_OFF] = Remedy.NOVA_INSTANCE_PMU_OFF
    uuid: str
    #: The image that the instance has; None for one that boots from a volume.
    image: str | None
    #: When its disk was made: another time is a rebuild.
    launched_at: str | None = None


Change = Annotated[
    DomainPmuChange
    | KernelGuardChange
    | QemuPmuCapChange
    | KvmEnablePmuOffChange
    | NovaFlavorChange
    | NovaImageChange
    | NovaInstanceChange,
    Field(discriminator="remedy"),
]


def change_subject(change: Change) -> str:
    """What a playbook calls the subject of a change in its results: a uuid, the id of a flavor or image, or `host`."""
    match change:
        case DomainPmuChange() | NovaInstanceChange():
            return change.uuid
        case NovaFlavorChange():
            return change.flavor_id
        case NovaImageChange():
            return change.image_id
        case _:
            return "host"


class SavingPerExit(Record):
    """What one exit that skips an instruction costs less once the step is in force, against the guest as it runs now.

    An interval in one unit, or `unquantified` and why: then both ends are None. Nothing unquantified counts as zero.
    """

    provenance: Literal["measured", "table", "unquantified"]
    unit: Literal["cycles", "instructions"] | None = None
    low: int | None = None
    high: int | None = None
    #: What it rests on: ids of the cost matrix.
    costs: tuple[str, ...] = ()
    reason: str


class Step(Record):
    """One change of one host or domain."""

    id: str
    host_id: str
    subject: Subject
    change: Change
    #: Hash of the facts that the step rests on: where they are others, it is another step.
    basis: str
    why: str
    #: Why it is safe, one reason each.
    safe: tuple[str, ...]
    disruption: Disruption
    takes_effect: str
    #: What a guest loses with its PMU.
    guest_loses: tuple[str, ...] = ()
    diff: str
    savings: tuple[SavingPerExit, ...]
    #: Whether an undo restores exactly what was there before.
    reversible: bool

    @property
    def remedy(self) -> Remedy:
        return self.change.remedy


def step_id(host_id: str, change: Change, basis: str) -> str:
    """`sha256:` over what the step does, where, and what it rests on."""
    return record_hash({"host_id": host_id, "change": change.model_dump(mode="json"), "basis": basis})


class LeftAloneBecause(StrEnum):
    """Why something that fails, or may, is not touched."""

    NOVA_OWNED = "nova_owned"
    OTHER_OWNER = "other_owner"
    UNKNOWN_OWNER = "unknown_owner"
    WAIVED = "waived"
    OPTED_OUT = "opted_out"
    LOCKED = "locked"
    UNKNOWN = "unknown"
    NOT_ALLOWED = "not_allowed"  # the policy does not allow this remedy
    NOT_PINNED = "not_pinned"  # no package version is pinned for this host
    NEEDS_REQUEST = "needs_request"  # a window, a preflight or an assurance of the operator is missing
    GUEST_WOULD_LOSE = "guest_would_lose"  # a guest that asked for the PMU is there, or may arrive
    MAINTENANCE = "maintenance"
    NOT_REACHABLE = "not_reachable"  # not from here: a remote target, a file tree, a transient domain
    NOT_STOPPED = "not_stopped"  # it can be set while its owner has the instance stopped, and that is not now
    WOULD_CONFLICT = "would_conflict"  # flavor and image would contradict each other, and the next start would fail
    PENDING = "pending"  # done already, and waits for a restart of somebody else's choosing
    NO_REMEDY = "no_remedy"  # no remedy is named for the rule, or this version has none


class LeftAlone(Record):
    """One subject that is not touched by one remedy, and why."""

    host_id: str
    subject: Subject
    #: None where no remedy is named.
    remedy: Remedy | None
    because: LeftAloneBecause
    reason: str


class PlannedHost(Record):
    """A host that the plan has looked at, or a cloud, which is dealt with as one."""

    id: str
    hostname: str | None
    #: Its name in the inventory; None for the machine that the plan was made on.
    inventory_name: str | None
    facts_hash: str
    #: Of a cloud: its name in clouds.yaml.
    cloud: str | None = Field(default=None, exclude_if=lambda name: name is None)


class PlanInputs(Record):
    """What the plan was made from, by hash."""

    policy: str = Field(description="id and version of the policy")
    policy_hash: str = Field(description="of the whole rulebook but the waivers: policy, kernels, QEMU versions, costs")
    waivers_hash: str
    playbooks_hash: str = Field(description="of playbooks, roles, modules and module_utils, by path and content")
    inventory_hash: str | None = Field(default=None, description="of the Ansible inventory; null for the machine itself")
    hosts: tuple[PlannedHost, ...]


class Wave(Record):
    """Hosts that are dealt with before any of the next wave. The first is the canary."""

    name: str
    hosts: tuple[str, ...]


class Pace(Record):
    """How a rollout goes forward."""

    waves: tuple[Wave, ...]
    max_hosts_in_flight: int
    #: How many hosts may fail before the rollout stops: 0 stops at the first.
    failure_budget: int
    step_timeout_seconds: int
    #: The time between the end of one wave and the beginning of the next.
    pause_between_waves_seconds: int
    automatic_rollback: bool


class Plan(Record):
    """What is to be changed, in which order, and what is left alone."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    made_at: UtcTime
    hash: str
    mode: Mode
    approval: Approval
    inputs: PlanInputs
    pace: Pace
    steps: tuple[Step, ...]
    left_alone: tuple[LeftAlone, ...]
    #: The run that this plan undoes; None for a plan that goes forward.
    undoes: str | None = None

    def content(self) -> JsonValue:
        """Everything that the hash covers, as JSON."""
        return self.model_dump(mode="json", exclude={"hash", "made_at", "tool"})
