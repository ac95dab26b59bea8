"""kill -9 anywhere, a full disk, a file size limit: what was acknowledged is there once, and no half line is left to stick to."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from append_and_say import START, a_plan, append_event, seconds

from exitguard.store.errors import StoreError
from exitguard.store.journal import RunStore

PROGRAM = Path(__file__).with_name("append_and_say.py")
FIRST_ID = f"20261123T024601Z-{a_plan().hash.removeprefix('sha256:')[:8]}"
KILLS = 12


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def kill_while_appending(runs: Path, delay_seconds: float) -> list[int]:
    """The numbers that a process acknowledged before it was killed."""
    with subprocess.Popen([sys.executable, str(PROGRAM), str(runs), "1000000"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline())]
        try:
            process.wait(delay_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        rest = process.stdout.read()
    assert process.returncode == -9
    return acknowledged + [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]


def test_acknowledged_events_survive_sigkill_exactly_once(runs: RunStore, tmp_path: Path) -> None:
    chance = random.Random(20261123)  # noqa: S311 - not for secrets
    known = 0
    for _ in range(KILLS):
        acknowledged = kill_while_appending(tmp_path / "runs", chance.uniform(0, 0.05))
        assert acknowledged == list(range(known, known + len(acknowledged)))
        record = runs.read(FIRST_ID)
        assert not record.held
        assert [event.seq for event in record.events] == list(range(len(record.events)))
        assert [event.at for event in record.events] == [seconds(event.seq) for event in record.events]
        assert len(record.events) - (acknowledged[-1] + 1) in (0, 1), "at most one is there and not acknowledged"
        known = len(record.events)
    assert runs.run_ids() == (FIRST_ID,)


# In a process of its own, which forks one child for each call that touches the disk: the child dies by SIGKILL right before it, right
# after it, or, of a write, when half of it is done; the parent then looks at what is there.
DIE_EVERYWHERE = """
import os, shutil, signal, sys
from pathlib import Path
from append_and_say import START, a_plan, append_event
from exitguard.model.run import EventKind, Request
from exitguard.store.journal import RunStore

root = Path(sys.argv[1])
CALLS = ("open", "pwrite", "fsync", "ftruncate", "rename", "mkdir", "unlink", "rmdir", "close")

def die_at(number, when):
    count = 0
    def wrap(name, real):
        def call(*arguments, **named):
            nonlocal count
            if when == "half" and name != "pwrite":
                return real(*arguments, **named)
            count += 1
            if count == number:
                if when == "half":
                    descriptor, data, offset = arguments
                    real(descriptor, data[: len(data) // 2], offset)
                if when == "after":
                    real(*arguments, **named)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)
        return call
    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))

def create(runs, say):
    with RunStore(runs).create(a_plan(), START) as journal:
        say(append_event(journal))
        say(append_event(journal))

def go_on(runs, say):
    store = RunStore(runs)
    store.request(store.latest(), Request.PAUSE, START)
    with store.open(store.latest()) as journal:
        if journal.requested() is Request.PAUSE:
            journal.forget_request()
        say(append_event(journal))
        say(append_event(journal))

def forget(runs, say):
    RunStore(runs).forget(1)

def child_dies(action, runs, number, when):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        write = os.write
        die_at(number, when)
        action(runs, lambda seq: write(tell, bytes([seq])))
        os._exit(0)
    os.close(tell)
    status = os.waitpid(child, 0)[1]
    acknowledged = os.read(told, 100)
    os.close(told)
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"{action.__name__} {number} {when}: status {status}")
    return status == signal.SIGKILL, list(acknowledged)

def prepare(action, runs):
    if action is go_on:
        with RunStore(runs).create(a_plan(), START) as journal:
            append_event(journal)
        with (runs / journal.run_id / "journal.jsonl").open("ab") as file:
            file.write(b'{"chain":"cut sh')
        return 1
    if action is forget:
        for kind in (EventKind.FINISHED, EventKind.STOPPED, EventKind.ABORTED, EventKind.FINISHED):
            with RunStore(runs).create(a_plan(), START) as journal:
                journal.append(kind, START)
    return 0

