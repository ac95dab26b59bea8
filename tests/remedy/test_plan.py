"""What is planned, and what is left alone and why."""

from datetime import UTC, datetime

import audit_builders as b
import pytest

from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainFacts, OwnerKind
from exitguard.model.host import InstalledKernel, Target, TargetKind, UnmanagedGuest
from exitguard.model.plan import DomainPmuChange, LeftAloneBecause, Mode, Plan, Remedy, Step
from exitguard.model.pmu import PmuElement
from exitguard.model.record import seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.policy.problem import Problem
from exitguard.policy.remedies import KernelPin, Package, QemuPin, Remedies, Rollout, Window
from exitguard.policy.schema import Rulebook, Waiver, WaiverScope
from exitguard.remedy.plan import HostPlan, Origins, PlanError, assemble, plan_host

SHIPPED = load_rulebook()
ORIGINS = Origins(playbooks="sha256:" + "1" * 64)
ALL = tuple(Remedy)
KERNEL_PIN = KernelPin(
    distribution="debian",
    distribution_version="12",
    release="6.1.0-57-amd64",
    packages=(Package(name="linux-image-6.1.0-57-amd64", version="6.1.1-1"),),
)
QEMU_PIN = QemuPin(
    distribution="debian",
    distribution_version="12",
    packages=(Package(name="qemu-system-x86", version="1:11.1.3-1"),),
    migration_checked=True,
)
WINDOW = Window(start="0 2 * * sat", duration_minutes=120)


def rules(**remedies: object) -> Rulebook:
    return SHIPPED.model_copy(update={"policy": SHIPPED.policy.model_copy(update={"remedies": Remedies.model_validate(remedies)})})


def sent_to(rulebook: Rulebook, rule: str, remedy: Remedy) -> Rulebook:
    """`rulebook` with another remedy for one rule."""
    changed = tuple(each.model_copy(update={"remedy": remedy}) if each.id == rule else each for each in rulebook.policy.rules)
    return rulebook.model_copy(update={"policy": rulebook.policy.model_copy(update={"rules": changed})})


def waived(rulebook: Rulebook, *rule_ids: str) -> Rulebook:
    waiver = Waiver(
        id="CHG-1",
        rules=rule_ids,
        scope=WaiverScope(domains=("guest-1",)),
        justification="being replaced this month",
        approver="ops",
        created=datetime(2026, 11, 1, tzinfo=UTC),
        expires=datetime(2027, 1, 1, tzinfo=UTC),
    )
    return rulebook.model_copy(update={"waivers": (waiver,)})


def planned(facts: FactsDocument, rulebook: Rulebook = SHIPPED) -> HostPlan:
    return plan_host(facts, rulebook)


def because(plan: HostPlan, remedy: Remedy | None = Remedy.DOMAIN_PMU_OFF) -> list[LeftAloneBecause]:
    return [left.because for left in plan.left_alone if left.remedy is remedy]


def whole(*plans: HostPlan, rulebook: Rulebook = SHIPPED) -> Plan:
    return assemble(plans, rulebook, ORIGINS, made_at=b.NOW)


def named(name: str, number: int, *domains: object) -> FactsDocument:
    """The host of `facts` under another name and id."""
    document = b.facts(*domains or (b.domain(defined=b.definition()),))
    identity = document.host.identity.model_copy(update={"id": f"00000000-0000-4000-8000-{number:012}", "hostname": seen("hostname", name)})
    return document.model_copy(update={"host": document.host.model_copy(update={"identity": identity})})


