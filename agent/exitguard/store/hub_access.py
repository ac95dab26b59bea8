"""Who may speak to the hub: enrolment secrets, hosts' keys, operators' tokens, and the log of what became of them.

Of every secret only SHA-256 is kept. They are 256 random bits, which nobody finds by trying, so a slow hash would protect nothing.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from exitguard.model.hub import LogEntry, Role
from exitguard.model.push import Enrolment, NewKey
from exitguard.model.time import from_microseconds, to_microseconds
from exitguard.store.hub_records import clean
from exitguard.store.hub_tables import audit_log, enrolment, host, host_key, operator_token

#: A host that is given one key after the other has them all; so few are enough to change keys.
MOST_KEYS = 4
_LIMIT_DETAIL_CHARACTERS = 500
#: Asked with every call of a host.
_THE_KEY = select(host_key).where(host_key.c.host_id == bindparam("of_host"), host_key.c.key_id == bindparam("of_key"))


@dataclass(frozen=True)
class Operator:
    """Whom a token is for, and what that may do."""

    token_id: str
    name: str
    role: Role


class NotAdmitted(Exception):  # noqa: N818 - nobody's error
    """A host is not let in; the sentence says why, and nothing that helps to guess."""


def write_log(connection: Connection, at: datetime, actor: str, action: str, *, host_id: str | None = None, detail: str = "") -> None:
    """A line of the audit log, in the transaction that does what it says."""
    detail = clean(detail, _LIMIT_DETAIL_CHARACTERS)
    connection.execute(insert(audit_log).values(at=to_microseconds(at), actor=clean(actor), action=action, host_id=host_id, detail=detail))


def read_log(connection: Connection, limit: int, host_id: str | None = None) -> tuple[LogEntry, ...]:
    """The newest lines, the newest first."""
    statement = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
    if host_id is not None:
        statement = statement.where(audit_log.c.host_id == host_id)
    return tuple(
        LogEntry(at=from_microseconds(row["at"]), actor=row["actor"], action=row["action"], host_id=row["host_id"], detail=row["detail"])
        for row in connection.execute(statement).mappings()
    )


# --- enrolment ----------------------------------------------------------------------------------------------------------------------


def add_enrolment(connection: Connection, *, secret_sha256: str, name: str, now: datetime, expires_at: datetime, hosts: int) -> bool:
    """Whether the name was free."""
    if connection.execute(select(enrolment.c.name).where(enrolment.c.name == name)).one_or_none() is not None:
        return False
    values = {"created_at": to_microseconds(now), "expires_at": to_microseconds(expires_at), "hosts_left": hosts}
    connection.execute(insert(enrolment).values(secret_sha256=secret_sha256, name=name, **values))
    write_log(connection, now, "console", "enrolment.created", detail=f"{name}: {hosts} hosts until {expires_at:%Y-%m-%d %H:%M} UTC")
    return True


def revoke_enrolment(connection: Connection, name: str, now: datetime) -> bool:
    """Whether there was one of that name that counted."""
    concerned = (enrolment.c.name == name) & enrolment.c.revoked_at.is_(None)
    if connection.execute(update(enrolment).where(concerned).values(revoked_at=to_microseconds(now))).rowcount == 0:
        return False
    write_log(connection, now, "console", "enrolment.revoked", detail=name)
    return True


def enrol(connection: Connection, asked: Enrolment, secret_sha256: str, now: datetime) -> None:
    """Let a host in with the key that it made. The same request again changes nothing. Raises NotAdmitted.

    A host that has a key is not given another by a secret that many know: its own key does that, or an operator first revokes that.
    """
    at = to_microseconds(now)
    found = connection.execute(select(enrolment).where(enrolment.c.secret_sha256 == secret_sha256).with_for_update()).mappings()
    secret = found.one_or_none()
    if secret is None or secret["revoked_at"] is not None:
        raise NotAdmitted("the enrolment secret is not one that counts")
    held = _key(connection, asked.host_id, asked.key.key_id)
    if held is not None and held["revoked_at"] is None and held["secret_sha256"] == asked.key.secret_sha256:
        return
    if secret["expires_at"] <= at:
        raise NotAdmitted("the enrolment secret has expired")
    if secret["hosts_left"] < 1:
        raise NotAdmitted("the enrolment secret has let in as many hosts as it was for")
    if held is not None or live_keys(connection, asked.host_id):
        raise NotAdmitted("this host has a key already: it may change it with that key, or an operator revokes the host first")
    lower = {"hosts_left": enrolment.c.hosts_left - 1}
    connection.execute(update(enrolment).where(enrolment.c.secret_sha256 == secret_sha256).values(lower))
    if connection.execute(select(host.c.host_id).where(host.c.host_id == asked.host_id)).one_or_none() is None:
        name = None if asked.hostname is None else clean(asked.hostname)
        connection.execute(insert(host).values(host_id=asked.host_id, hostname=name, enrolled_at=at))
    _add_key(connection, asked.host_id, asked.key, at)
    detail = f"key {asked.key.key_id} by enrolment {secret['name']}"
    write_log(connection, now, f"host {asked.host_id}", "host.enrolled", host_id=asked.host_id, detail=detail)


# --- keys of hosts ------------------------------------------------------------------------------------------------------------------


def host_of_key(connection: Connection, host_id: str, key_id: str, secret_sha256: str) -> bool:
    """Whether that is a key of that host which counts."""
    row = _key(connection, host_id, key_id)
    # Compared even where there is none, in the same time.
    same = hmac.compare_digest("" if row is None else row["secret_sha256"], secret_sha256)
    return row is not None and same and row["revoked_at"] is None


def live_keys(connection: Connection, host_id: str) -> int:
    statement = select(func.count()).where(host_key.c.host_id == host_id, host_key.c.revoked_at.is_(None))
    return int(connection.execute(statement).scalar_one())


def add_key(connection: Connection, host_id: str, key: NewKey, now: datetime) -> None:
    """Another key for a host that has one; the same again changes nothing. Raises NotAdmitted."""
    connection.execute(select(host.c.host_id).where(host.c.host_id == host_id).with_for_update())
    held = _key(connection, host_id, key.key_id)
    if held is not None and held["revoked_at"] is None and held["secret_sha256"] == key.secret_sha256:
        return
    if held is not None:
        raise NotAdmitted("there is, or was, another key of that id")
    if live_keys(connection, host_id) >= MOST_KEYS:
        raise NotAdmitted(f"this host has {MOST_KEYS} keys already: it is to retire those that it no longer uses")
    _add_key(connection, host_id, key, to_microseconds(now))
    write_log(connection, now, f"host {host_id}", "key.added", host_id=host_id, detail=f"key {key.key_id}")


def retire_other_keys(connection: Connection, host_id: str, key_id: str, now: datetime) -> int:
    """A host has changed to this key: its others no longer count. How many did."""
    concerned = (host_key.c.host_id == host_id) & (host_key.c.key_id != key_id) & host_key.c.revoked_at.is_(None)
    retired = connection.execute(update(host_key).where(concerned).values(revoked_at=to_microseconds(now))).rowcount
    if retired:
        write_log(connection, now, f"host {host_id}", "key.retired", host_id=host_id, detail=f"{retired}, all but {key_id}")
    return retired


def revoke_host(connection: Connection, host_id: str, actor: str, now: datetime) -> int | None:
    """Shut a host out: how many keys no longer count; None where it is not known. It may be let in again by an enrolment secret."""
    if connection.execute(select(host.c.host_id).where(host.c.host_id == host_id)).one_or_none() is None:
        return None
    concerned = (host_key.c.host_id == host_id) & host_key.c.revoked_at.is_(None)
    revoked = connection.execute(update(host_key).where(concerned).values(revoked_at=to_microseconds(now))).rowcount
    write_log(connection, now, actor, "host.revoked", host_id=host_id, detail=f"{revoked} keys")
    return revoked


# --- operators' tokens --------------------------------------------------------------------------------------------------------------


def add_token(connection: Connection, operator: Operator, secret_sha256: str, now: datetime, expires_at: datetime) -> None:
    times = {"created_at": to_microseconds(now), "expires_at": to_microseconds(expires_at)}
    values = {"token_id": operator.token_id, "name": clean(operator.name), "role": str(operator.role), "secret_sha256": secret_sha256}
    connection.execute(insert(operator_token).values(**values, **times))
    detail = f"{operator.name}: {operator.role} until {expires_at:%Y-%m-%d %H:%M} UTC"
    write_log(connection, now, "console", "token.created", detail=detail)


def revoke_tokens(connection: Connection, name: str, now: datetime) -> int:
    """How many tokens of that name counted, and no longer do."""
    concerned = (operator_token.c.name == name) & operator_token.c.revoked_at.is_(None)
    revoked = connection.execute(update(operator_token).where(concerned).values(revoked_at=to_microseconds(now))).rowcount
    if revoked:
        write_log(connection, now, "console", "token.revoked", detail=f"{name}: {revoked}")
    return revoked


def operator_of_token(connection: Connection, token_id: str, secret_sha256: str, now: datetime) -> Operator | None:
    """Whose token that is, where it counts."""
    row = connection.execute(select(operator_token).where(operator_token.c.token_id == token_id)).mappings().one_or_none()
    same = hmac.compare_digest("" if row is None else row["secret_sha256"], secret_sha256)
    if row is None or not same or row["revoked_at"] is not None or row["expires_at"] <= to_microseconds(now):
        return None
    return Operator(token_id=token_id, name=row["name"], role=Role(row["role"]))


def _key(connection: Connection, host_id: str, key_id: str) -> Any:
    return connection.execute(_THE_KEY, {"of_host": host_id, "of_key": key_id}).mappings().one_or_none()


def _add_key(connection: Connection, host_id: str, key: NewKey, at: int) -> None:
    values = {"host_id": host_id, "key_id": key.key_id, "secret_sha256": key.secret_sha256, "created_at": at}
    connection.execute(insert(host_key).values(values))
