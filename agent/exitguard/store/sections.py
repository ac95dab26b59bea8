"""A report as parts that change one by one, and back: pure.

The parts are the head (host, policy, summary), each domain, each finding, and the order in which they stand. A part says
`"observed_at":null` where the report has its own observed_at, so that looking again and seeing the same changes no part;
any other time, such as that of stale evidence, stays as it is.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from exitguard.model.documents import AuditReport
from exitguard.model.finding import Finding, Verdict
from exitguard.model.time import format_rfc3339

HEAD = "head"
ORDER = "order"
DOMAIN = "domain"
FINDING = "finding"
_ORDERED = (HEAD, DOMAIN, FINDING)

#: In JSON text, a quote inside a string is escaped; so these bytes are a whole key and its value, never a part of some text.
_UNSTAMPED = b'"observed_at":null'


class Key(NamedTuple):
    """What a part is about. `ordinal` tells apart what a report says twice of the same subject."""

    kind: str
    rule: str = ""
    subject_kind: str = ""
    subject_id: str = ""
    ordinal: int = 0


@dataclass(frozen=True)
class Section:
    """One part of a report, ready to be stored."""

    key: Key
    body: bytes
    subject_name: str = ""
    verdict: Verdict | None = None
    since: datetime | None = None

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.body).digest()


@dataclass(frozen=True)
class Held:
    """A part as the store holds it now; `row` is its row, `line` what the order calls it."""

    row: int
    line: int
    digest: bytes
    subject_name: str
    verdict: Verdict | None
    since: datetime | None


@dataclass(frozen=True)
class Changes:
    """What a report changes in the store: rows that no longer hold, and parts that hold from now on with their lines."""

    ended_rows: list[int] = field(default_factory=list)
    begun: list[tuple[Section, int]] = field(default_factory=list)


def finding_keys(findings: Iterable[Finding]) -> list[Key]:
    """The key of each finding, in the same order; all different."""
    seen: Counter[Key] = Counter()
    keys = []
    for finding in findings:
        key = Key(FINDING, finding.rule, finding.subject.kind, finding.subject.id)
        keys.append(key._replace(ordinal=seen[key]))
        seen[key] += 1
    return keys


def split(report: AuditReport) -> list[Section]:
    """The parts of `report` but the order: the head first, then domains and findings as the report has them."""
    stamp = _stamp(report.observed_at)
    head = report.model_dump_json(exclude={"observed_at", "domains", "findings"})
    sections = [Section(Key(HEAD), _unstamped(head, stamp))]
    uuids: Counter[str] = Counter()
    for domain in report.domains:
        key = Key(DOMAIN, subject_id=domain.uuid, ordinal=uuids[domain.uuid])
        sections.append(Section(key, _unstamped(domain.model_dump_json(), stamp), subject_name=domain.name))
        uuids[domain.uuid] += 1
    for key, finding in zip(finding_keys(report.findings), report.findings, strict=True):
        body = _unstamped(finding.model_dump_json(), stamp)
        sections.append(Section(key, body, finding.subject.name, finding.verdict, finding.since))
    return sections


def compare(sections: list[Section], held: Mapping[Key, Held]) -> Changes:
    """What storing `sections` changes, where `held` is what the store holds now."""
    changes = Changes()
    next_line = max((part.line for part in held.values()), default=-1) + 1
    lines = []
    for section in sections:
        before = held.get(section.key)
        line = next_line if before is None else before.line
        next_line += before is None
        lines.append(line)
        _note_change(changes, section, before, line)
    order = Section(Key(ORDER), _encode_order(lines))
    _note_change(changes, order, held.get(order.key), next_line)
    present = {section.key for section in sections} | {order.key}
    changes.ended_rows.extend(part.row for key, part in held.items() if key not in present)
    return changes


def join(parts: Iterable[tuple[str, int, bytes]], observed_at: datetime) -> AuditReport:
    """The report of `observed_at` from (kind, line, body) of all its parts. Raises ValueError where they do not make one."""
    by_line = {line: (kind, body) for kind, line, body in parts}
    orders = [body for kind, body in by_line.values() if kind == ORDER]
    if len(orders) != 1:
        raise ValueError(f"a report has {len(orders)} orders of its parts instead of one")
    lines = _decode_order(orders[0])
    if sorted(lines) != sorted(line for line, (kind, _) in by_line.items() if kind != ORDER):
        raise ValueError("the order of a report does not name exactly its parts")
    listed = {wanted: b",".join(body for kind, body in map(by_line.__getitem__, lines) if kind == wanted) for wanted in _ORDERED}
    # The head is a JSON object with at least one member: its opening brace gives way to the members that were taken out.
    text = b'{"observed_at":null,"domains":[%b],"findings":[%b],%b' % (listed[DOMAIN], listed[FINDING], listed[HEAD][1:])
    return AuditReport.model_validate_json(text.replace(_UNSTAMPED, _stamp(observed_at)))


def _note_change(changes: Changes, section: Section, before: Held | None, line: int) -> None:
    if before is not None and before.digest == section.digest:
        return
    if before is not None:
        changes.ended_rows.append(before.row)
    changes.begun.append((section, line if before is None else before.line))


def _stamp(observed_at: datetime) -> bytes:
    return b'"observed_at":"%b"' % format_rfc3339(observed_at).encode("ascii")


def _unstamped(text: str, stamp: bytes) -> bytes:
    return text.encode("utf-8").replace(stamp, _UNSTAMPED)


def _encode_order(lines: list[int]) -> bytes:
    """Runs of consecutive lines as [first, count]: short, since what stood together mostly stays together."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([line, 1])
    return json.dumps(runs, separators=(",", ":")).encode("ascii")


def _decode_order(body: bytes) -> list[int]:
    return [line for first, count in json.loads(body) for line in range(first, first + count)]
