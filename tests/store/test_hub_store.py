"""The fleet's memory, on both databases: what is pushed is told, once, whatever comes twice, late, or from the wrong host."""

from datetime import timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from push_builders import (
    EPOCH,
    OTHER_EPOCH,
    as_hashes,
    audit_records,
    batch_of,
    facts_of,
    host_id,
    ledger_of,
    ledger_row,
    let_in,
    record,
    report_of,
    samples_of,
)
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from store_builders import START, finding, minutes

from exitguard.model.documents import AuditReport
from exitguard.model.finding import Verdict
from exitguard.model.history import Gap
from exitguard.model.hub import GapKind
from exitguard.model.push import PushKind, PushRecord, SavingsText, SpoolGap
from exitguard.model.rates import HostSavings, OwnUse
from exitguard.model.record import unseen
from exitguard.savings.account import Sums, savings_now
from exitguard.store.errors import StoreError
from exitguard.store.hub import HubRetention, HubStore
from exitguard.store.hub_answers import (
    read_events,
    read_facts,
    read_findings,
    read_gaps,
    read_hosts,
    read_ledger,
    read_ledger_totals,
    read_samples,
)
from exitguard.store.hub_database import open_hub_database
from exitguard.store.hub_ingest import UnknownHost
from exitguard.store.hub_tables import metadata

HOUR = START.replace(minute=0, second=0, microsecond=0)
FAIL, PASS, UNKNOWN = Verdict.FAIL, Verdict.PASS, Verdict.UNKNOWN


@pytest.fixture
def store(hub_database: str) -> Any:
    with HubStore.open(hub_database) as opened:
        let_in(opened, 1, 2)
        yield opened


