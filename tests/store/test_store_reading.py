"""Reading without the right to write: an unprivileged operator, beside a running agent or without one."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from store_builders import START, judge, minutes, observe

from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

#: Reads, and again for each line that it is sent. The interpreter may lie where nobody else may look: so everything is loaded first.
READ = """
import os, sys, datetime
from pathlib import Path
from sqlalchemy import create_engine
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

create_engine("sqlite://").connect().close()
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    with HostStore.open(Path(sys.argv[1]), now=datetime.datetime.now(datetime.UTC), read_only=sys.argv[2] == "read") as store:
        while True:
            report = store.report()
            print(report.observed_at.isoformat(), store.machine_ids_seen("cafe", report.observed_at), flush=True)
            if not sys.stdin.readline():
                break
except StoreError as error:
    print(error)
"""


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Not tmp_path: other users may not look below it."""
    directory = Path(mkdtemp())
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


def may_only_be_read(state_dir: Path) -> None:
    for path in state_dir.iterdir():
        path.chmod(0o444)
    state_dir.chmod(0o555)


def as_reader(state_dir: Path, how: str) -> str:
    """What a process says that may read the directory and its files, and not write."""
    may_only_be_read(state_dir)
    result = subprocess.run([sys.executable, "-c", READ, str(state_dir), how], capture_output=True, text=True, check=True, input="")
    return result.stdout.strip()


def test_reader_without_write_permission_reads_an_idle_store(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=START) as store:
        observation = observe(START)
        store.record(observation, judge(observation))
    assert as_reader(state_dir, "read") == f"{START.isoformat()} ('cafe',)"
    assert sorted(path.name for path in state_dir.iterdir()) == ["gap-note", "host-id", "host.sqlite"]


def test_reader_without_write_permission_reads_beside_a_running_agent(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=START) as store:
        for minute in (0, 5):
            observation = observe(minutes(minute))
            store.record(observation, judge(observation))
        assert as_reader(state_dir, "read").startswith(minutes(5).isoformat())


def test_writer_without_write_permission_is_told_who_could(state_dir: Path) -> None:
    HostStore.open(state_dir, now=START).close()
    said = as_reader(state_dir, "write")
    assert "permission denied" in said
    assert "Run as the user who owns the directory" in said


def test_store_opened_for_reading_records_nothing(tmp_path: Path) -> None:
    HostStore.open(tmp_path, now=START).close()
    observation = observe(START)
    with (
        HostStore.open(tmp_path, now=START, read_only=True) as store,
        pytest.raises(StoreError, match="opened for reading only"),
    ):
        store.record(observation, judge(observation))


def test_reader_sees_a_pending_gap_without_storing_it(tmp_path: Path) -> None:
    HostStore.open(tmp_path, now=START).close()
    content = (tmp_path / "host.sqlite").read_bytes()
    (tmp_path / "host.sqlite").rename(tmp_path / "aside")
    (tmp_path / "host.sqlite").mkdir()
    with pytest.raises(StoreError):
        HostStore.open(tmp_path, now=minutes(5))
    (tmp_path / "host.sqlite").rmdir()
    (tmp_path / "aside").rename(tmp_path / "host.sqlite")
    with HostStore.open(tmp_path, now=START, read_only=True) as store:
        assert [gap.first_at for gap in store.gaps(START)] == [minutes(5)]
    assert (tmp_path / "host.sqlite").read_bytes() == content


def test_file_that_changes_while_it_is_read_without_locks_is_not_believed(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=START) as store:
        observation = observe(START)
        store.record(observation, judge(observation))
    may_only_be_read(state_dir)
    command = [sys.executable, "-c", READ, str(state_dir), "read"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline().startswith(START.isoformat())
        state_dir.chmod(0o755)
        (state_dir / "host.sqlite").chmod(0o644)
        (state_dir / "gap-note").chmod(0o644)
        with HostStore.open(state_dir, now=minutes(5)) as store:
            observation = observe(minutes(5))
            store.record(observation, judge(observation))
        reader.stdin.write("again\n")
        reader.stdin.flush()
        said = reader.stdout.readline()
    assert "changed while it was read without a lock" in said
    assert "run this again" in said
