"""The hosts of a real hub as an inventory and as the input of plans: by the real command line, and by Ansible itself."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hub_process import RunningHub
from push_builders import EPOCH, record
from store_builders import judge, observe

from exitguard.cli.fleet_inventory import Named, inventory
from exitguard.model.hub import FleetHost
from exitguard.model.push import PushBatch

pytestmark = pytest.mark.integration

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def host(name: str | None, **changes: Any) -> FleetHost:
    known: dict[str, Any] = {
        "host_id": str(uuid4()),
        "hostname": name,
        "enrolled_at": NOW,
        "may_write": True,
        "received_at": NOW,
        "clock_ahead_seconds": 0.0,
        "observed_at": NOW,
        "policy": "p 1",
        "exit_code": 2,
        "kernel_state": "affected",
        "kernel_release": "6.1",
        "domains": 3,
        "summary": None,
    }
    return FleetHost(**{**known, **changes})


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "-oProxyCommand=x",
        "a b",
        "a;b",
        "../etc",
        "x" * 64,
        "a" * 300,
        "h\u00f6st",
        "host\n",
        "{{ lookup('pipe', 'id') }}",
        "a..b",
    ],
)
def test_a_name_that_no_host_may_have_is_left_out(name: str | None) -> None:
    named = Named([host(name), host("compute-1.example.org")])
    assert list(named.by_name) == ["compute-1.example.org"]
    assert len(named.left_out) == 1


def test_two_hosts_of_one_name_are_both_left_out_and_those_shut_out_are_not_there() -> None:
    named = Named([host("compute-1"), host("Compute-1"), host("compute-2"), host("compute-3", may_write=False)])
    assert list(named.by_name) == ["compute-2"]
    assert len(named.left_out) == 2


def test_groups_are_those_of_what_was_said_last() -> None:
    named = Named(
        [
            host("a"),
            host("b", kernel_state="guarded", exit_code=0),
            host("c", received_at=NOW - timedelta(days=2)),
            host("d", received_at=None, kernel_state=None, exit_code=None),
        ]
    )
    told: Any = inventory(named, NOW)
    assert {name: group["hosts"] for name, group in told.items() if name.startswith("exitguard_")} == {
        "exitguard_exit_0": ["b"],
        "exitguard_exit_2": ["a", "c"],
        "exitguard_kernel_affected": ["a", "c"],
        "exitguard_kernel_guarded": ["b"],
        "exitguard_silent": ["c", "d"],
    }
    assert told["all"]["hosts"] == ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A hub with a host that said its facts, one that said none, and one whose name is no name."""
    directory = tmp_path_factory.mktemp("fleet")
    with RunningHub(str(directory / "hub.sqlite"), directory / "log") as hub:
        (directory / "token").write_text(hub.operator()["Authorization"].removeprefix("Bearer "))
        for name in ("compute-1", "-oProxyCommand=touch /tmp/x"):
            key, at = hub.let_in(str(uuid4())), datetime.now(UTC)
            facts = observe(at, hostname=name).facts
            identity = facts.host.identity.model_copy(update={"id": key.host_id})
            facts = facts.model_copy(update={"host": facts.host.model_copy(update={"identity": identity})})
            judged = judge(observe(at, hostname=name))
            report = judged.model_copy(update={"host": judged.host.model_copy(update={"id": key.host_id})})
            batch = PushBatch(host_id=key.host_id, spool_epoch=EPOCH, sent_at=at, records=(record(1, facts, at), record(2, report, at)))
            assert hub.push(key, batch).json()["acknowledged_seq"] == 2
            (directory / "facts").mkdir(exist_ok=True)
            if name == "compute-1":
                (directory / "facts/compute-1.json").write_text(facts.model_dump_json())
        script = directory / "hosts.sh"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m exitguard inventory "$@"\n')
        script.chmod(0o755)
        yield hub, directory


def run(fleet: Any, *command: str) -> subprocess.CompletedProcess[str]:
    hub, directory = fleet
    known = {"EXITGUARD_HUB_URL": hub.url, "EXITGUARD_HUB_TOKEN_FILE": str(directory / "token"), "EXITGUARD_CONFIG": os.devnull}
    environment = {**os.environ, **known, "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False, cwd=directory)


def exitguard(fleet: Any, *words: str) -> subprocess.CompletedProcess[str]:
    return run(fleet, sys.executable, "-m", "exitguard", *words)


def test_ansible_reads_the_hosts_of_the_hub(fleet: Any) -> None:
    done = run(fleet, str(Path(sys.executable).parent / "ansible-inventory"), "-i", "hosts.sh", "--list")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [group["hosts"] for name, group in told.items() if name.startswith("exitguard_kernel_")] == [["compute-1"]]
    assert "exitguard_host_id" in told["_meta"]["hostvars"]["compute-1"]
    assert "ProxyCommand" not in done.stdout


def test_a_plan_from_the_hub_is_the_plan_from_the_files(fleet: Any) -> None:
    of_hub = exitguard(fleet, "plan", "--fleet", "--inventory", "hosts.sh", "--format", "json")
    assert of_hub.returncode == 0, of_hub.stderr
    assert "no name that an inventory may have" in of_hub.stderr
    of_files = exitguard(fleet, "plan", "--inventory", "hosts.sh", "--format", "json", "facts")
    one, other = json.loads(of_hub.stdout), json.loads(of_files.stdout)
    assert one["steps"], "the domains of this host are to be changed"
    for plan in (one, other):
        plan.pop("made_at", None)
    assert (one["hash"], one["steps"]) == (other["hash"], other["steps"])


def test_one_host_has_its_own_variables_and_another_none(fleet: Any) -> None:
    told = exitguard(fleet, "inventory", "--host", "compute-1")
    assert set(json.loads(told.stdout)) == {"exitguard_host_id"}
    assert json.loads(exitguard(fleet, "inventory", "--host", "nobody").stdout) == {}
    assert exitguard(fleet, "inventory", "--list", "--host", "x").returncode == 64


@pytest.mark.parametrize(
    "words", [("--fleet",), ("--fleet", "--inventory", "hosts.sh", "facts"), ("--fleet", "--cloud", "x", "--inventory", "y")]
)
def test_what_does_not_go_together_is_said(fleet: Any, words: tuple[str, ...]) -> None:
    done = exitguard(fleet, "plan", *words)
    assert (done.returncode, done.stdout) == (64, "")
