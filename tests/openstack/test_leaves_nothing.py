"""The OpenStack of the tests ends with the process that brought it up, however that ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from control_node import REPOSITORY

_LIMIT_SECONDS = 240
_WITH_STACK = REPOSITORY / "tests/openstack/with_stack.py"


def processes_of_other_namespaces() -> set[str]:
    """Processes that are seen from here and live in a PID namespace below this one."""
    own = Path("/proc/self/ns/pid").readlink()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            elsewhere = (folder / "ns/pid").readlink() != own
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if elsewhere and command:
            found.add(f"{folder.name} {command}")
    return found


def wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize("begun", ["rabbitmq", "nova.cmd.manage"])
def test_killed_while_it_comes_up_it_leaves_no_process_mount_or_file(begun: str) -> None:
    before, mounts, files = processes_of_other_namespaces(), Path("/proc/mounts").read_text(), set(Path("/tmp").iterdir())  # noqa: S108
    words = [sys.executable, str(_WITH_STACK), "sleep", "600"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: any(begun in command for command in processes_of_other_namespaces() - before), f"{begun} never began")
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: processes_of_other_namespaces() <= before, f"left: {processes_of_other_namespaces() - before}")
    assert Path("/proc/mounts").read_text() == mounts
    assert set(Path("/tmp").iterdir()) == files  # noqa: S108
