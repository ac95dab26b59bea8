"""The account of one host, for a person: what is saved, what holds the rest back, how that is known, and the busiest guests."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.kernel import KernelState
from exitguard.model.ledger import GuardSaving, RunStanding, Worth
from exitguard.model.rates import Rates, SampledRates, StandingSavings
from exitguard.model.savings import DomainSavings, Savings
from exitguard.report.amounts import ANSWERS, amount, cycles_a_second, span
from exitguard.report.bars import bar, sparkline
from exitguard.report.page import BAD, DOUBT, FAINT, GOOD, STRONG, Look, columns, counted, heading, indented, labelled, render
from exitguard.report.words import label

_MOST_DOMAINS = 20
_MOST_PERIODS = 60
_BAR_COLUMNS = 24
_LEVERS = {
    "guard": "the guard, of a guest whose PMU is off",
    "pmu_off": "the PMU off, on this kernel",
    "guard_and_pmu_off": "both together",
}


def savings_page(savings: Savings, look: Look, *, stale: bool) -> str:
    """The page. `stale`: the judgement that it rests on is older than a day."""
    return render(look, _parts(savings, look, stale=stale))


def _parts(savings: Savings, look: Look, *, stale: bool) -> Iterator[RenderableType]:
    if stale:
        yield look.own(f"STALE: judged {savings.judged_at:%Y-%m-%d %H:%M} UTC. Run `exitguard audit`.", BAD)
    if not savings.domains:
        yield look.foreign(savings.hostname or savings.host_id, STRONG)
        yield look.own(
            f"Nothing is accounted for since {savings.asked.since:%Y-%m-%d %H:%M} UTC. `exitguard daemon` samples KVM's counters and "
            "brings the ledger up to date every quarter of an hour.",
            DOUBT,
        )
        return
    yield _headline(savings, look)
    yield indented(look.own(savings.worthwhile_reason, FAINT))
    yield heading(look, "Now", f"{_span(savings.now)}, guests that run, as they stand now")
    yield labelled(look, _sums(savings.now, look))
    yield from _waterfall(savings.now, look)
    yield heading(look, "Since then", f"{_span(savings.asked)}, {counted(len({each.run for each in savings.domains}), 'run')}")
    yield labelled(look, _sums(savings.asked, look))
    yield from _waterfall(savings.asked, look)
    if savings.periods:
        yield heading(look, f"By {savings.resolution}", f"since {savings.periods[0].begin:%Y-%m-%d %H:%M} UTC")
        yield labelled(look, _series(savings, look))
    yield heading(look, "Busiest guests", "since then, means of the time that is accounted for")
    busiest = sorted(savings.domains, key=lambda each: -each.skip_exits_per_second.high)
    yield columns(look, ("domain", "exits/s", "skips/s", "saved", "available"), (_row(each, look) for each in busiest[:_MOST_DOMAINS]))
    if len(busiest) > _MOST_DOMAINS:
        yield indented(look.own(f"and {counted(len(busiest) - _MOST_DOMAINS, 'more', 'more')}: `--format json` has all", FAINT))
    yield from _assumptions(savings, look)


def _headline(savings: Savings, look: Look) -> Text:
    word, style = ANSWERS[savings.worthwhile]
    line = look.own(f"{word}  ", style)
    line.append_text(look.foreign(savings.hostname or savings.host_id, STRONG))
    kernel = label(savings.kernel) + (f", body {savings.body}" if savings.body is not None else "")
    booked = "" if savings.booked_until is None else f" · booked until {savings.booked_until:%Y-%m-%d %H:%M} UTC"
    return line.append_text(look.own(f"  kernel {kernel}{booked}", FAINT))


def _span(rates: Rates) -> str:
    return f"since {rates.since:%Y-%m-%d %H:%M} UTC, watched for {rates.watched_seconds / 3600:.1f} h"


def _sums(rates: Rates, look: Look) -> Iterator[tuple[str, Text]]:
    yield "saved", look.own(amount(rates.saved_cycles_per_second, rates.saved_cores))
    by_changes = rates.attributable_cycles_per_second
    if by_changes is not None and by_changes.high:
        yield "by changes", look.own(f"{amount(by_changes, None)} of it, since host and guests were first seen", FAINT)
    yield "available", look.own(amount(rates.available_cycles_per_second, rates.available_cores))
    unknown_saved, unknown = rates.unquantified_saved_skip_exits_per_second, rates.unquantified_available_skip_exits_per_second
    if unknown_saved.high:
        yield "unquantified", look.own(f"what {span(unknown_saved)} skips a second save already is in no sum", DOUBT)
    if unknown.high:
        yield "unquantified", look.own(f"what {span(unknown)} skips a second would save is in no sum", DOUBT)
    if rates.sampled is not None:
        yield "estimate", look.own(_estimate(rates.sampled))
    if rates.own.running_seconds:
        share = rates.own.cpu_seconds / rates.own.running_seconds
        cycles = "" if rates.own_cycles_per_second is None else f", {rates.own_cycles_per_second:,.0f} cycles/s"
        yield "the agent", look.own(f"{share:.3%} of a core{cycles}; net saved {amount(rates.net_saved_cycles_per_second, None)}")
    else:
        yield "the agent", look.own("what it uses itself is not known for this time", DOUBT)


def _estimate(sampled: SampledRates) -> str:
    return (
        f"saved {amount(sampled.saved_cycles_per_second, None)}, available {amount(sampled.available_cycles_per_second, None)}, by "
        f"{sampled.traced_exits:,} exits whose reason was traced, of runs that make {sampled.share_of_exits:.0%} of all"
    )


def _waterfall(rates: Rates, look: Look) -> Iterator[RenderableType]:
    """From all that skips to what is saved: each standing takes its part."""
    most = sum(each.skip_exits_per_second.high for each in rates.standings)
    rows = []
    for each in rates.standings:
        rate = each.skip_exits_per_second.high
        drawn = bar(rate, most, _BAR_COLUMNS, unicode=look.unicode)
        rows.append((_where(each, look), look.own(f"{rate:,.0f}"), look.own(drawn, _style(each.standing)), look.own(_worth(each.standing))))
    if rows:
        yield Text()
        yield columns(look, ("skips a second, at most", "", "", "cycles an exit"), rows)


def _where(each: StandingSavings, look: Look) -> Text:
    standing = each.standing
    match standing.guard:
        case GuardSaving.AVAILABLE:
            held = "held back" if standing.held_back_by is None else f"held back: {label(standing.held_back_by)}"
            text = f"{held}"
        case GuardSaving.SAVED:
            changed = standing.attributable is not None and standing.attributable.high > 0
            text = "saved" + (", by a change" if changed else "")
        case GuardSaving.OPTED_OUT:
            text = "opted out"
        case GuardSaving.VIOLATED:
            text = "taken from guests that asked for their PMU"
        case GuardSaving.NOTHING:
            text = "nothing to save"
        case GuardSaving.UNKNOWN:
            text = "not known"
    return look.own(f"{text} ({counted(each.runs, 'run')})")


def _style(standing: RunStanding) -> str:
    return {GuardSaving.SAVED: GOOD, GuardSaving.AVAILABLE: BAD, GuardSaving.UNKNOWN: DOUBT}.get(standing.guard, FAINT)


def _worth(standing: RunStanding) -> str:
    worth = standing.saved if standing.guard is GuardSaving.SAVED else standing.available
    if standing.guard in (GuardSaving.OPTED_OUT, GuardSaving.VIOLATED, GuardSaving.NOTHING):
        return "-"
    return "unquantified" if worth is None else f"{_ends(worth)} ({worth.provenance.replace('_', ' ')})"


def _ends(worth: Worth) -> str:
    text = f"{worth.low}" if worth.low == worth.high else f"{worth.low} to {worth.high}"
    return f"at least {text}" if worth.at_least else text


def _series(savings: Savings, look: Look) -> Iterator[tuple[str, Text]]:
    periods = savings.periods[-_MOST_PERIODS:]
    yield "exits", look.own(sparkline([float(each.exits) for each in periods], unicode=look.unicode))
    for name, values in (
        ("saved", [each.saved_cycles_high for each in periods]),
        ("available", [each.available_cycles_high for each in periods]),
    ):
        if any(values):
            yield name, look.own(sparkline([None if value is None else float(value) for value in values], unicode=look.unicode))


def _row(each: DomainSavings, look: Look) -> tuple[Text, ...]:
    return (
        look.foreign(each.name or each.uuid),
        look.own(f"{each.exits_per_second:,.0f}"),
        look.own(span(each.skip_exits_per_second)),
        look.own(cycles_a_second(each.saved_cycles_per_second)),
        look.own(cycles_a_second(each.available_cycles_per_second)),
    )


def _assumptions(savings: Savings, look: Look) -> Iterator[RenderableType]:
    yield heading(look, "What it rests on")
    costs = {
        cost: worth.provenance
        for each in (*savings.now.standings, *savings.asked.standings)
        for worth in (each.standing.saved, each.standing.available)
        if worth is not None
        for cost in worth.costs
    }
    rows = {each.id: each for each in savings.costs}
    for cost, provenance in sorted(costs.items()):
        row = rows.get(cost)
        share = "" if row is None or row.percent_of_exit is None else f", {row.percent_of_exit:.1f} % of the exit"
        how = "" if row is None else f": {row.cycles_per_exit} cycles{share} ({row.provenance})"
        yield indented(look.foreign(f"{provenance.replace('_', ' ')} {cost}{how}"))
    if not costs:
        yield indented(
            look.own("No cost in cycles is known for this kernel, processor and mitigations: `exitguard measure` may tell one.", DOUBT)
        )
    for each in savings.instructions_per_exit:
        amount = f"{each.low}" if each.low == each.high else f"{each.low} to {each.high}"
        if each.saved_by in _LEVERS and each.guard in (None, savings.kernel is KernelState.GUARDED):
            yield indented(look.own(f"In instructions, which are no cycles: {_LEVERS[each.saved_by]}: {amount} an exit", FAINT))
    yield indented(
        look.own("Of an exit by CPUID in a tight loop, which is a best case. How many exits skip is bounded, not counted.", FAINT)
    )
    if savings.hertz.value is not None:
        yield indented(
            look.foreign(f"Cores at {savings.hertz.value / 1e9:.2f} GHz ({savings.hertz.source}); a hyperthread is no whole core.", FAINT)
        )
    for each_gap in savings.unaccounted:
        name = each_gap.domain_name or each_gap.run
        until = "" if each_gap.last == each_gap.first else f" to {each_gap.last:%Y-%m-%d %H:%M}"
        yield indented(look.foreign(f"not accounted for: {name}, {each_gap.first:%Y-%m-%d %H:%M}{until}: {each_gap.reason}", DOUBT))
    spread = sum(each.spread_seconds for each in savings.domains)
    if spread:
        yield indented(
            look.own(f"{spread / 3600:,.1f} hours of runs were counted over gaps of more than an hour, and spread evenly.", DOUBT)
        )
