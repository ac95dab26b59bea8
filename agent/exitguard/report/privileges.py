"""What a privilege of the service buys: the evidence that is lost without it, and the drop-in that grants it.

The service runs without any; `exitguard doctor` shows this for what it could not see, and tests hold docs/operations.md to it.
"""

#: What is not known while a fact cannot be seen, by the path of the fact in the document.
_COSTS = {
    "domains.process.executable": (
        "which QEMU program a running guest executes; the link `propagated` of its chain and the rules DOM-PMU-EFFECTIVE and "
        "HOST-SOURCES may be unknown"
    ),
    "domains.process": (
        "the process of a running guest: libvirt's word alone tells its PMU, and DOM-PMU-EFFECTIVE and HOST-SOURCES may be unknown"
    ),
    "host.libvirt.listing": "the guests: every rule about them is left out, and HOST-SOURCES is unknown",
    "host.unmanaged": "guests that were started past libvirt; no rule fails by that, and none counts them",
    "host.kvm.device": "whether this KVM can clear enable_pmu at all; HOST-QEMU-PMU-CAP and chains go by the QEMU file alone",
    "host.kernel.boots_next": "which kernel the next boot starts; HOST-KERNEL-REBOOT goes by what is installed, and cannot say it",
    "host.kernel.symbols": "the strongest evidence about the running kernel; HOST-KERNEL-GUARD and every chain may be unknown",
    "host.identity.dmi_uuid": "nothing that a rule needs: the machine's UUID as its firmware has it",
}
#: Capabilities are named in an unlock as capabilities(7) names them.
_CAPABILITIES = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE")
SERVICE = "exitguard-audit.service"


def cost_of(topic: str) -> str | None:
    """What is not known while the fact at `topic` is not seen; None where the fact says that itself."""
    return _COSTS.get(topic)


def documented_costs() -> tuple[str, ...]:
    """Every sentence that the doctor may say, for the documentation to say too."""
    return tuple(_COSTS.values())


def drop_in_for(unlock: str) -> tuple[str, ...]:
    """The lines of a drop-in of the service that grant what `unlock` asks for; none where a drop-in is not what grants it."""
    capabilities = [name for name in _CAPABILITIES if name in unlock]
    if capabilities:
        # A capability that is not in the bounding set cannot be ambient: the service would not start.
        return ("[Service]", f"CapabilityBoundingSet={' '.join(capabilities)}", f"AmbientCapabilities={' '.join(capabilities)}")
    if "group kvm" in unlock:
        return ("[Service]", "SupplementaryGroups=kvm")
    return ()
