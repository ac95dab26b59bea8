"""A report as parts that change one by one, and back: pure.

The parts are the head (host, policy, summary), each domain, each finding, and the order in which they stand. A part says
`"observed_at":null` for the time at which it was last observed, so that looking again and seeing the same changes no part; any
other time, such as that of stale evidence, stays as it is.

When a part was last observed follows from where it stands in the history, and never claims too much:

- A full audit looks at everything: its parts were observed by it.
- An update looks at some domains. What it changed of them was observed by it; all else was observed by the last full audit, or
  by a later update that changed it. (What it looked at and found the same keeps the older time: that understates.)
- An update looks at no host: the head is as the last full audit observed it, whoever counted its summary anew.
"""

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from exitguard.model.documents import AuditReport, DomainReport, ReportUpdate
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


class Part(NamedTuple):
    """A part as it is read back. `observed_at` is when it was last observed."""

    kind: str
    line: int
    body: bytes
    observed_at: datetime


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
    at = report.observed_at
    return [_head_section(report, at), *_domain_sections(report.domains, at), *_finding_sections(report.findings, at)]


def split_update(update: ReportUpdate, last_full_at: datetime) -> list[Section]:
    """The parts of `update`: the head, as the full audit of `last_full_at` observed it, then domains and findings."""
    domains = (domain.report for domain in update.domains if domain.report is not None)
    findings = [finding for domain in update.domains for finding in domain.findings]
    at = update.observed_at
    return [_head_section(update.head, last_full_at), *_domain_sections(domains, at), *_finding_sections(findings, at)]


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


def amend(sections: list[Section], held: Mapping[Key, Held], order: bytes) -> Changes:
    """What storing the `sections` of an update changes.

    `held` is what the store holds now of the head, the order and the domains concerned, and `order` is the body of the order.
    What is held of those domains and not in `sections` ends. What is new comes last: the next full audit orders it.
    """
    changes = Changes()
    runs: list[list[int]] = json.loads(order)
    next_line = max(held[Key(ORDER)].line, *(first + count - 1 for first, count in runs)) + 1
    came: list[int] = []
    for section in sections:
        before = held.get(section.key)
        if before is None:
            line = next_line + len(came)
            came.append(line)
        else:
            line = before.line
        _note_change(changes, section, before, line)
    present = {section.key for section in sections} | {Key(ORDER)}
    gone = [part for key, part in held.items() if key not in present]
    changes.ended_rows.extend(part.row for part in gone)
    if came or gone:
        lines = chain(_without(runs, sorted(part.line for part in gone)), ([line, 1] for line in came))
        _note_change(changes, Section(Key(ORDER), _encode_runs(lines)), held[Key(ORDER)], next_line)
    return changes


def join(parts: Iterable[Part], observed_at: datetime) -> AuditReport:
    """The report of `observed_at` from all its parts. Raises ValueError where they do not make one."""
    by_line = {part.line: part for part in parts}
    orders = [part.body for part in by_line.values() if part.kind == ORDER]
    if len(orders) != 1:
        raise ValueError(f"a report has {len(orders)} orders of its parts instead of one")
    lines = _decode_order(orders[0])
    if sorted(lines) != sorted(line for line, part in by_line.items() if part.kind != ORDER):
        raise ValueError("the order of a report does not name exactly its parts")
    stamps = {at: _stamp(at) for at in {part.observed_at for part in by_line.values()}}
    listed: dict[str, list[bytes]] = {kind: [] for kind in _ORDERED}
    for part in map(by_line.__getitem__, lines):
        listed[part.kind].append(part.body.replace(_UNSTAMPED, stamps[part.observed_at]))
    (head,) = listed[HEAD]
    # The head is a JSON object with at least one member: its opening brace gives way to the members that were taken out.
    text = b'{%b,"domains":[%b],"findings":[%b],%b' % (_stamp(observed_at), b",".join(listed[DOMAIN]), b",".join(listed[FINDING]), head[1:])
    return AuditReport.model_validate_json(text)


def exit_code_of(head: bytes) -> int:
    """The exit code in the body of a head. Raises ValueError where there is none."""
    try:
        return int(json.loads(head)["summary"]["exit_code"])
    except (KeyError, TypeError) as error:
        raise ValueError("the head of a report has no exit code") from error


def _head_section(report: AuditReport, at: datetime) -> Section:
    return Section(Key(HEAD), _unstamped(report.model_dump_json(exclude={"observed_at", "domains", "findings"}), at))


def _domain_sections(domains: Iterable[DomainReport], at: datetime) -> Iterator[Section]:
    uuids: Counter[str] = Counter()
    for domain in domains:
        key = Key(DOMAIN, subject_id=domain.uuid, ordinal=uuids[domain.uuid])
        yield Section(key, _unstamped(domain.model_dump_json(), at), subject_name=domain.name)
        uuids[domain.uuid] += 1


def _finding_sections(findings: Sequence[Finding], at: datetime) -> Iterator[Section]:
    for key, finding in zip(finding_keys(findings), findings, strict=True):
        yield Section(key, _unstamped(finding.model_dump_json(), at), finding.subject.name, finding.verdict, finding.since)


def _note_change(changes: Changes, section: Section, before: Held | None, line: int) -> None:
    if before is not None and before.digest == section.digest:
        return
    if before is not None:
        changes.ended_rows.append(before.row)
    changes.begun.append((section, line if before is None else before.line))


def _stamp(observed_at: datetime) -> bytes:
    return b'"observed_at":"%b"' % format_rfc3339(observed_at).encode("ascii")


def _unstamped(text: str, at: datetime) -> bytes:
    return text.encode("utf-8").replace(_stamp(at), _UNSTAMPED)


def _without(runs: Iterable[list[int]], gone: list[int]) -> Iterator[list[int]]:
    """`runs` without the lines in `gone`, which is sorted."""
    for first, count in runs:
        begin = first
        for line in gone[bisect_left(gone, first) : bisect_left(gone, first + count)]:
            yield [begin, line - begin]
            begin = line + 1
        yield [begin, first + count - begin]


def _encode_order(lines: Iterable[int]) -> bytes:
    return _encode_runs([line, 1] for line in lines)


def _encode_runs(runs: Iterable[list[int]]) -> bytes:
    """Runs of consecutive lines as [first, count], joined: short, since what stood together mostly stays together."""
    joined: list[list[int]] = []
    for first, count in runs:
        if count == 0:
            continue
        if joined and first == joined[-1][0] + joined[-1][1]:
            joined[-1][1] += count
        else:
            joined.append([first, count])
    return json.dumps(joined, separators=(",", ":")).encode("ascii")


def _decode_order(body: bytes) -> list[int]:
    return [line for first, count in json.loads(body) for line in range(first, first + count)]
