"""What the store remembers, and gives back as it was."""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_builders import (
    START,
    domain_name,
    domain_uuid,
    finding,
    host_facts,
    host_finding,
    judge,
    minutes,
    observe,
)

from exitguard.model.documents import AuditReport
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Verdict
from exitguard.model.pmu import PmuElement
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

FAIL, PASS, UNKNOWN = Verdict.FAIL, Verdict.PASS, Verdict.UNKNOWN
EVER = START - timedelta(days=365)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(state_dir: Path) -> Iterator[HostStore]:
    with HostStore.open(state_dir, now=START) as opened:
        yield opened


def counts(state_dir: Path) -> dict[str, int]:
    """How many rows each table has, by a look from outside."""
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}  # noqa: S608 - our names


def record(store: HostStore, minute: int, *findings: Finding, domains: int = 3) -> AuditReport:
    observation = observe(minutes(minute), domains=domains)
    return store.record(observation, judge(observation, findings or None))


def verdict_of(report: AuditReport | None, number: int) -> Finding:
    assert report is not None
    (found,) = [entry for entry in report.findings if entry.subject.id == domain_uuid(number)]
    return found


def test_empty_store_has_no_report(store: HostStore) -> None:
    assert store.report() is None
    assert store.report(START) is None
    assert store.facts() is None
    assert store.target() is None
    assert store.transitions(EVER) == ()
    assert store.gaps(EVER) == ()


def test_report_is_what_record_returned_evidence_and_since_included(store: HostStore) -> None:
    recorded = record(store, 0)
    assert store.report() == recorded
    assert recorded.findings[0].since == START
    assert recorded.findings[0].evidence[0].observed_at == START


def test_report_survives_closing_and_opening(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=START) as store:
        recorded = record(store, 0)
    with HostStore.open(state_dir, now=START) as store:
        assert store.report() == recorded


def test_unchanged_report_is_restamped_with_its_own_time(store: HostStore) -> None:
    first = record(store, 0)
    second = record(store, 5)
    assert store.report() == second
    assert second.findings[1].evidence[0].observed_at == minutes(5)
    assert second.findings[1].since == START
    assert store.report(minutes(4)) == first


def test_stale_evidence_keeps_its_time(store: HostStore) -> None:
    stale = Evidence(source="live XML", value="last seen before libvirtd hung", observed_at=minutes(-30))
    for minute in (0, 5):
        fresh = finding(0, UNKNOWN, minutes(minute))
        record(store, minute, fresh.model_copy(update={"evidence": (*fresh.evidence, stale)}))
    loaded = verdict_of(store.report(), 0)
    assert [piece.observed_at for piece in loaded.evidence] == [minutes(5), minutes(-30)]


def test_text_that_looks_like_a_time_stamp_is_left_alone(store: HostStore) -> None:
    hostile = '"observed_at":null, "observed_at":"2026-03-01T12:00:00.123456Z", \\"observed_at\\":null'
    recorded = record(store, 0, finding(0, FAIL, START, reason=hostile))
    assert store.report() == recorded
    assert verdict_of(store.report(), 0).reason == hostile


def test_unchanged_host_adds_a_heartbeat_and_its_samples_and_nothing_else(store: HostStore, state_dir: Path) -> None:
    record(store, 0, domains=500)
    before = counts(state_dir)
    record(store, 5, domains=500)
    after = counts(state_dir)
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {"observation": 1, "samples": 1}
    assert before["facts_document"] == 501


def test_one_changed_domain_adds_one_domain_document_and_one_host_document(store: HostStore, state_dir: Path) -> None:
    first = observe(minutes(0), domains=50)
    store.record(first, judge(first))
    before = counts(state_dir)
    second = observe(minutes(5), domains=50, pmu={7: PmuElement.OFF})
    store.record(second, judge(second))
    assert counts(state_dir)["facts_document"] == before["facts_document"] + 2


def test_facts_that_come_back_are_not_stored_again(store: HostStore, state_dir: Path) -> None:
    for minute, pmu in enumerate((PmuElement.ON, PmuElement.OFF, PmuElement.ON, PmuElement.OFF)):
        observation = observe(minutes(minute), pmu={0: pmu})
        store.record(observation, judge(observation))
    assert counts(state_dir)["facts_document"] == 3 + 1 + 2


def test_every_facts_document_is_stored_under_the_hash_of_its_bytes(store: HostStore, state_dir: Path) -> None:
    observation = observe(START, hostname="größer-\U0001f600")
    store.record(observation, judge(observation))
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        stored = dict(connection.execute("SELECT hash, body FROM facts_document"))
    assert set(stored) == {observation.facts.host_hash, *observation.facts.domain_hashes.values()}
    assert all(key == "sha256:" + hashlib.sha256(body).hexdigest() for key, body in stored.items())


