"""Records to rows and back: each function runs its statements on a connection whose transaction the caller holds."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, Insert, RowMapping, Update, bindparam, insert, or_, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from exitguard.model.canonical import canonical_json
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.history import Gap, Transition
from exitguard.model.host import Target
from exitguard.model.samples import Samples
from exitguard.model.time import format_rfc3339, from_microseconds, to_microseconds
from exitguard.store.sections import Changes, Held, Key, join
from exitguard.store.tables import facts_document, gap, machine, observation, samples, section, transition

#: Samples repeat the same ids again and again: the fastest level already makes them small.
_ZLIB_LEVEL = 1
#: SQLite admits 999 parameters in a statement, and since 3.32 more (SQLITE_MAX_VARIABLE_NUMBER).
_HASHES_A_QUERY = 500
_ROWS_A_BATCH = 500


def add_observation(connection: Connection, facts: FactsDocument) -> int:
    """The sequence number of a new heartbeat."""
    row = {"observed_at": to_microseconds(facts.observed_at), "facts_hash": facts.host_hash, "tool_version": facts.tool.version}
    key = connection.execute(insert(observation).values(row)).inserted_primary_key
    if key is None:
        raise LookupError("SQLite gave no row id")
    return int(key[0])


def observation_at(connection: Connection, at: datetime | None) -> RowMapping | None:
    """The last heartbeat, or the last whose observed_at is not after `at`; last by sequence number."""
    statement = select(observation).order_by(observation.c.seq.desc()).limit(1)
    if at is not None:
        statement = statement.where(observation.c.observed_at <= to_microseconds(at))
    return connection.execute(statement).mappings().one_or_none()


def write_facts(connection: Connection, facts: FactsDocument) -> None:
    """Store the documents of `facts` that are not there yet; a host that has not changed costs one look-up."""
    last = observation_at(connection, None)
    if last is not None and last["facts_hash"] == facts.host_hash:
        return
    known = set() if last is None else set(_host_body(connection, last["facts_hash"])["domains"])
    hashes = facts.domain_hashes
    documents: Iterator[tuple[str, dict[str, Any]]] = (
        (hashes[domain.uuid], domain.model_dump(mode="json")) for domain in facts.domains if hashes[domain.uuid] not in known
    )
    host = {"host": facts.host.model_dump(mode="json"), "domains": sorted(hashes.values())}
    rows = ({"hash": key, "body": _hashed_body(value, key)} for key, value in chain(documents, [(facts.host_hash, host)]))
    _execute_many(connection, sqlite_insert(facts_document).on_conflict_do_nothing(), rows)


def read_facts(connection: Connection, heartbeat: RowMapping) -> FactsDocument:
    """The facts of a heartbeat, domains in the order of their uuids (a set of hashes has no order of its own)."""
    host = _host_body(connection, heartbeat["facts_hash"])
    domains = [json.loads(body) for body in _documents(connection, host["domains"])]
    document = {
        "tool": {"version": heartbeat["tool_version"]},
        "observed_at": format_rfc3339(from_microseconds(heartbeat["observed_at"])),
        "host": host["host"],
        "domains": sorted(domains, key=lambda domain: str(domain["uuid"])),
    }
    return FactsDocument.model_validate_json(json.dumps(document))


def read_target(connection: Connection, heartbeat: RowMapping) -> Target:
    return Target.model_validate_json(json.dumps(_host_body(connection, heartbeat["facts_hash"])["host"]["target"]))


def _hashed_body(value: dict[str, Any], expected_hash: str) -> bytes:
    """The canonical JSON of `value`, which has `expected_hash`; the hash shows that the quick way gave the same bytes."""
    quick = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if "sha256:" + hashlib.sha256(quick).hexdigest() == expected_hash:
        return quick
    return canonical_json(value)


def _host_body(connection: Connection, host_hash: str) -> dict[str, Any]:
    (body,) = _documents(connection, [host_hash])
    host: dict[str, Any] = json.loads(body)
    return host


def _documents(connection: Connection, hashes: list[str]) -> Iterator[bytes]:
    for start in range(0, len(hashes), _HASHES_A_QUERY):
        wanted = hashes[start : start + _HASHES_A_QUERY]
        yield from connection.execute(select(facts_document.c.body).where(facts_document.c.hash.in_(wanted))).scalars()


def read_held(connection: Connection) -> dict[Key, Held]:
    """The parts of the last report, without their bodies."""
    columns = section.c
    statement = select(
        columns.kind,
        columns.rule,
        columns.subject_kind,
        columns.subject_id,
        columns.ordinal,
        columns.id,
        columns.line,
        columns.digest,
        columns.subject_name,
        columns.verdict,
        columns.verdict_since,
    ).where(columns.until_seq.is_(None))
    return {
        Key(kind, rule, subject_kind, subject_id, ordinal): Held(
            row=row,
            line=line,
            digest=digest,
            subject_name=name,
            verdict=None if verdict is None else Verdict(verdict),
            since=None if since is None else from_microseconds(since),
        )
        for kind, rule, subject_kind, subject_id, ordinal, row, line, digest, name, verdict, since in connection.execute(statement)
    }


def write_changes(connection: Connection, seq: int, changes: Changes) -> None:
    """End and begin the parts that changed with observation `seq`."""
    ending = update(section).where(section.c.id == bindparam("row")).values(until_seq=seq)
    _execute_many(connection, ending, ({"row": row} for row in changes.ended_rows))
    beginning = (
        {
            **part.key._asdict(),
            "line": line,
            "since_seq": seq,
            "subject_name": part.subject_name,
            "verdict": part.verdict,
            "verdict_since": None if part.since is None else to_microseconds(part.since),
            "digest": part.digest,
            "body": part.body,
        }
        for part, line in changes.begun
    )
    _execute_many(connection, insert(section), beginning)


def read_report(connection: Connection, heartbeat: RowMapping) -> AuditReport:
    """The report of a heartbeat. Raises ValueError where this program cannot read it."""
    seq = heartbeat["seq"]
    holds = (section.c.since_seq <= seq) & or_(section.c.until_seq.is_(None), section.c.until_seq > seq)
    parts = connection.execute(select(section.c.kind, section.c.line, section.c.body).where(holds))
    return join(((kind, line, body) for kind, line, body in parts), from_microseconds(heartbeat["observed_at"]))


def write_transitions(connection: Connection, seq: int, transitions: Iterable[Transition]) -> None:
    changed = (
        {
            "seq": seq,
            "rule": change.rule,
            "subject_kind": change.subject.kind,
            "subject_id": change.subject.id,
            "subject_name": change.subject.name,
            "before": change.before,
            "now": change.now,
            "reason": change.reason,
        }
        for change in transitions
    )
    _execute_many(connection, insert(transition), changed)


def read_transitions(connection: Connection, since: datetime) -> tuple[Transition, ...]:
    """What changed in audits observed at or after `since`, in the order in which it was stored."""
    statement = (
        select(transition, observation.c.observed_at)
        .join(observation, observation.c.seq == transition.c.seq)
        .where(observation.c.observed_at >= to_microseconds(since))
        .order_by(transition.c.id)
    )
    return tuple(
        Transition(
            rule=row["rule"],
            subject=Subject(kind=SubjectKind(row["subject_kind"]), id=row["subject_id"], name=row["subject_name"]),
            before=None if row["before"] is None else Verdict(row["before"]),
            now=None if row["now"] is None else Verdict(row["now"]),
            reason=row["reason"],
            at=from_microseconds(row["observed_at"]),
        )
        for row in connection.execute(statement).mappings()
    )


def write_samples(connection: Connection, seq: int, document: Samples) -> None:
    body = zlib.compress(document.model_dump_json().encode("utf-8"), _ZLIB_LEVEL)
    connection.execute(insert(samples).values(seq=seq, body=body))


def sequence_since(connection: Connection, since: datetime) -> list[int]:
    """The sequence numbers of the observations at or after `since`, ascending."""
    statement = select(observation.c.seq).where(observation.c.observed_at >= to_microseconds(since)).order_by(observation.c.seq)
    return list(connection.execute(statement).scalars())


def read_samples(connection: Connection, seq: int) -> Samples:
    body = connection.execute(select(samples.c.body).where(samples.c.seq == seq)).scalar_one()
    return Samples.model_validate_json(zlib.decompress(body))


def write_gap(connection: Connection, seq: int, noted: Gap) -> None:
    """Store a gap; one that is stored already is replaced, never counted again."""
    row = {
        "first_at": to_microseconds(noted.first_at),
        "last_at": to_microseconds(noted.last_at),
        "dropped": noted.dropped,
        "reason": noted.reason,
        "seq": seq,
    }
    statement = sqlite_insert(gap).values(id=noted.id, **row)
    connection.execute(statement.on_conflict_do_update(index_elements=[gap.c.id], set_=row))


def read_gaps(connection: Connection, since: datetime) -> tuple[Gap, ...]:
    """The stored gaps that reach to `since` or beyond, in the order in which they ended."""
    # Either end: the clock may have been set back between them.
    reaches = or_(gap.c.last_at >= to_microseconds(since), gap.c.first_at >= to_microseconds(since))
    return tuple(
        Gap(
            id=row["id"],
            first_at=from_microseconds(row["first_at"]),
            last_at=from_microseconds(row["last_at"]),
            dropped=row["dropped"],
            reason=row["reason"],
        )
        for row in connection.execute(select(gap).where(reaches).order_by(gap.c.seq)).mappings()
    )


def write_machine_id(connection: Connection, host_id: str, machine_id: str, now: datetime) -> None:
    row = {"host_id": host_id, "machine_id": machine_id, "first_seen_at": to_microseconds(now)}
    connection.execute(sqlite_insert(machine).on_conflict_do_nothing(), [row])


def read_machine_ids(connection: Connection, host_id: str) -> tuple[str, ...]:
    """The machine-ids that have been seen under `host_id`, in the order of first sight."""
    statement = select(machine.c.machine_id).where(machine.c.host_id == host_id).order_by(machine.c.first_seen_at, machine.c.machine_id)
    return tuple(connection.execute(statement).scalars())


def _execute_many(connection: Connection, statement: Insert | Update, rows: Iterator[dict[str, Any]]) -> None:
    """Run `statement` for each row; a batch at a time, since thousands of rows in memory at once cost more than they take."""
    while batch := list(islice(rows, _ROWS_A_BATCH)):
        connection.execute(statement, batch)
