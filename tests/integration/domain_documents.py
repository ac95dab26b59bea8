"""Domain XML of guests that cost almost nothing: 16 MiB, no disk, no network, no display."""

from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5
from xml.sax.saxutils import escape

from libvirt_lab import QEMU

_CPU = {
    None: "",
    "custom": "<cpu mode='custom' check='none'><model>{model}</model></cpu>",
    "host-model": "<cpu mode='host-model' check='none'/>",
    "host-passthrough": "<cpu mode='host-passthrough' check='none'/>",
    "maximum": "<cpu mode='maximum' check='none'/>",
}
_PMU = {"absent": "", "off": "<pmu state='off'/>", "on": "<pmu state='on'/>"}


def uuid_of(name: str) -> str:
    """The uuid that guest_xml() gives a guest of this name."""
    return str(uuid5(NAMESPACE_DNS, name))


def guest_xml(
    name: str,
    *,
    kind: str = "qemu",
    mode: str | None = None,
    pmu: str = "absent",
    emulator: Path = QEMU,
    metadata: str = "",
    extra: str = "",
) -> str:
    """A guest under KVM (`kind="kvm"`) or TCG; `pmu` is the state of its element, `extra` is put before the end as it is."""
    model = "kvm64" if kind == "kvm" else "qemu64"
    return f"""<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{escape(name)}</name><uuid>{uuid_of(name)}</uuid><memory>16384</memory><metadata>{metadata}</metadata>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features>{_PMU[pmu]}</features>{_CPU[mode].format(model=model)}
<devices><emulator>{emulator}</emulator><controller type='usb' model='none'/><memballoon model='none'/></devices>{extra}</domain>"""


NOVA_METADATA = """<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
<nova:package version="26.2.2"/><nova:name>web</nova:name><nova:creationTime>2026-11-22 15:39:25</nova:creationTime>
<nova:flavor name="m1.tiny"><nova:memory>16</nova:memory></nova:flavor></nova:instance>"""
LOCKED_METADATA = "<exitguard:locked xmlns:exitguard='urn:exitguard:domain:1'/>"
UNKNOWN_METADATA = "<stack:vm xmlns:stack='https://example.org/our-own-cloud'/>"
