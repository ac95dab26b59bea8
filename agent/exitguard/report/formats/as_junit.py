"""JUnit XML for CI: a suite a host, a case a finding.

`failure` is a check that fails, `error` one that broke or could not be decided, `skipped` one that is waived or does not apply. Unknown
is an error and not skipped: CI takes skipped for good, and not knowing is no pass. A stale host has a case of its own that is an error,
and what passed then is skipped. Sums over all suites are left out (they are optional): hosts are written as they are read.
"""

import re
from collections import Counter
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from exitguard.model.finding import Finding, Verdict
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import Overview
from exitguard.report.result import HostResult
from exitguard.report.text import visible

_ERRORS = (Verdict.ERROR, Verdict.UNKNOWN)
_SKIPPED = (Verdict.WAIVED, Verdict.NOT_APPLICABLE)
_LIMIT_CHARACTERS = 400
#: What XML 1.0 (section 2.2) has no place for, not even escaped; `visible` leaves none of it, and this is the proof.
_NO_XML = re.compile("[^\\t\\n\\r -\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


class JunitWriter:
    """Suites as the hosts come."""

    def __init__(self, setting: Setting) -> None:
        del setting  # nothing of it changes a suite

    def begin(self) -> Iterator[str]:
        yield '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="exitguard">\n'

    def host(self, result: HostResult) -> Iterator[str]:
        report = result.report
        tally = Counter(finding.verdict for finding in report.findings)
        counts = {
            "tests": len(report.findings) + result.stale,
            "failures": tally[Verdict.FAIL],
            "errors": sum(tally[each] for each in _ERRORS) + result.stale,
            "skipped": sum(tally[each] for each in _SKIPPED) + (tally[Verdict.PASS] if result.stale else 0),
        }
        attributes = " ".join(f'{name}="{count}"' for name, count in counts.items())
        # Without an offset, which the format has no place for; in UTC.
        names = f"name={_attribute(result.name)} id={_attribute(report.host.id)}"
        yield f'  <testsuite {names} timestamp="{report.observed_at:%Y-%m-%dT%H:%M:%S}" {attributes}>\n'
        if result.stale:
            message = f"looked at {report.observed_at:%Y-%m-%d %H:%M} UTC, more than a day before: it does not speak for the host now"
            yield _case("staleness", result.name, f'<error type="stale" message={_attribute(message)}/>')
        for finding in report.findings:
            yield _case(
                f"{finding.rule} {finding.subject.name or finding.subject.id}",
                f"{result.name}.{finding.rule}",
                _outcome(finding, stale=result.stale),
            )
        yield "  </testsuite>\n"

    def end(self, overview: Overview) -> Iterator[str]:
        if overview.unread:
            count = len(overview.unread)
            yield f'  <testsuite name="reports that could not be read" tests="{count}" failures="0" errors="{count}" skipped="0">\n'
            for number, sentence in enumerate(overview.unread, start=1):
                yield _case(f"report {number}", "unread", f'<error type="unread" message={_attribute(sentence)}/>')
            yield "  </testsuite>\n"
        yield "</testsuites>\n"


def _case(name: str, of: str, inside: str) -> str:
    return f"    <testcase name={_attribute(name)} classname={_attribute(of)}{f'>{inside}</testcase>' if inside else '/>'}\n"


def _outcome(finding: Finding, *, stale: bool) -> str:
    if finding.verdict is Verdict.PASS:
        return '<skipped type="stale" message="passed when the host was last looked at"/>' if stale else ""
    element = "failure" if finding.verdict is Verdict.FAIL else "error" if finding.verdict in _ERRORS else "skipped"
    waived = f" (waiver {finding.waiver})" if finding.waiver is not None else ""
    head = f"{element} type={_attribute(finding.verdict)} message={_attribute(f'{finding.verdict}{waived}: {finding.reason}')}"
    if element == "skipped":
        return f"<{head}/>"
    lines = [f"severity: {finding.severity}"]
    if finding.since is not None:
        lines.append(f"since: {finding.since:%Y-%m-%d %H:%M} UTC")
    if finding.remedy is not None:
        lines.append(f"remedy: {finding.remedy}")
    lines += [f"{each.source}: {each.value}" for each in finding.evidence]
    return f"<{head}>{escape(chr(10).join(map(_text, lines)))}</{element}>"


def _attribute(text: str) -> str:
    return quoteattr(_text(text))


def _text(text: str) -> str:
    return _NO_XML.sub("\ufffd", visible(text, limit_characters=_LIMIT_CHARACTERS))
