"""A full disk: the database stays readable, the operator is told, the gap is visible, and the store goes on when there is room."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from store_builders import START, judge, minutes, observe

from exitguard.store.errors import StoreFull
from exitguard.store.host import HostStore

HERE = Path(__file__).parent


def test_database_that_may_not_grow_drops_visibly_and_goes_on_later(tmp_path: Path) -> None:
    with HostStore.open(tmp_path, now=START) as store:
        first = observe(START)
        recorded = store.record(first, judge(first))
        connection = store._database.connection
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for minute in (5, 10):
            observation = observe(minutes(minute), domains=200)
            with pytest.raises(StoreFull, match=r"host\.sqlite: there was no room.*SQLITE_FULL.*Free some there.*shown as a gap"):
                store.record(observation, judge(observation))
            assert store.report() == recorded
        (gap,) = store.gaps(START)
        assert (gap.first_at, gap.last_at, gap.dropped) == (minutes(5), minutes(10), 2)
        assert "SQLITE_FULL" in gap.reason
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        observation = observe(minutes(15), domains=200)
        assert store.record(observation, judge(observation)) == store.report()
        assert store.gaps(START) == (gap,)
    with HostStore.open(tmp_path, now=START, read_only=True) as store:
        assert store.gaps(START) == (gap,)


def test_new_machine_id_is_told_where_there_is_no_room_to_remember_it(tmp_path: Path) -> None:
    with HostStore.open(tmp_path, now=START) as store:
        connection = store._database.connection
        assert store.machine_ids_seen("f00d", START) == ("f00d",)
        connection.exec_driver_sql(f"PRAGMA max_page_count = {connection.exec_driver_sql('PRAGMA page_count').scalar_one()}")
        for number in range(200):
            assert store.machine_ids_seen(f"{number:032}" * 50, START)[-1] == f"{number:032}" * 50
        assert len(store.machine_ids_seen("f00d", START)) < 200


# In a process of its own, since the limit cannot be raised again without privilege. Python ignores SIGXFSZ: write() fails with EFBIG.
FILE_SIZE_LIMIT = """
import resource, sys
from pathlib import Path
from store_builders import START, judge, minutes, observe
from exitguard.store.errors import StoreFull
from exitguard.store.host import HostStore

state_dir = Path(sys.argv[1])
with HostStore.open(state_dir, now=START) as store:
    first = observe(START)
    recorded = store.record(first, judge(first))
    log_bytes = (state_dir / "host.sqlite-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_bytes + 10_000, log_bytes + 10_000))
    observation = observe(minutes(5), domains=300)
    try:
        store.record(observation, judge(observation))
    except StoreFull as error:
        print(error)
    else:
        raise SystemExit("stored past the limit")
    assert store.report() == recorded
    assert [gap.dropped for gap in store.gaps(START)] == [1]
"""


def test_file_size_limit_drops_visibly(tmp_path: Path) -> None:
    result = run_program(FILE_SIZE_LIMIT, tmp_path)
    assert "there was no room to write: disk I/O error (SQLITE_IOERR_WRITE)" in result.stdout
    with HostStore.open(tmp_path, now=START) as store:
        observation = observe(minutes(10), domains=300)
        assert store.record(observation, judge(observation)) == store.report()
        assert [(gap.first_at, gap.dropped) for gap in store.gaps(START)] == [(minutes(5), 1)]


# On a file system of its own, really full: while open, at opening, for reading, and again with room.
FULL_FILE_SYSTEM = """
import os, sys
from pathlib import Path
from store_builders import START, judge, minutes, observe
from exitguard.store.errors import StoreFull
from exitguard.store.host import HostStore

root = Path(sys.argv[1])
state_dir, filler = root / "state", root / "filler"

def fill():
    with filler.open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == 28, error

def record(store, minute, domains=300):
    observation = observe(minutes(minute), domains=domains)
    return store.record(observation, judge(observation))

def refused(action):
    try:
        action()
    except StoreFull as error:
        assert "there was no room" in str(error) and "shown as a gap" in str(error), error
    else:
        raise SystemExit("stored on a full disk")

with HostStore.open(state_dir, now=START) as store:
    recorded = record(store, 0, domains=3)
    fill()
    refused(lambda: record(store, 5))
    refused(lambda: record(store, 10))
    assert store.report() == recorded
    assert [gap.dropped for gap in store.gaps(START)] == [2]
fill()
def audit_again(minute):  # whether opening fails or recording depends on what closing left behind
    with HostStore.open(state_dir, now=minutes(minute)) as store:
        record(store, minute)

refused(lambda: audit_again(15))
with HostStore.open(state_dir, now=START, read_only=True) as store:
    assert store.report() == recorded
    (gap,) = store.gaps(START)
    assert (gap.first_at, gap.last_at, gap.dropped) == (minutes(5), minutes(15), 3), gap
filler.unlink()
with HostStore.open(state_dir, now=minutes(20)) as store:
    assert record(store, 20, domains=3) == store.report()
    assert store.gaps(START) == (gap,)
    assert store._database.connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
print("done")
"""

# A file system that has become read-only: in order, after a kill, and after a kill with the index of the log lost.
READ_ONLY_FILE_SYSTEM = """
import os, subprocess, sys
from pathlib import Path
from store_builders import START, judge, minutes, observe
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

root = Path(sys.argv[1])
state_dir = root / "state"
remount = lambda mode: subprocess.run(["mount", "-o", f"remount,{mode}", str(root)], check=True)

def record_and_vanish(minute, *, cleanly):
    child = os.fork()
    if child == 0:
        store = HostStore.open(state_dir, now=START)
        observation = observe(minutes(minute))
        store.record(observation, judge(observation))
        if cleanly:
            store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def last_minute():
    with HostStore.open(state_dir, now=START, read_only=True) as store:
        assert store.facts() is not None
        return (store.report().observed_at - START).seconds // 60

def refusal(action):
    try:
        action()
    except StoreError as error:
        return str(error)
    raise SystemExit("expected a refusal")

record_and_vanish(0, cleanly=True)
remount("ro")
assert last_minute() == 0
assert "read-only file system" in refusal(lambda: HostStore.open(state_dir, now=START))
remount("rw")
record_and_vanish(5, cleanly=False)
remount("ro")
assert (state_dir / "host.sqlite-shm").exists()
assert last_minute() == 5
remount("rw")
(state_dir / "host.sqlite-shm").unlink()
remount("ro")
assert "copy host.sqlite, host.sqlite-wal and host-id" in refusal(last_minute)
print("done")
"""


def run_program(program: str, *arguments: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True, timeout=120, check=False)
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


def test_full_file_system_drops_visibly_and_goes_on_later(tmp_path: Path) -> None:
    assert run_program(FULL_FILE_SYSTEM, tmp_path, prefix=mounting(tmp_path, "2m")).stdout == "done\n"


def test_read_only_file_system_can_still_be_read(tmp_path: Path) -> None:
    assert run_program(READ_ONLY_FILE_SYSTEM, tmp_path, prefix=mounting(tmp_path, "8m")).stdout == "done\n"
