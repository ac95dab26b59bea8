"""An audit of a cloud for a person at a terminal: the answer first, then the sums, what fails, and what to do next."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN, Finding, SubjectKind, Verdict
from exitguard.model.instance import CloudReport, InstanceReport
from exitguard.report.cloud_groups import Standing, standing
from exitguard.report.cloud_instances import computes_section, instances_section, sums_section
from exitguard.report.page import BAD, DOUBT, FAINT, GOOD, STRONG, WORST, Look, counted, hanging, heading, indented, listed, render
from exitguard.report.table import moment
from exitguard.report.table_findings import findings_section
from exitguard.report.words import label

_MOST_NAMES = 3
_MOST_UNSEEN = 12
#: What `exitguard nova audit` says of an exit code.
EXIT_WORDS = {
    EXIT_COMPLIANT: "compliant",
    EXIT_ERROR: "error",
    EXIT_NOT_COMPLIANT: "not compliant",
    EXIT_UNKNOWN: "unknown",
}


def cloud_table(report: CloudReport, look: Look) -> str:
    """The report as a page."""
    return render(look, _parts(report, look))


def _parts(report: CloudReport, look: Look) -> Iterator[RenderableType]:
    yield headline(report, look)
    yield circumstances(report, look)
    yield from sums_section(report, look)
    yield from _findings(report, look)
    yield from _unseen_section(report, look)
    yield from _next_section(report, look)
    yield from computes_section(report.computes, look)
    yield from instances_section(report, look)


def headline(report: CloudReport, look: Look) -> Text:
    """The verdict on the cloud, in a line."""
    word, style, sentence = answer(report)
    name = look.foreign(report.cloud.name, STRONG, limit_characters=64)
    return Text.assemble(look.own(word, f"bold {style}"), "  ", name, look.own(f": {sentence}"))


def answer(report: CloudReport) -> tuple[str, str, str]:
    """The word, its colour, and what follows the cloud's name. What passes is in the sums alone, not among the findings."""
    tally = Counter({Verdict(name): count for name, count in report.summary.by_verdict.items()})
    undecided = tally[Verdict.UNKNOWN]
    match report.summary.exit_code:
        case code if code == EXIT_ERROR:
            return (
                "ERROR",
                "magenta",
                f"{counted(tally[Verdict.ERROR], 'check')} broke or could not be applied: the answer is not complete.",
            )
        case code if code == EXIT_NOT_COMPLIANT:
            also = f", {undecided:,} undecided" if undecided else ""
            return "NOT COMPLIANT", BAD, f"{counted(tally[Verdict.FAIL], 'check fails', 'checks fail')}{also}."
        case code if code == EXIT_UNKNOWN:
            return "UNKNOWN", DOUBT, f"{counted(undecided, 'check')} could not be decided."
        case _ if not tally.total():
            return "NOTHING JUDGED", DOUBT, "no rule of the policy applied."
        case _:
            waived = f", but for {tally[Verdict.WAIVED]:,} waived" if tally[Verdict.WAIVED] else ""
            return "COMPLIANT", GOOD, f"{counted(tally[Verdict.PASS], 'check passes', 'checks pass')}{waived}."


def circumstances(report: CloudReport, look: Look) -> Text:
    """The exit code, the policy, and when and how the cloud was looked at."""
    code = report.summary.exit_code
    region = [Text.assemble(look.own("region ", FAINT), look.foreign(report.cloud.region, FAINT))] if report.cloud.region else []
    return look.own(" · ", FAINT).join(
        [
            look.own(f"exit {code}: {EXIT_WORDS.get(code, 'see the manual')}", FAINT),
            Text.assemble(look.own("policy ", FAINT), look.foreign(report.policy, FAINT, limit_characters=80)),
            *region,
            Text.assemble(look.own("microversion ", FAINT), look.foreign(report.cloud.microversion, FAINT, limit_characters=20)),
            look.own(f"observed {moment(report.observed_at)}", FAINT),
        ]
    )


def _findings(report: CloudReport, look: Look) -> Iterator[RenderableType]:
    """What is not well, by rule. What is well is only counted: a cloud has 100,000 of it."""
    if report.findings:
        yield from findings_section(report.findings, look)
    else:
        yield heading(look, "Findings")
    counts = [
        (verdict, report.summary.by_verdict.get(verdict, 0))
        for verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE)
        if not any(finding.verdict is verdict for finding in report.findings)
    ]
    told = [look.own(f"{count:,} {label(verdict)}", GOOD if verdict is Verdict.PASS else FAINT) for verdict, count in counts if count]
    if told:
        yield indented(look.own(" · ", FAINT).join(told))
    elif not report.findings:
        yield indented(look.own("no rule was judged", DOUBT))


def _unseen_section(report: CloudReport, look: Look) -> Iterator[RenderableType]:
    """All that was not seen of the cloud as a whole: among the findings it is one sentence, and cut where it is long."""
    unseen = [one for finding in _unseen_findings(report) for one in finding.evidence]
    if not unseen:
        return
    yield heading(look, "Not seen")
    for one in unseen[:_MOST_UNSEEN]:
        text = Text.assemble(look.foreign(one.source), look.own(": ", FAINT), look.foreign(one.value, limit_characters=400))
        yield hanging(look, "-", text)
    if len(unseen) > _MOST_UNSEEN:
        yield indented(look.own(f"… and {len(unseen) - _MOST_UNSEEN:,} more, see --format json", DOUBT))


