"""A control node of a cloud: the real command line with a clouds.yaml, a policy, host facts and a directory for records of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audits import CommandResult, admit_tcg, command_environment
from running_cloud import RunningCloud

CLOUD_NAME = "under-test"
REPOSITORY = Path(__file__).resolve().parents[2]
_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class ControlNode:
    """One control node below `home`."""

    cloud: RunningCloud
    home: Path
    policy: Path

    @property
    def facts_dir(self) -> Path:
        return self.home / "facts"

    @property
    def remedy_dir(self) -> Path:
        return self.home / "remedy"

    def run(self, *words: str | Path, clouds: Path | None = None) -> CommandResult:
        """One command line to its end. Whatever it says, it never shows a traceback."""
        result = subprocess.run(
            [sys.executable, "-m", "exitguard", *map(str, words)],
            env=self.environment(clouds),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        assert "Traceback" not in result.stderr, result.stderr
        return CommandResult(result.returncode, result.stdout, result.stderr)

    def environment(self, clouds: Path | None = None) -> dict[str, str]:
        """Nothing of the machine's own settings, and no warning made an error: the SDK's dependencies have theirs."""
        kept = command_environment(self.home)
        kept.pop("PYTHONWARNINGS")
        return kept | {
            "OS_CLIENT_CONFIG_FILE": str(clouds or self.home / "clouds.yaml"),
            "EXITGUARD_REMEDY_DIR": str(self.remedy_dir),
        }

    def look_at_host(self) -> None:
        """Bring the compute host's facts home, as playbooks/facts.yml would."""
        self.facts_dir.mkdir(exist_ok=True)
        target = self.facts_dir / "compute-a.json"
        result = self.run("facts", "--connect", self.cloud.libvirt_uri, "--format", "json", "--output", target)
        assert result.exit_code == 0, result.stderr

    def audit(self) -> dict[str, Any]:
        """A fresh report of the cloud, joined with a fresh look at its host."""
        self.look_at_host()
        result = self.run("nova", "audit", "--cloud", CLOUD_NAME, "--policy", self.policy, "--format", "json", self.facts_dir)
        assert result.exit_code in {0, 2, 3}, result.stderr
        return result.document

    def seen_by(self, user: str) -> dict[str, Any]:
        """The facts of the cloud as another user sees them."""
        clouds = clouds_file(self.home / f"{user}.yaml", self.cloud.variables_of(user))
        result = self.run("nova", "facts", "--cloud", CLOUD_NAME, "--format", "json", clouds=clouds)
        assert result.exit_code == 0, result.stderr
        return result.document

    def switch_instance_pmu_off(self, uuid: str, image: str) -> None:
        """Run nova_instance_pmu_off for one instance, as a plan would."""
        remedy = "nova_instance_pmu_off"
        variables: dict[str, object] = {
            f"{remedy}_cloud": CLOUD_NAME,
            f"{remedy}_cloud_id": self.cloud_id(),
            f"{remedy}_changes": [{"uuid": uuid, "image": image}],
            f"{remedy}_nova_manage": list(self.cloud.nova_manage),
            f"{remedy}_record_dir": str(self.remedy_dir / "nova"),
            f"{remedy}_python": sys.executable,
        }
        done = run_playbook(self, remedy, variables)
        assert done.returncode == 0, done.stdout + done.stderr

    def cloud_id(self) -> str:
        """As the agent derives it."""
        result = self.run("nova", "facts", "--cloud", CLOUD_NAME, "--format", "json")
        assert result.exit_code == 0, result.stderr
        return str(result.document["cloud"]["id"])


def control_node(cloud: RunningCloud, home: Path, remedies: str = "{}") -> ControlNode:
    """A control node whose policy has this `remedies:` section."""
    policy = admit_tcg(home)
    policy.write_text(f"{policy.read_text()}\nremedies: {remedies}\n")
    clouds_file(home / "clouds.yaml", cloud.variables)
    return ControlNode(cloud, home, policy)


def clouds_file(path: Path, variables: Mapping[str, str]) -> Path:
    """A clouds.yaml with one cloud."""
    auth = {
        "auth_url": variables["OS_AUTH_URL"],
        "username": variables["OS_USERNAME"],
        "password": variables["OS_PASSWORD"],
        "project_name": variables["OS_PROJECT_NAME"],
        "user_domain_id": variables["OS_USER_DOMAIN_ID"],
        "project_domain_id": variables["OS_PROJECT_DOMAIN_ID"],
    }
    entry = {"auth": auth, "region_name": variables["OS_REGION_NAME"], "identity_api_version": 3}
    path.touch(mode=0o600)
    path.write_text(json.dumps({"clouds": {CLOUD_NAME: entry}}))
    return path


def run_playbook(node: ControlNode, name: str, variables: dict[str, object], *options: str) -> "subprocess.CompletedProcess[str]":
    """A playbook by hand, on this machine."""
    folder = node.home / "ansible"
    environment = node.environment() | {
        "ANSIBLE_HOME": str(folder),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    playbook = REPOSITORY / "playbooks" / f"{name}.yml"
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", "-e", json.dumps(variables), *options, str(playbook)]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
