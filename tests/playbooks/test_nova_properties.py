"""playbooks/nova_{flavor,image}_default.yml and their module against a loopback API, by the real SDK; tests/openstack has a real Nova."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exitguard.facts.openstack.connection import cloud_id as observed_cloud_id

sys.path.append(str(Path(__file__).parent))

from cloud_modules import load_module, play, run_module, steps_played
from compute_api import NOT_ALLOWED, SAYS_OFF, SILENT, refusal
from fake_openstack import Answer
from property_api import PropertyApi, property_api

pytest.importorskip("openstack", reason="openstacksdk cannot be loaded")

GONE = "99999999-0000-4000-8000-000000000001"
HOSTILE = ["../../etc", "a/b?c=d#e", "42%2f..", "{{ 7 * 7 }}", "$(reboot)", "\u202egnp", "x" * 4000, "-rf", "42 ", "\x00", "a\r\nHost: b"]


@dataclass
class Kind:
    """Flavors or images: how each is told to the module, and kept by the API."""

    name: str
    api: PropertyApi
    silent: str
    off: str
    write: tuple[str, str]

    @property
    def key(self) -> str:
        return {"flavor": "hw:pmu", "image": "hw_pmu"}[self.name]

    def path(self, subject: str) -> str:
        return {"flavor": f"/v2.1/flavors/{subject}", "image": f"/image/v2/images/{subject}"}[self.name]

    def properties(self, subject: str) -> dict[str, Any]:
        specs: dict[str, Any] = self.api.flavors[subject]["extra_specs"] if self.name == "flavor" else self.api.images[subject]
        return specs

    def says(self, subject: str) -> Any:
        return self.properties(subject).get(self.key)

    def say(self, subject: str, text: str) -> None:
        self.properties(subject)[self.key] = text

    def remove(self, subject: str) -> None:
        del (self.api.flavors if self.name == "flavor" else self.api.images)[subject]

    def change(self, subject: str, **more: str) -> dict[str, str]:
        return {f"{self.name}_id": subject, **more}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PropertyApi]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "none.yaml"))
    with property_api() as cloud:
        for name, text in cloud.environment.items():
            monkeypatch.setenv(name, text)
        yield cloud


@pytest.fixture(params=["flavor", "image"])
def kind(request: pytest.FixtureRequest, api: PropertyApi) -> Kind:
    if request.param == "flavor":
        return Kind("flavor", api, "42", "43", ("POST", "/v2.1/flavors/42/os-extra_specs"))
    return Kind("image", api, SILENT, SAYS_OFF, ("PATCH", f"/image/v2/images/{SILENT}"))


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_module("exitguard_nova_property")


class Property:
    """The module with its options, and what became of it."""

    def __init__(self, module: ModuleType, kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
        self.module, self.kind, self.capsys = module, kind, capsys

    def run(self, *changes: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        self.result = run_module(self.module, self.capsys, check=check, kind=self.kind.name, changes=list(changes), **options)
        return self.result

    def steps(self, *changes: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
        return [(step["outcome"], step["reason"]) for step in self.run(*changes, **options)["exitguard"]["steps"]]

    def step(self, subject: str | None = None, *, options: dict[str, Any] | None = None, **change: str) -> tuple[str, str]:
        (step,) = self.steps(self.kind.change(self.kind.silent if subject is None else subject, **change), **(options or {}))
        return step


@pytest.fixture
def ran(module: ModuleType, kind: Kind, capsys: pytest.CaptureFixture[str]) -> Property:
    return Property(module, kind, capsys)


# Done, already, and back


def test_silent_one_is_set_and_read_back_and_a_second_time_is_already(ran: Property, kind: Kind) -> None:
    assert ran.step() == ("done", "set, and read back")
    assert kind.says(kind.silent) == "false"
    assert ran.result["changed"]
    assert ran.result["exitguard"]["steps"][0]["undo"] == {"element": ""}
    assert ran.result["diff"] == {"before": f"{kind.silent}: (silent)\n", "after": f"{kind.silent}: false\n"}
    assert ran.step() == ("already", "it says so already")
    assert not ran.result["changed"]
    assert ran.result["diff"] == {"before": "", "after": ""}
    assert kind.api.changes == [" ".join(kind.write)]


def test_nothing_else_of_it_changes(ran: Property, kind: Kind) -> None:
    kind.properties(kind.silent)["hw:cpu_policy"] = "dedicated"
    before = json.dumps([kind.api.flavors, kind.api.images], sort_keys=True)
    assert ran.step()[0] == "done"
    del kind.properties(kind.silent)[kind.key]
    assert json.dumps([kind.api.flavors, kind.api.images], sort_keys=True) == before


def test_way_back_exchanges_before_and_after_and_leaves_no_property(ran: Property, kind: Kind) -> None:
    assert ran.step()[0] == "done"
    assert ran.step(before="false", after="") == ("done", "set, and read back")
    assert kind.key not in kind.properties(kind.silent)
    assert ran.result["diff"] == {"before": f"{kind.silent}: false\n", "after": f"{kind.silent}: (silent)\n"}
    assert ran.result["exitguard"]["steps"][0]["undo"] == {"element": "false"}
    assert ran.step(before="false", after="") == ("already", "it says so already")


def test_one_value_is_replaced_by_another(ran: Property, kind: Kind) -> None:
    kind.say(kind.silent, "true")
    assert ran.step(before="true", after="false") == ("done", "set, and read back")
    assert kind.says(kind.silent) == "false"


@pytest.mark.parametrize("back", [False, True], ids=["forth", "back"])
def test_check_mode_says_what_would_be_set_and_sets_nothing(ran: Property, kind: Kind, *, back: bool) -> None:
    change = {"before": "false", "after": ""} if back else {}
    subject = kind.off if back else kind.silent
    assert ran.step(subject, options={"check": True}, **change) == ("done", "would be set")
    assert ran.result["changed"]
    shown = ["false", "(silent)"] if back else ["(silent)", "false"]
    assert [ran.result["diff"][side] for side in ("before", "after")] == [f"{subject}: {text}\n" for text in shown]
    assert kind.api.changes == []


# Left as it is


@pytest.mark.parametrize(
    ("now", "told"), [("true", "true"), ("False", "False"), ("maybe", "maybe"), ("", "an empty text"), (" ", "an empty text")]
)
def test_one_that_says_something_else_than_planned_is_left_so(ran: Property, kind: Kind, now: str, told: str) -> None:
    kind.say(kind.silent, now)
    assert ran.step() == ("changed_since", f"it says {told}, and was planned on nothing: it is left as it is")
    assert "failed" not in ran.result
    assert (kind.says(kind.silent), kind.api.changes) == (now, [])


def test_one_that_says_nothing_is_left_so_where_something_was_planned_on(ran: Property, kind: Kind) -> None:
    assert ran.step(before="true") == ("changed_since", "it says nothing, and was planned on true: it is left as it is")
    assert kind.api.changes == []


def test_one_that_is_gone_is_changed_since_and_fails_nothing(ran: Property, kind: Kind) -> None:
    assert ran.step(GONE) == ("changed_since", f"there is no such {kind.name} any more")
    assert "failed" not in ran.result


def test_one_that_goes_just_before_the_write_is_changed_since(ran: Property, kind: Kind) -> None:
    kind.api.meanwhile[kind.write] = lambda: kind.remove(kind.silent)
    outcome, reason = ran.step()
    assert outcome == "changed_since"
    assert reason.startswith(f"it, or what it said, went away just now: {kind.write[0]} ")


@pytest.mark.parametrize("text", ["true", "maybe"])
def test_another_who_sets_it_at_the_same_time_is_told(ran: Property, kind: Kind, text: str) -> None:
    after = {("GET", kind.path(kind.silent)): lambda: kind.say(kind.silent, text)}
    kind.api.meanwhile[kind.write] = lambda: kind.api.meanwhile.update(after)
    outcome, reason = ran.step()
    assert (outcome, reason) == ("failed", f"it was set, and says {text} when read back: somebody else changes it too")
    assert ran.result["failed"] is True


# The cloud refuses, fails, or says nothing


def test_role_that_may_not_change_it_is_refused_with_the_cloud_s_words(ran: Property, kind: Kind) -> None:
    kind.api.instead[kind.write] = refusal(403, NOT_ALLOWED.format("os_compute_api:os-flavor-extra-specs:create"))
    outcome, reason = ran.step()
    assert outcome == "refused"
    assert reason.startswith("this role may not change it: ")
    assert reason.endswith(": 403: Policy doesn't allow os_compute_api:os-flavor-extra-specs:create to be performed.")
    assert ran.result["failed"] is True
    assert ran.result["msg"] == f"{kind.silent}: refused: {reason}"


def test_role_that_may_not_see_it_fails_with_the_cloud_s_words_and_nothing_is_asked_to_change(ran: Property, kind: Kind) -> None:
    kind.api.instead["GET", kind.path(kind.silent)] = refusal(403, "You are not authorized to complete this action.")
    outcome, reason = ran.step()
    assert outcome == "failed"
    assert reason.endswith(": 403: You are not authorized to complete this action.")
    assert kind.api.changes == []


def test_conflict_fails_with_the_cloud_s_words_and_nothing_was_changed(ran: Property, kind: Kind) -> None:
    kind.api.instead[kind.write] = Answer(b"<html><h1>409 Conflict</h1>\n in use </html>", 409)
    outcome, reason = ran.step()
    assert outcome == "failed"
    assert reason.endswith(": 409: <html><h1>409 Conflict</h1> in use </html>. Nothing was changed")


def test_property_that_another_took_away_just_before_is_nothing_that_was_changed(ran: Property, kind: Kind) -> None:
    kind.say(kind.silent, "false")
    verb, path = kind.write
    if kind.name == "flavor":
        verb, path = "DELETE", f"{path}/hw%3Apmu"
    kind.api.meanwhile[verb, path] = lambda: kind.properties(kind.silent).pop(kind.key)
    outcome, reason = ran.step(before="false", after="")
    assert outcome == ("changed_since" if kind.name == "flavor" else "failed")
    assert ("went away just now" if kind.name == "flavor" else "Property hw_pmu does not exist.. Nothing was changed") in reason


@pytest.mark.parametrize(
    "answer",
    [refusal(500, "Unexpected API Error."), Answer(b"<html>", 502), Answer({}, 302), Answer(b"\xff{")],
    ids=lambda each: each.status,
)
def test_write_without_a_clear_answer_that_was_not_made_has_failed_and_says_what_it_still_says(
    ran: Property, kind: Kind, answer: Answer
) -> None:
    kind.api.instead[kind.write] = answer
    outcome, reason = ran.step()
    assert outcome == "failed"
    assert reason.endswith(". It still says nothing")
    assert kind.says(kind.silent) is None


@pytest.mark.parametrize("answer", [refusal(500, "Unexpected API Error."), Answer(b"no json")], ids=["500", "no JSON"])
def test_write_without_a_clear_answer_that_was_made_is_done_so_that_its_way_back_is_known(
    ran: Property, kind: Kind, answer: Answer
) -> None:
    kind.api.answered_otherwise[kind.write] = answer
    outcome, reason = ran.step()
    assert outcome == "done"
    assert reason.startswith(f"set, and read back, though: {kind.write[0]} ")
    assert ran.result["exitguard"]["steps"][0]["undo"] == {"element": ""}


def test_write_that_cannot_be_read_back_is_not_known(ran: Property, kind: Kind) -> None:
    def break_down() -> None:
        kind.api.instead["GET", kind.path(kind.silent)] = refusal(503, "down")

    kind.api.meanwhile[kind.write] = break_down
    outcome, reason = ran.step()
    assert outcome == "failed"
    assert reason.startswith("it was set, and could not be read back: ")
    assert reason.endswith("What it says now is not known: run this again")


@pytest.mark.parametrize("drips", [False, True], ids=["nothing comes", "a byte now and then"])
def test_write_that_is_not_answered_in_time_is_read_back(ran: Property, kind: Kind, *, drips: bool) -> None:
    held = threading.Event()
    late = Answer({"extra_specs": {}}, drip=(1, 0.3)) if drips else Answer({}, after=held)
    kind.api.instead[kind.write] = late
    try:
        outcome, reason = ran.step(options={"timeout_seconds": 1})
    finally:
        held.set()
    assert outcome == "failed"
    assert reason.endswith(". It still says nothing")


@pytest.mark.parametrize(
    "answer",
    [
        Answer({}),
        Answer([]),
        Answer(None),
        Answer(b""),
        Answer(b"{"),
        Answer(b"[" * 100_000),
        Answer({"flavor": []}),
        Answer({"id": "another", "flavor": {"id": "another", "extra_specs": {}}}),
    ],
    ids=lambda each: repr(each.body)[:24],
)
def test_answer_of_another_form_fails_its_own_step_alone(ran: Property, kind: Kind, answer: Answer) -> None:
    kind.api.instead["GET", kind.path(kind.silent)] = answer
    steps = ran.steps(kind.change(kind.silent), kind.change(kind.off), failure_budget=1)
    assert [outcome for outcome, _ in steps] == ["failed", "already"]
    assert kind.api.changes == []


def test_flavor_whose_extra_specs_nova_shows_only_beside_it_is_read_there(api: PropertyApi, module: ModuleType, capsys: Any) -> None:
    api.instead["GET", "/v2.1/flavors/42"] = Answer({"flavor": {"id": "42", "name": "tiny"}})
    kind = Kind("flavor", api, "42", "43", ("POST", "/v2.1/flavors/42/os-extra_specs"))
    assert Property(module, kind, capsys).step() == ("done", "set, and read back")
    assert kind.says("42") == "false"


# Many at once


def test_budget_of_none_ends_at_the_first_failure_and_tells_of_each(ran: Property, kind: Kind) -> None:
    kind.api.instead[kind.write] = refusal(403, "no")
    other = kind.change(kind.off, before="false", after="true")
    steps = ran.steps(kind.change(GONE), kind.change(kind.silent), other, kind.change(kind.off))
    assert [outcome for outcome, _ in steps] == ["changed_since", "refused", "refused", "refused"]
    assert {reason for _, reason in steps[2:]} == {"not begun, since others failed before it"}
    assert ran.result["msg"].endswith("; and 2 more")
    assert kind.says(kind.off) == "false"


def test_budget_of_one_takes_one_failure(ran: Property, kind: Kind) -> None:
    kind.api.instead[kind.write] = refusal(500, "no")
    changes = [
        kind.change(kind.silent),
        kind.change(kind.off, before="false", after="true"),
        kind.change(kind.silent),
        kind.change(kind.off),
    ]
    steps = ran.steps(*changes, failure_budget=1)
    assert [outcome for outcome, _ in steps] == ["failed", "done", "failed", "refused"]
    assert kind.says(kind.off) == "true"
    assert ran.result["changed"]
    assert ran.result["diff"]["after"] == f"{kind.off}: true\n"


def test_hostile_id_is_one_part_of_a_path_and_no_such_thing(ran: Property, kind: Kind) -> None:
    steps = ran.steps(*(kind.change(subject) for subject in HOSTILE))
    assert steps == [("changed_since", f"there is no such {kind.name} any more")] * len(HOSTILE)
    assert [step["subject"] for step in ran.result["exitguard"]["steps"]] == HOSTILE
    assert kind.api.changes == []


@pytest.mark.parametrize("subject", [".", ".."])
def test_id_that_would_lead_elsewhere_is_not_asked_for(ran: Property, kind: Kind, subject: str) -> None:
    assert ran.step(subject) == ("failed", f"{subject!r} is no id. Nothing was changed")
    assert not [path for _, path in kind.api.log if "flavors" in path or "images" in path]


@pytest.mark.parametrize("name", ["a flavor?", "a&b=c", "42%2e", "1.5 GiB"])
def test_odd_flavor_id_that_is_there_is_set_and_no_other(api: PropertyApi, module: ModuleType, capsys: Any, name: str) -> None:
    api.flavors[name] = {"id": name, "name": name, "extra_specs": {}}
    kind = Kind("flavor", api, name, "43", ("POST", ""))
    assert Property(module, kind, capsys).step() == ("done", "set, and read back")
    assert Property(module, kind, capsys).step(before="false", after="") == ("done", "set, and read back")
    assert api.flavors["42"]["extra_specs"] == {}


# Before anything is done


def test_another_cloud_is_refused_by_its_id_and_nothing_is_asked_of_it(ran: Property, kind: Kind) -> None:
    other = "00000000-0000-5000-8000-000000000000"
    result = ran.run(kind.change(kind.silent), cloud_id=other)
    assert result["failed"] is True
    assert result["msg"].startswith("the cloud of the OS_ variables is the cloud ")
    assert f"and this is for {other}: clouds.yaml may have changed. Nothing was changed" in result["msg"]
    assert not [path for _, path in kind.api.log if "flavors" in path or "images" in path]


def test_cloud_is_known_by_the_id_that_facts_have_of_it(ran: Property, kind: Kind) -> None:
    place = observed_cloud_id(f"{kind.api.address}/v2.1", "a" * 32)
    assert ran.step(options={"cloud_id": place})[0] == "done"
    kind.api.endpoints["compute"] = f"/v2.1/{'a' * 32}/"
    assert observed_cloud_id(f"{kind.api.address}/v2.1/{'a' * 32}/", "a" * 32) == place


@pytest.mark.parametrize("after", ["maybe", "TRUE", "off", " "])
def test_value_that_is_no_wish_is_refused_before_anything_is_done(ran: Property, kind: Kind, after: str) -> None:
    result = ran.run(kind.change(kind.off, before="false", after="true"), kind.change(kind.silent, after=after))
    assert result["failed"] is True
    assert "value of after must be one of: , true, false" in result["msg"]
    assert kind.api.log == []


def test_yaml_false_without_quotes_is_false(ran: Property, kind: Kind) -> None:
    assert ran.steps({**kind.change(kind.silent), "after": False}) == [("done", "set, and read back")]
    assert kind.says(kind.silent) == "false"


def test_change_without_its_id_is_refused_before_anything_is_done(ran: Property, kind: Kind) -> None:
    other = "image_id" if kind.name == "flavor" else "flavor_id"
    assert ran.run(kind.change(kind.silent), {other: "42"})["msg"] == f"expected {kind.name}_id in each change"
    assert kind.api.changes == []


def test_credentials_that_are_refused_are_told_and_not_shown(ran: Property, kind: Kind) -> None:
    kind.api.answers["/identity/v3/auth/tokens"] = Answer({"error": {"code": 401, "message": "no"}}, 401)
    result = ran.run(kind.change(kind.silent))
    assert result["failed"] is True
    assert "Expected an entry of clouds.yaml, or OS_ variables, that lead to the cloud" in result["msg"]
    assert "not-a-secret" not in json.dumps(result)


def test_cloud_that_lets_nobody_in_in_time_is_told(ran: Property, kind: Kind) -> None:
    held = threading.Event()
    kind.api.answers["/identity/v3/auth/tokens"] = Answer({}, after=held)
    try:
        result = ran.run(kind.change(kind.silent), timeout_seconds=1)
    finally:
        held.set()
    assert result["failed"] is True
    assert result["msg"].startswith("the cloud of the OS_ variables: ")


def test_cloud_that_clouds_yaml_does_not_have_is_named(ran: Property, kind: Kind) -> None:
    result = ran.run(kind.change(kind.silent), cloud="nowhere")
    assert "nowhere" in result["msg"]
    assert kind.api.log == []


# Played


def test_playbook_tells_and_shows_each(kind: Kind, tmp_path: Path) -> None:
    mode = ("--check",) if kind.name == "image" else ()  # one of each, since they are slow to start
    name = f"nova_{kind.name}_default"
    changes = [kind.change(kind.silent), kind.change(kind.off), kind.change(GONE), kind.change(kind.off, before="", after="true")]
    settings = {f"{name}_changes": changes, f"{name}_python": sys.executable}
    result = play(name, tmp_path, settings, kind.api.environment, "-v", "--diff", *mode)
    assert result.returncode == 0, result.stdout
    steps = steps_played(result.stdout)
    assert [step["outcome"] for step in steps] == ["done", "already", "changed_since", "changed_since"]
    assert [step["subject"] for step in steps] == [kind.silent, kind.off, GONE, kind.off]
    assert f"-{kind.silent}: (silent)\n+{kind.silent}: false\n" in result.stdout
    assert (kind.says(kind.silent), kind.says(kind.off)) == (None if mode else "false", "false")
    assert "not-a-secret" not in result.stdout
