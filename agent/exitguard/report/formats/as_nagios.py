"""One status for Nagios and its kin, by the guidelines for plugins: a line, numbers behind a bar, then more lines.

CRITICAL: a failure of severity high. WARNING: any other failure. UNKNOWN: something is not known, stale, broken or could not be read. OK:
none of these. CRITICAL goes before UNKNOWN, and UNKNOWN before WARNING: a mild failure is not to hide that something could not be seen.
"""

from collections.abc import Iterator

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_NOT_COMPLIANT, Verdict
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import WORST_FIRST, Overview
from exitguard.report.page import counted
from exitguard.report.result import HostResult
from exitguard.report.states import state_word
from exitguard.report.text import visible

OK, WARNING, CRITICAL, UNKNOWN = range(4)
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_MOST_LINES = 20
_LIMIT_CHARACTERS = 200


def nagios_exit_code(overview: Overview) -> int:
    """What the plugin ends with."""
    if overview.fails_high:
        return CRITICAL
    if overview.exit_code not in (EXIT_COMPLIANT, EXIT_NOT_COMPLIANT) or _doubts(overview):
        return UNKNOWN
    return WARNING if overview.exit_code == EXIT_NOT_COMPLIANT else OK


def unknown_line(reason: str) -> str:
    """What is told where there is nothing to tell of."""
    return f"EXITGUARD {_WORDS[UNKNOWN]} - {_text(reason)}\n"


class NagiosWriter:
    """All of it at the end: the first line is the answer."""

    def __init__(self, setting: Setting) -> None:
        del setting

    def begin(self) -> Iterator[str]:
        yield from ()

    def host(self, result: HostResult) -> Iterator[str]:
        del result
        yield from ()

    def end(self, overview: Overview) -> Iterator[str]:
        yield f"EXITGUARD {_WORDS[nagios_exit_code(overview)]} - {_text(_sentence(overview))} | {_numbers(overview)}\n"
        lines = [
            f"{each.verdict} {each.rule}: {each.count:,} on {counted(each.host_count, 'host')}: {each.reason}" for each in overview.problems
        ]
        lines = [*overview.unread, *lines]
        for line in lines[:_MOST_LINES]:
            yield f"{_text(line)}\n"
        if len(lines) > _MOST_LINES:
            yield f"and {len(lines) - _MOST_LINES:,} more\n"


def _doubts(overview: Overview) -> bool:
    return bool(overview.stale or overview.by_verdict[Verdict.UNKNOWN] or overview.by_verdict[Verdict.ERROR])


def _sentence(overview: Overview) -> str:
    if len(overview.hosts) == 1:
        (host,) = overview.hosts
        said = f"{host.name} is {state_word(host.exit_code)}"
    else:
        counts = ", ".join(f"{overview.by_exit_code[code]:,} {state_word(code)}" for code in WORST_FIRST if overview.by_exit_code[code])
        said = f"{counted(len(overview.hosts), 'host')}: {counts or 'none'}"
    failing = overview.by_verdict[Verdict.FAIL]
    parts = [said, counted(failing, "check fails", "checks fail")]
    if overview.by_verdict[Verdict.WAIVED]:
        parts.append(f"{overview.by_verdict[Verdict.WAIVED]:,} waived")
    if overview.by_verdict[Verdict.UNKNOWN]:
        parts.append(f"{overview.by_verdict[Verdict.UNKNOWN]:,} undecided")
    if overview.stale:
        parts.append(f"{overview.stale:,} stale")
    if overview.unread:
        parts.append(f"{len(overview.unread):,} not readable")
    return ", ".join(parts)


def _numbers(overview: Overview) -> str:
    numbers = {f"hosts_{state_word(code).replace(' ', '_')}": overview.by_exit_code[code] for code in sorted(WORST_FIRST)}
    numbers |= {"hosts_stale": overview.stale, "domains": overview.domains}
    numbers |= {f"findings_{verdict}": overview.by_verdict[verdict] for verdict in Verdict}
    return " ".join(f"{name}={value};;;0" for name, value in numbers.items())


def _text(text: str) -> str:
    """Without the bar, behind which numbers begin."""
    return visible(text, limit_characters=_LIMIT_CHARACTERS).replace("|", "/")
