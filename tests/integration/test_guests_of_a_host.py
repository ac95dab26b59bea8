"""What remedies for a whole host see of its guests, with a real libvirtd: saved runs, who holds KVM guests, a daemon that hangs."""

import fcntl
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from domain_documents import guest_xml, uuid_of
from libvirt_lab import LibvirtLab

pytestmark = pytest.mark.integration

_PATH = Path(__file__).resolve().parents[2] / "playbooks/module_utils/exitguard_guests.py"
_KVM_CREATE_VM = 0xAE01  # <linux/kvm.h>


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("exitguard_guests", _PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


guests = load()


def test_saved_run_counts_although_its_definition_says_otherwise(lab: LibvirtLab) -> None:
    lab.define(guest_xml("saved", pmu="on"), guest_xml("running"), guest_xml("off", pmu="off"))
    lab.start("saved", "running")
    lab.save("saved")
    lab.define(guest_xml("saved", pmu="off").replace("machine='q35'", "machine='pc'"))
    lab.start_transient(guest_xml("transient", pmu="on"))
    seen = {guest.name: guest for guest in guests.read_guests(lab.uri, 60)}
    assert seen["saved"].asks_for_pmu == ("<pmu state='on'/> in its managed save",)
    assert not seen["saved"].off_everywhere
    kinds = {machine.rpartition("-")[0] for _, machine in seen["saved"].machines}
    assert kinds == {"pc-q35", "pc-i440fx"}
    assert seen["transient"].asks_for_pmu == ("<pmu state='on'/> in its run",)
    assert (seen["running"].asks_for_pmu, seen["off"].asks_for_pmu) == ((), ())
    assert seen["off"].off_everywhere
    assert {guest.name for guest in seen.values() if guest.active} == {"running", "transient"}


def test_daemon_that_hangs_is_given_up(lab: LibvirtLab) -> None:
    with lab.stopped_daemon(), pytest.raises(guests.GuestsUnknownError, match="has not answered within 1 seconds"):
        guests.read_guests(lab.uri, 1)


@pytest.mark.usefixtures("kvm")
def test_kvm_guest_of_libvirt_is_told_from_one_outside_it(lab: LibvirtLab) -> None:
    lab.define(guest_xml("of-libvirt", kind="kvm", mode="custom"))
    lab.start("of-libvirt")
    seen = guests.read_guests(lab.uri, 60)
    pid = lab.pid(uuid_of("of-libvirt"))
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    guest = fcntl.ioctl(device, _KVM_CREATE_VM, 0)
    try:
        strangers = guests.read_unmanaged(Path("/"), seen)
        assert any(name.endswith(f"({os.getpid()})") for name in strangers)
        assert not any(name.endswith(f"({pid})") for name in strangers)
        # Without its domain, the very same process is a stranger.
        strangers = guests.read_unmanaged(Path("/"), [other for other in seen if other.name != "of-libvirt"])
        assert any(name.endswith(f"({pid})") for name in strangers)
    finally:
        os.close(guest)
        os.close(device)
