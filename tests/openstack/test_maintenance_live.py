"""nova_maintenance and nova_canary beside a real Nova: what it refuses, keeps, forgets, and makes of a canary."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from control_node import CLOUD_NAME, REPOSITORY, ControlNode, run_playbook
from running_cloud import RunningCloud
from stack_settings import FAKE_COMPUTE, REAL_COMPUTE
from zoo import Zoo, open_zoo

PREFIX = "f-live-"
_LIMIT_SECONDS = 240
HERE = Path(__file__).parent
#: A vendor's patch as it is seen from outside: PMU off wherever flavor and image say nothing.
PATCHED_COMPUTE = """
import runpy, sys
import nova.cmd.compute
from nova.virt import hardware
asked = hardware.get_pmu_constraint
def constraint(flavor, image_meta):
    wish = asked(flavor, image_meta)
    return False if wish is None else wish
hardware.get_pmu_constraint = constraint
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def zoo(cloud: RunningCloud) -> Iterator[Zoo]:
    found = open_zoo(cloud, PREFIX)
    found.make_flavor("huge", None, memory_mib=100_000_000)
    yield found
    found.clear()


def service(zoo: Zoo, host: str) -> dict[str, Any]:
    (shown,) = zoo.administrator.compute.get(f"/os-services?binary=nova-compute&host={host}").json()["services"]
    return dict(shown)


def canaries(zoo: Zoo) -> list[dict[str, Any]]:
    servers = zoo.administrator.compute.get("/servers/detail?all_tenants=1").json()["servers"]
    return [server for server in servers if server["name"].startswith("exitguard-canary-")]


def steps_of(played: "subprocess.CompletedProcess[str]", exit_code: int) -> list[dict[str, Any]]:
    assert played.returncode == exit_code, played.stdout + played.stderr
    (line,) = (line for line in played.stdout.splitlines() if '"exitguard": {"steps"' in line)
    steps: list[dict[str, Any]] = json.loads(line[line.index("=> ") + 3 :])["exitguard"]["steps"]
    return steps


def until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


# Maintenance


def maintain(node: ControlNode, state: str, *options: str, identity: str = "F-1", exit_code: int = 0) -> tuple[str, str]:
    settings: dict[str, object] = {
        "ansible_python_interpreter": sys.executable,
        "nova_maintenance_cloud": CLOUD_NAME,
        "nova_maintenance_cloud_id": node.cloud_id(),
        "nova_maintenance_hosts": [FAKE_COMPUTE],
        "nova_maintenance_state": state,
        "nova_maintenance_id": identity,
        "nova_maintenance_why": "new kernel",
    }
    (step,) = steps_of(run_playbook(node, "nova_maintenance", settings, "-v", *options), exit_code)
    assert step["subject"] == FAKE_COMPUTE
    return step["outcome"], step["reason"]


@pytest.fixture
def enabled_again(zoo: Zoo) -> Iterator[None]:
    yield
    zoo.administrator.compute.put(f"/os-services/{service(zoo, FAKE_COMPUTE)['id']}", json={"status": "enabled"})


@pytest.mark.usefixtures("enabled_again")
def test_disabled_host_gets_no_instance_until_we_enable_it_and_another_s_maintenance_is_not_ended(node: ControlNode, zoo: Zoo) -> None:
    assert maintain(node, "disabled", "--check") == ("done", "would be disabled; no instance is there")
    assert service(zoo, FAKE_COMPUTE)["status"] == "enabled"
    assert maintain(node, "disabled") == ("done", "disabled, and read back; no instance is there")
    assert (service(zoo, FAKE_COMPUTE)["status"], service(zoo, FAKE_COMPUTE)["disabled_reason"]) == (
        "disabled",
        "exitguard: F-1 new kernel",
    )
    assert maintain(node, "disabled")[0] == "already"
    made = zoo.administrator.compute.post(
        "/servers",
        json={
            "server": {
                "name": f"{PREFIX}nowhere",
                "flavorRef": zoo.flavors["silent"],
                "imageRef": zoo.images["silent"],
                "networks": "none",
                "host": FAKE_COMPUTE,
            }
        },
    )
    assert made.status_code == 202, made.text
    uuid = made.json()["server"]["id"]
    until(lambda: zoo.server(uuid)["status"] == "ERROR", "a disabled host took an instance")
    assert "No valid host" in zoo.server(uuid)["fault"]["message"]
    assert maintain(node, "enabled", identity="F-2", exit_code=2)[0] == "refused"
    assert service(zoo, FAKE_COMPUTE)["status"] == "disabled"
    assert maintain(node, "enabled") == ("done", "enabled, and read back")
    assert (service(zoo, FAKE_COMPUTE)["status"], service(zoo, FAKE_COMPUTE)["disabled_reason"]) == ("enabled", None)
    assert maintain(node, "enabled")[0] == "already"


