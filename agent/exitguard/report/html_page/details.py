"""The details of hosts, domains and findings in one compact text: what is said twice is stored once, and the whole is compressed.

    {"texts": [...], "evidence": [[[source, value, at], ...], ...], "links": [[[name, holds, reason], ...], ...],
     "code": [[[where, instruction, note], ...], ...], "hosts": [[findings, domains], ...]}

where a finding is [rule, verdict, severity, subject, reason, evidence, remedy, waiver, since, title, code] and a domain [name, uuid, state,
reason, persistent, live, action, owner, links, evidence]. Every text is its place among the texts, -1 for none.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache

from exitguard.model.documents import DecidingCode, DomainReport
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding
from exitguard.report.result import HostResult
from exitguard.report.text import visible
from exitguard.report.words import label

_LIMIT_CHARACTERS = 400
_Row = tuple[int, ...]


@lru_cache(maxsize=1024)
def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


class Details:
    """Collects the hosts in their order."""

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._titles = titles
        self._code: dict[tuple[_Row, ...], int] = {}
        self._texts: dict[str, int] = {}
        self._evidence: dict[tuple[_Row, ...], int] = {}
        self._links: dict[tuple[_Row, ...], int] = {}
        self._hosts: list[tuple[list[_Row], list[_Row]]] = []

    def add(self, result: HostResult) -> None:
        """One more host."""
        self._hosts.append(
            ([self._finding(each, result) for each in result.told.findings], [self._domain(each) for each in result.told.domains])
        )

    def encoded(self) -> str:
        """Base64 of the deflated JSON; ASCII without anything that HTML could take for markup."""
        document = {
            "texts": [visible(text, limit_characters=_LIMIT_CHARACTERS) for text in self._texts],
            "evidence": list(self._evidence),
            "links": list(self._links),
            "code": list(self._code),
            "hosts": self._hosts,
        }
        text = json.dumps(document, separators=(",", ":"))
        return base64.b64encode(zlib.compress(text.encode("ascii"), 6)).decode("ascii")

    def _finding(self, finding: Finding, result: HostResult) -> _Row:
        code = result.code_of(finding.evidence)
        return (
            self._text(finding.rule),
            self._text("passed then" if result.verdict_now(finding.verdict) is not finding.verdict else label(finding.verdict)),
            self._text(finding.severity),
            self._text(finding.subject.name or finding.subject.id),
            self._text(finding.reason),
            self._evidence_of(finding.evidence),
            self._text(finding.remedy),
            self._text(finding.waiver),
            self._text(None if finding.since is None else _minute(finding.since)),
            self._text(self._titles.get(finding.rule)),
            -1 if code is None else self._code_of(code),
        )

    def _domain(self, domain: DomainReport) -> _Row:
        chain = domain.chain
        links = tuple((self._text(label(each.name)), self._text(each.holds), self._text(each.reason)) for each in chain.links)
        return (
            self._text(domain.name),
            self._text(domain.uuid),
            self._text(label(chain.state)),
            self._text(chain.reason),
            self._text(label(domain.pmu.persistent)),
            self._text(label(domain.pmu.live)),
            self._text(label(chain.next_action)),
            self._text(domain.owner.name),
            self._links.setdefault(links, len(self._links)),
            self._evidence_of(domain.evidence),
        )

    def _evidence_of(self, evidence: Sequence[Evidence]) -> int:
        rows = tuple((self._text(each.source), self._text(each.value), self._text(_minute(each.observed_at))) for each in evidence)
        return self._evidence.setdefault(rows, len(self._evidence))

    def _code_of(self, code: DecidingCode) -> int:
        rows = tuple(
            (self._text(f"{each.function}+{each.address:#x}"), self._text(each.text), self._text(each.note)) for each in code.instructions
        )
        return self._code.setdefault(rows, len(self._code))

    def _text(self, text: str | None) -> int:
        return -1 if text is None else self._texts.setdefault(text, len(self._texts))
