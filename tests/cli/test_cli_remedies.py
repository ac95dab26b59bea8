"""`exitguard plan`, `approve`, `apply`, `rollout` and `rollback`, as far as they go without changing a host."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.model.canonical import record_hash
from exitguard.model.plan import Plan
from exitguard.schemas import schema

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def facts(exitguard: Run, failing_host: Path, tmp_path: Path) -> Path:
    """Facts of a host with one guest to be switched off, as if they had been gathered on it."""
    result = exitguard("facts", "--sysroot", failing_host, "--format", "json")
    document = json.loads(result.stdout)
    document["host"]["target"] = {"kind": "local", "uri": "qemu:///system", "sysroot": None}
    path = tmp_path / "compute-17.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.yaml"
    path.write_text("all: {hosts: {compute-17: {ansible_connection: local}}}\n")
    return path


@pytest.fixture
def plan(exitguard: Run, facts: Path, inventory: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    result = exitguard("plan", facts, "--inventory", inventory, "--format", "json", "--output", path)
    assert result.returncode == 0, result.stderr
    return path


def test_a_plan_is_shown_for_people_and_for_programs(exitguard: Run, facts: Path, inventory: Path, plan: Path) -> None:
    document = json.loads(plan.read_text())
    Draft202012Validator(schema("plan")).validate(document)
    assert [step["subject"]["name"] for step in document["steps"]] == ["web-1"]
    shown = exitguard("plan", facts, "--inventory", inventory)
    assert shown.returncode == 0
    assert "web-1" in shown.stdout
    assert document["hash"].removeprefix("sha256:")[:12] in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "facts.json"], "name the inventory"),
        (["plan", "--inventory", "hosts.yaml"], "give the facts of its hosts"),
        (["apply"], "either a plan or --here"),
        (["apply", "plan.json", "--here"], "either a plan or --here"),
        (["apply", "--here", "--check"], "is about this machine"),
        (["apply", "plan.json", "--extra-var", "no-equals"], "expected NAME=VALUE"),
        (["apply", "plan.json", "--extra-var", "domain_pmu_off_changes=x"], "the plan's to say"),
        (["approve", "plan.json", "--hours", "0"], "--hours"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(exitguard: Run, arguments: list[str], message: str) -> None:
    result = exitguard(*arguments)
    assert result.returncode == 64
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("", "no plan"), ("{}", "no plan"), ('{"schema_version": 99}', "no plan"), ("[" * 10_000, "no plan")],
)
def test_a_file_that_is_no_plan_is_refused_by_name(exitguard: Run, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    for verb in ("apply", "approve"):
        result = exitguard(verb, path)
        assert result.returncode == 1
        assert str(path) in result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def _refused(exitguard: Run, plan: Path, *more: str | Path) -> str:
    result = exitguard("apply", plan, *more)
    assert result.returncode == 1, result.stderr
    return result.stderr


def test_an_edited_plan_is_neither_approved_nor_carried_out(exitguard: Run, plan: Path, inventory: Path) -> None:
    document = json.loads(plan.read_text())
    document["steps"][0]["change"]["uuid"] = "00000000-0000-0000-0000-000000000000"
    plan.write_text(json.dumps(document))
    assert "was edited" in _refused(exitguard, plan, "--inventory", inventory)
    approved = exitguard("approve", plan)
    assert approved.returncode == 1
    assert "was edited" in approved.stderr


def _forged(plan: Path, **changes: object) -> Path:
    """The plan with other words in it, and the hash made anew as anybody can."""
    document = json.loads(plan.read_text()) | changes
    step = document["steps"][0]
    if "uuid" in changes:
        del document["uuid"]
        step["change"]["uuid"] = changes["uuid"]
    forged = Plan.model_validate_json(json.dumps(document))
    plan.write_text(forged.model_copy(update={"hash": record_hash(forged.content())}).model_dump_json())
    return plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"approval": "none"}, "are not those of the policy"),
        ({"mode": "windowed"}, "are not those of the policy"),
        ({"undoes": "20261123T040616Z-d408979f"}, "made from the run itself"),
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, "not what its id says"),
    ],
)
def test_a_plan_that_was_edited_and_hashed_anew_is_not_carried_out(
    exitguard: Run, plan: Path, inventory: Path, changes: dict[str, object], message: str
) -> None:
    _forged(plan, **changes)
    assert message in _refused(exitguard, plan, "--inventory", inventory)


def test_what_the_plan_was_made_from_has_to_be_what_it_is_carried_out_with(
    exitguard: Run, plan: Path, inventory: Path, tmp_path: Path
) -> None:
    assert "name the same one with --inventory" in _refused(exitguard, plan)
    waivers = tmp_path / "waivers.yaml"
    waivers.write_text("kind: waivers\nschema_version: 1\nwaivers:\n- {id: X-1, rules: [DOM-PMU-LIVE], scope: {domains: [web-1]},")
    waivers.write_text(
        waivers.read_text()
        + " justification: being replaced soon, approver: ops, created: 2026-01-01T00:00:00Z, expires: 2099-01-01T00:00:00Z}\n"
    )
    assert "any more: waivers" in _refused(exitguard, plan, "--inventory", inventory, "--waivers", waivers)
    inventory.write_text(inventory.read_text() + "# another line\n")
    assert "any more: inventory" in _refused(exitguard, plan, "--inventory", inventory)


def test_without_an_approval_nothing_is_begun(exitguard: Run, plan: Path, inventory: Path, tmp_path: Path) -> None:
    result = exitguard("apply", plan, "--inventory", inventory, "--remedy-dir", tmp_path / "remedy")
    assert result.returncode == 3, result.stderr
    assert "approve" in result.stderr
    assert exitguard("rollout", "status", "--remedy-dir", tmp_path / "remedy").returncode == 3


def test_a_run_that_is_not_there_is_named(exitguard: Run, tmp_path: Path) -> None:
    for words in (["rollout", "status", "nope"], ["rollout", "pause", "nope"], ["rollout", "abort", "nope"], ["rollback", "nope"]):
        result = exitguard(*words, "--remedy-dir", tmp_path / "remedy")
        assert result.returncode == 1, result.stderr
        assert "nope" in result.stderr


def test_one_hosts_facts_given_twice_are_refused(exitguard: Run, facts: Path, inventory: Path, tmp_path: Path) -> None:
    again = tmp_path / "compute-18.json"
    again.write_text(facts.read_text())
    result = exitguard("plan", facts, again, "--inventory", inventory)
    assert result.returncode == 1
    assert "two hosts have the host id" in result.stderr
