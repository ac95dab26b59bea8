"""The words for the guest PMU: what a definition asks for, and the state of the chain that turns it into a saving."""

from enum import StrEnum

from exitguard.model.record import Record


class PmuElement(StrEnum):
    """What `<features><pmu state=/>` says; `<pmu/>` means on (libvirt formatdomain, since 1.2.12)."""

    ON = "on"
    OFF = "off"
    ABSENT = "absent"


class PmuSetting(StrEnum):
    """What a definition or a run asks of QEMU, an absent element resolved by the CPU mode."""

    OFF = "off"
    ON = "on"
    DEFAULT_OFF = "default_off"
    DEFAULT_ON = "default_on"
    UNKNOWN = "unknown"
    NONE = "none"  # there is no such definition, or no such run


class Tri(StrEnum):
    """yes, no, or not known."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class LinkName(StrEnum):
    """The links of a domain's chain, in the order in which they take effect."""

    DEFINED = "defined"  # the next start has PMU off
    RUNNING = "running"  # this run has PMU off; a managed save counts as the run it holds
    PROPAGATED = "propagated"  # kvm->arch.enable_pmu is cleared
    KERNEL = "kernel"  # the running kernel has the guard
    KEPT = "kept"  # the owner of the definition will not undo it


class Link(Record):
    """One link of one domain, and why it is so."""

    name: LinkName
    holds: Tri
    reason: str


class ChainState(StrEnum):
    """The headline of one domain; the first that applies, in this order."""

    NOT_APPLICABLE = "not_applicable"
    OPT_OUT_VIOLATED = "opt_out_violated"
    MOOT = "moot"
    NOT_RUNNING = "not_running"
    OPTED_OUT = "opted_out"
    PENDING_RESTART = "pending_restart"
    ON = "on"
    NOT_PROPAGATED = "not_propagated"
    UNGUARDED = "unguarded"
    REVERTS = "reverts"
    UNKNOWN = "unknown"
    EFFECTIVE = "effective"


class NextAction(StrEnum):
    """The one next step that would help, and whose it is."""

    NONE = "none"
    OBSERVE = "observe"  # something could not be seen: `exitguard doctor` says what would show it
    ASK_OWNER = "ask_owner"  # a person or another manager owns the definition, or asked for the PMU
    SET_PMU_OFF = "set_pmu_off"  # libvirt owns the definition: the domain_pmu_off remedy
    SET_PMU_OFF_IN_NOVA = "set_pmu_off_in_nova"  # Nova owns it: flavor or image property
    RESTART_GUEST = "restart_guest"  # a cold start, when the owner does one
    UPGRADE_QEMU = "upgrade_qemu"
    INSTALL_GUARDED_KERNEL = "install_guarded_kernel"
    BOOT_INSTALLED_KERNEL = "boot_installed_kernel"


#: Actions that change a domain or its definition. An opted-out or locked domain never gets one.
CHANGES_DOMAIN = frozenset({NextAction.SET_PMU_OFF, NextAction.SET_PMU_OFF_IN_NOVA, NextAction.RESTART_GUEST})


class Chain(Record):
    """The judgement of one domain. `broken_links` are exactly the links that do not hold, in chain order."""

    state: ChainState
    reason: str
    links: tuple[Link, ...]
    broken_links: tuple[LinkName, ...]
    next_action: NextAction
