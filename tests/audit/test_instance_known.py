"""What is known of an instance by its cloud's API, its host's facts and this agent's records: which word counts, and which is too old."""

from datetime import timedelta

import pytest
from nova_builders import (
    GENERATED_AT,
    IMAGE_ID,
    NOW,
    SILENT_IMAGE,
    ZED,
    canary,
    cloud,
    findings,
    judged,
    only_instance,
    remedied,
    running,
    server,
    side,
    stopped,
)

from exitguard.model.cloud import Server
from exitguard.model.instance import InstanceReport, PmuOrigin
from exitguard.model.pmu import PmuElement, PmuSetting, Tri
from exitguard.model.record import seen, unseen

OFF, ON, ABSENT = PmuElement.OFF, PmuElement.ON, PmuElement.ABSENT


def told(instance: InstanceReport) -> tuple[PmuOrigin, PmuElement | None, PmuSetting, Tri]:
    return instance.origin, instance.next_element, instance.next_setting, instance.survives


def test_flavor_off() -> None:
    report = judged(cloud(server(flavor_hw_pmu="false")), side(running(element=OFF)))
    assert told(only_instance(report)) == (PmuOrigin.FLAVOR, OFF, PmuSetting.OFF, Tri.YES)
    assert not findings(report, "NOVA-INSTANCE-PMU")


def test_flavor_on_is_opted_out() -> None:
    report = judged(cloud(server(flavor_hw_pmu="true")), side(running(element=ON)))
    assert told(only_instance(report)) == (PmuOrigin.FLAVOR, ON, PmuSetting.ON, Tri.YES)
    assert not findings(report, "NOVA-INSTANCE-PMU")


@pytest.mark.parametrize(("text", "element"), [("false", OFF), ("true", ON)])
def test_image_by_glance_where_it_has_not_changed_since(text: str, element: PmuElement) -> None:
    image = SILENT_IMAGE.model_copy(update={"hw_pmu": text})
    instance = only_instance(judged(cloud(server(), images=(image,)), side(running(element=element))))
    assert told(instance) == (PmuOrigin.IMAGE, element, PmuSetting(element.value), Tri.YES)
    assert instance.image_hw_pmu == text
    assert any("nova-manage may have changed" in each.value for each in instance.evidence)


def test_silent_flavor_and_image_without_an_element_is_qemu_s_default() -> None:
    report = judged(cloud(server()), side(running()))
    instance = only_instance(report)
    assert told(instance) == (PmuOrigin.QEMU_DEFAULT, ABSENT, PmuSetting.DEFAULT_ON, Tri.YES)
    assert (instance.flavor_hw_pmu, instance.image_hw_pmu) == ("", "")
    (failed,) = findings(report, "NOVA-INSTANCE-PMU")
    assert (failed.verdict.value, failed.remedy) == ("fail", "nova_instance_pmu_off")


def test_silence_costs_nothing_where_the_cpu_mode_has_no_pmu() -> None:
    report = judged(cloud(server()), side(running(mode="custom")))
    assert only_instance(report).next_setting is PmuSetting.DEFAULT_OFF
    assert not findings(report, "NOVA-INSTANCE-PMU")


def test_flavor_and_image_off() -> None:
    image = SILENT_IMAGE.model_copy(update={"hw_pmu": "False"})
    report = judged(cloud(server(flavor_hw_pmu="no"), images=(image,)), side(running(element=OFF)))
    assert told(only_instance(report)) == (PmuOrigin.FLAVOR_AND_IMAGE, OFF, PmuSetting.OFF, Tri.YES)


def test_a_definition_edited_behind_nova_s_back_is_lost() -> None:
    report = judged(cloud(server()), side(running(defined=OFF)))
    instance = only_instance(report)
    assert told(instance) == (PmuOrigin.BEHIND_NOVA, ABSENT, PmuSetting.DEFAULT_ON, Tri.NO)
    assert "<pmu state='off'/>" in instance.origin_reason
    assert [each.verdict.value for each in findings(report, "NOVA-INSTANCE-DRIFT")] == ["fail"]


def test_remedied_by_this_agent_and_not_started_since() -> None:
    report = judged(cloud(server(status="SHUTOFF"), server(2), remedied=(remedied(),)), side(stopped(), running(2)))
    instance = report.instances[0]
    assert told(instance) == (PmuOrigin.REMEDY, OFF, PmuSetting.OFF, Tri.NO)
    assert instance.image_hw_pmu == "false"
    assert "until its next start" in instance.origin_reason


def test_remedied_by_this_agent_and_started_since() -> None:
    before = remedied(set_at=NOW - timedelta(days=3))
    instance = only_instance(judged(cloud(server(), remedied=(before,)), side(running(element=OFF))))
    assert told(instance) == (PmuOrigin.REMEDY, OFF, PmuSetting.OFF, Tri.YES)


def test_facts_of_before_the_remedy_are_too_old_to_deny_it() -> None:
    assert (NOW - timedelta(hours=1)).isoformat() > GENERATED_AT
    instance = only_instance(judged(cloud(server(status="SHUTOFF"), remedied=(remedied(),)), side(running())))
    assert (instance.origin, instance.next_element) == (PmuOrigin.REMEDY, OFF)


