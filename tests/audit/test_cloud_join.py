"""Joining a cloud's API with the facts of its hosts: by uuid, by name, with moves, strangers and hosts that cannot be told apart."""

from dataclasses import replace
from datetime import timedelta

import pytest
from audit_builders import facts
from nova_builders import (
    CLOUD_ID,
    HOST_ID,
    NOW,
    RULEBOOK,
    SILENT_FLAVOR,
    canary,
    cloud,
    findings,
    hypervisor,
    judged,
    only_instance,
    running,
    server,
    service,
    side,
    uuid,
)

from exitguard.audit.cloud import host_side
from exitguard.model.finding import Finding
from exitguard.model.pmu import PmuElement, PmuSetting, Tri
from exitguard.model.record import seen, unseen

OTHER_ID = "22222222-2222-4222-8222-222222222222"
OFF = PmuElement.OFF


def sources(*of: Finding) -> str:
    (finding,) = of
    assert finding.subject.id == CLOUD_ID
    assert finding.verdict.value == "unknown"
    return finding.reason


@pytest.mark.parametrize("hostname", ["compute-7", "COMPUTE-7", "compute-7.example.org", "Compute-7.Example.org"])
def test_a_host_is_the_compute_host_of_its_short_or_full_name(hostname: str) -> None:
    report = judged(cloud(server()), side(running(), hostname=hostname))
    assert (report.hosts_joined, only_instance(report).host_id) == (1, HOST_ID)
    assert report.computes[0].host_id == HOST_ID


@pytest.mark.parametrize("hostname", ["compute-7.example.com", "compute-7"])
def test_a_compute_host_that_nova_knows_by_its_short_name_alone_is_any_host_s_of_that_name(hostname: str) -> None:
    short = cloud(server(hypervisor_hostname=None)).model_copy(update={"hypervisors": seen("Nova: hypervisors", ())})
    assert judged(short, side(running(), hostname=hostname)).hosts_joined == 1


@pytest.mark.parametrize("hostname", ["compute-70", "compute", "compute-7.example.com", "", None, "7"])
def test_a_host_of_another_name_is_not_taken_for_it(hostname: str | None) -> None:
    report = judged(cloud(server(2)), side(running(2), running(3), hostname=hostname))
    assert report.hosts_joined == 0
    assert "belong to no compute host that was shown" in sources(*findings(report, "NOVA-SOURCES"))


def test_a_short_name_that_fits_two_compute_hosts_is_nobody_s() -> None:
    two = cloud(server(host="compute-7.a", hypervisor_hostname=None), hosts=("compute-7.a", "compute-7.b"))
    report = judged(two, side(running()))
    assert report.hosts_joined == 0
    assert "may be any of the compute hosts compute-7.a, compute-7.b" in sources(*findings(report, "NOVA-SOURCES"))


def test_a_uuid_on_two_hosts_is_the_domain_of_the_host_that_nova_names() -> None:
    """In a migration both have it, until the source is cleaned."""
    moving = cloud(server(), hosts=("compute-7", "compute-8"))
    report = judged(moving, side(running(element=OFF), hostname="compute-8", host_id=OTHER_ID), side(running()))
    instance = only_instance(report)
    assert (instance.host_id, instance.persistent) == (HOST_ID, PmuSetting.DEFAULT_ON)
    assert any("also found on compute-8" in each.value for each in instance.evidence)


def test_a_uuid_on_two_hosts_of_which_neither_can_be_told_is_unknown_and_names_both() -> None:
    hidden = server(host=None, hypervisor_hostname=None)
    report = judged(cloud(hidden), side(running()), side(running(), hostname="compute-8", host_id=OTHER_ID))
    instance = only_instance(report)
    assert (instance.host_id, instance.survives) == (None, Tri.UNKNOWN)
    assert f"compute-7 ({HOST_ID}) and compute-8 ({OTHER_ID})" in instance.survives_reason


def test_a_domain_on_another_host_than_nova_names_was_left_behind() -> None:
    report = judged(cloud(server(), hosts=("compute-7", "compute-8")), side(running(), hostname="compute-8", host_id=OTHER_ID))
    instance = only_instance(report)
    assert instance.host_id is None
    assert "Nova says that it is on compute-7: the domain of it on compute-8 was left behind" in instance.survives_reason


def test_where_nova_does_not_show_the_host_the_only_domain_of_that_uuid_is_it() -> None:
    report = judged(cloud(server(host=None, hypervisor_hostname=None)), side(running()))
    assert only_instance(report).host_id == HOST_ID


def test_a_host_whose_name_nobody_knows_is_taken_by_its_instances_and_said_to_be() -> None:
    report = judged(cloud(server()), side(running(), hostname="rack-4-slot-2"))
    instance = only_instance(report)
    assert instance.host_id == HOST_ID
    assert any("cannot be told by name" in each.value for each in instance.evidence)


def test_of_two_looks_at_one_host_the_later_counts() -> None:
    first = side(running(element=OFF))
    later = replace(side(running()), observed_at=first.observed_at + timedelta(minutes=5))
    assert only_instance(judged(cloud(server()), later, first)).persistent is PmuSetting.DEFAULT_ON


def test_a_domain_of_nova_s_that_no_server_has_is_told() -> None:
    report = judged(cloud(server()), side(running(), running(9)))
    assert uuid(9) in sources(*findings(report, "NOVA-SOURCES"))


def test_a_server_without_a_domain_on_its_host_is_told() -> None:
    report = judged(cloud(server(), server(2)), side(running()))
    missing = report.instances[1]
    assert "compute-7 has no domain of it" in missing.survives_reason
    assert [each.subject.id for each in findings(report, "NOVA-INSTANCE-DRIFT")] == [missing.uuid]


