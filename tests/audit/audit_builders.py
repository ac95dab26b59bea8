"""Facts of a Debian 12 hypervisor, as the recorded inputs of tests/facts show one, to be varied by a test."""

from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from exitguard.facts.qemu_command_line import read_cpu_argument
from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainDefinition, DomainFacts, NovaInstance, Owner, OwnerKind, QemuProcess
from exitguard.model.host import (
    Changelog,
    Distribution,
    HostFacts,
    HostIdentity,
    InstalledKernel,
    KernelFacts,
    KvmFacts,
    KvmModule,
    LibvirtFacts,
    LivePatch,
    QemuBinary,
    QemuVersion,
    Target,
    TargetKind,
)
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Observed, seen, unseen

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
HOST_ID = "5a3c1f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
RELEASE = "6.1.0-56-amd64"
BUILD_ID = "48dc540c8b76393804ca8088dbfa7d42911a9444"
ALL_OF_AFFECTED = ("kvm_pmu_trigger_event", "kvm_skip_emulated_instruction")
GUARD_ENTRY = "x86/kvm: skip PMU event trigger when guest PMU is disabled"
T = TypeVar("T")
EMULATOR = "/usr/bin/qemu-system-x86_64"


def affected_kernel(
    *,
    release: str | None = RELEASE,
    symbols: tuple[str, ...] | None = ALL_OF_AFFECTED,
    changelog: tuple[str, ...] | None = (),
    installed: tuple[InstalledKernel, ...] | None = (InstalledKernel(release=RELEASE, guard_entries=()),),
    boots_next: str | None = RELEASE,
    live_patches: tuple[LivePatch, ...] = (),
    build_id: str | None = BUILD_ID,
) -> KernelFacts:
    """A running kernel; None for what could not be read."""
    return KernelFacts(
        release=_or_unseen("/proc/sys/kernel/osrelease", release),
        architecture=seen("uname", "x86_64"),
        distribution=seen("/etc/os-release", Distribution(id="debian", version_id="12", name="Debian GNU/Linux 12 (bookworm)")),
        build_id=_or_unseen("/sys/kernel/notes", build_id),
        boot_id=seen("/proc/sys/kernel/random/boot_id", "3ef9bb5d-ccc7-4842-912a-58321fbd61cd"),
        installed=_or_unseen("/lib/modules", installed),
        boots_next=_or_unseen("/boot/grub/grub.cfg", boots_next),
        live_patches=seen("/sys/kernel/livepatch", live_patches),
        symbols=_or_unseen("/proc/kallsyms", symbols),
        changelog=_or_unseen(
            "/usr/share/doc", None if changelog is None else Changelog(package=f"linux-image-{release}", guard_entries=changelog)
        ),
    )


def kvm_module(*, enable_pmu: bool | None = True, build_id: str | None = None) -> KvmFacts:
    """KVM as a module; `enable_pmu` None for a parameter that cannot be read."""
    return KvmFacts(
        module=seen("/sys/module/kvm", KvmModule(form="module", vendor_modules=("kvm_amd",))),
        parameters=seen("/sys/module", {"kvm.halt_poll_ns": "200000"}),
        enable_pmu=_or_unseen("/sys/module/kvm/parameters/enable_pmu", enable_pmu),
        enable_mediated_pmu=unseen("/sys/module/kvm/parameters/enable_mediated_pmu", "not a parameter of this kernel"),
        build_id=_or_unseen("/sys/module/kvm/notes/.note.gnu.build-id", build_id),
        device=unseen("/dev/kvm", "permission denied"),
    )


def qemu(
    version: str = "7.2.22", package: str = "Debian 1:7.2+dfsg-7+deb12u18+b3", *, capability: bool = False, path: str = EMULATOR
) -> QemuBinary:
    return QemuBinary(
        path=path, version=seen(path, QemuVersion(version=version, package=package)), capability_string=seen(path, capability)
    )


QEMU_7 = qemu()
QEMU_11 = qemu("11.1.3", "Debian 1:11.1.3+ds-1", capability=True)


