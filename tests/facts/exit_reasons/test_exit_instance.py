"""Trace instances of our own in this machine's tracefs: made, recognised, and gone afterwards, also after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exitguard.facts.exit_reasons.instance import is_leftover, own_name
from exitguard.facts.exit_reasons.reading import read_exit_reasons, why_not
from exitguard.facts.tree import HostTree

_MOUNT = "mount -t tracefs tracefs /sys/kernel/tracing"
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{_MOUNT} && exec "$0" -c "$1"', sys.executable)
#: Prints what it saw as JSON; the child holds an instance until it is killed.
_KILLED = """
import json, subprocess, sys
from pathlib import Path
from exitguard.facts.exit_reasons.instance import own_instance, remove_leftovers
from exitguard.facts.tree import HostTree

CHILD = '''
import sys
from exitguard.facts.exit_reasons.instance import own_instance
from exitguard.facts.tree import HostTree
with own_instance(HostTree(), "/sys/kernel/tracing") as folder:
    print(folder.name, flush=True)
    sys.stdin.read()
'''
instances = Path("/sys/kernel/tracing/instances")
tree = HostTree()
foreign = instances / "exitguard-test-of-somebody-else"
foreign.mkdir()
try:
    with own_instance(tree, "/sys/kernel/tracing") as mine:
        made = {"there": mine.is_dir(), "recording": (mine / "tracing_on").read_text().strip()}
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        name = child.stdout.readline().strip()
        while_both_run = remove_leftovers(tree).get()
        child.kill()
        child.communicate()
        left = (instances / name).is_dir()
        removed = remove_leftovers(tree).get()
        made["there_after_the_removal"] = mine.is_dir()
    try:
        with own_instance(tree, "/sys/kernel/tracing") as again:
            raise ValueError
    except ValueError:
        made["gone"] = not again.exists() and not mine.exists()
    print(json.dumps([made, name, while_both_run, left, removed, (instances / name).exists(), foreign.is_dir()]))
finally:
    foreign.rmdir()
"""


def why_no_tracefs() -> str | None:
    if os.geteuid() != 0:
        return "root is missing: tracefs could not be mounted"
    mounted = subprocess.run([*_OWN_MOUNTS, "pass"], capture_output=True, text=True, check=False)
    return None if mounted.returncode == 0 else f"a tracefs of its own is missing: {mounted.stderr.strip()}"


@pytest.mark.integration
def test_instance_of_a_killed_process_is_removed_and_no_other() -> None:
    missing = why_no_tracefs()
    if missing is not None:
        pytest.skip(missing)
    result = subprocess.run([*_OWN_MOUNTS, _KILLED], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    made, name, while_both_run, left, removed, still_there, foreign = json.loads(result.stdout)
    assert made == {"there": True, "recording": "0", "there_after_the_removal": True, "gone": True}
    assert while_both_run == []
    assert left, "the kernel keeps an instance whose process was killed"
    assert removed == [name]
    assert not still_there
    assert foreign, "an instance of another name is somebody else's"


def test_own_instance_is_no_leftover_while_its_process_runs() -> None:
    name = own_name(HostTree())
    assert name is not None
    assert not is_leftover(HostTree(), name)


def test_process_that_took_the_number_of_a_dead_one_does_not_keep_its_instance() -> None:
    name = own_name(HostTree())
    assert name is not None
    assert is_leftover(HostTree(), f"{name}0"), "the same pid, begun at another time"


@pytest.mark.parametrize("part", [1, 2])
def test_instance_of_another_boot_or_pid_namespace_is_left_alone(part: int) -> None:
    """Its process cannot be seen from here, so that it would look gone."""
    words = (own_name(HostTree()) or "").split("-")
    words[3] = str(2**31 - 1)  # above any pid that a kernel gives (PID_MAX_LIMIT is 2^22)
    assert is_leftover(HostTree(), "-".join(words))
    words[part] = "00000000" if part == 1 else "1"
    assert not is_leftover(HostTree(), "-".join(words))


@pytest.mark.parametrize("name", ["", "exitguard", "exitguard-1-2-3-4", "perf", "../exitguard", "exitguard-00000000-1-1-1-1"])
def test_instance_of_another_name_is_left_alone(name: str) -> None:
    assert not is_leftover(HostTree(), name)


def test_other_hosts_files_are_not_counted(tmp_path: Path) -> None:
    obstacle = why_not(HostTree(tmp_path))
    assert obstacle is not None
    assert "only on the machine that this runs on" in obstacle.reason
    assert read_exit_reasons(HostTree(tmp_path), 1.0).reason == obstacle.reason


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("nan")])
def test_time_without_bounds_is_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 60 seconds"):
        read_exit_reasons(HostTree(tmp_path), seconds)
