"""playbooks/nova_instance_resize.yml and its module against a loopback API, by the real SDK; tests/openstack has a real Nova."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest

sys.path.append(str(Path(__file__).parent))

from cloud_modules import load_module, play, run_module, steps_played
from compute_api import NOT_ALLOWED, SILENT, Answer, refusal
from resize_api import CONFIRMED, NEW, OLD, OLD_AGAIN, RESIZING, TO_CONFIRM, UUID, ResizeApi, copy_of, resize_api

pytest.importorskip("openstack", reason="openstacksdk cannot be loaded")

SERVER = f"/v2.1/servers/{UUID}"
WAY_OUT = f"`openstack server resize confirm {UUID}`, or `revert`, ends it"
BROKEN = {"status": "ERROR", "OS-EXT-STS:task_state": None, "fault": {"code": 500, "message": "no space\n left on <b>device</b>"}}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ResizeApi]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "none.yaml"))
    with resize_api() as cloud:
        for name, text in cloud.environment.items():
            monkeypatch.setenv(name, text)
        yield cloud


@pytest.fixture(scope="module")
def module() -> ModuleType:
    loaded = load_module("exitguard_nova_resize")
    vars(loaded)["_POLL_SECONDS"] = 0.01
    return loaded


class Resizing:
    """The module with its options, and what became of the one instance."""

    def __init__(self, module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
        self.module = module
        self.capsys = capsys

    def run(self, *, check: bool = False, **options: Any) -> dict[str, Any]:
        self.result = run_module(self.module, self.capsys, check=check, **{"uuids": [UUID], "flavor": "43", **options})
        return self.result

    def step(self, **options: Any) -> tuple[str, str]:
        (step,) = self.run(**options)["exitguard"]["steps"]
        assert step["subject"] == UUID
        return step["outcome"], step["reason"]


@pytest.fixture
def resizing(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> Resizing:
    return Resizing(module, capsys)


# Done, and not done twice


def test_stopped_instance_is_resized_and_confirmed_and_a_second_time_is_already(api: ResizeApi, resizing: Resizing) -> None:
    assert resizing.step() == ("done", "resized from 'tiny' to 'tiny-off', and confirmed")
    assert api.bodies == [{"resize": {"flavorRef": "43"}}, {"confirmResize": None}]
    assert (api.servers[UUID]["status"], api.servers[UUID]["flavor"]) == ("SHUTOFF", NEW)
    assert resizing.result["changed"] is True
    assert resizing.result["exitguard"]["steps"][0]["undo"] == {"element": "tiny"}
    assert resizing.result["diff"] == {"before": f"{UUID}: tiny\n", "after": f"{UUID}: 43\n"}
    assert resizing.step() == ("already", "its embedded flavor says hw:pmu=false already")
    assert (resizing.result["changed"], len(api.bodies)) == (False, 2)


def test_check_mode_says_what_would_be_done_and_asks_for_nothing(api: ResizeApi, resizing: Resizing) -> None:
    assert resizing.step(check=True) == ("done", "would be resized from 'tiny' to 'tiny-off'")
    assert resizing.result["changed"] is True
    assert api.bodies == []


def test_running_instance_is_resized_only_where_that_is_accepted(api: ResizeApi, resizing: Resizing) -> None:
    api.servers[UUID]["status"] = "ACTIVE"
    assert resizing.step() == ("refused", "it is ACTIVE: expected SHUTOFF, and nothing going on")
    assert api.bodies == []
    api.after["confirmResize"] = [{**CONFIRMED, "status": "ACTIVE"}]
    assert resizing.step(running_accepted=True)[0] == "done"


def test_resize_that_another_confirmed_first_is_done(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [RESIZING, CONFIRMED]
    assert resizing.step() == ("done", "resized from 'tiny' to 'tiny-off'; it was confirmed by another")
    assert api.asked_for == ["resize"]


def test_confirmation_that_another_was_quicker_with_is_done(api: ResizeApi, resizing: Resizing) -> None:
    api.answered["confirmResize"] = refusal(409, "Cannot 'confirmResize' instance while it is in vm_state stopped")
    api.after["resize"] = [RESIZING, TO_CONFIRM, CONFIRMED]
    assert resizing.step() == ("done", "resized from 'tiny' to 'tiny-off', and confirmed")


def test_api_that_does_not_answer_for_a_while_is_asked_again_until_the_resize_has_ended(api: ResizeApi, resizing: Resizing) -> None:
    out_of_order = Answer(b"<html>Bad Gateway</html>", 502)
    api.after["resize"] = [RESIZING, out_of_order, out_of_order, TO_CONFIRM]
    api.after["confirmResize"] = [out_of_order, CONFIRMED]
    assert resizing.step()[0] == "done"


def test_resize_that_was_answered_with_an_error_and_begun_all_the_same_is_seen_to_its_end(api: ResizeApi, resizing: Resizing) -> None:
    api.answered["resize"] = Answer(b"<html>Gateway Time-out</html>", 504)
    assert resizing.step()[0] == "done"
    assert api.asked_for == ["resize", "confirmResize"]


# Refused: nothing was asked for


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        ({"locked": True}, "Nova's lock is on it"),
        ({"locked": None}, "whether Nova's lock is on it was not shown"),
        ({"flavor": copy_of("tiny-on", hw_pmu="Yes")}, "its flavor or image asks for the PMU: it keeps it"),
        ({"image": {"id": SILENT, "properties": {"hw_pmu": "true"}}}, "its flavor or image asks for the PMU: it keeps it"),
        ({"flavor": {"original_name": "tiny"}}, "its embedded flavor was not shown"),
        ({"flavor": "tiny"}, "its embedded flavor was not shown"),
        ({"status": "ERROR"}, "it is ERROR: expected SHUTOFF, and nothing going on"),
        ({"OS-EXT-STS:task_state": "powering-on"}, "it is SHUTOFF (powering-on): expected SHUTOFF, and nothing going on"),
        ({"flavor": {**OLD, "ram": 128, "swap": 1}}, "the flavor has another ram, swap: say other_size_accepted"),
        ({"flavor": copy_of("tiny", hw_cpu_policy="dedicated")}, "the flavor has another hw:cpu_policy: say other_size_accepted"),
    ],
    ids=["locked", "lock-unknown", "flavor-asks", "image-asks", "no-specs", "no-flavor", "error", "busy", "sizes", "specs"],
)
def test_instance_is_refused_with_the_reason_and_nova_is_not_asked(
    api: ResizeApi, resizing: Resizing, instance: dict[str, Any], reason: str
) -> None:
    api.servers[UUID].update(instance)
    outcome, told = resizing.step()
    assert (outcome, told[: len(reason)]) == ("refused", reason)
    assert resizing.result["failed"] is True
    assert api.bodies == []


def test_instance_whose_image_asks_today_is_refused_where_its_stored_properties_are_not_shown(api: ResizeApi, resizing: Resizing) -> None:
    api.images[SILENT]["hw_pmu"] = "true"
    outcome, told = resizing.step()
    assert (outcome, told.split(",")[0]) == ("refused", "its image asks for the PMU")
    api.servers[UUID]["image"] = {"id": SILENT, "properties": {}}
    assert resizing.step()[0] == "done"


@pytest.mark.parametrize("status", ["VERIFY_RESIZE", "RESIZE", "REVERT_RESIZE"])
def test_resize_that_waits_for_its_owner_is_neither_confirmed_nor_called_done(api: ResizeApi, resizing: Resizing, status: str) -> None:
    api.servers[UUID].update({**TO_CONFIRM, "status": status})
    outcome, told = resizing.step()
    assert outcome == "refused"
    assert told.startswith(f"it is {status}: a resize of it has not ended.")
    assert f"`openstack server resize confirm {UUID}`" in told
    assert api.bodies == []


def test_other_size_is_taken_where_that_is_accepted(api: ResizeApi, resizing: Resizing) -> None:
    api.servers[UUID]["flavor"] = {**OLD, "ram": 128}
    assert resizing.step(other_size_accepted=True)[0] == "done"


@pytest.mark.parametrize(
    ("flavor", "reason"),
    [
        ("42", "flavor 'tiny' does not say hw:pmu=false: a resize to it would not switch the PMU off"),
        ("../os-services", "there is no flavor '../os-services'"),
        ("=1+1|<b>", "there is no flavor '=1+1|<b>'"),
    ],
)
def test_flavor_that_is_missing_or_does_not_say_off_is_refused(api: ResizeApi, resizing: Resizing, flavor: str, reason: str) -> None:
    assert resizing.step(flavor=flavor) == ("refused", reason)
    assert api.bodies == []


def test_instance_that_is_gone_is_changed_since_and_no_failure(api: ResizeApi, resizing: Resizing) -> None:
    del api.servers[UUID]
    assert resizing.step() == ("changed_since", "there is no such instance any more")
    assert "failed" not in resizing.result


@pytest.mark.parametrize("uuid", ["../os-services/svc-1", "x?all_tenants=1", "a/b", "%2e%2e"])
def test_hostile_uuid_leads_nowhere_else(api: ResizeApi, resizing: Resizing, uuid: str) -> None:
    (step,) = resizing.run(uuids=[uuid])["exitguard"]["steps"]
    assert (step["subject"], step["outcome"]) == (uuid, "changed_since")
    asked = {path for _, path in api.log if path.startswith("/v2.1/")} - {"/v2.1/"}
    assert asked == {"/v2.1/flavors/43", f"/v2.1/servers/{quote(uuid, safe='')}"}
    assert api.bodies == []


def test_second_instance_is_not_begun_after_a_refused_one_unless_the_budget_allows_it(api: ResizeApi, resizing: Resizing) -> None:
    other = UUID[:-1] + "2"
    api.servers[other] = {**api.servers[UUID], "id": other, "locked": True}
    steps = resizing.run(uuids=[other, UUID])["exitguard"]["steps"]
    assert [(step["outcome"], step["reason"]) for step in steps][1] == ("refused", "not begun, since others failed before it")
    steps = resizing.run(uuids=[other, UUID], failure_budget=1)["exitguard"]["steps"]
    assert [step["outcome"] for step in steps] == ["refused", "done"]


def test_other_cloud_than_the_named_one_is_refused(api: ResizeApi, resizing: Resizing) -> None:
    told = resizing.run(cloud_id="11111111-1111-4111-8111-111111111111")
    assert told["failed"] is True
    assert "Nothing was changed" in told["msg"]
    assert api.bodies == []


# Failed: what is said, and what Nova was asked for by then


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Flavor tiny-off has hw:pmu extra spec explicitly set to False, conflicting with image"),
        (403, NOT_ALLOWED.format("os_compute_api:servers:resize")),
        (404, "Instance could not be found."),
        (409, "Instance is locked"),
    ],
)
def test_resize_that_nova_refuses_at_once_is_told_with_its_words(api: ResizeApi, resizing: Resizing, status: int, words: str) -> None:
    api.answered["resize"] = refusal(status, words)
    outcome, told = resizing.step()
    assert outcome == "failed"
    assert told == f"Nova refused the resize: POST /servers/{UUID}/action: {status}: {words}. Nothing was changed"
    assert api.servers[UUID]["status"] == "SHUTOFF"


def test_resize_that_fails_after_its_202_is_told_with_the_words_of_its_last_event(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [RESIZING, OLD_AGAIN]
    api.fails_with("No valid host was found. ")
    assert resizing.step() == (
        "failed",
        "Nova accepted the resize, and it failed later: No valid host was found. It is SHUTOFF, and has its old flavor",
    )
    assert api.asked_for == ["resize"]


@pytest.mark.parametrize("actions", [None, [], [{"action": "create"}], [{"action": "resize"}], ["resize"]])
def test_resize_that_fails_without_a_word_is_failed_all_the_same(api: ResizeApi, resizing: Resizing, actions: Any) -> None:
    api.after["resize"] = [OLD_AGAIN]
    api.actions = actions
    outcome, told = resizing.step()
    assert (outcome, "Nova says no more" in told) == ("failed", True)


def test_instance_in_error_after_its_202_is_told_with_its_fault(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [RESIZING, BROKEN]
    outcome, told = resizing.step()
    assert outcome == "failed"
    assert told.startswith("Nova accepted the resize, and it is in ERROR: no space left on <b>device</b>. `openstack server show")


def test_instance_in_error_after_its_confirmation_is_no_success(api: ResizeApi, resizing: Resizing) -> None:
    api.after["confirmResize"] = [BROKEN]
    outcome, told = resizing.step()
    assert outcome == "failed"
    assert told.startswith("it was resized and to be confirmed, and it is in ERROR: no space left")


def test_resize_that_does_not_end_in_time_is_told_with_the_way_out(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [RESIZING]
    assert resizing.step(resize_timeout_seconds=0) == (
        "failed",
        f"the resize did not end in time: it is RESIZE (resize_prep). {WAY_OUT}",
    )


def test_resize_that_nobody_can_look_at_any_more_is_told_with_the_way_out(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [refusal(403, NOT_ALLOWED.format("os_compute_api:servers:show")) for _ in range(1000)]
    outcome, told = resizing.step(resize_timeout_seconds=0)
    assert outcome == "failed"
    assert told.startswith("the resize did not end in time: it cannot be looked at (GET")
    assert told.endswith(WAY_OUT)


def test_confirmation_that_nova_refuses_is_told_as_unconfirmed_with_the_way_out(api: ResizeApi, resizing: Resizing) -> None:
    api.answered["confirmResize"] = refusal(403, NOT_ALLOWED.format("os_compute_api:servers:confirm_resize"))
    outcome, told = resizing.step()
    assert outcome == "failed"
    assert told.startswith("it is resized, and Nova did not confirm it: POST")
    assert told.endswith(WAY_OUT)


def test_confirmation_that_does_not_end_in_time_is_told_with_the_way_out(api: ResizeApi, resizing: Resizing) -> None:
    api.after["confirmResize"] = [TO_CONFIRM]
    assert resizing.step(resize_timeout_seconds=1) == (
        "failed",
        f"it is resized, and not confirmed in time: it is VERIFY_RESIZE. {WAY_OUT}",
    )


def test_resize_that_somebody_reverts_meanwhile_is_no_success(api: ResizeApi, resizing: Resizing) -> None:
    api.after["confirmResize"] = [OLD_AGAIN]
    assert resizing.step() == ("failed", "it was resized, and somebody else has taken it back: it is SHUTOFF with its old flavor")


def test_instance_that_is_deleted_meanwhile_is_no_success(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [RESIZING, api.is_gone()]
    assert resizing.step() == ("failed", "it was deleted while it was resized")


def test_flavor_that_was_changed_under_the_resize_is_taken_back(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [RESIZING, {**TO_CONFIRM, "flavor": copy_of("tiny-off", hw_pmu="true")}]
    outcome, told = resizing.step()
    assert (outcome, told) == (
        "failed",
        "after the resize its flavor does not say hw:pmu=false: it was taken back, and is SHUTOFF with its old flavor",
    )
    assert api.asked_for == ["resize", "revertResize"]
    assert api.servers[UUID]["flavor"] == OLD


def test_way_back_that_nova_refuses_is_told_with_the_way_out(api: ResizeApi, resizing: Resizing) -> None:
    api.after["resize"] = [{**TO_CONFIRM, "flavor": OLD}]
    api.answered["revertResize"] = refusal(409, "Instance is locked")
    outcome, told = resizing.step()
    assert outcome == "failed"
    assert "could not be taken back: POST" in told
    assert told.endswith(WAY_OUT)


def test_resize_whose_answer_never_came_and_that_is_not_seen_to_begin_is_in_doubt(api: ResizeApi, resizing: Resizing) -> None:
    api.answered["resize"] = Answer(b"", 503)
    api.after["resize"] = [OLD_AGAIN]
    outcome, told = resizing.step()
    assert outcome == "failed"
    assert told.startswith("the resize was asked for, and not answered as expected (POST")
    assert told.endswith("It is SHUTOFF with its old flavor now: look at it again before anything else")


# The playbook


def test_playbook_tells_its_steps_first_in_check_mode_and_then_for_good(api: ResizeApi, tmp_path: Path) -> None:
    settings = {"nova_instance_resize_uuids": [UUID], "nova_instance_resize_flavor": "43", "nova_instance_resize_python": sys.executable}
    environment = {**api.environment, "OS_CLIENT_CONFIG_FILE": str(tmp_path / "none.yaml")}
    rehearsed = play("nova_instance_resize", tmp_path, settings, environment, "-v", "--check", "--diff")
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
    assert steps_played(rehearsed.stdout)[0]["reason"] == "would be resized from 'tiny' to 'tiny-off'"
    assert (f"-{UUID}: tiny" in rehearsed.stdout, f"+{UUID}: 43" in rehearsed.stdout, api.bodies) == (True, True, [])
    played = play("nova_instance_resize", tmp_path, settings, environment, "-v")
    assert played.returncode == 0, played.stdout + played.stderr
    assert steps_played(played.stdout)[0]["reason"] == "resized from 'tiny' to 'tiny-off', and confirmed"


def test_playbook_fails_where_an_instance_is_refused(api: ResizeApi, tmp_path: Path) -> None:
    api.servers[UUID]["locked"] = True
    settings = {"nova_instance_resize_uuids": [UUID], "nova_instance_resize_flavor": "43"}
    environment = {**api.environment, "OS_CLIENT_CONFIG_FILE": str(tmp_path / "none.yaml")}
    played = play("nova_instance_resize", tmp_path, settings, environment, "-v")
    assert played.returncode == 2
    assert steps_played(played.stdout) == [{"outcome": "refused", "reason": "Nova's lock is on it", "subject": UUID, "undo": None}]