def test_a_rebuild_onto_the_same_image_drops_the_remedy_and_the_next_run_shows_it() -> None:
    before = remedied(set_at=NOW - timedelta(days=3))
    instance = only_instance(judged(cloud(server(), remedied=(before,)), side(running())))
    assert (instance.origin, instance.image_hw_pmu) == (PmuOrigin.QEMU_DEFAULT, "")


@pytest.mark.parametrize("launched_at", ["2026-11-22T11:50:00.000000", None])
def test_rebuild_onto_the_same_image_ends_what_our_record_says(launched_at: str | None) -> None:
    rebuilt = server(status="SHUTOFF", launched_at=launched_at)
    assert only_instance(judged(cloud(rebuilt, remedied=(remedied(),)), side(stopped()))).origin is not PmuOrigin.REMEDY


def test_a_record_of_another_image_counts_no_more() -> None:
    other = remedied(image="d0c7a4b2-6a51-4d1a-9b35-55a0f3f5a002")
    instance = only_instance(judged(cloud(server(status="SHUTOFF"), remedied=(other,)), side(stopped(), running(2))))
    assert instance.origin is not PmuOrigin.REMEDY


def test_an_image_that_changed_since_says_nothing_of_what_was_copied() -> None:
    image = SILENT_IMAGE.model_copy(update={"hw_pmu": "false", "updated_at": "2026-11-22T11:39:00Z"})
    report = judged(cloud(server(status="SHUTOFF"), images=(image,)), side(stopped()))
    instance = only_instance(report)
    assert (instance.origin, instance.image_hw_pmu) == (PmuOrigin.UNKNOWN, None)
    (unknown,) = findings(report, "NOVA-INSTANCE-PMU")
    assert unknown.verdict.value == "unknown"
    assert "2.98" in unknown.reason
    assert "may have changed" in unknown.reason


def test_what_the_api_shows_of_the_image_is_stronger_than_glance_and_than_a_record() -> None:
    shown = server(status="SHUTOFF", image_hw_pmu="true")
    instance = only_instance(judged(cloud(shown, remedied=(remedied(),)), side(stopped())))
    assert (instance.origin, instance.image_hw_pmu) == (PmuOrigin.IMAGE, "true")


def test_an_opt_out_set_by_nova_manage_is_not_failed_on_glance_s_word() -> None:
    """Nova 26 does not show it; the definition that Nova wrote for it does."""
    report = judged(cloud(server(status="SHUTOFF"), server(2)), side(stopped(element=ON), running(2)))
    assert report.instances[0].origin is PmuOrigin.UNKNOWN
    assert {each.subject.id: each.verdict.value for each in findings(report, "NOVA-INSTANCE-PMU")}[server().uuid] == "unknown"


@pytest.mark.parametrize("status", ["RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE"])
def test_while_it_is_resized_it_has_two_flavors(status: str) -> None:
    report = judged(cloud(server(status=status, flavor_hw_pmu="false")), side(running(element=OFF)))
    assert only_instance(report).next_element is None
    (unknown,) = findings(report, "NOVA-INSTANCE-PMU")
    assert status in unknown.reason


@pytest.mark.parametrize("status", ["MIGRATING", "REBUILD"])
def test_what_nova_wrote_for_a_run_that_ends_says_nothing_of_the_next(status: str) -> None:
    instance = only_instance(judged(cloud(server(status=status)), side(running())))
    assert instance.next_element in (None, ABSENT)
    assert instance.origin in (PmuOrigin.UNKNOWN, PmuOrigin.QEMU_DEFAULT)
    settled = only_instance(judged(cloud(server(status=status, flavor_hw_pmu="false")), side(running())))
    assert settled.next_element is OFF


def test_a_migrating_instance_starts_on_a_host_that_is_not_known() -> None:
    assert only_instance(judged(cloud(server(status="MIGRATING")), side(running()))).next_element is None


def test_a_shelved_instance_has_no_domain_and_no_host() -> None:
    shelved = server(status="SHELVED_OFFLOADED", host=None, hypervisor_hostname=None, domain_name=None)
    instance = only_instance(judged(cloud(shelved)))
    assert (instance.persistent, instance.live, instance.next_element) == (PmuSetting.NONE, PmuSetting.NONE, None)
    flavored = shelved.model_copy(update={"flavor_hw_pmu": "false"})
    assert only_instance(judged(cloud(flavored))).next_setting is PmuSetting.OFF


@pytest.mark.parametrize("status", ["DELETED", "SOFT_DELETED"])
def test_rules_say_nothing_of_a_deleted_instance(status: str) -> None:
    report = judged(cloud(server(status=status)), side(running()))
    assert [each for each in report.findings if each.rule.startswith("NOVA-INSTANCE")] == []


