"""Amounts of the account in words: rates with their bounds, and whether a change pays."""

from collections.abc import Mapping

from exitguard.model.rates import PerSecond, Worthwhile
from exitguard.report.page import DOUBT, GOOD

_LEAST_CORES = 0.0001
#: Word and style.
ANSWERS = {
    Worthwhile.YES: ("WORTH CHANGING", GOOD),
    Worthwhile.NO: ("NOT WORTH CHANGING HERE", DOUBT),
    Worthwhile.NOTHING_LEFT: ("NOTHING LEFT TO SAVE", GOOD),
    Worthwhile.UNKNOWN: ("UNQUANTIFIED", DOUBT),
}


def amount(rate: PerSecond | None, cores: PerSecond | None) -> str:
    """A rate in cycles, and in cores where they are known."""
    if rate is None:
        return "unquantified"
    in_cores = "" if cores is None else f" ({' to '.join(dict.fromkeys((_small(cores.low), _small(cores.high))))} cores)"
    return f"{span(rate)} cycles/s{' or more' if rate.at_least and rate.low > 0 else ''}{in_cores}"


def pays(hosts: Mapping[Worthwhile, int]) -> str:
    """Whether a change pays, net of the agent's own use, on how many hosts."""
    words = {
        Worthwhile.YES: "pays",
        Worthwhile.NO: "does not pay",
        Worthwhile.NOTHING_LEFT: "has nothing left to bring",
        Worthwhile.UNKNOWN: "is not known to pay",
    }
    said = [f"on {hosts[answer]:,} it {word}" for answer, word in words.items() if hosts.get(answer)]
    return f"a change, net of the agent's own use: {', '.join(said)}" if said else "not known"


def cycles_a_second(rate: PerSecond | None) -> str:
    """A rate in cycles without its unit."""
    return "unquantified" if rate is None else span(rate)


def span(rate: PerSecond) -> str:
    """Both bounds, or the one number that they are."""
    low, high = f"{rate.low:,.0f}", f"{rate.high:,.0f}"
    return low if low == high else f"{low} to {high}"


def _small(cores: float) -> str:
    if 0 < abs(cores) < _LEAST_CORES:
        return f"under {_LEAST_CORES}"
    return f"{cores:.4f}" if abs(cores) < 1 else f"{cores:,.1f}"