def test_a_domain_of_libvirts_that_defaults_to_pmu_on_is_to_be_switched_off() -> None:
    plan = planned(b.facts(b.domain(defined=b.definition(), run=b.definition())))
    [step] = plan.steps
    assert step.change == DomainPmuChange(uuid="00000000-0000-0000-0000-000000000001", before=PmuElement.ABSENT, after=PmuElement.OFF)
    assert step.reversible
    assert "shuts it down and starts it again" in step.takes_effect
    assert any("perf" in loss for loss in step.guest_loses)
    assert "+    <pmu state='off'/>" in step.diff


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (b.domain(defined=b.definition(), nova=b.nova()), LeftAloneBecause.NOVA_OWNED),
        (b.domain(defined=b.definition(), owner=OwnerKind.OTHER), LeftAloneBecause.OTHER_OWNER),
        (b.domain(defined=b.definition(), owner=OwnerKind.UNKNOWN), LeftAloneBecause.UNKNOWN_OWNER),
        (b.domain(defined=b.definition(), locked=True), LeftAloneBecause.LOCKED),
        (b.domain(defined=b.definition(pmu=PmuElement.ON)), LeftAloneBecause.OPTED_OUT),
        (b.domain(defined=b.definition(), nova=b.nova(flavor="true")), LeftAloneBecause.OPTED_OUT),
        (b.domain(defined="libvirt did not answer"), LeftAloneBecause.UNKNOWN),
        (b.domain(defined=b.definition(overrides=("-cpu host",))), LeftAloneBecause.UNKNOWN),
        (b.domain(defined=b.definition(pmu=PmuElement.OFF), run=b.definition()), LeftAloneBecause.PENDING),
    ],
)
def test_what_is_not_clearly_in_scope_is_left_alone_with_its_reason(domain: object, expected: LeftAloneBecause) -> None:
    plan = planned(b.facts(domain))
    assert plan.steps == ()
    assert because(plan) == [expected]


@pytest.mark.parametrize(
    "domain",
    [
        b.domain(defined=b.definition(kind="qemu")),  # TCG
        b.domain(defined=b.definition(pmu=PmuElement.OFF)),
        b.domain(defined=b.definition("host-model")),
    ],
)
def test_what_needs_nothing_is_not_told_as_left_alone(domain: object) -> None:
    plan = planned(b.facts(domain))
    assert plan.steps == ()
    assert because(plan) == []


def test_a_transient_domain_has_no_definition_to_change() -> None:
    plan = planned(b.facts(b.domain(defined=None, run=b.definition())))
    assert plan.steps == ()


@pytest.mark.parametrize("rule", ["DOM-PMU-PERSISTENT", "DOM-PMU-LIVE", "DOM-PMU-EFFECTIVE"])
def test_a_waiver_of_any_rule_about_a_domain_keeps_it_from_being_touched(rule: str) -> None:
    both = b.facts(*(b.domain(number=number, defined=b.definition(), run=b.definition()) for number in (1, 2)))
    plan = planned(both, waived(SHIPPED, rule))
    assert [step.subject.name for step in plan.steps] == ["guest-2"]
    assert because(plan) == [LeftAloneBecause.WAIVED]


def test_a_waiver_for_a_running_guest_protects_it_while_it_is_shut_off_too() -> None:
    assert because(planned(b.facts(b.domain(defined=b.definition())), waived(SHIPPED, "DOM-PMU-LIVE"))) == [LeftAloneBecause.WAIVED]


def test_a_hosts_wrong_clock_does_not_end_a_waiver() -> None:
    late = b.facts(b.domain(defined=b.definition())).model_copy(update={"observed_at": datetime(2030, 1, 1, tzinfo=UTC)})
    plan = plan_host(late, waived(SHIPPED, "DOM-PMU-PERSISTENT"), now=b.NOW)
    assert plan.steps == ()


@pytest.mark.parametrize(
    "guest",
    [
        b.domain(defined=b.definition(pmu=PmuElement.OFF), locked=True),
        b.domain(defined=b.definition(pmu=PmuElement.OFF), owner=OwnerKind.UNKNOWN),
    ],
)
def test_kvm_is_not_switched_off_under_guests_that_may_not_be_touched(guest: DomainFacts) -> None:
    assert because(_kvm(b.facts(guest)), Remedy.KVM_ENABLE_PMU_OFF) == [LeftAloneBecause.GUEST_WOULD_LOSE]


def test_a_kernel_that_neither_runs_nor_boots_next_is_not_chosen_again_by_itself() -> None:
    installed = (
        InstalledKernel(release=b.RELEASE, guard_entries=()),
        InstalledKernel(release="6.1.0-57-amd64", guard_entries=(b.GUARD_ENTRY,)),
    )
    plan = planned(b.facts(kernel=b.affected_kernel(installed=installed)), rules(allowed=ALL, kernels=(KERNEL_PIN,)))
    assert because(plan, Remedy.KERNEL_GUARD) == [LeftAloneBecause.NEEDS_REQUEST]


