"""What simulated hosts are made of, and in which shares. Kernels, QEMUs and processors that exist; the shares are made up."""

from dataclasses import dataclass
from typing import Literal

from exitguard.model.host import Cpu, MitigationClass, Mitigations
from exitguard.model.kernel import Body, KernelState
from exitguard.model.machine_code import Callee, FieldOffset, Helper, MachineCode


@dataclass(frozen=True)
class Kernel:
    release: str
    #: os-release's id, version and name.
    distribution: tuple[str, str, str]
    #: Of every hundred racks, how many begin with it.
    share: int
    #: What its machine code shows; None where it cannot be read.
    state: KernelState | None
    body: Body | None = None

    @property
    def machine_code(self) -> MachineCode | None:
        """As `kernel inspect` would read it, the listing left out."""
        if self.state is None:
            return None
        read = MachineCode(path=f"/lib/modules/{self.release}/kernel/arch/x86/kvm/kvm.ko", release=self.release, has_loop=False)
        if self.state is KernelState.NOT_AFFECTED:
            return read
        helper: Helper = "kvm_pmu_instruction_retired" if self.state is KernelState.EQUIVALENT else "kvm_pmu_trigger_event"
        empty: tuple[Literal["pmc_counting_instructions"], ...] = ()
        if self.state is KernelState.EQUIVALENT:
            empty = ("pmc_counting_instructions",)
        return read.model_copy(
            update={
                "enable_pmu": FieldOffset(offset=0x9898, sources=("BTF", "code")),
                "helper": helper,
                "helpers_present": (helper,),
                "called_when_off": self.state is not KernelState.GUARDED,
                "called_when_on": True,
                "decided_by_skip": True,
                "callee": Callee(name=helper, body=self.body, returns_when_empty=empty),
            }
        )


@dataclass(frozen=True)
class Qemu:
    version: str
    package: str
    #: Whether it holds the message of KVM_PMU_CAP_DISABLE.
    clears: bool
    share: int


@dataclass(frozen=True)
class Processor:
    cpu: Cpu
    mitigations: Mitigations
    share: int


_DEBIAN_12 = ("debian", "12", "Debian GNU/Linux 12 (bookworm)")
_DEBIAN_13 = ("debian", "13", "Debian GNU/Linux 13 (trixie)")
_UBUNTU = ("ubuntu", "24.04", "Ubuntu 24.04.2 LTS")
_EL9 = ("rocky", "9.4", "Rocky Linux 9.4 (Blue Onyx)")
_AFFECTED, _GUARDED = KernelState.AFFECTED, KernelState.GUARDED

#: What racks begin with. Most are affected, some never were; the guard comes with the updates below.
KERNELS = (
    Kernel("6.1.0-31-amd64", _DEBIAN_12, 32, _AFFECTED, Body.A),
    Kernel("6.12.41+deb13-amd64", _DEBIAN_13, 16, _AFFECTED, Body.B),
    Kernel("6.8.0-60-generic", _UBUNTU, 16, _AFFECTED, Body.A),
    Kernel("5.14.0-427.13.1.el9_4.x86_64", _EL9, 8, _AFFECTED, Body.A),
    Kernel("5.10.0-35-amd64", ("debian", "11", "Debian GNU/Linux 11 (bullseye)"), 6, KernelState.NOT_AFFECTED),
    Kernel("6.18.3-amd64", ("debian", "14", "Debian GNU/Linux forky/sid"), 4, KernelState.EQUIVALENT),
    Kernel("6.6.52-cloud-custom", _DEBIAN_12, 4, None),
    Kernel("6.1.0-56-guard1-amd64", _DEBIAN_12, 14, _GUARDED, Body.A),
)
#: What a host boots that was brought up to date, by its distribution's id and version.
UPDATES = {
    ("debian", "12"): Kernel("6.1.0-56-guard1-amd64", _DEBIAN_12, 0, _GUARDED, Body.A),
    ("debian", "13"): Kernel("6.12.90-guard1+deb13-amd64", _DEBIAN_13, 0, _GUARDED, Body.B),
    ("ubuntu", "24.04"): Kernel("6.8.0-92-guard1-generic", _UBUNTU, 0, _GUARDED, Body.A),
}
QEMUS = (
    Qemu("7.2.17", "Debian 1:7.2+dfsg-7+deb12u16", clears=False, share=44),
    Qemu("8.2.2", "Debian 1:8.2.2+ds-0ubuntu1.10", clears=False, share=18),
    Qemu("10.0.7", "Debian 1:10.0.7+ds-0+deb13u1", clears=False, share=14),
    Qemu("11.1.3", "Debian 1:11.1.3+ds-1", clears=True, share=24),
)


def _cpu(vendor: str, name: str, signature: tuple[int, int, int], microcode: str, cpus: int) -> Cpu:
    """`signature`: family, model, stepping."""
    return Cpu(
        vendor=vendor,
        model_name=name,
        family=signature[0],
        model=signature[1],
        stepping=signature[2],
        microcode=microcode,
        logical_cpus=cpus,
        virtualization="svm" if vendor == "AuthenticAMD" else "vmx",
        hypervisor=False,
    )


_SAFE_RET = Mitigations(
    lines={"spec_rstack_overflow": "Mitigation: Safe RET", "spectre_v2": "Mitigation: Retpolines; IBPB: conditional; STIBP: always-on"},
    classes=(MitigationClass.HEAVY_RETURN_TAX,),
)
_UNTRAINED = Mitigations(
    lines={"retbleed": "Mitigation: untrained return thunk; SMT enabled with STIBP protection"}, classes=(MitigationClass.HEAVY_RETURN_TAX,)
)
_LIGHT = Mitigations(lines={"spectre_v2": "Mitigation: Enhanced / Automatic IBRS"}, classes=(MitigationClass.LOW,))

PROCESSORS = (
    Processor(_cpu("AuthenticAMD", "AMD EPYC 7302 16-Core Processor", (23, 49, 0), "0x830107c", 64), _UNTRAINED, 22),
    Processor(_cpu("AuthenticAMD", "AMD EPYC 7543 32-Core Processor", (25, 1, 1), "0xa0011d5", 128), _SAFE_RET, 26),
    Processor(_cpu("AuthenticAMD", "AMD EPYC 9454 48-Core Processor", (25, 17, 1), "0xa101148", 192), _SAFE_RET, 18),
    Processor(_cpu("GenuineIntel", "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", (6, 106, 6), "0xd0003f5", 128), _LIGHT, 20),
    Processor(_cpu("GenuineIntel", "Intel(R) Xeon(R) Platinum 8480+", (6, 143, 8), "0x2b000603", 224), _LIGHT, 14),
)
