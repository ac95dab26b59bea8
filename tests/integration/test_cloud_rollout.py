"""A cloud's plan, carried out by the real command line and real Ansible against a loopback API; nova-manage only keeps its arguments.

What a real Nova makes of it is tests/openstack's to see.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exitguard.report.json_document import json_text

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "facts"), str(HERE.parent / "audit")]
from fake_openstack import FakeOpenStack, fake_openstack  # noqa: E402
from nova_builders import facts, running, stopped, uuid  # noqa: E402
from openstack_clouds import LISTINGS, server, whole  # noqa: E402

pytestmark = pytest.mark.integration
RUNNING, STOPPED, LOCKED, ASKING = (uuid(number) for number in range(1, 5))
NO_PMU = {"original_name": "small", "extra_specs": {}, "vcpus": 1}


@dataclass
class ControlNode:
    """A machine that reaches the cloud, its command line, and what nova-manage was asked there."""

    folder: Path
    cloud: FakeOpenStack
    specs: dict[str, str]
    servers: dict[str, dict[str, Any]]

    @property
    def remedy_dir(self) -> Path:
        return self.folder / "remedy"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        config = self.folder / "config.yaml"
        config.write_text(f"remedy_dir: {self.remedy_dir}\n")
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8", "EXITGUARD_CONFIG": str(config)}
        return subprocess.run(
            [sys.executable, "-m", "exitguard", *arguments],
            env=environment | self.cloud.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def plan(self) -> dict[str, Any]:
        saved = self.folder / "plan.json"
        found = self.run("plan", "--cloud", "envvars", str(self.folder / "facts"), *self.policy, "--format", "json", "--output", str(saved))
        assert found.returncode == 0, found.stderr
        plan: dict[str, Any] = json.loads(saved.read_text())
        return plan

    def apply(self, *options: str) -> subprocess.CompletedProcess[str]:
        assert self.run("approve", str(self.folder / "plan.json")).returncode == 0
        return self.run("apply", str(self.folder / "plan.json"), *self.policy, *options)

    @property
    def policy(self) -> tuple[str, str]:
        return "--policy", str(self.folder / "policy.yaml")

    @property
    def managed(self) -> list[list[str]]:
        """The arguments of each nova-manage."""
        log = self.folder / "managed"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def run_id(self) -> str:
        (run_id,) = [each.name for each in (self.remedy_dir / "runs").iterdir() if each.is_dir()]
        return run_id


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ControlNode]:
    with fake_openstack() as cloud:
        asking = NO_PMU | {"extra_specs": {"hw:pmu": "true"}}
        usual = {"flavor": NO_PMU, "OS-EXT-SRV-ATTR:host": "compute-7", "OS-EXT-SRV-ATTR:hypervisor_hostname": "compute-7.example.org"}
        servers = {
            RUNNING: server(1, id=RUNNING, **usual),
            STOPPED: server(2, id=STOPPED, status="SHUTOFF", **usual),
            LOCKED: server(3, id=LOCKED, status="SHUTOFF", locked=True, **usual),
            ASKING: server(4, id=ASKING, status="SHUTOFF", **(usual | {"flavor": asking})),
        }
        made = ControlNode(tmp_path, cloud, {}, servers)
        flavor = {"id": "1", "name": "small", "os-flavor-access:is_public": True, "extra_specs": made.specs}
        image = {"id": "debian", "name": "Debian", "visibility": "public", "owner": "o", "updated_at": "2026-01-01T00:00:00Z"}

        def set_specs(body: bytes) -> dict[str, Any]:
            made.specs.update(json.loads(body)["extra_specs"])
            return {"extra_specs": made.specs}

        def unset(_body: bytes) -> bytes:
            del made.specs["hw:pmu"]
            return b""

        changes: dict[str, Callable[[bytes], Any]] = {
            "POST /v2.1/flavors/1/os-extra_specs": set_specs,
            "DELETE /v2.1/flavors/1/os-extra_specs/hw%3Apmu": unset,
        }
        cloud.answers.update(whole())
        cloud.answers.update(
            {
                LISTINGS["flavors"]: {"flavors": [flavor]},
                LISTINGS["images"]: {"images": [image]},
                LISTINGS["servers"]: lambda _path, _query: {"servers": list(servers.values())},
                "/v2.1/flavors/1": {"flavor": flavor},
                **{f"/v2.1/servers/{each}": {"server": shown} for each, shown in servers.items()},
                **changes,
            }
        )
        script = tmp_path / "nova-manage"
        script.write_text(
            f"#!{sys.executable}\nimport json, sys\nopen({str(tmp_path / 'managed')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        )
        script.chmod(0o755)
        shipped = (HERE.parents[1] / "policies" / "pmu-off.yaml").read_text()
        remedies = f"remedies:\n  allowed: [nova_flavor_default, nova_instance_pmu_off]\n  nova: {{nova_manage: [{script}]}}\n"
        (tmp_path / "policy.yaml").write_text(shipped.replace("\nrules:", f"\n{remedies}\nrules:", 1))
        (tmp_path / "facts").mkdir()
        document = facts(running(1), stopped(2), stopped(3), stopped(4))
        hostname = document.host.identity.hostname.model_copy(update={"value": "compute-7"})
        identity = document.host.identity.model_copy(update={"hostname": hostname})
        document = document.model_copy(update={"host": document.host.model_copy(update={"identity": identity})})
        (tmp_path / "facts" / "compute-7.json").write_text(json_text(document))
        yield made


def because(plan: dict[str, Any]) -> dict[str, str]:
    return {left["subject"]["id"]: left["because"] for left in plan["left_alone"] if left["subject"]["kind"] == "instance"}


def test_plan_is_carried_out_where_nova_keeps_it_and_taken_back_where_that_is_exact(node: ControlNode) -> None:
    plan = node.plan()
    assert {step["change"]["remedy"] for step in plan["steps"]} == {"nova_flavor_default", "nova_instance_pmu_off"}
    assert because(plan) == {RUNNING: "not_stopped", LOCKED: "locked", ASKING: "opted_out"}

    rehearsed = node.run("apply", str(node.folder / "plan.json"), *node.policy, "--check")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert (node.specs, node.managed) == ({}, [])

    done = node.apply()
    assert done.returncode == 0, done.stderr
    assert node.specs == {"hw:pmu": "false"}
    assert node.managed == [["image_property", "set", STOPPED, "--property", "hw_pmu=false"]]
    (record,) = (node.remedy_dir / "nova").rglob("instances/*.json")
    assert (record.name, record.stat().st_mode & 0o777) == (f"{STOPPED}.json", 0o600)

    again = node.plan()
    assert again["steps"] == []

    back = node.run("rollback", node.run_id, *node.policy)
    assert back.returncode in (0, 3), back.stderr
    assert node.specs == {}
    assert len(node.managed) == 1  # there is no way back for the instance


def test_instance_that_was_started_since_is_not_touched(node: ControlNode) -> None:
    node.plan()
    node.servers[STOPPED]["status"] = "ACTIVE"
    done = node.apply()
    assert node.managed == []
    assert node.specs == {"hw:pmu": "false"}
    assert done.returncode == 3, done.stderr  # something of the plan was left


def test_plan_for_another_cloud_is_not_carried_out(node: ControlNode) -> None:
    node.plan()
    with fake_openstack() as other:
        other.answers.update(whole())
        node.cloud = other
        done = node.apply()
    assert done.returncode != 0
    assert (node.specs, node.managed) == ({}, [])


def test_edited_plan_is_refused(node: ControlNode) -> None:
    plan = node.plan()
    for step in plan["steps"]:
        if step["change"]["remedy"] == "nova_instance_pmu_off":
            step["change"]["uuid"] = ASKING
    (node.folder / "plan.json").write_text(json.dumps(plan))
    done = node.run("apply", str(node.folder / "plan.json"), *node.policy)
    assert done.returncode == 1
    assert "edited" in done.stderr
    assert node.managed == []
