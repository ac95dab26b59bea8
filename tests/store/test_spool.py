"""The spool of a host: all that is stored is pushed once, in order; what does not fit leaves a gap; nothing is lost by a kill."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from push_builders import EPOCH
from store_builders import HOST_ID, START, finding, judge, judge_again, minutes, observe

from exitguard.bookkeeping import savings_of
from exitguard.model.canonical import record_json
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.finding import Verdict
from exitguard.model.ledger import GuardSaving, LedgerRow, RunStanding
from exitguard.model.push import LedgerRows, PushAnswer, PushBatch, PushKind, RefusedRecord, SavingsText, stamped
from exitguard.model.rates import OwnUse
from exitguard.model.record import unseen
from exitguard.model.samples import Incarnation, Samples
from exitguard.savings.account import Sums, savings_now
from exitguard.savings.intervals import Look
from exitguard.store.gap import note_dropped
from exitguard.store.host import HostStore
from exitguard.store.ledger_writing import Run

MIB = 1 << 20
HOUR = START.replace(minute=0, second=0, microsecond=0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    (tmp_path / "host-id").write_text(f"{HOST_ID}\n")
    with HostStore.open(tmp_path, now=START) as opened:
        yield opened


def audit(store: HostStore, minute: int, **observed: object) -> AuditReport:
    observation = observe(minutes(minute), **observed)
    return store.record(observation, judge(observation))


def taken(store: HostStore, limit_bytes: int = 64 * MIB) -> PushBatch:
    store.spool.take_in(limit_bytes)
    batch = store.spool.next_batch(START)
    assert batch is not None
    return batch


def acknowledge(store: HostStore, batch: PushBatch, seq: int | None = None, refused: tuple[RefusedRecord, ...] = ()) -> bool:
    until = batch.records[-1].seq if seq is None else seq
    return store.spool.acknowledge(batch, PushAnswer(spool_epoch=batch.spool_epoch, acknowledged_seq=until, refused=refused))


def kinds(batch: PushBatch | None) -> list[str]:
    return [] if batch is None else [record.kind + ("" if record.payload is not None else " hash") for record in batch.records]


def book(store: HostStore, revision: int, exits: int, hour: int = 0) -> LedgerRow:
    incarnation = Incarnation(host_id=HOST_ID, domain_uuid=HOST_ID, boot_id=EPOCH, qemu_start_ticks=5)
    row = LedgerRow(
        incarnation=incarnation,
        hour=HOUR + timedelta(hours=hour),
        revision=revision,
        domain_name="web",
        accounted_milliseconds=1000,
        exits=exits,
        skip_exits_low=1,
        skip_exits_high=2,
        standing=RunStanding(guard=GuardSaving.SAVED),
    )
    with store.ledger.writing() as writer:
        writer.set_runs({incarnation.key: Run("web", row.standing)})
        writer.book([row], {incarnation.key: Look(incarnation, 1, {"exits": exits})}, ())
    return row


def test_the_newest_audit_is_pushed_first_and_then_every_one(store: HostStore) -> None:
    audit(store, 0)
    newest = audit(store, 10)
    batch = taken(store)
    assert (batch.host_id, batch.spool_epoch, kinds(batch)) == (HOST_ID, store.spool_epoch, ["facts", "report"])
    assert stamped(AuditReport, _body(batch, 1), minutes(10)) == newest
    assert stamped(FactsDocument, _body(batch, 0), minutes(10)) == store.facts()
    assert not acknowledge(store, batch)
    assert store.spool.next_batch(START) is None
    for minute in (20, 30):
        audit(store, minute, hostname=f"renamed-{minute}")
    assert [record.seq for record in taken(store).records] == [3, 4, 5, 6, 7, 8]


def _body(batch: PushBatch, number: int) -> bytes:
    payload = batch.records[number].payload
    assert payload is not None
    return record_json(payload)


def test_what_has_not_changed_goes_as_a_hash_until_the_hub_asks_for_it(store: HostStore) -> None:
    audit(store, 0)
    acknowledge(store, taken(store))
    for minute in (10, 20):
        audit(store, minute)
    batch = taken(store)
    assert kinds(batch) == ["facts hash", "report hash", "facts hash", "report hash", "samples", "samples"]
    assert [record.observed_at for record in batch.records[:4]] == [minutes(10), minutes(10), minutes(20), minutes(20)]
    again = store.spool.next_batch(START, in_full=[3, 4])
    assert kinds(again)[:4] == ["facts", "report", "facts hash", "report hash"]


def test_of_one_batch_each_payload_goes_once(store: HostStore) -> None:
    audit(store, 0)
    store.spool.take_in(64 * MIB)
    for minute in (10, 20):
        audit(store, minute)
    assert kinds(taken(store)) == ["facts", "report", "facts hash", "report hash", "facts hash", "report hash", "samples", "samples"]


def test_an_update_is_pushed_as_the_whole_report_of_then(store: HostStore) -> None:
    first = audit(store, 0)
    acknowledge(store, taken(store))
    facts = observe(minutes(3)).facts
    store.record_update(facts, judge_again(facts, {1: (finding(1, Verdict.PASS, minutes(3)),)}, minutes(3), first))
    batch = taken(store)
    assert kinds(batch) == ["facts hash", "report"]
    assert stamped(AuditReport, _body(batch, 1), minutes(3)) == store.report()


def test_rows_of_the_ledger_are_pushed_whenever_they_change(store: HostStore) -> None:
    before = book(store, 1, 10)
    audit(store, 0)
    first = taken(store)
    assert LedgerRows.model_validate_json(_body(first, 2)).rows == (before,)
    acknowledge(store, first)
    assert store.spool.take_in(MIB) == 0
    changed = book(store, 2, 20)
    other = book(store, 1, 5, hour=1)
    second = taken(store)
    assert kinds(second) == ["ledger"]
    assert LedgerRows.model_validate_json(_body(second, 0)).rows == (changed, other)


def test_what_the_host_saves_is_pushed_from_the_first_look_on(store: HostStore) -> None:
    audit(store, 0)
    saved = savings_of(store, minutes(5))
    assert saved is None, "nothing is booked"
    own = OwnUse(cpu_seconds=0.1, running_seconds=300.0)
    told = savings_now(minutes(1), Sums(START, minutes(5), (), 300.0, own), unseen("test", "not known"), minutes(5))
    store.spool.add_savings(told, minutes(5))
    assert store.spool.state().records == 0, "before the first look nobody pushes"
    taken(store)
    store.spool.add_savings(told, minutes(5))
    record = taken(store).records[-1]
    assert (record.kind, record.observed_at) == (PushKind.SAVINGS, minutes(5))
    assert record.payload is not None
    assert SavingsText.model_validate(record.payload).savings == told
    audit(store, 10)
    assert [each.seq for each in taken(store).records] == list(range(1, len(taken(store).records) + 1))


def test_a_host_without_a_hub_notes_nothing(store: HostStore) -> None:
    audit(store, 0)
    book(store, 1, 10)
    assert (store.spool.state().records, store.spool.next_batch(START)) == (0, None)


def test_samples_and_gaps_follow(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    acknowledge(store, taken(store))
    note_dropped(tmp_path / "gap-note", minutes(5), "no space left on device")
    samples = observe(minutes(8)).samples
    store.record_samples(samples)
    audit(store, 10)
    batch = taken(store)
    assert kinds(batch) == ["facts hash", "report hash", "gap", "samples", "samples"]
    assert Samples.model_validate_json(_body(batch, 3)) == samples
    assert batch.records[2].payload is not None
    assert batch.records[2].payload["reason"] == "no space left on device"


def test_observations_forgotten_before_they_were_taken_in_are_a_gap(store: HostStore) -> None:
    audit(store, 0)
    acknowledge(store, taken(store))
    for minute in range(10, 60, 10):
        audit(store, minute, hostname=f"renamed-{minute}")
    store.prune(minutes(50), history=timedelta(minutes=5), samples=timedelta(days=1), limit_bytes=64 * MIB)
    batch = taken(store)
    assert kinds(batch)[:3] == ["gap", "facts", "report"]
    assert batch.records[0].payload is not None
    assert (batch.records[0].payload["dropped"], batch.records[0].payload["reason"]) == (4, "forgotten before it was pushed")


def test_what_is_partly_acknowledged_stays_in_part(store: HostStore) -> None:
    audit(store, 0)
    batch = taken(store)
    acknowledge(store, batch, seq=1)
    rest = store.spool.next_batch(START)
    assert rest is not None
    assert [record.seq for record in rest.records] == [2]
    acknowledge(store, batch, seq=1)
    assert store.spool.state().records == 1


def test_a_full_spool_loses_the_oldest_and_says_so_until_the_hub_knows(store: HostStore) -> None:
    audit(store, 0)
    store.spool.take_in(64 * MIB)
    for minute in range(10, 200, 10):
        audit(store, minute, hostname=f"renamed-{minute}")
    batch = taken(store, limit_bytes=8 << 10)
    assert store.spool.state().bytes <= 8 << 10
    (gap,) = batch.gaps
    first = batch.records[0].seq
    assert (gap.first_seq, gap.last_seq, gap.dropped) == (1, first - 1, first - 1)
    assert "full" in gap.reason
    assert batch.records[-1].seq == 2 + 19 * 3
    acknowledge(store, batch)
    assert store.spool.state() == type(store.spool.state())(records=0, bytes=0, dropped=0)


def test_no_record_that_could_be_sent_is_needed_to_tell_of_a_gap(store: HostStore) -> None:
    audit(store, 0)
    batch = taken(store, limit_bytes=0)
    assert (batch.records, batch.gaps[0].dropped) == ((), 2)
    acknowledge(store, batch, seq=2)
    assert store.spool.next_batch(START) is None


def test_a_refused_record_does_not_count_as_known(store: HostStore) -> None:
    audit(store, 0)
    batch = taken(store)
    acknowledge(store, batch, refused=(RefusedRecord(seq=1, reason="no"),))
    audit(store, 10)
    assert kinds(taken(store))[:2] == ["facts", "report hash"]


def test_a_record_that_is_given_up_is_a_gap(store: HostStore) -> None:
    audit(store, 0)
    taken(store)
    store.spool.drop(1, "refused")
    batch = store.spool.next_batch(START)
    assert batch is not None
    assert ([gap.last_seq for gap in batch.gaps], [record.seq for record in batch.records]) == ([1], [2])


def test_a_store_put_back_from_a_backup_begins_its_spool_anew(store: HostStore) -> None:
    audit(store, 0)
    first = taken(store)
    acknowledge(store, first)
    audit(store, 10)
    batch = taken(store)
    assert acknowledge(store, batch, seq=500)
    again = store.spool.next_batch(START)
    assert again is not None
    assert again.spool_epoch != first.spool_epoch
    assert [record.seq for record in again.records] == [1, 2, 3]
    assert kinds(again) == ["facts", "report", "samples"]
    assert not acknowledge(store, batch, seq=5)  # of the old epoch
    assert store.spool.state().records == 3


def test_of_a_batch_only_so_many_are_sent(store: HostStore) -> None:
    audit(store, 0)
    store.spool.take_in(64 * MIB)
    limited = store.spool.next_batch(START, most_records=1)
    assert [record.kind for record in limited.records] == [PushKind.FACTS] if limited is not None else False
