"""Some domains judged anew between two audits: what changes, what it costs, and what it must not claim."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from store_builders import START, domain_name, domain_report, domain_uuid, finding, host_finding, judge, judge_again, minutes, observe

from exitguard.model.documents import AuditReport, FactsDocument, ReportUpdate
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Verdict
from exitguard.model.pmu import PmuElement
from exitguard.store.errors import StoreError, StoreOutdated
from exitguard.store.host import HostStore

FAIL, PASS, UNKNOWN = Verdict.FAIL, Verdict.PASS, Verdict.UNKNOWN
EVER = START - timedelta(days=365)
OFF, ABSENT = PmuElement.OFF, PmuElement.ABSENT


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    with HostStore.open(tmp_path, now=START) as opened:
        yield opened


def audit(store: HostStore, minute: int, domains: int = 3) -> AuditReport:
    observation = observe(minutes(minute), domains=domains)
    findings = (host_finding(FAIL, minutes(minute)), *(finding(number, FAIL, minutes(minute)) for number in range(domains)))
    return store.record(observation, judge(observation, findings))


def update_of(
    minute: int, pmu: Mapping[int, PmuElement | None], *, domains: int = 3, since_minute: int = 0, verdict: Verdict = PASS
) -> tuple[FactsDocument, ReportUpdate]:
    """Facts and update of `minute`, where the audit of `since_minute` saw `domains` domains; None for one that is gone."""
    numbers = set(range(domains)).union(pmu) - {number for number, element in pmu.items() if element is None}
    observation = observe(minutes(since_minute), numbers=numbers, pmu={number: element for number, element in pmu.items() if element})
    looked_at = {
        number: () if element is None else (finding(number, verdict, minutes(minute), reason=f"now {element}"),)
        for number, element in pmu.items()
    }
    facts = observation.facts
    return facts, judge_again(facts, looked_at, minutes(minute), judge(observation))


def of_domain(report: AuditReport | None, number: int) -> tuple[datetime, Finding]:
    """When the domain was last observed, and its finding."""
    assert report is not None
    (domain,) = [each for each in report.domains if each.uuid == domain_uuid(number)]
    (found,) = [each for each in report.findings if each.subject.id == domain_uuid(number)]
    (observed_at,) = {piece.observed_at for piece in (*domain.evidence, *found.evidence)}
    assert observed_at is not None
    return observed_at, found


def rows(state_dir: Path) -> Counter[str]:
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return Counter({name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names})  # noqa: S608 - our names


def test_update_changes_the_domains_that_it_names_and_no_other(store: HostStore) -> None:
    before = audit(store, 0)
    settled = store.record_update(*update_of(5, {1: OFF}))
    report = store.report()
    assert report is not None
    assert report.observed_at == minutes(5)
    assert of_domain(report, 1) == (minutes(5), settled.domains[0].findings[0])
    assert [each for each in report.findings if each.subject.id != domain_uuid(1)] == [
        each for each in before.findings if each.subject.id != domain_uuid(1)
    ]
    assert [each.uuid for each in report.domains] == [each.uuid for each in before.domains]
    assert store.report(minutes(4)) == before


def test_what_an_update_did_not_look_at_keeps_its_time(store: HostStore) -> None:
    audit(store, 0)
    store.record_update(*update_of(5, {1: OFF}))
    facts, update = update_of(7, {2: OFF})
    facts = observe(START, pmu={1: OFF, 2: OFF}).facts
    store.record_update(facts, update)
    told = store.report()
    assert [of_domain(told, number)[0] for number in range(3)] == [minutes(0), minutes(5), minutes(7)]
    assert told is not None
    assert {piece.observed_at for piece in told.host.kernel.evidence} == {minutes(0)}
    audit(store, 10)
    assert {of_domain(store.report(), number)[0] for number in range(3)} == {minutes(10)}
    assert [of_domain(store.report(minutes(7)), number)[0] for number in range(3)] == [minutes(0), minutes(5), minutes(7)]


def test_facts_after_an_update_are_of_the_time_of_the_audit(store: HostStore) -> None:
    audit(store, 0)
    facts, update = update_of(5, {1: OFF})
    store.record_update(facts.model_copy(update={"observed_at": minutes(5)}), update)
    assert store.facts() == facts
    loaded = store.facts(minutes(6))
    assert loaded is not None
    assert (loaded.observed_at, loaded.host_hash) == (START, facts.host_hash)


def test_verdict_that_an_update_changes_is_a_transition_of_its_time(store: HostStore) -> None:
    audit(store, 0)
    settled = store.record_update(*update_of(5, {1: OFF}))
    assert settled.domains[0].findings[0].since == minutes(5)
    (change,) = store.transitions(minutes(1))
    assert (change.subject.id, change.before, change.now, change.at) == (domain_uuid(1), FAIL, PASS, minutes(5))


def test_verdict_that_an_update_confirms_keeps_its_since(store: HostStore) -> None:
    audit(store, 0)
    settled = store.record_update(*update_of(5, {1: OFF}, verdict=FAIL))
    assert settled.domains[0].findings[0].since == START
    assert of_domain(store.report(), 1) == (minutes(5), settled.domains[0].findings[0])
    assert store.transitions(minutes(1)) == ()
    # and the next audit goes on from there
    observation = observe(minutes(10), pmu={1: OFF})
    report = store.record(observation, judge(observation, (finding(1, FAIL, minutes(10)),)))
    assert report.findings[0].since == START


def test_domain_that_came_is_told_and_one_that_is_gone_is_not(store: HostStore) -> None:
    audit(store, 0)
    store.record_update(*update_of(5, {0: None, 3: ABSENT}))
    report = store.report()
    assert report is not None
    assert [each.name for each in report.domains] == [domain_name(number) for number in (1, 2, 3)]
    assert [each.subject.name for each in report.findings] == ["compute-17", *(domain_name(number) for number in (1, 2, 3))]
    changes = store.transitions(minutes(5))
    assert [(change.subject.id, change.before, change.now) for change in changes] == [
        (domain_uuid(3), None, PASS),
        (domain_uuid(0), FAIL, None),
    ]


def test_last_domain_goes_and_another_comes(store: HostStore) -> None:
    audit(store, 0, domains=1)
    store.record_update(*update_of(5, {0: None}, domains=1))
    gone = store.report()
    assert gone is not None
    assert (gone.domains, [each.rule for each in gone.findings]) == ((), ["HOST-KERNEL-GUARD"])
    store.record_update(*update_of(6, {1: ABSENT}, domains=0))
    assert of_domain(store.report(), 1)[0] == minutes(6)


def test_domain_of_which_an_update_says_nothing_new_adds_a_heartbeat_only(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    store.record_update(*update_of(5, {1: OFF}))
    before = rows(tmp_path)
    settled = store.record_update(*update_of(6, {1: OFF}))
    assert rows(tmp_path) - before == {"observation": 1}
    # The older time understates; to claim the newer one for all would overstate.
    observed_at, found = of_domain(store.report(), 1)
    assert (observed_at, found.since) == (minutes(5), settled.domains[0].findings[0].since)


def test_stale_evidence_in_an_update_keeps_its_time(store: HostStore) -> None:
    audit(store, 0)
    facts, update = update_of(5, {1: OFF})
    stale = Evidence(source="live XML", value="before libvirtd hung", observed_at=START)
    (domain,) = update.domains
    mixed = domain.findings[0].model_copy(update={"evidence": (*domain.findings[0].evidence, stale)})
    store.record_update(facts, update.model_copy(update={"domains": (domain.model_copy(update={"findings": (mixed,)}),)}))
    report = store.report()
    assert report is not None
    (found,) = [each for each in report.findings if each.subject.id == domain_uuid(1)]
    assert [piece.observed_at for piece in found.evidence] == [minutes(5), START]


def test_update_adds_rows_for_what_it_changed_only(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0, domains=400)
    before = rows(tmp_path)
    store.record_update(*update_of(5, {7: OFF}, domains=400))
    # the domain and its finding (the head is the same); the facts of the domain, and those of the host with its hash
    assert rows(tmp_path) - before == {"observation": 1, "section": 2, "transition": 1, "facts_document": 2}


def statements_of(store: HostStore, facts: FactsDocument, update: ReportUpdate) -> list[tuple[str, object]]:
    """What SQLite is asked while an update is stored."""
    asked: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, _context: object, many: object) -> None:
        asked.append((statement, parameters[0] if many and isinstance(parameters, list) else parameters))

    engine = store._database.connection.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        store.record_update(facts, update)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return asked


def test_update_goes_through_no_table_from_end_to_end(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    asked = statements_of(store, *update_of(5, {0: None, 1: OFF, 3: ABSENT}))
    plans = []
    with closing(sqlite3.connect(tmp_path / "host.sqlite")) as connection:
        for statement, parameters in asked:
            if statement.split()[0] in ("SELECT", "UPDATE"):
                plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plans.extend((row[3], statement) for row in plan)
    assert any("section_now_by_subject" in step for step, _ in plans)
    assert [step for step in plans if step[0].startswith("SCAN") and "observation" not in step[0] and "spool" not in step[0]] == []


def test_update_of_an_empty_store_asks_for_an_audit(store: HostStore) -> None:
    with pytest.raises(StoreOutdated, match=r"host\.sqlite: the update was not stored: there is no audit in it.*A full audit is due"):
        store.record_update(*update_of(5, {1: OFF}))
    assert store.gaps(EVER) == ()
    assert store.report() is None


def test_update_after_somebody_else_stored_an_audit_asks_for_an_audit(store: HostStore, tmp_path: Path) -> None:
    audit(store, 0)
    with HostStore.open(tmp_path, now=minutes(3)) as other:
        theirs = audit(other, 3, domains=4)
    with pytest.raises(StoreOutdated, match=f"differs in more than the update names: {domain_uuid(3)}"):
        store.record_update(*update_of(5, {1: OFF}))
    assert store.report() == theirs
    assert store.gaps(EVER) == ()


def test_update_with_other_facts_of_the_host_asks_for_an_audit(store: HostStore) -> None:
    audit(store, 0)
    _, update = update_of(5, {1: OFF})
    with pytest.raises(StoreOutdated, match="differs in more than the update names: the host"):
        store.record_update(observe(START, pmu={1: OFF}, hostname="compute-18").facts, update)


def test_update_that_cannot_be_stored_is_a_gap_and_so_is_never_lost_silently(store: HostStore) -> None:
    audit(store, 0)
    facts, update = update_of(5, {1: OFF})
    store._database.connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match=r"readonly.*shown as a gap"):
        store.record_update(facts, update)
    store._database.connection.exec_driver_sql("PRAGMA query_only = OFF")
    assert [(gap.first_at, gap.dropped) for gap in store.gaps(EVER)] == [(minutes(5), 1)]
    store.record_update(facts, update)
    assert [(gap.first_at, gap.dropped) for gap in store.gaps(EVER)] == [(minutes(5), 1)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"domains": 2}, "names a domain twice"),
        ({"head": True}, "its head has domains or findings"),
        ({"uuid": domain_uuid(9)}, "is in one of them only"),
        ({"report": None}, "is in one of them only"),
        ({"finding": finding(2, FAIL, START)}, "has a finding about domain"),
        ({"finding": host_finding(FAIL, START)}, "has a finding about host"),
    ],
)
def test_update_that_is_not_of_its_facts_is_refused(store: HostStore, change: dict[str, object], problem: str) -> None:
    audit(store, 0)
    facts, update = update_of(5, {1: OFF})
    (domain,) = update.domains
    match change:
        case {"domains": 2}:
            update = update.model_copy(update={"domains": (domain, domain)})
        case {"head": True}:
            update = update.model_copy(update={"head": judge(observe(START))})
        case {"finding": other}:
            update = update.model_copy(update={"domains": (domain.model_copy(update={"findings": (other,)}),)})
        case _:
            update = update.model_copy(update={"domains": (domain.model_copy(update=change),)})
    with pytest.raises(ValueError, match=problem):
        store.record_update(facts, update)
    assert store.gaps(EVER) == ()


# --- any history of audits, updates and prunings, against a model of a few lines

RULES = ("DOM-PMU-LIVE", "DOM-PMU-PERSISTENT")
Shape = list[tuple[str, Verdict, str]]
shapes: st.SearchStrategy[Shape] = st.lists(
    st.tuples(st.sampled_from(RULES), st.sampled_from([FAIL, PASS]), st.sampled_from("ab")), max_size=3
)
elements = st.sampled_from([ABSENT, OFF])
looks = st.dictionaries(st.integers(0, 4), st.tuples(elements, shapes), max_size=5)
audits = st.tuples(st.just("audit"), looks)
updates = st.tuples(st.just("update"), st.dictionaries(st.integers(0, 4), st.none() | st.tuples(elements, shapes), max_size=3))
prunings = st.tuples(st.just("prune"), st.integers(0, 8))


@dataclass(frozen=True)
class Told:
    """A finding as the model has it; two are the same finding with the same key."""

    key: tuple[int, str, int]
    verdict: Verdict
    reason: str
    since: datetime
    at: datetime

    def finding(self) -> Finding:
        number, rule, _ = self.key
        return finding(number, self.verdict, self.at, rule=rule, reason=self.reason).model_copy(update={"since": self.since})


@dataclass
class Model:
    """What a store should tell, kept in the simplest way: everything is looked at for everything."""

    audited_at: datetime = START
    domains: dict[int, tuple[PmuElement, datetime]] = field(default_factory=dict)
    findings: list[Told] = field(default_factory=list)

    def judge(self, at: datetime, looked_at: Mapping[int, Shape]) -> list[Told]:
        since = {told.key: (told.verdict, told.since) for told in self.findings}
        seen: Counter[tuple[int, str]] = Counter()
        judged = []
        for number, shape in sorted(looked_at.items()):
            for rule, verdict, reason in shape:
                key = (number, rule, seen[number, rule])
                seen[number, rule] += 1
                before = since.get(key)
                judged.append(Told(key, verdict, reason, before[1] if before and before[0] is verdict else at, at))
        return judged

    def audit(self, at: datetime, looked_at: dict[int, tuple[PmuElement, Shape]]) -> None:
        self.findings = self.judge(at, {number: shape for number, (_, shape) in looked_at.items()})
        self.domains = {number: (element, at) for number, (element, _) in sorted(looked_at.items())}
        self.audited_at = at

    def update(self, at: datetime, looked_at: dict[int, tuple[PmuElement, Shape] | None]) -> None:
        judged = {told.key: told for told in self.judge(at, {number: look[1] for number, look in looked_at.items() if look})}
        for number, look in sorted(looked_at.items()):
            if look is None:
                self.domains.pop(number, None)
            elif self.domains.get(number, (None, at))[0] is not look[0]:
                self.domains[number] = (look[0], at)
        kept = []
        for old in self.findings:
            new = judged.pop(old.key, None)
            if old.key[0] not in looked_at:
                kept.append(old)
            elif new is not None:
                kept.append(old if replace(new, at=old.at) == old else new)
        self.findings = [*kept, *judged.values()]

    def facts(self) -> FactsDocument:
        return observe(self.audited_at, numbers=self.domains, pmu={n: element for n, (element, _) in self.domains.items()}).facts

    def report(self, at: datetime) -> AuditReport:
        facts = self.facts()
        findings = tuple(told.finding() for told in self.findings)
        by_uuid = {domain.uuid: domain for domain in facts.domains}
        domains = tuple(domain_report(by_uuid[domain_uuid(number)], seen_at) for number, (_, seen_at) in self.domains.items())
        whole = judge(observe(self.audited_at, numbers=self.domains), findings)
        return whole.model_copy(update={"observed_at": at, "domains": domains})


def store_next(store: HostStore, model: Model, at: datetime, kind: str, looked_at: dict) -> None:  # type: ignore[type-arg]
    if kind == "audit":
        model.audit(at, looked_at)
        observation = observe(at, numbers=model.domains, pmu={number: element for number, (element, _) in model.domains.items()})
        fresh = tuple(told.finding().model_copy(update={"since": None}) for told in model.findings)
        assert store.record(observation, judge(observation, fresh)) == model.report(at)
        return
    fresh_again = {
        number: () if look is None else tuple(finding(number, verdict, at, rule=rule, reason=reason) for rule, verdict, reason in look[1])
        for number, look in looked_at.items()
    }
    model.update(at, looked_at)
    store.record_update(model.facts(), judge_again(model.facts(), fresh_again, at, model.report(at)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=looks, history=st.lists(st.one_of(audits, updates, updates, prunings), max_size=10))
def test_any_history_of_audits_updates_and_prunings_is_told_as_it_was(first: dict, history: list) -> None:  # type: ignore[type-arg]
    state_dir = Path(mkdtemp())
    try:
        with HostStore.open(state_dir, now=START) as store:
            model = Model()
            kept: list[tuple[datetime, str, FactsDocument, AuditReport]] = []
            pruned = False
            for minute, (kind, what) in enumerate([("audit", first), *history]):
                at = minutes(minute)
                if kind == "prune":
                    pruned = True
                    store.prune(at, history=timedelta(minutes=what), samples=timedelta(days=1), limit_bytes=2**40)
                    young = [number for number, entry in enumerate(kept) if entry[0] >= at - timedelta(minutes=what)]
                    last = young[0] if young else len(kept) - 1
                    while kept[last][1] != "audit":
                        last -= 1
                    kept = kept[last:]
                    continue
                store_next(store, model, at, kind, what)
                kept.append((at, kind, model.facts(), model.report(at)))
            assert store.horizon() == kept[0][0]
            assert store.report(kept[0][0] - timedelta(microseconds=1)) is None
            for at, _, facts, report in kept:
                assert store.report(at) == report
                assert store.facts(at) == facts
            if not pruned:
                assert replay(store) == Counter((told.key[1], domain_uuid(told.key[0]), told.verdict) for told in model.findings)
        assert_in_order(state_dir, observations=len(kept), documents=documents_of(kept))
    finally:
        shutil.rmtree(state_dir)


def replay(store: HostStore) -> Counter[tuple[str, str, Verdict]]:
    """The verdicts that follow from all transitions, each of which begins where the one before it ended."""
    verdicts: Counter[tuple[str, str, Verdict]] = Counter()
    for change in store.transitions(EVER):
        if change.before is not None:
            verdicts[change.rule, change.subject.id, change.before] -= 1
        if change.now is not None:
            verdicts[change.rule, change.subject.id, change.now] += 1
    return +verdicts


def documents_of(kept: list[tuple[datetime, str, FactsDocument, AuditReport]]) -> set[str]:
    return {key for _, _, facts, _ in kept for key in (facts.host_hash, *facts.domain_hashes.values())}


def assert_in_order(state_dir: Path, *, observations: int, documents: set[str]) -> None:
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("SELECT count(*) FROM observation").fetchone() == (observations,)
        assert {key for (key,) in connection.execute("SELECT hash FROM facts_document")} == documents
        (horizon,) = connection.execute("SELECT min(seq) FROM observation").fetchone()
        assert connection.execute("SELECT count(*) FROM section WHERE since_seq < ?", (horizon,)).fetchone() == (0,)
