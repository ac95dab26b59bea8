"""What keeps the probe from measuring."""

import errno

from exitguard.facts.tree import why

_DEVICE_UNLOCK = "run it as root, or as a member of group kvm"


class CannotMeasureError(Exception):
    """Nothing can be measured here, or nothing that would stand; `next_step` says what would mend it."""

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.next_step = next_step


def refused_by_device(error: OSError) -> CannotMeasureError:
    """/dev/kvm could not be opened."""
    if isinstance(error, PermissionError):
        return CannotMeasureError("/dev/kvm may not be opened by this user: permission denied", _DEVICE_UNLOCK)
    if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        return CannotMeasureError(
            "/dev/kvm is not there: this kernel offers no virtual machines",
            "load KVM (modprobe kvm_amd or kvm_intel), with virtualisation enabled in the firmware",
        )
    return CannotMeasureError(f"/dev/kvm could not be opened: {why(error)}", "see `exitguard doctor` for what this host shows of KVM")


def refused_by_kvm(step: str, error: OSError) -> CannotMeasureError:
    """KVM refused one step of making or running the virtual machine."""
    if error.errno == errno.EBUSY:
        return CannotMeasureError(
            f"{step}: {why(error)}; another hypervisor may hold the processor's virtualisation", "end that hypervisor, or measure elsewhere"
        )
    return CannotMeasureError(
        f"KVM refused: {step}: {why(error)}", "measure on a host whose KVM runs guests; `exitguard doctor` names what is missing"
    )