def test_a_canary_with_nothing_to_do_lets_another_host_go_first() -> None:
    rulebook = rules(rollout=Rollout(canary=("c02",)))
    done = plan_host(named("c02", 2, b.domain(defined=b.definition(pmu=PmuElement.OFF))), rulebook, inventory_name="c02")
    due = plan_host(named("c01", 1), rulebook, inventory_name="c01")
    assert assemble([done, due], rulebook, ORIGINS, made_at=b.NOW).pace.waves[0].hosts == (due.host.id,)


def test_nothing_is_planned_while_a_waiver_is_malformed() -> None:
    broken = SHIPPED.model_copy(update={"waiver_problems": (Problem(file="w.yaml", line=3, path="waivers[0]", message="expected a date"),)})
    with pytest.raises(PlanError, match=r"w\.yaml.*expected a date"):
        planned(b.facts(b.domain(defined=b.definition())), broken)


def test_what_the_policy_does_not_allow_is_named_as_such() -> None:
    plan = planned(b.facts(b.domain(defined=b.definition())), rules(allowed=()))
    assert plan.steps == ()
    assert because(plan) == [LeftAloneBecause.NOT_ALLOWED]


def test_a_host_in_maintenance_has_no_step() -> None:
    document = b.facts(b.domain(defined=b.definition()))
    plan = planned(document.model_copy(update={"host": document.host.model_copy(update={"maintenance": "disk swap"})}))
    assert plan.steps == ()
    assert [left.reason for left in plan.left_alone if left.because is LeftAloneBecause.MAINTENANCE] == [
        "the host is in maintenance: disk swap"
    ]


@pytest.mark.parametrize("kind", [TargetKind.REMOTE, TargetKind.SYSROOT])
def test_what_was_not_seen_on_the_host_itself_is_not_changed_there(kind: TargetKind) -> None:
    document = b.facts(b.domain(defined=b.definition()))
    elsewhere = document.model_copy(update={"host": document.host.model_copy(update={"target": Target(kind=kind)})})
    plan = planned(elsewhere, rules(allowed=ALL, kernels=(KERNEL_PIN,)))
    assert plan.steps == ()
    assert set(because(plan)) == {LeftAloneBecause.NOT_REACHABLE}


def test_a_guarded_kernel_is_installed_only_where_one_is_pinned() -> None:
    affected = b.facts()
    assert because(planned(affected, rules(allowed=ALL)), Remedy.KERNEL_GUARD) == [LeftAloneBecause.NOT_PINNED]
    [step] = planned(affected, rules(allowed=ALL, kernels=(KERNEL_PIN,))).steps
    assert step.remedy is Remedy.KERNEL_GUARD
    assert not step.reversible
    assert "yours to choose" in step.takes_effect


def test_a_pinned_kernel_that_boots_next_waits_for_a_reboot_of_the_operators_choosing() -> None:
    installed = (
        InstalledKernel(release=b.RELEASE, guard_entries=()),
        InstalledKernel(release="6.1.0-57-amd64", guard_entries=(b.GUARD_ENTRY,)),
    )
    document = b.facts(kernel=b.affected_kernel(installed=installed, boots_next="6.1.0-57-amd64"))
    plan = planned(document, rules(allowed=ALL, kernels=(KERNEL_PIN,)))
    assert plan.steps == ()
    assert because(plan, Remedy.KERNEL_GUARD) == [LeftAloneBecause.PENDING]


def test_the_pinned_kernel_is_promoted_once_it_runs_and_another_would_boot_next() -> None:
    kernel = b.affected_kernel(release="6.1.0-57-amd64", changelog=(b.GUARD_ENTRY,), boots_next=b.RELEASE)
    [step] = planned(b.facts(kernel=kernel), rules(allowed=ALL, kernels=(KERNEL_PIN,))).steps
    assert step.change.stage == "promote"  # type: ignore[union-attr]
    assert (
        planned(
            b.facts(kernel=kernel.model_copy(update={"boots_next": seen("grub", "6.1.0-57-amd64")})), rules(kernels=(KERNEL_PIN,))
        ).steps
        == ()
    )


