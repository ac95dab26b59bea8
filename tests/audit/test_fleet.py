"""What only a hub can tell of hosts: silence, clocks, and groups whose QEMUs differ."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.audit.fleet import Member, clears_here, judge_fleet, report_of_unheard, with_findings
from exitguard.model.documents import AuditReport
from exitguard.model.finding import EXIT_NOT_COMPLIANT, EXIT_UNKNOWN, Finding, Verdict
from exitguard.model.host import KvmDevice, KvmFacts, QemuBinary, QemuVersion
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import Tri
from exitguard.model.record import seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.policy.parameters import FleetClockParameters, FleetQemuParameters, FleetSilentParameters
from exitguard.policy.schema import FLEET_CHECKS, Check, Rulebook, Waiver, WaiverScope

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RULEBOOK = load_rulebook(())


def member(name: str = "compute-1", **changes: object) -> Member:
    known: dict[str, object] = {
        "host_id": f"id of {name}",
        "name": name,
        "enrolled_at": NOW - timedelta(days=9),
        "may_write": True,
        "heard_at": NOW - timedelta(minutes=1),
        "clock_ahead_seconds": 0.2,
        "cpu_model_name": "EPYC 7302",
        "clears": Tri.YES,
    }
    return Member(**{**known, **changes})  # type: ignore[arg-type]


def told(*members: Member, rulebook: Rulebook = RULEBOOK, at: datetime = NOW) -> dict[str, dict[str, Finding]]:
    """By name of the host and id of the rule."""
    found = judge_fleet(members, rulebook, at)
    assert set(found) == {each.host_id for each in members}
    return {each.name: {finding.rule: finding for finding in found[each.host_id]} for each in members}


def with_parameters(check: Check, parameters: object) -> Rulebook:
    rules = tuple(rule.model_copy(update={"parameters": parameters}) if rule.check is check else rule for rule in RULEBOOK.policy.rules)
    return RULEBOOK.model_copy(update={"policy": RULEBOOK.policy.model_copy(update={"rules": rules})})


def test_every_host_has_one_finding_of_each_rule_of_a_fleet() -> None:
    rules = {rule.id for rule in RULEBOOK.policy.rules if rule.check in FLEET_CHECKS}
    for found in told(member("a"), member("b", clears=Tri.NO), member("c", heard_at=None), member("d", may_write=False)).values():
        assert set(found) == rules


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.PASS),
        ({"heard_at": NOW - timedelta(minutes=60)}, Verdict.PASS),
        ({"heard_at": NOW - timedelta(minutes=61)}, Verdict.FAIL),
        ({"heard_at": NOW + timedelta(minutes=5)}, Verdict.PASS),  # replicas' clocks differ
        ({"heard_at": None}, Verdict.FAIL),
        ({"heard_at": None, "enrolled_at": NOW - timedelta(minutes=5)}, Verdict.UNKNOWN),
        ({"heard_at": None, "may_write": False}, Verdict.NOT_APPLICABLE),
        ({"heard_at": NOW - timedelta(days=40), "may_write": False}, Verdict.NOT_APPLICABLE),
    ],
)
def test_a_silent_host_is_found(changes: dict[str, object], verdict: Verdict) -> None:
    assert told(member(**changes))["compute-1"]["FLEET-HOST-SILENT"].verdict is verdict


def test_how_long_silence_lasts_is_the_policys_to_say() -> None:
    patient = with_parameters(Check.FLEET_HOST_SILENT, FleetSilentParameters(after_minutes=180))
    assert told(member(heard_at=NOW - timedelta(hours=2)), rulebook=patient)["compute-1"]["FLEET-HOST-SILENT"].verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("ahead", "verdict", "words"),
    [
        (0.0, Verdict.PASS, "at most 60 s"),
        (-60.0, Verdict.PASS, "at most 60 s"),
        (60.1, Verdict.FAIL, "ahead of"),
        (-3600.0, Verdict.FAIL, "behind"),
        (None, Verdict.NOT_APPLICABLE, "of now alone"),
    ],
)
def test_a_clock_that_is_off_is_found(ahead: float | None, verdict: Verdict, words: str) -> None:
    found = told(member(clock_ahead_seconds=ahead))["compute-1"]["FLEET-CLOCK"]
    assert (found.verdict, words in found.reason) == (verdict, True)
    strict = with_parameters(Check.FLEET_CLOCK, FleetClockParameters(most_seconds=5))
    assert told(member(clock_ahead_seconds=6.0), rulebook=strict)["compute-1"]["FLEET-CLOCK"].verdict is Verdict.FAIL


def mixed(*members: Member, rulebook: Rulebook = RULEBOOK) -> dict[str, tuple[Verdict, str]]:
    return {
        name: (each["FLEET-QEMU-MIXED"].verdict, each["FLEET-QEMU-MIXED"].reason)
        for name, each in told(*members, rulebook=rulebook).items()
    }


def test_a_group_whose_hosts_differ_fails_on_each_of_them() -> None:
    found = mixed(member("a"), member("b"), member("c", clears=Tri.NO), member("d", clears=Tri.UNKNOWN))
    assert {verdict for verdict, _ in found.values()} == {Verdict.FAIL}
    assert "2 hosts clear" in found["a"][1]
    assert "1 does not; this one clears it" in found["a"][1]
    assert "this one does not: a guest" in found["c"][1]
    assert "of this one it is not known" in found["d"][1]
    assert found["a"] == found["b"], "hosts that stand alike are told alike, so that reports put them together"


def test_hosts_with_other_processors_are_no_group_together() -> None:
    found = mixed(member("a"), member("b", clears=Tri.NO, cpu_model_name="Xeon"), member("c", cpu_model_name=None))
    assert [found[name][0] for name in "abc"] == [Verdict.PASS, Verdict.PASS, Verdict.NOT_APPLICABLE]


def test_groups_by_name_go_before_processors() -> None:
    rulebook = with_parameters(Check.FLEET_QEMU_MIXED, FleetQemuParameters(groups=("rack1-.*", "rack2-.*")))
    names = {
        "rack1-a": {},
        "rack1-b": {"clears": Tri.NO, "cpu_model_name": "Xeon"},
        "rack2-a": {"clears": Tri.NO},
        "lab": {"clears": Tri.NO},
    }
    found = mixed(*(member(name, **changes) for name, changes in names.items()), rulebook=rulebook)
    assert [found[name][0] for name in names] == [Verdict.FAIL, Verdict.FAIL, Verdict.PASS, Verdict.NOT_APPLICABLE]
    assert "none of the policy's groups" in found["lab"][1]


def test_one_expression_may_make_many_groups() -> None:
    rulebook = with_parameters(Check.FLEET_QEMU_MIXED, FleetQemuParameters(groups=("(rack[0-9]+)-.*",)))
    changes = {"rack1-a": Tri.YES, "rack1-b": Tri.YES, "rack2-a": Tri.NO, "rack2-b": Tri.YES}
    found = mixed(*(member(name, clears=clears) for name, clears in changes.items()), rulebook=rulebook)
    assert [verdict for verdict, _ in found.values()] == [Verdict.PASS, Verdict.PASS, Verdict.FAIL, Verdict.FAIL]
    assert "of group rack2 1 host" in found["rack2-a"][1]


@pytest.mark.parametrize(
    ("clears", "verdict"),
    [
        ((Tri.YES, Tri.YES), Verdict.PASS),
        ((Tri.NO, Tri.NO), Verdict.PASS),
        ((Tri.YES, Tri.UNKNOWN), Verdict.UNKNOWN),
        ((Tri.UNKNOWN, Tri.UNKNOWN), Verdict.UNKNOWN),
        ((Tri.NO, None), Verdict.PASS),
        ((Tri.NO, Tri.YES), Verdict.FAIL),
    ],
)
def test_what_is_not_known_is_neither_alike_nor_mixed(clears: tuple[Tri | None, Tri | None], verdict: Verdict) -> None:
    assert mixed(member("a", clears=clears[0]), member("b", clears=clears[1]))["a"][0] is verdict


@given(st.lists(st.tuples(st.sampled_from([*Tri, None]), st.sampled_from(["x", "y", None])), max_size=12))
def test_a_mixed_group_is_told_whatever_the_order(hosts: list[tuple[Tri | None, str | None]]) -> None:
    members = [member(str(number), clears=clears, cpu_model_name=cpu) for number, (clears, cpu) in enumerate(hosts)]
    assert mixed(*members) == mixed(*reversed(members))
    for each, (clears, cpu) in zip(members, hosts, strict=True):
        others = {other for other, of in hosts if of == cpu}
        expected = clears is not None and cpu is not None and {Tri.YES, Tri.NO} <= others
        assert (mixed(*members)[each.name][0] is Verdict.FAIL) == expected


QEMUS = RULEBOOK.qemus
OLD = QemuBinary(
    path="/old", version=seen("x", QemuVersion(version="7.2.22", package="Debian 1:7.2+dfsg-7")), capability_string=seen("x", False)
)
NEW = QemuBinary(path="/new", version=seen("x", QemuVersion(version="11.0.0", package="")), capability_string=seen("x", True))


def kvm(*, enable_pmu: bool = True, capability: int | None = 1) -> KvmFacts:
    device = unseen("x", "hidden") if capability is None else seen("x", KvmDevice(api_version=12, pmu_capability=capability))
    hidden = unseen("x", "hidden")
    return KvmFacts(
        module=hidden, parameters=hidden, enable_pmu=seen("x", enable_pmu), enable_mediated_pmu=hidden, build_id=hidden, device=device
    )


def test_what_a_host_does_with_a_guest_without_a_pmu() -> None:
    assert clears_here(kvm(), seen("x", (OLD,)), QEMUS) is Tri.NO
    assert clears_here(kvm(), seen("x", (NEW,)), QEMUS) is Tri.YES
    assert clears_here(kvm(), seen("x", (OLD, NEW)), QEMUS) is Tri.UNKNOWN
    assert clears_here(kvm(), seen("x", (OLD.model_copy(update={"deleted": True}), NEW)), QEMUS) is Tri.YES
    assert clears_here(kvm(), seen("x", ()), QEMUS) is None
    assert clears_here(kvm(), unseen("x", "hidden"), QEMUS) is Tri.UNKNOWN
    assert clears_here(kvm(capability=0), seen("x", (NEW,)), QEMUS) is Tri.NO
    assert clears_here(kvm(capability=None), seen("x", (NEW,)), QEMUS) is Tri.YES
    assert clears_here(kvm(enable_pmu=False), seen("x", (OLD,)), QEMUS) is Tri.YES


def test_a_waiver_covers_a_failure_of_the_fleets_rules() -> None:
    waiver = Waiver(
        id="CHG-1",
        rules=("FLEET-HOST-SILENT",),
        scope=WaiverScope(hosts=("compute-1",)),
        justification="its board is in repair",
        approver="ops",
        created=NOW - timedelta(days=1),
        expires=NOW + timedelta(days=1),
    )
    rulebook = RULEBOOK.model_copy(update={"waivers": (waiver,)})
    silent = {"heard_at": NOW - timedelta(hours=3)}
    found = told(member("compute-1", **silent), member("compute-2", **silent), rulebook=rulebook)
    assert found["compute-1"]["FLEET-HOST-SILENT"].verdict is Verdict.WAIVED
    assert found["compute-2"]["FLEET-HOST-SILENT"].verdict is Verdict.FAIL


def test_a_host_without_a_report_is_unknown_and_a_report_is_counted_with_its_findings() -> None:
    unheard = member(heard_at=None, enrolled_at=NOW)
    findings = judge_fleet((unheard,), RULEBOOK, NOW)[unheard.host_id]
    report = report_of_unheard(unheard, findings, "pmu-off 1.2", NOW)
    assert AuditReport.model_validate_json(report.model_dump_json()) == report
    assert (report.host.kernel.state, report.summary.exit_code) == (KernelState.UNKNOWN, EXIT_UNKNOWN)
    late = judge_fleet((member(heard_at=None),), RULEBOOK, NOW)[unheard.host_id]
    more = with_findings(report, late)
    assert (more.summary.exit_code, more.summary.by_verdict["fail"]) == (EXIT_NOT_COMPLIANT, 1)
    assert more.summary.by_chain == report.summary.by_chain


@pytest.mark.parametrize("changes", [{}, {"may_write": False, "clock_ahead_seconds": None}])
def test_a_host_of_which_nothing_is_known_is_never_compliant(changes: dict[str, object]) -> None:
    heard = member(clears=None, cpu_model_name=None, **changes)
    findings = judge_fleet((heard,), RULEBOOK, NOW)[heard.host_id]
    assert {each.verdict for each in findings} <= {Verdict.PASS, Verdict.NOT_APPLICABLE}
    for told_of in (findings, ()):  # a policy may have none of these rules
        assert report_of_unheard(heard, told_of, "p 1", NOW).summary.exit_code == EXIT_UNKNOWN


def test_the_shipped_parameters_are_the_defaults() -> None:
    by_check = {rule.check: rule.parameters for rule in RULEBOOK.policy.rules}
    assert by_check[Check.FLEET_HOST_SILENT] == FleetSilentParameters()
    assert by_check[Check.FLEET_CLOCK] == FleetClockParameters()
    assert by_check[Check.FLEET_QEMU_MIXED] is None
