"""The cells of the chain lab: {stock, guarded} x {an older, a newer QEMU} x {host, EPYC} x {PMU on, off, not said}."""

from dataclasses import dataclass
from uuid import UUID, uuid5

from chain_qemus import RELEASES

#: Variants of scripts/lab_kernels.sh. The processor of the lab has no PMU: KVM is told of one, so that enable_pmu can be both.
VARIANTS = ("stock-pmu", "guarded-pmu")
#: mitigations= of the host's kernel.
MITIGATIONS = "off"
#: By -cpu model, the mode of the libvirt definition that makes libvirt write it.
_MODES = {"host": "host-passthrough", "EPYC": "custom"}
_PMUS = ("on", "off", None)
_NAMESPACE = UUID("8a0f4f6e-6d53-4d5c-9d3f-0a6f2f4b6a11")
_DOMAIN = """<domain type='kvm'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  {features}{cpu}
  <devices><emulator>/qemu/{qemu}/usr/bin/qemu-system-x86_64</emulator></devices>
</domain>
"""


@dataclass(frozen=True)
class Guest:
    """One guest; `qemu` is the Debian suite that its QEMU is from, `pmu` None where nothing is said of one."""

    qemu: str
    model: str
    pmu: str | None

    @property
    def cpu(self) -> str:
        """QEMU's -cpu argument."""
        return self.model if self.pmu is None else f"{self.model},pmu={self.pmu}"

    @property
    def name(self) -> str:
        return f"{self.qemu}-{self.model}-{self.pmu or 'absent'}"

    @property
    def uuid(self) -> str:
        return str(uuid5(_NAMESPACE, self.name))

    @property
    def definition(self) -> str:
        """The libvirt definition that says the same: libvirt is not in this lab."""
        features = "" if self.pmu is None else f"<features><pmu state='{self.pmu}'/></features>\n  "
        model = "" if self.model == "host" else f"<model>{self.model}</model>"
        cpu = f"<cpu mode='{_MODES[self.model]}'>{model}</cpu>"
        return _DOMAIN.format(name=self.name, uuid=self.uuid, features=features, cpu=cpu, qemu=self.qemu)


#: What one host runs, one after the other.
GUESTS = tuple(Guest(release.suite, model, pmu) for release in RELEASES for model in _MODES for pmu in _PMUS)
