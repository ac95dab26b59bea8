"""Records to rows and back: each function runs its statements on a connection whose transaction the caller holds."""

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from itertools import chain, islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, RowMapping, Update, bindparam, func, insert, or_, select, true, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from exitguard.model.canonical import canonical_json
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.history import Gap, Transition
from exitguard.model.host import Target
from exitguard.model.samples import Samples
from exitguard.model.time import format_rfc3339, from_microseconds, to_microseconds
from exitguard.store.sections import DOMAIN, FINDING, HEAD, ORDER, Changes, Held, Key, Part, exit_code_of, join
from exitguard.store.tables import BLIND, UPDATE, facts_document, gap, machine, observation, samples, section, spool, transition

#: Samples repeat the same ids again and again: the fastest level already makes them small.
_ZLIB_LEVEL = 1
#: SQLite admits 999 parameters in a statement, and since 3.32 more (SQLITE_MAX_VARIABLE_NUMBER).
_HASHES_A_QUERY = 500
_ROWS_A_BATCH = 500


def add_observation(connection: Connection, facts: FactsDocument, *, kind: str, observed_at: datetime) -> int:
    """The sequence number of a new heartbeat, with its facts; a host that has not changed costs one row and one look-up.

    Facts that are there already are kept; those that the last heartbeat had and this one has not end with this one.
    """
    last = observation_at(connection, None)
    had: set[str] = set()
    has = {facts.host_hash, *facts.domain_hashes.values()}
    if last is not None:
        had = has if last["facts_hash"] == facts.host_hash else {last["facts_hash"], *_host_body(connection, last["facts_hash"])["domains"]}
    _write_documents(connection, facts, has - had)
    row = {
        "observed_at": to_microseconds(observed_at),
        "facts_hash": facts.host_hash,
        "tool_version": facts.tool.version,
        "kind": kind,
    }
    key = connection.execute(insert(observation).values(row)).inserted_primary_key
    if key is None:
        raise LookupError("SQLite gave no row id")
    seq = int(key[0])
    ending = update(facts_document).where(facts_document.c.hash == bindparam("gone")).values(until_seq=seq)
    _execute_many(connection, ending, ({"gone": key} for key in had - has))
    return seq


def observation_at(connection: Connection, at: datetime | None) -> RowMapping | None:
    """The last heartbeat, or the last whose observed_at is not after `at`; last by sequence number."""
    statement = select(observation).where(_is_kept()).order_by(observation.c.seq.desc()).limit(1)
    if at is not None:
        statement = statement.where(observation.c.observed_at <= to_microseconds(at))
    return connection.execute(statement).mappings().one_or_none()


def last_full(connection: Connection, seq: int) -> tuple[int, datetime]:
    """The last full observation up to `seq`: its sequence number, and when it was."""
    statement = (
        select(observation.c.seq, observation.c.observed_at)
        .where(observation.c.seq <= seq, observation.c.kind != UPDATE)
        .order_by(observation.c.seq.desc())
        .limit(1)
    )
    found, observed_at = connection.execute(statement).one()
    return found, from_microseconds(observed_at)


def read_horizon(connection: Connection) -> datetime | None:
    """The observed_at of the first heartbeat that is kept; None where there is none."""
    statement = select(observation.c.observed_at).where(_is_kept()).order_by(observation.c.seq).limit(1)
    observed_at = connection.execute(statement).scalar_one_or_none()
    return None if observed_at is None else from_microseconds(observed_at)


def _is_kept() -> ColumnElement[bool]:
    return observation.c.seq >= select(spool.c.horizon_seq).scalar_subquery()


def other_changes(connection: Connection, heartbeat: RowMapping, facts: FactsDocument, uuids: Collection[str]) -> tuple[str, ...]:
    """What `facts` say otherwise than those of `heartbeat` did, the domains in `uuids` apart: their uuids, and "the host"."""
    if heartbeat["facts_hash"] == facts.host_hash:
        return ()
    before = _host_body(connection, heartbeat["facts_hash"])
    had, has = set(before["domains"]), facts.domain_hashes
    changed = {uuid for uuid, key in has.items() if key not in had}
    changed.update(json.loads(body)["uuid"] for body in _documents(connection, sorted(had.difference(has.values()))))
    host = () if before["host"] == facts.host.model_dump(mode="json") else ("the host",)
    return (*host, *sorted(changed.difference(uuids)))


def _write_documents(connection: Connection, facts: FactsDocument, wanted: set[str]) -> None:
    """Store those documents of `facts` whose hash is in `wanted`; one that is there from earlier holds again."""
    hashes = facts.domain_hashes
    documents: Iterator[tuple[str, dict[str, Any]]] = (
        (hashes[domain.uuid], domain.model_dump(mode="json")) for domain in facts.domains if hashes[domain.uuid] in wanted
    )
    if facts.host_hash in wanted:
        host = {"host": facts.host.model_dump(mode="json"), "domains": sorted(hashes.values())}
        documents = chain(documents, [(facts.host_hash, host)])
    rows = ({"hash": key, "body": _hashed_body(value, key)} for key, value in documents)
    statement = sqlite_insert(facts_document)
    _execute_many(connection, statement.on_conflict_do_update(index_elements=[facts_document.c.hash], set_={"until_seq": None}), rows)


