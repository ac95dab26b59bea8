"""The runs of a machine: made whole, named in order, held by one process at a time, asked to stop, and forgotten."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from append_and_say import START, a_plan, append_event, make_run, seconds

from exitguard.model.run import EventKind, HostCheck, Request
from exitguard.store import process_lock
from exitguard.store.errors import StoreError, StoreOfAnother
from exitguard.store.journal import RunStore

FIRST_ID = f"20261123T024601Z-{a_plan().hash.removeprefix('sha256:')[:8]}"

# Takes up the newest run, says so, and keeps it until its input ends.
HOLD = """
import sys
from pathlib import Path
from exitguard.store.errors import StoreError
from exitguard.store.journal import RunStore

store = RunStore(Path(sys.argv[1]))
sys.stdin.readline()
try:
    with store.open(store.latest()):
        print("held", flush=True)
        sys.stdin.read()
except StoreError as error:
    print(error, flush=True)
"""


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the newest run of tmp_path/runs, which has three events."""
    make_run(RunStore(tmp_path / "runs"), 3)
    with start_holder(tmp_path / "runs") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def start_holder(runs: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(runs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_was_appended_is_read_back_in_order(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        assert journal.run_id == FIRST_ID
        written = [
            journal.append(EventKind.STARTED, seconds(0), plan=a_plan().hash),
            journal.append(EventKind.HOST_CHECKED, seconds(1), host="a", check=HostCheck.READY, due=("s",), reason='"Zeile"\n\t\u2028 é'),
        ]
        assert [event.seq for event in written] == [0, 1]
        assert list(journal.events) == written
    with runs.open(FIRST_ID) as journal:
        assert list(journal.events) == written
        assert journal.plan == a_plan()
        written.append(journal.append(EventKind.FINISHED, seconds(2)))
    record = runs.read(FIRST_ID)
    assert (record.run_id, record.plan, list(record.events)) == (FIRST_ID, a_plan(), written)
    assert record.finished
    assert not record.held


def test_every_line_is_json_for_other_tools(runs: RunStore, tmp_path: Path) -> None:
    make_run(runs, 3)
    first, *events = [json.loads(line) for line in (tmp_path / "runs" / FIRST_ID / "journal.jsonl").read_text().splitlines()]
    assert (first["header"]["schema_version"], first["header"]["run_id"]) == (1, FIRST_ID)
    assert [line["event"]["seq"] for line in events] == [0, 1, 2]


def test_runs_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_run(RunStore(tmp_path / "remedy" / "runs"), 1)
        RunStore(tmp_path / "remedy" / "runs").request(FIRST_ID, Request.PAUSE, START)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "remedy").rglob("*")} | {tmp_path / "remedy": 0o700}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert len(modes) == 9


def test_plan_that_was_changed_makes_no_run(runs: RunStore, tmp_path: Path) -> None:
    edited = a_plan().model_copy(update={"steps": (*a_plan().steps, *a_plan().steps)})
    with pytest.raises(StoreError, match=r"that is not the hash of what is in it: it was changed.*make it again"):
        runs.create(edited, START)
    assert list(tmp_path.iterdir()) == []


def test_misspelt_field_of_an_event_is_refused(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        with pytest.raises(TypeError, match="an event has no resaon"):
            journal.append(EventKind.STOPPED, START, resaon="why")
        assert journal.append(EventKind.STOPPED, START, reason="why").seq == 0


def test_reason_that_quotes_broken_output_is_written_all_the_same(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        event = journal.append(EventKind.STOPPED, START, reason=b"stderr: \xff.".decode("utf-8", "surrogateescape"))
    assert runs.read(FIRST_ID).events == (event,)
    assert event.reason == "stderr: ?."


def test_ids_sort_as_runs_were_made_whatever_the_clock_says(runs: RunStore) -> None:
    made = []
    for at in (seconds(0), seconds(0), seconds(-86_400), seconds(90), seconds(1)):
        with runs.create(a_plan(f"web-{len(made)}"), at) as journal:
            made.append(journal.run_id)
    assert list(runs.run_ids()) == made == sorted(made)
    assert [run_id[:16] for run_id in made] == [f"20261123T024{tail}Z" for tail in ("601", "602", "603", "731", "732")]
    assert runs.latest() == made[-1]


def test_beginning_of_an_id_will_do_where_it_is_one_runs(runs: RunStore) -> None:
    with pytest.raises(StoreError, match=r"'2026' is the beginning of no run\..*There is none yet: `exitguard apply"):
        runs.resolve("2026")
    first, second = make_run(runs, 0), make_run(runs, 0)
    assert runs.resolve(first) == first
    assert runs.resolve(second[:15]) == second
    with pytest.raises(StoreError, match=rf"'2026' is the beginning of 2 runs\. Expected one: add characters\..*{first}, {second}"):
        runs.resolve("2026")
    with pytest.raises(StoreError, match=rf"'2027' is the beginning of no run\. Expected the id of one.*{first}, {second}"):
        runs.resolve("2027")


@pytest.mark.parametrize("run_id", ["../elsewhere", "", ".", "20261123T024601Z-00000000", "20269999T024601Z-00000000"])
def test_what_is_no_run_is_not_opened_and_nothing_is_made(runs: RunStore, tmp_path: Path, run_id: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "20269999T024601Z-00000000").mkdir(parents=True)
    for action in (runs.open, runs.read, lambda name: runs.request(name, Request.PAUSE, START)):
        with pytest.raises(StoreError, match=r"there is no run .* Expected the id of one"):
            action(run_id)
    assert runs.run_ids() == ()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_reading_where_nothing_is_makes_nothing(runs: RunStore, tmp_path: Path) -> None:
    assert runs.run_ids() == ()
    assert runs.latest() is None
    assert runs.forget(0) == ()
    assert list(tmp_path.iterdir()) == []


# Requests


def test_request_reaches_the_process_that_holds_the_run(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        assert journal.requested() is None
        RunStore(journal.ansible_dir.parent.parent).request(journal.run_id, Request.PAUSE, START)
        assert journal.requested() is Request.PAUSE
        journal.forget_request()
        assert journal.requested() is None


def test_abort_beats_pause_and_is_not_lost_to_one_that_was_seen_before(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        runs.request(journal.run_id, Request.PAUSE, START)
        assert journal.requested() is Request.PAUSE
        runs.request(journal.run_id, Request.ABORT, START)
        journal.forget_request()
        assert journal.requested() is Request.ABORT
        runs.request(journal.run_id, Request.PAUSE, START)
        assert journal.requested() is Request.ABORT
        journal.forget_request()
        assert journal.requested() is None


def test_run_with_a_damaged_journal_can_still_be_asked_to_stop(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        (journal.ansible_dir.parent / "journal.jsonl").write_bytes(b"damage\n")
        runs.request(journal.run_id, Request.ABORT, START)
        assert journal.requested() is Request.ABORT


# Who may act


def test_held_run_is_refused_with_the_process_that_holds_it(holder: subprocess.Popen[str], runs: RunStore) -> None:
    with pytest.raises(StoreError, match=rf"run {FIRST_ID} is being carried out by process {holder.pid}\..*rollout pause {FIRST_ID}"):
        runs.open(FIRST_ID)
    with pytest.raises(StoreError, match=rf"run {FIRST_ID} is being carried out by process {holder.pid}\..*never meet on a host"):
        runs.create(a_plan("web-2"), START)
    assert runs.run_ids() == (FIRST_ID,)
    record = runs.read(FIRST_ID)
    assert record.held
    assert len(record.events) == 3
    holder.kill()
    holder.wait()
    assert not runs.read(FIRST_ID).held
    with runs.open(FIRST_ID) as journal:
        assert runs.read(FIRST_ID).held
        assert append_event(journal) == 3


def test_other_run_is_refused_while_one_is_held_in_this_very_process(runs: RunStore) -> None:
    first = make_run(runs, 1)
    with runs.create(a_plan("web-2"), START) as journal:
        for action in (lambda: runs.open(first), lambda: runs.open(journal.run_id), lambda: runs.create(a_plan(), START)):
            with pytest.raises(StoreError, match=rf"run {journal.run_id} is being carried out by process {os.getpid()}"):
                action()
        assert not runs.read(first).held
    with runs.open(first):
        assert runs.read(first).held


def test_failed_creation_lets_go_of_the_store(runs: RunStore, tmp_path: Path) -> None:
    make_run(runs, 0)
    (tmp_path / "runs" / ".coming-x").write_text("a file where a directory was expected")
    with pytest.raises(StoreError, match="to remove what is left of a run"):
        runs.create(a_plan(), START)
    (tmp_path / "runs" / ".coming-x").unlink()
    make_run(runs, 0)


def test_of_processes_that_race_for_a_run_one_gets_it(runs: RunStore, tmp_path: Path) -> None:
    make_run(runs, 1)
    racers = [start_holder(tmp_path / "runs") for _ in range(4)]
    try:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        answers = [racer.stdout.readline() for racer in racers if racer.stdout is not None]
    finally:
        for racer in racers:
            racer.communicate(timeout=60)
    (winner,) = [racer for racer, answer in zip(racers, answers, strict=True) if answer == "held\n"]
    refused = [answer for answer in answers if answer != "held\n"]
    assert len(refused) == 3
    # One that came in the instant between taking the lock and saying so is told of no number.
    assert all(f"process {winner.pid}" in answer or "by another process" in answer for answer in refused)


def test_looking_at_a_held_run_never_keeps_another_process_from_taking_it(runs: RunStore) -> None:
    # A look that took a lock for an instant would make some of these fail.
    run_id = make_run(runs, 1)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        while os.getppid() == parent:
            runs.read(run_id)
        os._exit(0)
    try:
        for _ in range(300):
            runs.open(run_id).close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_lock_on_a_file_that_was_removed_in_between_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    real = fcntl.fcntl

    def removed_first(*arguments: object) -> object:
        monkeypatch.setattr(fcntl, "fcntl", real)
        path.unlink()
        return real(*arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(fcntl, "fcntl", removed_first)
    lock = process_lock.take(path)
    assert lock is not None
    assert process_lock.is_held(path)
    assert process_lock.take(path) is None
    lock.release()
    assert not process_lock.is_held(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_is_refused(runs: RunStore, tmp_path: Path) -> None:
    run_id = make_run(runs, 1)
    os.chown(tmp_path / "runs", 65534, 65534)
    for action in (lambda: runs.create(a_plan(), START), lambda: runs.read(run_id), lambda: runs.open(run_id), runs.run_ids):
        with pytest.raises(StoreOfAnother, match=r"runs: belongs to user nobody.*runuser -u nobody -- exitguard"):
            action()


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_directory_that_others_may_write_to_is_refused(runs: RunStore, tmp_path: Path, mode: int) -> None:
    run_id = make_run(runs, 1)
    for path in (tmp_path / "runs" / run_id, tmp_path / "runs"):
        path.chmod(mode)
        for action in (lambda: runs.read(run_id), lambda: runs.open(run_id)):
            with pytest.raises(StoreError, match=rf"{path.name}: may be written to by more than its owner.*chmod 700 {path}"):
                action()


def test_link_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    run_id = make_run(RunStore(tmp_path / "elsewhere"), 1)
    (tmp_path / "runs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for runs in (RunStore(tmp_path / "runs"), RunStore(tmp_path / "nowhere")):
        for action in (lambda runs=runs: runs.create(a_plan(), START), lambda runs=runs: runs.read(run_id), runs.run_ids):
            with pytest.raises(StoreError, match=r"not a directory\. Expected a directory of this user's, and no link to one"):
                action()
    assert not (tmp_path / "missing").exists()
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").mkdir(mode=0o700)
    (tmp_path / "runs" / run_id).symlink_to(tmp_path / "elsewhere" / run_id)
    with pytest.raises(StoreError, match=r"not a directory\."):
        RunStore(tmp_path / "runs").open(run_id)


@pytest.mark.parametrize("name", ["journal.jsonl", "plan.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "missing"])
def test_file_that_is_none_is_refused(runs: RunStore, tmp_path: Path, name: str, kind: str) -> None:
    run_id = make_run(runs, 1)
    path = tmp_path / "runs" / run_id / name
    content = path.rename(tmp_path / "aside")
    if kind == "link":
        path.symlink_to(content)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    for action in (runs.read, runs.open):
        with pytest.raises(StoreError, match=rf"{name}: (too many levels|not a regular file|no such file).*Expected the (plan|journal)"):
            action(run_id)


# Retention


def test_oldest_finished_runs_are_forgotten_whole(runs: RunStore, tmp_path: Path) -> None:
    endings = (EventKind.FINISHED, EventKind.STOPPED, EventKind.ABORTED, EventKind.PAUSED, EventKind.FINISHED, EventKind.FINISHED, None)
    made = [make_run(runs, 1, ending=ending) for ending in endings]
    assert runs.forget(4) == ()
    assert runs.forget(2) == (made[0], made[2])
    assert list(runs.run_ids()) == [made[1], *made[3:]]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [*sorted((made[1], *made[3:])), "lock"]
    assert runs.forget(0) == (made[4], made[5])
    with pytest.raises(ValueError, match="cannot keep -1 runs"):
        runs.forget(-1)


def test_held_run_is_neither_forgotten_nor_counted(runs: RunStore) -> None:
    first = make_run(runs, 1, ending=EventKind.FINISHED)
    with runs.open(first):
        assert runs.forget(0) == ()
    second = make_run(runs, 1, ending=EventKind.FINISHED)
    with runs.open(second):
        assert runs.forget(1) == ()  # the other is the newest of those that count
    assert runs.forget(1) == (first,)


def test_run_that_cannot_be_read_is_not_forgotten(runs: RunStore, tmp_path: Path) -> None:
    first, second = (make_run(runs, 1, ending=EventKind.FINISHED) for _ in range(2))
    with (tmp_path / "runs" / first / "journal.jsonl").open("r+b") as file:
        file.write(b"damage")
    assert runs.forget(0) == (second,)
    assert runs.run_ids() == (first,)
