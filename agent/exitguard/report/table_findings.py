"""The findings' part of the audit page: failures, broken checks and doubts by rule, then what is waived, then a count of the rest."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.finding import Finding, Severity, SubjectKind, Verdict
from exitguard.report.page import BAD, CALM, DOUBT, FAINT, GOOD, STRONG, WORST, Look, counted, heading, indented, labelled
from exitguard.report.words import label

MOST_REASONS = 3
MOST_RULES = 30
_MOST_SUBJECTS = 4
_MOST_EVIDENCE = 2
_SHOWN = (Verdict.FAIL, Verdict.ERROR, Verdict.UNKNOWN, Verdict.WAIVED)
VERDICT_STYLES = {
    Verdict.FAIL: BAD,
    Verdict.ERROR: "magenta",
    Verdict.UNKNOWN: DOUBT,
    Verdict.WAIVED: CALM,
    Verdict.PASS: GOOD,
    Verdict.NOT_APPLICABLE: FAINT,
}
_SEVERITY_ORDER = tuple(Severity)
SEVERITY_STYLES = {Severity.HIGH: WORST, Severity.MEDIUM: BAD, Severity.LOW: "", Severity.INFO: FAINT}


def findings_section(findings: Sequence[Finding], look: Look, *, whole: bool = True) -> Iterator[RenderableType]:
    """Every finding that is not well, grouped by verdict and rule, with its reason and the evidence that says most.

    `whole`: these are all, and of now; else nothing follows from there being no more.
    """
    yield heading(look, "Findings")
    blocks = _blocks(findings)
    for block in blocks[:MOST_RULES]:
        yield from _block(block, look)
    if len(blocks) > MOST_RULES:
        yield indented(look.own(f"… and {len(blocks) - MOST_RULES:,} more rules, see --format json", DOUBT))
    rest = _rest(findings, look, empty=whole and not blocks)
    if rest.plain:
        yield indented(rest)


def _blocks(findings: Sequence[Finding]) -> list[tuple[Finding, ...]]:
    """Findings of one verdict and one rule, the worst first."""
    groups: dict[tuple[int, int, str], list[Finding]] = {}
    for finding in findings:
        if finding.verdict in _SHOWN:
            key = (_SHOWN.index(finding.verdict), _SEVERITY_ORDER.index(finding.severity), finding.rule)
            groups.setdefault(key, []).append(finding)
    return [tuple(group) for _, group in sorted(groups.items(), key=lambda item: item[0])]


def _block(block: tuple[Finding, ...], look: Look) -> Iterator[RenderableType]:
    first = block[0]
    yield indented(
        Text.assemble(
            look.own(label(first.verdict).upper(), f"bold {VERDICT_STYLES[first.verdict]}"),
            " ",
            look.foreign(first.rule, STRONG),
            look.own("  severity ", FAINT),
            look.own(first.severity, SEVERITY_STYLES[first.severity]),
        )
    )
    reasons: dict[tuple[str, str | None], list[Finding]] = {}
    for finding in block:
        reasons.setdefault((finding.reason, finding.waiver), []).append(finding)
    for alike in list(reasons.values())[:MOST_REASONS]:
        yield indented(_reason(alike, look), 4)
        particulars = _particulars(alike, look)
        if particulars:
            yield labelled(look, particulars, columns=6)
    left = sum(len(alike) for alike in list(reasons.values())[MOST_REASONS:])
    if left:
        yield indented(look.own(f"… and {counted(left, 'finding')} more of this rule, see --format json", DOUBT), 4)


def _reason(alike: Sequence[Finding], look: Look) -> Text:
    subjects = Text(", ").join(_subject(finding, look) for finding in alike[:_MOST_SUBJECTS])
    if len(alike) > _MOST_SUBJECTS:
        subjects.append_text(look.own(f" and {len(alike) - _MOST_SUBJECTS:,} more"))
    return Text.assemble(subjects, ": ", look.foreign(alike[0].reason, limit_characters=400))


def _subject(finding: Finding, look: Look) -> Text:
    prefix = "" if finding.subject.kind is SubjectKind.DOMAIN else f"{finding.subject.kind} "
    return Text.assemble(look.own(prefix), look.foreign(finding.subject.name or finding.subject.id, STRONG, limit_characters=64))


def _particulars(alike: Sequence[Finding], look: Look) -> list[tuple[str, Text]]:
    """Waiver, evidence, since, remedy: of the first finding, as the others have the same reason."""
    first = alike[0]
    rows: list[tuple[str, Text]] = []
    if first.waiver is not None:
        rows.append(("waiver", look.foreign(first.waiver)))
    for evidence in first.evidence[:_MOST_EVIDENCE]:
        source = look.foreign(evidence.source, limit_characters=100)
        rows.append(("evidence", Text.assemble(source, look.own(": ", FAINT), look.foreign(evidence.value, limit_characters=160))))
    if first.since is not None:
        rows.append(("since", look.own(f"{first.since:%Y-%m-%d %H:%M} UTC")))
    if first.remedy is not None and first.verdict is Verdict.FAIL:
        rows.append(("remedy", look.foreign(first.remedy)))
    return rows


def _rest(findings: Sequence[Finding], look: Look, *, empty: bool) -> Text:
    tally = Counter(finding.verdict for finding in findings)
    if not findings:
        return look.own("no rule was judged" if empty else "none", DOUBT)
    parts = [
        look.own(f"{tally[verdict]:,} {label(verdict)}", style)
        for verdict, style in ((Verdict.PASS, GOOD), (Verdict.NOT_APPLICABLE, FAINT))
        if tally[verdict]
    ]
    if empty:
        parts.append(look.own("no failure, no doubt", FAINT))
    return look.own(" · ", FAINT).join(parts)
