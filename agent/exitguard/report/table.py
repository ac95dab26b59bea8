"""An audit report for a person at a terminal: the answer first, then the host, its domains, what is wrong, what to do next."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import AuditReport
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN, Finding, SubjectKind, Verdict
from exitguard.report.page import BAD, DOUBT, FAINT, GOOD, STRONG, WORST, Look, counted, hanging, heading, indented, listed, render
from exitguard.report.result import HostResult
from exitguard.report.steps import ACTION_ORDER
from exitguard.report.table_domains import domains_section
from exitguard.report.table_findings import findings_section
from exitguard.report.table_host import host_section, unseen_section
from exitguard.report.words import label, meaning

_MOST_FILES = 3


@dataclass(frozen=True)
class Told:
    """How a report is told: whether it is too old to speak for the host now, as of when, and which verdicts are listed (none: all)."""

    stale: bool = False
    at: datetime | None = None
    only: tuple[Verdict, ...] = ()


def audit_table(report: AuditReport, look: Look, told: Told = Told()) -> str:
    """The report as a page. Lists are of the verdicts that were asked for; the answer and what to do next are of all."""
    return render(look, _parts(report, look, told))


def _parts(report: AuditReport, look: Look, told: Told) -> Iterator[RenderableType]:
    listed_of = HostResult(report, told.stale, "").only(told.only).told
    yield _headline(report, look, stale=told.stale)
    if told.stale:
        then = "then" if told.at is not None else "now. Run `exitguard audit`"
        yield look.own(f"This report is of {moment(report.observed_at)}: it does not speak for the host {then}.", DOUBT)
    if told.at is not None:
        yield look.own(f"As of {moment(told.at)}.", FAINT)
    if told.only:
        words = ", ".join(label(each) for each in told.only)
        yield look.own(f"Listed are only findings that are {words}, and the domains that they are about.", DOUBT)
    yield _circumstances(report, look)
    yield from host_section(report.host, report.savings, look)
    yield from domains_section(listed_of.domains, report.host.libvirt.listing, look)
    yield from findings_section(listed_of.findings, look, whole=not (told.stale or told.only))
    yield from unseen_section(report, look)
    yield from _next_section(report, look)


def moment(instant: datetime) -> str:
    """A time for people, in UTC, to the minute."""
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def host_name(report: AuditReport) -> str:
    """The host's name where it was seen, else its id."""
    return report.host.hostname or report.host.id


def _headline(report: AuditReport, look: Look, *, stale: bool) -> Text:
    tally = Counter(finding.verdict for finding in report.findings)
    host = look.foreign(host_name(report), STRONG, limit_characters=64)
    word, style, sentence = _answer(report, tally, stale=stale)
    return Text.assemble(look.own(word, f"bold {style}"), "  ", host, look.own(f": {sentence}"))


def _answer(report: AuditReport, tally: Counter[Verdict], *, stale: bool) -> tuple[str, str, str]:
    """The word, its colour, and what follows the host's name."""
    match report.summary.exit_code:
        case code if code == EXIT_ERROR:
            return "ERROR", "magenta", _errors(report)
        case code if code == EXIT_NOT_COMPLIANT:
            also = f", {tally[Verdict.UNKNOWN]:,} undecided" if tally[Verdict.UNKNOWN] else ""
            return "NOT COMPLIANT", BAD, f"{counted(tally[Verdict.FAIL], 'check fails', 'checks fail')}{also}."
        case code if code == EXIT_UNKNOWN and tally[Verdict.UNKNOWN]:
            return "UNKNOWN", DOUBT, f"{counted(tally[Verdict.UNKNOWN], 'check')} could not be decided."
        case code if code == EXIT_COMPLIANT and not report.findings:
            return "NOTHING JUDGED", DOUBT, "no rule of the policy applied."
        case _ if stale:
            return "STALE", DOUBT, "it met its policy when it was last looked at."
        case _:
            waived = f", but for {tally[Verdict.WAIVED]:,} waived" if tally[Verdict.WAIVED] else ""
            return "COMPLIANT", GOOD, f"{counted(tally[Verdict.PASS], 'check passes', 'checks pass')}{waived}."


def _errors(report: AuditReport) -> str:
    """Checks that broke are a defect of this program; what is wrong in a waiver file is the operator's to correct."""
    errors = [finding for finding in report.findings if finding.verdict is Verdict.ERROR]
    broken = sum(not _is_about_waivers(finding) for finding in errors)
    if broken or not errors:
        return f"{counted(broken, 'check')} broke, so the answer is not complete."
    return f"{counted(len(errors), 'fault')} in the waiver files to correct; what is at fault is not applied."


