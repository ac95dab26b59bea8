"""Start nova-compute with cpu_mode = host-passthrough on machines that cannot have it: libvirt is given `maximum` instead.

QEMU switches a PMU on by itself for these two modes only. The first takes KVM and a processor that the tests cannot count on; the second
works everywhere, by TCG. Nova has no setting for it, so the word is changed where Nova writes the XML, and nothing else of Nova is.
"""

import sys

from lxml import etree
from nova.cmd.compute import main
from nova.virt.libvirt.config import LibvirtConfigGuestCPU

as_nova_writes_it = LibvirtConfigGuestCPU.format_dom


def as_tcg_takes_it(cpu: LibvirtConfigGuestCPU) -> "etree._Element":
    element = as_nova_writes_it(cpu)
    if element.get("mode") == "host-passthrough":
        element.set("mode", "maximum")
    return element


LibvirtConfigGuestCPU.format_dom = as_tcg_takes_it

if __name__ == "__main__":
    sys.exit(main())