def _unseen_findings(report: CloudReport) -> list[Finding]:
    return [each for each in report.findings if each.subject.kind is SubjectKind.CLOUD and each.verdict is Verdict.UNKNOWN]


def _next_section(report: CloudReport, look: Look) -> Iterator[RenderableType]:
    yield heading(look, "What to do next")
    steps = [
        *_broken(report, look),
        *_waivers(report, look),
        *_conflicts(report, look),
        *_unseen(report, look),
        *_remedies(report, look),
        *_owners(report, look),
    ]
    for number, step in enumerate(steps, start=1):
        yield hanging(look, f"{number}.", step)
    if not steps:
        doubt = report.summary.exit_code != EXIT_COMPLIANT
        yield indented(look.own("See the reasons above: each says what would show more." if doubt else "Nothing."))
    if report.findings:
        yield indented(look.own("`exitguard explain RULE` says what a rule demands, and why.", FAINT))


def _broken(report: CloudReport, look: Look) -> Iterator[Text]:
    rules = sorted({each.rule for each in report.findings if each.verdict is Verdict.ERROR and not _is_about_waivers(each)})
    if rules:
        yield Text.assemble(
            look.own("A check broke; that is a defect, report it with its reason above: ", WORST), look.foreign(listed(rules))
        )


def _is_about_waivers(finding: Finding) -> bool:
    return finding.subject.kind is SubjectKind.POLICY


def _waivers(report: CloudReport, look: Look) -> Iterator[Text]:
    """Which files have faults to correct, and which waivers do nothing (any more)."""
    about = [finding for finding in report.findings if _is_about_waivers(finding)]
    # The source is `file` or `file:line` (policy/problem.py).
    sources = [one.source for finding in about if finding.verdict is Verdict.ERROR for one in finding.evidence]
    files = list(dict.fromkeys(re.sub(r":[0-9]+$", "", source) for source in sources))
    if files:
        command = f"`exitguard waiver check {shlex.join(files[:_MOST_NAMES])}`"
        yield Text.assemble(look.own("Correct the faults that ", WORST), look.foreign(command, limit_characters=400), look.own(" names."))
    failing = list(dict.fromkeys(finding.subject.name for finding in about if finding.verdict is Verdict.FAIL))
    if failing:
        which = "waiver that covers" if len(failing) == 1 else "waivers that cover"
        yield Text.assemble(look.own(f"Renew, correct or remove {len(failing):,} {which} nothing: "), look.foreign(listed(failing), STRONG))


def _conflicts(report: CloudReport, look: Look) -> Iterator[Text]:
    found = [instance for instance in report.instances if standing(instance) is Standing.CONFLICT]
    if found:
        yield Text.assemble(
            look.own("Let nobody stop, start or hard reboot "),
            *_named(found, look),
            look.own(": Nova would destroy the domain and could not start it again. The findings above say how to set it right."),
        )


def _unseen(report: CloudReport, look: Look) -> Iterator[Text]:
    rules = {finding.rule for finding in _unseen_findings(report)}
    if rules:
        yield Text.assemble(
            look.own("Let it see more: "),
            look.foreign(listed(sorted(rules)), STRONG),
            look.own(
                " above names the policies of the API that a role needs (docs/openstack.md has a minimal one), and the hosts whose facts "
                "were not given (playbooks/facts.yml brings them home; a directory of them is an argument)."
            ),
        )
    elif not report.hosts_joined and report.computes:
        yield look.own("Give the facts of its compute hosts, a directory of them as an argument: playbooks/facts.yml brings them home.")


def _remedies(report: CloudReport, look: Look) -> Iterator[Text]:
    """The remedies that the policy names for what fails, and the way to a plan."""
    rules: dict[str, set[str]] = {}
    for finding in report.findings:
        if finding.verdict is Verdict.FAIL and finding.remedy is not None:
            rules.setdefault(finding.remedy, set()).add(finding.rule)
    for remedy, names in sorted(rules.items()):
        yield Text.assemble(
            look.own("Remedy "), look.foreign(remedy, STRONG), look.own(" would mend ", FAINT), look.foreign(listed(sorted(names)), FAINT)
        )
    if rules:
        command = f"`exitguard plan --cloud {shlex.quote(report.cloud.name)}`"
        yield Text.assemble(look.foreign(command, limit_characters=200), look.own(" shows what they would change, and what is left alone."))


def _owners(report: CloudReport, look: Look) -> Iterator[Text]:
    """Whose instances only their owners can change: those that run with a PMU by default."""
    tally = Counter(instance.project for instance in report.instances if standing(instance) is Standing.ON_BY_DEFAULT)
    if tally:
        projects = [project for project, _ in tally.most_common()]
        yield Text.assemble(
            look.own(
                f"Ask the owners of {counted(tally.total(), 'instance')}: `exitguard nova report --project PROJECT` is a page for them. "
            ),
            look.own(f"{counted(len(projects), 'project')}: ", FAINT),
            look.foreign(listed(projects, most=_MOST_NAMES), FAINT, limit_characters=300),
        )


def _named(instances: list[InstanceReport], look: Look) -> Iterator[Text]:
    """`web-1, web-2 and 5 more`."""
    for place, instance in enumerate(instances[:_MOST_NAMES]):
        yield look.own(", " if place else "")
        yield look.foreign(instance.name or instance.uuid, STRONG, limit_characters=64)
    if len(instances) > _MOST_NAMES:
        yield look.own(f" and {len(instances) - _MOST_NAMES:,} more")
