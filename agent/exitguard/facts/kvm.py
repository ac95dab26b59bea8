"""The KVM module and its switches, from /sys/module, and on this machine from /dev/kvm itself."""

import errno
import fcntl
import os
import re
import stat

from exitguard.facts.elf_notes import KERNEL_NOTES, read_build_id
from exitguard.facts.tree import HostTree, one_line, unseen_like, why
from exitguard.model.host import KvmDevice, KvmFacts, KvmModule
from exitguard.model.record import Observed, seen, unseen

_MODULES = "/sys/module"
_KVM = f"{_MODULES}/kvm"
_NOTES = f"{_KVM}/notes/.note.gnu.build-id"
_DEVICE = "/dev/kvm"
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_VENDOR = re.compile(r"kvm_[a-z0-9_]{1,60}")
_MAX_PARAMETERS = 512
_SWITCH = {"Y": True, "1": True, "N": False, "0": False}  # module parameters of type bool (kernel/params.c)
# <linux/kvm.h>: _IO(KVMIO, nr) with KVMIO 0xAE.
_KVM_GET_API_VERSION = 0xAE00
_KVM_CHECK_EXTENSION = 0xAE03
_KVM_CAP_PMU_CAPABILITY = 212
_DEVICE_UNLOCK = "membership in group kvm (or root)"


def read_kvm(tree: HostTree) -> KvmFacts:
    """How KVM is present, its parameters, its build, and what /dev/kvm answers."""
    module = _read_module(tree)
    parameters = _read_parameters(tree, module)
    return KvmFacts(
        module=module,
        parameters=parameters,
        enable_pmu=_read_switch(tree, module, "enable_pmu", when_absent=True),
        enable_mediated_pmu=_read_switch(tree, module, "enable_mediated_pmu", when_absent=False),
        build_id=_read_build_id(tree, module),
        device=_read_device(tree),
    )


def parse_switch(source: str, text: str) -> Observed[bool]:
    """The value of a module parameter of type bool."""
    if text not in _SWITCH:
        return unseen(source, f"says {one_line(text, limit_characters=20)!r}, expected Y, N, 1 or 0")
    return seen(source, _SWITCH[text])


def _read_module(tree: HostTree) -> Observed[KvmModule]:
    loaded = tree.names(_MODULES)
    if loaded.value is None:
        return unseen_like(loaded)
    if "kvm" not in loaded.value:
        return unseen(_MODULES, "KVM is not loaded" if loaded.value else "empty: sysfs is not mounted there")
    vendors = tuple(name for name in loaded.value if _VENDOR.fullmatch(name) and tree.names(f"{_MODULES}/{name}").known)
    # Only a module that was loaded has a state (kernel/module/sysfs.c); a built-in one has its parameters here and no more.
    return seen(_KVM, KvmModule(form="module" if tree.exists(f"{_KVM}/initstate") else "built_in", vendor_modules=vendors))


def _read_switch(tree: HostTree, module: Observed[KvmModule], name: str, *, when_absent: bool) -> Observed[bool]:
    """A parameter, or what a kernel without it does: before 5.17 every guest may have a PMU, and none was ever mediated."""
    path = f"{_KVM}/parameters/{name}"
    text = tree.read_text(path)
    if text.value is not None:
        return parse_switch(path, text.value)
    if module.value is None:
        return unseen_like(module)
    listed = tree.names(f"{_KVM}/parameters")
    if listed.value is None or name in listed.value:
        return unseen_like(text)
    return seen(f"{path} (this kernel has no such parameter)", when_absent)


def _read_parameters(tree: HostTree, module: Observed[KvmModule]) -> Observed[dict[str, str]]:
    if module.value is None:
        return unseen_like(module)
    parameters: dict[str, str] = {}
    for name in ("kvm", *module.value.vendor_modules):
        folder = f"{_MODULES}/{name}/parameters"
        files = tree.names(folder)
        if files.value is None:
            if name == "kvm":
                return unseen_like(files)
            continue  # a vendor module without parameters has no such folder
        for file in files.value:
            if not _NAME.fullmatch(file):
                continue
            if len(parameters) == _MAX_PARAMETERS:
                return unseen(folder, f"more than {_MAX_PARAMETERS} parameters, which is more than KVM can rightly have")
            text = tree.read_text(f"{folder}/{file}")
            if text.value is not None:  # some are for root only, and some for nobody
                parameters[f"{name}.{file}"] = one_line(text.value)
    return seen(f"{_MODULES}/{{{','.join(('kvm', *module.value.vendor_modules))}}}/parameters", parameters)


def _read_build_id(tree: HostTree, module: Observed[KvmModule]) -> Observed[str]:
    if module.value is None:
        return unseen_like(module)
    # KVM that is built into the kernel is part of the kernel's image, and so is recognised by that.
    return read_build_id(tree, KERNEL_NOTES if module.value.form == "built_in" else _NOTES)


def _read_device(tree: HostTree) -> Observed[KvmDevice]:
    if not tree.is_this_machine:
        return unseen(_DEVICE, "a device of another host cannot be asked through its file tree")
    # Opening the node of a driver that is not there would load the module (devname:kvm); reading must not change the host.
    if not tree.exists("/sys/class/misc/kvm"):
        return unseen(_DEVICE, "no KVM driver is registered: its vendor module is not loaded, or the machine offers no virtualisation")
    try:
        return seen(_DEVICE, _ask_device())
    except PermissionError as error:
        return unseen(_DEVICE, why(error), unlock=_DEVICE_UNLOCK)
    except OSError as error:
        return unseen(_DEVICE, why(error))


def _ask_device() -> KvmDevice:
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENODEV, "not a character device")
        return KvmDevice(
            api_version=fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0),
            pmu_capability=fcntl.ioctl(descriptor, _KVM_CHECK_EXTENSION, _KVM_CAP_PMU_CAPABILITY),
        )
    finally:
        os.close(descriptor)
