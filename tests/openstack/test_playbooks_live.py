"""The playbooks of flavors, images and instances, run by hand beside a real Nova: what they refuse, change, keep and take back."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_node import CLOUD_NAME, ControlNode, clouds_file, run_playbook
from running_cloud import MEMBER, RunningCloud
from zoo import Specimen, Zoo, open_zoo, resized_to_off, stopped, stopped_and_locked

PREFIX = "e-live-"
SPECIMENS = (
    Specimen("for-nova-manage", then=stopped),
    Specimen("for-resize", then=stopped),
    Specimen("for-no-host", then=stopped),
    Specimen("runs"),
    Specimen("locked", then=stopped_and_locked),
    Specimen("opted-out", flavor="on", then=stopped),
    Specimen("opted-out-by-image", image="on", then=stopped),
    Specimen("unconfirmed", then=resized_to_off),
)
OFF_EVERYWHERE = ["off", "off", "off", "off"]


@pytest.fixture(scope="module")
def zoo(cloud: RunningCloud) -> Iterator[Zoo]:
    found = open_zoo(cloud, PREFIX)
    try:
        found.make_flavor("huge-off", "false", memory_mib=100_000_000)
        found.populate(SPECIMENS)
        yield found
    finally:
        found.clear()


class Played:
    """A playbook that ran: its exit code and what became of each subject."""

    def __init__(self, node: ControlNode, name: str, variables: dict[str, object], *options: str) -> None:
        settings = {f"{name}_cloud": CLOUD_NAME, f"{name}_python": sys.executable}
        settings |= {f"{name}_{key}": value for key, value in variables.items()}
        done: subprocess.CompletedProcess[str] = run_playbook(node, name, settings, "-v", *options)
        told = [line for line in done.stdout.splitlines() if '"exitguard": {"steps"' in line]
        assert len(told) == 1, done.stdout + done.stderr
        steps: list[dict[str, Any]] = json.loads(told[0][told[0].index("=> ") + 3 :])["exitguard"]["steps"]
        self.exit_code = done.returncode
        self.outcomes = [step["outcome"] for step in steps]
        self.reasons = [step["reason"] for step in steps]


def set_off(node: ControlNode, zoo: Zoo, *names: str, options: tuple[str, ...] = (), budget: int = 9) -> Played:
    changes = [{"uuid": zoo.servers[name], "image": zoo.server(zoo.servers[name])["image"]["id"]} for name in names]
    variables: dict[str, object] = {
        "changes": changes,
        "nova_manage": list(node.cloud.nova_manage),
        "record_dir": str(node.remedy_dir / "nova"),
        "failure_budget": budget,
    }
    return Played(node, "nova_instance_pmu_off", variables, *options)


def resize(node: ControlNode, zoo: Zoo, *names: str, flavor: str = "off", options: tuple[str, ...] = (), **more: object) -> Played:
    uuids = [zoo.servers[name] for name in names]
    variables = {"uuids": uuids, "flavor": zoo.flavors[flavor], "failure_budget": 9, **more}
    return Played(node, "nova_instance_resize", variables, *options)


def shown(zoo: Zoo, name: str) -> dict[str, Any]:
    """What Nova and libvirt say of an instance, without times and runs."""
    uuid = zoo.servers[name]
    server = {word: value for word, value in zoo.server(uuid).items() if word not in {"updated", "progress"}}
    return {**server, "definition": zoo.cloud.domain_xml(uuid, inactive=True)}


def elements_over_restarts(zoo: Zoo, uuid: str) -> list[str]:
    """Of a stopped instance: once it was started, hard rebooted, stopped and started again, and in its definition then."""
    found = []
    zoo.start(uuid)
    found.append(zoo.cloud.pmu_element(uuid))
    zoo.hard_reboot(uuid)
    found.append(zoo.cloud.pmu_element(uuid))
    zoo.stop(uuid)
    zoo.start(uuid)
    return [*found, zoo.cloud.pmu_element(uuid), zoo.cloud.pmu_element(uuid, inactive=True)]


# Flavors and images


@pytest.mark.parametrize("kind", ["flavor", "image"])
def test_property_is_set_once_and_taken_back_and_another_s_word_is_left(node: ControlNode, zoo: Zoo, kind: str) -> None:
    name, key, subject = f"nova_{kind}_default", f"{kind}_id", {"flavor": zoo.flavors, "image": zoo.images}[kind]["silent"]

    def says() -> str | None:
        if kind == "image":
            image: dict[str, str] = zoo.administrator.image.get(f"/images/{subject}").json()
            return image.get("hw_pmu")
        specs: dict[str, str] = zoo.administrator.compute.get(f"/flavors/{subject}").json()["flavor"]["extra_specs"]
        return specs.get("hw:pmu")

    def change(before: str, after: str, *options: str) -> tuple[int, str, str | None]:
        played = Played(node, name, {"changes": [{key: subject, "before": before, "after": after}]}, *options)
        return played.exit_code, played.outcomes[0], says()

    assert change("", "false", "--check") == (0, "done", None)
    assert change("", "false") == (0, "done", "false")
    assert change("", "false") == (0, "already", "false")
    assert change("true", "") == (0, "changed_since", "false")
    assert change("false", "") == (0, "done", None)
    assert change("false", "") == (0, "already", None)


@pytest.mark.parametrize("kind", ["flavor", "image"])
def test_role_that_may_not_change_it_is_refused_with_the_words_of_the_cloud(node: ControlNode, zoo: Zoo, kind: str) -> None:
    subject = {"flavor": zoo.flavors, "image": zoo.images}[kind]["silent"]
    clouds = clouds_file(node.home / "member.yaml", node.cloud.variables_of(MEMBER))
    as_member = ControlNode(node.cloud, node.home / "member", node.policy)
    as_member.home.mkdir(exist_ok=True)
    clouds.replace(as_member.home / "clouds.yaml")
    played = Played(as_member, f"nova_{kind}_default", {"changes": [{f"{kind}_id": subject, "before": "", "after": "false"}]})
    assert (played.exit_code, played.outcomes) == (2, ["refused"])
    assert "403" in played.reasons[0]


# Instances, by nova-manage


def test_instances_of_others_wishes_are_refused_by_the_playbook_itself_and_stay_as_they_are(node: ControlNode, zoo: Zoo) -> None:
    names = ("locked", "opted-out", "opted-out-by-image")
    before = [shown(zoo, name) for name in names]
    played = set_off(node, zoo, *names)
    assert (played.exit_code, played.outcomes) == (2, ["refused"] * 3), played.reasons
    assert "lock" in played.reasons[0]
    assert "would destroy it" in played.reasons[1]
    assert "asks for the PMU" in played.reasons[2]
    assert [shown(zoo, name) for name in names] == before
    zoo.start(zoo.servers["opted-out"])
    assert zoo.cloud.pmu_element(zoo.servers["opted-out"]) == "on"


def test_running_instance_is_left_as_it_is(node: ControlNode, zoo: Zoo) -> None:
    before = shown(zoo, "runs")
    played = set_off(node, zoo, "runs")
    assert (played.exit_code, played.outcomes) == (0, ["changed_since"]), played.reasons
    assert shown(zoo, "runs") == before


def test_stopped_instance_is_set_once_and_keeps_it(node: ControlNode, zoo: Zoo) -> None:
    uuid = zoo.servers["for-nova-manage"]
    before = shown(zoo, "for-nova-manage")
    rehearsed = set_off(node, zoo, "for-nova-manage", options=("--check",))
    assert (rehearsed.exit_code, rehearsed.outcomes) == (0, ["done"]), rehearsed.reasons
    assert not list(Path(node.remedy_dir).rglob("*.json"))
    played = set_off(node, zoo, "for-nova-manage")
    assert (played.exit_code, played.outcomes) == (0, ["done"]), played.reasons
    (record,) = Path(node.remedy_dir).rglob("*.json")
    assert (record.stem, stat.S_IMODE(record.stat().st_mode)) == (uuid, 0o600)
    assert set_off(node, zoo, "for-nova-manage").outcomes == ["already"]
    assert shown(zoo, "for-nova-manage")["definition"] == before["definition"]
    assert elements_over_restarts(zoo, uuid) == OFF_EVERYWHERE


# Instances, by a resize


def test_stopped_instance_is_resized_once_and_confirmed_and_keeps_it(node: ControlNode, zoo: Zoo) -> None:
    uuid = zoo.servers["for-resize"]
    before = shown(zoo, "for-resize")
    rehearsed = resize(node, zoo, "for-resize", options=("--check",))
    assert (rehearsed.exit_code, rehearsed.outcomes) == (0, ["done"]), rehearsed.reasons
    assert shown(zoo, "for-resize") == before
    played = resize(node, zoo, "for-resize")
    assert (played.exit_code, played.outcomes) == (0, ["done"]), played.reasons
    after = zoo.settled(uuid, "SHUTOFF")
    assert (after["flavor"]["original_name"], after["flavor"]["extra_specs"]) == (f"{PREFIX}off", {"hw:pmu": "false"})
    assert resize(node, zoo, "for-resize").outcomes == ["already"]
    assert elements_over_restarts(zoo, uuid) == OFF_EVERYWHERE


def test_resize_that_nova_accepts_and_cannot_place_is_told_with_its_words(node: ControlNode, zoo: Zoo) -> None:
    played = resize(node, zoo, "for-no-host", flavor="huge-off", other_size_accepted=True)
    assert (played.exit_code, played.outcomes) == (2, ["failed"])
    assert played.reasons[0].startswith("Nova accepted the resize, and it failed later: No valid host was found"), played.reasons
    assert zoo.settled(zoo.servers["for-no-host"], "SHUTOFF")["flavor"]["original_name"] == f"{PREFIX}silent"


def test_resize_that_waits_for_its_owner_is_not_confirmed_for_him(node: ControlNode, zoo: Zoo) -> None:
    played = resize(node, zoo, "unconfirmed")
    assert (played.exit_code, played.outcomes) == (2, ["refused"])
    assert "has not ended" in played.reasons[0]
    assert zoo.server(zoo.servers["unconfirmed"])["status"] == "VERIFY_RESIZE"


def test_instances_that_are_locked_or_ask_for_the_pmu_are_not_resized(node: ControlNode, zoo: Zoo) -> None:
    names = ("locked", "opted-out-by-image")
    before = [shown(zoo, name) for name in names]
    played = resize(node, zoo, *names)
    assert (played.exit_code, played.outcomes) == (2, ["refused"] * 2), played.reasons
    assert [shown(zoo, name) for name in names] == before
