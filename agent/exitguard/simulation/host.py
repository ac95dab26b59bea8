"""One simulated host: what it is at each look, by its seed and number alone. Pure: the same arguments make the same host, anywhere."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar
from uuid import UUID

from exitguard.model.documents import FactsDocument
from exitguard.model.domain import CpuArgument, DomainDefinition, DomainFacts, NovaInstance, Owner, OwnerKind, QemuProcess
from exitguard.model.host import (
    Changelog,
    Distribution,
    HostFacts,
    HostIdentity,
    InstalledKernel,
    KernelFacts,
    KvmDevice,
    KvmFacts,
    KvmModule,
    LibvirtFacts,
    QemuBinary,
    QemuVersion,
    Target,
    TargetKind,
)
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import Incarnation
from exitguard.simulation.kinds import KERNELS, PROCESSORS, QEMUS, UPDATES, Kernel, Processor, Qemu

HOSTS_A_RACK = 16
_EMULATOR = "/usr/bin/qemu-system-x86_64"
_MOST_DOMAINS = 200
#: Of a thousand hosts.
_SILENT, _SKEWED, _BLIND, _LOSSY = 12, 10, 15, 6


class _Shared(Protocol):
    @property
    def share(self) -> int: ...


Kind = TypeVar("Kind", bound=_Shared)


@dataclass
class _Domain:
    number: int
    #: Of the definition, and of the run; a run keeps what it was started with.
    pmu: PmuElement
    run: PmuElement | None
    nova: bool
    #: Since when it runs, in looks: it is part of its incarnation.
    started_at_look: int
    exits_per_second: float


@dataclass
class SimulatedHost:
    """As it is at `look`; `advance` goes on to the next one."""

    seed: int
    number: int
    mean_domains: int = 30
    look: int = 0
    changed: bool = True
    domains: list[_Domain] = field(default_factory=list)

    def __post_init__(self) -> None:
        rack = random.Random(f"{self.seed}/rack/{self.number // HOSTS_A_RACK}")  # noqa: S311 - nothing here is a secret
        self.kernel: Kernel = _choose(rack, KERNELS)
        self.qemu: Qemu = _choose(rack, QEMUS)
        self.processor: Processor = _choose(rack, PROCESSORS)
        #: A rack that somebody has finished: guarded, with a QEMU that clears enable_pmu, and guests that are defined off.
        self.finished = rack.random() < 0.2  # noqa: PLR2004 - made up, as the shares in kinds.py
        if self.finished:
            self.kernel, self.qemu = rack.choice(tuple(UPDATES.values())), QEMUS[-1]
        own = self._random("host")
        if own.random() < 0.05:  # noqa: PLR2004 - one in twenty is not like its rack
            self.qemu = _choose(own, QEMUS)
        self.silent = own.randrange(1000) < _SILENT
        self.skew = timedelta(seconds=own.choice((-1, 1)) * own.randrange(90, 4000)) if own.randrange(1000) < _SKEWED else timedelta()
        self.blind = own.randrange(1000) < _BLIND
        self.lossy = own.randrange(1000) < _LOSSY
        self.enable_pmu = own.random() >= 0.03  # noqa: PLR2004 - some hosts have kvm.enable_pmu=N
        self._boots = 0
        self._next_domain = 0
        count = min(_MOST_DOMAINS, max(0, round(own.gauss(self.mean_domains, self.mean_domains / 3))))
        for _ in range(count):
            self._add_domain(own)

    @property
    def host_id(self) -> str:
        return self._uuid("host")

    @property
    def hostname(self) -> str:
        """Begins with `sim-`, so that nobody takes it for a host that is."""
        return f"sim-r{self.number // HOSTS_A_RACK:04d}-n{self.number % HOSTS_A_RACK:02d}"

    @property
    def spool_epoch(self) -> str:
        return self._uuid("spool")

    @property
    def boot_id(self) -> str:
        return self._uuid(f"boot/{self._boots}")

    def advance(self) -> None:
        """To the next look: most hosts stay as they are."""
        self.look += 1
        chance = self._random(f"look/{self.look}")
        self.changed = chance.random() < 0.15  # noqa: PLR2004 - made up, as the shares below
        if not self.changed:
            return
        match chance.choices(("start", "end", "define", "restart", "update"), (25, 20, 25, 25, 5))[0]:
            case "start":
                self._add_domain(chance)
            case "end" if self.domains:
                self.domains.pop(chance.randrange(len(self.domains)))
            case "define":
                for domain in self.domains:
                    if domain.pmu is PmuElement.ABSENT and not domain.nova and chance.random() < 0.5:  # noqa: PLR2004
                        domain.pmu = PmuElement.OFF
            case "restart":
                for domain in self.domains:
                    if chance.random() < 0.2:  # noqa: PLR2004
                        self._start(domain)
            case "update" if (update := UPDATES.get(self.kernel.distribution[:2])) is not None and not self.silent:
                self.kernel = update
                self._boots += 1
                for domain in self.domains:
                    if domain.run is not None:
                        self._start(domain)

    def incarnation(self, domain: _Domain) -> Incarnation:
        return Incarnation(
            host_id=self.host_id,
            domain_uuid=self.domain_uuid(domain),
            boot_id=self.boot_id,
            qemu_start_ticks=100_000 + 1000 * domain.started_at_look + domain.number,
        )

    def domain_uuid(self, domain: _Domain) -> str:
        return self._uuid(f"domain/{domain.number}")

    def exits(self, domain: _Domain, at_look: int) -> int:
        """Of one hour."""
        return round(3600 * domain.exits_per_second * self._random(f"exits/{domain.number}/{at_look}").uniform(0.7, 1.3))

    def facts(self, observed_at: datetime) -> FactsDocument:
        domains = () if self.blind else tuple(self._domain_facts(domain) for domain in self.domains)
        return FactsDocument(observed_at=observed_at, host=self._host_facts(), domains=domains)

    # --- parts ------------------------------------------------------------------------------------------------------------------------

    def _add_domain(self, chance: random.Random) -> None:
        asked = chance.choices((PmuElement.ABSENT, PmuElement.OFF, PmuElement.ON), (1, 95, 4) if self.finished else (62, 33, 5))[0]
        rate = chance.lognormvariate(8.5, 1.2)  # a median of some 5,000 exits a second
        domain = _Domain(self._next_domain, asked, None, chance.random() < 0.6 and not self.finished, self.look, rate)  # noqa: PLR2004
        if chance.random() < 0.92:  # noqa: PLR2004
            self._start(domain)
        self._next_domain += 1
        self.domains.append(domain)

    def _start(self, domain: _Domain) -> None:
        domain.run = domain.pmu
        domain.started_at_look = self.look

    def _host_facts(self) -> HostFacts:
        kernel, processor = self.kernel, self.processor
        package = f"linux-image-{kernel.release}"
        code = kernel.machine_code
        module = f"/lib/modules/{kernel.release}"
        listing: Observed[bool] = unseen("qemu:///system", "cannot connect: permission denied", unlock="join the group libvirt")
        return HostFacts(
            target=Target(kind=TargetKind.LOCAL, uri="qemu:///system"),
            identity=HostIdentity(
                id=self.host_id,
                provisional=False,
                hostname=seen("uname", self.hostname),
                machine_id=seen("/etc/machine-id", self._digest("machine")[:32]),
                dmi_uuid=unseen("/sys/class/dmi/id/product_uuid", "permission denied", unlock="run as root"),
            ),
            kernel=KernelFacts(
                release=seen("uname", kernel.release),
                architecture=seen("uname", "x86_64"),
                distribution=seen(
                    "/etc/os-release", Distribution(**dict(zip(("id", "version_id", "name"), kernel.distribution, strict=True)))
                ),
                build_id=seen("/sys/kernel/notes", _hex(f"build/{kernel.release}")[:40]),
                boot_id=seen("/proc/sys/kernel/random/boot_id", self.boot_id),
                installed=seen("/boot", (InstalledKernel(release=kernel.release, guard_entries=()),)),
                boots_next=seen("/boot/grub/grub.cfg", kernel.release),
                live_patches=seen("/sys/kernel/livepatch", ()),
                symbols=unseen("/proc/kallsyms", "addresses are hidden", unlock="run as root"),
                changelog=seen(package, Changelog(package=package, guard_entries=())),
                machine_code=unseen(module, "permission denied", unlock="run as root") if code is None else seen(module, code),
            ),
            cpu=seen("/proc/cpuinfo", processor.cpu),
            mitigations=seen("/sys/devices/system/cpu/vulnerabilities", processor.mitigations),
            kvm=KvmFacts(
                module=seen("/proc/modules", KvmModule(form="module", vendor_modules=(_vendor_module(processor),))),
                parameters=seen("/sys/module/kvm/parameters", {"kvm.enable_pmu": "Y" if self.enable_pmu else "N"}),
                enable_pmu=seen("/sys/module/kvm/parameters/enable_pmu", self.enable_pmu),
                enable_mediated_pmu=unseen("/sys/module/kvm/parameters/enable_mediated_pmu", "no such file or directory"),
                build_id=seen("/sys/module/kvm/notes/.note.gnu.build-id", _hex(f"kvm/{kernel.release}")[:40]),
                device=seen("/dev/kvm", KvmDevice(api_version=12, pmu_capability=1)),
            ),
            qemu=seen("libvirt's capabilities", (self._binary(),)),
            libvirt=LibvirtFacts(
                daemon_version=seen("qemu:///system", "9.0.0"),
                driver=seen("qemu:///system", "QEMU"),
                listing=listing if self.blind else seen("qemu:///system", True),
            ),
            unmanaged=seen("/proc", ()),
        )

    def _binary(self) -> QemuBinary:
        version = QemuVersion(version=self.qemu.version, package=self.qemu.package)
        return QemuBinary(path=_EMULATOR, version=seen(_EMULATOR, version), capability_string=seen(_EMULATOR, self.qemu.clears))

    def _domain_facts(self, domain: _Domain) -> DomainFacts:
        number = domain.number
        process = None
        if domain.run is not None:
            pid = f"/proc/{4000 + number}"
            process = seen(
                pid,
                QemuProcess(
                    cpu=seen(f"{pid}/cmdline", CpuArgument(model="host", pmu=domain.run)),
                    accelerator=seen(f"{pid}/cmdline", "kvm"),
                    executable=seen(f"{pid}/exe", self._binary()),
                    incoming=seen(f"{pid}/cmdline", value=False),
                ),
            )
        flavor = "true" if domain.pmu is PmuElement.ON else "false" if domain.pmu is PmuElement.OFF else ""
        nova = NovaInstance(
            version="32.0.0", name=f"vm-{number}", flavor="m1.large", project=f"project-{number % 7}", created_at=None, flavor_hw_pmu=flavor
        )
        owner = Owner(kind=OwnerKind.NOVA, name="nova") if domain.nova else Owner(kind=OwnerKind.LIBVIRT, name="libvirt")
        return DomainFacts(
            uuid=self.domain_uuid(domain),
            name=f"instance-{self.number * _MOST_DOMAINS + number:08x}",
            active=seen("libvirt", domain.run is not None),
            managed_save=seen("libvirt", value=False),
            definition=seen("persistent XML", _definition(domain.pmu)),
            run=None if domain.run is None else seen("live XML", _definition(domain.run)),
            process=process,
            owner=owner,
            nova=nova if domain.nova else None,
        )

    def _random(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{what}")  # noqa: S311 - as above

    def _digest(self, what: str) -> str:
        return _hex(f"{self.seed}/{self.number}/{what}")

    def _uuid(self, what: str) -> str:
        """One of version 4 that names this part of this host."""
        return str(UUID(hex=self._digest(what)[:32], version=4))


def _choose(chance: random.Random, kinds: Sequence[Kind]) -> Kind:
    return chance.choices(kinds, [kind.share for kind in kinds])[0]


def _definition(pmu: PmuElement) -> DomainDefinition:
    return DomainDefinition(
        type="kvm", arch="x86_64", machine="pc-q35-7.2", emulator=_EMULATOR, cpu_mode="host-passthrough", cpu_model=None, pmu=pmu
    )


def _vendor_module(processor: Processor) -> str:
    return "kvm_amd" if processor.cpu.virtualization == "svm" else "kvm_intel"


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()
