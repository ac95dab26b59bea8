"""What many hosts save together, and what holds the rest back. Hosts are added one by one."""

from collections import Counter
from dataclasses import dataclass, field

from exitguard.model.ledger import GuardSaving
from exitguard.model.rates import HostSavings, PerSecond, Worthwhile
from exitguard.report.steps import added

#: What becomes of exits with work that could be spared, in the words of a chart.
_STANDINGS = {
    "saved": "saved",
    "available": "available",
    "defined": "held back: not defined off",
    "running": "held back: runs with the PMU on",
    "propagated": "held back: QEMU does not tell KVM",
    "kernel": "held back: kernel without the guard",
    "kept": "held back: the owner undoes it",
    "opted_out": "opted out: the guest wants its PMU",
    "violated": "violated: the guest wants its PMU and lacks it",
    "nothing": "nothing to save on this kernel",
    "unknown": "not known",
}


def standing_words(name: str) -> str:
    """A key of `SavingsTotal.skips_by_standing` in words."""
    return _STANDINGS.get(name, name)


@dataclass
class SavingsTotal:
    """Add what hosts say of now, then read. What is unquantified is in no sum of cycles, and told beside it."""

    #: How many hosts were added.
    accounted: int = 0
    saved: PerSecond | None = None
    available: PerSecond | None = None
    #: Of the hosts whose frequency is known; an assumption, since cores change theirs.
    saved_cores: PerSecond | None = None
    available_cores: PerSecond | None = None
    #: Exits a second at most, which skip and have no cost in cycles.
    unquantified_saved_skips: float = 0.0
    unquantified_available_skips: float = 0.0
    #: Exits a second with skipped work, by what holds the saving back: `saved`, a link, or why it is none.
    skips_by_standing: dict[str, float] = field(default_factory=dict)
    #: What their agents use in cycles a second, and whether a change pays, by hosts.
    own_cycles: float = 0.0
    worthwhile: Counter[Worthwhile] = field(default_factory=Counter)

    def add(self, savings: HostSavings) -> None:
        """Count one host."""
        rates = savings.now
        self.accounted += 1
        self.worthwhile[savings.worthwhile] += 1
        self.own_cycles += rates.own_cycles_per_second or 0.0
        self.saved = added(self.saved, rates.saved_cycles_per_second)
        self.available = added(self.available, rates.available_cycles_per_second)
        self.saved_cores = added(self.saved_cores, rates.saved_cores)
        self.available_cores = added(self.available_cores, rates.available_cores)
        self.unquantified_available_skips += rates.unquantified_available_skip_exits_per_second.high
        self.unquantified_saved_skips += rates.unquantified_saved_skip_exits_per_second.high
        for each in rates.standings:
            held = each.standing.held_back_by
            name = str(held) if each.standing.guard is GuardSaving.AVAILABLE and held is not None else str(each.standing.guard)
            self.skips_by_standing[name] = self.skips_by_standing.get(name, 0.0) + each.skip_exits_per_second.high
