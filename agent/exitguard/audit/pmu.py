"""What a definition, a run or a QEMU asks of the guest PMU. Pure."""

from exitguard.model.domain import CpuArgument, DomainDefinition
from exitguard.model.host import QemuBinary
from exitguard.model.pmu import PmuElement, PmuSetting, Tri
from exitguard.policy.lineage import find_qemu_lineage
from exitguard.policy.schema import Qemus

#: QEMU's `pmu` property is on by default for these CPU modes and models (target/i386/cpu.c), off for every named model.
_DEFAULT_ON_MODES = ("host-passthrough", "maximum")
_DEFAULT_OFF_MODES = ("host-model", "custom", None)
_DEFAULT_ON_MODELS = ("host", "max")


def setting_of_definition(definition: DomainDefinition) -> PmuSetting:
    """What QEMU would be told, an absent element resolved by the CPU mode."""
    if definition.overrides:
        return PmuSetting.UNKNOWN  # <qemu:commandline> may say otherwise than the element
    if definition.pmu is not PmuElement.ABSENT:
        return PmuSetting(definition.pmu.value)
    return setting_of_cpu_mode(definition.cpu_mode)


def setting_of_cpu_mode(cpu_mode: str | None) -> PmuSetting:
    """What QEMU does of its own accord, without an element."""
    if cpu_mode in _DEFAULT_ON_MODES:
        return PmuSetting.DEFAULT_ON
    return PmuSetting.DEFAULT_OFF if cpu_mode in _DEFAULT_OFF_MODES else PmuSetting.UNKNOWN


def setting_of_process(cpu: CpuArgument) -> PmuSetting:
    """What a running QEMU was told by its own `-cpu`."""
    if cpu.pmu is not PmuElement.ABSENT:
        return PmuSetting(cpu.pmu.value)
    return PmuSetting.DEFAULT_ON if cpu.model in _DEFAULT_ON_MODELS else PmuSetting.DEFAULT_OFF


def clears_enable_pmu(binary: QemuBinary, qemus: Qemus) -> tuple[Tri, str]:
    """Whether this QEMU clears kvm->arch.enable_pmu for pmu=off, and why.

    The capability string decides where it is there. A missing one is a no only for versions that are known not to do it:
    a downstream build may have done it in another way.
    """
    if binary.capability_string.reason is not None:
        return Tri.UNKNOWN, f"{binary.path} cannot be read: {binary.capability_string.reason}"
    if binary.capability_string.value:
        return Tri.YES, f"{binary.path} sets KVM_PMU_CAP_DISABLE"
    if binary.version.value is None:
        return Tri.UNKNOWN, f"{binary.path} has no KVM_PMU_CAP_DISABLE message, and {binary.version.reason}"
    version = f"{binary.version.value.version} {binary.version.value.package}".strip()
    lineage = find_qemu_lineage(qemus, binary.version.value.version, binary.version.value.package)
    if lineage is None:
        return Tri.UNKNOWN, f"{binary.path} ({version}) has no KVM_PMU_CAP_DISABLE message, and this build is not a known one"
    if lineage.clears_enable_pmu:
        return Tri.UNKNOWN, f"{binary.path} ({version}) should set KVM_PMU_CAP_DISABLE, but holds no such message"
    return Tri.NO, f"{binary.path} ({version}) never sets KVM_PMU_CAP_DISABLE: {lineage.note}"