def definition(
    mode: str | None = "host-passthrough", pmu: PmuElement = PmuElement.ABSENT, *, kind: str = "kvm", arch: str = "x86_64", **more: object
) -> DomainDefinition:
    return DomainDefinition.model_validate(
        {
            "type": kind,
            "arch": arch,
            "machine": "pc-q35-7.2",
            "emulator": EMULATOR,
            "cpu_mode": mode,
            "cpu_model": None,
            "pmu": pmu,
            **more,
        }
    )


def process(cpu: str, binary: QemuBinary = QEMU_7) -> QemuProcess:
    """A process started with `-cpu CPU`."""
    return QemuProcess(
        cpu=seen("/proc/<pid>/cmdline", read_cpu_argument(cpu)),
        accelerator=seen("/proc/<pid>/cmdline", "kvm"),
        executable=seen("/proc/<pid>/exe", binary),
        incoming=seen("/proc/<pid>/cmdline", False),
    )


def domain(
    *,
    number: int = 1,
    defined: DomainDefinition | str | None,
    run: DomainDefinition | str | None = None,
    runs: QemuProcess | str | None = None,
    active: bool | None = None,
    saved: bool | None = False,
    owner: OwnerKind = OwnerKind.LIBVIRT,
    nova: NovaInstance | None = None,
    generated: bool | None = None,
    locked: bool = False,
) -> DomainFacts:
    """A domain; a text in place of a definition or a process is the reason why it could not be read."""
    if active is None:
        active = run is not None and not saved
    return DomainFacts(
        uuid=str(UUID(int=number)),
        name=f"guest-{number}",
        active=seen("qemu:///system", active),
        managed_save=_or_unseen("qemu:///system", saved),
        definition=_told("libvirt: inactive XML", defined),
        run=_told("libvirt: live XML", run),
        process=_told("/proc", runs),
        owner=Owner(kind=OwnerKind.NOVA if nova is not None else owner, name=(OwnerKind.NOVA if nova is not None else owner).value),
        nova=nova,
        started_as_generated=_or_unseen("nova:creationTime", generated) if nova is not None else None,
        locked=locked,
    )


def nova(flavor: str | None = "", image: str | None = "", version: str = "32.0.0") -> NovaInstance:
    """An instance whose flavor and image say nothing; None for what is not stored."""
    return NovaInstance(
        version=version,
        name="web-1",
        flavor="m1.small",
        project="ac1a5197a2d94a749358820689414043",
        created_at="2026-11-22T11:39:25.000000Z",
        flavor_hw_pmu=flavor,
        image_hw_pmu=image,
    )


def facts(
    *domains: DomainFacts,
    kernel: KernelFacts | None = None,
    kvm: KvmFacts | None = None,
    binaries: tuple[QemuBinary, ...] | None = (QEMU_7,),
    libvirt: str | None = None,
    machine_id: str | None = "3d1219c7c4c5404aaa1f6d2a48adfda4",
) -> FactsDocument:
    """One host; `libvirt` is the reason why it could not be asked."""
    uri = "qemu:///system"
    host = HostFacts(
        target=Target(kind=TargetKind.LOCAL, uri=uri),
        identity=HostIdentity(
            id=HOST_ID,
            provisional=False,
            hostname=seen("/proc/sys/kernel/hostname", "compute-7"),
            machine_id=_or_unseen("/etc/machine-id", machine_id),
            dmi_uuid=unseen("/sys/class/dmi/id/product_uuid", "permission denied"),
        ),
        kernel=kernel or affected_kernel(),
        cpu=unseen("/proc/cpuinfo", "not read in this test"),
        mitigations=unseen("/sys/devices/system/cpu/vulnerabilities", "not read in this test"),
        kvm=kvm or kvm_module(),
        qemu=_or_unseen("QEMU programs", binaries),
        libvirt=LibvirtFacts(
            daemon_version=seen(uri, "9.0.0"), driver=seen(uri, "QEMU"), listing=unseen(uri, libvirt) if libvirt else seen(uri, True)
        ),
        unmanaged=seen("/sys/kernel/debug/kvm", ()),
    )
    return FactsDocument(observed_at=NOW, host=host, domains=domains)


def _or_unseen(source: str, value: T | None) -> Observed[T]:
    return seen(source, value) if value is not None else unseen(source, "not readable here")


def _told(source: str, value: T | str | None) -> Observed[T] | None:
    if value is None:
        return None
    return unseen(source, value) if isinstance(value, str) else seen(source, value)
