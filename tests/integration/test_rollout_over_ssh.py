"""A plan over several hosts, carried out by real Ansible over real SSH: waves, hosts that fail, are gone or hang, and what comes after."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audits import CommandResult, command_environment
from domain_documents import guest_xml
from remedies import remedies_policy
from ssh_hosts import SshHost, SshLab, ssh_hosts, why_no_ssh_hosts

from exitguard.resources import playbooks_dir
from exitguard.store.journal import RunStore

pytestmark = pytest.mark.integration

_PMU_OFF = "<pmu state='off'/>"
_LIMIT_SECONDS = 280
_REMEDIES = "{approval: none, rollout: {percentages: [100], step_timeout_seconds: 30, failure_budget: 0}}"


@dataclass(frozen=True)
class ControlNode:
    """Where plans for the fleet are made and carried out."""

    fleet: SshLab
    home: Path
    policy: Path

    @property
    def plan_file(self) -> Path:
        return self.home / "plan.json"

    def run(self, *words: str | Path) -> CommandResult:
        verb, *rest = map(str, words)
        verbs = [verb, *([rest.pop(0)] if verb == "rollout" else [])]
        options = [] if verbs in (["rollout", "status"], ["rollout", "pause"], ["rollout", "abort"]) else self._options()
        directory = [] if verb == "plan" else ["--remedy-dir", str(self.home / "remedy")]
        result = subprocess.run(
            [sys.executable, "-m", "exitguard", *verbs, *options, *directory, *rest],
            env=command_environment(self.home) | {"ANSIBLE_TIMEOUT": "10"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        assert "Traceback" not in result.stderr, result.stderr
        return CommandResult(result.returncode, result.stdout, result.stderr)

    def gather(self) -> list[Path]:
        """Facts of every host, as an operator would bring them home."""
        directory = self.home / "facts"
        environment = {**os.environ, "ANSIBLE_LOCALHOST_WARNING": "false"}
        subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                "-i",
                self.fleet.inventory,
                playbooks_dir() / "facts.yml",
                "-e",
                f"facts_dir={directory}",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=True,
        )
        return sorted(directory.glob("*.json"))

    def plan(self) -> dict[str, Any]:
        result = self.run("plan", *self.gather(), "--format", "json", "--output", self.plan_file)
        assert result.exit_code == 0, result.stderr
        document: dict[str, Any] = json.loads(self.plan_file.read_text())
        return document

    def status(self) -> dict[str, Any]:
        """The last run."""
        result = self.run("rollout", "status", "--format", "json")
        assert result.exit_code == 0, result.stderr
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    def phases(self) -> dict[str, str]:
        return {host["name"]: host["phase"] for host in self.status()["hosts"]}

    def started(self) -> list[str]:
        """Every step that was started in any run, as often as it was."""
        store = RunStore(self.home / "remedy/runs")
        return [
            step
            for run_id in store.run_ids()
            for event in store.read(run_id).events
            if event.kind == "steps_started"
            for step in event.steps
        ]

    def _options(self) -> list[str]:
        return ["--inventory", str(self.fleet.inventory), "--policy", str(self.policy)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    """Three hosts, hv1 to hv3, with a libvirtd each."""
    missing = why_no_ssh_hosts()
    if missing is not None:
        pytest.skip(missing)
    with ssh_hosts(3, tmp_path_factory.mktemp("fleet")) as lab:
        yield lab


@pytest.fixture
def node(fleet: SshLab, tcg_policy: Path, tmp_path: Path) -> ControlNode:
    for host in fleet.hosts:
        assert host.libvirt is not None
        host.libvirt.clear()
        host.libvirt.define(*(guest_xml(f"{host.name}-{number}", mode="maximum") for number in range(2)))
    return ControlNode(fleet, tmp_path, remedies_policy(tcg_policy, tmp_path / "policy.yaml", _REMEDIES))


def _off(host: SshHost) -> list[bool]:
    assert host.libvirt is not None
    return [_PMU_OFF in host.libvirt.xml(name, inactive=True) for name in host.libvirt.names()]


def _all_off(fleet: SshLab) -> dict[str, bool]:
    return {host.name: all(_off(host)) for host in fleet.hosts}


def test_a_plan_goes_over_the_fleet_canary_first_and_back_again(node: ControlNode, fleet: SshLab) -> None:
    plan = node.plan()
    assert [wave["name"] for wave in plan["pace"]["waves"]] == ["canary", "100 %"]
    assert len(plan["steps"]) == 6
    rehearsed = node.run("apply", node.plan_file, "--check")
    assert rehearsed.exit_code == 0, rehearsed.stderr
    assert rehearsed.stdout.count(": done") == 6
    assert not any(_all_off(fleet).values())
    before = {host.name: [host.libvirt.xml(name, inactive=True) for name in host.libvirt.names()] for host in fleet.hosts if host.libvirt}

    applied = node.run("apply", node.plan_file)
    assert applied.exit_code == 0, applied.stderr
    assert _all_off(fleet) == {"hv1": True, "hv2": True, "hv3": True}
    [run_id] = RunStore(node.home / "remedy/runs").run_ids()
    undone = node.run("rollback", run_id)
    assert undone.exit_code == 0, undone.stderr
    after = {host.name: [host.libvirt.xml(name, inactive=True) for name in host.libvirt.names()] for host in fleet.hosts if host.libvirt}
    assert after == before


def _failed(node: ControlNode) -> dict[str, str]:
    """Why each failed host did, of a run that stopped."""
    status = node.status()
    assert status["standing"] == "stopped"
    return {host["name"]: host["reason"] for host in status["hosts"] if host["phase"] == "failed"}


def test_hosts_that_are_gone_hang_or_fail_stop_everything_and_a_resume_goes_on(node: ControlNode, fleet: SshLab) -> None:
    plan = node.plan()
    gone, hanging = fleet.host("hv2"), fleet.host("hv3")
    assert gone.libvirt is not None
    fleet.stop_sshd(gone)
    fleet.hang(hanging)
    try:
        stopped = node.run("apply", node.plan_file)
    finally:
        fleet.start_sshd(gone)
        fleet.unhang(hanging)
    assert stopped.exit_code == 2, stopped.stderr
    assert "rollout resume" in stopped.stderr
    failed = _failed(node)
    assert sorted(failed) == ["hv2", "hv3"]
    assert all(failed.values())
    assert _all_off(fleet) == {"hv1": True, "hv2": False, "hv3": False}
    assert "hv3" in node.run("rollout", "status").stdout

    again = node.run("apply", node.plan_file)
    assert again.exit_code == 1  # the run that stopped has to be gone on with, or ended
    assert "rollout resume" in again.stderr

    gone.libvirt.kill_daemon()  # reached again, and now it fails
    try:
        half = node.run("rollout", "resume")
    finally:
        gone.libvirt.ensure_daemon()
    assert half.exit_code == 2, half.stderr
    assert list(_failed(node)) == ["hv2"]
    assert "libvirt" in _failed(node)["hv2"]
    assert _all_off(fleet)["hv2"] is False

    resumed = node.run("rollout", "resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert all(_all_off(fleet).values())
    assert sorted(node.started()) == sorted(step["id"] for step in plan["steps"])  # each exactly once


def test_a_pause_lets_what_is_under_way_end_and_nothing_more_begin(node: ControlNode, fleet: SshLab) -> None:
    node.plan()
    results: list[CommandResult] = []
    applying = threading.Thread(target=lambda: results.append(node.run("apply", node.plan_file)))
    applying.start()
    deadline = time.monotonic() + 60
    while not (node.home / "remedy/runs").exists() or not RunStore(node.home / "remedy/runs").run_ids():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert node.run("rollout", "pause").exit_code == 0
    applying.join(_LIMIT_SECONDS)
    assert results[0].exit_code == 3, results[0].stderr
    assert "rollout resume" in results[0].stderr
    assert not all(_all_off(fleet).values())
    assert node.run("rollout", "resume").exit_code == 0
    assert all(_all_off(fleet).values())


def test_an_inventory_that_leads_to_another_host_changes_nothing_there(node: ControlNode, fleet: SshLab, tmp_path: Path) -> None:
    """The worst mistake: hv1 of the inventory is another machine than hv1 of the plan."""
    node.plan()
    document = json.loads(node.plan_file.read_text())
    text = fleet.inventory.read_text()
    hv1, hv2 = fleet.host("hv1"), fleet.host("hv2")
    fleet.inventory.write_text(text.replace(hv1.address, "SWAP").replace(hv2.address, hv1.address).replace("SWAP", hv2.address))
    try:
        refused = node.run("apply", node.plan_file)
        assert refused.exit_code == 1
        assert "any more: inventory" in refused.stderr
        # And where the plan was made with that inventory, the host itself says who it is.
        (tmp_path / "facts").mkdir(exist_ok=True)
        remade = node.run("plan", *sorted((node.home / "facts").glob("*.json")), "--format", "json", "--output", node.plan_file)
        assert remade.exit_code == 0, remade.stderr
        assert json.loads(node.plan_file.read_text())["hash"] != document["hash"]
        stopped = node.run("apply", node.plan_file)
        assert stopped.exit_code == 2, stopped.stderr
        assert not any(_all_off(fleet).values())
    finally:
        fleet.inventory.write_text(text)