@pytest.mark.parametrize(
    ("remedies", "expected"),
    [
        ({"qemus": ()}, LeftAloneBecause.NOT_PINNED),
        ({"qemus": (QEMU_PIN,)}, LeftAloneBecause.NEEDS_REQUEST),
        (
            {"qemus": (QEMU_PIN.model_copy(update={"migration_checked": False}),), "mode": Mode.WINDOWED, "windows": (WINDOW,)},
            LeftAloneBecause.NEEDS_REQUEST,
        ),
    ],
)
def test_qemu_is_upgraded_only_when_pinned_in_a_window_and_after_migration_was_checked(
    remedies: dict[str, object], expected: LeftAloneBecause
) -> None:
    assert because(planned(b.facts(), rules(allowed=ALL, **remedies)), Remedy.QEMU_PMU_CAP) == [expected]


def test_an_upgrade_of_qemu_names_every_machine_type_in_use() -> None:
    domains = (
        b.domain(number=1, defined=b.definition(pmu=PmuElement.OFF)),
        b.domain(number=2, defined=b.definition(pmu=PmuElement.OFF, machine="pc-i440fx-2.1")),
    )
    plan = planned(b.facts(*domains), rules(allowed=ALL, qemus=(QEMU_PIN,), mode=Mode.WINDOWED, windows=(WINDOW,)))
    [step] = plan.steps
    assert step.change.machine_types == ("pc-i440fx-2.1", "pc-q35-7.2")  # type: ignore[union-attr]


def _kvm(facts: FactsDocument, *, stay_away: bool = True) -> HostPlan:
    rulebook = rules(allowed=ALL, opted_out_guests_stay_away=stay_away)
    return planned(facts, sent_to(rulebook, "HOST-QEMU-PMU-CAP", Remedy.KVM_ENABLE_PMU_OFF))


def test_kvm_is_switched_off_host_wide_only_where_no_guest_loses_what_it_asked_for() -> None:
    off = b.domain(defined=b.definition(pmu=PmuElement.OFF))
    [step] = _kvm(b.facts(off)).steps
    assert step.remedy is Remedy.KVM_ENABLE_PMU_OFF
    refused = {
        "no word of the operator": _kvm(b.facts(off), stay_away=False),
        "a guest asked": _kvm(b.facts(off, b.domain(number=2, defined=b.definition(pmu=PmuElement.ON)))),
    }
    unmanaged = b.facts(off)
    guest = UnmanagedGuest(command="firecracker", executable=None)
    refused["outside libvirt"] = _kvm(
        unmanaged.model_copy(update={"host": unmanaged.host.model_copy(update={"unmanaged": seen("/proc", (guest,))})})
    )
    for plan in refused.values():
        assert plan.steps == ()
        assert because(plan, Remedy.KVM_ENABLE_PMU_OFF) == [LeftAloneBecause.GUEST_WOULD_LOSE]
    blind = b.facts(off).model_copy(update={"host": unmanaged.host.model_copy(update={"unmanaged": unseen("/proc", "permission denied")})})
    assert because(_kvm(blind), Remedy.KVM_ENABLE_PMU_OFF) == [LeftAloneBecause.UNKNOWN]


def test_a_step_keeps_its_id_while_what_it_rests_on_stays_and_loses_it_when_that_changes() -> None:
    stopped = planned(b.facts(b.domain(defined=b.definition())))
    running = planned(b.facts(b.domain(defined=b.definition(), run=b.definition())))
    edited = planned(b.facts(b.domain(defined=b.definition(machine="pc-q35-8.0"))))
    assert stopped.steps[0].id == running.steps[0].id
    assert stopped.steps[0].id != edited.steps[0].id


