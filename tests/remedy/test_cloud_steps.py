"""What is planned for a cloud, and what is left alone there."""

import pytest
from cloud_builders import CLOUD_ID, IMAGE, LAUNCHED_AT, NOW, SILENT, cloud, finding, instance, report, rulebook, server, waiver

from exitguard.model.cloud import CloudFacts, Flavor, Server
from exitguard.model.finding import Finding, SubjectKind, Verdict
from exitguard.model.plan import LeftAloneBecause, NovaFlavorChange, NovaImageChange, NovaInstanceChange, Remedy
from exitguard.model.pmu import Tri
from exitguard.model.record import unseen
from exitguard.policy.problem import Problem
from exitguard.policy.remedies import NovaRemedies
from exitguard.policy.schema import Rulebook, WaiverScope
from exitguard.remedy.cloud_steps import plan_cloud
from exitguard.remedy.plan import HostPlan, Origins, PlanError, assemble

FLAVOR = finding("NOVA-FLAVOR-SILENT", SubjectKind.FLAVOR, SILENT.id, name=SILENT.name)
IMAGES = finding("NOVA-IMAGE-SILENT", SubjectKind.IMAGE, IMAGE.id, name=IMAGE.name)
ASKING_FLAVOR = Flavor(id="2", name="profiling", hw_pmu="true", is_public=True)
ASKING_IMAGE = IMAGE.model_copy(update={"id": "perf", "name": "perf", "hw_pmu": "true"})


def of(uuid: str, verdict: Verdict = Verdict.FAIL) -> Finding:
    return finding("NOVA-INSTANCE-PMU", SubjectKind.INSTANCE, uuid, verdict)


def planned(facts: CloudFacts, *findings: Finding, book: Rulebook | None = None) -> HostPlan:
    return plan_cloud(facts, report(facts, *findings), book or rulebook(), now=NOW)


def why(plan: HostPlan) -> LeftAloneBecause:
    assert plan.steps == ()
    (left,) = plan.left_alone
    return left.because


def test_silent_flavor_is_set_and_tells_how_many_instances_it_does_not_change() -> None:
    facts = cloud(server("a"), server("b"), server("c", flavor="other"))
    (step,) = planned(facts, FLAVOR).steps
    assert step.change == NovaFlavorChange(flavor_id=SILENT.id, before="", after="false")
    assert "2 existing instances of it keep their silent copy" in step.takes_effect
    assert step.reversible
    assert step.host_id == CLOUD_ID


def test_flavor_is_left_alone_while_an_image_asks_for_a_pmu() -> None:
    facts = cloud(images=(IMAGE, ASKING_IMAGE))
    plan = planned(facts, FLAVOR)
    assert why(plan) is LeftAloneBecause.WOULD_CONFLICT
    assert "perf" in plan.left_alone[0].reason


def test_flavor_is_set_over_asking_images_by_the_operator_s_word_only() -> None:
    facts = cloud(images=(IMAGE, ASKING_IMAGE))
    (step,) = planned(facts, FLAVOR, book=rulebook(nova=NovaRemedies(refused_boots_accepted=True))).steps
    assert any("the policy accepts" in reason for reason in step.safe)


def test_flavor_is_left_alone_where_images_cannot_be_seen() -> None:
    facts = cloud().model_copy(update={"images": unseen("images", "403")})
    assert why(planned(facts, FLAVOR)) is LeftAloneBecause.UNKNOWN


def test_flavor_that_the_policy_does_not_name_is_left_alone() -> None:
    book = rulebook(nova=NovaRemedies(flavors=("another",)))
    assert why(planned(cloud(), FLAVOR, book=book)) is LeftAloneBecause.NOT_ALLOWED


@pytest.mark.parametrize("name", [SILENT.id, SILENT.name])
def test_flavor_may_be_named_by_id_or_name(name: str) -> None:
    assert planned(cloud(), FLAVOR, book=rulebook(nova=NovaRemedies(flavors=(name,)))).steps


def test_waived_flavor_is_left_alone() -> None:
    book = rulebook(waivers=(waiver("NOVA-FLAVOR-SILENT", WaiverScope(flavors=(SILENT.name,))),))
    assert why(planned(cloud(), FLAVOR, book=book)) is LeftAloneBecause.WAIVED


def test_nothing_is_planned_that_the_policy_does_not_allow() -> None:
    book = rulebook(allowed=(Remedy.DOMAIN_PMU_OFF,))
    assert why(planned(cloud(), FLAVOR, book=book)) is LeftAloneBecause.NOT_ALLOWED


def test_silent_image_is_set_where_the_policy_names_it() -> None:
    (step,) = planned(cloud(), IMAGES).steps
    assert step.change == NovaImageChange(image_id=IMAGE.id)


def test_no_image_is_touched_by_default() -> None:
    assert why(planned(cloud(), IMAGES, book=rulebook(nova=NovaRemedies()))) is LeftAloneBecause.NOT_ALLOWED


def test_all_images_means_public_ones() -> None:
    facts = cloud(images=(IMAGE.model_copy(update={"visibility": "private"}),))
    assert why(planned(facts, IMAGES)) is LeftAloneBecause.NOT_ALLOWED


def test_image_is_left_alone_while_a_flavor_asks_for_a_pmu() -> None:
    facts = cloud(flavors=(SILENT, ASKING_FLAVOR))
    assert why(planned(facts, IMAGES)) is LeftAloneBecause.WOULD_CONFLICT


