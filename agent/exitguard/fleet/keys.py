"""Secrets as they travel: `exg-host.<host id>.<key id>.<secret>`, `exg-op.<token id>.<secret>`, `exg-enrol.<secret>`.

The first word says what it is, so that scanners find one that leaked. A secret is 256 random bits.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass

from exitguard.model.push import NewKey

_SECRET = r"[A-Za-z0-9_-]{43}"  # noqa: S105 - what one looks like
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_HOST = re.compile(rf"exg-host\.({_UUID})\.([0-9a-f]{{16}})\.({_SECRET})", re.ASCII)
_OPERATOR = re.compile(rf"exg-op\.([0-9a-f]{{16}})\.({_SECRET})", re.ASCII)
_ENROLMENT = re.compile(rf"exg-enrol\.({_SECRET})", re.ASCII)


@dataclass(frozen=True)
class HostKey:
    host_id: str
    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"HostKey({self.host_id}, {self.key_id}, ***)"

    @property
    def text(self) -> str:
        return f"exg-host.{self.host_id}.{self.key_id}.{self.secret}"

    @property
    def public(self) -> NewKey:
        """What the hub may know of it."""
        return NewKey(key_id=self.key_id, secret_sha256=sha256_of(self.secret))


@dataclass(frozen=True)
class OperatorToken:
    token_id: str
    secret: str

    def __repr__(self) -> str:
        return f"OperatorToken({self.token_id}, ***)"

    @property
    def text(self) -> str:
        return f"exg-op.{self.token_id}.{self.secret}"


def new_host_key(host_id: str) -> HostKey:
    return HostKey(host_id, secrets.token_hex(8), secrets.token_urlsafe(32))


def new_operator_token() -> OperatorToken:
    return OperatorToken(secrets.token_hex(8), secrets.token_urlsafe(32))


def new_enrolment_secret() -> str:
    return f"exg-enrol.{secrets.token_urlsafe(32)}"


def parse_host_key(text: str) -> HostKey | None:
    """None for anything else."""
    match = _HOST.fullmatch(text)
    return None if match is None else HostKey(*match.groups())


def parse_operator_token(text: str) -> OperatorToken | None:
    """None for anything else."""
    match = _OPERATOR.fullmatch(text)
    return None if match is None else OperatorToken(*match.groups())


def enrolment_sha256(text: str) -> str | None:
    """What a hub compares an enrolment secret with; None for anything else."""
    match = _ENROLMENT.fullmatch(text)
    return None if match is None else sha256_of(match.group(1))


def sha256_of(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode("ascii")).hexdigest()
