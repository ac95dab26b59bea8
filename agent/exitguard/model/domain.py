"""What is observed of a libvirt domain: what is defined, what runs, the process that runs it, and who owns it."""

from enum import StrEnum

from pydantic import Field

from exitguard.model.host import QemuBinary
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Observed, Record


class DomainDefinition(Record):
    """What one domain XML says of the things that decide the guest PMU."""

    #: The domain type: kvm, qemu (TCG), test, xen ...
    type: str
    arch: str
    machine: str
    emulator: str | None
    #: host-passthrough, host-model, maximum, custom; None without a <cpu mode>.
    cpu_mode: str | None
    cpu_model: str | None
    pmu: PmuElement
    #: <launchSecurity type>: sev, sev-snp, tdx, s390-pv; None without one.
    launch_security: str | None = None
    #: Arguments of <qemu:commandline> that may change the CPU or its PMU behind the element, as written.
    overrides: tuple[str, ...] = ()


class CpuArgument(Record):
    """QEMU's own `-cpu`: the model, and its `pmu=` property where there is one."""

    model: str
    pmu: PmuElement


class QemuProcess(Record):
    """The process of a running domain, as the process itself shows it."""

    cpu: Observed[CpuArgument]
    accelerator: Observed[str]
    #: The file that runs, opened through /proc/<pid>/exe: possibly another than the one now on disk.
    executable: Observed[QemuBinary]
    #: True for a run that was migrated in or restored: its settings were made elsewhere or earlier.
    incoming: Observed[bool]


class OwnerKind(StrEnum):
    NOVA = "nova"
    LIBVIRT = "libvirt"  # nobody else claims it: whoever uses virsh or virt-manager
    OTHER = "other"
    UNKNOWN = "unknown"


class Owner(Record):
    """Who writes the definition; `name` is the manager's name, or what was found instead."""

    kind: OwnerKind
    name: str


class NovaInstance(Record):
    """Nova's metadata in the domain XML. Before Nova 32.0.0 there are no properties: then both are None."""

    version: str
    name: str
    flavor: str
    project: str | None
    #: RFC 3339 in UTC; Nova writes it each time it generates the XML.
    created_at: str | None
    #: `hw:pmu` of the flavor: its text, "" where the flavor's extra specs are stored and silent, None where not stored.
    flavor_hw_pmu: str | None = None
    #: `hw_pmu` of the image, likewise.
    image_hw_pmu: str | None = None
    #: The flavor's id, which is its own even where the name was given anew; None before Nova 32.0.0.
    flavor_id: str | None = Field(default=None, exclude_if=lambda flavor: flavor is None)
    #: Id of the image that it was made from; None for one that boots from a volume.
    image: str | None = Field(default=None, exclude_if=lambda image: image is None)


class DomainFacts(Record):
    """One domain. `definition` is None for a transient domain, `run` for one that neither runs nor is saved."""

    uuid: str
    name: str
    active: Observed[bool]
    managed_save: Observed[bool]
    definition: Observed[DomainDefinition] | None
    run: Observed[DomainDefinition] | None
    process: Observed[QemuProcess] | None
    owner: Owner
    nova: NovaInstance | None = None
    #: Whether this run was started, not restored or migrated in, from XML that Nova had just generated.
    started_as_generated: Observed[bool] | None = None
    #: True where an operator's mark in the metadata says: leave alone.
    locked: bool = False
