"""The role exitguard_agent, played by the real ansible-playbook inside a small Debian, where everything is real but a running systemd.

Control node and host are one there: Ansible is this checkout's, shown in the root; apt, dpkg and the agent are the root's own.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from deb_package import Entry, entries
from debian_root import REPOSITORY, DebianRoot, clean_root

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PLAYBOOK = REPOSITORY / "playbooks" / "deploy_agent.yml"
SETTINGS, POLICY, WAIVERS = "/etc/exitguard/config.yaml", "/etc/exitguard/policies/pmu.yaml", "/etc/exitguard/waivers/ours.yaml"
#: Where the files of the control node lie in the root.
BROUGHT = "/srv/control"
# What any installation writes: dpkg's own records, logs, caches, and the users, which stay when their package goes.
USERS = [f"/etc/{name}{backup}" for name in ("passwd", "group", "shadow", "gshadow") for backup in ("", "-")]
RECORDS = [
    "/proc",
    "/dev",
    "/sys",
    BROUGHT,
    "/root/.ansible",
    "/var/lib/dpkg",
    "/var/lib/apt",
    "/var/log",
    "/var/cache",
    "/etc/.pwd.lock",
    *USERS,
]
# Ansible and its Python, read-only; a Python below /usr is the root's own, and the same.
SHOWN = [REPOSITORY / ".venv", REPOSITORY / "playbooks", *([] if sys.base_prefix == "/usr" else [Path(sys.base_prefix)])]


@dataclass
class Host:
    """One small Debian, and the plays of it."""

    root: DebianRoot
    package: str
    #: The variables of the last play that may have changed something.
    deployed: dict[str, object] | None = field(default=None)

    @property
    def usual(self) -> dict[str, object]:
        return {
            "exitguard_agent_package": f"{BROUGHT}/{self.package}",
            "exitguard_agent_config": {"audit_interval_seconds": 300, "call_timeout_seconds": 2.5, "connect": None},
            "exitguard_agent_policy_files": [f"{BROUGHT}/pmu.yaml"],
            "exitguard_agent_waiver_files": [f"{BROUGHT}/ours.yaml"],
        }

    def bring(self, name: str, text: str) -> str:
        self.root.at(f"{BROUGHT}/{name}").write_text(text)
        return f"{BROUGHT}/{name}"

    def play(self, *options: str, **variables: object) -> "Play":
        """Play the usual variables, but for those given; those given as None are not set at all."""
        wanted = {name: value for name, value in {**self.usual, **variables}.items() if value is not None}
        settings = json.dumps({"ansible_python_interpreter": "/usr/bin/python3", **wanted})
        ansible = [
            REPOSITORY / ".venv/bin/python",
            "-m",
            "ansible",
            "playbook",
            "-i",
            "hv1,",
            "-c",
            "local",
            "-e",
            settings,
            *options,
            PLAYBOOK,
        ]
        environment = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        play = Play(self.root.run(*ansible, environment=environment, shows=SHOWN))
        if "--check" not in options and (play.count("failed") == 0 or play.count("changed") > 0):
            self.deployed = wanted
        return play

    def text(self, path: str) -> str:
        return self.root.at(path).read_text()

    def files(self) -> dict[str, Entry]:
        return entries(self.root.path, without=[*RECORDS, str(REPOSITORY), sys.base_prefix])


@dataclass
class Play:
    """What one play said."""

    result: "subprocess.CompletedProcess[str]"

    @property
    def output(self) -> str:
        return self.result.stdout + self.result.stderr

    @property
    def words(self) -> str:
        """The output with its line breaks folded, so that a sentence can be found in it."""
        return re.sub(r"\s+", " ", self.output)

    def count(self, name: str) -> int:
        """One number of the recap: changed, failed ..."""
        recap = self.output.rpartition("PLAY RECAP")[2]
        found = re.search(rf"\b{name}=(\d+)", recap)
        assert found is not None, self.output
        return int(found[1])


@pytest.fixture(scope="module")
def host(needs_root: None, deb: Path) -> Iterator[Host]:  # noqa: ARG001 - skips
    """A small Debian with what Ansible asks of a host, and no agent yet."""
    with clean_root() as root:
        root.must("apt-get", "-q", "-o", "Acquire::Retries=3", "update")
        root.must("apt-get", "-q", "-y", "-o", "Acquire::Retries=3", "install", "--no-install-recommends", "python3", "python3-apt")
        root.at(BROUGHT).mkdir()
        shutil.copyfile(deb, root.at(f"{BROUGHT}/{deb.name}"))
        shutil.copyfile(REPOSITORY / "policies" / "pmu-off.yaml", root.at(f"{BROUGHT}/pmu.yaml"))
        root.run("true", shows=SHOWN)  # the folders to show them in are there from now on
        made = Host(root, deb.name)
        made.bring("ours.yaml", "kind: waivers\nschema_version: 1\nwaivers: []\n")
        yield made


@pytest.fixture
def deployed(host: Host) -> Host:
    """The host with the agent deployed as usual."""
    if host.deployed != host.usual:
        play = host.play()
        assert play.count("failed") == 0, play.output
    return host


def test_check_mode_tells_what_it_would_install_and_changes_nothing(host: Host) -> None:
    before = host.files()
    play = host.play("--check", "--diff")
    assert play.count("failed") == 0, play.output
    assert play.count("changed") > 0
    assert "Selecting previously unselected package exitguard" in play.output
    assert "+audit_interval_seconds: 300" in play.output
    assert "in check mode the package was not installed" in play.words
    assert host.files() == before


def test_agent_is_installed_and_configured(host: Host) -> None:
    play = host.play()
    assert play.count("failed") == 0, play.output
    assert host.root.must("exitguard", "--version").startswith("exitguard ")
    shown = host.root.must("exitguard", "config", "show")
    assert f"audit_interval_seconds: 300  # {SETTINGS}:" in shown
    assert f'policy_files: ["{POLICY}"]' in shown
    assert f'waiver_files: ["{WAIVERS}"]' in shown
    assert host.text(POLICY) == (REPOSITORY / "policies" / "pmu-off.yaml").read_text()


def test_user_of_the_daemon_can_read_its_settings_and_policy(deployed: Host) -> None:
    result = deployed.root.run("exitguard", "config", "check", SETTINGS, user="exitguard")
    assert result.returncode == 0, result.stderr


def test_second_run_changes_nothing_and_says_why_it_left_the_service_alone(deployed: Host) -> None:
    before = deployed.files()
    play = deployed.play()
    assert play.count("failed") == 0, play.output
    assert play.count("changed") == 0, play.output
    assert deployed.files() == before
    assert "systemd does not run here (there is no /run/systemd/system)" in play.words
    assert not deployed.root.at("/etc/systemd/system/multi-user.target.wants/exitguard-audit.service").is_symlink()


def test_changed_settings_are_shown_by_check_mode_and_written_by_a_run(deployed: Host) -> None:
    changed = {"exitguard_agent_config": {"audit_interval_seconds": 900}}
    before = deployed.text(SETTINGS)
    check = deployed.play("--check", "--diff", **changed)
    assert "-audit_interval_seconds: 300\n" in check.output
    assert "+audit_interval_seconds: 900\n" in check.output
    assert check.count("changed") == 1, check.output
    assert deployed.text(SETTINGS) == before

    run = deployed.play(**changed)
    assert run.count("changed") == 1, run.output
    assert "audit_interval_seconds: 900  #" in deployed.root.must("exitguard", "config", "show")
    assert "call_timeout_seconds" not in deployed.text(SETTINGS), "a setting that is not given any more has its default"


def test_settings_that_nobody_gives_are_left_as_the_host_has_them(deployed: Host) -> None:
    own = "# of the host's own administrator\nlog_level: warning\n"
    deployed.root.at(SETTINGS).write_text(own)
    play = deployed.play(exitguard_agent_config=None, exitguard_agent_policy_files=None, exitguard_agent_waiver_files=None)
    assert play.count("failed") == 0, play.output
    assert play.count("changed") == 0, play.output
    assert deployed.text(SETTINGS) == own
    deployed.deployed = None


@pytest.mark.parametrize("options", [("--check",), ()], ids=["check mode", "run"])
def test_bad_settings_are_refused_with_their_line_and_the_old_ones_stay(deployed: Host, options: tuple[str, ...]) -> None:
    before = deployed.files()
    play = deployed.play(*options, exitguard_agent_config={"audit_interval_seconds": 1})
    assert play.count("failed") == 1, play.output
    assert "refused, and the old ones stay: config.yaml:3: audit_interval_seconds: expected at least 15" in play.words
    assert deployed.files() == before


def test_bad_policy_is_refused_before_anything_is_replaced(deployed: Host) -> None:
    before = deployed.files()
    bad = deployed.bring("bad.yaml", "kind: policy\nschema_version: 1\n")
    play = deployed.play(
        exitguard_agent_policy_files=[bad], exitguard_agent_waiver_files=[], exitguard_agent_config={"audit_interval_seconds": 900}
    )
    deployed.root.at(bad).unlink()
    assert play.count("failed") == 1, play.output
    assert "bad.yaml:" in play.output
    assert deployed.files() == before


def test_package_that_is_not_what_its_name_says_is_told(deployed: Host) -> None:
    shutil.copyfile(deployed.root.at(f"{BROUGHT}/{deployed.package}"), deployed.root.at(f"{BROUGHT}/exitguard_99.0_amd64.deb"))
    play = deployed.play(exitguard_agent_package=f"{BROUGHT}/exitguard_99.0_amd64.deb")
    deployed.root.at(f"{BROUGHT}/exitguard_99.0_amd64.deb").unlink()
    assert play.count("failed") == 1, play.output
    assert "Expected 99.0: see whether another exitguard was put there by hand" in play.words


def test_upgrade_changes_the_package_alone_and_a_step_back_is_refused(deployed: Host, newer_deb: Path) -> None:
    shutil.copyfile(newer_deb, deployed.root.at(f"{BROUGHT}/{newer_deb.name}"))
    settings = deployed.text(SETTINGS)
    play = deployed.play(exitguard_agent_package=f"{BROUGHT}/{newer_deb.name}")
    assert play.count("failed") == 0, play.output
    assert play.count("changed") == 1, play.output
    assert deployed.root.must("dpkg-query", "--show", "--showformat=${Version}", "exitguard").endswith("+newer")
    assert deployed.text(SETTINGS) == settings

    back = deployed.play()
    assert back.count("failed") == 1, back.output
    assert "later version is already installed" in back.words
    # So that the other tests begin where they did; the database of a newer version is the reason for the refusal.
    deployed.root.must("dpkg", "--remove", "exitguard")
    deployed.deployed = None


def test_removal_keeps_settings_and_state_and_purging_takes_all(deployed: Host) -> None:
    audit = deployed.root.run("exitguard", "audit", "--state-dir", "/var/lib/exitguard", user="exitguard")
    assert audit.returncode == 3, audit.stderr  # there is no libvirt to ask
    state = deployed.root.at("/var/lib/exitguard")
    kept = sorted(path.name for path in state.iterdir())
    assert kept

    check = deployed.play("--check", exitguard_agent_state="absent")
    assert check.count("changed") == 1, check.output
    assert deployed.root.at("/usr/bin/exitguard").exists()

    removed = deployed.play(exitguard_agent_state="absent")
    assert removed.count("failed") == 0, removed.output
    assert not deployed.root.at("/usr/bin/exitguard").exists()
    assert sorted(path.name for path in state.iterdir()) == kept
    assert "audit_interval_seconds: 300" in deployed.text(SETTINGS)
    assert deployed.play(exitguard_agent_state="absent").count("changed") == 0

    purged = deployed.play(exitguard_agent_state="absent", exitguard_agent_purge=True)
    assert purged.count("failed") == 0, purged.output
    left = [path for path in deployed.files() if "exitguard" in path]
    assert left == []
    assert deployed.play(exitguard_agent_state="absent", exitguard_agent_purge=True).count("changed") == 0
