"""The reports of a whole fleet, as its hub tells them, with what only a hub can tell of hosts.

What is so of all hosts is known before the first of them is told: so the hub's answer waits in a temporary file meanwhile, packed.
"""

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from pydantic import ValidationError

from exitguard.audit.fleet import Member, clears_here, judge_fleet, report_of_unheard, with_findings
from exitguard.cli.fleet import hosts_of
from exitguard.model.documents import AuditReport
from exitguard.model.host import Cpu, KvmFacts, QemuBinary
from exitguard.model.hub import FleetHost
from exitguard.model.rates import HostSavings
from exitguard.model.record import Observed, Record
from exitguard.model.time import UtcTime, format_rfc3339

if TYPE_CHECKING:
    from exitguard.fleet.operator import HubOperator
    from exitguard.model.finding import Finding
    from exitguard.policy.schema import Rulebook

_ZLIB_LEVEL = 1
_LENGTH_BYTES = 4


class _HostHead(Record):
    id: str
    hostname: str | None
    cpu: Observed[Cpu]
    kvm: KvmFacts
    qemu: Observed[tuple[QemuBinary, ...]]


class _ReportHead(Record):
    host: _HostHead


class _LineHead(Record):
    """What of a line bears on other hosts; the rest is skipped unparsed."""

    host_id: str
    received_at: UtcTime
    report: _ReportHead


class _Line(Record):
    host_id: str
    received_at: UtcTime
    report: AuditReport
    savings: HostSavings | None = None


@dataclass
class FleetReports:
    """Everything that the hub told: a context manager. `read` gives the reports one by one."""

    at: datetime
    rulebook: "Rulebook"
    members: dict[str, Member] = field(default_factory=dict)
    #: A sentence for each report that is none.
    unread: list[str] = field(default_factory=list)
    _held: BinaryIO = field(default_factory=tempfile.TemporaryFile)
    _findings: dict[str, tuple["Finding", ...]] = field(default_factory=dict)
    _clocks: dict[str, float | None] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._held.close()

    def fetch(self, hub: "HubOperator", at: datetime | None) -> None:
        """Ask for all of it, as it is now or was at `at`. Raises HubError, OSError."""
        for host in hosts_of(hub):
            if host.enrolled_at <= self.at:
                self.members[host.host_id] = _member(host, of_the_past=at is not None)
                self._clocks[host.host_id] = host.clock_ahead_seconds
        for line in hub.raw_lines("/v1/reports", None if at is None else {"at": format_rfc3339(at)}):
            self._hold(line, of_the_past=at is not None)
        self._findings = judge_fleet(self.members.values(), self.rulebook, self.at)

    def read(self) -> Iterator[tuple[AuditReport, datetime | None]]:
        """Each host's report with the fleet's findings of it, and until when the hub knows it to be so; None where it never reported."""
        self._held.seek(0)
        while length := self._held.read(_LENGTH_BYTES):
            content = zlib.decompress(self._held.read(int.from_bytes(length)))
            try:
                line = _Line.model_validate_json(content)
            except ValidationError as error:
                self._misfit(content, error)
                continue
            report = line.report.model_copy(update={"savings": line.savings})
            yield with_findings(report, self._findings[line.host_id]), self._known_at(line)
        policy = f"{self.rulebook.policy.id} {self.rulebook.policy.version}"
        for host_id, member in self.members.items():
            if host_id not in self._reported:
                yield report_of_unheard(member, self._findings[host_id], policy, self.at), None

    def _hold(self, line: bytes, *, of_the_past: bool) -> None:
        try:
            head = _LineHead.model_validate_json(line)
        except ValidationError as error:
            self._misfit(line, error)
            return
        host = head.report.host
        member = self.members.get(head.host_id)
        if member is None or host.id != head.host_id or head.host_id in self._reported:
            return  # let in only now, or no hub's answer
        self._reported.add(head.host_id)
        packed = zlib.compress(line, _ZLIB_LEVEL)
        self._held.write(len(packed).to_bytes(_LENGTH_BYTES) + packed)
        self.members[head.host_id] = replace(
            member,
            name=host.hostname or member.name,
            heard_at=min(head.received_at, self.at) if of_the_past else member.heard_at,
            cpu_model_name=None if host.cpu.value is None else host.cpu.value.model_name,
            clears=clears_here(host.kvm, host.qemu, self.rulebook.qemus),
        )

    def _known_at(self, line: _Line) -> datetime:
        """By the hub's clock: a host may push other things long after its last audit, and its own clock may be wrong."""
        observed_at = line.report.observed_at - timedelta(seconds=self._clocks.get(line.host_id) or 0)
        return min(line.received_at, observed_at)

    def _misfit(self, content: bytes, error: ValidationError) -> None:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        of = content[:60].decode("utf-8", "replace")
        self.unread.append(f"the hub's report {of}...: {where}: {first['msg']}. Expected one of this version or an older one.")


def _member(host: FleetHost, *, of_the_past: bool) -> Member:
    return Member(
        host_id=host.host_id,
        name=host.hostname or host.host_id,
        enrolled_at=host.enrolled_at,
        may_write=host.may_write or of_the_past,
        heard_at=None if of_the_past else host.received_at,
        clock_ahead_seconds=None if of_the_past else host.clock_ahead_seconds,
    )
