"""The page for a terminal: one host in full, several hosts as a fleet."""

from collections.abc import Iterator

from exitguard.report.fleet_table import fleet_table
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import Overview
from exitguard.report.result import HostResult
from exitguard.report.table import Told, audit_table


class TableWriter:
    """Summary first, so everything is written at the end."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._first: HostResult | None = None

    def begin(self) -> Iterator[str]:
        yield from ()

    def host(self, result: HostResult) -> Iterator[str]:
        self._first = self._first or result
        yield from ()

    def end(self, overview: Overview) -> Iterator[str]:
        alone = len(overview.hosts) == 1 and not overview.unread and self._setting.group_by is None
        if alone and self._first is not None:
            first, setting = self._first, self._setting
            yield audit_table(first.report, setting.look, Told(first.stale, setting.at, setting.only))
        else:
            yield fleet_table(overview, self._setting)
