"""The whole story of a rule, of a word, or of one domain: the pages of `exitguard explain`."""

from collections.abc import Iterator, Sequence
from enum import StrEnum

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import AuditReport, DomainReport
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Verdict
from exitguard.model.pmu import Link, Tri
from exitguard.policy.schema import Check, Rule
from exitguard.report.page import BAD, DOUBT, FAINT, GOOD, STRONG, Look, hanging, heading, indented, labelled, render
from exitguard.report.table_domains import STATE_STYLES
from exitguard.report.table_findings import VERDICT_STYLES
from exitguard.report.terms import TERMS
from exitguard.report.words import KINDS, WORDS, label, meaning

_MOST_EVIDENCE = 40
#: The checks for which another verb says what to do.
_TOLD_BY = {
    Check.SOURCES: "Run `exitguard doctor`: it names each source that was not seen, why, and which privilege or package would show it.",
    Check.WAIVERS: "Run `exitguard waiver check FILE`: it names each waiver that cannot work, with its line. Renew, correct or remove it.",
}
_MARKS = {Tri.YES: ("yes", GOOD), Tri.NO: ("no", BAD), Tri.UNKNOWN: ("?", DOUBT)}


def explain_words(members: Sequence[StrEnum], look: Look, *, terms: Sequence[str] = ()) -> str:
    """What each of the words and of the names in TERMS means, and what kind of word it is."""
    return render(
        look, [*(part for member in members for part in _word(member, look)), *(part for term in terms for part in _term(term, look))]
    )


def _term(name: str, look: Look) -> Iterator[RenderableType]:
    yield Text.assemble(look.own(name, STRONG), look.own(f"  {TERMS[name].kind}", FAINT))
    yield indented(look.own(TERMS[name].meaning))


def _word(member: StrEnum, look: Look) -> Iterator[RenderableType]:
    words = WORDS[type(member)][member]
    also = f', shown as "{words.label}"' if words.label not in {member.value, "-"} else ""
    yield Text.assemble(look.own(member.value, STRONG), look.own(f"  {KINDS[type(member)]}{also}", FAINT))
    yield indented(look.own(words.meaning))


def explain_rule(rule: Rule, look: Look) -> str:
    """What a rule demands and why, where that is written, and what mends a failure."""
    return render(look, rule_parts(rule, look))


def rule_parts(rule: Rule, look: Look) -> list[RenderableType]:
    """A rule's part of a page."""
    parts: list[RenderableType] = [
        Text.assemble(look.foreign(rule.id, STRONG), "  ", look.foreign(rule.title)),
        look.own(f"severity {rule.severity}, about a {rule.subject}", FAINT),
        heading(look, "Why"),
        indented(look.foreign(" ".join(rule.rationale.split()), limit_characters=4000)),
        heading(look, "When it fails"),
    ]
    if rule.remedy is not None:
        parts.append(
            indented(Text.assemble(look.own("Remedy "), look.own(rule.remedy, STRONG), look.own(f": {TERMS[rule.remedy].meaning}")))
        )
    elif rule.check in _TOLD_BY:
        parts.append(indented(look.own(_TOLD_BY[rule.check])))
    else:
        parts.append(indented(look.own("No remedy is named: a person decides what to do.")))
    if rule.references:
        parts.append(heading(look, "References"))
        parts.extend(hanging(look, "-", look.foreign(reference, limit_characters=400)) for reference in rule.references)
    return parts


def explain_domain(report: AuditReport, domain: DomainReport, look: Look) -> str:
    """One domain: its state, each link with its reason, the verdicts on it, and all the evidence."""
    return render(look, _domain(report, domain, look))


def _domain(report: AuditReport, domain: DomainReport, look: Look) -> Iterator[RenderableType]:
    chain = domain.chain
    yield Text.assemble(
        look.foreign(domain.name, STRONG),
        "  ",
        look.own(label(chain.state), f"bold {STATE_STYLES[chain.state]}"),
        look.own(f"  {domain.uuid}", FAINT),
    )
    yield look.own(f"observed {report.observed_at:%Y-%m-%d %H:%M} UTC", FAINT)
    yield indented(look.own(meaning(chain.state)))
    yield labelled(
        look,
        [
            ("because", look.foreign(chain.reason, limit_characters=400)),
            ("set", look.own(f"{label(domain.pmu.persistent)}: {meaning(domain.pmu.persistent)}")),
            ("live", look.own(f"{label(domain.pmu.live)}: {meaning(domain.pmu.live)}")),
            ("owner", _owner(domain, look)),
            ("active", _active(domain, look)),
            ("next", look.own(meaning(chain.next_action))),
        ],
    )
    yield heading(look, "Links of the chain", "all must hold for the saving to be real")
    for link in chain.links:
        yield from _link(link, look)
    yield from _verdicts([finding for finding in report.findings if finding.subject.id == domain.uuid], look)
    yield from evidence_section(domain.evidence, look)


def _owner(domain: DomainReport, look: Look) -> Text:
    return Text.assemble(look.foreign(domain.owner.name or domain.owner.kind), look.own(f": {meaning(domain.owner.kind)}", FAINT))


def _active(domain: DomainReport, look: Look) -> Text:
    if domain.active is None:
        return look.own("not known", DOUBT)
    return look.own("yes" if domain.active else "no")


def _link(link: Link, look: Look) -> Iterator[RenderableType]:
    mark, style = _MARKS[link.holds]
    yield hanging(
        look, f"{mark:<3}", Text.assemble(look.own(f"{link.name}: ", STRONG), look.foreign(link.reason, limit_characters=400)), style=style
    )


def _verdicts(findings: Sequence[Finding], look: Look) -> Iterator[RenderableType]:
    if not findings:
        return
    yield heading(look, "Verdicts")
    for finding in findings:
        line = Text.assemble(
            look.own(label(finding.verdict), VERDICT_STYLES[finding.verdict]),
            "  ",
            look.foreign(finding.rule, STRONG),
            "  ",
            look.foreign(finding.reason, limit_characters=400),
        )
        if finding.verdict is Verdict.WAIVED and finding.waiver is not None:
            line.append_text(look.own(" Waiver ", FAINT)).append_text(look.foreign(finding.waiver, FAINT))
        yield hanging(look, "-", line)


def evidence_section(evidence: Sequence[Evidence], look: Look) -> Iterator[RenderableType]:
    """All that was observed, one line each, with its source and time."""
    yield heading(look, "Evidence")
    for one in evidence[:_MOST_EVIDENCE]:
        text = Text.assemble(look.foreign(one.source), look.own(": ", FAINT), look.foreign(one.value, limit_characters=400))
        yield hanging(look, "-", text.append_text(look.own(f"  {one.observed_at:%H:%M:%S}", FAINT)))
    if len(evidence) > _MOST_EVIDENCE:
        yield indented(look.own(f"… and {len(evidence) - _MOST_EVIDENCE:,} more, see `exitguard audit --format json`", DOUBT))
    if not evidence:
        yield indented(look.own("none", DOUBT))
