"""What changed since a time, as rows: CSV for a spreadsheet, Markdown for a ticket. The page and the document are in changes.py."""

from collections.abc import Iterator

from exitguard.model.finding import Verdict
from exitguard.model.history import Gap, Transition
from exitguard.model.time import format_rfc3339
from exitguard.report.cells import csv_lines, markdown_code, markdown_rows
from exitguard.report.changes import Changes
from exitguard.report.page import Look, counted
from exitguard.report.words import label

_COLUMNS = ("at", "kind", "before", "now", "rule", "subject_kind", "subject_id", "subject", "reason", "after_run", "until", "dropped")
_MOST_LINES = 500


def changes_csv(changes: Changes, look: Look) -> str:
    """One row a changed verdict, and one a gap, the oldest first (RFC 4180)."""
    rows = [(transition.at, _transition_row(transition)) for transition in changes.transitions]
    rows += [(gap.first_at, _gap_row(gap)) for gap in changes.gaps]
    return csv_lines([_COLUMNS, *(row for _, row in sorted(rows, key=lambda each: each[0]))], look, end="\r\n")


def changes_markdown(changes: Changes, look: Look) -> str:
    """The newest first."""
    return "".join(_markdown(changes, look))


def _transition_row(transition: Transition) -> tuple[str | int | None, ...]:
    subject = transition.subject
    told = (transition.rule, subject.kind, subject.id, subject.name, transition.reason, transition.after_run)
    return (format_rfc3339(transition.at), "change", transition.before, transition.now, *told, None, None)


def _gap_row(gap: Gap) -> tuple[str | int | None, ...]:
    nothing = (None,) * 6
    return (format_rfc3339(gap.first_at), "gap", *nothing, gap.reason, None, format_rfc3339(gap.last_at), gap.dropped)


def _markdown(changes: Changes, look: Look) -> Iterator[str]:
    number = counted(len(changes.transitions), "verdict")
    yield f"## exitguard: {number} changed since {changes.since:%Y-%m-%d %H:%M} UTC\n\n"
    for gap in changes.gaps[:_MOST_LINES]:
        lost = f"{gap.first_at:%Y-%m-%d %H:%M} to {gap.last_at:%Y-%m-%d %H:%M} UTC: at least {counted(gap.dropped, 'observation')} lost"
        yield f"- **gap**, what happened then is not known: {lost}: {markdown_code(gap.reason, look)}\n"
    newest = sorted(changes.transitions, key=lambda transition: transition.at, reverse=True)
    if newest:
        yield "\n"
        yield from markdown_rows(
            ("when", "was", "is", "rule", "subject", "why", "after run"), [_cells(each, look) for each in newest[:_MOST_LINES]]
        )
    left = max(0, len(newest) - _MOST_LINES) + max(0, len(changes.gaps) - _MOST_LINES)
    if left:
        yield f"\nAnd {left:,} more: `--format csv` has all.\n"


def _cells(transition: Transition, look: Look) -> tuple[str, ...]:
    return (
        f"{transition.at:%Y-%m-%d %H:%M}",
        _verdict(transition.before, "new"),
        _verdict(transition.now, "gone"),
        markdown_code(transition.rule, look),
        markdown_code(transition.subject.name or transition.subject.id, look),
        markdown_code(transition.reason, look),
        "" if transition.after_run is None else markdown_code(transition.after_run, look),
    )


def _verdict(verdict: Verdict | None, absent: str) -> str:
    return absent if verdict is None else label(verdict)