def test_a_plans_hash_covers_its_inputs_and_not_the_time() -> None:
    host = planned(b.facts(b.domain(defined=b.definition())))
    first = whole(host)
    assert assemble([host], SHIPPED, ORIGINS, made_at=datetime(2030, 1, 1, tzinfo=UTC)).hash == first.hash
    others = {
        whole(planned(b.facts(b.domain(defined=b.definition(), run=b.definition())))).hash,
        whole(host, rulebook=rules(failure_budget=1) if False else rules(rollout={"failure_budget": 1})).hash,
        assemble([host], waived(SHIPPED, "HOST-IDENTITY"), ORIGINS, made_at=b.NOW).hash,
        assemble([host], SHIPPED, Origins(playbooks="sha256:" + "2" * 64), made_at=b.NOW).hash,
        assemble([host], SHIPPED, Origins(playbooks=ORIGINS.playbooks, inventory="sha256:" + "3" * 64), made_at=b.NOW).hash,
    }
    assert len(others) == 5
    assert first.hash not in others


def test_waves_are_a_canary_and_then_percentages_of_the_hosts_with_steps() -> None:
    plans = [plan_host(named(f"c{number:02}", number), SHIPPED, inventory_name=f"c{number:02}") for number in range(40)]
    nothing_to_do = plan_host(named("c99", 99, b.domain(defined=b.definition(pmu=PmuElement.OFF))), SHIPPED, inventory_name="c99")
    plan = whole(*reversed(plans), nothing_to_do)
    assert [(wave.name, len(wave.hosts)) for wave in plan.pace.waves] == [("canary", 1), ("5 %", 1), ("25 %", 8), ("100 %", 30)]
    assert plan.pace.waves[0].hosts == (plans[0].host.id,)
    assert sorted(host for wave in plan.pace.waves for host in wave.hosts) == sorted(each.host.id for each in plans)
    chosen = rules(rollout=Rollout(canary=("c07", "c08")))
    again = assemble(
        [plan_host(named(f"c{n:02}", n), chosen, inventory_name=f"c{n:02}") for n in range(40)], chosen, ORIGINS, made_at=b.NOW
    )
    assert again.pace.waves[0].hosts == (plans[7].host.id, plans[8].host.id)


def test_a_canary_without_a_step_is_no_canary() -> None:
    rulebook = rules(rollout=Rollout(canary=("elsewhere",)))
    with pytest.raises(PlanError, match="none of the canary hosts elsewhere is among these hosts"):
        assemble([plan_host(named("c01", 1), rulebook, inventory_name="c01")], rulebook, ORIGINS, made_at=b.NOW)
    alone = assemble([plan_host(named("c01", 1), rulebook)], rulebook, ORIGINS, made_at=b.NOW)
    assert [wave.name for wave in alone.pace.waves] == ["canary"]


def test_the_same_host_twice_is_refused() -> None:
    with pytest.raises(PlanError, match=r"two hosts have the host id .* c01 and c02"):
        whole(plan_host(named("a", 1), SHIPPED, inventory_name="c01"), plan_host(named("b", 1), SHIPPED, inventory_name="c02"))
    with pytest.raises(PlanError, match="no facts"):
        whole()


def _savings(step: Step) -> list[tuple[str, str | None, int | None, int | None]]:
    return [(saving.provenance, saving.unit, saving.low, saving.high) for saving in step.savings]


def test_a_domain_saves_nothing_before_its_qemu_tells_kvm() -> None:
    [step] = planned(b.facts(b.domain(defined=b.definition()), binaries=(b.QEMU_7,))).steps
    assert _savings(step) == [("table", "instructions", 0, 0)]
    assert "QEMU" in step.savings[0].reason


def test_a_domain_saves_nothing_on_an_unguarded_kernel_that_walks_its_counters_anyway() -> None:
    [step] = planned(b.facts(b.domain(defined=b.definition()), binaries=(b.QEMU_11,))).steps
    assert _savings(step) == [("table", "instructions", 0, 0)]
    assert "before the guarded kernel runs" in step.savings[0].reason


def test_what_is_not_in_the_matrix_is_unquantified_and_never_zero() -> None:
    guarded = b.affected_kernel(changelog=(b.GUARD_ENTRY,))
    [step] = planned(b.facts(b.domain(defined=b.definition()), binaries=(b.QEMU_11,), kernel=guarded)).steps
    assert [saving.provenance for saving in step.savings] == ["unquantified"]
    assert step.savings[0].low is None
