"""The account of one host, for a person: the sum, what one exit is worth and how that is known, and the domains."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.savings import DomainSavings, PerSecond, Savings
from exitguard.report.page import DOUBT, FAINT, STRONG, Look, columns, counted, heading, indented, render
from exitguard.report.words import label

_MOST_DOMAINS = 50


def savings_table(savings: Savings, look: Look, *, stale: bool) -> str:
    """The page. `stale`: the judgement that it rests on is older than a day."""
    return render(look, _parts(savings, look, stale=stale))


def _parts(savings: Savings, look: Look, *, stale: bool) -> Iterator[RenderableType]:
    if stale:
        yield look.own(f"STALE: judged {savings.judged_at:%Y-%m-%d %H:%M} UTC. Run `exitguard audit`.", DOUBT)
    where = look.foreign(savings.hostname or savings.host_id, STRONG)
    yield where.append_text(look.own(f"  the guard, since {savings.since:%Y-%m-%d %H:%M} UTC", FAINT))
    yield indented(look.own(f"saved now   {_cycles(savings.saved_cycles_per_second)}"))
    yield indented(look.own(f"available   {_cycles(savings.available_cycles_per_second)}"))
    yield heading(look, "Per exit that skips an instruction")
    for each in savings.per_exit:
        amount = f"{each.low} to {each.high} {each.unit}, " if each.low is not None else ""
        yield indented(look.foreign(f"{each.provenance}: {amount}{each.reason} {' '.join(each.costs)}".rstrip()))
    yield heading(look, "Domains", "skips a second are bounded by KVM's counters, not measured")
    if not savings.domains:
        yield indented(look.own("No running domain was sampled twice: `exitguard daemon` samples KVM's counters.", DOUBT))
        return
    busiest = sorted(savings.domains, key=lambda each: -each.skip_exits_per_second.high)
    yield columns(look, ("domain", "chain", "exits/s", "skips/s", "cycles/s"), (_row(each, look) for each in busiest[:_MOST_DOMAINS]))
    if len(busiest) > _MOST_DOMAINS:
        yield indented(look.own(f"and {counted(len(busiest) - _MOST_DOMAINS, 'domain')} more, in the JSON form", FAINT))
    for reason in sorted({reason for each in busiest for reason in each.unaccounted})[:_MOST_DOMAINS]:
        yield indented(look.foreign(f"not accounted for: {reason}", DOUBT))


def _row(each: DomainSavings, look: Look) -> tuple[Text, ...]:
    return (
        look.foreign(each.name),
        look.own(label(each.chain)),
        look.own(f"{each.exits_per_second:,.0f}"),
        look.own(_range(each.skip_exits_per_second)),
        look.own("-" if each.cycles_per_second is None else f"{label_of(each)} {_range(each.cycles_per_second)}"),
    )


def label_of(each: DomainSavings) -> str:
    """Whether it is saved, or would be."""
    return each.guard.value


def _range(rate: PerSecond) -> str:
    low, high = f"{rate.low:,.0f}", f"{rate.high:,.0f}"
    return low if low == high else f"{low} to {high}"


def _cycles(rate: PerSecond | None) -> str:
    return "unquantified" if rate is None else f"{_range(rate)} cycles a second"