def test_facts_come_back_with_the_same_hash(store: HostStore) -> None:
    observation = observe(START, domains=1200)
    store.record(observation, judge(observation))
    loaded = store.facts()
    assert loaded == observation.facts
    assert loaded is not None
    assert loaded.host_hash == observation.facts.host_hash


def test_target_is_that_of_the_last_observation(store: HostStore) -> None:
    record(store, 0)
    assert store.target() == host_facts().target


def test_facts_at_an_earlier_time_are_those_of_then(store: HostStore) -> None:
    first, second = observe(minutes(0)), observe(minutes(5), domains=4)
    for observation in (first, second):
        store.record(observation, judge(observation))
    assert store.facts(minutes(1)) == first.facts
    assert store.facts(minutes(5)) == second.facts


def test_changed_reason_keeps_since_and_the_newest_reason_is_told(store: HostStore, state_dir: Path) -> None:
    record(store, 0, finding(0, FAIL, minutes(0), reason="PMU on"))
    record(store, 5, finding(0, FAIL, minutes(5), reason="PMU on, and the owner says so"))
    loaded = verdict_of(store.report(), 0)
    assert (loaded.since, loaded.reason) == (START, "PMU on, and the owner says so")
    assert verdict_of(store.report(minutes(4)), 0).reason == "PMU on"
    assert counts(state_dir)["transition"] == 1


def test_changed_verdict_begins_anew_and_is_a_transition(store: HostStore) -> None:
    record(store, 0, finding(0, FAIL, minutes(0)))
    record(store, 5, finding(0, PASS, minutes(5), reason="off"))
    assert verdict_of(store.report(), 0).since == minutes(5)
    change = store.transitions(minutes(5))
    assert [(entry.before, entry.now, entry.reason, entry.at) for entry in change] == [(FAIL, PASS, "off", minutes(5))]
    assert change[0].subject.name == domain_name(0)


def test_finding_that_goes_and_comes_back_begins_anew(store: HostStore) -> None:
    present = finding(0, FAIL, minutes(0))
    record(store, 0, present, host_finding(FAIL, minutes(0)))
    record(store, 5, host_finding(FAIL, minutes(5)))
    assert store.report() is not None
    record(store, 10, finding(0, FAIL, minutes(10)), host_finding(FAIL, minutes(10)))
    changes = [change for change in store.transitions(EVER) if change.rule == present.rule]
    assert [(change.before, change.now) for change in changes] == [(None, FAIL), (FAIL, None), (None, FAIL)]
    assert verdict_of(store.report(), 0).since == minutes(10)
    assert changes[1].subject == present.subject


def test_clock_set_back_neither_reorders_nor_loses_anything(store: HostStore) -> None:
    record(store, 60, finding(0, FAIL, minutes(60)))
    after = record(store, 1, finding(0, PASS, minutes(1)))
    assert store.report() == after
    assert verdict_of(after, 0).since == minutes(1)
    later = record(store, 2, finding(0, PASS, minutes(2)))
    assert verdict_of(later, 0).since == minutes(1)
    assert [change.at for change in store.transitions(EVER)] == [minutes(60), minutes(1)]
    assert store.report(minutes(61)) == later


def test_report_before_the_first_is_none(store: HostStore) -> None:
    record(store, 0)
    assert store.report(START - timedelta(microseconds=1)) is None
    assert store.report(START) is not None


def test_same_rule_and_subject_twice_are_both_kept(store: HostStore) -> None:
    twice = (finding(0, FAIL, START, reason="one"), finding(0, UNKNOWN, START, reason="two"))
    recorded = record(store, 0, *twice)
    assert store.report() == recorded
    assert [entry.reason for entry in recorded.findings] == ["one", "two"]
    assert len(store.transitions(EVER)) == 2


def test_domain_that_appears_in_the_middle_changes_no_other_part(store: HostStore, state_dir: Path) -> None:
    record(store, 0, *(finding(number, FAIL, minutes(0)) for number in (0, 2)))
    before = counts(state_dir)
    recorded = record(store, 5, *(finding(number, FAIL, minutes(5)) for number in (0, 1, 2)))
    assert store.report() == recorded
    # the new finding, the order, and the head with its summary
    assert counts(state_dir)["section"] == before["section"] + 3


def test_only_the_order_changed(store: HostStore) -> None:
    record(store, 0, *(finding(number, FAIL, minutes(0)) for number in (0, 1, 2)))
    recorded = record(store, 5, *(finding(number, FAIL, minutes(5)) for number in (2, 0, 1)))
    assert store.report() == recorded
    assert [entry.subject.id for entry in recorded.findings] == [domain_uuid(number) for number in (2, 0, 1)]
    assert len(store.transitions(EVER)) == 3


