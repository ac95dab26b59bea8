"""Many hosts for a person at a terminal: the answer, what to do next by what it is worth, what is wrong, groups, the worst hosts."""

from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.finding import Verdict
from exitguard.model.pmu import ChainState
from exitguard.report.bars import bar
from exitguard.report.fleet_savings_page import savings_parts
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import WORST_FIRST, Group, HostLine, Overview, Problem
from exitguard.report.page import (
    BAD,
    DOUBT,
    FAINT,
    GOOD,
    STRONG,
    Look,
    columns,
    counted,
    hanging,
    heading,
    indented,
    labelled,
    listed,
    render,
)
from exitguard.report.states import STATES
from exitguard.report.steps import Step
from exitguard.report.table_findings import SEVERITY_STYLES, VERDICT_STYLES
from exitguard.report.words import label

_MOST_PROBLEMS, _MOST_GROUPS, _MOST_HOSTS, _MOST_UNREAD = 12, 30, 20, 5
_BAR_COLUMNS = 24


def fleet_table(overview: Overview, setting: Setting) -> str:
    """The page."""
    return render(setting.look, _parts(overview, setting))


def _parts(overview: Overview, setting: Setting) -> Iterator[RenderableType]:
    look = setting.look
    yield _headline(overview, look)
    yield _circumstances(overview, setting)
    for sentence in overview.unread[:_MOST_UNREAD]:
        yield hanging(look, "!", look.foreign(sentence, BAD, limit_characters=400))
    if len(overview.unread) > _MOST_UNREAD:
        yield indented(look.own(f"… and {counted(len(overview.unread) - _MOST_UNREAD, 'more', 'more')} that could not be read", BAD))
    yield from _states(overview, look)
    yield from _steps(overview.steps, look)
    yield from _problems(overview, look)
    if setting.group_by is not None:
        yield from _groups(overview.groups, setting.group_by, look)
    yield from _hosts(overview.worst_hosts, look)


def _headline(overview: Overview, look: Look) -> Text:
    word, style = STATES[overview.exit_code]
    counts = [f"{overview.by_exit_code[code]:,} {STATES[code][0]}" for code in WORST_FIRST if overview.by_exit_code[code]]
    return Text.assemble(
        look.own(word.upper(), f"bold {style}"), look.own(f"  {counted(len(overview.hosts), 'host')}: {', '.join(counts) or 'none'}.")
    )


def _circumstances(overview: Overview, setting: Setting) -> Text:
    parts = [f"exit {overview.exit_code}", counted(overview.domains, "domain")]
    if overview.stale:
        parts.append(f"{overview.stale:,} stale: looked at more than a day before")
    if overview.by_verdict[Verdict.WAIVED]:
        parts.append(f"{overview.by_verdict[Verdict.WAIVED]:,} waived")
    if setting.at is not None:
        parts.append(f"as of {setting.at:%Y-%m-%d %H:%M} UTC")
    if setting.only:
        parts.append(f"listed are only findings that are {', '.join(label(each) for each in setting.only)}")
    return setting.look.own(" · ".join(parts), FAINT)


def _states(overview: Overview, look: Look) -> Iterator[RenderableType]:
    yield heading(look, "Domains by chain state")
    rows = [(label(state), overview.by_chain[state], GOOD if state is ChainState.EFFECTIVE else "") for state in ChainState]
    yield labelled(look, [(name, _bar(count, overview.domains, style, look)) for name, count, style in rows if count])
    if not overview.domains:
        yield indented(look.own("no domain", DOUBT))
    yield heading(look, "Kernels")
    yield labelled(look, [(label(state), _bar(count, len(overview.hosts), "", look)) for state, count in overview.by_kernel.most_common()])
    yield from savings_parts(overview.savings, look)


def _bar(count: int, most: int, style: str, look: Look) -> Text:
    return Text.assemble(look.own(f"{count:>9,} "), look.own(bar(count, most, _BAR_COLUMNS, unicode=look.unicode), style))


def _steps(steps: list[Step], look: Look) -> Iterator[RenderableType]:
    yield heading(look, "What to do next", "what is worth most first")
    for number, step in enumerate(steps, start=1):
        yield hanging(
            look,
            f"{number}.",
            Text.assemble(
                look.own(step.sentence),
                *_step_hosts(step, look),
                look.own(f" {step.worth}" if step.worth else "", STRONG),
                look.own(f" `{step.command}`" if step.command else "", FAINT),
            ),
        )
    if not steps:
        yield indented(look.own("Nothing."))


