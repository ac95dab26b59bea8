"""playbooks/nova_canary.yml and its module against a loopback API, by the real SDK; tests/openstack has a real Nova."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exitguard.model.cloud import Canary

sys.path.append(str(Path(__file__).parent))

from cloud_modules import load_module, play, run_module, steps_played
from compute_api import CANARY, HOST, NOT_ALLOWED, SAYS_OFF, SILENT, Answer, ComputeApi, compute_api, refusal

pytest.importorskip("openstack", reason="openstacksdk cannot be loaded")

RECORDED = Path(__file__).parents[1] / "facts/domain_xml/nova-26.2.2-flavor-silent/input"
FIRST = CANARY.format(1)
GONE = "; the canary was removed"
MARK = {"exitguard": "canary", "exitguard_canary_host": HOST, "exitguard_canary_run": "of-before"}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ComputeApi]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "none.yaml"))
    with compute_api() as cloud:
        for name, text in cloud.environment.items():
            monkeypatch.setenv(name, text)
        yield cloud


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_module("exitguard_nova_canary")


def xml_of(uuid: str, pmu: str = "") -> str:
    """The XML of a real Nova 26.2.2 for a silent flavor and image, with another uuid and, where asked for, an element."""
    text = RECORDED.read_text()
    begin, end = text.index("<uuid>") + 6, text.index("</uuid>")
    text = text[:begin] + uuid + text[end:]
    return text.replace("<features>", f"<features>{pmu}") if pmu else text


class Run:
    """The parts of a run for one host, one after another, as the role calls them."""

    def __init__(self, module: ModuleType, capsys: pytest.CaptureFixture[str], record_dir: Path) -> None:
        self.module = module
        self.capsys = capsys
        self.record_dir = record_dir

    def part(self, state: str, *, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {"state": state, "host": HOST, "run": "this", "limit_seconds": 30, "record_dir": str(self.record_dir), **options}
        return run_module(self.module, self.capsys, check=check, **given)

    def begun(self, *, check: bool = False, **options: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.part("begun", check=check, flavor="tiny", image="empty", **options)["canary"]
        return result

    def refused(self, **options: Any) -> str:
        """Why a host was refused, and nothing made there."""
        step = self.part("begun", **{"flavor": "tiny", "image": "empty", **options})["canary"]["step"]
        assert step["outcome"] == "refused"
        return str(step["reason"])

    def ended(self, **options: Any) -> tuple[str, str]:
        self.end = self.part("ended", **options)["canary"]
        return self.end["step"]["outcome"], self.end["step"]["reason"]

    @property
    def records(self) -> list[Path]:
        return [path for path in self.record_dir.rglob("*") if path.is_file()]


@pytest.fixture
def run(module: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(sys.modules["ansible.module_utils.exitguard_canary_instance"], "_POLL_SECONDS", 0.001)
    return Run(module, capsys, tmp_path / "nova")


# What is made


def test_canary_is_made_of_silent_things_on_the_host_with_the_mark_and_without_a_network(api: ComputeApi, run: Run) -> None:
    begun = run.begun()
    assert begun["uuid"] == FIRST
    assert api.bodies == [
        {
            "server": {
                "name": f"exitguard-canary-{HOST}",
                "metadata": {**MARK, "exitguard_canary_run": "this"},
                "flavorRef": "42",
                "imageRef": SILENT,
                "networks": "none",
                "host": HOST,
            }
        }
    ]


def test_nova_before_2_74_is_asked_by_zone_and_host(api: ComputeApi, run: Run) -> None:
    api.max_microversion = "2.73"
    assert run.begun()["uuid"] == FIRST
    assert (api.bodies[0]["server"]["availability_zone"], "host" in api.bodies[0]["server"]) == (f"nova:{HOST}", False)


def test_flavor_image_and_network_may_be_given_by_id(api: ComputeApi, run: Run) -> None:
    network = "33333333-0000-4000-8000-000000000001"
    assert run.part("begun", flavor="42", image=SILENT, network=network)["canary"]["uuid"] == FIRST
    server = api.bodies[0]["server"]
    assert (server["flavorRef"], server["imageRef"], server["networks"]) == ("42", SILENT, [{"uuid": network}])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"flavor": "tiny-off"}, "flavor 'tiny-off' says hw:pmu='false': expected one that says nothing"),
        ({"image": "empty-off"}, "image 'empty-off' says hw_pmu='false': expected one that says nothing"),
        ({"image": SAYS_OFF}, f"image '{SAYS_OFF}' says hw_pmu='false'"),
        ({"flavor": "huge"}, "flavor 'huge' was not found"),
        ({"flavor": ""}, "flavor '' was not found"),
        ({"image": "nothing"}, "image 'nothing' was not found"),
        ({"image": ""}, "image '' was not found"),
        ({"image": 'a" or "b'}, "was not found"),
        ({"network": "public"}, "expected the id of a network, found 'public'"),
        ({"host": "nowhere"}, "expected one nova-compute on a host of this name, found 0"),
        ({"host": "../../etc"}, "expected the name of a compute host, found '../../etc'"),
    ],
)
def test_what_would_prove_nothing_is_refused_and_nothing_is_made(api: ComputeApi, run: Run, options: dict[str, str], reason: str) -> None:
    assert reason in run.refused(**options)
    assert api.bodies == []


def test_name_that_two_images_have_is_refused(api: ComputeApi, run: Run) -> None:
    api.images["another"] = {**api.images[SILENT], "id": "another"}
    assert run.refused() == "2 images are called 'empty': expected the id of one"


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ({"state": "down"}, "its nova-compute is down"),
        ({"status": "disabled", "disabled_reason": "fan"}, "its nova-compute is disabled (fan)"),
    ],
)
def test_host_that_would_not_start_it_is_refused(api: ComputeApi, run: Run, service: dict[str, str], reason: str) -> None:
    api.services[0].update(service)
    assert run.refused().startswith(reason)
    assert api.bodies == []


@pytest.mark.parametrize(
    ("status", "words"), [(403, NOT_ALLOWED.format("compute:servers:create:requested_destination")), (400, "<b>no</b>")]
)
def test_what_nova_refuses_at_once_is_told_in_its_words(api: ComputeApi, run: Run, status: int, words: str) -> None:
    api.instead["POST", "/v2.1/servers"] = refusal(status, words)
    assert words in run.refused()


# What goes wrong after 202


def test_canary_that_fails_later_is_told_by_its_fault_and_removed(api: ComputeApi, run: Run) -> None:
    fault = {"code": 500, "message": "No valid host was found.\nThere are not enough hosts available.", "created": "2026-11-23T00:00:00Z"}
    api.becomes = [{"status": "BUILD"}, {"status": "ERROR", "fault": fault}]
    begun = run.begun()
    assert "uuid" not in begun
    reason = "Nova accepted it, and then it failed: No valid host was found. There are not enough hosts available."
    assert run.ended(begun=begun) == ("failed", reason + GONE)
    assert (api.servers, run.records) == ({}, [])


def test_canary_that_never_comes_up_is_told_by_its_actions_and_removed(api: ComputeApi, run: Run) -> None:
    api.becomes = [{"status": "BUILD", "OS-EXT-STS:task_state": "spawning"}]
    of_server = f"/v2.1/servers/{FIRST}/os-instance-actions"
    action = {"action": "create", "request_id": "req-1", "start_time": "2026-11-23T00:00:00", "message": None}
    event = {"event": "compute__do_build_and_run_instance", "result": "Error", "details": "image is broken"}
    api.instead["GET", of_server] = Answer({"instanceActions": [action]})
    api.instead["GET", f"{of_server}/req-1"] = Answer({"instanceAction": {**action, "events": [event]}})
    begun = run.begun(limit_seconds=0)
    outcome, reason = run.ended(begun=begun)
    assert outcome == "failed"
    assert reason == (
        "it is BUILD (spawning) after the time that it has; the last action is create (compute__do_build_and_run_instance: image is broken)"
        + GONE
    )
    assert api.servers == {}


def test_canary_whose_making_was_never_answered_is_found_by_its_mark_and_removed(api: ComputeApi, run: Run) -> None:
    make = api.changed

    def lost(verb: str, path: str, *rest: Any) -> Answer:
        answer = make(verb, path, *rest)
        return Answer(b"<html>", 502) if (verb, path) == ("POST", "/v2.1/servers") else answer

    api.changed = lost  # type: ignore[method-assign]
    begun = run.begun()
    assert list(api.servers) == [FIRST]
    outcome, reason = run.ended(begun=begun)
    assert (outcome, api.servers) == ("failed", {})
    assert reason.startswith("POST /servers: 502")


def test_canary_of_a_run_that_broke_off_is_removed_all_the_same(api: ComputeApi, run: Run) -> None:
    run.begun()
    assert run.ended(problem="the module was killed") == ("failed", "the module was killed" + GONE)
    assert api.servers == {}


@pytest.mark.parametrize(
    ("future", "reason"),
    [
        ({"status": "ACTIVE", "OS-EXT-SRV-ATTR:host": "compute-b"}, "it was put on compute-b"),
        ({"status": "ACTIVE", "flavor": {"extra_specs": {"hw:pmu": "true"}}}, "its flavor or image has been changed just now"),
        ({"status": "ACTIVE", "image": {"id": SILENT, "properties": {"hw_pmu": "true"}}}, "its flavor or image has been changed just now"),
        ({"status": "ACTIVE", "flavor": {}}, "the extra specs that it was made with are not shown"),
    ],
)
def test_canary_that_is_not_what_was_asked_for_proves_nothing(api: ComputeApi, run: Run, future: dict[str, Any], reason: str) -> None:
    api.becomes = [future]
    outcome, told = run.ended(begun=run.begun())
    assert (outcome, api.servers, run.records) == ("failed", {}, [])
    assert told.startswith(reason)


# What it shows


@pytest.mark.parametrize(
    ("pmu", "element", "words"),
    [
        ("", "absent", "wrote no <pmu> for a silent flavor and image: it leaves the PMU to QEMU here"),
        ("<pmu state='off'/>", "off", "wrote <pmu state='off'/> for a silent flavor and image: it defaults to PMU off here"),
        ("<pmu state='on'/>", "on", "wrote <pmu state='on'/> for a silent flavor and image: it defaults to PMU on here"),
    ],
)
def test_what_its_xml_shows_is_noted_for_the_audit_and_nobody_else(api: ComputeApi, run: Run, pmu: str, element: str, words: str) -> None:
    begun = run.begun()
    assert run.ended(begun=begun, domain_xml=xml_of(FIRST, pmu)) == ("done", f"Nova 26.2.2 {words}{GONE}")
    (path,) = run.records
    assert path == run.record_dir / begun["cloud"] / "canaries" / f"{HOST}.json"
    canary = Canary.model_validate_json(path.read_text())
    assert (canary.cloud, canary.host, canary.version, canary.element) == (begun["cloud"], HOST, "26.2.2", element)
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert api.servers == {}


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (xml_of(CANARY.format(9)), f"expected the XML of {FIRST}, found that of {CANARY.format(9)}"),
        ("<domain>", "its XML is not one"),
        ("<!DOCTYPE d [<!ENTITY e 'x'>]>" + xml_of(FIRST), "its XML is not one"),
        (f"<domain><uuid>{FIRST}</uuid></domain>", "its XML does not name the package of Nova"),
        # What a tenant may write into its name is text, and no element of Nova's.
        (xml_of(FIRST).replace("nova:package", "nova:packages"), "its XML does not name the package of Nova"),
        ("", "its XML could not be read on the compute host: virsh: not found"),
    ],
)
def test_xml_that_is_not_the_canary_s_notes_nothing(api: ComputeApi, run: Run, xml: str, reason: str) -> None:
    outcome, told = run.ended(begun=run.begun(), domain_xml=xml, problem="virsh: not found")
    assert (outcome, run.records, api.servers) == ("failed", [], {})
    assert told.startswith(reason)
    assert told.endswith(GONE)


def test_record_that_cannot_be_written_is_told_with_what_was_seen(api: ComputeApi, run: Run) -> None:
    run.record_dir.write_text("a file where a directory is to be")
    outcome, reason = run.ended(begun=run.begun(), domain_xml=xml_of(FIRST))
    assert (outcome, api.servers) == ("failed", {})
    assert "it leaves the PMU to QEMU here; but " in reason
    assert "cannot be written: Not a directory" in reason


# What is left behind


def test_canary_of_an_earlier_run_on_the_host_is_removed_first_and_nothing_else(api: ComputeApi, run: Run) -> None:
    stale = api.server(90, name=f"exitguard-canary-{HOST}", metadata=MARK)["id"]
    kept = [
        api.server(91, name=f"exitguard-canary-{HOST}")["id"],
        api.server(92, name="web-1", metadata=MARK)["id"],
        api.server(93, name="exitguard-canary-b", metadata={**MARK, "exitguard_canary_host": "compute-b"})["id"],
        api.server(94, name="my-exitguard-canary-", metadata=MARK)["id"],
    ]
    begun = run.begun()
    assert list(api.servers) == [*kept, begun["uuid"]]
    assert [path for verb, path in api.log if verb == "DELETE"] == [f"/v2.1/servers/{stale}"]


def test_check_mode_makes_and_removes_nothing(api: ComputeApi, run: Run) -> None:
    api.server(90, name=f"exitguard-canary-{HOST}", metadata=MARK)
    begun = run.begun(check=True)
    assert begun["step"]["outcome"] == "done"
    assert begun["step"]["reason"] == "a canary would be made and removed, after 1 that an earlier run left"
    assert run.ended(begun=begun, check=True) == ("done", begun["step"]["reason"])
    assert {verb for verb, path in api.log if "/identity/" not in path} == {"GET"}


def test_earlier_canary_that_does_not_go_keeps_the_next_from_being_made(api: ComputeApi, run: Run) -> None:
    api.server(90, name=f"exitguard-canary-{HOST}", metadata=MARK)
    api.deleted_becomes = {"status": "ERROR", "OS-EXT-STS:task_state": "deleting", "fault": {"message": "the disk is busy"}}
    begun = run.begun(limit_seconds=0)
    assert begun["step"]["reason"].startswith("no canary was made, since one of an earlier run is still there: ")
    assert begun["step"]["reason"].endswith("is still ERROR (deleting); the disk is busy")
    assert run.ended(begun=begun)[0] == "failed"
    assert (run.end["left"], api.bodies) == (True, [])


def test_canary_that_cannot_be_removed_fails_and_says_how_to_find_it(api: ComputeApi, run: Run) -> None:
    begun = run.begun()
    api.instead["DELETE", f"/v2.1/servers/{FIRST}"] = refusal(500, "Unexpected API Error.")
    outcome, reason = run.ended(begun=begun, domain_xml=xml_of(FIRST))
    assert outcome == "failed"
    assert reason.startswith("Nova 26.2.2 wrote no <pmu>")
    assert "the canary could NOT be removed: " in reason
    assert reason.endswith("openstack server list --name exitguard-canary-")
    assert run.end["left"] is True
    assert len(run.records) == 1


def test_nova_that_keeps_deleted_instances_is_asked_not_to(api: ComputeApi, run: Run) -> None:
    begun = run.begun()
    api.deleted_becomes = {"status": "SOFT_DELETED"}
    assert run.ended(begun=begun, domain_xml=xml_of(FIRST))[0] == "done"
    assert (api.bodies[1:], api.servers) == ([{"forceDelete": None}], {})


def test_cloud_that_is_gone_in_the_end_says_that_a_canary_may_be_left(api: ComputeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = run.begun()
    monkeypatch.setenv("OS_AUTH_URL", "http://127.0.0.1:9/v3")
    outcome, reason = run.ended(begun=begun, domain_xml=xml_of(FIRST))
    assert (outcome, run.end["left"], list(api.servers)) == ("failed", True, [FIRST])
    assert "the canary could NOT be removed: " in reason


# All of it


def test_hosts_after_a_canary_that_is_left_are_told_as_not_begun(run: Run) -> None:
    steps = [{"subject": "a", "outcome": "done", "reason": "", "undo": None}]
    result = run.part("told", hosts=["a", "b"], steps=steps)
    assert result["failed"] is True
    assert [step["outcome"] for step in result["exitguard"]["steps"]] == ["done", "refused"]


def virsh_that_prints(folder: Path, body: str) -> list[str]:
    """Stands for virsh on the compute host: its last word is the uuid."""
    program = folder / "virsh"
    program.write_text(f'#!/bin/sh\nfor uuid do :; done\necho "$@" > {folder}/virsh.words\n{body}\n')
    program.chmod(0o755)
    return [str(program)]


@pytest.mark.integration
def test_playbook_reads_the_xml_on_the_compute_host_read_only_and_ends_with_one_result(api: ComputeApi, tmp_path: Path) -> None:
    (tmp_path / "canary.xml").write_text(xml_of("THE-UUID"))
    settings = {
        "nova_canary_hosts": [HOST, "nowhere"],
        "nova_canary_flavor": "tiny",
        "nova_canary_image": "empty",
        "nova_canary_virsh": virsh_that_prints(tmp_path, f'sed "s/THE-UUID/$uuid/" {tmp_path}/canary.xml'),
        "nova_canary_record_dir": str(tmp_path / "nova"),
    }
    result = play("nova_canary", tmp_path, settings, {**api.environment, "OS_CLIENT_CONFIG_FILE": os.devnull}, "-v")
    assert result.returncode == 2, result.stdout + result.stderr
    done, refused = steps_played(result.stdout)
    assert (done["subject"], done["outcome"], done["undo"]) == (HOST, "done", None)
    assert (refused["subject"], refused["outcome"]) == ("nowhere", "refused")
    assert (tmp_path / "virsh.words").read_text().split() == [
        *("--readonly", "--connect", "qemu:///system", "dumpxml", "--domain"),
        FIRST,
    ]
    assert len(list(tmp_path.glob("nova/*/canaries/compute-a.json"))) == 1
    assert api.servers == {}


@pytest.mark.integration
def test_compute_host_that_cannot_be_reached_leaves_no_canary(api: ComputeApi, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    inventory.write_text("localhost ansible_connection=local\ncut-off ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=9\n")
    settings = {
        "nova_canary_hosts": [HOST],
        "nova_canary_flavor": "tiny",
        "nova_canary_image": "empty",
        "nova_canary_compute_hosts": {HOST: "cut-off"},
        "nova_canary_record_dir": str(tmp_path / "nova"),
    }
    environment = {**api.environment, "OS_CLIENT_CONFIG_FILE": os.devnull}
    result = play("nova_canary", tmp_path, settings, environment, "-v", "-i", str(inventory))
    assert result.returncode == 2, result.stdout + result.stderr
    (step,) = steps_played(result.stdout)
    assert step["outcome"] == "failed"
    assert step["reason"].startswith("its XML could not be read on the compute host: cut-off: ")
    assert step["reason"].endswith(GONE)
    assert api.servers == {}
