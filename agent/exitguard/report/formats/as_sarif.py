"""SARIF 2.1.0 (OASIS) for tools that collect findings: one run, a result a finding.

`kind` tells pass, fail, open (not known) and notApplicable apart; only a failure has a level other than none. A waived failure is a failure
with a suppression. What broke, is stale or could not be read is a notification of the invocation, which then was no success.
Results stream, so the driver with its rules stands behind them: the order of an object's members says nothing.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from exitguard import __version__
from exitguard.model.finding import Finding, Severity, SubjectKind, Verdict
from exitguard.model.time import format_rfc3339
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import Overview
from exitguard.report.result import HostResult
from exitguard.report.text import visible

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_KINDS = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.WAIVED: "fail",
    Verdict.NOT_APPLICABLE: "notApplicable",
    Verdict.UNKNOWN: "open",
    Verdict.ERROR: "open",
}
_LEVELS = {Severity.HIGH: "error", Severity.MEDIUM: "warning", Severity.LOW: "note", Severity.INFO: "note"}
_LIMIT_CHARACTERS = 1000


class SarifWriter:
    """Results as the hosts come; rules and notifications at the end."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._rules: dict[str, int] = {}
        self._severities: dict[str, Severity] = {}
        self._notifications: list[dict[str, Any]] = []
        self._written = False

    def begin(self) -> Iterator[str]:
        yield f'{{"$schema": "{_SCHEMA}", "version": "2.1.0", "runs": [{{"columnKind": "unicodeCodePoints", "results": ['

    def host(self, result: HostResult) -> Iterator[str]:
        if result.stale:
            at = f"{result.report.observed_at:%Y-%m-%d %H:%M} UTC"
            self._notify(f"{result.name}: stale: looked at {at}, more than a day before; it does not speak for the host now", "warning")
        made = []
        for finding in result.told.findings:
            self._severities.setdefault(finding.rule, finding.severity)
            index = self._rules.setdefault(finding.rule, len(self._rules))
            if finding.verdict is Verdict.ERROR:
                self._notify(f"{result.name}: {finding.rule} broke: {finding.reason}", "error")
            made.append(_result(finding, index, result))
        if made:
            # One call for all of a host, without the brackets: a call for each would take as long as its text.
            yield f"{',' if self._written else ''}\n{json.dumps(made)[1:-1]}"
            self._written = True

    def end(self, overview: Overview) -> Iterator[str]:
        for sentence in overview.unread:
            self._notify(sentence, "error")
        invocation = {
            "executionSuccessful": not any(each["level"] == "error" for each in self._notifications),
            "exitCode": overview.exit_code,
            "endTimeUtc": format_rfc3339(self._setting.generated_at),
            "toolExecutionNotifications": self._notifications,
        }
        driver = {
            "name": "exitguard",
            "semanticVersion": __version__,
            "rules": [self._rule(rule) for rule in self._rules],
        }
        yield f'\n], "invocations": [{json.dumps(invocation)}],\n"tool": {{"driver": {json.dumps(driver)}}}}}]}}\n'

    def _rule(self, rule: str) -> dict[str, Any]:
        shown = _text(rule)
        known = self._setting.rules.get(rule)
        told: dict[str, Any] = {
            "id": shown,
            "shortDescription": {"text": shown if known is None else _text(known.title)},
            "defaultConfiguration": {"level": _LEVELS[self._severities[rule]]},
            "help": {"text": f"`exitguard explain {shown}` tells what it demands, and why."},
        }
        if known is not None:
            told["fullDescription"] = {"text": _text(known.rationale)}
        return told

    def _notify(self, text: str, level: str) -> None:
        self._notifications.append({"level": level, "message": {"text": _text(text)}})


def _result(finding: Finding, index: int, result: HostResult) -> dict[str, Any]:
    subject = finding.subject
    # What was seen to pass long ago is not known to pass now.
    kind = "open" if result.stale and finding.verdict is Verdict.PASS else _KINDS[finding.verdict]
    failed = kind == "fail"
    host = {"name": _text(result.name), "fullyQualifiedName": result.report.host.id, "kind": "host"}
    about = {
        "name": _text(subject.name or subject.id),
        "fullyQualifiedName": f"{result.report.host.id}/{_text(subject.id)}",
        "kind": subject.kind,
    }
    locations = [host] if subject.kind is SubjectKind.HOST else [about, host]
    # As an ASCII literal the parts are kept apart, whatever is in them.
    fingerprint = sha256(ascii((finding.rule, result.report.host.id, str(subject.kind), subject.id)).encode("ascii"))
    found: dict[str, Any] = {
        "ruleId": _text(finding.rule),
        "ruleIndex": index,
        "kind": kind,
        "level": _LEVELS[finding.severity] if failed else "none",
        "message": {"text": _text(finding.reason)},
        "locations": [{"logicalLocations": locations}],
        "partialFingerprints": {"ruleAndSubject/v1": fingerprint.hexdigest()},
        "properties": {
            "verdict": finding.verdict,
            "severity": finding.severity,
            "since": None if finding.since is None else format_rfc3339(finding.since),
            "remedy": finding.remedy,
            "stale": result.stale,
            "evidence": [f"{_text(each.source)}: {_text(each.value)}" for each in finding.evidence],
        },
    }
    if finding.verdict is Verdict.WAIVED:
        found["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": f"waiver {_text(finding.waiver or 'without an id')}"}
        ]
    return found


def _text(text: str) -> str:
    return visible(text, limit_characters=_LIMIT_CHARACTERS)