points = 0
for action in (create, go_on, forget):
    for when in ("before", "after", "half"):
        number, dies = 0, True
        while dies:
            number += 1
            runs = root / f"{action.__name__}-{when}-{number}"
            first = prepare(action, runs)
            before = RunStore(runs).run_ids()
            dies, acknowledged = child_dies(action, runs, number, when)
            points += dies
            where = (action.__name__, when, number)
            store = RunStore(runs)
            run_ids = store.run_ids()
            records = [store.read(run_id) for run_id in run_ids]
            assert not any(record.held for record in records), where
            if action is forget:
                # Runs go from the old end, whole: the stopped one and the last never.
                assert {before[1], before[3]} <= set(run_ids) <= set(before), where
                assert (before[0] in run_ids) <= (before[2] in run_ids), where
                left = tuple(run_id for run_id in (before[0], before[2]) if run_id in run_ids)
                assert store.forget(1) == left, where
                assert store.run_ids() == (before[1], before[3]), where
                assert not list(runs.glob(".*")), (where, list(runs.glob(".*")))
            else:
                assert acknowledged == list(range(first, first + len(acknowledged))), where
                assert len(run_ids) <= 1, where
                events = [record.events for record in records]
                if acknowledged or first:
                    assert len(events[0]) - first - len(acknowledged) in (0, 1), (where, len(events[0]), acknowledged)
                with store.create(a_plan(), START) if not run_ids else store.open(run_ids[0]) as journal:
                    known = len(journal.events)
                    assert known == (len(events[0]) if events else 0), where
                    assert journal.requested() in (None, Request.PAUSE), where
                    assert append_event(journal) == known, where
                assert not list(runs.glob(".*")) or run_ids, where
                assert len(store.read(store.latest()).events) == known + 1, where
            shutil.rmtree(runs)
