"""playbooks/nova_instance_pmu_off.yml and its module against a loopback API, by the real SDK, with a nova-manage that is a script.

What a real Nova makes of what is set is tests/openstack's to see.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exitguard.facts.openstack.records import read_remedied
from exitguard.model.cloud import RemediedInstance, Server

sys.path.append(str(Path(__file__).parent))

from cloud_modules import load_module, play, run_module, steps_played
from compute_api import SAYS_OFF, SILENT, refusal
from fake_openstack import Answer
from property_api import LAUNCHED_AT, UUID, PropertyApi, property_api

pytest.importorskip("openstack", reason="openstacksdk cannot be loaded")

ONE, TWO, GONE = (UUID.format(number) for number in (1, 2, 9))
DONE = ("done", "set: in force when its owner starts it")
HOSTILE = [
    "",
    "web-1",
    "../../etc/passwd",
    "; reboot",
    "--help",
    ONE.upper().replace("3", "A"),
    f"{ONE}/..",
    f"{ONE}\n",
    "x" * 4000,
    "\x00",
]


class NovaManage:
    """A script in its place: it notes its arguments and does what a test says."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "nova-manage"
        self.log = folder / "asked"
        self.does("exit 0")

    def does(self, shell: str) -> None:
        words = f"""for word; do printf '%s\\0' "$word"; done >> {self.log}; printf '\\n' >> {self.log}"""
        self.path.write_text(f"#!/bin/sh\n{words}\n{shell}\n")
        self.path.chmod(0o700)

    @property
    def asked(self) -> list[list[str]]:
        return [line.split("\0")[:-1] for line in self.log.read_text().splitlines()] if self.log.exists() else []


def setting(uuid: str) -> list[str]:
    return ["image_property", "set", uuid, "--property", "hw_pmu=false"]


@pytest.fixture
def manage(tmp_path: Path) -> NovaManage:
    return NovaManage(tmp_path)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PropertyApi]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "none.yaml"))
    with property_api() as cloud:
        for name, text in cloud.environment.items():
            monkeypatch.setenv(name, text)
        yield cloud


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_module("exitguard_nova_instance")


