"""A KVM guest of the test machine: it runs nothing, and is a real one all the same."""

from audit_service import AuditService
from machine import Machine

GUEST_UUID = "5f1c9f6e-9d4b-4f0e-8a4b-1f7f2b1c0d11"
DEFINE = "virsh -q define /root/guest.xml"
START = "virsh -q start guest --paused"
DESTROY = "virsh -q destroy guest"
UNDEFINE = "virsh -q undefine guest"
_XML = f"""<domain type='kvm'><name>guest</name><uuid>{GUEST_UUID}</uuid><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='custom' check='none'><model>kvm64</model></cpu>
<devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
"""


def write_guest(machine: Machine) -> None:
    """Its definition, where DEFINE expects it."""
    machine.write("/root/guest.xml", _XML)


def wait_for_guest(service: AuditService, mark: str) -> None:
    """Return when the guest is judged as running: its PMU is off by default, and this machine's kernel has no guard."""
    service.wait_for_chain(mark, GUEST_UUID, "unguarded", "DOM-PMU-EFFECTIVE")
