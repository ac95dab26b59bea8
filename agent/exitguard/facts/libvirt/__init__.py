"""What libvirt tells: its domains, their counters and their lifecycle events. The only package that imports libvirt."""

from exitguard.facts.libvirt.conversation import RawDomain
from exitguard.facts.libvirt.domains import DEFAULT_URI, LibvirtReading, read_libvirt, target_of
from exitguard.facts.libvirt.patience import BlockedCalls, Patience

__all__ = ["DEFAULT_URI", "BlockedCalls", "LibvirtReading", "Patience", "RawDomain", "read_libvirt", "target_of"]
