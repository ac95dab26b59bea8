"""playbooks/deploy_agent.yml and its role where nothing is installed: waves, refusals, and what is worked out for an EL9.

An EL9 does not run here. What can be told without one is told: which packages, repository and files the role would ask for, given
facts of an EL9 that are set by hand.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.integration

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"
ROLE = PLAYBOOKS / "roles" / "exitguard_agent"
WHEEL = "/srv/exitguard-0.1.0-py3-none-any.whl"
EL9 = {
    "os_family": "RedHat",
    "distribution": "Rocky",
    "distribution_version": "9.4",
    "distribution_major_version": "9",
    "architecture": "x86_64",
}
DEBIAN = {"os_family": "Debian", "distribution": "Debian", "distribution_version": "12.9", "distribution_major_version": "12"}


def run_playbook(
    playbook: Path, folder: Path, *options: str, hosts: str = "hv1,", **variables: object
) -> "subprocess.CompletedProcess[str]":
    settings = {"ansible_python_interpreter": sys.executable, "ansible_become": False, **variables}
    command = [sys.executable, "-m", "ansible", "playbook", "-i", hosts, "-c", "local", "-e", json.dumps(settings), *options, str(playbook)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COV"))}
    environment |= {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
    environment |= {"ANSIBLE_ROLES_PATH": str(PLAYBOOKS / "roles")}
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )


def worked_out(folder: Path, facts: dict[str, object], expressions: dict[str, str], **variables: object) -> dict[str, Any]:
    """What the role makes of `variables` on a host with these facts, after it has refused what it refuses."""
    found = folder / "found.json"
    tasks = [
        {"ansible.builtin.set_fact": {**facts, "cacheable": True}},
        {"ansible.builtin.include_role": {"name": "exitguard_agent", "tasks_from": "refuse.yml", "public": True}},
        {"ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": str(found)}, "vars": {"found": expressions}},
    ]
    playbook = folder / "play.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    result = run_playbook(playbook, folder, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    answer: dict[str, Any] = json.loads(found.read_text())
    return answer


def refusal(folder: Path, facts: dict[str, object], **variables: object) -> str:
    with pytest.raises(AssertionError) as refused:
        worked_out(folder, facts, {}, **variables)
    return " ".join(str(refused.value).split())


def test_declared_arguments_and_defaults_are_the_same() -> None:
    declared = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    worked_out_by_the_role = {"exitguard_agent_builder_repository"}
    assert {name: option["default"] for name, option in declared.items() if "default" in option} == {
        name: value for name, value in defaults.items() if name not in worked_out_by_the_role
    }
    assert all(option.get("description") for option in declared.values())


def test_first_host_that_fails_ends_the_rollout_before_the_next_wave(tmp_path: Path) -> None:
    result = run_playbook(
        PLAYBOOKS / "deploy_agent.yml", tmp_path, "--check", hosts="hv1,hv2,hv3,", exitguard_agent_package="/srv/other.deb"
    )
    assert result.returncode == 2, result.stdout
    recap = result.stdout.rpartition("PLAY RECAP")[2]
    assert "hv1" in recap
    assert "hv2" not in recap
    assert "hv3" not in recap


def test_rollout_goes_on_where_more_hosts_may_fail(tmp_path: Path) -> None:
    result = run_playbook(
        PLAYBOOKS / "deploy_agent.yml",
        tmp_path,
        "--check",
        hosts="hv1,hv2,hv3,",
        exitguard_agent_package="/srv/other.deb",
        deploy_waves=[3],
        deploy_max_fail_percentage=100,
    )
    recap = result.stdout.rpartition("PLAY RECAP")[2]
    assert recap.count("failed=1") == 3, result.stdout


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("exitguard", ""),
        ("exitguard=0.1.0", ""),
        ("/srv/exitguard_0.1.0+site2_amd64.deb", "0.1.0+site2"),
        ("https://archive.example.org/p/exitguard_0.2.0%7Erc1%2Bsite2_amd64.deb?token=1", "0.2.0~rc1+site2"),
    ],
)
def test_version_of_a_debian_package_is_in_its_name(tmp_path: Path, package: str, version: str) -> None:
    assert worked_out(tmp_path, DEBIAN, {"version": "{{ exitguard_agent_file_version }}"}, exitguard_agent_package=package) == {
        "version": version
    }


def test_el9_gets_the_headers_of_the_libvirt_that_it_has_from_the_builder_repository(tmp_path: Path) -> None:
    packages = {"libvirt-libs": [{"name": "libvirt-libs", "version": "10.5.0", "release": "7.el9_5", "epoch": None}]}
    asked = {"headers": "{{ exitguard_agent_libvirt_headers }}", "from": "{{ exitguard_agent_builder_repository }}"}
    found = worked_out(tmp_path, {**EL9, "packages": packages}, asked, exitguard_agent_package=WHEEL)
    assert found == {"headers": "libvirt-devel-10.5.0-7.el9_5", "from": "crb"}


@pytest.mark.parametrize(
    ("distribution", "repository"), [("RedHat", "codeready-builder-for-rhel-9-x86_64-rpms"), ("OracleLinux", "ol9_codeready_builder")]
)
def test_el9_without_libvirt_gets_any_headers_and_each_vendor_its_own_repository(
    tmp_path: Path, distribution: str, repository: str
) -> None:
    asked = {"headers": "{{ exitguard_agent_libvirt_headers }}", "from": "{{ exitguard_agent_builder_repository }}"}
    facts = {**EL9, "distribution": distribution, "packages": {}}
    assert worked_out(tmp_path, facts, asked, exitguard_agent_package=WHEEL) == {"headers": "libvirt-devel", "from": repository}


def test_el9_version_is_in_the_name_of_the_wheel(tmp_path: Path) -> None:
    found = worked_out(tmp_path, EL9, {"version": "{{ exitguard_agent_file_version }}"}, exitguard_agent_package=WHEEL)
    assert found == {"version": "0.1.0"}


@pytest.mark.parametrize(
    ("facts", "variables", "words"),
    [
        (DEBIAN, {"exitguard_agent_package": "/srv/exitguard.deb"}, "is /srv/exitguard.deb. Expected exitguard or exitguard=VERSION"),
        (
            DEBIAN,
            {"exitguard_agent_package": "http://example.org/exitguard_1.0_amd64.deb"},
            "Expected https, or exitguard_agent_package_checksum",
        ),
        (EL9, {}, "is exitguard. Expected a file exitguard-VERSION-py3-none-any.whl on the control node"),
        (
            {**EL9, "distribution_major_version": "8"},
            {"exitguard_agent_package": WHEEL},
            "neither of the Debian family nor an EL9. Nothing was done",
        ),
        ({**DEBIAN, "os_family": "Suse"}, {}, "neither of the Debian family nor an EL9"),
        (DEBIAN, {"exitguard_agent_policy_files": ["/a/x.yaml", "/b/x.yaml"]}, "expected files with names that differ"),
        (
            DEBIAN,
            {"exitguard_agent_policy_files": ["/a/x.yaml"], "exitguard_agent_config": {"policy_files": ["/etc/x.yaml"]}},
            "policy_files: expected either exitguard_agent_policy_files",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused_at_once(
    tmp_path: Path, facts: dict[str, object], variables: dict[str, object], words: str
) -> None:
    assert words in refusal(tmp_path, facts, **variables)


@pytest.mark.parametrize("playbook", sorted(path.name for path in PLAYBOOKS.glob("*.yml")))
def test_playbook_is_valid(tmp_path: Path, playbook: str) -> None:
    result = run_playbook(PLAYBOOKS / playbook, tmp_path, "--syntax-check")
    assert result.returncode == 0, result.stdout + result.stderr
