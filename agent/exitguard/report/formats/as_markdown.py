"""GitHub-flavoured Markdown for a ticket or a wiki: the answer, what to do next, what is wrong, groups, the hosts.

Every text from outside stands in a code span, in which nothing acts.
"""

from collections.abc import Iterator

from exitguard.model.finding import Verdict
from exitguard.report.amounts import amount, pays
from exitguard.report.cells import markdown_code, markdown_rows
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import WORST_FIRST, Overview, Problem
from exitguard.report.page import Look, counted
from exitguard.report.result import HostResult
from exitguard.report.states import state_word
from exitguard.report.words import label

_MOST_PROBLEMS, _MOST_GROUPS, _MOST_HOSTS, _MOST_EVIDENCE = 50, 100, 200, 6


class MarkdownWriter:
    """Summary first, so everything is written at the end."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def begin(self) -> Iterator[str]:
        yield from ()

    def host(self, result: HostResult) -> Iterator[str]:
        del result
        yield from ()

    def end(self, overview: Overview) -> Iterator[str]:
        look = self._setting.look
        yield f"## exitguard: {state_word(overview.exit_code).upper()}\n\n"
        yield from _summary(overview, self._setting)
        yield from _steps(overview, look)
        if overview.problems:
            yield "\n### What is wrong\n\n"
            for problem in overview.problems[:_MOST_PROBLEMS]:
                yield from _problem(problem, look)
            yield _rest(len(overview.problems) - _MOST_PROBLEMS)
        if self._setting.group_by is not None:
            yield from _groups(overview, self._setting.group_by, look)
        yield from _hosts(overview, look)


def _summary(overview: Overview, setting: Setting) -> Iterator[str]:
    counts = ", ".join(f"{overview.by_exit_code[code]:,} {state_word(code)}" for code in WORST_FIRST if overview.by_exit_code[code])
    when = f", as of {setting.at:%Y-%m-%d %H:%M} UTC" if setting.at is not None else ""
    yield f"{counted(len(overview.hosts), 'host')}: {counts or 'none'}; {counted(overview.domains, 'domain')}{when}.\n"
    if overview.stale:
        yield f"**{counted(overview.stale, 'host')} stale**: looked at more than a day before, and no pass.\n"
    if overview.by_verdict[Verdict.WAIVED]:
        yield f"{counted(overview.by_verdict[Verdict.WAIVED], 'failure')} waived.\n"
    for sentence in overview.unread:
        yield f"- **not readable**: {markdown_code(sentence, setting.look)}\n"
    if overview.savings.accounted:
        yield f"\nSaved now: {amount(overview.savings.saved, None)}; wasted now: {amount(overview.savings.available, None)}; "
        yield f"the agents use {overview.savings.own_cycles:,.0f} cycles/s; {pays(overview.savings.worthwhile)}.\n"


def _steps(overview: Overview, look: Look) -> Iterator[str]:
    yield "\n### What to do next\n\n"
    for number, step in enumerate(overview.steps, start=1):
        hosts = ", ".join(markdown_code(name, look) for name in step.hosts[:3])
        more = f" and {step.host_count - 3:,} more" if step.host_count > 3 else ""  # noqa: PLR2004 - those that are named
        where = f" {step.where}: {hosts}{more}." if step.host_count else ""
        command = f" `{step.command}`" if step.command else ""
        yield f"{number}. {_own(step.sentence)}{where}{f' {step.worth}' if step.worth else ''}{command}\n"
    if not overview.steps:
        yield "Nothing.\n"


def _own(sentence: str) -> str:
    """A sentence of ours, which may name an element of XML."""
    return sentence.replace("<", "\\<")


def _problem(problem: Problem, look: Look) -> Iterator[str]:
    where = ", ".join(markdown_code(name, look) for name in problem.subjects[:3])
    yield f"- **{label(problem.verdict).upper()}** {markdown_code(problem.rule, look)}, severity {problem.severity}, {problem.count:,} on "
    yield f"{counted(problem.host_count, 'host')} ({where}{', ...' if problem.count > 3 else ''}): "  # noqa: PLR2004 - those that are named
    yield f"{markdown_code(problem.reason, look)}\n"
    if problem.since is not None:
        yield f"  - since {problem.since:%Y-%m-%d %H:%M} UTC\n"
    if problem.remedy is not None and problem.verdict is Verdict.FAIL:
        yield f"  - remedy {markdown_code(problem.remedy, look)}\n"
    if problem.waiver is not None:
        yield f"  - waiver {markdown_code(problem.waiver, look)}\n"
    for evidence in problem.evidence[:_MOST_EVIDENCE]:
        yield f"  - {markdown_code(evidence.source, look)}: {markdown_code(evidence.value, look)}\n"


def _groups(overview: Overview, by: str, look: Look) -> Iterator[str]:
    yield f"\n### By {by}\n\n"
    rows: list[list[str | int]] = [
        [
            markdown_code(each.name, look),
            each.hosts,
            each.domains,
            *(each.by_verdict[verdict] for verdict in (Verdict.FAIL, Verdict.UNKNOWN, Verdict.PASS)),
        ]
        for each in overview.groups[:_MOST_GROUPS]
    ]
    yield from markdown_rows([by, "hosts", "domains", "fail", "unknown", "pass"], rows)
    yield _rest(len(overview.groups) - _MOST_GROUPS)


def _hosts(overview: Overview, look: Look) -> Iterator[str]:
    yield "\n### Hosts\n\n"
    rows: list[list[str | int]] = [
        [
            markdown_code(each.name, look),
            ("stale, " if each.stale else "") + state_word(each.exit_code),
            f"{label(each.kernel_state)} {markdown_code(each.kernel_release, look) if each.kernel_release else ''}",
            each.domains,
            each.by_verdict.get(Verdict.FAIL, 0),
            each.by_verdict.get(Verdict.UNKNOWN, 0),
        ]
        for each in overview.worst_hosts[:_MOST_HOSTS]
    ]
    yield from markdown_rows(["host", "state", "kernel", "domains", "fail", "unknown"], rows)
    yield _rest(len(overview.hosts) - _MOST_HOSTS)


def _rest(left: int) -> str:
    return f"\n... and {left:,} more: `exitguard report --format csv` has all.\n" if left > 0 else ""