class Instances:
    """The module with its options, what became of it, and what it noted."""

    def __init__(self, module: ModuleType, manage: NovaManage, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.module, self.manage, self.capsys = module, manage, capsys
        self.records = folder / "records"

    def options(self, *changes: dict[str, Any], **options: Any) -> dict[str, Any]:
        given = {"changes": list(changes), "nova_manage": [str(self.manage.path)], "record_dir": str(self.records)}
        return {**given, **options}

    def run(self, *changes: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        self.result = run_module(self.module, self.capsys, check=check, **self.options(*changes, **options))
        return self.result

    def steps(self, *changes: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
        return [(step["outcome"], step["reason"]) for step in self.run(*changes, **options)["exitguard"]["steps"]]

    def step(self, uuid: str = ONE, *, options: dict[str, Any] | None = None, **change: Any) -> tuple[str, str]:
        (step,) = self.steps(self.change(uuid, **change), **(options or {}))
        return step

    @staticmethod
    def change(uuid: str, **more: Any) -> dict[str, Any]:
        return {"uuid": uuid, "image": SILENT, "launched_at": LAUNCHED_AT, **more}

    def files(self, of: str = "*") -> list[Path]:
        return sorted(path for path in self.records.glob(f"*/{of}/*") if path.is_file())

    def noted(self) -> list[str]:
        """The instances of the records that are there, whole, as facts read them."""
        found: list[str] = []
        for cloud in self.records.iterdir() if self.records.exists() else ():
            remedied, notices = read_remedied(self.records, cloud.name)
            assert notices == ()
            found += [each.uuid for each in remedied]
        return found

    def intended(self) -> list[str]:
        return [path.stem for path in self.files("intents")]


@pytest.fixture
def ran(module: ModuleType, manage: NovaManage, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Instances:
    return Instances(module, manage, capsys, tmp_path)


def shows(api: PropertyApi, manage: NovaManage) -> None:
    """A Nova of 2.98, which shows of each instance what nova-manage has stored."""
    api.max_microversion = "2.98"
    original = api.changed

    def changed(verb: str, path: str, *rest: Any) -> Answer:
        for uuid in {words[2] for words in manage.asked} & api.servers.keys():
            api.servers[uuid]["image"]["properties"]["hw_pmu"] = "false"
        return original(verb, path, *rest)

    api.changed = changed  # type: ignore[method-assign, assignment]


def shown(**properties: str) -> dict[str, Any]:
    return {"image": {"id": SILENT, "properties": properties}}


# Done and already


def test_stopped_silent_instance_is_set_noted_and_a_second_time_already(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    assert ran.step() == DONE
    assert manage.asked == [setting(ONE)]
    assert ran.result["changed"]
    assert ran.result["diff"] == {"before": f"{ONE}: (silent)\n", "after": f"{ONE}: false\n"}
    (record,) = ran.files()
    assert ran.step() == ("already", f"it was set before, by {record}")
    assert not ran.result["changed"]
    assert manage.asked == [setting(ONE)]
    assert api.changes == []


def test_record_is_whole_private_and_what_facts_read(api: PropertyApi, ran: Instances) -> None:
    api.instance(1)
    assert ran.step() == DONE
    (path,) = ran.files()
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)] == [0o600, 0o700]
    (found,), notices = read_remedied(ran.records, path.parts[-3])
    assert notices == ()
    assert path.name == f"{ONE}.json"
    expected = {"cloud": path.parts[-3], "uuid": ONE, "hw_pmu": "false", "image": SILENT, "launched_at": LAUNCHED_AT}
    assert found == RemediedInstance.model_validate({**expected, "set_at": found.set_at})
    shown: dict[str, Any] = {"uuid": ONE, "image": SILENT, "launched_at": LAUNCHED_AT}
    assert found.still_holds(Server.model_construct(**shown))
    assert not found.still_holds(Server.model_construct(**{**shown, "launched_at": "2026-11-02T10:00:00.000000"}))


def test_check_mode_says_what_would_be_set_and_writes_nothing(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    assert ran.step(options={"check": True}) == ("done", "would be set")
    assert ran.result["changed"]
    assert ran.result["diff"] == {"before": f"{ONE}: (silent)\n", "after": f"{ONE}: false\n"}
    assert manage.asked == []
    assert not ran.records.exists()


def test_nova_that_shows_it_is_read_back_and_believed_before_our_record(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    shows(api, manage)
    api.instance(1, **shown())
    assert ran.step() == DONE
    assert ran.noted() == [ONE]
    assert ran.step() == ("already", "its flavor or its stored image properties say so already")
    manage.log.unlink()
    api.servers[ONE]["image"]["properties"] = {}
    assert ran.step() == DONE


def test_nova_that_does_not_show_what_was_set_has_been_told_by_another_nova_manage(
    api: PropertyApi, ran: Instances, manage: NovaManage
) -> None:
    api.max_microversion = "2.98"
    api.instance(1, **shown())
    outcome, reason = ran.step()
    assert (outcome, manage.asked) == ("failed", [setting(ONE)])
    assert "Nova does not show it: expected the nova-manage of this cloud, and of its cell" in reason
    assert (ran.noted(), ran.intended()) == ([], [ONE])


@pytest.mark.parametrize("word", ["false", "False", "no", "0"])
def test_instance_whose_flavor_or_stored_property_says_off_is_already(api: PropertyApi, ran: Instances, word: str) -> None:
    api.max_microversion = "2.98"
    api.instance(1, extra_specs={"hw:pmu": word})
    api.instance(2, **shown(hw_pmu=word))
    assert [outcome for outcome, _ in ran.steps(ran.change(ONE), ran.change(TWO))] == ["already", "already"]
    assert not ran.records.exists()


# Left as it is


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"status": "ACTIVE"}, "it is ACTIVE, and can be changed only while its owner has it stopped"),
        ({"OS-EXT-STS:task_state": "powering-on"}, "it is SHUTOFF (powering-on), and can"),
        ({"status": "SHELVED_OFFLOADED"}, "it is SHELVED_OFFLOADED, and can"),
        ({"image": {"id": SAYS_OFF}}, "it was rebuilt onto another image since it was planned"),
        ({"OS-SRV-USG:launched_at": "2026-11-02T10:00:00.000000"}, "it was rebuilt, resized or unshelved since it was planned"),
    ],
    ids=["runs", "is being started", "is shelved", "another image", "another disk"],
)
def test_instance_that_is_no_longer_as_planned_is_changed_since_and_fails_nothing(
    api: PropertyApi, ran: Instances, manage: NovaManage, server: dict[str, Any], told: str
) -> None:
    api.instance(1, **server)
    outcome, reason = ran.step()
    assert outcome == "changed_since"
    assert reason.startswith(told)
    assert "failed" not in ran.result
    assert manage.asked == []
    assert not ran.records.exists()


def test_instance_that_is_gone_is_changed_since(api: PropertyApi, ran: Instances) -> None:
    assert api.servers == {}
    assert ran.step(GONE) == ("changed_since", "there is no such instance any more")


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"locked": True}, "Nova's lock is on it"),
        ({"locked": None}, "whether Nova's lock is on it was not shown"),
        ({"extra_specs": {"hw:pmu": "true"}}, "its embedded flavor asks for the PMU: it keeps it. With hw_pmu=false beside it"),
        ({"extra_specs": {"hw:pmu": "Yes"}}, "its embedded flavor asks for the PMU"),
        ({"extra_specs": {"hw:pmu": "maybe"}}, "its embedded flavor says hw:pmu='maybe', which is neither true nor false"),
        ({"extra_specs": {"hw:pmu": ""}}, "its embedded flavor says hw:pmu='', which is neither"),
        ({"flavor": {"id": "42"}}, "its embedded flavor was not shown: were hw:pmu=true in it"),
        ({"flavor": None}, "its embedded flavor was not shown"),
        (shown(hw_pmu="true"), "its stored image properties ask for the PMU: it keeps it"),
        (shown(hw_pmu="maybe"), "its stored image properties say hw_pmu='maybe', which is neither true nor false"),
        ({"image": ""}, "it boots from a volume, whose properties are Cinder's: resize it"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_instance_that_may_not_be_touched_is_refused(
    api: PropertyApi, ran: Instances, manage: NovaManage, server: dict[str, Any], told: str
) -> None:
    api.max_microversion = "2.98"
    api.instance(1, **server)
    outcome, reason = ran.step()
    assert outcome == "refused"
    assert reason.startswith(told)
    assert ran.result["failed"] is True
    assert ran.result["msg"].startswith(f"{ONE}: refused: {told}")
    assert manage.asked == []
    assert not ran.records.exists()


def test_image_that_asks_for_the_pmu_stands_for_stored_properties_that_are_not_shown(
    api: PropertyApi, ran: Instances, manage: NovaManage
) -> None:
    api.images[SILENT]["hw_pmu"] = "true"
    api.instance(1)
    outcome, reason = ran.step()
    assert (outcome, manage.asked) == ("refused", [])
    assert reason.startswith("its image asks for the PMU, and whether the instance was made with that is not shown")
    api.max_microversion = "2.98"
    shows(api, manage)
    api.servers[ONE].update(shown())
    assert ran.step() == DONE


def test_image_that_was_deleted_is_no_obstacle_and_one_that_is_not_answered_for_is(api: PropertyApi, ran: Instances) -> None:
    api.instance(1)
    api.instance(2)
    api.instead["GET", f"/image/v2/images/{SILENT}"] = refusal(503, "down")
    outcome, reason = ran.step()
    assert outcome == "failed"
    assert reason.endswith(": 503: down")
    assert not ran.records.exists()
    del api.instead["GET", f"/image/v2/images/{SILENT}"]
    api.images.clear()
    assert ran.step(TWO) == DONE


@pytest.mark.parametrize("uuid", HOSTILE, ids=range(len(HOSTILE)))
def test_name_that_is_no_uuid_is_asked_of_nobody(api: PropertyApi, ran: Instances, manage: NovaManage, uuid: str) -> None:
    assert ran.step(uuid) == ("refused", f"expected a uuid, found {uuid[:64]!r}")
    assert manage.asked == []
    assert not [path for _, path in api.log if "servers" in path]
    assert not ran.records.exists()


def test_words_of_nova_manage_are_no_shell_s(api: PropertyApi, ran: Instances, manage: NovaManage, tmp_path: Path) -> None:
    api.instance(1)
    words = [str(manage.path), f"$(touch {tmp_path}/shell)", "a b", "'", "*", "{{ 7 * 7 }}"]
    assert ran.step(options={"nova_manage": words}) == DONE
    assert manage.asked == [[*words[1:], *setting(ONE)]]
    assert not (tmp_path / "shell").exists()


def test_no_words_for_nova_manage_are_refused_before_anything_is_done(api: PropertyApi, ran: Instances) -> None:
    assert ran.run(ran.change(ONE), nova_manage=[])["msg"] == "expected words in nova_manage, found none"
    assert api.log == []


def test_another_cloud_is_refused_by_its_id(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    other = "00000000-0000-5000-8000-000000000000"
    assert f"and this is for {other}: clouds.yaml may have changed. Nothing was changed" in ran.run(ran.change(ONE), cloud_id=other)["msg"]
    assert manage.asked == []


def test_budget_of_none_ends_at_the_first_and_a_budget_of_one_takes_one(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    for number in (2, 3):
        api.instance(number)
    api.instance(1, locked=True)
    changes = [ran.change(UUID.format(number)) for number in (9, 1, 2, 3)]
    steps = ran.steps(*changes)
    assert [outcome for outcome, _ in steps] == ["changed_since", "refused", "refused", "refused"]
    assert {reason for _, reason in steps[2:]} == {"not begun, since others failed before it"}
    assert manage.asked == []
    assert [outcome for outcome, _ in ran.steps(*changes, failure_budget=1)] == ["changed_since", "refused", "done", "done"]
    assert sorted(ran.noted()) == [UUID.format(2), UUID.format(3)]


# Nova's API does not answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (refusal(403, "Policy doesn't allow it to be performed."), ": 403: Policy doesn't allow it to be performed."),
        (refusal(409, "busy"), ": 409: busy"),
        (refusal(500, "Unexpected API Error."), ": 500: Unexpected API Error."),
        (Answer(b"<html>"), ": the answer is no JSON"),
        (Answer({"server": {"id": ONE}, "more": {}}, cut=20), ": the answer is no JSON"),
        (Answer({}), ": an answer without 'server'"),
        (Answer({"server": []}), ": expected a JSON object, found list"),
        (Answer({"server": {"id": TWO}}), f": asked for '{ONE}', found '{TWO}'"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_instance_that_nova_does_not_show_fails_alone(
    api: PropertyApi, ran: Instances, manage: NovaManage, answer: Answer, told: str
) -> None:
    api.instance(1)
    api.instance(2)
    api.instead["GET", f"/v2.1/servers/{ONE}"] = answer
    (outcome, reason), second = ran.steps(ran.change(ONE), ran.change(TWO), failure_budget=1)
    assert outcome == "failed"
    assert reason.endswith(told)
    assert second == DONE
    assert manage.asked == [setting(TWO)]
    assert ran.noted() == [TWO]


def test_nova_that_does_not_answer_in_time_fails(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    held = threading.Event()
    api.instead["GET", f"/v2.1/servers/{ONE}"] = Answer({}, after=held)
    try:
        outcome, _ = ran.step(options={"timeout_seconds": 1})
    finally:
        held.set()
    assert (outcome, manage.asked) == ("failed", [])


# nova-manage


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        (1, ("failed", "ended with 1: Traceback / it broke. Whether it was set is not known: try again")),
        (2, ("refused", "nova-manage does not know the instance, or knows no cell for it. Nothing was changed")),
        (3, ("changed_since", "nova-manage found it neither stopped nor shelved: it was started meanwhile. Nothing was changed")),
        (4, ("refused", "nova-manage takes no such property. Nothing was changed")),
        (5, ("refused", "nova-manage takes no such property. Nothing was changed")),
        (6, ("refused", "nova-manage takes no such value. Nothing was changed")),
        (127, ("refused", "Traceback / it broke. Nothing was changed")),
        (255, ("failed", "ended with 255: Traceback / it broke. Whether it was set is not known: try again")),
    ],
)
def test_exit_code_of_nova_manage_is_told_in_words(
    api: PropertyApi, ran: Instances, manage: NovaManage, code: int, ended: tuple[str, str]
) -> None:
    outcome, told = ended
    api.instance(1)
    manage.does(f"echo Traceback >&2; echo it broke; exit {code}")
    found, reason = ran.step()
    assert found == outcome
    assert reason.endswith(told)
    assert ran.noted() == []
    assert ran.intended() == ([ONE] if outcome == "failed" else [])
    manage.does("exit 0")
    assert ran.step() == DONE
    assert (ran.noted(), ran.intended()) == ([ONE], [])


def test_nova_manage_that_a_signal_ends_is_not_known_to_have_set_it(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    manage.does("kill -KILL $$")
    outcome, reason = ran.step()
    assert (outcome, ran.intended()) == ("failed", [ONE])
    assert "ended with -9: it said nothing. Whether it was set is not known" in reason


def test_nova_manage_that_is_not_there_changed_nothing(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    manage.path.chmod(0o600)
    for words, why in (
        (["/nowhere/nova-manage"], "/nowhere/nova-manage cannot be started: No such file or directory"),
        ([str(manage.path)], f"{manage.path} cannot be started: Permission denied"),
        (["\0"], "\0 cannot be started: embedded null byte"),
    ):
        assert ran.step(options={"nova_manage": words}) == ("refused", f"{why}. Nothing was changed")
    assert ran.files() == []


def test_nova_manage_that_hangs_is_ended_with_its_children_and_is_not_known(
    api: PropertyApi, ran: Instances, manage: NovaManage, tmp_path: Path
) -> None:
    api.instance(1)
    manage.does(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    outcome, reason = ran.step(options={"timeout_seconds": 2})
    assert outcome == "failed"
    assert reason.endswith("ended with 124: no end within 2 seconds. Whether it was set is not known: try again")
    assert (ran.noted(), ran.intended()) == ([], [ONE])
    child = int((tmp_path / "child").read_text())
    until(lambda: not is_running(child), "nova-manage's child has ended")


def test_child_that_nova_manage_leaves_behind_is_not_waited_for(
    api: PropertyApi, ran: Instances, manage: NovaManage, tmp_path: Path
) -> None:
    api.instance(1)
    manage.does(f"sleep 600 & echo $! > {tmp_path}/child; echo set")
    try:
        assert ran.step(options={"timeout_seconds": 30}) == DONE
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_endless_words_of_nova_manage_are_bounded(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    manage.does("head -c 64M /dev/zero | tr '\\0' x; echo; echo the end; exit 1")
    _, reason = ran.step()
    assert len(reason) < 1000
    assert ran.result["exitguard"]["steps"][0]["outcome"] == "failed"


# What happens while nova-manage runs


def once_set(api: PropertyApi, manage: NovaManage, then: Callable[[], Any]) -> None:
    """Somebody else does this while nova-manage runs."""
    original = api.changed

    def changed(verb: str, path: str, *rest: Any) -> Answer:
        if manage.asked:
            then()
        return original(verb, path, *rest)

    api.changed = changed  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("meanwhile", "told"),
    [
        ({"status": "ACTIVE"}, "it is ACTIVE, since nova-manage ran: whether it was kept is not known. Try again once it is stopped"),
        ({"OS-EXT-STS:task_state": "powering-on"}, "it is SHUTOFF (powering-on), since nova-manage ran"),
        ({"OS-SRV-USG:launched_at": "2026-11-03T10:00:00.000000"}, "it was rebuilt, resized or unshelved while nova-manage ran"),
        ({"image": {"id": SAYS_OFF}}, "it was rebuilt, resized or unshelved while nova-manage ran"),
    ],
    ids=["started", "being started", "rebuilt", "rebuilt onto another image"],
)
def test_instance_that_changes_while_nova_manage_runs_is_not_claimed(
    api: PropertyApi, ran: Instances, manage: NovaManage, meanwhile: dict[str, Any], told: str
) -> None:
    api.instance(1)
    once_set(api, manage, lambda: api.servers[ONE].update(meanwhile))
    outcome, reason = ran.step()
    assert outcome == "failed"
    assert reason.startswith(told)
    assert (ran.noted(), ran.intended()) == ([], [ONE])


def test_instance_that_is_started_while_nova_manage_runs_is_done_where_nova_shows_that_it_was_kept(
    api: PropertyApi, ran: Instances, manage: NovaManage
) -> None:
    shows(api, manage)
    api.instance(1, **shown())
    once_set(api, manage, lambda: api.servers[ONE].update(status="ACTIVE"))
    assert ran.step() == ("done", "set: it is ACTIVE since, and it is in force at its next hard reboot or start")
    assert ran.noted() == [ONE]


def test_instance_that_is_deleted_while_nova_manage_runs_is_changed_since(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    once_set(api, manage, lambda: api.servers.pop(ONE, None))
    assert ran.step() == ("changed_since", "it was deleted while nova-manage ran")
    assert ran.files() == []


def test_nova_that_goes_down_while_nova_manage_runs_leaves_it_unknown(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    once_set(api, manage, lambda: api.instead.update({("GET", f"/v2.1/servers/{ONE}"): refusal(503, "down")}))
    outcome, reason = ran.step()
    assert (outcome, ran.noted(), ran.intended()) == ("failed", [], [ONE])
    assert reason.startswith("nova-manage set it, and it could not be looked at after: ")


# What is noted


def test_rebuild_onto_the_same_image_ends_what_was_noted(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    assert ran.step() == DONE
    rebuilt = "2026-11-02T10:00:00.000000"
    api.servers[ONE]["OS-SRV-USG:launched_at"] = rebuilt
    assert ran.step(launched_at=rebuilt) == DONE
    assert manage.asked == [setting(ONE)] * 2


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 50_000, '{"hw_pmu": "true"}', '{"hw_pmu": "false"}', "\udcff"], ids=range(8))
def test_record_that_is_damaged_claims_nothing_and_is_written_anew(api: PropertyApi, ran: Instances, manage: NovaManage, text: str) -> None:
    api.instance(1)
    assert ran.step() == DONE
    (record,) = ran.files()
    record.write_text(text, errors="surrogateescape")
    assert ran.step() == DONE
    assert (ran.noted(), len(manage.asked)) == ([ONE], 2)


def test_nothing_is_set_that_cannot_be_noted(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    ran.records.write_text("no directory")
    outcome, reason = ran.step()
    assert (outcome, manage.asked) == ("refused", [])
    assert "cannot be written: Not a directory. Nothing was changed: what is set has to be noted" in reason


def test_what_was_set_and_could_not_be_noted_is_told_and_its_intent_stays(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    manage.does(f"cloud=$(echo {ran.records}/*); touch $cloud/instances")
    outcome, reason = ran.step()
    assert (outcome, ran.intended()) == ("failed", [ONE])
    assert reason.startswith("it was set, and that could not be noted: ")
    next(ran.records.iterdir()).joinpath("instances").unlink()
    manage.does("exit 0")
    assert ran.step() == DONE
    assert (ran.noted(), ran.intended()) == ([ONE], [])


def test_link_in_the_place_of_what_is_to_be_written_is_not_followed(api: PropertyApi, ran: Instances, tmp_path: Path) -> None:
    api.instance(1)
    api.instance(2)
    assert ran.step(TWO) == DONE
    folder = ran.files()[0].parent
    (folder / f".{ONE}.json.new").symlink_to(tmp_path / "elsewhere")
    (folder / f"{ONE}.json").symlink_to(tmp_path / "elsewhere")
    assert ran.step() == DONE
    assert not (tmp_path / "elsewhere").exists()
    assert sorted(ran.noted()) == [ONE, TWO]


def test_reader_of_a_record_never_sees_a_part_of_it(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    contents = [{"text": letter * size} for letter, size in (("a", 10), ("b", 300_000))]
    module.write_record(path, contents[0])
    ended = threading.Event()
    seen: list[bool] = []

    def read() -> None:
        while not ended.is_set():
            seen.append(json.loads(path.read_text()) in contents)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(100):
            module.write_record(path, contents[number % 2])
    finally:
        ended.set()
        reader.join()
    assert seen
    assert all(seen)
    with pytest.raises(TypeError):
        module.write_record(path, {"text": "c", "no JSON": object()})
    assert json.loads(path.read_text()) == contents[1]


# Killed


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def test_intent_outlives_a_kill_while_nova_manage_runs_and_a_second_run_ends_it_well(
    api: PropertyApi, ran: Instances, manage: NovaManage, tmp_path: Path
) -> None:
    api.instance(1)
    gate, set_ = tmp_path / "gate", tmp_path / "set"
    os.mkfifo(gate)
    manage.does(f"read _ < {gate}; touch {set_}")
    text = json.dumps(ran.options(ran.change(ONE)))
    code = f"""
import json, sys
sys.path.append({str(Path(__file__).parent)!r})
from cloud_modules import load_module, patch_module_args
with patch_module_args(json.loads({text!r})):
    load_module("exitguard_nova_instance").main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
        until(lambda: bool(manage.asked), "nova-manage runs")
        process.kill()
    assert not set_.exists()
    assert (ran.noted(), ran.intended()) == ([], [ONE])
    (intent,) = ran.files()
    assert stat.S_IMODE(intent.stat().st_mode) == 0o600
    assert RemediedInstance.model_validate_json(intent.read_bytes()).uuid == ONE

    gate.write_text("go on\n")  # nova-manage was not killed, and sets it with nobody there to note it
    until(set_.exists, "nova-manage has ended")
    assert ran.noted() == []
    api.servers[ONE]["status"] = "ACTIVE"
    outcome, reason = ran.step()
    assert outcome == "changed_since"
    assert reason.endswith(f"An earlier run ended before it knew whether it had set it: {intent}")
    api.servers[ONE]["status"] = "SHUTOFF"
    assert ran.step(options={"check": True})[0] == "done"
    assert ran.intended() == [ONE]
    manage.does("exit 0")
    assert ran.step() == DONE
    assert (ran.noted(), ran.intended()) == ([ONE], [])
    assert manage.asked == [setting(ONE)] * 2


@pytest.mark.parametrize("shows_it", [False, True], ids=["2.93", "2.98"])
@pytest.mark.parametrize("moment", range(5))
def test_run_that_ends_at_any_moment_claims_nothing_that_was_not_done_and_forgets_nothing(
    api: PropertyApi, ran: Instances, manage: NovaManage, monkeypatch: pytest.MonkeyPatch, moment: int, *, shows_it: bool
) -> None:
    if shows_it:
        shows(api, manage)
    api.instance(1, **(shown() if shows_it else {}))
    calls = 0

    def ends(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            nonlocal calls
            if calls == moment:
                raise KeyboardInterrupt
            calls += 1
            return original(*arguments)

        return called

    with monkeypatch.context() as patched:
        for name in ("write_record", "ran", "looked_at_after", "forget"):
            patched.setattr(ran.module, name, ends(getattr(ran.module, name)))
        with pytest.raises(KeyboardInterrupt):
            ran.step()
    was_set = bool(manage.asked)
    assert set(ran.noted()) <= ({ONE} if was_set else set())
    if was_set:
        assert ONE in {*ran.noted(), *ran.intended()}
    outcome, _ = ran.step()
    assert outcome in ("done", "already")
    assert manage.asked[-1:] == [setting(ONE)]
    assert ran.intended() == []
    assert ran.noted() == [ONE] or (shows_it and outcome == "already")


def test_intent_that_proved_needless_is_put_away_but_not_in_check_mode(api: PropertyApi, ran: Instances) -> None:
    api.instance(1)
    assert ran.step() == DONE
    (record,) = ran.files()
    intent = record.parents[1] / "intents" / record.name
    intent.write_bytes(record.read_bytes())
    assert ran.step(options={"check": True})[0] == "already"
    assert intent.exists()
    assert ran.step()[0] == "already"
    assert not intent.exists()


def test_refusal_by_nova_manage_does_not_make_an_earlier_doubt_certain(api: PropertyApi, ran: Instances, manage: NovaManage) -> None:
    api.instance(1)
    manage.does("exit 1")
    assert ran.step()[0] == "failed"
    manage.does("exit 2")
    assert ran.step()[0] == "refused"
    assert ran.intended() == [ONE]


# Played


def test_playbook_tells_and_shows_each_and_its_refusals_fail_it(
    api: PropertyApi, ran: Instances, manage: NovaManage, tmp_path: Path
) -> None:
    api.instance(1)
    api.instance(2, locked=True)
    settings = {
        "nova_instance_pmu_off_changes": [ran.change(ONE), ran.change(GONE), ran.change(TWO)],
        "nova_instance_pmu_off_nova_manage": [str(manage.path)],
        "nova_instance_pmu_off_record_dir": str(ran.records),
    }
    result = play("nova_instance_pmu_off", tmp_path, settings, api.environment, "-v", "--diff")
    assert result.returncode == 2, result.stdout
    assert [step["outcome"] for step in steps_played(result.stdout)] == ["done", "changed_since", "refused"]
    assert f"{TWO}: refused: Nova's lock is on it" in result.stdout
    assert (manage.asked, ran.noted(), ran.intended()) == ([setting(ONE)], [ONE], [])