def read_facts(connection: Connection, heartbeat: RowMapping) -> FactsDocument:
    """The facts of a heartbeat, domains in the order of their uuids (a set of hashes has no order of its own).

    Their observed_at is that of the last full audit: after an update, all facts but a few are as old as that.
    """
    host = _host_body(connection, heartbeat["facts_hash"])
    domains = [json.loads(body) for body in _documents(connection, host["domains"])]
    document = {
        "tool": {"version": heartbeat["tool_version"]},
        "observed_at": format_rfc3339(last_full(connection, heartbeat["seq"])[1]),
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
    return _held(connection, true())


def read_held_about(connection: Connection, uuids: Iterable[str]) -> tuple[dict[Key, Held], bytes]:
    """Of the last report the head, the order and what is about the domains `uuids`; and the body of the order."""
    held = _held(connection, section.c.kind.in_((HEAD, ORDER)))
    about_domain = or_(section.c.kind == DOMAIN, section.c.subject_kind == SubjectKind.DOMAIN)
    for uuid in uuids:
        held |= _held(connection, (section.c.subject_id == uuid) & about_domain)
    order = connection.execute(select(section.c.body).where(section.c.id == held[Key(ORDER)].row)).scalar_one()
    return held, order


def read_unseen(connection: Connection) -> dict[Key, Held]:
    """What was found of domains before libvirt could not be asked any more, where that is so since the last observation or longer."""
    sighted = select(func.coalesce(func.max(observation.c.seq), 0)).where(observation.c.kind != BLIND).scalar_subquery()
    first_blind = connection.execute(select(func.min(observation.c.seq)).where(observation.c.seq > sighted)).scalar_one()
    if first_blind is None:
        return {}
    about_domains = (section.c.kind == FINDING) & (section.c.subject_kind == SubjectKind.DOMAIN)
    return _parts(connection, (section.c.until_seq == first_blind) & about_domains)


def _held(connection: Connection, which: ColumnElement[bool]) -> dict[Key, Held]:
    return _parts(connection, section.c.until_seq.is_(None) & which)


def _parts(connection: Connection, which: ColumnElement[bool]) -> dict[Key, Held]:
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
    ).where(which)
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
    full_seq, full_at = last_full(connection, seq)
    # Most parts begin long before any report: the zero keeps SQLite from looking for them by that.
    holds = (section.c.since_seq + 0 <= seq) & or_(section.c.until_seq.is_(None), section.c.until_seq > seq)
    updated = (observation.c.seq == section.c.since_seq) & (section.c.since_seq > full_seq) & (section.c.kind != HEAD)
    statement = select(section.c.kind, section.c.line, section.c.body, observation.c.observed_at).outerjoin_from(
        section, observation, updated
    )
    parts = (
        Part(kind, line, body, full_at if updated_at is None else from_microseconds(updated_at))
        for kind, line, body, updated_at in connection.execute(statement.where(holds))
    )
    return join(parts, from_microseconds(heartbeat["observed_at"]))


def read_exit_codes(connection: Connection, until: datetime) -> tuple[tuple[datetime, int], ...]:
    """Whenever the head of the reports became another, up to `until`: when, and the exit code from then on."""
    statement = (
        select(observation.c.observed_at, section.c.body)
        .join_from(section, observation, observation.c.seq == section.c.since_seq)
        .where(section.c.kind == HEAD, _is_kept(), observation.c.observed_at <= to_microseconds(until))
        .order_by(observation.c.seq)
    )
    return tuple((from_microseconds(at), exit_code_of(body)) for at, body in connection.execute(statement))


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
    """What changed in audits and updates observed at or after `since`, in the order in which it was stored."""
    statement = (
        select(transition, observation.c.observed_at)
        .join(observation, observation.c.seq == transition.c.seq)
        .where(_is_kept(), observation.c.observed_at >= to_microseconds(since))
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


def write_samples(connection: Connection, document: Samples) -> None:
    body = zlib.compress(document.model_dump_json().encode("utf-8"), _ZLIB_LEVEL)
    connection.execute(insert(samples).values(observed_at=to_microseconds(document.observed_at), body=body))


def samples_since(connection: Connection, since: datetime) -> list[int]:
    """The ids of the samples of `since` and later, in the order in which they were stored."""
    statement = select(samples.c.id).where(samples.c.observed_at >= to_microseconds(since)).order_by(samples.c.id)
    return list(connection.execute(statement).scalars())


def read_samples(connection: Connection, row: int) -> Samples | None:
    """The samples with an id; None where they have been forgotten."""
    body = connection.execute(select(samples.c.body).where(samples.c.id == row)).scalar_one_or_none()
    return None if body is None else Samples.model_validate_json(zlib.decompress(body))


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