def test_stopped_silent_instance_is_set_and_cannot_be_undone() -> None:
    facts = cloud(server("a"))
    (step,) = planned(facts, of("a")).steps
    assert step.change == NovaInstanceChange(uuid="a", image=IMAGE.id, launched_at=LAUNCHED_AT)
    assert not step.reversible


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({"status": "ACTIVE"}, LeftAloneBecause.NOT_STOPPED),
        ({"status": "ERROR"}, LeftAloneBecause.NOT_STOPPED),
        ({"status": "SHELVED_OFFLOADED"}, LeftAloneBecause.NOT_STOPPED),
        ({"task_state": "powering-on"}, LeftAloneBecause.NOT_STOPPED),
        ({"locked": True}, LeftAloneBecause.LOCKED),
        ({"locked": None}, LeftAloneBecause.UNKNOWN),
        ({"flavor_hw_pmu": None}, LeftAloneBecause.WOULD_CONFLICT),
        ({"image": None}, LeftAloneBecause.NO_REMEDY),
    ],
)
def test_instance_that_is_not_clearly_in_scope_is_left_alone(changed: dict[str, object], because: LeftAloneBecause) -> None:
    assert why(planned(cloud(server("a", **changed)), of("a"))) is because


@pytest.mark.parametrize("changed", [{"flavor_hw_pmu": "true"}, {"image_hw_pmu": "yes"}])
def test_whoever_asked_for_the_pmu_keeps_it_even_if_a_rule_were_to_fail(changed: dict[str, object]) -> None:
    plan = planned(cloud(server("a", **changed)), of("a"))
    assert plan.steps == ()
    assert {left.because for left in plan.left_alone} == {LeftAloneBecause.OPTED_OUT}


def test_image_wish_that_only_the_audit_knows_protects_too() -> None:
    facts = cloud(server("a"))
    judged = report(facts, of("a"), instances=(instance(server("a"), image_hw_pmu="true"),))
    plan = plan_cloud(facts, judged, rulebook(), now=NOW)
    assert plan.steps == ()


def test_instance_of_unknown_verdict_is_left_alone_with_the_reason() -> None:
    plan = planned(cloud(server("a")), of("a", Verdict.UNKNOWN))
    assert why(plan) is LeftAloneBecause.UNKNOWN
    assert plan.left_alone[0].reason == "NOVA-INSTANCE-PMU says unknown"


@pytest.mark.parametrize("scope", [WaiverScope(domains=("a",)), WaiverScope(domains=("web-a",)), WaiverScope(hosts=("compute-1",))])
def test_waived_instance_is_left_alone(scope: WaiverScope) -> None:
    book = rulebook(waivers=(waiver("NOVA-INSTANCE-PMU", scope),))
    facts = cloud(server("a"))
    named = finding("NOVA-INSTANCE-PMU", SubjectKind.INSTANCE, "a", name="web-a")
    assert why(planned(facts, named, book=book)) is LeftAloneBecause.WAIVED


@pytest.mark.parametrize(
    ("rule", "scope"),
    [("DOM-PMU-EFFECTIVE", WaiverScope(domains=("web-a",))), ("NOVA-INSTANCE-PMU", WaiverScope(hosts=("compute-1.example",)))],
)
def test_waiver_of_the_guest_or_by_the_host_s_own_name_protects_too(rule: str, scope: WaiverScope) -> None:
    book = rulebook(waivers=(waiver(rule, scope),))
    named = finding("NOVA-INSTANCE-PMU", SubjectKind.INSTANCE, "a", name="web-a")
    assert why(planned(cloud(server("a")), named, book=book)) is LeftAloneBecause.WAIVED


def test_private_image_is_not_chosen_by_its_name() -> None:
    facts = cloud(images=(IMAGE.model_copy(update={"visibility": "private"}),))
    assert why(planned(facts, IMAGES, book=rulebook(nova=NovaRemedies(images=(IMAGE.name,))))) is LeftAloneBecause.NOT_ALLOWED
    assert planned(facts, IMAGES, book=rulebook(nova=NovaRemedies(images=(IMAGE.id,)))).steps


def test_running_instance_is_told_of_the_flavors_that_it_could_be_resized_to() -> None:
    off = Flavor(id="3", name="m1.small.nopmu", hw_pmu="false", is_public=True)
    plan = planned(cloud(server("a", status="ACTIVE"), flavors=(SILENT, off)), of("a"))
    assert "m1.small.nopmu" in plan.left_alone[0].reason


def test_plan_of_a_cloud_is_one_wave_and_names_the_cloud() -> None:
    facts = cloud(server("a"))
    book = rulebook()
    made = assemble([planned(facts, FLAVOR, of("a"), book=book)], book, Origins("sha256:0"), made_at=NOW)
    (host,) = made.inputs.hosts
    assert (host.cloud, host.id) == ("production", CLOUD_ID)
    assert [wave.hosts for wave in made.pace.waves] == [(CLOUD_ID,)]


def test_malformed_waiver_stops_planning() -> None:
    problem = Problem(file="waivers.yaml", line=3, path="waivers.0.expires", message="expected a time")
    book = rulebook().model_copy(update={"waiver_problems": (problem,)})
    with pytest.raises(PlanError, match=r"waivers\.yaml"):
        planned(cloud(), FLAVOR, book=book)


def test_facts_hash_covers_what_hosts_showed() -> None:
    one: Server = server("a")
    facts = cloud(one)
    first = plan_cloud(facts, report(facts), rulebook(), now=NOW).host.facts_hash
    other = plan_cloud(facts, report(facts, instances=(instance(one, survives=Tri.NO),)), rulebook(), now=NOW).host.facts_hash
    assert first != other
