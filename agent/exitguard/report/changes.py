"""What changed since a time, and when nothing could be stored: the document and the page of `exitguard report --since`."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import Tool
from exitguard.model.finding import SubjectKind, Verdict
from exitguard.model.history import Gap, Transition
from exitguard.model.record import Record
from exitguard.model.time import UtcTime
from exitguard.report.page import CALM, DOUBT, FAINT, STRONG, Look, counted, hanging, heading, indented, render
from exitguard.report.table_findings import VERDICT_STYLES
from exitguard.report.words import label

_MOST_TRANSITIONS = 100
_MOST_GAPS = 20


class Changes(Record):
    """Every verdict that changed since `since`, and every gap in what was stored."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    since: UtcTime
    transitions: tuple[Transition, ...]
    gaps: tuple[Gap, ...]


def changes_page(changes: Changes, look: Look) -> str:
    """The changes as a page, the newest first."""
    return render(look, _parts(changes, look))


def _parts(changes: Changes, look: Look) -> Iterator[RenderableType]:
    yield Text.assemble(
        look.own(f"{counted(len(changes.transitions), 'verdict')} changed", STRONG),
        look.own(f" since {_moment(changes.since)}, {counted(len(changes.gaps), 'gap')} in what was stored."),
    )
    if changes.gaps:
        yield heading(look, "Gaps", "what happened then is not known")
        for gap in changes.gaps[:_MOST_GAPS]:
            yield hanging(look, "?", _gap(gap, look), style=DOUBT)
        yield from _rest(len(changes.gaps) - _MOST_GAPS, look)
    if changes.transitions:
        yield heading(look, "Changes")
        newest = sorted(changes.transitions, key=lambda transition: transition.at, reverse=True)
        for transition in newest[:_MOST_TRANSITIONS]:
            yield hanging(look, f"{transition.at:%Y-%m-%d %H:%M}", _transition(transition, look), style=FAINT)
        yield from _rest(len(changes.transitions) - _MOST_TRANSITIONS, look)


def _rest(left: int, look: Look) -> Iterator[RenderableType]:
    if left > 0:
        yield indented(look.own(f"… and {left:,} more, see --format json", DOUBT))


def _gap(gap: Gap, look: Look) -> Text:
    return Text.assemble(
        look.own(f"{_moment(gap.first_at)} to {_moment(gap.last_at)}: at least {counted(gap.dropped, 'observation')} lost: "),
        look.foreign(gap.reason, limit_characters=400),
    )


def _transition(transition: Transition, look: Look) -> Text:
    kind = "" if transition.subject.kind is SubjectKind.DOMAIN else f"{transition.subject.kind} "
    return Text.assemble(
        _verdict(transition.before, "new", look),
        look.own(" → ", FAINT),
        _verdict(transition.now, "gone", look),
        "  ",
        look.foreign(transition.rule, STRONG),
        look.own(f"  {kind}"),
        look.foreign(transition.subject.name or transition.subject.id, limit_characters=64),
        look.own(": ", FAINT),
        look.foreign(transition.reason, limit_characters=400),
        look.own("" if transition.after_run is None else f" (after run {transition.after_run})", CALM),
    )


def _verdict(verdict: Verdict | None, absent: str, look: Look) -> Text:
    return look.own(absent, FAINT) if verdict is None else look.own(label(verdict), VERDICT_STYLES[verdict])


def _moment(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"
