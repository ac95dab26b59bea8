"""Nothing that a playbook started outlives it: when its time is over, when nobody wants it any more, and when processes are killed.

What is there is told by a variable of our own in the environment, not by what the code under test looks for.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from exitguard.act.ansible import HostOutcome, PlaybookRun, end_leftovers, run_playbook

pytestmark = pytest.mark.integration

PLAYBOOK = Path(__file__).with_name("playbooks") / "hang.yml"
HOSTS = ("first", "second")
DEADLINE_SECONDS = 60
SAID = ({"said": True},)
#: The caller, for the tests that kill it.
CALLER = """
import sys
from pathlib import Path
from exitguard.act.ansible import PlaybookRun, run_playbook
playbook, inventory, directory = map(Path, sys.argv[1:4])
run_playbook(PlaybookRun(playbook, tuple(sys.argv[4:]), inventory), directory)
"""


class Watch:
    """The processes of one test."""

    def __init__(self, folder: Path, variable: str) -> None:
        self.folder = folder
        self.variable = variable.encode()

    def run(self, *, stubborn: bool = False, timeout_seconds: float = 200) -> PlaybookRun:
        return PlaybookRun(PLAYBOOK, HOSTS, self.inventory(stubborn=stubborn), forks=5, timeout_seconds=timeout_seconds)

    def inventory(self, *, stubborn: bool) -> Path:
        """Two hosts, one of them stubborn if any is."""
        path = self.folder / "inventory.yml"
        local = f"ansible_connection: local, ansible_python_interpreter: {sys.executable}"
        hosts = "".join(
            f"    {host}: {{{local}, pid_file: {self.folder / host}, stubborn: {str(stubborn and host == HOSTS[0]).lower()}}}\n"
            for host in HOSTS
        )
        path.write_text(f"all:\n  hosts:\n{hosts}")
        return path

    def hanging(self) -> bool:
        """Whether every host hangs where it should."""
        return all((self.folder / host).exists() and (self.folder / host).read_text().strip() for host in HOSTS)

    def processes(self, words: str = "") -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended meanwhile
                if self.variable in (entry / "environ").read_bytes().split(b"\0") and words.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def runner(self) -> int:
        [pid] = self.processes("\0exitguard.act.ansible_process\0")
        return pid


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    name, value = "EXITGUARD_TEST", secrets.token_hex(8)
    monkeypatch.setenv(name, value)
    watch = Watch(tmp_path, f"{name}={value}")
    yield watch
    left = watch.processes()
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.05)


def test_run_out_of_time_is_ended_with_all_its_processes(watch: Watch) -> None:
    result = run_playbook(watch.run(timeout_seconds=5), watch.folder / "runs")
    assert result.ended == "timed_out"
    assert result.reason == "not done within 5 s: Ansible was ended"
    assert {host.outcome for host in result.hosts.values()} == {HostOutcome.TIMED_OUT}
    assert watch.processes() == []


def test_cancelled_run_keeps_what_was_said_and_ends_stubborn_modules_and_their_children(watch: Watch) -> None:
    seen: list[int] = []

    def cancelled() -> bool:
        if watch.hanging():
            seen.extend(watch.processes())
        return bool(seen)

    result = run_playbook(watch.run(stubborn=True), watch.folder / "runs", cancelled=cancelled)
    assert len(seen) >= 6  # the process, ansible-playbook, its workers, the module, its child, sleep
    assert watch.processes() == []
    assert result.ended == "cancelled"
    assert result.reason
    for host in HOSTS:
        assert result.hosts[host].collected == SAID
        assert result.hosts[host].outcome is HostOutcome.MISSING
        assert result.hosts[host].reason == result.reason


@pytest.mark.parametrize(("number", "why"), [(signal.SIGKILL, "was killed by signal 9"), (signal.SIGTERM, "ended from outside")])
def test_end_of_the_process_that_runs_ansible_ends_all_and_is_told(watch: Watch, number: signal.Signals, why: str) -> None:
    ended: list[int] = []

    def kill_it() -> bool:
        if watch.hanging() and not ended:
            ended.append(watch.runner())
            os.kill(ended[0], number)
        return False

    result = run_playbook(watch.run(), watch.folder / "runs", cancelled=kill_it)
    assert watch.processes() == []
    assert result.ended == "broken"
    assert why in result.reason
    assert result.hosts["second"].collected == SAID


def test_exception_of_the_caller_ends_all(watch: Watch) -> None:
    def interrupt() -> bool:
        if watch.hanging():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run_playbook(watch.run(), watch.folder / "runs", cancelled=interrupt)
    assert watch.processes() == []
    assert [path.name for path in (watch.folder / "runs").glob("*/*")] == ["output.txt"]


def start_caller(watch: Watch, *, stubborn: bool = False) -> "subprocess.Popen[bytes]":
    words = map(str, (PLAYBOOK, watch.inventory(stubborn=stubborn), watch.folder / "runs", *HOSTS))
    process = subprocess.Popen([sys.executable, "-c", CALLER, *words])
    wait_until("all hosts hang", watch.hanging)
    return process


def test_killed_caller_takes_all_with_it(watch: Watch) -> None:
    caller = start_caller(watch)
    caller.kill()
    caller.wait()
    wait_until("nothing is left", lambda: not watch.processes())
    assert end_leftovers(watch.folder / "runs") == 0
    assert [path.name for path in (watch.folder / "runs").glob("*/*")] == ["output.txt"]


def test_what_two_killed_processes_left_is_ended_by_whoever_comes_next(watch: Watch) -> None:
    caller = start_caller(watch, stubborn=True)
    runner = watch.runner()
    os.kill(runner, signal.SIGSTOP)  # it must not notice
    caller.kill()
    caller.wait()
    os.kill(runner, signal.SIGKILL)
    assert len(watch.processes()) >= 5
    assert end_leftovers(watch.folder / "runs") >= 5
    assert watch.processes() == []
    assert end_leftovers(watch.folder / "runs") == 0
    assert not [path for path in (watch.folder / "runs").rglob("*") if "inputs" in path.parts]


def test_leftovers_of_other_directories_are_left_alone(watch: Watch) -> None:
    mark = {**os.environ, "EXITGUARD_RUN": secrets.token_hex(16)}
    process = subprocess.Popen(["sleep", "1000"], env=mark)
    try:
        assert end_leftovers(watch.folder / "runs") == 0
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
