"""Waivers: only a failing finding in scope and in time is waived, and no tenant can waive itself."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exitguard.model.finding import Finding, Severity, Subject, SubjectKind, Verdict
from exitguard.policy.schema import Waiver, WaiverScope
from exitguard.policy.waiver import WaiverUse, apply_waivers, protects

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOST, OTHER_HOST = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
VM, OTHER_VM = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


def finding(
    kind: SubjectKind = SubjectKind.DOMAIN, subject_id: str = VM, name: str = "web", verdict: Verdict = Verdict.FAIL, rule: str = "RULE-A"
) -> Finding:
    subject = Subject(kind=kind, id=subject_id, name=name)
    return Finding(rule=rule, severity=Severity.HIGH, subject=subject, verdict=verdict, reason="it is on", remedy="kernel_guard")


HOST_FINDING = finding(SubjectKind.HOST, HOST, "hv1")


def waiver(
    *,
    hosts: tuple[str, ...] = (),
    domains: tuple[str, ...] = (),
    flavors: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    waiver_id: str = "CHG-1",
    created: datetime | None = None,
    days: int = 30,
) -> Waiver:
    start = created or NOW - timedelta(days=1)
    scope = WaiverScope(hosts=hosts, domains=domains, flavors=flavors, images=images)
    return Waiver(
        id=waiver_id,
        rules=("RULE-A",),
        scope=scope,
        justification="the reboot is planned",
        approver="Ada",
        created=start,
        expires=start + timedelta(days=days),
    )


def applied(findings: tuple[Finding, ...], *waivers: Waiver, now: datetime = NOW) -> tuple[tuple[Finding, ...], WaiverUse]:
    return apply_waivers(findings, waivers, host_id=HOST, hostname="hv1", now=now)


def is_waived(one: Finding, by: Waiver) -> bool:
    ((judged,), _) = applied((one,), by)
    return judged.verdict is Verdict.WAIVED


def test_waived_finding_says_by_whom_and_until_when_and_keeps_its_reason() -> None:
    ((judged,), use) = applied((finding(),), waiver(domains=(VM,)))
    assert judged == finding().model_copy(
        update={
            "verdict": Verdict.WAIVED,
            "waiver": "CHG-1",
            "reason": "it is on (waived by Ada until 2026-06-30T00:00:00.000000Z, waiver CHG-1)",
        }
    )
    assert use == WaiverUse(active=(waiver(domains=(VM,)),))


@pytest.mark.parametrize(
    ("hosts", "domains", "host_finding_waived", "domain_finding_waived"),
    [
        ((HOST,), (), True, True),
        (("hv1",), (), True, True),
        (("*",), (), True, True),
        ((OTHER_HOST, HOST), (), True, True),
        ((OTHER_HOST,), (), False, False),
        (("hv1.example.org",), (), False, False),
        (("HV1",), (), False, False),
        ((), (VM,), False, True),
        ((), (VM.upper(),), False, True),
        ((), ("web",), False, True),
        ((), ("*",), False, True),
        ((), (OTHER_VM, "web"), False, True),
        ((), (OTHER_VM,), False, False),
        ((HOST,), (VM,), False, True),
        ((HOST,), ("*",), False, True),
        ((OTHER_HOST,), (VM,), False, False),
        ((HOST,), (OTHER_VM,), False, False),
    ],
)
def test_scope(hosts: tuple[str, ...], domains: tuple[str, ...], host_finding_waived: bool, domain_finding_waived: bool) -> None:  # noqa: FBT001
    one = waiver(hosts=hosts, domains=domains)
    assert is_waived(HOST_FINDING, one) is host_finding_waived
    assert is_waived(finding(), one) is domain_finding_waived


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.FAIL])
def test_only_a_failure_can_be_waived(verdict: Verdict) -> None:
    one = finding(verdict=verdict)
    assert applied((one,), waiver(hosts=("*",))) == ((one,), WaiverUse(unmatched=(waiver(hosts=("*",)),)))


def test_finding_about_the_waivers_cannot_be_waived() -> None:
    assert not is_waived(finding(SubjectKind.POLICY, "CHG-1", "CHG-1"), waiver(hosts=("*",), domains=("*",)))
    assert not is_waived(finding(SubjectKind.POLICY, "CHG-1", "CHG-1"), waiver(hosts=("*",)))


def test_waiver_of_another_rule_covers_nothing() -> None:
    assert not is_waived(finding(rule="RULE-B"), waiver(hosts=("*",)))


@pytest.mark.parametrize("name", ["we*", "*eb", "w?b", "[w]eb", ".*", "WEB", "web ", "", "webb", "we"])
def test_domain_name_matches_exactly_as_written(name: str) -> None:
    assert not is_waived(finding(name="web"), waiver(domains=(name or "-",)))
    assert not is_waived(finding(name=name), waiver(domains=("web",)))


def test_tenant_who_takes_a_waived_uuid_as_a_name_is_not_waived() -> None:
    assert not is_waived(finding(subject_id=OTHER_VM, name=VM), waiver(domains=(VM,)))
    assert not is_waived(finding(subject_id=OTHER_VM, name=VM.upper()), waiver(domains=(VM,)))


def test_tenant_who_takes_a_star_as_a_name_is_not_waived() -> None:
    assert not is_waived(finding(name="*"), waiver(domains=("web",)))


def test_host_that_calls_itself_by_the_id_of_another_is_not_waived() -> None:
    (judged,), _ = apply_waivers((HOST_FINDING,), (waiver(hosts=(OTHER_HOST,)),), host_id=HOST, hostname=OTHER_HOST, now=NOW)
    assert judged.verdict is Verdict.FAIL


def test_host_without_a_known_name_is_matched_by_its_id_only() -> None:
    for entry, verdict in ((HOST, Verdict.WAIVED), ("hv1", Verdict.FAIL), ("None", Verdict.FAIL)):
        (judged,), _ = apply_waivers((HOST_FINDING,), (waiver(hosts=(entry,)),), host_id=HOST, hostname=None, now=NOW)
        assert judged.verdict is verdict


@pytest.mark.parametrize(
    ("offset", "group"),
    [
        (timedelta(microseconds=-1), "not_yet"),
        (timedelta(0), "active"),
        (timedelta(days=30, microseconds=-1), "active"),
        (timedelta(days=30), "expired"),
        (timedelta(days=400), "expired"),
    ],
)
def test_waiver_is_in_force_from_created_until_before_expires(offset: timedelta, group: str) -> None:
    one = waiver(hosts=(HOST,))
    ((judged,), use) = applied((finding(),), one, now=one.created + offset)
    assert getattr(use, group) == (one,)
    assert (judged.verdict is Verdict.WAIVED) is (group == "active")


@pytest.mark.parametrize(
    ("one", "group"),
    [
        (waiver(hosts=(HOST,), domains=(OTHER_VM,)), "unmatched"),
        (waiver(hosts=("*",), domains=(OTHER_VM,)), "unmatched"),
        (waiver(domains=("fine",)), "unmatched"),
        (waiver(hosts=(OTHER_HOST,)), "elsewhere"),
        (waiver(hosts=(OTHER_HOST,), domains=(VM,)), "elsewhere"),
        (waiver(domains=(OTHER_VM,)), "elsewhere"),
        (waiver(domains=(HOST,)), "elsewhere"),
    ],
)
def test_waiver_that_covers_nothing_here_is_unmatched_only_where_it_is_about_this_host(one: Waiver, group: str) -> None:
    fine = finding(subject_id="cccccccc-cccc-4ccc-8ccc-cccccccccccc", name="fine", verdict=Verdict.PASS)
    _, use = applied((HOST_FINDING, finding(), fine), one)
    assert getattr(use, group) == (one,)


def test_first_waiver_that_covers_a_finding_is_named_and_the_second_is_active_too() -> None:
    first, second = waiver(hosts=(HOST,)), waiver(domains=("web",), waiver_id="CHG-2")
    ((judged,), use) = applied((finding(),), first, second)
    assert judged.waiver == "CHG-1"
    assert use.active == (first, second)


@pytest.mark.parametrize("one", [waiver(flavors=("*",)), waiver(images=("*",))])
def test_a_waiver_for_a_cloud_s_flavors_or_images_covers_and_protects_nothing_on_a_host(one: Waiver) -> None:
    _, use = applied((HOST_FINDING, finding()), one)
    assert use == WaiverUse(elsewhere=(one,))
    for kind in (SubjectKind.DOMAIN, SubjectKind.INSTANCE):
        assert not protects(one, Subject(kind=kind, id=VM, name="*"), host_id=HOST, hostname="hv1")


@pytest.mark.parametrize(
    ("kind", "one", "protected"),
    [
        (SubjectKind.FLAVOR, waiver(flavors=("m1.small",)), True),
        (SubjectKind.FLAVOR, waiver(flavors=("7",)), True),
        (SubjectKind.FLAVOR, waiver(flavors=("m1",)), False),
        (SubjectKind.FLAVOR, waiver(images=("*",)), False),
        (SubjectKind.FLAVOR, waiver(hosts=("*",), domains=("*",)), False),
        (SubjectKind.IMAGE, waiver(images=("m1.small",)), True),
        (SubjectKind.IMAGE, waiver(flavors=("*",)), False),
        (SubjectKind.INSTANCE, waiver(hosts=("hv1",)), True),
        (SubjectKind.INSTANCE, waiver(domains=("m1.small",)), True),
        (SubjectKind.INSTANCE, waiver(hosts=("hv2",), domains=("m1.small",)), False),
        (SubjectKind.DOMAIN, waiver(hosts=("hv1",)), True),
        (SubjectKind.CLOUD, waiver(hosts=("*",)), False),
    ],
)
def test_what_a_scope_protects(kind: SubjectKind, one: Waiver, protected: bool) -> None:  # noqa: FBT001
    assert protects(one, Subject(kind=kind, id="7", name="m1.small"), host_id=HOST, hostname="hv1") is protected


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"flavors": ("a",), "hosts": ("hv1",)},
        {"flavors": ("a",), "images": ("b",)},
        {"images": ("b",), "domains": ("web",)},
        {"flavors": ("a",), "images": ("b",), "hosts": ("hv1",), "domains": ("web",)},
    ],
)
def test_a_scope_that_no_failure_can_fit_is_refused(scope: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValidationError):
        WaiverScope.model_validate(scope)


def test_a_flavor_named_like_the_id_of_another_is_not_waived() -> None:
    """Ids of flavors may be uuids; an entry that is one never matches a name."""
    taken = Subject(kind=SubjectKind.FLAVOR, id="7", name=VM)
    assert not protects(waiver(flavors=(VM,)), taken, host_id=HOST, hostname="hv1")


entries = st.lists(st.sampled_from([HOST, OTHER_HOST, VM, OTHER_VM, "hv1", "web", "*"]), max_size=2).map(tuple)
waivers = st.builds(
    lambda hosts, domains, start: waiver(hosts=hosts or (() if domains else ("*",)), domains=domains, created=NOW + timedelta(days=start)),
    entries,
    entries,
    st.integers(-40, 5),
)
findings = st.builds(
    finding,
    st.sampled_from(SubjectKind),
    st.sampled_from([HOST, VM, OTHER_VM]),
    st.sampled_from(["hv1", "web", "*", VM]),
    st.sampled_from(Verdict),
    st.sampled_from(["RULE-A", "RULE-B"]),
)


@given(given_findings=st.lists(findings, max_size=5).map(tuple), given_waivers=st.lists(waivers, max_size=5).map(tuple))
def test_nothing_is_lost_nothing_but_failures_changes_and_each_waiver_has_one_fate(
    given_findings: tuple[Finding, ...], given_waivers: tuple[Waiver, ...]
) -> None:
    judged, use = applied(given_findings, *given_waivers)
    assert len(judged) == len(given_findings)
    changed = [(before, after) for before, after in zip(given_findings, judged, strict=True) if before != after]
    assert all(before.verdict is Verdict.FAIL and after.verdict is Verdict.WAIVED for before, after in changed)
    assert all(after.waiver in {one.id for one in use.active} for _, after in changed)
    assert bool(use.active) is any(
        before.verdict is Verdict.FAIL and after.verdict is Verdict.WAIVED for before, after in zip(given_findings, judged, strict=True)
    )
    fates = [one for group in (use.active, use.expired, use.not_yet, use.unmatched, use.elsewhere) for one in group]
    assert sorted(map(id, fates)) == sorted(map(id, given_waivers))