def test_host_without_domains_and_findings_is_stored(store: HostStore) -> None:
    observation = observe(START, domains=0)
    recorded = store.record(observation, judge(observation, ()))
    assert store.report() == recorded


def test_samples_come_back_in_the_order_of_storing(store: HostStore) -> None:
    observations = [observe(minutes(minute)) for minute in (0, 5, 3)]
    for observation in observations:
        store.record(observation, judge(observation))
    assert list(store.samples(EVER)) == [observation.samples for observation in observations]
    assert list(store.samples(minutes(4))) == [observations[1].samples]


def test_samples_may_be_read_while_others_are_recorded(store: HostStore) -> None:
    record(store, 0)
    reading = store.samples(EVER)
    next(reading)
    record(store, 5)
    assert list(reading) == []


def test_report_of_another_observation_is_refused(store: HostStore) -> None:
    with pytest.raises(ValueError, match="observed_at differ"):
        store.record(observe(minutes(0)), judge(observe(minutes(5))))


def test_second_machine_id_under_one_host_id_is_remembered(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=START) as store:
        assert store.machine_ids_seen("f00d", START) == ("f00d",)
        assert store.machine_ids_seen("f00d", minutes(1)) == ("f00d",)
    with HostStore.open(state_dir, now=minutes(2)) as store:
        assert store.machine_ids_seen("cafe", minutes(2)) == ("f00d", "cafe")
        assert store.machine_ids_seen("f00d", minutes(3)) == ("f00d", "cafe")


def test_machine_ids_of_another_host_id_do_not_count(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=START) as store:
        store.machine_ids_seen("f00d", START)
    (state_dir / "host-id").unlink()
    with HostStore.open(state_dir, now=START) as store:
        assert store.machine_ids_seen("cafe", START) == ("cafe",)


def test_document_that_this_version_cannot_read_is_named(store: HostStore, state_dir: Path) -> None:
    record(store, 0)
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection, connection:
        connection.execute("UPDATE section SET body = CAST(replace(body, 'verdict', 'overdict') AS BLOB) WHERE kind = 'finding'")
    with pytest.raises(StoreError, match=r"host\.sqlite: holds a document that this exitguard cannot read.*verdict"):
        store.report()


def test_part_that_is_missing_is_never_passed_over(store: HostStore, state_dir: Path) -> None:
    record(store, 0)
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection, connection:
        connection.execute("DELETE FROM section WHERE kind = 'finding' AND subject_kind = 'host'")
    with pytest.raises(StoreError, match="does not name exactly its parts"):
        store.report()


def test_observation_that_has_no_json_form_is_dropped_visibly(store: HostStore, state_dir: Path) -> None:
    record(store, 0)
    before = counts(state_dir)
    with pytest.raises(StoreError, match="shown as a gap"):
        record(store, 5, finding(0, FAIL, minutes(5), reason="a file name with \udcff in it"))
    assert counts(state_dir) == before
    (gap,) = store.gaps(EVER)
    assert (gap.first_at, gap.dropped) == (minutes(5), 1)


Shape = list[tuple[int, str, Verdict, str]]
shapes: st.SearchStrategy[Shape] = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(["DOM-PMU-LIVE", "DOM-PMU-PERSISTENT"]), st.sampled_from(Verdict), st.sampled_from(["a", "b"])
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(st.tuples(shapes, st.integers(0, 4)), min_size=1, max_size=6))
def test_any_history_is_told_as_it_was(history: list[tuple[Shape, int]]) -> None:
    state_dir = Path(mkdtemp())
    try:
        with HostStore.open(state_dir, now=START) as store:
            recorded = []
            for minute, (shape, domains) in enumerate(history):
                at = minutes(minute)
                findings = tuple(finding(number, verdict, at, rule=rule, reason=reason) for number, rule, verdict, reason in shape)
                observation = observe(at, domains=domains)
                recorded.append((at, observation.facts, store.record(observation, judge(observation, findings))))
            for at, facts, report in recorded:
                assert store.report(at) == report
                assert store.facts(at) == facts
                assert all(entry.since is not None and entry.since <= at for entry in report.findings)
            # Replayed, the transitions give the verdicts of the last report: each begins where the one before it ended.
            replayed: dict[tuple[str, str], list[Verdict]] = {}
            for change in store.transitions(EVER):
                verdicts = replayed.setdefault((change.rule, change.subject.id), [])
                if change.before is not None:
                    verdicts.remove(change.before)
                if change.now is not None:
                    verdicts.append(change.now)
            told: dict[tuple[str, str], list[Verdict]] = {}
            for entry in recorded[-1][2].findings:
                told.setdefault((entry.rule, entry.subject.id), []).append(entry.verdict)
            assert {key: sorted(verdicts) for key, verdicts in replayed.items() if verdicts} == {k: sorted(v) for k, v in told.items()}
    finally:
        shutil.rmtree(state_dir)
