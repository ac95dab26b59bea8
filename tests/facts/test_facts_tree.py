import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import tree as tree_module
from exitguard.facts.tree import HostTree, one_line


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    return secret


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "sysroot"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/hostname").write_text("node-1\n")
    return folder


def test_absolute_link_starts_at_the_sysroot_again(root: Path) -> None:
    (root / "name").symlink_to("/etc/hostname")
    (root / "etc/alias").symlink_to("/etc/hostname")
    tree = HostTree(root)
    assert [tree.read_text(path).value for path in ("/name", "/etc/alias")] == ["node-1", "node-1"]


def test_link_out_of_the_sysroot_leads_nowhere(root: Path, outside: Path) -> None:
    (root / "absolute").symlink_to(outside)
    (root / "relative").symlink_to("../outside/secret")
    (root / "folder").symlink_to("..")
    tree = HostTree(root)
    assert [tree.read_text(path).value for path in ("/absolute", "/relative", "/folder/outside/secret", "/../outside/secret")] == [None] * 4


def test_dots_above_the_root_stay_at_the_root(root: Path) -> None:
    (root / "etc/up").symlink_to("../../../../etc/hostname")
    assert HostTree(root).read_text("/etc/up").value == "node-1"


def test_link_put_in_place_after_the_look_is_not_followed(root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = HostTree(root)
    looked_at = tree._resolve("/etc/hostname")
    (root / "etc/hostname").unlink()
    (root / "etc/hostname").symlink_to(outside)
    monkeypatch.setattr(HostTree, "_resolve", lambda _self, _path: looked_at)
    assert tree.read_text("/etc/hostname").reason == "not a regular file"
    assert tree.names("/etc/hostname").reason == "not a directory"
    (root / "etc/hostname").unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to(outside.parent)
    (outside.parent / "hostname").write_text("secret")
    assert tree.read_text("/etc/hostname").value is None


def test_loop_of_links_has_a_reason(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    tree = HostTree(root)
    assert tree.read_bytes("/a").reason == "too many symbolic links"
    assert tree.names("/a").reason == "too many symbolic links"
    assert not tree.exists("/a")
    with pytest.raises(OSError, match="too many symbolic links"):
        tree.locate("/a")


@pytest.mark.parametrize("whole_machine", [True, False])
def test_fifo_neither_blocks_nor_is_read(root: Path, *, whole_machine: bool) -> None:
    os.mkfifo(root / "fifo")
    observed = HostTree().read_bytes(str(root / "fifo")) if whole_machine else HostTree(root).read_bytes("/fifo")
    assert observed.reason == "not a regular file"


def test_socket_and_folder_are_not_read(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        assert HostTree(root).read_bytes("/socket").reason == "not a regular file"
    assert HostTree(root).read_bytes("/etc").reason == "not a regular file"


def test_device_is_never_opened() -> None:
    assert HostTree().read_bytes("/dev/zero").reason == "not a regular file"


def test_file_larger_than_the_limit_is_not_read_in_part(root: Path) -> None:
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 40)
    observed = HostTree(root).read_bytes("/huge", limit_bytes=1000)
    assert observed.value is None
    assert observed.reason == "larger than 1000 bytes, which is more than this file can rightly hold"
    (root / "exact").write_bytes(b"x" * 1000)
    assert HostTree(root).read_bytes("/exact", limit_bytes=1000).value == b"x" * 1000


def test_folder_with_too_many_names_has_a_reason(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "NAMES_LIMIT", 3)
    for name in "dcba":
        (root / "etc" / name).touch()
    assert "more than 3 names" in (HostTree(root).names("/etc").reason or "")


def test_names_are_sorted_and_unicode(root: Path) -> None:
    (root / "etc/a").touch()
    (Path(os.fsdecode(bytes(root / "etc") + b"/\xff"))).touch()
    assert HostTree(root).names("/etc").value == ("a", "hostname")


def test_unreadable_file_names_the_privilege() -> None:
    # As another user where root runs the tests: root may read everything.
    script = """
import os, pathlib, sys
from exitguard.facts.tree import HostTree
if os.getuid() == 0:
    os.seteuid(65534)
tree = HostTree(pathlib.Path(sys.argv[1]))
file = tree.read_bytes("/file")
print(file.reason, file.unlock, tree.names("/folder").reason, tree.exists("/folder/file"), sep=" / ")
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").touch(mode=0)
        (folder / "folder").mkdir(mode=0)
        shown = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, check=True).stdout
    assert shown == "permission denied / run as root, or grant CAP_DAC_READ_SEARCH / permission denied / False\n"


def test_foreign_bytes_do_not_break_text(root: Path) -> None:
    (root / "etc/hostname").write_bytes(b" n\xffde\n")
    assert HostTree(root).read_text("/etc/hostname").value == "n\N{REPLACEMENT CHARACTER}de"


def test_descriptors_are_closed(root: Path) -> None:
    tree = HostTree(root)
    (root / "loop").symlink_to("loop")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("/etc/hostname", "/etc", "/missing/file", "/etc/hostname/below", "/loop", "/\0"):
        tree.read_bytes(path)
        tree.names(path)
        tree.exists(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_proc_files_are_regular_and_readable() -> None:
    assert HostTree().read_text("/proc/sys/kernel/ostype").value == "Linux"
    assert stat.S_ISLNK(os.lstat("/proc/self/exe").st_mode)
    with HostTree().open("/proc/self/exe") as file:
        assert file.read(4) == b"\x7fELF"


def test_reason_is_lower_case_and_without_a_number(root: Path) -> None:
    assert HostTree(root).read_bytes("/missing").reason == "no such file or directory"


@given(st.text(max_size=60))
def test_no_path_raises(path: str) -> None:
    tree = HostTree(Path("/usr/share/doc"))
    tree.read_text(path, limit_bytes=10)
    tree.names(path)
    assert tree.exists(path) in {True, False}


@given(st.text(max_size=2000))
def test_one_line_is_one_printable_line(text: str) -> None:
    line = one_line(text, limit_characters=50)
    assert len(line) <= 50
    assert line.isprintable()
    assert line == line.strip()


def test_one_line_drops_terminal_escapes_and_direction_marks() -> None:
    assert one_line("a\x1b[31mb\u202ec\n\td") == "a [31mb c d"
