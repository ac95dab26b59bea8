"""What a format has to be, and what it is told beside the hosts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from exitguard.model.finding import Verdict
from exitguard.report.overview import GroupKey, Overview
from exitguard.report.page import Look
from exitguard.report.result import HostResult


@dataclass(frozen=True)
class RuleText:
    """What a rule demands, and why an operator cares."""

    title: str
    rationale: str


@dataclass(frozen=True)
class Setting:
    """What was asked for, and when."""

    generated_at: datetime
    look: Look
    #: The time that the report is of, where it is not now.
    at: datetime | None = None
    only: tuple[Verdict, ...] = ()
    group_by: GroupKey | None = None
    #: By id. The policy that hosts were judged by may have others.
    rules: Mapping[str, RuleText] = field(default_factory=dict)


class Writer(Protocol):
    """Gives text as soon as it can: nothing is kept of a host but what the end needs.

    `begin` is called once, then `host` for each host, then `end` with what all of them come to.
    """

    def begin(self) -> Iterator[str]: ...

    def host(self, result: HostResult) -> Iterator[str]: ...

    def end(self, overview: Overview) -> Iterator[str]: ...