def dump(store: HubStore) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that is in the database, but when it was received."""
    with store.reading() as connection:
        return {
            name: sorted(
                tuple(row)
                for row in connection.execute(
                    select(*(c for c in table.columns if c.name not in ("received_at", "clock_ahead_microseconds")))
                )
            )
            for name, table in metadata.tables.items()
        }


def counts(store: HubStore) -> dict[str, int]:
    with store.reading() as connection:
        return {name: connection.execute(select(func.count()).select_from(table)).scalar_one() for name, table in metadata.tables.items()}


def test_what_was_pushed_is_told(store: HubStore) -> None:
    answer = store.take(batch_of(1, audit_records(1, 1, START)), received_at=minutes(1))
    assert (answer.acknowledged_seq, answer.send_in_full, answer.refused) == (2, (), ())
    (stored,) = store.reports()
    assert stored.report() == report_of(1, START)
    with store.reading() as connection:
        assert read_facts(connection, host_id(1)) == facts_of(1, START)
        (first, second) = read_hosts(connection, 10)
        assert (first.host_id, first.hostname, first.exit_code, first.domains) == (host_id(1), "compute-17", 2, 3)
        assert (first.received_at, first.observed_at, first.clock_ahead_seconds) == (minutes(1), START, -60.0)
        assert (second.hostname, second.observed_at, second.may_write) == ("host-2", None, True)


def test_everything_that_comes_twice_changes_nothing(store: HubStore) -> None:
    batches = [
        batch_of(1, [*audit_records(1, 1, START), record(3, samples_of(1, START), START)]),
        batch_of(
            1,
            [
                *audit_records(4, 1, minutes(10), findings=(finding(0, PASS, minutes(10)),)),
                record(6, ledger_of([ledger_row(1, 0, HOUR)]), START),
            ],
        ),
        batch_of(
            1,
            [
                *as_hashes(audit_records(7, 1, minutes(20))),
                record(9, Gap(id="g", first_at=START, last_at=START, dropped=3, reason="full"), START),
            ],
        ),
    ]
    answers = [store.take(batch, received_at=minutes(30)) for batch in batches]
    assert [answer.acknowledged_seq for answer in answers] == [3, 6, 9]
    before = dump(store)
    for batch in (*batches, *batches, batches[0]):
        assert store.take(batch, received_at=minutes(30)).acknowledged_seq == 9
    assert dump(store) == before


def test_a_batch_that_overlaps_what_is_known_adds_only_the_rest(store: HubStore) -> None:
    first = [record(n, samples_of(1, minutes(n)), minutes(n)) for n in range(1, 6)]
    rest = [record(n, samples_of(1, minutes(n)), minutes(n)) for n in range(3, 9)]
    store.take(batch_of(1, first), received_at=START)
    assert store.take(batch_of(1, rest), received_at=START).acknowledged_seq == 8
    with store.reading() as connection:
        told = read_samples(connection, host_id(1), 100)
    assert [samples for _, samples in told] == [samples_of(1, minutes(n)) for n in range(1, 9)]


def test_an_unchanged_host_sends_hashes_and_is_heard_of(store: HubStore) -> None:
    store.take(batch_of(1, audit_records(1, 1, START)), received_at=START)
    before = counts(store)
    for n in range(1, 5):
        hashes = as_hashes(audit_records(2 * n + 1, 1, minutes(10 * n)))
        assert store.take(batch_of(1, hashes), received_at=minutes(10 * n)).acknowledged_seq == 2 * n + 2
    assert counts(store) == before
    (stored,) = store.reports()
    assert (stored.observed_at, stored.received_at) == (minutes(40), minutes(40))
    assert stored.report() == report_of(1, minutes(40))
    with store.reading() as connection:
        facts = read_facts(connection, host_id(1))
    assert facts is not None
    assert facts.observed_at == minutes(40)


def test_an_unknown_hash_is_asked_for_in_full_and_nothing_after_it_is_taken(store: HubStore) -> None:
    records = [
        record(1, samples_of(1, START), START),
        *as_hashes(audit_records(2, 1, START)),
        record(4, samples_of(1, minutes(5)), minutes(5)),
    ]
    answer = store.take(batch_of(1, records), received_at=START)
    assert (answer.acknowledged_seq, answer.send_in_full) == (1, (2, 3))
    answer = store.take(batch_of(1, [*audit_records(2, 1, START), records[3]]), received_at=START)
    assert (answer.acknowledged_seq, answer.send_in_full) == (4, ())
    assert [stored.report() for stored in store.reports()] == [report_of(1, START)]


def test_a_hash_of_another_host_is_not_known(store: HubStore) -> None:
    store.take(batch_of(1, audit_records(1, 1, START)), received_at=START)
    stolen = as_hashes(audit_records(1, 1, START))
    answer = store.take(batch_of(2, stolen), received_at=START)
    assert (answer.acknowledged_seq, answer.send_in_full) == (0, (1, 2))


def test_a_hash_that_comes_back_is_the_report_of_then(store: HubStore) -> None:
    failing, passing = ((finding(0, verdict, START),) for verdict in (FAIL, PASS))
    first, other = audit_records(1, 1, START, findings=failing), audit_records(3, 1, START, findings=passing)
    again = [each.model_copy(update={"seq": each.seq + 4, "payload": None}) for each in first]
    for records in (first, other, again):
        store.take(batch_of(1, records), received_at=START)
    with store.reading() as connection:
        events = read_events(connection, START, 100)
        (held,), _ = read_findings(connection, 100)
    assert [(event.before, event.now) for event in events] == [(None, FAIL), (FAIL, PASS), (PASS, FAIL)]
    assert held.verdict is FAIL
    assert next(store.reports()).report().findings == failing


def test_findings_change_one_by_one_and_each_change_is_told_once(store: HubStore) -> None:
    steps = [
        (finding(0, FAIL, START), finding(1, FAIL, START)),
        (finding(0, PASS, START), finding(1, FAIL, START, reason="another reason")),
        (finding(0, PASS, START), finding(2, UNKNOWN, START)),
        (),
    ]
    records: list[PushRecord] = []
    for n, findings in enumerate(steps):
        records += audit_records(2 * n + 1, 1, minutes(n), findings=findings)
    answers = [store.take(batch_of(1, records[:4]), received_at=START), store.take(batch_of(1, records[4:]), received_at=START)]
    assert [answer.acknowledged_seq for answer in answers] == [4, 8]
    with store.reading() as connection:
        events = read_events(connection, START, 100)
        left, _ = read_findings(connection, 100)
    told = [(event.subject_name[-1], event.before, event.now) for event in events]
    assert told == [
        ("0", None, FAIL),
        ("1", None, FAIL),
        ("0", FAIL, PASS),
        ("2", None, UNKNOWN),
        ("1", FAIL, None),
        ("0", PASS, None),
        ("2", UNKNOWN, None),
    ]
    assert left == ()


def test_while_libvirt_cannot_be_asked_no_domain_is_gone(store: HubStore) -> None:
    store.take(batch_of(1, audit_records(1, 1, START, findings=(finding(0, FAIL, START),))), received_at=START)
    store.take(batch_of(1, audit_records(3, 1, minutes(10), findings=(), blind=True)), received_at=START)
    with store.reading() as connection:
        assert len(read_events(connection, START, 100)) == 1
        assert len(read_findings(connection, 100)[0]) == 1


def test_a_report_of_the_past_is_told_as_of_then(store: HubStore) -> None:
    failing, passing = ((finding(0, verdict, START),) for verdict in (FAIL, PASS))
    day = 24 * 60
    for seq, (minute, findings) in enumerate([(0, failing), (10, failing), (60, passing), (day, passing), (day + 5, failing)]):
        report = report_of(1, minutes(minute), findings)
        store.take(batch_of(1, [record(seq + 1, report, minutes(minute))]), received_at=minutes(minute))

    def told(minute: int) -> tuple[AuditReport, ...]:
        return tuple(stored.report() for stored in store.reports(minutes(minute)))

    assert told(-1) == ()
    assert told(5) == (report_of(1, minutes(0), failing),)
    assert told(59) == (report_of(1, minutes(10), failing),)
    assert told(day - 1) == (report_of(1, minutes(60), passing),)
    assert told(day + 4) == (report_of(1, minutes(day), passing),)
    assert told(9 * day) == (report_of(1, minutes(day + 5), failing),)


def test_what_a_host_saves_is_told_for_two_hours(store: HubStore) -> None:
    own = OwnUse(cpu_seconds=1.0, running_seconds=3600.0)

    def saved(minute: int) -> HostSavings:
        return savings_now(
            minutes(minute), Sums(START, minutes(minute), (), 60.0 + minute, own), unseen("test", "not known"), minutes(minute)
        )

    store.take(batch_of(1, audit_records(1, 1, START)), received_at=START)
    for seq, minute in ((3, 10), (4, 70)):
        store.take(batch_of(1, [record(seq, SavingsText.of(saved(minute)), minutes(minute))]), received_at=minutes(minute))
    told = {minute: next(store.reports(minutes(minute))).savings_json for minute in (9, 10, 69, 70, 190, 191)}
    read = {minute: None if body == b"null" else HostSavings.model_validate_json(body) for minute, body in told.items()}
    assert read == {9: None, 10: saved(10), 69: saved(10), 70: saved(70), 190: saved(70), 191: None}


def test_of_ledger_rows_the_highest_revision_counts_in_whatever_order_they_come(store: HubStore) -> None:
    rows = [ledger_row(1, 0, HOUR, revision, exits=100 * revision) for revision in (2, 1, 3)]
    store.take(batch_of(1, [record(1, ledger_of(rows[:2]), START)]), received_at=START)
    store.take(batch_of(1, [record(2, ledger_of([rows[2]]), START), record(3, ledger_of([rows[0]]), START)]), received_at=START)
    older = record(4, ledger_of([rows[1], ledger_row(1, 1, HOUR - timedelta(days=3))]), START)
    store.take(batch_of(1, [older]), received_at=START)
    with store.reading() as connection:
        assert read_ledger(connection, host_id(1), HOUR, HOUR + timedelta(hours=1)) == (rows[2],)
        (total,) = read_ledger_totals(connection, HOUR - timedelta(days=9), HOUR + timedelta(days=1), 10)
    assert (total.rows, total.exits) == (2, 300 + 1000)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: record(2, facts_of(2, START), START), "writes only what is its own"),
        (lambda: record(2, report_of(2, START), START), "writes only what is its own"),
        (lambda: record(2, samples_of(2, START), START), "writes only what is its own"),
        (lambda: record(2, ledger_of([ledger_row(1, 0, HOUR), ledger_row(2, 0, HOUR)]), START), "writes only what is its own"),
        (lambda: record(2, ledger_of([ledger_row(1, 0, HOUR + timedelta(days=3))]), START), "yet to come"),
        (lambda: record(2, ledger_of([ledger_row(1, 0, HOUR - timedelta(days=401))]), START), "no longer kept"),
        (lambda: record(2, ledger_of([ledger_row(1, 0, HOUR + timedelta(seconds=1))]), START), "no full hour"),
        (lambda: record(2, ledger_of([ledger_row(1, 0, HOUR, revision=2**62)]), START), "revision"),
        (lambda: record(2, report_of(1, START), START).model_copy(update={"sha256": "sha256:" + "0" * 64}), "another hash"),
        (lambda: record(2, samples_of(1, START), START).model_copy(update={"kind": PushKind.FACTS}), "is no facts document"),
        (lambda: record(2, report_of(1, START, (finding(0, FAIL, START, rule="R" * 3000),)), START), "longer than"),
    ],
)
def test_what_will_never_fit_is_refused_for_good_with_a_gap_and_the_rest_is_taken(store: HubStore, wrong: Any, why: str) -> None:
    records = [record(1, samples_of(1, START), START), wrong(), record(3, samples_of(1, minutes(5)), minutes(5))]
    for _ in range(2):
        answer = store.take(batch_of(1, records), received_at=START)
        assert answer.acknowledged_seq == 3
    with store.reading() as connection:
        (gap,) = read_gaps(connection, START, 10)
        assert len(read_samples(connection, host_id(1), 10)) == 2
    assert (gap.kind, gap.dropped, gap.gap_id) == (GapKind.REFUSED, 1, f"{EPOCH}/2")
    assert why in gap.reason
    assert counts(store)["ledger"] == counts(store)["document"] == 0


def test_gaps_are_counted_once_whoever_tells_of_them(store: HubStore) -> None:
    told = SpoolGap(first_seq=2, last_seq=5, dropped=4, first_at=START, last_at=minutes(9), reason="the spool was full")
    first = batch_of(1, [record(1, samples_of(1, START), START)])
    store.take(first, received_at=START)
    later = batch_of(
        1, [record(6, samples_of(1, minutes(10)), minutes(10)), record(9, samples_of(1, minutes(20)), minutes(20))], gaps=[told]
    )
    for _ in range(3):
        assert store.take(later, received_at=minutes(20)).acknowledged_seq == 9
    with store.reading() as connection:
        gaps = read_gaps(connection, START, 10)
    assert sorted((gap.kind, gap.dropped, gap.gap_id) for gap in gaps) == [
        (GapKind.MISSING, 2, f"{EPOCH}/7"),
        (GapKind.SPOOL, 4, f"{EPOCH}/2"),
    ]


def test_what_a_host_dropped_although_it_had_arrived_is_no_gap(store: HubStore) -> None:
    store.take(batch_of(1, [record(n, samples_of(1, minutes(n)), minutes(n)) for n in range(1, 4)]), received_at=START)
    told = SpoolGap(first_seq=2, last_seq=5, dropped=4, first_at=START, last_at=minutes(9), reason="the spool was full")
    assert store.take(batch_of(1, [], gaps=[told]), received_at=START).acknowledged_seq == 5
    with store.reading() as connection:
        (gap,) = read_gaps(connection, START, 10)
    assert (gap.gap_id, gap.dropped) == (f"{EPOCH}/4", 2)


def test_each_spool_has_numbers_of_its_own(store: HubStore) -> None:
    for epoch in (EPOCH, OTHER_EPOCH, EPOCH, OTHER_EPOCH):
        batch = batch_of(1, [record(n, samples_of(1, minutes(n)), minutes(n)) for n in (1, 2)], epoch=epoch)
        assert store.take(batch, received_at=START).acknowledged_seq == 2
    assert store.take(batch_of(1, [record(3, samples_of(1, START), START)]), received_at=START).acknowledged_seq == 3
    assert counts(store)["samples"] == 5
    assert counts(store)["gap"] == 0


def test_hostile_text_is_text(store: HubStore) -> None:
    text = "'; DROP TABLE host; -- <script>alert(1)</script> \x00 \u202e \U0001f600" + "x" * 5000
    report = report_of(1, START, (finding(0, FAIL, START, rule="a'b\x00", reason=text),))
    report = report.model_copy(update={"policy": text, "host": report.host.model_copy(update={"hostname": text})})
    assert store.take(batch_of(1, [record(1, report, START)]), received_at=START).refused == ()
    assert next(store.reports()).report() == report
    with store.reading() as connection:
        (held,), _ = read_findings(connection, 10)
        told = read_hosts(connection, 1)[0].hostname
    assert held.rule == "a'b\ufffd"
    assert told is not None
    assert told.startswith("'; DROP TABLE host; --")


def test_an_unknown_host_writes_nothing(store: HubStore) -> None:
    with pytest.raises(UnknownHost):
        store.take(batch_of(3, audit_records(1, 3, START)), received_at=START)
    assert counts(store)["document"] == counts(store)["standing"] == 0


def test_retention_forgets_by_day_and_keeps_what_is_so_now(hub_database: str) -> None:
    with HubStore.open(hub_database, HubRetention(history_days=30, samples_days=2, ledger_days=10)) as store:
        let_in(store, 1)
        for day in range(5):
            at = START + timedelta(days=day)
            records = [
                *audit_records(4 * day + 1, 1, at, findings=(finding(day, FAIL, at),)),
                record(4 * day + 3, samples_of(1, at), at),
                record(4 * day + 4, ledger_of([ledger_row(1, 0, HOUR + timedelta(days=day))]), at),
            ]
            store.take(batch_of(1, records), received_at=at)
        assert (counts(store)["samples"], counts(store)["ledger"], counts(store)["standing"]) == (5, 5, 10)
        store.prune(START + timedelta(days=5))
        assert (counts(store)["samples"], counts(store)["ledger"], counts(store)["standing"]) == (2, 5, 10)
        store.prune(START + timedelta(days=99))
        left = counts(store)
        assert (left["samples"], left["ledger"], left["standing"], left["finding_event"], left["document"]) == (0, 0, 0, 0, 2)
        assert next(store.reports()).report() == report_of(1, START + timedelta(days=4), (finding(4, FAIL, START + timedelta(days=4)),))
        hashes = as_hashes(audit_records(21, 1, START, findings=(finding(4, FAIL, START),)))
        assert store.take(batch_of(1, hashes), received_at=START + timedelta(days=100)).acknowledged_seq == 22


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log"])
def test_the_audit_log_only_grows(hub_database: str, statement: str) -> None:
    with HubStore.open(hub_database) as store:
        let_in(store, 1)
        with pytest.raises(StoreError, match="append-only"), store.writing() as connection:
            connection.exec_driver_sql(statement)
        assert counts(store)["audit_log"] == 2


def test_the_schema_is_what_the_tables_say(hub_database: str) -> None:
    database = open_hub_database(hub_database)
    try:
        with database.transaction() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    finally:
        database.close()


def test_another_programs_database_is_left_alone(hub_database: str) -> None:
    database = open_hub_database(hub_database)
    with database.transaction(write=True) as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    database.close()
    with pytest.raises(StoreError, match="another program's database"):
        open_hub_database(hub_database)


def test_a_newer_schema_is_left_alone(hub_database: str) -> None:
    database = open_hub_database(hub_database)
    with database.transaction(write=True) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="9999"):
        database.check()
    database.close()
    with pytest.raises(StoreError, match="newer"):
        open_hub_database(hub_database)


@pytest.mark.parametrize(
    "where", ["postgresql://postgres@/x?host=/nonexistent", "postgresql://127.0.0.1:1/x", "postgresql://[::1", "/nonexistent/hub"]
)
def test_a_database_that_is_not_there_is_told_in_words(where: str) -> None:
    with pytest.raises(StoreError, match="Expected"):
        HubStore.open(where)


def test_error_type_of_the_driver_does_not_leak(hub_database: str) -> None:
    with HubStore.open(hub_database) as store, pytest.raises(StoreError) as caught, store.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM nothing_of_that_name")
    assert isinstance(caught.value.__cause__, DBAPIError)
