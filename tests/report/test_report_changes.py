"""What changed, and what was lost, since a time."""

from datetime import timedelta
from types import SimpleNamespace

from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.history import Gap, Transition
from exitguard.report.changes import Changes, changes_page
from exitguard.report.page import Look

SUBJECT = Subject(kind=SubjectKind.DOMAIN, id="00000000-0000-4000-8000-000000000001", name="web-1")


def transition(build: SimpleNamespace, minutes: int, before: Verdict | None, now: Verdict | None, rule: str = "DOM-PMU-LIVE") -> Transition:
    return Transition(rule=rule, subject=SUBJECT, before=before, now=now, reason="because", at=build.moment + timedelta(minutes=minutes))


def test_the_newest_change_comes_first(build: SimpleNamespace) -> None:
    changes = Changes(
        since=build.moment,
        transitions=(transition(build, 1, None, Verdict.FAIL, "R-OLD"), transition(build, 2, Verdict.FAIL, Verdict.PASS, "R-NEW")),
        gaps=(),
    )
    page = changes_page(changes, Look())
    assert page.startswith("2 verdicts changed since 2026-05-22 03:00 UTC, 0 gaps")
    assert page.index("R-NEW") < page.index("R-OLD")
    assert "fail → pass  R-NEW  web-1: because" in page
    assert "new → fail  R-OLD" in page


def test_a_finding_that_is_gone_is_said_to_be_gone(build: SimpleNamespace) -> None:
    page = changes_page(Changes(since=build.moment, transitions=(transition(build, 1, Verdict.FAIL, None),), gaps=()), Look())
    assert "fail → gone" in page


def test_a_gap_is_shown_with_what_it_lost(build: SimpleNamespace) -> None:
    gap = Gap(
        id="00000000-0000-4000-8000-000000000001",
        first_at=build.moment,
        last_at=build.moment + timedelta(hours=2),
        dropped=24,
        reason="no space left on device",
    )
    page = " ".join(changes_page(Changes(since=build.moment, transitions=(), gaps=(gap,)), Look()).split())
    assert "2026-05-22 03:00 UTC to 2026-05-22 05:00 UTC: at least 24 observations lost: no space left on device" in page


def test_many_changes_are_capped_and_counted(build: SimpleNamespace) -> None:
    many = tuple(transition(build, minute, Verdict.PASS, Verdict.FAIL) for minute in range(1000))
    page = changes_page(Changes(since=build.moment, transitions=many, gaps=()), Look())
    assert page.startswith("1,000 verdicts changed")
    assert "… and 900 more, see --format json" in page
