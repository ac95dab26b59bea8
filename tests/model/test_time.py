"""Time in documents: RFC 3339 in UTC with microseconds, stored as integers."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.evidence import Evidence
from exitguard.model.time import format_rfc3339, from_microseconds, parse_rfc3339, to_microseconds

INSTANTS = st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the bounds are naive by contract


@given(INSTANTS)
def test_every_instant_survives_text_and_integer_exactly(instant: datetime) -> None:
    assert parse_rfc3339(format_rfc3339(instant)) == instant
    assert from_microseconds(to_microseconds(instant)) == instant


def test_it_is_written_in_utc_with_six_digits_and_z() -> None:
    berlin = timezone(timedelta(hours=1))
    assert format_rfc3339(datetime(2026, 1, 31, 0, 30, tzinfo=berlin)) == "2026-01-30T23:30:00.000000Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31",
        "2026-01-31T00:00:00",
        "2026-01-31 00:00:00Z",
        "20260131T000000Z",
        "2026-01-31T00:00:00.1234567Z",
        "2026-01-31T00:00:00+1:00",
        "2026-02-30T00:00:00Z",
        "2026-01-31T24:61:00Z",
        "٢٠٢٦-01-31T00:00:00Z",
        "now",
        "",
        "0001-01-01T00:00:00+14:00",
    ],
)
def test_a_time_without_offset_or_one_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_rfc3339(text)


@given(st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert parse_rfc3339(text).tzinfo is UTC


def test_a_document_reads_and_writes_it() -> None:
    evidence = Evidence.model_validate_json('{"source": "s", "value": "v", "observed_at": "2026-01-31T01:00:00+01:00"}')
    assert evidence.observed_at == datetime(2026, 1, 31, tzinfo=UTC)
    assert '"2026-01-31T00:00:00.000000Z"' in evidence.model_dump_json()
    with pytest.raises(ValueError, match="offset"):
        Evidence(source="s", value="v", observed_at=datetime(2026, 1, 31))  # noqa: DTZ001 - that is the point
