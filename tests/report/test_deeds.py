"""Which verdict changed after which run: by subject, host and time alone."""

from datetime import UTC, datetime, timedelta

from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.history import Transition
from exitguard.report.deeds import Deed, with_runs

HOST, WEB, DB = "host-1", "uuid-web", "uuid-db"
NOON = datetime(2026, 5, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def changed(subject: str, at: datetime, *, rule: str = "DOM-PMU-LIVE") -> Transition:
    kind = SubjectKind.HOST if subject == HOST else SubjectKind.DOMAIN
    return Transition(
        rule=rule, subject=Subject(kind=kind, id=subject, name=subject), before=Verdict.FAIL, now=Verdict.PASS, reason="off", at=at
    )


def deed(subject: str, at: datetime, run: str = "run-1") -> Deed:
    return Deed(run, at, HOST, subject)


def runs(*transitions: Transition, deeds: list[Deed]) -> list[str | None]:
    return [each.after_run for each in with_runs(transitions, deeds)]


def test_change_of_the_domain_or_of_its_host_before_it_is_told() -> None:
    assert runs(changed(WEB, NOON), deeds=[deed(WEB, NOON - HOUR)]) == ["run-1"]
    assert runs(changed(WEB, NOON), deeds=[deed(HOST, NOON - HOUR)]) == ["run-1"]
    assert runs(changed(HOST, NOON), deeds=[deed(HOST, NOON - HOUR)]) == ["run-1"]


def test_change_of_another_domain_or_a_later_one_is_not() -> None:
    assert runs(changed(WEB, NOON), deeds=[deed(DB, NOON - HOUR)]) == [None]
    assert runs(changed(WEB, NOON), deeds=[deed(WEB, NOON + HOUR)]) == [None]
    assert runs(changed(HOST, NOON), deeds=[deed(WEB, NOON - HOUR)]) == [None]


def test_run_before_the_verdict_before_has_no_part_in_the_next_change() -> None:
    transitions = (changed(WEB, NOON), changed(WEB, NOON + HOUR), changed(WEB, NOON + HOUR, rule="DOM-PMU-EFFECTIVE"))
    assert runs(*transitions, deeds=[deed(WEB, NOON - HOUR)]) == ["run-1", None, "run-1"]


def test_last_of_several_runs_is_told() -> None:
    assert runs(changed(WEB, NOON), deeds=[deed(WEB, NOON - HOUR, "later"), deed(WEB, NOON - 2 * HOUR, "earlier")]) == ["later"]
