"""Which file a process was started from, told by what everybody may read. Real processes; the clock is an argument."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import qemu
from exitguard.facts.mounts import parse_mounts
from exitguard.facts.processes import read_start_ticks
from exitguard.facts.qemu import CAPABILITY_STRING, EXECUTABLE, TRACE_UNLOCK, QemuReader
from exitguard.facts.tree import HostTree
from exitguard.facts.unchanged_program import MARGIN_SECONDS, BootClock, ProgramFiles, _names_on_the_way, _why_elsewhere, code_pages
from exitguard.model.host import QemuBinary
from exitguard.model.record import Observed

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
Start = Callable[[Path], int]


def clock_that_allows_no_margin() -> BootClock:
    """By this clock a file has to be older than the start of the process, and no more than that."""
    boot_seconds = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + MARGIN_SECONDS
    return BootClock(boot_seconds, boot_seconds + 3, TICKS_PER_SECOND)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program that sleeps, by a path, when all that was changed before is older than a clock tick; the pid."""
    with contextlib.ExitStack() as stack:

        def start_one(path: Path) -> int:
            time.sleep(0.1)
            process = stack.enter_context(subprocess.Popen([str(path), "600"]))
            stack.callback(process.kill)
            time.sleep(0.1)
            return process.pid

        yield start_one


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of our own, in a folder of its own."""
    path = tmp_path / "opt/bin/qemu"
    path.parent.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "", path)
    return path


def why_not(pid: int, path: Path | str, clock: BootClock | None = None) -> str | None:
    ticks = read_start_ticks(HostTree(), pid)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return ProgramFiles(HostTree(), clock or clock_that_allows_no_margin()).why_not(pid, str(path), ticks or 0, descriptor)
    finally:
        os.close(descriptor)


def test_file_that_nobody_touched_is_the_one_that_runs(program: Path, start: Start) -> None:
    pid = start(program)
    assert why_not(pid, program) is None


def test_replaced_file_is_not(program: Path, start: Start) -> None:
    pid = start(program)
    shutil.copy(program, program.with_name("new"))
    program.with_name("new").rename(program)
    assert (why_not(pid, program) or "").startswith(f"{program} was replaced or changed after the process started")


def test_older_file_that_takes_its_place_is_not(program: Path, start: Start) -> None:
    """Its content is older than the process: it is the renaming that its change time tells."""
    shutil.copy(program, program.with_name("old"))
    pid = start(program)
    program.with_name("old").rename(program)
    assert (why_not(pid, program) or "").startswith(f"{program} was replaced or changed after the process started")


def test_other_name_of_an_older_file_is_not(program: Path, start: Start) -> None:
    shutil.copy(program, program.with_name("old"))
    pid = start(program)
    program.unlink()
    program.hardlink_to(program.with_name("old"))
    assert (why_not(pid, program) or "").startswith(f"{program} was replaced or changed after the process started")


def test_file_with_times_set_back_is_not(program: Path, start: Start) -> None:
    pid = start(program)
    os.utime(program, (0, 0))
    assert (why_not(pid, program) or "").startswith(f"{program} was replaced or changed after the process started")


def test_file_that_was_installed_right_before_the_start_is_doubted(program: Path, start: Start) -> None:
    pid = start(program)
    boot_seconds = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    clock = BootClock(boot_seconds, boot_seconds + 3, TICKS_PER_SECOND)
    assert (why_not(pid, program, clock) or "").endswith(f"or in the {MARGIN_SECONDS:.0f} s before")


def test_link_that_leads_to_another_old_file_today_is_found(program: Path, start: Start) -> None:
    other = program.parents[2] / "other/bin/qemu"
    other.parent.mkdir(parents=True)
    shutil.copy(program, other)
    link = program.parents[2] / "current"
    link.symlink_to("opt")
    by_link = link / "bin/qemu"
    pid = start(by_link)
    assert why_not(pid, by_link) is None
    link.unlink()
    link.symlink_to("other")
    assert why_not(pid, by_link) == f"{link} may have led elsewhere when the process started"


def test_folder_that_took_anothers_place_is_found(program: Path, start: Start) -> None:
    folder = program.parents[1]
    shutil.copytree(folder, folder.with_name("next"))
    pid = start(program)
    folder.rename(folder.with_name("last"))
    folder.with_name("next").rename(folder)
    assert why_not(pid, program) == f"{folder} may have led elsewhere when the process started"


def test_other_files_may_come_and_go(program: Path, start: Start) -> None:
    pid = start(program)
    (program.parent / "beside").touch()
    (program.parents[2] / "far").touch()
    assert why_not(pid, program) is None


def test_program_of_another_size_of_code_is_another(program: Path, start: Start) -> None:
    other = program.with_name("other")
    shutil.copy(shutil.which("bash") or "", other)
    pid = start(program)
    assert why_not(pid, other) == "its code has another size than the code in that file"


def test_script_is_no_program_that_runs(program: Path, start: Start) -> None:
    script = program.with_name("script")
    script.write_text("#!/bin/sh\n")
    pid = start(program)
    assert why_not(pid, script) == "its code has another size than the code in that file"


def test_process_that_is_gone_was_started_from_nothing(program: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert why_not(process.pid, program, BootClock(4e9, 4e9, 100)) == f"/proc/{process.pid}/mountinfo: no such file or directory"


def test_file_that_is_replaced_while_it_is_read_is_noticed(program: Path, start: Start) -> None:
    pid = start(program)
    with program.open("rb") as opened:
        program.unlink()
        shutil.copy(shutil.which("sleep") or "", program)
        files = ProgramFiles(HostTree(), BootClock(4e9, 4e9, 100))
        assert files.why_not(pid, str(program), 0, opened.fileno()) == "the file was replaced while it was read"


def test_every_way_to_write_a_path_leads_to_the_same_file(program: Path, start: Start) -> None:
    (program.parent / "absolute").symlink_to(program)
    (program.parent / "relative").symlink_to("../bin/./absolute")
    pid = start(program)
    assert why_not(pid, f"{program.parent}/../bin//./relative") is None


def test_looping_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="too many symbolic links"):
        list(_names_on_the_way(str(tmp_path / "loop")))


@pytest.mark.parametrize("kind", ["overlay", "nfs4", "zfs", "squashfs", "fuse.sshfs"])
def test_file_system_whose_times_do_not_tell_is_not_relied_on(program: Path, kind: str) -> None:
    mounts = parse_mounts(f"22 1 8:1 / / rw - {kind} a rw\n".encode())
    assert _why_elsewhere(list(_names_on_the_way(str(program))), mounts, mounts) == f"/ lies on {kind}, whose file times do not tell"


def test_program_on_another_disk_for_the_process_is_another(program: Path) -> None:
    ours = b"22 1 8:1 / / rw - ext4 a rw\n"
    theirs = ours + f"30 22 8:2 / {program.parent} rw - ext4 b rw\n".encode()
    names = list(_names_on_the_way(str(program)))
    assert _why_elsewhere(names, parse_mounts(ours), parse_mounts(ours)) is None
    other = f"{program.parent} is another one for the process: it lives in another mount namespace"
    assert _why_elsewhere(names, parse_mounts(ours), parse_mounts(theirs)) == other


# What the reader of QEMU programs makes of it


def read_started(path: Path | str, pid: int) -> Observed[QemuBinary]:
    reader = QemuReader(HostTree())
    reader.program_files.clock = clock_that_allows_no_margin()
    return reader.read_started(pid, str(path), read_start_ticks(HostTree(), pid) or 0)


def test_program_that_is_read_by_its_path_says_how_it_is_known(program: Path, start: Start) -> None:
    with program.open("ab") as file:
        file.write(b"QEMU emulator version 7.2.22 (Debian)\0" + CAPABILITY_STRING)
    read = read_started(program, start(program))
    assert read.source == f"{program}, unchanged since before the process started"
    assert (read.get().path, read.get().deleted, read.get().capability_string.value) == (str(program), False, True)
    assert read.get().version.get().version == "7.2.22"


def test_program_without_a_version_is_no_qemu(program: Path, start: Start) -> None:
    read = read_started(program, start(program))
    assert read.reason == f"permission denied, and {program}: the file holds no QEMU version text"
    assert (read.source, read.unlock) == (EXECUTABLE, TRACE_UNLOCK)


def test_relative_and_missing_paths_are_no_programs(program: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(program)
    monkeypatch.chdir(program.parent)
    assert read_started("qemu", pid).reason == "permission denied, and its command line names no absolute path"
    assert read_started("", pid).reason == "permission denied, and its command line names no absolute path"
    program.unlink()
    assert read_started(program, pid).reason == f"permission denied, and {program}: no such file or directory"


def test_file_that_changes_under_the_reader_is_not_told(program: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(program)
    read_a_chunk = os.pread

    def change_then_read(descriptor: int, length: int, offset: int) -> bytes:
        if length > 1000:  # the scan, not the look at the head of the file
            program.chmod(0o700)
        return read_a_chunk(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", change_then_read)
    monkeypatch.setattr(qemu, "_remembered", {})
    assert read_started(program, pid).reason == f"permission denied, and {program} was changed while it was read"


# The clock


@pytest.mark.parametrize("late_seconds", [-2, 0, 0.5, 30, 60])
def test_sysfs_of_the_boot_shows_a_clock_that_was_left_alone(late_seconds: float) -> None:
    assert BootClock(1000.0, 1000.0 + late_seconds, 100).why_unsteady() is None


@pytest.mark.parametrize(("late_seconds", "shown"), [(-3, "3 s before it"), (-86400, "86400 s before it"), (61, "61 s after it")])
def test_clock_that_was_set_makes_times_worthless(program: Path, late_seconds: float, shown: str) -> None:
    clock = BootClock(4e9, 4e9 + late_seconds, 100)
    assert (clock.why_unsteady() or "").endswith(shown)
    assert why_not(os.getpid(), program, clock) == clock.why_unsteady()


def test_clock_of_this_machine_is_read_once(program: Path, start: Start) -> None:
    pid = start(program)
    files = ProgramFiles(HostTree())
    with program.open("rb") as file:
        reason = files.why_not(pid, str(program), read_start_ticks(HostTree(), pid) or 0, file.fileno())
    assert reason is not None  # the program was made a moment ago
    assert files.clock is not None
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert abs(files.clock.boot_seconds - booted) < 5
    assert files.clock.sysfs_seconds == Path("/sys").stat().st_ctime


def test_without_a_boot_time_nothing_is_concluded(program: Path, tmp_path: Path) -> None:
    with program.open("rb") as file:
        reason = ProgramFiles(HostTree(tmp_path)).why_not(1, str(program), 0, file.fileno())
    assert reason == "/proc/stat: no such file or directory"


@given(
    true_boot=st.floats(0, 1e9),
    sysfs_after=st.floats(0, 60),
    set_forward=st.floats(0, 1e6),
    start_after=st.floats(0, 1e6),
    replaced_after=st.floats(0, 1e6),
)
def test_no_single_step_of_the_clock_lets_a_replaced_file_pass(
    true_boot: float, sysfs_after: float, set_forward: float, start_after: float, replaced_after: float
) -> None:
    """The file is replaced after the start, by the clock of before the step; both are compared by the clock of after it."""
    clock = BootClock(float(int(true_boot + set_forward)), true_boot + sysfs_after, 100)
    change_time = true_boot + start_after + replaced_after
    if clock.why_unsteady() is None:
        assert change_time >= clock.latest_change_seconds(int(start_after * 100))


# The size of the code


def test_size_of_code_is_what_the_kernel_counts(program: Path, start: Start) -> None:
    pid = start(program)
    for process, path in ((pid, program), (os.getpid(), Path(sys.executable))):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[3])
        with path.open("rb") as file:
            assert pages in code_pages(file.fileno())


@given(content=st.binary(max_size=200), header=st.sampled_from([b"", b"\x7fELF\x02\x01"]))
def test_any_bytes_have_some_size_of_code_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes, header: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(header + content)
    with path.open("rb") as file:
        assert isinstance(code_pages(file.fileno()), frozenset)


@pytest.mark.parametrize(("offset", "value"), [(0x20, b"\xff" * 8), (0x36, b"\x01\0"), (0x38, b"\xff\xff"), (0x38, b"\0\0")])
def test_program_with_a_table_that_cannot_be_has_no_size_of_code(program: Path, offset: int, value: bytes) -> None:
    """e_phoff, e_phentsize and e_phnum of elf(5)."""
    with program.open("rb+") as file:
        file.seek(offset)
        file.write(value)
        file.flush()
        assert code_pages(file.fileno()) == frozenset()


def test_process_whose_size_is_not_told_is_not_concluded_on(program: Path, tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/statm").write_text("1 2 3")
    with program.open("rb") as file:
        assert ProgramFiles(HostTree(tmp_path))._why_other_code(7, file.fileno()) == "the size of its code is not told"


def test_program_cut_short_has_no_size_of_code(program: Path) -> None:
    with program.open("rb+") as file:
        for size_bytes in (0, 5, 63, 64, 100):
            os.truncate(program, size_bytes)
            assert code_pages(file.fileno()) == frozenset()


# What the conclusion rests on: that this machine's file system tells of a renaming


def test_renaming_sets_the_change_time_of_what_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "folder", "link"):
        before = (tmp_path / name).lstat().st_ctime_ns
        time.sleep(0.1)
        renamed = (tmp_path / name).rename(tmp_path / f"new-{name}")
        assert renamed.lstat().st_ctime_ns > before