def _step_hosts(step: Step, look: Look) -> Iterator[Text]:
    if step.host_count:
        yield look.own(f" {step.where}: ", FAINT)
        yield look.foreign(listed(step.hosts, most=3) if step.host_count <= len(step.hosts) else _first(step), FAINT)
        yield look.own(".")


def _first(step: Step) -> str:
    return f"{', '.join(step.hosts[:3])} and {step.host_count - 3:,} more"


def _problems(overview: Overview, look: Look) -> Iterator[RenderableType]:
    problems = overview.problems
    if not problems:
        return
    yield heading(look, "What is wrong")
    for each in problems[:_MOST_PROBLEMS]:
        yield indented(
            Text.assemble(
                look.own(label(each.verdict).upper(), f"bold {VERDICT_STYLES[each.verdict]}"),
                " ",
                look.foreign(each.rule, STRONG),
                look.own("  severity ", FAINT),
                look.own(each.severity, SEVERITY_STYLES[each.severity]),
                look.own(f"  {each.count:,} on {counted(each.host_count, 'host')}", FAINT),
            )
        )
        yield indented(look.foreign(each.reason, limit_characters=400), 4)
        yield labelled(look, _particulars(each, look), columns=6)
    if len(problems) > _MOST_PROBLEMS:
        yield indented(look.own(f"… and {len(problems) - _MOST_PROBLEMS:,} more, see --format html or json", DOUBT))


def _particulars(each: Problem, look: Look) -> list[tuple[str, Text]]:
    rows = [
        ("where", look.foreign(listed(each.subjects, most=3) if each.count <= len(each.subjects) else ", ".join(each.subjects[:3]) + " …"))
    ]
    if each.waiver is not None:
        rows.append(("waiver", look.foreign(each.waiver)))
    if each.since is not None:
        rows.append(("since", look.own(f"{each.since:%Y-%m-%d %H:%M} UTC")))
    if each.remedy is not None and each.verdict is Verdict.FAIL:
        rows.append(("remedy", look.foreign(each.remedy)))
    return rows


def _groups(groups: list[Group], by: str, look: Look) -> Iterator[RenderableType]:
    yield heading(look, f"By {by}", "the most failures first")
    yield columns(look, (by, "hosts", "domains", "fail", "unknown", "pass"), (_group(each, look) for each in groups[:_MOST_GROUPS]))
    if len(groups) > _MOST_GROUPS:
        yield indented(look.own(f"… and {len(groups) - _MOST_GROUPS:,} more", DOUBT))


def _group(each: Group, look: Look) -> tuple[Text, ...]:
    counts = tuple(
        look.own(f"{each.by_verdict[verdict]:,}", style if each.by_verdict[verdict] else FAINT)
        for verdict, style in ((Verdict.FAIL, BAD), (Verdict.UNKNOWN, DOUBT), (Verdict.PASS, GOOD))
    )
    return (look.foreign(each.name, limit_characters=80), look.own(f"{each.hosts:,}"), look.own(f"{each.domains:,}"), *counts)


def _hosts(worst: list[HostLine], look: Look) -> Iterator[RenderableType]:
    yield heading(look, "Hosts", "the worst first")
    yield columns(look, ("host", "state", "kernel", "domains", "fail", "unknown"), (_host(each, look) for each in worst[:_MOST_HOSTS]))
    if len(worst) > _MOST_HOSTS:
        left = Counter(each.exit_code for each in worst[_MOST_HOSTS:])
        said = ", ".join(f"{left[code]:,} {STATES[code][0]}" for code in WORST_FIRST if left[code])
        yield indented(look.own(f"… and {len(worst) - _MOST_HOSTS:,} more ({said}), see --format csv or html", DOUBT))


def _host(each: HostLine, look: Look) -> tuple[Text, ...]:
    word, style = STATES[each.exit_code]
    return (
        look.foreign(each.name, limit_characters=64),
        look.own(f"stale, {word}" if each.stale else word, style),
        look.own(label(each.kernel_state)),
        look.own(f"{each.domains:,}"),
        look.own(f"{each.by_verdict.get(Verdict.FAIL, 0):,}"),
        look.own(f"{each.by_verdict.get(Verdict.UNKNOWN, 0):,}"),
    )