@pytest.mark.parametrize("status", ["ERROR", "BUILD"])
def test_an_instance_without_a_domain_yet_is_judged_by_flavor_and_image(status: str) -> None:
    instance = only_instance(judged(cloud(server(status=status, flavor_hw_pmu="false")), side()))
    assert (instance.origin, instance.next_element, instance.survives) == (PmuOrigin.FLAVOR, OFF, Tri.UNKNOWN)


def test_an_xml_of_another_flavor_is_older_than_a_resize_and_proves_nothing() -> None:
    resized = server(flavor="m1.large", image_hw_pmu="")
    instance = only_instance(judged(cloud(resized), side(running(element=OFF))))
    assert (instance.next_element, instance.origin) == (None, PmuOrigin.UNKNOWN)


def test_a_flavor_that_was_not_shown_is_told_by_what_nova_wrote() -> None:
    instance = only_instance(judged(cloud(server(flavor_hw_pmu=None)), side(running())))
    assert (instance.origin, instance.flavor_hw_pmu) == (PmuOrigin.QEMU_DEFAULT, "")


@pytest.mark.parametrize("changed", [server(status="SHUTOFF", flavor_hw_pmu="maybe"), server(status="SHUTOFF", image_hw_pmu="maybe")])
def test_a_text_that_is_no_boolean_is_unknown_and_shown(changed: Server) -> None:
    instance = only_instance(judged(cloud(changed), side(stopped())))
    assert "says 'maybe', which is no boolean" in instance.origin_reason.replace("say ", "says ")
    assert "maybe" in (instance.flavor_hw_pmu, instance.image_hw_pmu)


def test_an_instance_from_a_volume_has_no_image_that_glance_could_tell_of() -> None:
    report = judged(cloud(server(status="SHUTOFF", image=None)), side(stopped()))
    assert "boots from a volume" in only_instance(report).origin_reason


def test_images_that_were_not_shown_are_a_reason() -> None:
    blind = cloud(server(status="SHUTOFF"), images=())
    blind = blind.model_copy(update={"images": unseen("Glance: images", "403 for get_images")})
    assert "403 for get_images" in only_instance(judged(blind, side(stopped()))).origin_reason


def test_a_domain_that_is_gone_may_be_what_a_refused_start_left() -> None:
    """Flavor on, and nova-manage set hw_pmu=false: Nova 26 shows neither the property nor a fault, only SHUTOFF without a domain."""
    report = judged(cloud(server(status="SHUTOFF", flavor_hw_pmu="true")), side())
    (conflict,) = findings(report, "NOVA-FLAVOR-IMAGE-CONFLICT")
    assert conflict.verdict.value == "unknown"
    assert "its domain is gone, as after a start that Nova refused" in conflict.reason


def test_a_conflict_that_is_shown_fails_before_the_next_start_does_and_says_the_way_back() -> None:
    report = judged(cloud(server(status="SHUTOFF", flavor_hw_pmu="true", image_hw_pmu="false")), side(stopped(element=ON)))
    assert told(only_instance(report)) == (PmuOrigin.CONFLICT, None, PmuSetting.UNKNOWN, Tri.NO)
    (conflict,) = findings(report, "NOVA-FLAVOR-IMAGE-CONFLICT")
    assert (conflict.verdict.value, conflict.severity.value, conflict.remedy) == ("fail", "high", None)
    assert "set hw_pmu=true" in conflict.reason
    assert not findings(report, "NOVA-INSTANCE-PMU")


def test_a_mark_in_the_domain_s_metadata_locks_the_instance_too() -> None:
    marked = running().model_copy(update={"locked": True})
    assert only_instance(judged(cloud(server()), side(marked))).locked is True


def test_a_canary_proves_the_default_of_the_build_that_runs_here() -> None:
    at_rest = cloud(server(status="SHUTOFF", image_hw_pmu=""), canaries=(canary("off"),))
    instance = only_instance(judged(at_rest, side(stopped(element=OFF))))
    assert told(instance) == (PmuOrigin.CLOUD_DEFAULT, OFF, PmuSetting.OFF, Tri.YES)


def test_a_canary_of_another_build_proves_nothing() -> None:
    assert ZED != "32.0.0"
    at_rest = cloud(server(status="SHUTOFF", image_hw_pmu=""), canaries=(canary("off", version="32.0.0"),))
    report = judged(at_rest, side(stopped(element=OFF)))
    assert only_instance(report).origin is PmuOrigin.UNKNOWN
    assert "does not count" in report.computes[0].reason


def test_without_facts_of_its_host_flavor_and_image_are_all_that_is_known() -> None:
    silent: Server = server()
    report = judged(cloud(silent))
    instance = only_instance(report)
    assert (instance.persistent, instance.live, instance.chain, instance.host_id) == (PmuSetting.UNKNOWN, PmuSetting.UNKNOWN, None, None)
    assert instance.survives_reason.endswith("no facts of its host compute-7 were given")
    shown = seen("Nova: servers", (silent.model_copy(update={"image": IMAGE_ID, "image_hw_pmu": "false"}),))
    assert only_instance(judged(cloud().model_copy(update={"servers": shown}))).next_setting is PmuSetting.OFF
