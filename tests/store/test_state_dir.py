"""The state directory and the host id: created once, private, and refused in words where they are not as expected."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from store_builders import START, judge, observe

from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore
from exitguard.store.state_dir import _write_once, mint_host_id, prepare_directory, read_host_id

MINT = """
import sys, pathlib
from exitguard.store.state_dir import mint_host_id
sys.stdin.read()
print(mint_host_id(pathlib.Path(sys.argv[1])))
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_directory_is_0750_and_files_0640_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    state_dir = tmp_path / "var" / "exitguard"
    before = os.umask(umask)
    try:
        with HostStore.open(state_dir, now=START) as store:
            observation = observe(START)
            store.record(observation, judge(observation))
            modes = {path.name: mode(path) for path in state_dir.iterdir()}
    finally:
        os.umask(before)
    assert mode(state_dir) == 0o750
    assert modes == dict.fromkeys(["host-id", "host.sqlite", "host.sqlite-wal", "host.sqlite-shm", "gap-note"], 0o640)


def test_existing_directory_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    prepare_directory(tmp_path)
    assert mode(tmp_path) == 0o700


def test_host_id_is_a_uuid4_and_outlives_the_database(tmp_path: Path) -> None:
    with HostStore.open(tmp_path, now=START) as store:
        host_id, epoch = store.host_id, store.spool_epoch
    assert UUID(host_id).version == 4
    assert UUID(epoch).version == 4
    with HostStore.open(tmp_path, now=START) as store:
        assert (store.host_id, store.spool_epoch) == (host_id, epoch)
    (tmp_path / "host.sqlite").unlink()
    with HostStore.open(tmp_path, now=START) as store:
        assert store.host_id == host_id
        assert store.spool_epoch != epoch


def test_processes_that_race_get_the_same_host_id(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", MINT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for racer in racers:  # all are waiting by now, or will find the gate open
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    ids = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert ids == {read_host_id(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["host-id"]


def test_host_id_that_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "host-id"
    path.write_bytes(b"of the process that won\n")
    _write_once(path, b"of the process that lost\n")
    assert path.read_bytes() == b"of the process that won\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["host-id"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a uuid\n",
        b"7C0A2F7E-98A5-4A83-9D0F-8A5B8F6C2D11\n",
        b"7c0a2f7e-98a5-1a83-9d0f-8a5b8f6c2d11\n",
        b"\xff\xfe" * 40,
        b"7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11" * 1000,
    ],
)
def test_bad_host_id_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "host-id"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"host-id: holds .* Expected one UUIDv4 .* delete it"):
        HostStore.open(tmp_path, now=START)
    assert path.read_bytes() == content


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("a file")
    with pytest.raises(StoreError, match=r"state: not a directory\. Expected a directory .* --state-dir"):
        HostStore.open(path, now=START)
    assert path.read_text() == "a file"


def test_file_above_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file")
    with pytest.raises(StoreError, match="Expected a directory that this user may write to"):
        HostStore.open(tmp_path / "var" / "state", now=START)


def test_directory_in_place_of_the_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "host.sqlite").mkdir()
    with pytest.raises(StoreError, match=r"host\.sqlite: "):
        HostStore.open(tmp_path, now=START)


def test_reading_creates_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "state"
    with pytest.raises(StoreError, match="run `exitguard audit"):
        HostStore.open(missing, now=START, read_only=True)
    assert not missing.exists()
    mint_host_id(tmp_path)
    with pytest.raises(StoreError, match=r"host\.sqlite: there is no such file.*run `exitguard audit"):
        HostStore.open(tmp_path, now=START, read_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["host-id"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could write into another user's directory")
def test_root_writes_nothing_into_the_directory_of_another_user(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    target = tmp_path / "precious"
    target.write_text("of root")
    (state_dir / "gap-note").symlink_to(target)
    os.chown(state_dir, 65534, 65534)
    with pytest.raises(StoreError, match=r"belongs to user nobody, and root does not write there.*runuser -u nobody"):
        HostStore.open(state_dir, now=START)
    assert [path.name for path in state_dir.iterdir()] == ["gap-note"]
    assert target.read_text() == "of root"
