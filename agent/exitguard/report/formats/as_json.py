"""JSON: one host's report as `exitguard audit` prints it; several as one document with what they come to."""

from collections.abc import Iterator
from typing import Literal

from exitguard.model.documents import AuditReport
from exitguard.model.record import Record
from exitguard.model.time import UtcTime, format_rfc3339
from exitguard.report.formats.writer import Setting
from exitguard.report.json_document import json_line, json_text
from exitguard.report.overview import Overview
from exitguard.report.result import HostResult


class ReportsSummary(Record):
    """What the hosts come to."""

    exit_code: int
    hosts: int
    #: Keyed by exit code, of hosts as they may be told now: a stale one is not compliant.
    hosts_by_exit_code: dict[str, int]
    #: Ids.
    stale_hosts: tuple[str, ...]
    #: A sentence for each report that could not be read.
    unread: tuple[str, ...]
    by_verdict: dict[str, int]
    by_chain: dict[str, int]


class Reports(Record):
    """Several hosts in one document; the summary stands last, since hosts are written as they are read."""

    schema_version: Literal[1] = 1
    generated_at: UtcTime
    reports: tuple[AuditReport, ...]
    summary: ReportsSummary


class JsonWriter:
    """One host alone as its own report, several as `Reports`."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._first: HostResult | None = None
        self._written = 0

    def begin(self) -> Iterator[str]:
        yield from ()

    def host(self, result: HostResult) -> Iterator[str]:
        if self._first is None:
            self._first = result  # alone it is no list
            return
        if not self._written:
            yield self._opening()
            yield from self._entry(self._first)
        yield from self._entry(result)

    def end(self, overview: Overview) -> Iterator[str]:
        if self._first is not None and not self._written:
            if not overview.unread:
                yield json_text(self._first.told)
                return
            # What could not be read has a place in the list alone.
            yield self._opening()
            yield from self._entry(self._first)
        if not self._written:
            yield self._opening()
        yield f'\n], "summary": {json_line(_summary(overview))}}}\n'

    def _opening(self) -> str:
        return f'{{"schema_version": 1, "generated_at": "{format_rfc3339(self._setting.generated_at)}", "reports": ['

    def _entry(self, result: HostResult) -> Iterator[str]:
        yield f"{',' if self._written else ''}\n{json_line(result.told)}"
        self._written += 1


def _summary(overview: Overview) -> ReportsSummary:
    return ReportsSummary(
        exit_code=overview.exit_code,
        hosts=len(overview.hosts),
        hosts_by_exit_code={str(code): count for code, count in sorted(overview.by_exit_code.items())},
        stale_hosts=tuple(each.id for each in overview.hosts if each.stale),
        unread=tuple(overview.unread),
        by_verdict=dict(overview.by_verdict),
        by_chain=dict(overview.by_chain),
    )
