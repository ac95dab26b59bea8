"""Time as the documents carry it: UTC, RFC 3339 with microseconds and `Z`; stored as integer microseconds since 1970."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@lru_cache(maxsize=1024)  # a report has few times, each hundreds of times
def parse_rfc3339(text: str) -> datetime:
    """The instant that `text` names, in UTC. Raises ValueError for a bare date, a missing offset or more than microseconds."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time with an offset, such as 2026-01-31T00:00:00Z or 2026-01-31T00:00:00+01:00")
    day, clock, fraction, offset = match.groups()
    try:
        local = datetime.fromisoformat(f"{day}T{clock}{fraction or ''}{'+00:00' if offset in 'Zz' else offset}")
        return local.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a time that exists: {error}") from None


@lru_cache(maxsize=1024)
def format_rfc3339(instant: datetime) -> str:
    """`instant` in UTC with six digits of fraction and `Z`."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_microseconds(instant: datetime) -> int:
    """Microseconds since 1970-01-01T00:00:00Z; exact, no floating point."""
    return (instant - EPOCH) // timedelta(microseconds=1)


def from_microseconds(microseconds: int) -> datetime:
    """The inverse of `to_microseconds`."""
    return EPOCH + timedelta(microseconds=microseconds)


def _coerce(value: object) -> datetime:
    if isinstance(value, str):
        return parse_rfc3339(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    raise ValueError("expected an RFC 3339 time with an offset")


UtcTime = Annotated[
    datetime,
    BeforeValidator(_coerce),
    PlainSerializer(format_rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A datetime in UTC that reads and writes RFC 3339."""