print(points)
"""


def test_death_at_every_single_call_leaves_whole_runs_and_whole_events(tmp_path: Path) -> None:
    result = run_program(DIE_EVERYWHERE, tmp_path, prefix=mounting(tmp_path, "64m"))  # no kill depends on how slow the disk is
    assert int(result.stdout) > 150


def test_event_is_on_the_disk_before_its_append_returns(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a power cut would take cannot be shown here; that the whole line was there when the disk was told to keep it can.
    kept: dict[int, int] = {}
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        kept[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", watched)
    with runs.create(a_plan(), START) as journal:
        directory = journal.ansible_dir.parent
        for path in (directory / "plan.json", directory / "journal.jsonl", directory, directory.parent):
            assert kept[path.stat().st_ino] == path.stat().st_size
        for _ in range(3):
            append_event(journal)
            status = (directory / "journal.jsonl").stat()
            assert kept[status.st_ino] == status.st_size


# No room


def run_program(program: str, *arguments: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parent)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def mounting(directory: Path, size: str) -> tuple[str, ...]:
    """A command prefix that runs a program with a tmpfs on `directory`, seen by that program only. Skips where that may not be."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is missing")
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} none "$0" && exec "$@"')
    if os.geteuid() == 0:
        prefix = ("unshare", *prefix[3:])
    probe = subprocess.run([*prefix, str(directory), "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"this user may not mount a tmpfs in a namespace: {probe.stderr.strip()}")
    return (*prefix, str(directory))


# In a process of its own, since the limit cannot be raised again without privilege. Python ignores SIGXFSZ: pwrite() fails with EFBIG.
FILE_SIZE_LIMIT = """
import resource, sys
from pathlib import Path
from append_and_say import START, a_plan, append_event
from exitguard.model.run import EventKind
from exitguard.store.errors import StoreFull
from exitguard.store.journal import RunStore

with RunStore(Path(sys.argv[1])).create(a_plan(), START) as journal:
    append_event(journal)
    path = journal.ansible_dir.parent / "journal.jsonl"
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300, size + 300))
    try:
        journal.append(EventKind.STOPPED, START, reason="x" * 1000)
    except StoreFull as error:
        print(error)
    assert path.stat().st_size == size, "half a line was left behind"
    assert journal.append(EventKind.STOPPED, START, reason="short").seq == 1
"""

FULL_FILE_SYSTEM = """
import os, sys
from pathlib import Path
from append_and_say import START, a_plan, append_event
from exitguard.model.run import EventKind, Request
from exitguard.store.errors import StoreFull
from exitguard.store.journal import RunStore

root = Path(sys.argv[1])
store, filler = RunStore(root / "runs"), root / "filler"

def fill():
    with filler.open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == 28, error

def refused(action):
    try:
        action()
    except StoreFull as error:
        assert "there was no room to write" in str(error) and "Free some there" in str(error), error
    else:
        raise SystemExit("written on a full disk")

with store.create(a_plan(), START) as journal:
    append_event(journal)
    path = journal.ansible_dir.parent / "journal.jsonl"
    size = path.stat().st_size
    fill()
    # The last block has room for some of it: a line that begins there and does not end.
    for length in (5000, 20000):
        refused(lambda: journal.append(EventKind.STOPPED, START, reason="x" * length))
        assert path.stat().st_size == size
    refused(lambda: store.request(journal.run_id, Request.PAUSE, START))
    assert journal.requested() is None
    assert len(store.read(journal.run_id).events) == 1
before = sorted(path.relative_to(root) for path in root.rglob("*"))
refused(lambda: store.create(a_plan(), START))
assert sorted(path.relative_to(root) for path in root.rglob("*")) == before
with store.open(journal.run_id) as journal:  # the names of those who hold it have their room already
    refused(lambda: journal.append(EventKind.STOPPED, START, reason="x" * 5000))
    filler.unlink()
    assert append_event(journal) == 1
assert len(store.read(journal.run_id).events) == 2
print("done")
"""

READ_ONLY_FILE_SYSTEM = """
import subprocess, sys
from pathlib import Path
from append_and_say import START, a_plan, append_event
from exitguard.model.run import Request
from exitguard.store.errors import StoreError
from exitguard.store.journal import RunStore

root = Path(sys.argv[1])
store = RunStore(root / "runs")
with store.create(a_plan(), START) as journal:
    append_event(journal)
subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
assert len(store.read(journal.run_id).events) == 1
actions = {
    "open": lambda: store.open(journal.run_id),
    "create": lambda: store.create(a_plan(), START),
    "request": lambda: store.request(journal.run_id, Request.PAUSE, START),
}
for name, action in actions.items():
    try:
        action()
    except StoreError as error:
        assert "read-only file system. Expected" in str(error), error
    else:
        raise SystemExit(name)
print("done")
"""

# What no healthy disk does: a write that breaks off, and then does not let itself be taken back.
TAKING_BACK_FAILS = """
import os, sys
from pathlib import Path
from append_and_say import START, a_plan, append_event
from exitguard.store.errors import StoreError
from exitguard.store.journal import RunStore

store = RunStore(Path(sys.argv[1]))
pwrite, fsync, ftruncate = os.pwrite, os.fsync, os.ftruncate

def breaks_off(descriptor, data, offset):
    if len(data) < 20:
        raise OSError(5, "Input/output error")
    return pwrite(descriptor, data[: len(data) - 10], offset)

def fails(*arguments):
    raise OSError(5, "Input/output error")

def refusal(journal):
    try:
        append_event(journal)
    except StoreError as error:
        return str(error)
    raise SystemExit("appended")

with store.create(a_plan(), START) as journal:
    append_event(journal)
    os.pwrite, os.ftruncate = breaks_off, fails
    assert "input/output error" in refusal(journal)
    os.pwrite, os.ftruncate = pwrite, ftruncate
    assert "nothing more is written behind it" in refusal(journal)
    assert len(journal.events) == 1
with store.open(journal.run_id) as journal:
    assert append_event(journal) == 1
    os.fsync = fails
    assert "input/output error" in refusal(journal)
    os.fsync = fsync
    assert "nothing more is written behind it" in refusal(journal)
with store.open(journal.run_id) as journal:
    assert append_event(journal) == 2
print("done")
"""


def test_file_size_limit_leaves_no_half_line_behind(runs: RunStore, tmp_path: Path) -> None:
    result = run_program(FILE_SIZE_LIMIT, tmp_path / "runs")
    assert "journal.jsonl: there was no room to write: file too large" in result.stdout
    assert [event.reason for event in runs.read(FIRST_ID).events] == ["", "short"]


def test_full_file_system_leaves_no_half_line_behind(tmp_path: Path) -> None:
    assert run_program(FULL_FILE_SYSTEM, tmp_path, prefix=mounting(tmp_path, "1m")).stdout == "done\n"


def test_read_only_file_system_can_still_be_read(tmp_path: Path) -> None:
    assert run_program(READ_ONLY_FILE_SYSTEM, tmp_path, prefix=mounting(tmp_path, "1m")).stdout == "done\n"


def test_write_that_cannot_be_taken_back_ends_the_writing_until_the_next_opening(runs: RunStore, tmp_path: Path) -> None:
    assert run_program(TAKING_BACK_FAILS, tmp_path / "runs").stdout == "done\n"
    assert [event.seq for event in runs.read(FIRST_ID).events] == [0, 1, 2]


def test_closed_journal_takes_nothing_more(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        append_event(journal)
    with pytest.raises(StoreError, match="bad file descriptor"):
        append_event(journal)
    journal.close()
    assert len(runs.read(FIRST_ID).events) == 1
