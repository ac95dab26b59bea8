"""Domain XML in the shape that OpenStack Nova gives it: about 3 KB, one instance, made up from its number."""

from uuid import UUID, uuid5

PREFIX = "exitguard-bench-"
_NAMESPACE = UUID("6f0f7d0e-52c4-4b3e-9c58-7f5f8f4f1a10")

# Written after the schema of https://libvirt.org/formatdomain.html; the metadata after nova/virt/libvirt/config.py.
_TEMPLATE = """\
<domain type='{type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata>
    <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
      <nova:package version='26.2.2'/>
      <nova:name>customer-web-{number}</nova:name>
      <nova:creationTime>2026-03-17 09:41:{seconds:02d}</nova:creationTime>
      <nova:flavor name='m1.small'>
        <nova:memory>2048</nova:memory>
        <nova:disk>20</nova:disk>
        <nova:swap>0</nova:swap>
        <nova:ephemeral>0</nova:ephemeral>
        <nova:vcpus>1</nova:vcpus>
      </nova:flavor>
      <nova:owner>
        <nova:user uuid='{user}'>operations-{number}</nova:user>
        <nova:project uuid='{project}'>customer-{number}</nova:project>
      </nova:owner>
      <nova:root type='image' uuid='{image}'/>
      <nova:ports>
        <nova:port uuid='{port}'>
          <nova:ip type='fixed' address='10.{octet_2}.{octet_3}.17' ipVersion='4'/>
        </nova:port>
      </nova:ports>
    </nova:instance>
  </metadata>
  <memory unit='KiB'>{memory_kib}</memory>
  <currentMemory unit='KiB'>{memory_kib}</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <cputune>
    <shares>1024</shares>
  </cputune>
  <sysinfo type='smbios'>
    <system>
      <entry name='manufacturer'>OpenStack Foundation</entry>
      <entry name='product'>OpenStack Nova</entry>
      <entry name='version'>26.2.2</entry>
      <entry name='serial'>{uuid}</entry>
      <entry name='uuid'>{uuid}</entry>
      <entry name='family'>Virtual Machine</entry>
    </system>
  </sysinfo>
  <os>
    <type arch='x86_64'{machine}>hvm</type>
    <boot dev='hd'/>
    <smbios mode='sysinfo'/>
  </os>
  <features>
    <acpi/>
    <apic/>{pmu}
    <vmcoreinfo state='on'/>
  </features>
  <cpu mode='custom' match='exact' check='none'>
    <model fallback='allow'>kvm64</model>
    <topology sockets='1' dies='1' cores='1' threads='1'/>
  </cpu>
  <clock offset='utc'>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='hpet' present='no'/>
  </clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>{disk}
    <serial type='pty'>
      <target port='0'/>
    </serial>
    <console type='pty'>
      <target type='serial' port='0'/>
    </console>
    <input type='tablet' bus='usb'/>
    <video>
      <model type='vga' vram='16384' heads='1' primary='yes'/>
    </video>
    <memballoon model='virtio'>
      <stats period='10'/>
    </memballoon>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
  </devices>
</domain>
"""

_DISK = """
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='writeback' discard='unmap'/>
      <source protocol='rbd' name='vms/{uuid}_disk'>
        <host name='192.0.2.11' port='6789'/>
        <host name='192.0.2.12' port='6789'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='fa:16:3e:{octet_1:02x}:{octet_2:02x}:{octet_3:02x}'/>
      <source bridge='qbr{port:.11}'/>
      <target dev='tap{port:.11}'/>
      <model type='virtio'/>
      <mtu size='1450'/>
    </interface>"""

#: What instances ask for, in turn: nothing, off, on.
_PMU = ("", "\n    <pmu state='off'/>", "\n    <pmu state='on'/>")


def domain_xml(number: int, *, type: str, emulator: str = "/usr/bin/qemu-system-x86_64", startable: bool = False) -> str:  # noqa: A002
    """The XML of instance `number`. `startable`: 16 MiB, without disk and network, so that it starts on any machine."""
    values = {
        "type": type,
        "name": f"{PREFIX}{number:05d}",
        "uuid": _uuid("instance", number),
        "number": number,
        "seconds": number % 60,
        "user": _uuid("user", number % 40).replace("-", ""),
        "project": _uuid("project", number % 40).replace("-", ""),
        "image": _uuid("image", number % 8),
        "port": _uuid("port", number),
        "octet_1": number >> 16 & 255,
        "octet_2": number >> 8 & 255,
        "octet_3": number & 255,
        "memory_kib": 16 << 10 if startable else 2 << 20,
        "machine": " machine='pc'" if type != "test" else "",
        "pmu": _PMU[number % len(_PMU)],
        "emulator": emulator,
    }
    disk = "" if startable else _DISK.format(**values)
    return _TEMPLATE.format(**values, disk=disk)


def _uuid(kind: str, number: int) -> str:
    return str(uuid5(_NAMESPACE, f"{kind} {number}"))
