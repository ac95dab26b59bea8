"""What to do next over many hosts: first what is not known, then what is worth most.

A host that is not compliant is in at least one step: by the next action of its guests, by the remedy of a rule that fails, or as one
to be looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, SubjectKind, Verdict
from exitguard.model.ledger import GuardSaving
from exitguard.model.pmu import LinkName, NextAction
from exitguard.model.rates import PerSecond, Rates
from exitguard.report.amounts import span
from exitguard.report.page import counted
from exitguard.report.result import HostResult
from exitguard.report.words import meaning

#: Of the hosts that a step or a problem names.
MOST_NAMES = 8
#: In which order steps of the same worth are done: a link takes effect only after the ones before it.
ACTION_ORDER = (
    NextAction.BOOT_INSTALLED_KERNEL,
    NextAction.INSTALL_GUARDED_KERNEL,
    NextAction.UPGRADE_QEMU,
    NextAction.SET_PMU_OFF,
    NextAction.SET_PMU_OFF_IN_NOVA,
    NextAction.RESTART_GUEST,
    NextAction.ASK_OWNER,
    NextAction.OBSERVE,
)
#: The link of a run that each step mends: what is defined takes effect by running.
_LINK_OF = {
    NextAction.BOOT_INSTALLED_KERNEL: LinkName.KERNEL,
    NextAction.INSTALL_GUARDED_KERNEL: LinkName.KERNEL,
    NextAction.UPGRADE_QEMU: LinkName.PROPAGATED,
    NextAction.SET_PMU_OFF: LinkName.RUNNING,
    NextAction.SET_PMU_OFF_IN_NOVA: LinkName.RUNNING,
    NextAction.RESTART_GUEST: LinkName.RUNNING,
}
#: What a remedy of the policy does. A host without guests needs its kernel too.
_ACTION_OF = {
    "kernel_guard": NextAction.INSTALL_GUARDED_KERNEL,
    "qemu_pmu_cap": NextAction.UPGRADE_QEMU,
    "domain_pmu_off": NextAction.SET_PMU_OFF,
    "nova_flavor_default": NextAction.SET_PMU_OFF_IN_NOVA,
    "nova_instance_pmu_off": NextAction.SET_PMU_OFF_IN_NOVA,
}
_PLAN = "exitguard plan"
_RUN = {
    NextAction.BOOT_INSTALLED_KERNEL: _PLAN,
    NextAction.INSTALL_GUARDED_KERNEL: _PLAN,
    NextAction.UPGRADE_QEMU: _PLAN,
    NextAction.SET_PMU_OFF: _PLAN,
    NextAction.SET_PMU_OFF_IN_NOVA: "exitguard plan --cloud CLOUD",
    NextAction.ASK_OWNER: "exitguard explain DOMAIN",
    NextAction.OBSERVE: "exitguard doctor",
}
_IN_DOUBT = (Verdict.FAIL, Verdict.UNKNOWN, Verdict.ERROR)


@dataclass(slots=True)
class Step:
    """What to do next, on how many hosts, and what it would release at once; None: that is not quantified anywhere."""

    sentence: str
    #: What shows more on such a host, or begins it; empty where nothing does.
    command: str = ""
    #: None: it is no step of a chain.
    action: NextAction | None = None
    #: Those that wait for this step first.
    domains: int = 0
    host_count: int = 0
    hosts: list[str] = field(default_factory=list)
    #: Cycles a second that this link alone holds back first.
    available: PerSecond | None = None
    #: Exits a second that would skip the work and have no cost in cycles.
    unquantified_skips: float = 0.0
    #: Another step mends the same link on some host, and what that releases is told there.
    told_elsewhere: bool = False
    #: Whether any of its hosts has a ledger.
    accounted: bool = False

    def add(self, host: str, domains: int = 0) -> None:
        """One more host."""
        self.domains += domains
        self.host_count += 1
        if len(self.hosts) < MOST_NAMES:
            self.hosts.append(host)

    @property
    def worth(self) -> str:
        """What it would release at once, in a sentence; empty for a step that is no step of a chain."""
        if self.action is None:
            return ""
        parts = []
        if self.available is not None:
            parts.append(f"Releases {span(self.available)} cycles a second.")
        if self.unquantified_skips:
            parts.append(f"Up to {self.unquantified_skips:,.0f} exits a second wait for it, whose cost is not known in cycles.")
        if not parts and self.told_elsewhere:
            return "What it releases is told with the other step for the same link."
        if not parts and self.accounted:
            return "By the ledgers no exit waits for it first."
        return " ".join(parts) or "What it releases is not known: no ledger tells."

    @property
    def where(self) -> str:
        """On how many hosts, and for how many domains, in words; names follow."""
        waiting = f", {counted(self.domains, 'domain waits', 'domains wait')} for it first" if self.domains else ""
        return f"On {counted(self.host_count, 'host')}{waiting}"


class Steps:
    """Add hosts, then read."""

    def __init__(self) -> None:
        self._actions: dict[NextAction, Step] = {}
        self._again = Step(
            "Audit again: what is told of these hosts is more than a day old, and does not speak for them now.", "exitguard audit"
        )
        self._broken = Step(
            "See what broke: a check that breaks is no verdict on its host, but a fault of exitguard or of a waiver file.",
            "exitguard report --only error",
        )
        self._others = Step(
            "Look at these hosts: something fails or is not known there that none of the other steps mends.", "exitguard report"
        )

    def add(self, result: HostResult) -> None:
        """One more host."""
        if result.stale:
            self._again.add(result.name)
        if result.exit_code == EXIT_ERROR:
            self._broken.add(result.name)
        actions = _actions_of(result)
        rates = result.report.savings.now if result.report.savings is not None and not result.stale else None
        for action in actions:
            step = self._actions.setdefault(action, Step(meaning(action), _RUN.get(action, ""), action))
            step.add(result.name, actions[action])
            step.accounted |= rates is not None
            # Where several steps mend one link, the first has all of it: nothing is promised twice.
            link = _LINK_OF.get(action)
            if rates is None or link is None:
                continue
            if next(one for one in actions if _LINK_OF.get(one) is link) is not action:
                step.told_elsewhere = True
            else:
                cycles, skips = _held_back(rates, link)
                step.available = added(step.available, cycles)
                step.unquantified_skips += skips
        if not actions and not result.stale and result.exit_code not in (EXIT_COMPLIANT, EXIT_ERROR):
            self._others.add(result.name)

    def ordered(self, unread: int) -> list[Step]:
        """What is not known first, then what is worth most, then what is not quantified, by the exits that wait for it."""

        def worth(step: Step) -> tuple[float, float, int]:
            place = ACTION_ORDER.index(step.action) if step.action is not None else len(ACTION_ORDER)
            return (-(step.available.low if step.available else 0.0), -step.unquantified_skips, place)

        missing = (
            [Step(f"Fetch {counted(unread, 'report')} again: what could not be read is missing here.", "exitguard audit")] if unread else []
        )
        first = [each for each in (self._broken, self._again) if each.host_count]
        last = [self._others] if self._others.host_count else []
        return [*missing, *first, *sorted(self._actions.values(), key=worth), *last]


def _actions_of(result: HostResult) -> dict[NextAction, int]:
    """In their order, each with how many domains wait for it first."""
    report = result.report
    verdicts: dict[str, set[Verdict]] = {}
    found: dict[NextAction, int] = {}
    for finding in report.findings:
        verdicts.setdefault(finding.subject.id, set()).add(finding.verdict)
        action = _ACTION_OF.get(finding.remedy or "") if finding.verdict is Verdict.FAIL else None
        if action is not None and finding.subject.kind is SubjectKind.HOST:
            boots = action is NextAction.INSTALL_GUARDED_KERNEL and report.host.kernel.pending_reboot
            found[NextAction.BOOT_INSTALLED_KERNEL if boots else action] = 0
    for domain in report.domains:
        judged = verdicts.get(domain.uuid, set())
        if Verdict.WAIVED in judged and not judged & set(_IN_DOUBT):
            continue  # somebody answers for it
        found[domain.chain.next_action] = found.get(domain.chain.next_action, 0) + 1
    return {action: found[action] for action in ACTION_ORDER if action in found}


def _held_back(rates: Rates, link: LinkName) -> tuple[PerSecond | None, float]:
    """What runs wait for at this link first: cycles a second, and skips a second that have no cost."""
    cycles: PerSecond | None = None
    skips = 0.0
    for each in rates.standings:
        if each.standing.held_back_by is link and each.standing.guard is GuardSaving.AVAILABLE:
            if each.standing.available is None:
                skips += each.skip_exits_per_second.high
            else:
                cycles = added(cycles, each.available_cycles_per_second)
    return cycles, skips


def added(*rates: PerSecond | None) -> PerSecond | None:
    """The sum of those that are known."""
    known: Iterable[PerSecond] = [rate for rate in rates if rate is not None]
    total: PerSecond | None = None
    for rate in known:
        total = (
            rate
            if total is None
            else PerSecond(low=total.low + rate.low, high=total.high + rate.high, at_least=total.at_least or rate.at_least)
        )
    return total
