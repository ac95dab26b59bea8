"""How many exits skipped an instruction, as far as KVM's own counters bound it.

They count some kinds of exits and not others (CPUID, MSRs), so that the number of skips has a low and a high bound and no value. Read in
arch/x86/kvm of Linux 6.12: HLT, hypercalls and port I/O skip, but for string I/O, which is emulated and counted by both io_exits and
insn_emulation; interrupts, windows and page faults never skip.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_SKIP = ("io_exits", "halt_exits", "hypercalls")
_NEVER_SKIP = ("irq_exits", "irq_window_exits", "nmi_window_exits", "pf_taken")


@dataclass(frozen=True)
class SkipExits:
    """Exits of an interval, and how many of them skipped an instruction: at least `low`, at most `high`."""

    exits: int
    low: int
    high: int

    def plus(self, other: "SkipExits") -> "SkipExits":
        return SkipExits(self.exits + other.exits, self.low + other.low, self.high + other.high)


NO_EXITS = SkipExits(0, 0, 0)


def bound(counts: Mapping[str, int]) -> SkipExits:
    """The bounds by what the counters moved by; one that KVM does not have widens them. Raises KeyError without `exits`.

    The counters of several vCPUs are not read at one instant, so that parts may exceed the whole by a little: 0 <= low <= high <= exits.
    """
    exits = counts["exits"]
    high = max(0, exits - sum(counts.get(name, 0) for name in _NEVER_SKIP))
    # Every emulated instruction may have been string I/O, counted among io_exits and skipping nothing. Without that counter
    # all of io_exits may have been.
    port_io = counts.get("io_exits", 0)
    port_io_skipped = max(0, port_io - counts.get("insn_emulation", port_io))
    low = port_io_skipped + sum(counts.get(name, 0) for name in _SKIP if name != "io_exits")
    return SkipExits(exits=exits, low=min(low, high), high=high)