@pytest.mark.usefixtures("enabled_again")
def test_what_a_person_disabled_is_theirs(node: ControlNode, zoo: Zoo) -> None:
    body = {"status": "disabled", "disabled_reason": "broken fan"}
    zoo.administrator.compute.put(f"/os-services/{service(zoo, FAKE_COMPUTE)['id']}", json=body)
    assert maintain(node, "disabled") == ("already", "already disabled by another: broken fan; no instance is there")
    assert maintain(node, "enabled", exit_code=2) == ("refused", "disabled by another, and left so: broken fan")
    assert service(zoo, FAKE_COMPUTE)["disabled_reason"] == "broken fan"


# The canary


def settings_of_canary(node: ControlNode, host: str, **more: object) -> dict[str, object]:
    return {
        "ansible_python_interpreter": sys.executable,
        "exitguard_become": False,
        "nova_canary_cloud": CLOUD_NAME,
        "nova_canary_hosts": [host],
        "nova_canary_flavor": f"{PREFIX}silent",
        "nova_canary_image": f"{PREFIX}silent",
        "nova_canary_uri": node.cloud.libvirt_uri,
        "nova_canary_record_dir": str(node.remedy_dir / "nova"),
        **more,
    }


def canary(node: ControlNode, host: str, *options: str, exit_code: int = 0, **more: object) -> tuple[str, str]:
    played = run_playbook(node, "nova_canary", settings_of_canary(node, host, **more), "-v", *options)
    (step,) = steps_of(played, exit_code)
    return step["outcome"], step["reason"]


