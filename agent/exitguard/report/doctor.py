"""What could be seen of a host and what not: source, reason, and what would show it. The page of `exitguard doctor`."""

from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import FactsDocument
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN
from exitguard.model.host import TargetKind
from exitguard.report.observed import Missing, missing, sightings
from exitguard.report.page import BAD, DOUBT, FAINT, GOOD, STRONG, Look, counted, hanging, heading, indented, labelled, listed, render
from exitguard.report.privileges import SERVICE, cost_of, drop_in_for
from exitguard.report.table_host import topic_in_words, topics_in_words
from exitguard.report.words import label


def doctor_exit_code(facts: FactsDocument) -> int:
    """0 when everything was seen, 3 otherwise."""
    return EXIT_UNKNOWN if missing(facts) else EXIT_COMPLIANT


def doctor_page(facts: FactsDocument, look: Look, *, user: str = "") -> str:
    """The page: what is missing first, what would show most of it, then what is there. `user` is who looked."""
    return render(look, _parts(facts, look, user))


def _parts(facts: FactsDocument, look: Look, user: str) -> Iterator[RenderableType]:
    gaps = missing(facts)
    domains = counted(len(facts.domains), "domain") if facts.host.libvirt.listing.known else "domains not listed"
    here = f"{label(facts.host.target.kind)}, {domains}" + (f", as {look.foreign(user).plain}" if user else "")
    if gaps:
        count = sum(_facts(gap) for gap in gaps)
        yield Text.assemble(look.own("NOT ALL SEEN", f"bold {DOUBT}"), look.own(f"  {counted(count, 'fact')} could not be seen ({here})."))
        yield from _unlocks(gaps, look, of_the_service=facts.host.target.kind is TargetKind.LOCAL)
        yield heading(look, "Not seen")
        for gap in gaps:
            yield from _gap(gap, look)
    else:
        yield Text.assemble(look.own("ALL SEEN", f"bold {GOOD}"), look.own(f"  every fact could be seen ({here})."))
    yield heading(look, "Seen")
    yield from _seen(facts, look)


def _unlocks(gaps: list[Missing], look: Look, *, of_the_service: bool) -> Iterator[RenderableType]:
    """What would show something, the most rewarding first; of this machine with the drop-in that grants it to the service."""
    tally: Counter[str] = Counter()
    for gap in gaps:
        if gap.unlock is not None:
            tally[gap.unlock] += _facts(gap)
    if not tally:
        return
    yield heading(look, "What would show more")
    for number, (unlock, count) in enumerate(tally.most_common(), start=1):
        yield hanging(look, f"{number}.", Text.assemble(look.foreign(unlock), look.own(f"  ({counted(count, 'fact')})", FAINT)))
        drop_in = drop_in_for(unlock) if of_the_service else ()
        if drop_in:
            yield indented(look.own(f"for the service, `systemctl edit {SERVICE}`, then restart it:", FAINT), 5)
            for line in drop_in:
                yield indented(look.own(line), 9)


def _facts(gap: Missing) -> int:
    return len(gap.topics) * len(gap.within)


def _gap(gap: Missing, look: Look) -> Iterator[RenderableType]:
    title = look.own(topics_in_words(gap), STRONG)
    names = [" ".join(names) for names in gap.within if names]
    if names:
        shown = listed([look.foreign(name, limit_characters=40).plain for name in names], most=3)
        title.append_text(look.own("  of ", FAINT)).append_text(Text.assemble((shown, FAINT)))
    yield hanging(look, "?", title, style=DOUBT)
    rows = [("source", look.foreign(gap.source)), ("why", look.foreign(gap.reason, BAD if gap.unlock is None else DOUBT))]
    costs = [cost for topic in gap.topics if (cost := cost_of(topic)) is not None]
    rows.extend(("costs", look.own(cost)) for cost in costs)
    if gap.unlock is not None:
        rows.append(("unlock", look.foreign(gap.unlock)))
    yield labelled(look, rows, columns=4, label_columns=6)


def _seen(facts: FactsDocument, look: Look) -> Iterator[RenderableType]:
    """One line a topic, with the source of the first; the facts themselves are `exitguard facts`."""
    topics: dict[str, list[str]] = {}
    for sighting in sightings(facts):
        if sighting.observed.reason is None:
            topics.setdefault(sighting.topic, []).append(sighting.observed.source)
    for topic, sources in topics.items():
        many = f"  {counted(len(sources), 'time')}" if len(sources) > 1 else ""
        line = Text.assemble(look.own(f"{topic_in_words(topic)}{many}  "), look.foreign(sources[0], FAINT))
        yield hanging(look, "+", line, style=GOOD)
    if not topics:
        yield indented(look.own("nothing", DOUBT))
