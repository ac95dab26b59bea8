"""Results go out whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from exitguard.cli.output import OutputError, look_for, shows_unicode, write_result


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_file_holds_the_whole_result_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    write_result("whole\n", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "whole\n"
    assert names(tmp_path) == ["out"]


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_result("half \ud800", target)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with target.open() as reader:  # opened before: it keeps the old file, whole
        write_result("new", target)
        assert reader.read() == "old"
    assert target.read_text() == "new"


def test_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    target.chmod(0o600)
    write_result("new", target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_new_file_obeys_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_result("new", tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_result("new", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_device_is_written_to_and_not_replaced() -> None:
    before = Path("/dev/null").stat()
    write_result("x", Path("/dev/null"))
    after = Path("/dev/null").stat()
    assert (before.st_ino, stat.S_ISCHR(after.st_mode)) == (after.st_ino, True)


@pytest.mark.parametrize("target", ["missing/out", "."])
def test_place_that_cannot_be_written_is_named(tmp_path: Path, target: str) -> None:
    with pytest.raises(OutputError, match=r"could not be written: (no such file|is a directory)"):
        write_result("x", tmp_path / target)
    assert names(tmp_path) == []


def test_full_disk_is_named() -> None:
    with pytest.raises(OutputError, match="/dev/full: could not be written: no space left on device"):
        write_result("x", Path("/dev/full"))


@pytest.mark.parametrize(
    ("encoding", "environ", "shown"),
    [
        ("utf-8", {"LANG": "en_US.UTF-8"}, True),
        ("UTF-8", {"LANG": "C.utf8"}, True),
        ("utf-8", {"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False),
        # PEP 538: Python itself set LC_CTYPE.
        ("utf-8", {"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
        ("utf-8", {"LC_CTYPE": "C.UTF-8"}, False),
        ("utf-8", {"LC_CTYPE": "de_DE.UTF-8", "LANG": "C"}, True),
        ("utf-8", {"LANG": "C", "PYTHONUTF8": "1"}, True),
        ("iso8859-15", {"LANG": "de_DE@euro"}, False),
        ("ascii", {"LANG": "en_US.UTF-8"}, False),
        (None, {"LANG": "en_US.UTF-8"}, False),
    ],
)
def test_unicode_is_used_only_where_somebody_asked_for_it(encoding: str | None, environ: dict[str, str], shown: bool) -> None:  # noqa: FBT001
    assert shows_unicode(encoding, environ) is shown


def test_file_gets_a_plain_page() -> None:
    look = look_for(Path("out"), {"COLUMNS": "200"})
    assert (look.width, look.color, look.unicode) == (80, False, True)
