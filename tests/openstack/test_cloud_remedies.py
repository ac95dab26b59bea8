"""A plan for a real cloud, approved and carried out: what is set stays set over everything Nova does, and nobody else is touched."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audits import CommandResult
from control_node import CLOUD_NAME, ControlNode, control_node
from running_cloud import RunningCloud
from zoo import RefusedByNovaError, Specimen, Zoo, open_zoo, stopped, stopped_and_locked

PREFIX = "remedies-"
SPECIMENS = (
    Specimen("stopped", then=stopped),
    Specimen("runs"),
    Specimen("locked", then=stopped_and_locked),
    Specimen("opted-out", flavor="on", then=stopped),
    Specimen("opted-out-by-image", image="on", then=stopped),
    Specimen("off", flavor="off", then=stopped),
)
UNTOUCHED = tuple(specimen.name for specimen in SPECIMENS if specimen.name != "stopped")


@dataclass(frozen=True)
class Applied:
    """A plan before and after it was carried out."""

    plan: dict[str, Any]
    unapproved: CommandResult
    rehearsed: CommandResult
    #: What the cloud and libvirt say of everything, before, after the rehearsal, and after.
    before: dict[str, str]
    after_rehearsal: dict[str, str]
    applied: CommandResult
    after: dict[str, str]


@pytest.fixture(scope="module")
def node(cloud: RunningCloud, tmp_path_factory: pytest.TempPathFactory) -> ControlNode:
    """Its policy names the flavor and image of this file alone, and takes the boots that Nova will refuse."""
    remedies = {
        "allowed": ["nova_flavor_default", "nova_image_default", "nova_instance_pmu_off"],
        "nova": {
            "flavors": [f"{PREFIX}silent"],
            "images": [f"{PREFIX}silent"],
            "refused_boots_accepted": True,
            "nova_manage": list(cloud.nova_manage),
        },
    }
    return control_node(cloud, tmp_path_factory.mktemp("control-node"), json.dumps(remedies))


@pytest.fixture(scope="module")
def zoo(cloud: RunningCloud) -> Iterator[Zoo]:
    strangers = [server["name"] for server in cloud.connect().compute.get("/servers/detail?all_tenants=1").json()["servers"]]
    assert all(name.startswith(PREFIX) for name in strangers), f"a plan is for a whole cloud, and others have instances here: {strangers}"
    found = open_zoo(cloud, PREFIX)
    try:
        found.populate(SPECIMENS)
        yield found
    finally:
        found.clear()


@pytest.fixture(scope="module")
def applied(zoo: Zoo, node: ControlNode, tmp_path_factory: pytest.TempPathFactory) -> Applied:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = make_plan(node, path)
    before = everything(zoo)
    unapproved = node.run("apply", path, "--policy", node.policy)
    assert node.run("approve", path, "--approver", "ada").exit_code == 0
    rehearsed = node.run("apply", path, "--policy", node.policy, "--check")
    after_rehearsal = everything(zoo)
    done = node.run("apply", path, "--policy", node.policy)
    return Applied(plan, unapproved, rehearsed, before, after_rehearsal, done, everything(zoo))


def make_plan(node: ControlNode, path: Path) -> dict[str, Any]:
    node.look_at_host()
    made = node.run("plan", "--cloud", CLOUD_NAME, "--policy", node.policy, "--format", "json", "--output", path, node.facts_dir)
    assert made.exit_code == 0, made.stderr
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def everything(zoo: Zoo) -> dict[str, str]:
    """What the API says of flavors, images and instances, and libvirt of their next start; times and runs left out."""
    compute = zoo.administrator.compute
    told = {f"flavor {name}": compute.get(f"/flavors/{identity}").text for name, identity in zoo.flavors.items()}
    for name, identity in zoo.images.items():
        image = zoo.administrator.image.get(f"/images/{identity}").json()
        told[f"image {name}"] = json.dumps({word: value for word, value in image.items() if word != "updated_at"}, sort_keys=True)
    for name, uuid in zoo.servers.items():
        shown = {word: value for word, value in zoo.server(uuid).items() if word not in {"updated", "progress"}}
        told[f"server {name}"] = json.dumps(shown, sort_keys=True)
        told[f"definition {name}"] = zoo.cloud.domain_xml(uuid, inactive=True)
    return told


def stored(zoo: Zoo, kind: str) -> str | None:
    """What the silent flavor or image says now."""
    if kind == "flavor":
        specs: dict[str, str] = zoo.administrator.compute.get(f"/flavors/{zoo.flavors['silent']}").json()["flavor"]["extra_specs"]
        return specs.get("hw:pmu")
    image: dict[str, str] = zoo.administrator.image.get(f"/images/{zoo.images['silent']}").json()
    return image.get("hw_pmu")


# The plan


def test_plan_names_what_is_silent_and_stopped_and_nothing_else(applied: Applied, zoo: Zoo) -> None:
    planned = {(step["subject"]["kind"], step["subject"]["id"]) for step in applied.plan["steps"]}
    expected = {("flavor", zoo.flavors["silent"]), ("image", zoo.images["silent"]), ("instance", zoo.servers["stopped"])}
    assert planned == expected


@pytest.mark.parametrize(
    ("name", "because"),
    [("runs", "not_stopped"), ("locked", "locked"), ("opted-out", "opted_out"), ("opted-out-by-image", "opted_out")],
)
def test_plan_says_why_an_instance_is_left_alone(applied: Applied, zoo: Zoo, name: str, because: str) -> None:
    about = [each for each in applied.plan["left_alone"] if each["subject"]["id"] == zoo.servers[name]]
    assert because in {each["because"] for each in about}, about


def test_plan_waits_for_an_approval(applied: Applied) -> None:
    assert applied.unapproved.exit_code == 3, applied.unapproved.stderr


def test_rehearsal_changes_nothing(applied: Applied) -> None:
    assert applied.rehearsed.exit_code == 0, applied.rehearsed.stderr
    assert applied.after_rehearsal == applied.before


# What was done


def test_flavor_and_image_say_off_from_now_on(applied: Applied, zoo: Zoo) -> None:
    assert applied.applied.exit_code == 0, applied.applied.stderr
    assert (stored(zoo, "flavor"), stored(zoo, "image")) == ("false", "false")


@pytest.mark.parametrize("name", UNTOUCHED)
def test_everybody_else_s_instance_is_as_it_was(applied: Applied, name: str) -> None:
    for what in (f"server {name}", f"definition {name}"):
        assert applied.after[what] == applied.before[what]


@pytest.mark.parametrize("what", ["flavor on", "flavor off", "image on", "image off"])
def test_flavor_and_image_that_say_something_are_as_they_were(applied: Applied, what: str) -> None:
    assert applied.after[what] == applied.before[what]


def test_instance_is_neither_started_nor_edited_behind_nova_s_back(applied: Applied) -> None:
    for what in ("server stopped", "definition stopped"):
        assert applied.after[what] == applied.before[what]


def test_remedied_instance_has_its_pmu_off_from_its_next_start_on_and_keeps_it(applied: Applied, zoo: Zoo, cloud: RunningCloud) -> None:
    assert applied.applied.exit_code == 0
    uuid = zoo.servers["stopped"]
    assert cloud.pmu_element(uuid, inactive=True) == "absent"
    zoo.start(uuid)
    elements = [cloud.pmu_element(uuid)]
    zoo.hard_reboot(uuid)
    elements.append(cloud.pmu_element(uuid))
    zoo.stop(uuid)
    zoo.start(uuid)
    elements.append(cloud.pmu_element(uuid))
    assert elements == ["off", "off", "off"]
    assert cloud.pmu_element(uuid, inactive=True) == "off"


def test_audit_says_that_the_remedied_instance_is_off_by_us_and_stays_so(applied: Applied, zoo: Zoo, node: ControlNode) -> None:
    assert applied.applied.exit_code == 0
    told = next(each for each in node.audit()["instances"] if each["uuid"] == zoo.servers["stopped"])
    assert (told["origin"], told["next_setting"], told["survives"]) == ("remedy", "off", "yes")


def test_opted_out_instance_still_has_its_pmu_after_its_next_start(applied: Applied, zoo: Zoo, cloud: RunningCloud) -> None:
    assert applied.applied.exit_code == 0
    for name in ("opted-out", "opted-out-by-image"):
        zoo.start(zoo.servers[name])
        assert cloud.pmu_element(zoo.servers[name]) == "on"


def test_existing_instance_of_the_flavor_keeps_its_silent_copy(applied: Applied, zoo: Zoo, cloud: RunningCloud) -> None:
    assert applied.applied.exit_code == 0
    zoo.hard_reboot(zoo.servers["runs"])
    assert cloud.pmu_element(zoo.servers["runs"]) == "absent"


def test_new_instance_of_the_flavor_is_off(applied: Applied, zoo: Zoo, cloud: RunningCloud) -> None:
    assert applied.applied.exit_code == 0
    zoo.populate((Specimen("new"),))
    assert cloud.pmu_element(zoo.servers["new"]) == "off"


def test_boot_that_was_accepted_to_be_refused_is_refused_and_told_before(applied: Applied, zoo: Zoo, node: ControlNode) -> None:
    assert applied.applied.exit_code == 0
    found = [
        each
        for each in node.audit()["findings"]
        if (each["rule"], each["subject"]["id"]) == ("NOVA-CATALOG-CONFLICT", zoo.flavors["silent"])
    ]
    assert [each["verdict"] for each in found] == ["fail"]
    assert f"{PREFIX}on" in found[0]["reason"]
    with pytest.raises(RefusedByNovaError, match="conflicting with image"):
        zoo.order(Specimen("conflict", image="on"))


def test_second_plan_finds_nothing_to_do(applied: Applied, node: ControlNode, tmp_path: Path) -> None:
    assert applied.applied.exit_code == 0
    assert make_plan(node, tmp_path / "again.json")["steps"] == []


def test_way_back_makes_flavor_and_image_silent_and_names_the_instance_that_has_none(
    applied: Applied, zoo: Zoo, node: ControlNode, cloud: RunningCloud
) -> None:
    assert applied.applied.exit_code == 0
    [run] = [path.name for path in (node.remedy_dir / "runs").iterdir() if path.is_dir()]
    shown = node.run("rollback", run, "--policy", node.policy, "--show")
    assert f"{PREFIX}stopped" in shown.stdout
    undone = node.run("rollback", run, "--policy", node.policy)
    assert undone.exit_code == 0, undone.stderr
    assert (stored(zoo, "flavor"), stored(zoo, "image")) == (None, None)
    assert cloud.pmu_element(zoo.servers["stopped"], inactive=True) == "off"
