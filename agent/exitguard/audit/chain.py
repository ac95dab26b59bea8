"""The chain of one domain: from what was observed to links, a headline state and a next action, for every combination.

    defined -> running -> propagated -> kernel -> kept

A link that cannot be told is unknown, never yes and never no. `kvm.enable_pmu=N` clears kvm->arch.enable_pmu for every guest
of the host, whatever its definition says: it makes every link but `kernel` yes; and where that parameter cannot be read, a
definition with the PMU on proves nothing about the guest.

Laws (tests/audit/test_chain_laws.py proves these and more over all combinations):
- `effective` if and only if a guarded kernel runs it and every link holds, and nobody asked for the PMU;
- a domain that asked for the PMU, or may have, or is locked, never gets an action that changes it;
- what is concluded without knowing something stays true whatever that turns out to be.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from exitguard.model.domain import OwnerKind
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import CHANGES_DOMAIN, Chain, ChainState, Link, LinkName, NextAction, PmuSetting, Tri

YES, NO, UNKNOWN = Tri.YES, Tri.NO, Tri.UNKNOWN


class Run(StrEnum):
    """Whether the domain has a run that can have a PMU."""

    RUNNING = "running"
    SAVED = "saved"  # a managed save: the run it holds goes on at the next start
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ChainInput:
    """Everything that the chain of one domain depends on. Every combination is judged; see docs/verdicts.md."""

    #: Whether the chain is about this domain at all: x86 under KVM, no TDX.
    applicable: Tri
    #: Whether somebody asked for the PMU explicitly: by element, flavor or image.
    asked_on: Tri
    run: Run
    persistent: PmuSetting
    live: PmuSetting
    #: Whether kvm.enable_pmu=N clears the PMU of every guest.
    host_clears: Tri
    #: Whether the QEMU of this run clears kvm->arch.enable_pmu where the guest has its PMU off.
    qemu_clears: Tri
    kernel: KernelState
    #: Whether the owner will leave the definition as it is.
    keeps: Tri
    owner: OwnerKind = OwnerKind.LIBVIRT
    locked: bool = False
    #: True where this KVM has no KVM_CAP_PMU_CAPABILITY, so that no QEMU can clear it.
    kvm_cannot_clear: bool = False
    #: Whether the QEMU that the next start would run clears it.
    next_qemu_clears: Tri = UNKNOWN
    #: Whether a kernel that would help is installed and only needs booting.
    helpful_kernel_installed: bool = False
    #: What could not be seen, by link: shown with a link that is unknown.
    obstacles: tuple[tuple[LinkName, str], ...] = ()


@dataclass(frozen=True)
class Links:
    """The five links; `Chain.links` in the report adds the reasons."""

    defined: Tri
    running: Tri
    propagated: Tri
    kernel: Tri
    kept: Tri

    def items(self) -> tuple[tuple[LinkName, Tri], ...]:
        return (
            (LinkName.DEFINED, self.defined),
            (LinkName.RUNNING, self.running),
            (LinkName.PROPAGATED, self.propagated),
            (LinkName.KERNEL, self.kernel),
            (LinkName.KEPT, self.kept),
        )


@lru_cache(maxsize=4096)  # most domains of a host are alike
def judge_chain(given: ChainInput) -> Chain:
    """The links, the headline state, and the next action of one domain."""
    links = judge_links(given)
    state = judge_state(given, links)
    return Chain(
        state=state,
        reason=_state_reason(state, given, links),
        links=tuple(Link(name=name, holds=holds, reason=_link_reason(name, given, links)) for name, holds in links.items()),
        broken_links=tuple(name for name, holds in links.items() if holds is NO),
        next_action=judge_next_action(given, links, state),
    )


def judge_links(given: ChainInput) -> Links:
    """Each link on its own evidence."""
    running = _running(given)
    return Links(
        defined=_off(given.persistent, given.host_clears),
        running=running,
        propagated=_propagated(given, running),
        kernel=_kernel(given.kernel),
        kept=_kept(given.keeps, given.host_clears),
    )


def _off(setting: PmuSetting, host_clears: Tri) -> Tri:
    """Whether a guest with this setting has its PMU off, on a host that does or does not clear it for all."""
    if host_clears is YES or setting in (PmuSetting.OFF, PmuSetting.DEFAULT_OFF):
        return YES
    if setting in (PmuSetting.ON, PmuSetting.DEFAULT_ON):
        return host_clears  # NO, or UNKNOWN where the parameter could not be read
    return UNKNOWN


def _running(given: ChainInput) -> Tri:
    return UNKNOWN if given.run is Run.NONE else _off(given.live, given.host_clears)


def _propagated(given: ChainInput, running: Tri) -> Tri:
    if given.run is Run.NONE:
        return UNKNOWN
    if given.host_clears is YES:
        return YES
    if running is NO:
        return NO
    if given.qemu_clears is NO:
        return given.host_clears  # NO: neither QEMU nor the host clears it
    return running if given.qemu_clears is YES else UNKNOWN


def _kept(keeps: Tri, host_clears: Tri) -> Tri:
    if host_clears is YES:
        return YES
    return host_clears if keeps is NO else keeps  # NO, or UNKNOWN where the parameter could not be read


def _kernel(state: KernelState) -> Tri:
    match state:
        case KernelState.GUARDED | KernelState.EQUIVALENT | KernelState.NOT_AFFECTED:
            return YES
        case KernelState.AFFECTED:
            return NO
        case KernelState.UNKNOWN:
            return UNKNOWN


def judge_state(given: ChainInput, links: Links) -> ChainState:
    """The headline: the first state that applies, in the order of `ChainState`."""
    if given.applicable is NO:
        return ChainState.NOT_APPLICABLE
    certain = given.applicable is YES and given.run is not Run.UNKNOWN
    if certain and given.asked_on is YES and links.propagated is YES:
        return ChainState.OPT_OUT_VIOLATED
    if given.kernel in (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED):
        return ChainState.MOOT
    if given.run is Run.NONE:
        return ChainState.NOT_RUNNING
    if not certain or given.asked_on is UNKNOWN:
        return ChainState.UNKNOWN  # whatever the links say: it may be somebody's wish, or no guest of ours
    if given.asked_on is YES and links.running is NO:
        return ChainState.OPTED_OUT
    if links.running is NO and links.defined is YES:
        return ChainState.PENDING_RESTART
    if links.running is NO and links.defined is NO:
        return ChainState.ON
    if links.propagated is NO:
        return ChainState.NOT_PROPAGATED
    if links.kernel is NO:
        return ChainState.UNGUARDED
    if links.running is YES and NO in (links.defined, links.kept):
        return ChainState.REVERTS
    if all(holds is YES for _, holds in links.items()):
        return ChainState.EFFECTIVE
    return ChainState.UNKNOWN


def judge_next_action(given: ChainInput, links: Links, state: ChainState) -> NextAction:
    """The one step that would help most. Never one that changes a locked domain, or one that asked for its PMU."""
    action = _wanted_action(given, links, state)
    if action not in CHANGES_DOMAIN:
        return action
    if given.locked:
        return NextAction.NONE
    if given.asked_on is UNKNOWN:
        return NextAction.OBSERVE
    return action


def _wanted_action(given: ChainInput, links: Links, state: ChainState) -> NextAction:
    match state:
        case ChainState.NOT_APPLICABLE | ChainState.MOOT | ChainState.OPTED_OUT | ChainState.EFFECTIVE:
            return NextAction.NONE
        case ChainState.OPT_OUT_VIOLATED:
            return NextAction.ASK_OWNER
        case ChainState.UNKNOWN:
            return NextAction.OBSERVE
        case ChainState.NOT_RUNNING if given.asked_on is YES:
            return NextAction.NONE
        case _ if given.asked_on is YES:
            return NextAction.ASK_OWNER  # what runs is not what was asked for: only a person can say which is meant
        case ChainState.NOT_RUNNING:
            return _before_next_start(given, links)
        case ChainState.ON:
            return _set_off(given.owner)
        case ChainState.PENDING_RESTART:
            return NextAction.RESTART_GUEST
        case ChainState.NOT_PROPAGATED:
            return _propagate(given, links)
        case ChainState.UNGUARDED:
            return _change_kernel(given)
        case ChainState.REVERTS:
            return _set_off(given.owner)


def _set_off(owner: OwnerKind) -> NextAction:
    match owner:
        case OwnerKind.LIBVIRT:
            return NextAction.SET_PMU_OFF
        case OwnerKind.NOVA:
            return NextAction.SET_PMU_OFF_IN_NOVA
        case OwnerKind.OTHER | OwnerKind.UNKNOWN:
            return NextAction.ASK_OWNER


def _propagate(given: ChainInput, links: Links) -> NextAction:
    if links.running is NO:
        return NextAction.OBSERVE  # this run has its PMU on, and what the next start would have is not known
    if links.defined is NO:
        return _set_off(given.owner)
    if given.kvm_cannot_clear:
        return _change_kernel(given)
    match given.next_qemu_clears:
        case Tri.YES:
            return NextAction.RESTART_GUEST
        case Tri.NO:
            return NextAction.UPGRADE_QEMU
        case Tri.UNKNOWN:
            return NextAction.OBSERVE  # perhaps a restart is enough


def _before_next_start(given: ChainInput, links: Links) -> NextAction:
    if NO in (links.defined, links.kept):
        return _set_off(given.owner)
    if links.defined is UNKNOWN:
        return NextAction.OBSERVE
    return _change_kernel(given) if links.kernel is NO else NextAction.NONE


def _change_kernel(given: ChainInput) -> NextAction:
    return NextAction.BOOT_INSTALLED_KERNEL if given.helpful_kernel_installed else NextAction.INSTALL_GUARDED_KERNEL


_STATE_REASONS = {
    ChainState.NOT_APPLICABLE: "not a guest that this is about: not x86 under KVM, or under TDX",
    ChainState.OPT_OUT_VIOLATED: "the PMU was asked for explicitly, yet kvm->arch.enable_pmu is cleared",
    ChainState.NOT_RUNNING: "shut off, no managed save; its definition is judged for the next start",
    ChainState.OPTED_OUT: "the PMU was asked for explicitly, and the guest has it",
    ChainState.PENDING_RESTART: "defined with PMU off, but this run still has it on: off from the next cold start",
    ChainState.ON: "the PMU is on, by default, in the definition and in this run",
    ChainState.UNGUARDED: "PMU off reaches KVM, but the running kernel has no guard: it works for the PMU on every exit",
    ChainState.EFFECTIVE: "every link holds: exits of this guest do no PMU work",
}


def _state_reason(state: ChainState, given: ChainInput, links: Links) -> str:
    if state is ChainState.MOOT:
        return f"nothing to save: the running kernel is {given.kernel.value}"
    if state is ChainState.UNKNOWN:
        return _why_unknown(given, links)
    if state is ChainState.NOT_PROPAGATED:
        if links.running is NO:
            return "this run has its PMU on; what the next start would have cannot be told"
        if given.kvm_cannot_clear:
            return "PMU off, but this KVM cannot clear kvm->arch.enable_pmu for one guest, so the kernel works for the PMU all the same"
        return "PMU off, but this QEMU does not clear kvm->arch.enable_pmu, so the kernel works for the PMU all the same"
    if state is ChainState.REVERTS:
        return "off now, " + ("but the next start has it on by definition" if links.defined is NO else "but the owner will undo it")
    return _STATE_REASONS[state]


def _why_unknown(given: ChainInput, links: Links) -> str:
    """Which of the questions has no answer, and why."""
    unknown = [name for name, holds in links.items() if holds is UNKNOWN]
    if given.applicable is UNKNOWN:
        what = "whether this is a KVM guest"
    elif given.run is Run.UNKNOWN:
        what = "whether it runs"
    elif given.asked_on is UNKNOWN:
        what = "whether somebody asked for the PMU"
    else:
        what = ", ".join(name.value for name in unknown)
    why = next((text for name, text in given.obstacles if name in unknown), None)
    return f"cannot be told: {what}" + (f" ({why})" if why else "")


def _link_reason(name: LinkName, given: ChainInput, links: Links) -> str:
    obstacle = next((text for link, text in given.obstacles if link is name), None)
    holds = dict(links.items())[name]
    if name is not LinkName.KERNEL and given.host_clears is YES and holds is YES:
        return "kvm.enable_pmu=N clears the PMU of every guest of this host"
    if holds is UNKNOWN and obstacle is not None:
        return obstacle
    match name:
        case LinkName.DEFINED:
            return f"the next start has pmu {given.persistent.value}" + _parameter_note(given, holds)
        case LinkName.RUNNING if given.run is Run.NONE:
            return "there is no run"
        case LinkName.RUNNING:
            return f"this run has pmu {given.live.value}" + _parameter_note(given, holds)
        case LinkName.PROPAGATED if given.run is Run.NONE:
            return "there is no run"
        case LinkName.PROPAGATED if links.running is NO:
            return "this run has its PMU on"
        case LinkName.PROPAGATED if given.kvm_cannot_clear:
            return "this KVM has no KVM_PMU_CAP_DISABLE"
        case LinkName.PROPAGATED:
            return f"this run's QEMU clears kvm->arch.enable_pmu: {given.qemu_clears.value}"
        case LinkName.KERNEL:
            return f"the running kernel is {given.kernel.value}"
        case LinkName.KEPT:
            return f"{given.owner.value} owns the definition and keeps it: {given.keeps.value}"


def _parameter_note(given: ChainInput, holds: Tri) -> str:
    return "; whether kvm.enable_pmu=N overrides that cannot be seen" if holds is UNKNOWN and given.host_clears is UNKNOWN else ""