def noted(node: ControlNode) -> list[dict[str, Any]]:
    """The canaries that an observation of the cloud brings along."""
    result = node.run("nova", "facts", "--cloud", CLOUD_NAME, "--remedy-dir", node.remedy_dir, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert result.document.get("notices", []) == []
    found: list[dict[str, Any]] = result.document["canaries"]
    return found


def test_canary_of_nova_as_it_is_disproves_the_default_and_is_gone(node: ControlNode, zoo: Zoo) -> None:
    assert canary(node, REAL_COMPUTE, "--check") == ("done", "a canary would be made and removed")
    assert not node.remedy_dir.exists()
    outcome, reason = canary(node, REAL_COMPUTE)
    assert outcome == "done"
    assert reason == "Nova 26.2.2 wrote no <pmu> for a silent flavor and image: it leaves the PMU to QEMU here; the canary was removed"
    assert [(each["host"], each["version"], each["element"]) for each in noted(node)] == [(REAL_COMPUTE, "26.2.2", "absent")]
    assert canaries(zoo) == []


def test_silent_is_looked_at_before_anything_is_made(node: ControlNode, zoo: Zoo) -> None:
    outcome, reason = canary(node, REAL_COMPUTE, exit_code=2, nova_canary_flavor=f"{PREFIX}off")
    assert (outcome, reason) == ("refused", f"flavor '{PREFIX}off' says hw:pmu='false': expected one that says nothing")
    outcome, reason = canary(node, REAL_COMPUTE, exit_code=2, nova_canary_image=f"{PREFIX}on")
    assert (outcome, reason) == ("refused", f"image '{PREFIX}on' says hw_pmu='true': expected one that says nothing")
    assert canaries(zoo) == []


def test_canary_that_nova_accepts_and_cannot_build_is_explained_and_removed(node: ControlNode, zoo: Zoo) -> None:
    outcome, reason = canary(node, REAL_COMPUTE, exit_code=2, nova_canary_flavor=f"{PREFIX}huge")
    assert outcome == "failed"
    assert reason.startswith("Nova accepted it, and then it failed: No valid host was found.")
    assert reason.endswith("; the canary was removed")
    assert canaries(zoo) == []


def test_canary_that_the_libvirt_asked_does_not_know_is_explained_and_removed(node: ControlNode, zoo: Zoo) -> None:
    outcome, reason = canary(node, REAL_COMPUTE, exit_code=2, nova_canary_uri="test:///default")
    assert outcome == "failed"
    assert "failed to get domain" in reason
    assert reason.endswith("; the canary was removed")
    assert canaries(zoo) == []


def test_role_that_may_not_choose_a_host_is_told_which_rule_says_so(node: ControlNode, zoo: Zoo) -> None:
    member = {name: text for name, text in zoo.cloud.variables_of("demo").items() if name.startswith("OS_")}
    words = {**settings_of_canary(node, REAL_COMPUTE), "nova_canary_cloud": ""}
    played = ansible(node, words, member)
    out, _ = played.communicate(timeout=_LIMIT_SECONDS)
    assert played.returncode == 2
    assert "this role may not see compute services" in out
    assert "os_compute_api:os-services:list" in out
    assert canaries(zoo) == []


def ansible(node: ControlNode, settings: dict[str, object], more: dict[str, str]) -> "subprocess.Popen[str]":
    """The playbook in a session of its own, as it runs."""
    program = str(Path(sys.executable).parent / "ansible-playbook")
    words = [program, "-v", "-i", "localhost,", "-c", "local", "-e", json.dumps(settings), str(REPOSITORY / "playbooks/nova_canary.yml")]
    environment = node.environment() | {"ANSIBLE_HOME": str(node.home / "ansible"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8", **more}
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_canary_of_a_run_that_was_killed_is_removed_by_the_next(node: ControlNode, zoo: Zoo) -> None:
    with ansible(node, settings_of_canary(node, REAL_COMPUTE), {}) as killed:
        until(lambda: canaries(zoo) != [] or killed.poll() is not None, "no canary came")
        os.killpg(killed.pid, signal.SIGKILL)
    (left,) = canaries(zoo)
    assert canary(node, REAL_COMPUTE)[0] == "done"
    assert canaries(zoo) == []
    assert left["id"] not in zoo.cloud.virsh("list", "--all", "--uuid").split()


# A Nova that a vendor patched


def nova_compute() -> Path | None:
    """The real nova-compute of the stack that runs these very tests: its folder of /proc; None beside any other cloud.

    Other stacks may be seen from here, those in PID namespaces below this one included. What counts is whose child it is: this stack
    is a process above this one, and started nova-compute as it started the tests.
    """
    if Path("/proc/self").readlink() != Path(str(os.getpid())):
        return None  # this /proc is another namespace's, and so are its numbers
    above = ancestors(os.getpid())
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = parent_of(int(folder.name))
        except OSError:
            continue
        program = any(word.endswith(b"nova_compute.py") for word in words) and any(word.endswith(b"/compute.conf") for word in words)
        if program and parent in above:
            return folder
    return None


def ancestors(pid: int) -> set[int]:
    """The processes above one, but for the first of all, which inherits orphans of everybody."""
    found: set[int] = set()
    while (pid := parent_of(pid)) > 1:
        found.add(pid)
    return found


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])


@contextmanager
def instead_of_nova_compute(zoo: Zoo, program: Path) -> Iterator[None]:
    """Nova's compute, started by another program; afterwards it is started as it was."""
    folder = nova_compute()
    assert folder is not None
    words = [word.decode() for word in (folder / "cmdline").read_bytes().split(b"\0") if word]
    entries = (entry.partition(b"=") for entry in (folder / "environ").read_bytes().split(b"\0") if entry)
    environment = {name.decode(): text.decode() for name, _, text in entries}
    place = (folder / "cwd").readlink()
    os.kill(int(folder.name), signal.SIGKILL)
    try:
        with started([words[0], str(program), *words[1:]], environment, place):
            wait_for_report(zoo)
            yield
    finally:
        # Left to run: the stack's namespace ends it with everything else.
        subprocess.run(["setsid", "--fork", *words], env=environment, cwd=place, stdin=subprocess.DEVNULL, check=True)
        wait_for_report(zoo)


@contextmanager
def started(words: list[str], environment: dict[str, str], place: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(words, env=environment, cwd=place, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_report(zoo: Zoo) -> None:
    """Return when the nova-compute of now has told that it is there."""
    time.sleep(1.1)  # Nova tells whole seconds
    before = service(zoo, REAL_COMPUTE)["updated_at"]
    until(lambda: service(zoo, REAL_COMPUTE)["updated_at"] > before, "nova-compute does not report")


def test_canary_of_a_nova_with_a_vendor_s_default_proves_it(node: ControlNode, zoo: Zoo, tmp_path: Path) -> None:
    if nova_compute() is None:
        pytest.skip("the nova-compute of this cloud is not the tests' to restart")
    program = tmp_path / "patched_compute.py"
    program.write_text(PATCHED_COMPUTE)
    with instead_of_nova_compute(zoo, program):
        outcome, reason = canary(node, REAL_COMPUTE)
    assert outcome == "done"
    assert reason.startswith("Nova 26.2.2 wrote <pmu state='off'/> for a silent flavor and image: it defaults to PMU off here")
    assert [(each["host"], each["element"]) for each in noted(node)] == [(REAL_COMPUTE, "off")]
    assert canaries(zoo) == []
    assert canary(node, REAL_COMPUTE)[1].startswith("Nova 26.2.2 wrote no <pmu>")
