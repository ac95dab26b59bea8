"""What the hub does for each route: one function each, synchronous. Raises RefusedError for what is not done, StoreError."""

import json
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import ValidationError

from exitguard.fleet.compression import Unpackable, unpack
from exitguard.fleet.hub.call import LINES, Answer, Call, RefusedError, told
from exitguard.fleet.keys import enrolment_sha256
from exitguard.model.finding import Verdict
from exitguard.model.hub import EventPage, FindingPage, GapPage, Health, HostPage, LedgerPage, LogPage, Revoked
from exitguard.model.push import MOST_BATCH_BYTES, Enrolled, Enrolment, NewKey, PushBatch
from exitguard.model.record import Record
from exitguard.model.time import format_rfc3339, parse_rfc3339
from exitguard.store.hub_access import NotAdmitted, add_key, enrol, read_log, retire_other_keys, revoke_host, write_log
from exitguard.store.hub_answers import read_events, read_findings, read_gaps, read_hosts, read_ledger_totals

_Body = TypeVar("_Body", bound=Record)
_MOST_A_PAGE, _A_PAGE = 1000, 100
#: A key of 255 characters may be six times as long in JSON.
_LIMIT_QUERY_CHARACTERS = 4096
#: Of keys by which pages go on: a letter a part, `n` for a number.
_FINDING_KEY, _EVENT_KEY, _GAP_KEY = "ttttn", "ntnn", "nttt"
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_A_DAY = timedelta(days=1)
#: A batch takes many times its size while it is read; so those that are large are read one after the other.
_LARGE_BYTES = 4 << 20
_one_large_at_a_time = threading.Lock()


# --- what hosts send ----------------------------------------------------------------------------------------------------------------


def enrol_host(call: Call) -> Answer:
    asked = _read(Enrolment, call.body)
    secret_sha256 = enrolment_sha256(asked.secret)
    if secret_sha256 is None:
        raise RefusedError(403, "not_admitted", "the enrolment secret is not one that counts")
    try:
        with call.store.writing() as connection:
            enrol(connection, asked, secret_sha256, call.now)
    except NotAdmitted as refusal:
        raise RefusedError(403, "not_admitted", str(refusal)) from refusal
    return told(Enrolled(host_id=asked.host_id, key_id=asked.key.key_id), status=201)


def push(call: Call) -> Answer:
    content = _unpacked(call)
    with _one_large_at_a_time if len(content) > _LARGE_BYTES else nullcontext():
        return _taken(call, _read(PushBatch, content))


def _taken(call: Call, batch: PushBatch) -> Answer:
    if batch.host_id != call.host.host_id:
        with call.store.writing() as connection:
            detail = f"the batch was of host {batch.host_id}"
            write_log(connection, call.now, call.actor, "push.refused", host_id=call.host.host_id, detail=detail)
        raise RefusedError(403, "another_host", f"The key is of host {call.host.host_id}, and a host writes only what is its own.")
    return told(call.store.take(batch, received_at=call.now))


def add_another_key(call: Call) -> Answer:
    key = _read(NewKey, call.body)
    try:
        with call.store.writing() as connection:
            add_key(connection, call.host.host_id, key, call.now)
    except NotAdmitted as refusal:
        raise RefusedError(409, "not_admitted", str(refusal)) from refusal
    return told(Enrolled(host_id=call.host.host_id, key_id=key.key_id), status=201)


def retire_keys(call: Call) -> Answer:
    with call.store.writing() as connection:
        retired = retire_other_keys(connection, call.host.host_id, call.host.key_id, call.now)
    return told(Revoked(host_id=call.host.host_id, keys=retired))


# --- what operators ask -------------------------------------------------------------------------------------------------------------


def hosts(call: Call) -> Answer:
    limit = _limit(call)
    with call.store.reading() as connection:
        found = read_hosts(connection, limit, _text(call, "after") or "")
    return told(HostPage(hosts=found, after=found[-1].host_id if len(found) == limit else None))


def host(call: Call) -> Answer:
    with call.store.reading() as connection:
        found = read_hosts(connection, 1, host_id=call.path["host_id"])
    if not found:
        raise RefusedError(404, "unknown_host", "No such host was let in.")
    return told(found[0])


def revoke(call: Call) -> Answer:
    with call.store.writing() as connection:
        keys = revoke_host(connection, call.path["host_id"], call.actor, call.now)
    if keys is None:
        raise RefusedError(404, "unknown_host", "No such host was let in.")
    return told(Revoked(host_id=call.path["host_id"], keys=keys))


def reports(call: Call) -> Answer:
    """A line a host, as it is read: a fleet is never in memory at once."""
    stored = call.store.reports(_time(call, "at"), _text(call, "host"))

    def lines() -> Iterator[bytes]:
        for each in stored:
            head = json.dumps({"host_id": each.host_id, "received_at": format_rfc3339(each.received_at)}).encode()
            yield head[:-1] + b', "savings": ' + each.savings_json + b', "report": ' + each.json() + b"}\n"

    return Answer(200, lines(), LINES)


