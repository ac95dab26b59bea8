"""What many hosts come to, and what is to be done first."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from account_builders import AVAILABLE, SAVED, UNPRICED, accounted, summed

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN, Severity, SubjectKind, Verdict
from exitguard.model.ledger import LedgerSum
from exitguard.model.pmu import ChainState, LinkName, NextAction
from exitguard.model.rates import HostSavings
from exitguard.report.history import history_of
from exitguard.report.overview import GroupKey, Overview
from exitguard.report.result import HostResult


def savings(*sums: LedgerSum) -> HostSavings:
    account = accounted(*sums)
    return HostSavings(**{name: getattr(account, name) for name in HostSavings.model_fields})


def result(build: SimpleNamespace, name: str, *, stale: bool = False, verdict: Verdict = Verdict.FAIL, domains: int = 1) -> HostResult:
    host = build.host(id=f"id-of-{name}", hostname=name)
    guests = tuple(build.domain(f"{name}-{number}", number=number) for number in range(domains))
    report = build.report(guests, (build.finding(verdict),), host_report=host)
    by_chain = {ChainState.ON: domains}
    return HostResult(
        report.model_copy(update={"summary": report.summary.model_copy(update={"by_chain": by_chain})}), stale, f"{name}.json"
    )


def test_worst_host_decides_and_no_host_is_unknown(build: SimpleNamespace) -> None:
    overview = Overview()
    assert overview.exit_code == EXIT_UNKNOWN
    for verdict, code in (
        (Verdict.PASS, EXIT_COMPLIANT),
        (Verdict.UNKNOWN, EXIT_UNKNOWN),
        (Verdict.FAIL, EXIT_NOT_COMPLIANT),
        (Verdict.ERROR, EXIT_ERROR),
    ):
        overview.add(result(build, f"host-{verdict}", verdict=verdict))
        assert overview.exit_code == code


def test_stale_host_is_no_pass_and_a_stale_failure_stays_one(build: SimpleNamespace) -> None:
    overview = Overview()
    overview.add(result(build, "a", stale=True, verdict=Verdict.PASS))
    overview.add(result(build, "b", stale=True, verdict=Verdict.FAIL))
    assert overview.by_exit_code == {EXIT_UNKNOWN: 1, EXIT_NOT_COMPLIANT: 1}
    assert overview.stale == 2


def test_report_that_could_not_be_read_is_an_error_whatever_the_others_say(build: SimpleNamespace) -> None:
    overview = Overview(unread=["b.json: no JSON"])
    overview.add(result(build, "a", verdict=Verdict.PASS))
    assert overview.exit_code == EXIT_ERROR


def test_findings_alike_are_one_problem_with_the_oldest_since(build: SimpleNamespace) -> None:
    overview = Overview()
    for age, name in ((1, "a"), (3, "b"), (2, "c")):
        host = build.host(id=name, hostname=name)
        finding = build.finding(since=build.moment - timedelta(days=age))
        overview.add(HostResult(build.report((), (finding, finding), host_report=host), stale=False, source=name))
    (problem,) = overview.problems
    assert (problem.count, problem.host_count, problem.hosts) == (6, 3, ["a", "b", "c"])
    assert problem.since == build.moment - timedelta(days=3)


def test_errors_come_before_failures_and_severe_failures_before_mild_ones(build: SimpleNamespace) -> None:
    overview = Overview()
    findings = (
        build.finding(Verdict.PASS, "R1"),
        build.finding(Verdict.UNKNOWN, "R2"),
        build.finding(Verdict.FAIL, "R3", severity=Severity.LOW),
        build.finding(Verdict.FAIL, "R4", severity=Severity.HIGH),
        build.finding(Verdict.ERROR, "R5"),
    )
    overview.add(HostResult(build.report((), findings), stale=False, source="a"))
    assert [each.rule for each in overview.problems] == ["R5", "R4", "R3", "R2"]


def test_steps_count_domains_and_hosts(build: SimpleNamespace) -> None:
    overview = Overview()
    overview.add(result(build, "a", domains=2))
    overview.add(result(build, "b", domains=3))
    (step,) = overview.steps
    assert (step.action, step.domains, step.host_count, step.hosts) == (NextAction.SET_PMU_OFF, 5, 2, ["a", "b"])


@pytest.mark.parametrize("key", GroupKey)
def test_every_group_holds_each_host_or_domain_once(build: SimpleNamespace, key: GroupKey) -> None:
    overview = Overview(group_by=key)
    overview.add(result(build, "a", domains=2))
    overview.add(result(build, "b", domains=3))
    (group,) = overview.groups
    assert group.hosts == 2
    assert group.domains == (2 if key is GroupKey.RULE else 5)


def test_only_keeps_the_findings_asked_for_and_their_domains_but_not_a_better_summary(build: SimpleNamespace) -> None:
    about = [build.domain("one", number=1), build.domain("two", number=2)]
    findings = (build.finding(Verdict.FAIL), build.finding(Verdict.PASS, "OTHER"))
    report = build.report(tuple(about), findings)
    kept = HostResult(report, stale=False, source="a").only({Verdict.FAIL}).told
    assert [each.rule for each in kept.findings] == ["DOM-PMU-LIVE"]
    assert [each.name for each in kept.domains] == ["one"]
    assert kept.summary == report.summary
    assert HostResult(report, stale=False, source="a").only(()).told is report


def test_history_has_a_point_wherever_a_host_became_another(build: SimpleNamespace) -> None:
    day = timedelta(days=1)
    at = build.moment
    points = [("a", at, 2), ("b", at, 0), ("a", at + day, 2), ("a", at + 2 * day, 0)]
    moments = history_of(points, at + 2 * day)
    assert [(each.at, dict(each.by_exit_code)) for each in moments] == [
        (at, {2: 1, 0: 1}),
        (at + day, {2: 1, 3: 1}),  # b was not looked at again
        (at + 2 * day, {0: 1, 3: 1}),
    ]


def test_step_that_releases_most_cycles_is_first_and_nothing_is_promised_twice(build: SimpleNamespace) -> None:
    overview = Overview()
    unpriced, priced = UNPRICED.held_back_by, AVAILABLE.held_back_by
    assert (unpriced, priced) == (LinkName.RUNNING, LinkName.KERNEL)
    domains = (
        build.domain("a", number=1, action=NextAction.RESTART_GUEST),
        build.domain("b", number=2, action=NextAction.INSTALL_GUARDED_KERNEL),
        build.domain("c", number=3, action=NextAction.BOOT_INSTALLED_KERNEL),
    )
    report = build.report(domains, savings=savings(summed(UNPRICED, run=1), summed(AVAILABLE, run=2), summed(SAVED, run=3)))
    overview.add(HostResult(report, stale=False, source="a"))
    first, second, third = overview.steps
    assert (first.action, second.action, third.action) == (
        NextAction.BOOT_INSTALLED_KERNEL,
        NextAction.RESTART_GUEST,
        NextAction.INSTALL_GUARDED_KERNEL,
    )
    assert first.available == report.savings.now.available_cycles_per_second
    assert second.unquantified_skips == 200
    assert third.available is None
    assert overview.savings.skips_by_standing == {"running": 200, "kernel": 200, "saved": 200}


def test_savings_of_hosts_add_up_and_hosts_without_a_ledger_are_no_zero(build: SimpleNamespace) -> None:
    overview = Overview()
    overview.add(HostResult(build.report(), stale=False, source="none"))
    assert (overview.savings.saved, overview.savings.accounted) == (None, 0)
    for name in ("a", "b"):
        overview.add(HostResult(build.report(savings=savings(summed(SAVED))), stale=False, source=name))
    one = savings(summed(SAVED)).now.saved_cycles_per_second
    assert one is not None
    assert overview.savings.saved is not None
    assert (overview.savings.saved.low, overview.savings.saved.high, overview.savings.accounted) == (2 * one.low, 2 * one.high, 2)


def test_compliant_host_is_unknown_in_its_history_once_its_audit_is_stale(build: SimpleNamespace) -> None:
    day, at = timedelta(days=1), build.moment
    moments = history_of([("a", at, 0), ("a", at + 3 * day, 0), ("b", at, 2)], at + 9 * day)
    assert [(each.at, dict(each.by_exit_code)) for each in moments] == [
        (at, {0: 1, 2: 1}),
        (at + day, {3: 1, 2: 1}),
        (at + 3 * day, {0: 1, 2: 1}),
        (at + 4 * day, {3: 1, 2: 1}),
    ]


def test_audit_from_the_future_is_no_history_yet(build: SimpleNamespace) -> None:
    at = build.moment
    assert history_of([("a", at, 0), ("a", at + timedelta(days=30), 2)], at + timedelta(hours=1)) == ()


def test_stale_host_is_to_be_audited_again_and_nothing_of_it_passes(build: SimpleNamespace) -> None:
    overview = Overview()
    report = build.report(
        (build.domain("a", number=1, state=ChainState.EFFECTIVE, action=NextAction.NONE),), (build.finding(Verdict.PASS),)
    )
    summary = report.summary.model_copy(update={"by_chain": {ChainState.EFFECTIVE: 1}})
    overview.add(HostResult(report.model_copy(update={"summary": summary}), stale=True, source="a"))
    assert (overview.by_verdict[Verdict.PASS], overview.by_verdict[Verdict.UNKNOWN]) == (0, 1)
    assert (overview.by_chain[ChainState.EFFECTIVE], overview.by_chain[ChainState.UNKNOWN]) == (0, 1)
    (step,) = overview.steps
    assert step.sentence.startswith("Audit again")
    assert overview.savings.accounted == 0


def test_reports_that_could_not_be_read_are_the_first_step(build: SimpleNamespace) -> None:
    overview = Overview()
    overview.add(result(build, "a", domains=1))
    overview.unread = ["b.json: no", "c.json: no"]
    first, *_ = overview.steps
    assert first.sentence.startswith("Fetch 2 reports again")


def test_host_without_guests_whose_kernel_fails_needs_a_kernel(build: SimpleNamespace) -> None:
    overview = Overview()
    about = build.finding(rule="HOST-KERNEL-GUARD", remedy="kernel_guard")
    host = build.report((), ())
    about = about.model_copy(update={"subject": about.subject.model_copy(update={"kind": SubjectKind.HOST, "id": host.host.id})})
    overview.add(HostResult(build.report((), (about,)), stale=False, source="a"))
    (step,) = overview.steps
    assert (step.action, step.domains, step.host_count) == (NextAction.INSTALL_GUARDED_KERNEL, 0, 1)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.UNKNOWN, Verdict.ERROR])
def test_host_that_is_not_compliant_is_never_without_a_step(build: SimpleNamespace, verdict: Verdict) -> None:
    overview = Overview()
    overview.add(HostResult(build.report((), (build.finding(verdict),)), stale=False, source="a"))
    assert [step.hosts for step in overview.steps] == [[overview.hosts[0].name]]


def test_guest_that_somebody_answers_for_is_in_no_step(build: SimpleNamespace) -> None:
    domain = build.domain("a", number=1)
    subject = build.finding().subject.model_copy(update={"id": domain.uuid})
    for verdicts, steps in (((Verdict.WAIVED, Verdict.PASS), 0), ((Verdict.WAIVED, Verdict.FAIL), 1)):
        overview = Overview()
        findings = tuple(build.finding(verdict, subject=subject) for verdict in verdicts)
        overview.add(HostResult(build.report((domain,), findings), stale=False, source="a"))
        assert len([step for step in overview.steps if step.action is not None]) == steps


def test_failures_that_other_waivers_answer_for_are_told_apart(build: SimpleNamespace) -> None:
    overview = Overview()
    findings = tuple(build.finding(Verdict.WAIVED, waiver=waiver) for waiver in ("W-1", "W-2", "W-1"))
    overview.add(HostResult(build.report((), findings), stale=False, source="a"))
    assert {(each.waiver, each.count) for each in overview.problems} == {("W-1", 2), ("W-2", 1)}


def test_what_is_listed_changes_no_sum_no_step_and_no_group(build: SimpleNamespace) -> None:
    whole, filtered = Overview(group_by=GroupKey.CHAIN), Overview(group_by=GroupKey.CHAIN)
    for overview, asked in ((whole, ()), (filtered, (Verdict.WAIVED,))):
        overview.add(result(build, "a", domains=2).only(asked))
    assert filtered.problems == []
    assert [(each.sentence, each.domains) for each in filtered.steps] == [(each.sentence, each.domains) for each in whole.steps]
    assert [(each.name, each.by_verdict) for each in filtered.groups] == [(each.name, each.by_verdict) for each in whole.groups]


def test_what_the_agents_use_and_whether_a_change_pays_is_summed_up(build: SimpleNamespace) -> None:
    overview = Overview()
    for name in ("a", "b"):
        report = build.report((), (), host_report=build.host(id=name, hostname=name), savings=savings(summed(SAVED, run=1)))
        overview.add(HostResult(report, stale=name == "b", source=name))
    assert overview.savings.accounted == sum(overview.savings.worthwhile.values()) == 1
