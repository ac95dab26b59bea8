"""What is observed of a hypervisor host: kernel, CPU, KVM, QEMU, libvirt. Stable facts only; what moves is a sample."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed, Record, unseen


class TargetKind(StrEnum):
    """What an observation is about. Kernel and process facts of a remote target cannot be seen from here."""

    LOCAL = "local"
    EMBEDDED = "embedded"  # libvirt's test:/// driver: no daemon, no guests, this machine's kernel
    REMOTE = "remote"
    SYSROOT = "sysroot"  # a host's file tree, libvirt's files included


class Target(Record):
    kind: TargetKind
    #: The libvirt URI, or None for a sysroot.
    uri: str | None = None
    sysroot: str | None = None


class HostIdentity(Record):
    """`id` is a UUIDv4 minted beside the store; without a store it is derived from the machine-id and provisional."""

    id: str
    provisional: bool
    hostname: Observed[str]
    machine_id: Observed[str]
    dmi_uuid: Observed[str]


class Distribution(Record):
    """From os-release(5)."""

    id: str
    version_id: str
    name: str


class InstalledKernel(Record):
    release: str
    #: The changelog entries of its package that name the guard; None where no changelog of it could be read, or none settles it.
    guard_entries: tuple[str, ...] | None = None
    #: What its files show, the listing left out, which is big; of the running release only where they are another build than what runs.
    machine_code: MachineCode | None = Field(default=None, exclude_if=lambda code: code is None)
    #: Why they show nothing. Neither of the two where they are what runs.
    machine_code_reason: str | None = Field(default=None, exclude_if=lambda reason: reason is None)


class LivePatch(Record):
    """One /sys/kernel/livepatch/<name>; `replaces_skip`: it patches the function that skips an instruction, or its PMU call."""

    name: str
    enabled: bool
    transition: bool
    replaces_skip: bool


class Changelog(Record):
    """A kernel package's changelog, searched for the guard."""

    package: str
    #: The entries that name the guard, at most a few, each one line.
    guard_entries: tuple[str, ...]


#: What a document says of machine code that was written before any was read; it is left out again, so that such a document keeps its hash.
_NOT_READ: Observed[MachineCode] = unseen("machine code", "not read")


class KernelFacts(Record):
    release: Observed[str]
    architecture: Observed[str]
    distribution: Observed[Distribution]
    #: Hex, from the GNU note of the running image.
    build_id: Observed[str]
    boot_id: Observed[str]
    installed: Observed[tuple[InstalledKernel, ...]]
    #: The release that the boot loader would start next.
    boots_next: Observed[str]
    live_patches: Observed[tuple[LivePatch, ...]]
    #: Those of the symbols that tell (see facts/kernel.py) that the running kernel has, suffixes removed, sorted.
    symbols: Observed[tuple[str, ...]]
    changelog: Observed[Changelog]
    #: Of the file whose build-id is the one of the code that runs as KVM; a live patch may have replaced functions of it.
    machine_code: Observed[MachineCode] = Field(default=_NOT_READ, exclude_if=lambda code: code == _NOT_READ)


class Cpu(Record):
    vendor: str
    model_name: str
    family: int
    model: int
    stepping: int
    microcode: str
    logical_cpus: int
    #: `svm`, `vmx` or none: the hardware virtualisation this machine offers.
    virtualization: Literal["svm", "vmx", "none"]
    #: True where this machine is itself a guest.
    hypervisor: bool


class MitigationClass(StrEnum):
    """How much an indirect call and a return cost on this host; classes combine (domain knowledge in facts/mitigations.py)."""

    HEAVY_RETURN_TAX = "heavy_return_tax"
    INTEL_RETURN_TAX = "intel_return_tax"
    INDIRECT_CALL_TAX = "indirect_call_tax"
    LOW = "low"


class Mitigations(Record):
    #: File name under /sys/devices/system/cpu/vulnerabilities to its line.
    lines: dict[str, str]
    classes: tuple[MitigationClass, ...]


class KvmModule(Record):
    form: Literal["built_in", "module"]
    #: kvm_intel, kvm_amd or another, as loaded or built in; sorted.
    vendor_modules: tuple[str, ...]


class KvmDevice(Record):
    """/dev/kvm, asked by ioctl. `pmu_capability` is KVM_CHECK_EXTENSION(KVM_CAP_PMU_CAPABILITY): bit 0 is KVM_PMU_CAP_DISABLE."""

    api_version: int
    pmu_capability: int


class KvmFacts(Record):
    module: Observed[KvmModule]
    #: Every readable parameter of the kvm module and of its vendor modules, as `module.parameter`.
    parameters: Observed[dict[str, str]]
    #: A kernel without the parameter is seen as one that never clears a PMU; the source says so.
    enable_pmu: Observed[bool]
    enable_mediated_pmu: Observed[bool]
    #: Hex; of the file whose code KVM is: kvm.ko, or the kernel's image where KVM is built in.
    build_id: Observed[str]
    device: Observed[KvmDevice]


class QemuVersion(Record):
    """`QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`: version `7.2.22`, package the text in parentheses or empty."""

    version: str
    package: str


class QemuBinary(Record):
    """One QEMU program file, read, never run."""

    path: str
    version: Observed[QemuVersion]
    #: Whether the file holds "Failed to set KVM_PMU_CAP_DISABLE" (QEMU 383374465155, first released in 11.0).
    capability_string: Observed[bool]
    #: True where the running file has been replaced or removed since it was started.
    deleted: bool = False


class LibvirtFacts(Record):
    #: Versions as libvirt prints them, for example 9.0.0.
    daemon_version: Observed[str]
    driver: Observed[str]
    #: Where the domains were listed, or why they could not be: the count itself is in the document's domains.
    listing: Observed[bool]


class UnmanagedGuest(Record):
    """A process that holds a KVM virtual machine and that libvirt does not know."""

    command: str
    executable: str | None


class NovaOption(Record):
    """One option of nova.conf, as its files hold it: what nova-compute reads when it starts, not what is in force."""

    #: `section.option`.
    name: str
    #: The file that sets it, the last of those that do; None where none does.
    file: str | None
    #: Its text where that is a boolean, or what was looked for; None for any other, which is not kept: these files hold passwords.
    value: str | None


class HostFacts(Record):
    """Everything stable that is known of one host but its domains."""

    target: Target
    identity: HostIdentity
    kernel: KernelFacts
    cpu: Observed[Cpu]
    mitigations: Observed[Mitigations]
    kvm: KvmFacts
    qemu: Observed[tuple[QemuBinary, ...]]
    libvirt: LibvirtFacts
    unmanaged: Observed[tuple[UnmanagedGuest, ...]]
    #: Why an operator has marked the host as in maintenance; None where it is not.
    maintenance: str | None = Field(default=None, exclude_if=lambda mark: mark is None)
    #: The vendor's option that makes Nova default to PMU off; None where the policy names none.
    nova_option: Observed[NovaOption] | None = Field(default=None, exclude_if=lambda option: option is None)