def _is_about_waivers(finding: Finding) -> bool:
    return finding.subject.kind is SubjectKind.POLICY


def _circumstances(report: AuditReport, look: Look) -> Text:
    names = {
        EXIT_COMPLIANT: "compliant",
        EXIT_ERROR: "error",
        EXIT_NOT_COMPLIANT: "not compliant",
        EXIT_UNKNOWN: "unknown or stale",
    }
    code = report.summary.exit_code
    policy = look.foreign(report.policy, FAINT, limit_characters=80)
    dot = look.own(" · ", FAINT)
    return dot.join(
        [
            look.own(f"exit {code}: {names.get(code, 'see the manual')}", FAINT),
            Text.assemble(look.own("policy ", FAINT), policy),
            look.own(f"observed {moment(report.observed_at)}", FAINT),
        ]
    )


def _next_section(report: AuditReport, look: Look) -> Iterator[RenderableType]:
    yield heading(look, "What to do next")
    steps = [*_broken_checks(report, look), *_waiver_steps(report, look), *_remedies(report, look), *_domain_steps(report, look)]
    for number, step in enumerate(steps, start=1):
        yield hanging(look, f"{number}.", step)
    if not steps:
        doubt = report.summary.exit_code != EXIT_COMPLIANT
        yield indented(look.own("Run `exitguard doctor`: it says what was not seen, and what would show it." if doubt else "Nothing."))
    if any(finding.verdict in {Verdict.FAIL, Verdict.UNKNOWN, Verdict.WAIVED} for finding in report.findings):
        yield indented(look.own("`exitguard explain RULE` or `explain DOMAIN` tells the whole story with its evidence.", FAINT))


def _broken_checks(report: AuditReport, look: Look) -> Iterator[Text]:
    rules = sorted({finding.rule for finding in report.findings if finding.verdict is Verdict.ERROR and not _is_about_waivers(finding)})
    if rules:
        yield Text.assemble(
            look.own("A check broke; that is a defect, report it with its reason above: ", WORST), look.foreign(listed(rules))
        )


def _waiver_steps(report: AuditReport, look: Look) -> Iterator[Text]:
    """What to correct in which line, and which waivers do nothing (any more)."""
    about_waivers = [finding for finding in report.findings if _is_about_waivers(finding)]
    # The source is `file` or `file:line` (policy/problem.py).
    places = list(dict.fromkeys(one.source for each in about_waivers if each.verdict is Verdict.ERROR for one in each.evidence))
    if places:
        files = dict.fromkeys(re.sub(r":[0-9]+$", "", place) for place in places)
        command = f"exitguard waiver check {shlex.join(list(files)[:_MOST_FILES])}"
        yield Text.assemble(
            look.own("Correct ", WORST),
            look.foreign(listed(places), limit_characters=400),
            look.own(", see "),
            look.foreign(f"`{command}`", limit_characters=400),
        )
    failing = list(dict.fromkeys(finding.subject.name for finding in about_waivers if finding.verdict is Verdict.FAIL))
    if failing:
        yield Text.assemble(
            look.own(
                f"Renew, correct or remove {counted(len(failing), 'waiver')} that {'covers' if len(failing) == 1 else 'cover'} nothing: "
            ),
            look.foreign(listed(failing), STRONG),
        )


def _domain_steps(report: AuditReport, look: Look) -> Iterator[Text]:
    for action in ACTION_ORDER:
        names = [domain.name for domain in report.domains if domain.chain.next_action is action]
        if names:
            yield Text.assemble(
                look.own(meaning(action)),
                look.own(f" {counted(len(names), 'domain')}: ", FAINT),
                *_names(look, names),
            )


def _names(look: Look, names: list[str], most: int = 3) -> Iterator[Text]:
    for place, name in enumerate(names[:most]):
        yield look.own(", " if place else "", FAINT)
        yield look.foreign(name, FAINT, limit_characters=40)
    if len(names) > most:
        yield look.own(f" and {len(names) - most:,} more", FAINT)


def _remedies(report: AuditReport, look: Look) -> Iterator[Text]:
    """The remedies that the policy names for what fails; a host without domains needs its kernel too."""
    rules: dict[str, set[str]] = {}
    for finding in report.findings:
        if finding.verdict is Verdict.FAIL and finding.remedy is not None:
            rules.setdefault(finding.remedy, set()).add(finding.rule)
    for remedy, names in sorted(rules.items()):
        yield Text.assemble(
            look.own("Remedy "), look.foreign(remedy, STRONG), look.own(" would mend ", FAINT), look.foreign(listed(sorted(names)), FAINT)
        )
