"""playbooks/nova_maintenance.yml and its module against a loopback API, by the real SDK; tests/openstack has a real Nova."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from cloud_modules import load_module, play, run_module, steps_played
from compute_api import HOST, NOT_ALLOWED, Answer, ComputeApi, compute_api, refusal

pytest.importorskip("openstack", reason="openstacksdk cannot be loaded")

OURS = "exitguard: CHG-1 maintenance"
SERVICE = "/v2.1/os-services/svc-1"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ComputeApi]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "none.yaml"))
    with compute_api() as cloud:
        for name, text in cloud.environment.items():
            monkeypatch.setenv(name, text)
        yield cloud


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_module("exitguard_nova_service")


class Maintenance:
    """The module with its options, and what became of the one host."""

    def __init__(self, module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
        self.module = module
        self.capsys = capsys

    def run(self, state: str = "disabled", *, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {"hosts": [HOST], "id": "CHG-1", "state": state, **options}
        self.result = run_module(self.module, self.capsys, check=check, **given)
        return self.result

    def step(self, state: str = "disabled", **options: Any) -> tuple[str, str]:
        (step,) = self.run(state, **options)["exitguard"]["steps"]
        return step["outcome"], step["reason"]


@pytest.fixture
def maintenance(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> Maintenance:
    return Maintenance(module, capsys)


def test_service_is_disabled_under_the_mark_and_enabled_again_and_each_a_second_time_is_already(
    api: ComputeApi, maintenance: Maintenance
) -> None:
    service = api.services[0]
    assert maintenance.step() == ("done", "disabled, and read back; no instance is there")
    assert (service["status"], service["disabled_reason"]) == ("disabled", OURS)
    assert maintenance.result["diff"] == {"before": f"{HOST}: enabled\n", "after": f"{HOST}: {OURS}\n"}
    assert maintenance.result["exitguard"]["steps"][0]["undo"] == {"element": "enabled"}
    assert maintenance.step() == ("already", f"already disabled: {OURS}; no instance is there")
    assert maintenance.step("enabled") == ("done", "enabled, and read back")
    assert (service["status"], service["disabled_reason"]) == ("enabled", None)
    assert maintenance.step("enabled") == ("already", "it is enabled")
    assert [body["status"] for body in api.bodies] == ["disabled", "enabled"]


@pytest.mark.parametrize("state", ["disabled", "enabled"])
def test_check_mode_says_what_would_be_done_and_does_nothing(api: ComputeApi, maintenance: Maintenance, state: str) -> None:
    if state == "enabled":
        api.services[0].update(status="disabled", disabled_reason=OURS)
    outcome, reason = maintenance.step(state, check=True)
    assert (outcome, reason.split(";")[0]) == ("done", f"would be {state}")
    assert maintenance.result["changed"] is True
    assert api.bodies == []


@pytest.mark.parametrize(
    ("reason", "disabled", "enabled"),
    [
        ("broken fan", "already disabled by another: broken fan", "disabled by another, and left so: broken fan"),
        (None, "already disabled by another: no reason given", "disabled by another, and left so: no reason given"),
        (
            "exitguard: CHG-2 kernel",
            "already disabled by exitguard for CHG-2: exitguard: CHG-2 kernel",
            "disabled by exitguard for CHG-2, not for CHG-1: exitguard: CHG-2 kernel",
        ),
        ("my exitguard: CHG-1", "already disabled by another: my", "disabled by another, and left so: my exitguard: CHG-1"),
    ],
)
def test_service_that_another_disabled_is_left_as_it_is(
    api: ComputeApi, maintenance: Maintenance, reason: str | None, disabled: str, enabled: str
) -> None:
    api.services[0].update(status="disabled", disabled_reason=reason)
    outcome, told = maintenance.step()
    assert outcome == "already"
    assert told.startswith(disabled)
    assert maintenance.step("enabled") == ("refused", enabled)
    assert maintenance.result["failed"] is True
    assert api.bodies == []


def test_without_an_id_whatever_carries_the_mark_is_enabled(api: ComputeApi, maintenance: Maintenance) -> None:
    api.services[0].update(status="disabled", disabled_reason="exitguard: CHG-2 kernel")
    assert maintenance.step("enabled", id="")[0] == "done"


def test_guests_are_counted_and_left_where_they_are(api: ComputeApi, maintenance: Maintenance) -> None:
    api.server(1)
    assert maintenance.step()[1].endswith("; 1 instance is there: drain this host, which nobody does for you")
    api.server(2)
    assert maintenance.step()[1].endswith("; 2 instances are there: drain this host, which nobody does for you")
    assert not [verb for verb, path in api.log if verb != "GET" and "/servers" in path]


def test_role_that_may_not_count_guests_still_disables(api: ComputeApi, maintenance: Maintenance) -> None:
    why = NOT_ALLOWED.format("os_compute_api:servers:detail:get_all_tenants")
    api.instead["GET", "/v2.1/servers"] = refusal(403, why)
    outcome, reason = maintenance.step()
    assert outcome == "done"
    assert "how many instances are there is not known" in reason
    assert why in reason


def test_service_that_is_down_is_said(api: ComputeApi, maintenance: Maintenance) -> None:
    api.services[0]["state"] = "down"
    assert maintenance.step() == ("done", "disabled, and read back; its nova-compute is down; no instance is there")


@pytest.mark.parametrize("verb", ["GET", "PUT"])
def test_role_that_may_not_is_refused_in_nova_s_words(api: ComputeApi, maintenance: Maintenance, verb: str) -> None:
    words = NOT_ALLOWED.format("os_compute_api:os-services:update")
    api.instead[verb, "/v2.1/os-services" if verb == "GET" else SERVICE] = refusal(403, words)
    outcome, reason = maintenance.step()
    assert outcome == "refused"
    assert words in reason


@pytest.mark.parametrize("count", [0, 2])
def test_host_that_is_not_exactly_one_is_refused(api: ComputeApi, maintenance: Maintenance, count: int) -> None:
    api.services *= count
    outcome, reason = maintenance.step()
    assert outcome == "refused"
    assert reason.startswith(f"expected one nova-compute on a host of this name, found {count}")


@pytest.mark.parametrize("host", ["../x", "", "a b", "-x", "a/b", "<b>", "x" * 300])
def test_name_that_is_no_host_s_is_never_asked_for(api: ComputeApi, maintenance: Maintenance, host: str) -> None:
    outcome, reason = maintenance.step(hosts=[host])
    assert outcome == "refused"
    assert reason.startswith("expected the name of a compute host, found ")
    assert api.asked("/v2.1/os-services") == []


def test_change_that_does_not_stay_fails(api: ComputeApi, maintenance: Maintenance) -> None:
    api.instead["PUT", SERVICE] = Answer({"service": {}})
    assert maintenance.step() == ("failed", "Read back it is not so: enabled, no reason given")


def test_change_whose_answer_is_lost_is_looked_at_before_anything_is_said(
    api: ComputeApi, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = api.changed

    def lost(verb: str, *rest: Any) -> Answer:
        answer = change(verb, *rest)
        return Answer(b"not json at all") if verb == "PUT" else answer

    monkeypatch.setattr(api, "changed", lost)
    assert maintenance.step() == ("done", "disabled, and read back; no instance is there")


def test_server_error_is_told_and_another_host_has_its_turn(api: ComputeApi, maintenance: Maintenance) -> None:
    api.services.append({**api.services[0], "id": "svc-2", "host": "compute-b"})
    api.instead["PUT", SERVICE] = refusal(500, "Unexpected API Error.")
    first, second = maintenance.run(hosts=[HOST, "compute-b"])["exitguard"]["steps"]
    assert (first["outcome"], second["outcome"]) == ("failed", "done")
    assert "500: Unexpected API Error." in first["reason"]
    assert maintenance.result["failed"] is True


def test_nova_that_is_too_old_is_refused(api: ComputeApi, maintenance: Maintenance) -> None:
    api.max_microversion = "2.52"
    assert maintenance.step() == ("refused", "this Nova speaks microversion 2.52: expected at least 2.53")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": ""}, "id: expected one word"),
        ({"id": "two words"}, "id: expected one word"),
        ({"why": "two\nlines"}, "why: expected one line"),
        ({"why": "x" * 250}, "why: expected one line"),
        ({"hosts": ["a", "b", "a"]}, "hosts: a is named twice"),
        ({"cloud_id": "another"}, "Nothing was changed"),
    ],
)
def test_options_without_sense_are_refused_before_anything_is_changed(
    api: ComputeApi, maintenance: Maintenance, options: dict[str, Any], message: str
) -> None:
    assert message in maintenance.run(**options)["msg"]
    assert maintenance.result["failed"] is True
    assert api.bodies == []


def test_cloud_that_is_not_there_is_named(api: ComputeApi, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.services
    monkeypatch.setenv("OS_AUTH_URL", "http://127.0.0.1:9/v3")
    assert "Expected an entry of clouds.yaml, or OS_ variables" in maintenance.run()["msg"]


@pytest.mark.integration
def test_playbook_disables_and_fails_where_a_host_is_refused(api: ComputeApi, tmp_path: Path) -> None:
    api.server(1)
    settings = {"nova_maintenance_hosts": [HOST, "nowhere"], "nova_maintenance_id": "CHG-1"}
    result = play("nova_maintenance", tmp_path, settings, api.environment, "-v", "--diff")
    assert result.returncode == 2, result.stdout + result.stderr
    assert [step["outcome"] for step in steps_played(result.stdout)] == ["done", "refused"]
    assert api.services[0]["disabled_reason"] == OURS
