"""A KVM guest of the test machine: it runs nothing, and is a real one all the same."""

from audit_service import AuditService
from machine import Machine

GUEST_UUID = "5f1c9f6e-9d4b-4f0e-8a4b-1f7f2b1c0d11"
DEFINE = "virsh -q define /root/guest.xml"
START = "virsh -q start guest --paused"
DESTROY = "virsh -q destroy guest"
UNDEFINE = "virsh -q undefine guest"
#: Its owner shows this machine's own processor to it, and says nothing of a PMU: QEMU then gives it one.
WEB_UUID = "7d0b2c1a-4e5f-4a6b-9c8d-0e1f2a3b4c5d"
START_WEB = "virsh -q define /root/web.xml && virsh -q start web --paused"
REMOVE_WEB = "virsh -q destroy web; virsh -q undefine web"
_XML = f"""<domain type='kvm'><name>guest</name><uuid>{GUEST_UUID}</uuid><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='custom' check='none'><model>kvm64</model></cpu>
<devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
"""
_WEB_XML = (
    _XML.replace("<name>guest<", "<name>web<")
    .replace(GUEST_UUID, WEB_UUID)
    .replace("<cpu mode='custom' check='none'><model>kvm64</model></cpu>", "<cpu mode='host-passthrough'/>")
)


def write_web(machine: Machine) -> None:
    """Its definition, where START_WEB expects it."""
    machine.write("/root/web.xml", _WEB_XML)


def write_guest(machine: Machine) -> None:
    """Its definition, where DEFINE expects it."""
    machine.write("/root/guest.xml", _XML)


def wait_for_guest(service: AuditService, mark: str) -> None:
    """Return when the guest is judged as running: its PMU is off by default, and this machine's kernel has no guard."""
    service.wait_for_chain(mark, GUEST_UUID, "unguarded", "DOM-PMU-EFFECTIVE")
