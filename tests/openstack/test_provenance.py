"""Where the PMU setting of a real Nova's instances comes from, by its API and its compute host; and a conflict, before Nova refuses it."""

from collections.abc import Iterator
from typing import Any

import pytest
from control_node import ControlNode
from running_cloud import MEMBER, READER, RunningCloud
from zoo import EIGHT, REAL_COMPUTE, STRANGE, RefusedByNovaError, Specimen, Zoo, make_strange_parts, open_zoo

PREFIX = "provenance-"
QEMUS_DEFAULT = {"default_on", "default_off"}
#: Of each kind: its origin, what Nova writes next, and whether what is defined now survives that.
EXPECTED = {
    "flavor-off": ("flavor", "off", "yes"),
    "flavor-on": ("flavor", "on", "yes"),
    "image-off": ("image", "off", "yes"),
    "image-on": ("image", "on", "yes"),
    "both-silent": ("qemu_default", "absent", "yes"),
    "both-off": ("flavor_and_image", "off", "yes"),
    "edited": ("behind_nova", "absent", "no"),
    "remedied": ("remedy", "off", "yes"),
}


@pytest.fixture(scope="module")
def zoo(cloud: RunningCloud, node: ControlNode) -> Iterator[Zoo]:
    found = open_zoo(cloud, PREFIX)
    try:
        make_strange_parts(found)
        found.populate(EIGHT[:-1] + STRANGE)
        populate_remedied(found, node)
        yield found
    finally:
        found.clear()


def populate_remedied(zoo: Zoo, node: ControlNode) -> None:
    """The eighth kind: stopped by its owner, remedied by the playbook, and started again."""
    zoo.populate((Specimen("remedied", then=Zoo.stop),))
    uuid = zoo.servers["remedied"]
    node.switch_instance_pmu_off(uuid, zoo.server(uuid)["image"]["id"])
    zoo.start(uuid)


@pytest.fixture(scope="module")
def report(zoo: Zoo, node: ControlNode) -> dict[str, Any]:
    assert zoo.servers
    return node.audit()


def instance(report: dict[str, Any], uuid: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["instances"] if each["uuid"] == uuid)
    return found


def finding(report: dict[str, Any], rule: str, subject: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["findings"] if each["rule"] == rule and each["subject"]["id"] == subject)
    return found


# The eight kinds


@pytest.mark.parametrize("name", EXPECTED)
def test_origin_and_next_element_of_each_kind_are_told(report: dict[str, Any], zoo: Zoo, name: str) -> None:
    told = instance(report, zoo.servers[name])
    assert (told["origin"], told["next_element"], told["survives"]) == EXPECTED[name], told


@pytest.mark.parametrize("name", EXPECTED)
def test_what_was_told_is_what_nova_writes_at_the_next_hard_reboot(
    report: dict[str, Any], zoo: Zoo, cloud: RunningCloud, name: str
) -> None:
    uuid = zoo.servers[name]
    told = instance(report, uuid)
    before = cloud.pmu_element(uuid, inactive=True)
    zoo.hard_reboot(uuid)
    assert cloud.pmu_element(uuid) == told["next_element"]
    assert cloud.pmu_element(uuid, inactive=True) == told["next_element"]
    assert (before == told["next_element"]) == (told["survives"] == "yes")


def test_instance_that_nobody_says_anything_for_is_qemu_s(report: dict[str, Any], zoo: Zoo) -> None:
    told = instance(report, zoo.servers["both-silent"])
    assert told["persistent"] in QEMUS_DEFAULT
    assert told["next_setting"] == told["persistent"]


def test_edit_behind_nova_s_back_is_drift(report: dict[str, Any], zoo: Zoo) -> None:
    found = finding(report, "NOVA-INSTANCE-DRIFT", zoo.servers["edited"])
    assert found["verdict"] == "fail"
    assert "Nova wrote no <pmu> element" in found["reason"]


def test_silent_instances_prove_that_this_nova_has_no_default(report: dict[str, Any], zoo: Zoo) -> None:
    assert zoo.servers
    compute = next(each for each in report["computes"] if each["host"] == REAL_COMPUTE)
    assert compute["default_off"] == "no"
    assert compute["witnesses_for"] == 0
    assert compute["witnesses_against"] > 0


def test_opted_out_instances_are_never_failed_nor_given_a_remedy(report: dict[str, Any], zoo: Zoo) -> None:
    for name in ("flavor-on", "image-on"):
        about = [each for each in report["findings"] if each["subject"]["id"] == zoo.servers[name]]
        assert [each for each in about if each["remedy"] is not None] == []
        assert [each for each in about if each["rule"] == "NOVA-INSTANCE-PMU" and each["verdict"] == "fail"] == []


# Instances in a state in which less can be said


def test_instances_in_any_state_are_told_and_none_is_lost(report: dict[str, Any], zoo: Zoo) -> None:
    assert {zoo.servers[specimen.name] for specimen in STRANGE} <= {each["uuid"] for each in report["instances"]}


@pytest.mark.parametrize(("name", "status", "live"), [("shelved", "SHELVED_OFFLOADED", "none"), ("no-valid-host", "ERROR", "unknown")])
def test_instance_without_a_host_has_nothing_in_force(report: dict[str, Any], zoo: Zoo, name: str, status: str, live: str) -> None:
    told = instance(report, zoo.servers[name])
    assert (told["status"], told["host"], told["live"]) == (status, None, live)


def test_unconfirmed_resize_is_unknown_until_it_is_confirmed(report: dict[str, Any], zoo: Zoo) -> None:
    told = instance(report, zoo.servers["resized"])
    assert told["status"] == "VERIFY_RESIZE"
    assert told["survives"] == "unknown"


def test_name_with_markup_comes_through_as_it_is(report: dict[str, Any], zoo: Zoo) -> None:
    assert instance(report, zoo.servers["markup"])["name"] == f"{PREFIX}=1+1|<b>[red]\"&' \u00fc"


# The conflict


def test_conflict_is_explained_before_nova_refuses_it(report: dict[str, Any], zoo: Zoo) -> None:
    found = finding(report, "NOVA-CATALOG-CONFLICT", zoo.flavors["on"])
    assert found["verdict"] == "fail"
    assert f"{PREFIX}off" in found["reason"]
    with pytest.raises(RefusedByNovaError, match="conflicting with image") as refused:
        zoo.order(Specimen("conflict", flavor="on", image="off"))
    assert refused.value.status == 400


# Other roles


@pytest.mark.parametrize("user", [MEMBER, READER])
def test_role_without_the_right_is_told_which_policy_hides_what(node: ControlNode, zoo: Zoo, user: str) -> None:
    shown = node.seen_by(user)
    own = {each["uuid"] for each in shown["servers"]["value"]}
    assert own >= {zoo.servers[name] for name in EXPECTED}
    assert zoo.servers["markup"] not in own  # the administrator's
    assert shown["scope"] == "project"
    for name, policy in (("services", "os-services:list"), ("hypervisors", "os-hypervisors:list-detail"), ("aggregates", "os-aggregates")):
        assert shown[name]["value"] is None
        assert policy in shown[name]["unlock"]