def test_a_host_whose_domains_could_not_be_listed_is_no_witness_of_an_absence() -> None:
    blind = replace(host_side(facts(libvirt="permission denied"), RULEBOOK), hostname="compute-7")
    report = judged(cloud(server(flavor_hw_pmu="true", status="SHUTOFF")), blind)
    assert "could not be listed: permission denied" in only_instance(report).survives_reason
    assert not findings(report, "NOVA-FLAVOR-IMAGE-CONFLICT")
    assert "could not be listed" in sources(*findings(report, "NOVA-SOURCES"))


def test_everything_seen_and_joined_is_a_pass_that_is_counted_and_not_told() -> None:
    report = judged(cloud(server(flavor_hw_pmu="false")), side(running(element=OFF)))
    assert not findings(report, "NOVA-SOURCES")
    assert report.summary.by_verdict["pass"] >= 1


def test_what_a_role_may_not_see_is_told_with_the_policy_that_would_show_it() -> None:
    hidden = cloud(server()).model_copy(
        update={"hypervisors": unseen("Nova: hypervisors", "403 Forbidden", unlock="os_compute_api:os-hypervisors:list-detail")}
    )
    told = sources(*findings(judged(hidden, side(running())), "NOVA-SOURCES"))
    assert "hypervisors could not be seen (403 Forbidden; would need os_compute_api:os-hypervisors:list-detail)" in told


def test_servers_of_one_project_only_are_said_to_be() -> None:
    report = judged(cloud(server(), scope="project"), side(running()))
    told = sources(*findings(report, "NOVA-SOURCES"))
    assert told == "only the servers of one project were shown; would need os_compute_api:servers:detail:get_all_tenants"


def test_flavors_whose_extra_specs_were_not_shown_are_a_source_that_is_missing() -> None:
    hidden = SILENT_FLAVOR.model_copy(update={"hw_pmu": None})
    told = sources(*findings(judged(cloud(server(), flavors=(hidden,)), side(running())), "NOVA-SOURCES"))
    assert told.startswith("the extra specs of 1 flavor were not shown (m1.small)")


def test_two_hosts_of_one_name_are_told() -> None:
    report = judged(cloud(server()), side(running()), side(running(), host_id=OTHER_ID))
    assert "several hosts go by the name of one compute host" in sources(*findings(report, "NOVA-SOURCES"))
    assert "which one Nova means cannot be told" in only_instance(report).survives_reason


def test_compute_hosts_are_told_with_zone_aggregate_build_and_witnesses() -> None:
    report = judged(cloud(server(), server(2)), side(running(), running(2)))
    (compute,) = report.computes
    assert (compute.host, compute.zone, compute.aggregates, compute.builds) == ("compute-7", "nova", ("fast",), ("26.2.2",))
    assert (compute.default_off, compute.witnesses_for, compute.witnesses_against, compute.instances) == (Tri.NO, 0, 2, 2)


def test_silence_that_the_api_shows_makes_a_witness_for_the_default_and_glance_does_not() -> None:
    shown = judged(cloud(server(image_hw_pmu="")), side(running(element=OFF)))
    assert (shown.computes[0].default_off, shown.computes[0].witnesses_for) == (Tri.YES, 1)
    by_glance = judged(cloud(server()), side(running(element=OFF)))
    assert (by_glance.computes[0].default_off, by_glance.computes[0].witnesses_for) == (Tri.UNKNOWN, 0)


def test_an_xml_of_before_a_resize_is_no_witness_for_the_default() -> None:
    resized = server(flavor="m1.large", image_hw_pmu="")
    assert judged(cloud(resized), side(running(element=OFF))).computes[0].default_off is Tri.UNKNOWN


def test_witnesses_that_contradict_each_other_leave_it_unknown() -> None:
    report = judged(cloud(server(image_hw_pmu=""), server(2)), side(running(element=OFF), running(2)))
    assert (report.computes[0].default_off, report.computes[0].reason) == (
        Tri.UNKNOWN,
        "the witnesses contradict each other: 1 witnesses for it, 1 against",
    )


def test_a_canary_with_a_word_that_is_none_proves_nothing() -> None:
    report = judged(cloud(server(status="SHUTOFF"), canaries=(canary("sideways"),)), side(running(generated=False)))
    assert report.computes[0].default_off is Tri.UNKNOWN


def test_an_instance_on_another_hypervisor_is_none_of_qemu_s() -> None:
    bare = cloud(server()).model_copy(update={"hypervisors": seen("Nova: hypervisors", (hypervisor(kind="ironic"),))})
    report = judged(bare)
    assert [each for each in report.findings if each.rule.startswith("NOVA-INSTANCE")] == []
    assert report.computes[0].reason == "its hypervisor is no QEMU"


def test_an_emulated_guest_is_judged_only_where_the_policy_admits_it() -> None:
    emulated = running(kind="qemu")
    assert not findings(judged(cloud(server()), side(emulated)), "NOVA-INSTANCE-PMU")
    scope = RULEBOOK.policy.scope.model_copy(update={"admit_tcg": True})
    admitting = RULEBOOK.model_copy(update={"policy": RULEBOOK.policy.model_copy(update={"scope": scope})})
    report = judged(cloud(server()), side(emulated, rulebook=admitting), rulebook=admitting)
    assert [each.verdict.value for each in findings(report, "NOVA-INSTANCE-PMU")] == ["fail"]


def test_no_servers_were_shown_and_nothing_is_said_of_any() -> None:
    blind = cloud().model_copy(update={"servers": unseen("Nova: servers", "HTTP 500"), "services": seen("Nova: services", (service(),))})
    report = judged(blind, side(running()))
    assert (report.instances, report.observed_at) == ((), NOW)
    assert "servers could not be seen (HTTP 500)" in sources(*findings(report, "NOVA-SOURCES"))