def facts(call: Call) -> Answer:
    def lines() -> Iterator[bytes]:
        for each in call.store.facts():
            told_first = {"host_id": each.host_id, "hostname": each.hostname, "received_at": format_rfc3339(each.received_at)}
            yield json.dumps(told_first).encode()[:-1] + b', "facts": ' + each.json() + b"}\n"

    return Answer(200, lines(), LINES)


def savings(call: Call) -> Answer:
    stored = call.store.savings(_time(call, "at") or call.now)

    def lines() -> Iterator[bytes]:
        for host_id, hostname, packed in stored:
            head = json.dumps({"host_id": host_id, "hostname": hostname}).encode()
            yield head[:-1] + b', "savings": ' + (b"null" if packed is None else zlib.decompress(packed)) + b"}\n"

    return Answer(200, lines(), LINES)


def findings(call: Call) -> Answer:
    verdict, rule = _text(call, "verdict"), _text(call, "rule")
    try:
        wanted = None if verdict is None else Verdict(verdict)
    except ValueError as error:
        raise _bad_query("verdict") from error
    with call.store.reading() as connection:
        found, last = read_findings(connection, _limit(call), verdict=wanted, rule=rule, after=_after(call, _FINDING_KEY))
    return told(FindingPage(findings=found, after=_told_after(last)))


def events(call: Call) -> Answer:
    limit = _limit(call)
    with call.store.reading() as connection:
        found = read_events(connection, _since(call), limit, _text(call, "host"), _after(call, _EVENT_KEY))
    return told(EventPage(events=found, after=_told_after(found[-1].key if len(found) == limit else None)))


def gaps(call: Call) -> Answer:
    limit = _limit(call)
    with call.store.reading() as connection:
        found = read_gaps(connection, _since(call), limit, _text(call, "host"), _after(call, _GAP_KEY))
    return told(GapPage(gaps=found, after=_told_after(found[-1].key if len(found) == limit else None)))


def ledger(call: Call) -> Answer:
    limit, after = _limit(call), _text(call, "after") or " "
    host_id, _, guard = after.partition(" ")
    with call.store.reading() as connection:
        totals = read_ledger_totals(connection, _since(call), _time(call, "until") or call.now, limit, (host_id, guard))
    last = f"{totals[-1].host_id} {totals[-1].guard}" if len(totals) == limit else None
    return told(LedgerPage(totals=totals, after=last))


def log(call: Call) -> Answer:
    with call.store.reading() as connection:
        return told(LogPage(entries=read_log(connection, _limit(call), _text(call, "host"))))


# --- how the hub is -----------------------------------------------------------------------------------------------------------------


def health(_call: Call) -> Answer:
    """The process answers; whether it can do anything is what readiness says."""
    return told(Health(status="ok"))


def readiness(call: Call) -> Answer:
    call.store.check()
    return told(Health(status="ready"))


# --- reading what came --------------------------------------------------------------------------------------------------------------


def _unpacked(call: Call) -> bytes:
    if call.encoding in ("", "identity"):
        return call.body
    if call.encoding != "zstd":
        raise RefusedError(415, "unknown_encoding", "Expected a body as it is, or with Content-Encoding: zstd.")
    try:
        return unpack(call.body, MOST_BATCH_BYTES)
    except Unpackable as error:
        raise RefusedError(413 if error.too_large else 400, "unpackable", f"The body {error}.") from error


def _read(kind: type[_Body], body: bytes) -> _Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "the whole"
        raise RefusedError(400, "malformed", f"{where}: {first['msg'][:300]}") from None


def _text(call: Call, name: str) -> str | None:
    text = call.query.get(name)
    if text is not None and (len(text) > _LIMIT_QUERY_CHARACTERS or "\0" in text):
        raise _bad_query(name)
    return text


def _time(call: Call, name: str) -> datetime | None:
    text = _text(call, name)
    try:
        return None if text is None else parse_rfc3339(text)
    except ValueError as error:
        raise _bad_query(name) from error


def _since(call: Call) -> datetime:
    return _time(call, "since") or call.now - _A_DAY


def _limit(call: Call) -> int:
    text = call.query.get("limit", str(_A_PAGE))
    if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= len(str(_MOST_A_PAGE)) and 1 <= int(text) <= _MOST_A_PAGE):
        raise _bad_query("limit")
    return int(text)


def _after(call: Call, form: str) -> tuple[str, ...] | None:
    """The key of a page's last row, as `_told_after` told it: a letter of `form` a part, `n` a number."""
    text = _text(call, "after")
    if text is None:
        return None
    try:
        key = tuple(str(part) for part in json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise _bad_query("after") from error
    if len(key) != len(form) or not all(kind != "n" or _NUMBER.fullmatch(part) for kind, part in zip(form, key, strict=True)):
        raise _bad_query("after")
    return key


def _told_after(key: tuple[str, ...] | None) -> str | None:
    return None if key is None else json.dumps(key)


def _bad_query(name: str) -> RefusedError:
    return RefusedError(400, "bad_query", f"{name}: is not what /openapi.json says of it.")
