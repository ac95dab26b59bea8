"""Whether a step for a cloud is still true, and in force, by a later look."""

import pytest
from cloud_builders import CLOUD_ID, IMAGE, LAUNCHED_AT, NOW, SILENT, cloud, finding, report, rulebook, server, waiver

from exitguard.model.cloud import CloudFacts, RemediedInstance
from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.plan import NovaFlavorChange, Step
from exitguard.model.pmu import Tri
from exitguard.model.record import unseen
from exitguard.policy.remedies import NovaRemedies
from exitguard.policy.schema import WaiverScope
from exitguard.remedy.cloud_again import still_true
from exitguard.remedy.cloud_steps import plan_cloud
from exitguard.remedy.in_cloud import basis_of, in_force, why_blind

BEFORE = cloud(server("a"))
FLAVOR_FINDING = finding("NOVA-FLAVOR-SILENT", SubjectKind.FLAVOR, SILENT.id, name=SILENT.name)
INSTANCE_FINDING = finding("NOVA-INSTANCE-PMU", SubjectKind.INSTANCE, "a", name="web-a")


def step(rule: str) -> Step:
    found = {
        "flavor": FLAVOR_FINDING,
        "instance": INSTANCE_FINDING,
        "image": finding("NOVA-IMAGE-SILENT", SubjectKind.IMAGE, IMAGE.id, name=IMAGE.name),
    }
    (made,) = plan_cloud(BEFORE, report(BEFORE, found[rule]), rulebook(), now=NOW).steps
    return made


def why_not(made: Step, now: CloudFacts, *, undo: bool = False) -> str | None:
    return still_true((made,), now, rulebook(), undo=undo, now=NOW).not_due.get(made.id)


@pytest.mark.parametrize("rule", ["flavor", "image", "instance"])
def test_step_is_true_while_nothing_has_changed(rule: str) -> None:
    made = step(rule)
    assert still_true((made,), cloud(server("a")), rulebook(), undo=False, now=NOW).due == (made.id,)


@pytest.mark.parametrize(
    ("rule", "later", "reason"),
    [
        ("flavor", cloud(flavors=()), "gone"),
        ("flavor", cloud(flavors=(SILENT.model_copy(update={"hw_pmu": "false"}),)), "done already"),
        ("flavor", cloud(flavors=(SILENT.model_copy(update={"hw_pmu": "true"}),)), "changed since"),
        ("flavor", cloud(images=(IMAGE.model_copy(update={"hw_pmu": "true"}),)), "changed since"),
        ("image", cloud(flavors=(SILENT.model_copy(update={"hw_pmu": "true"}),)), "changed since"),
        ("instance", cloud(), "gone"),
        ("instance", cloud(server("a", status="ACTIVE")), "only while its owner has it stopped"),
        ("instance", cloud(server("a", task_state="powering-on")), "only while its owner has it stopped"),
        ("instance", cloud(server("a", locked=True)), "lock"),
        ("instance", cloud(server("a", flavor_hw_pmu="true")), "changed since"),
        ("instance", cloud(server("a", image="another")), "changed since"),
        ("instance", cloud(server("a", launched_at="2026-11-23T08:31:38.000000")), "changed since"),
        ("instance", cloud(server("a", image_hw_pmu="false")), "done already"),
    ],
)
def test_step_is_no_longer_true(rule: str, later: CloudFacts, reason: str) -> None:
    assert reason in (why_not(step(rule), later) or "still true")


def test_waiver_that_came_since_protects() -> None:
    book = rulebook(waivers=(waiver("NOVA-INSTANCE-PMU", WaiverScope(domains=("web-a",))),))
    made = step("instance")
    assert still_true((made,), BEFORE, book, undo=False, now=NOW).due == ()


def test_instance_is_in_force_by_our_own_record_while_its_image_is_the_same() -> None:
    record = RemediedInstance(cloud=CLOUD_ID, uuid="a", hw_pmu="false", set_at=NOW, image=IMAGE.id, launched_at=LAUNCHED_AT)
    assert in_force(step("instance"), cloud(server("a"), remedied=(record,))) is Tri.YES
    assert in_force(step("instance"), cloud(server("a", image="another"), remedied=(record,))) is Tri.UNKNOWN
    rebuilt = server("a", launched_at="2026-11-23T08:31:38.000000")  # onto the same image: seen on Nova 26.2.2 to drop the property
    assert in_force(step("instance"), cloud(rebuilt, remedied=(record,))) is Tri.UNKNOWN


@pytest.mark.parametrize(("stored", "expected"), [("false", Tri.YES), ("", Tri.NO), ("true", Tri.NO), (None, Tri.UNKNOWN)])
def test_what_the_api_shows_of_an_instance_decides(stored: str | None, expected: Tri) -> None:
    assert in_force(step("instance"), cloud(server("a", image_hw_pmu=stored))) is expected


def test_way_back_is_true_only_while_the_run_s_own_word_stands() -> None:
    made = step("flavor")
    back = made.model_copy(update={"change": made.change.model_copy(update={"before": "false", "after": ""})})
    assert why_not(back, cloud(flavors=(SILENT.model_copy(update={"hw_pmu": "false"}),)), undo=True) is None
    assert "changed since" in (why_not(back, cloud(), undo=True) or "")
    assert in_force(back, cloud()) is Tri.YES


def test_instance_cannot_be_undone() -> None:
    assert why_not(step("instance"), BEFORE, undo=True) == "it cannot be undone exactly"


def test_look_without_servers_is_blind_for_instances_only() -> None:
    look = BEFORE.model_copy(update={"servers": unseen("servers", "403")})
    assert why_blind((step("flavor"),), look) is None
    assert "servers cannot be seen: 403" in (why_blind((step("instance"),), look) or "")


@pytest.mark.parametrize(
    "edited",
    [
        {"diff": "(nothing)"},
        {"safe": ()},
        {"guest_loses": ()},
        {"reversible": False},
        {"subject": Subject(kind=SubjectKind.FLAVOR, id=SILENT.id, name="x")},
    ],
)
def test_step_whose_words_were_edited_is_not_carried_out(edited: dict[str, object]) -> None:
    assert "changed since" in (why_not(step("flavor").model_copy(update=edited), BEFORE) or "")


def test_step_that_would_overrule_a_wish_is_not_carried_out() -> None:
    asking = cloud(flavors=(SILENT.model_copy(update={"hw_pmu": "true"}),))
    change = NovaFlavorChange(flavor_id=SILENT.id, before="true", after="false")
    forged = step("flavor").model_copy(update={"change": change, "basis": basis_of(change, asking)})
    assert "expected a flavor that says nothing" in (why_not(forged, asking) or "")


def test_step_that_the_policy_does_not_allow_is_not_carried_out() -> None:
    for book in (rulebook(allowed=()), rulebook(nova=NovaRemedies(flavors=("another",)))):
        made = step("flavor")
        assert still_true((made,), BEFORE, book, undo=False, now=NOW).due == ()
