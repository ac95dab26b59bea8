"""The wire between hosts and hub: what is bounded, and what a hash stands for."""

import hashlib
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_builders import HOST_ID, START, judge, minutes, observe

from exitguard.model.canonical import canonical_json
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.push import MOST_RECORDS, PushBatch, PushKind, PushRecord, SpoolGap, stamped, unstamped

EPOCH = "0d9c2f7e-98a5-4a83-9d0f-8a5b8f6c2d99"
NO_HASH = "sha256:" + "0" * 64


def record(seq: int, **changed: Any) -> dict[str, Any]:
    return {"seq": seq, "kind": "facts", "sha256": NO_HASH, "observed_at": "2026-03-01T12:00:00Z", "payload": None} | changed


def batch(*records: dict[str, Any], **changed: Any) -> str:
    return json.dumps({"host_id": HOST_ID, "spool_epoch": EPOCH, "sent_at": "2026-03-01T12:00:00Z", "records": records} | changed)


def test_an_unchanged_host_has_the_same_payloads_at_another_time() -> None:
    first, second = observe(START), observe(minutes(10))
    assert unstamped(first.facts) == unstamped(second.facts)
    assert unstamped(judge(first)) == unstamped(judge(second))


def test_a_payload_is_canonical_json_and_gives_the_document_back() -> None:
    observation = observe(START)
    report = judge(observation)
    for kind, document in ((FactsDocument, observation.facts), (AuditReport, report)):
        body = unstamped(document)
        assert body == canonical_json(json.loads(body))
        assert stamped(kind, body, START) == document


def test_a_time_that_is_not_the_documents_own_stays_what_it_is() -> None:
    report = judge(observe(START))
    older = report.model_copy(update={"observed_at": minutes(10)})
    assert stamped(AuditReport, unstamped(older), minutes(10)) == older


def test_text_that_looks_like_a_time_is_not_taken_for_one() -> None:
    facts = observe(START, hostname='"observed_at":null').facts
    assert stamped(FactsDocument, unstamped(facts), minutes(3)).host.identity.hostname.value == '"observed_at":null'


def test_batch_of_hashes_is_read() -> None:
    read = PushBatch.model_validate_json(batch(record(3), record(4, kind="report")))
    assert [(each.seq, each.kind) for each in read.records] == [(3, PushKind.FACTS), (4, PushKind.REPORT)]


@pytest.mark.parametrize(
    "text",
    [
        batch(record(4), record(4)),
        batch(record(4), record(3)),
        batch(record(0)),
        batch(record(2**53)),
        batch(record(1, kind="samples")),
        batch(record(1, kind="other")),
        batch(record(1, sha256="sha256:" + "0" * 63)),
        batch(record(1, observed_at="2026-03-01")),
        batch(record(1, payload=[])),
        batch(*[record(n) for n in range(1, MOST_RECORDS + 2)]),
        batch(host_id="../../etc/passwd"),
        batch(host_id=HOST_ID + "\n"),
        batch(host_id=HOST_ID.upper()),
        batch(spool_epoch="' OR 1=1 --"),
        '{"records": ' + "[" * 5000 + "]" * 5000 + "}",
        batch() + "x",
    ],
)
def test_what_is_out_of_bounds_is_refused_before_anything_else(text: str) -> None:
    with pytest.raises(ValidationError):
        PushBatch.model_validate_json(text)


@pytest.mark.parametrize(("first", "last", "dropped"), [(5, 4, 1), (5, 5, 2), (5, 9, 0)])
def test_a_gap_that_does_not_add_up_is_refused(first: int, last: int, dropped: int) -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    with pytest.raises(ValidationError):
        SpoolGap(first_seq=first, last_seq=last, dropped=dropped, first_at=at, last_at=at + timedelta(hours=1), reason="full")


def test_the_hash_is_over_the_payload_alone() -> None:
    body = unstamped(observe(START).facts)
    sha256 = "sha256:" + hashlib.sha256(body).hexdigest()
    read = PushRecord.model_validate_json(json.dumps(record(1, sha256=sha256, payload=json.loads(body))))
    assert "sha256:" + hashlib.sha256(canonical_json(read.payload)).hexdigest() == sha256
