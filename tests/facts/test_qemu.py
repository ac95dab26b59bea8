import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import qemu
from exitguard.facts.qemu import CAPABILITY_STRING, EXECUTABLE, QemuReader, executable_path, find_version
from exitguard.facts.tree import HostTree
from exitguard.model.host import QemuBinary, QemuVersion

CHUNK = 1 << 20
VERSION = b"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
READ = QemuVersion(version="7.2.22", package="Debian 1:7.2+dfsg-7+deb12u18")
QEMU = Path("/usr/bin/qemu-system-x86_64")


def program(path: Path, *pieces: tuple[int, bytes], size_bytes: int = 3 * CHUNK) -> QemuBinary:
    """A file of zeros with texts at some offsets, read as a QEMU."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset, text in pieces:
            file.seek(offset)
            file.write(text)
    return QemuReader(HostTree()).read_file(str(path))


# The texts, wherever they stand


@pytest.mark.parametrize("border", [CHUNK, 2 * CHUNK])
@pytest.mark.parametrize("before", sorted({0, 1, 21, 22, 24, 28, 29, 30, 31, 40, 57, 58, 59, 60, 511, 512, 513, 600}))
def test_version_is_found_whole_at_every_chunk_border(tmp_path: Path, border: int, before: int) -> None:
    assert program(tmp_path / "qemu", (border - before, VERSION)).version.value == READ


@pytest.mark.parametrize("before", range(0, len(CAPABILITY_STRING) + 2, 5))
def test_capability_is_found_across_a_chunk_border(tmp_path: Path, before: int) -> None:
    read = program(tmp_path / "qemu", (CHUNK - before, CAPABILITY_STRING), (CHUNK // 2, VERSION))
    assert (read.capability_string.value, read.version.value) == (True, READ)


def test_texts_at_the_very_ends_of_the_file_are_found(tmp_path: Path) -> None:
    read = program(tmp_path / "qemu", (0, CAPABILITY_STRING), (CHUNK + 7, VERSION), size_bytes=CHUNK + 7 + len(VERSION))
    assert (read.capability_string.value, read.version.value) == (True, READ)


def test_file_without_the_texts_says_so(tmp_path: Path) -> None:
    read = program(tmp_path / "qemu")
    assert read.version.reason == "the file holds no QEMU version text"
    assert read.capability_string.value is False
    assert program(tmp_path / "empty", size_bytes=0).capability_string.value is False


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (b"QEMU emulator version 7.2.22 (Debian 1:7.2)\n", QemuVersion(version="7.2.22", package="Debian 1:7.2")),
        (b"QEMU emulator version 11.0.0\nCopyright", QemuVersion(version="11.0.0", package="")),
        (b"QEMU emulator version 6.2.0 (qemu-kvm-6.2.0-53.el8)", QemuVersion(version="6.2.0", package="qemu-kvm-6.2.0-53.el8")),
        (b"QEMU emulator version 9.1.50 (v9.1.0-1-g\xff)", QemuVersion(version="9.1.50", package="v9.1.0-1-g\N{REPLACEMENT CHARACTER}")),
        (b"QEMU emulator version 8.2 (never closed\0)", QemuVersion(version="8.2", package="")),
        (b"QEMU emulator version %s", None),
        (b"QEMU emulator version 11", None),
        (b"qemu-img version 7.2.22", None),
        (b"", None),
    ],
)
def test_version_text(text: bytes, version: QemuVersion | None) -> None:
    assert find_version(text) == version


@given(st.binary(max_size=600), st.binary(max_size=300), st.integers(0, 700))
def test_version_does_not_depend_on_where_the_file_is_cut(before: bytes, package: bytes, cut: int) -> None:
    content = before + b"QEMU emulator version 10.0.2 (" + package
    whole = find_version(content)
    first = find_version(content[:cut], complete=False)
    assert first is None or first == whole


@given(st.binary(max_size=400))
def test_any_bytes_are_read(content: bytes) -> None:
    assert find_version(content) is None
    assert find_version(b"QEMU emulator version 1.2" + content) is not None


# Files that are not as they should be


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    read = program(tmp_path / "qemu", (0, VERSION + CAPABILITY_STRING), size_bytes=(1 << 30) + 1)
    assert read.version.reason == read.capability_string.reason == "1073741825 bytes, expected a program of at most 1073741824"


def test_file_that_shrinks_while_it_is_read_does_not_count_as_one_without_the_capability(tmp_path: Path) -> None:
    path = tmp_path / "qemu"
    program(path, (0, VERSION))
    with path.open("r+b") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        file.truncate(CHUNK)
        version, capability = qemu._scan(file.fileno(), size_bytes, "/qemu")
    assert version.reason == capability.reason == f"it became shorter while it was read: {CHUNK} bytes of {3 * CHUNK}"


@pytest.mark.parametrize(("name", "reason"), [("missing", "no such file or directory"), ("", "not a regular file")])
def test_what_is_no_file_has_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    read = QemuReader(HostTree()).read_file(f"{tmp_path}/{name}")
    assert read.version.reason == read.capability_string.reason == reason
    assert read.version.unlock is None


def test_link_out_of_a_sysroot_is_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    program(outside, (0, VERSION))
    (tmp_path / "sysroot").mkdir()
    (tmp_path / "sysroot/qemu").symlink_to(outside)
    assert QemuReader(HostTree(tmp_path / "sysroot")).read_file("/qemu").version.reason == "no such file or directory"


# Each file once


def test_file_is_read_once_however_many_domains_run_it_and_however_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "qemu", (0, VERSION))
    (tmp_path / "kvm").symlink_to("qemu")
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        reads.append(offset)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    reader = QemuReader(HostTree())
    seen = [reader.read_file(str(tmp_path / name)) for name in ("qemu", "kvm", "qemu", "kvm")]
    assert reads == [0, CHUNK, 2 * CHUNK]
    assert seen[0] == seen[2]
    assert [read.version.source for read in seen[:2]] == [str(tmp_path / "qemu"), str(tmp_path / "kvm")]
    os.utime(tmp_path / "qemu", ns=(0, 0))
    reader.read_file(str(tmp_path / "qemu"))
    assert len(reads) == 6


def test_facts_do_not_depend_on_which_name_of_a_file_was_read_first(tmp_path: Path) -> None:
    program(tmp_path / "qemu", (0, VERSION))
    (tmp_path / "kvm").hardlink_to(tmp_path / "qemu")
    paths = [str(tmp_path / name) for name in ("qemu", "kvm")]
    forwards, backwards = QemuReader(HostTree()), QemuReader(HostTree())
    assert [forwards.read_file(path) for path in paths] == [backwards.read_file(path) for path in reversed(paths)][::-1]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[object, object]:
    """What is remembered from one reader to the next, empty at first; files count as settled at once."""
    remembered: dict[object, object] = {}
    monkeypatch.setattr(qemu, "_remembered", remembered)
    monkeypatch.setattr(qemu, "_SETTLED_NANOSECONDS", -(10**12))
    return remembered


def test_settled_file_is_not_read_again_by_the_next_reader(
    tmp_path: Path, memory: dict[object, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = program(tmp_path / "qemu", (0, VERSION + CAPABILITY_STRING))
    assert len(memory) == 1
    monkeypatch.delattr(os, "pread")
    assert QemuReader(HostTree()).read_file(str(tmp_path / "qemu")) == read


def test_replaced_file_is_read_again_even_with_the_times_of_the_old_one(tmp_path: Path, memory: dict[object, object]) -> None:
    path = tmp_path / "qemu"
    program(path, (0, VERSION))
    times = path.stat()
    with path.open("r+b") as file:
        file.write(VERSION.replace(b"7.2.22", b"7.2.99"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert QemuReader(HostTree()).read_file(str(path)).version.get().version == "7.2.99"
    assert len(memory) == 2


def test_file_that_was_just_changed_is_not_remembered(
    tmp_path: Path, memory: dict[object, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_SETTLED_NANOSECONDS", 10**18)
    program(tmp_path / "qemu", (0, VERSION))
    assert memory == {}


def test_memory_is_bounded(tmp_path: Path, memory: dict[object, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "_MAX_REMEMBERED", 3)
    for number in range(10):
        program(tmp_path / f"qemu-{number}", (0, VERSION), size_bytes=200)
        assert len(memory) <= 3


# What runs


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A copy of a real program with QEMU's texts behind its end, running; the file and the pid."""
    path = tmp_path / "qemu-system-x86_64"
    shutil.copy(shutil.which("sleep") or "", path)
    with path.open("ab") as file:
        file.write(VERSION + b"\0" + CAPABILITY_STRING)
    with subprocess.Popen([path, "600"]) as process:
        yield path, process.pid
        process.kill()


def test_running_program_is_read_through_its_process(running: tuple[Path, int]) -> None:
    path, pid = running
    read = QemuReader(HostTree()).read_running(pid)
    assert (read.path, read.deleted) == (str(path), False)
    assert (read.version.value, read.capability_string.value) == (READ, True)


def test_replaced_program_is_still_the_one_that_runs(running: tuple[Path, int]) -> None:
    path, pid = running
    path.unlink()
    path.write_bytes(b"QEMU emulator version 11.1.3\0")
    reader = QemuReader(HostTree())
    read = reader.read_running(pid)
    assert (read.path, read.deleted, read.version.value) == (str(path), True, READ)
    assert reader.read_file(str(path)).version.get().version == "11.1.3"


def test_program_that_ended_has_a_reason_that_names_no_pid() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    read = QemuReader(HostTree()).read_running(process.pid)
    assert (read.path, read.version.source, read.version.reason) == (EXECUTABLE, EXECUTABLE, "no such file or directory")


def test_path_that_is_not_utf_8_is_still_text(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/qemu\xff")
    shutil.copy(shutil.which("sleep") or "", odd)
    with subprocess.Popen([odd, "600"]) as process:
        read = QemuReader(HostTree()).read_running(process.pid)
        process.kill()
    assert read.path.endswith("/qemu\N{REPLACEMENT CHARACTER}")
    assert read.model_dump_json()


def test_copied_process_tree_does_not_lead_out_of_the_sysroot(tmp_path: Path) -> None:
    outside = tmp_path / "outside/qemu"
    outside.parent.mkdir()
    program(outside, (0, VERSION))
    root = tmp_path / "sysroot"
    (root / "proc/7").mkdir(parents=True)
    (root / "proc/7/exe").symlink_to(outside)
    assert QemuReader(HostTree(root)).read_running(7).version.reason == "no such file or directory"
    inside = root / str(outside).lstrip("/")
    inside.parent.mkdir(parents=True)
    program(inside, (0, b"QEMU emulator version 11.0.0\0"))
    read = QemuReader(HostTree(root)).read_running(7)
    assert (read.path, read.version.get().version) == (str(outside), "11.0.0")


def test_fifo_behind_a_copied_process_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "proc/7/exe").symlink_to("/fifo")
    assert QemuReader(HostTree(tmp_path)).read_running(7).version.reason == "not a regular file"


def test_looping_process_tree_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "proc").symlink_to("proc")
    assert QemuReader(HostTree(tmp_path)).read_running(7).version.reason == "too many symbolic links"


def test_program_that_fails_while_it_is_read_has_a_reason(running: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int, _length: int, _offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    path, pid = running
    read = QemuReader(HostTree()).read_running(pid)
    assert (read.path, read.capability_string.reason) == (str(path), "input/output error")


def test_what_may_not_be_read_names_the_privilege() -> None:
    # As another user where root runs the tests: root may read everything.
    script = """
import os, sys
from pathlib import Path
from exitguard.facts.qemu import QemuReader
from exitguard.facts.tree import HostTree
parent = os.getppid()
if os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
reader = QemuReader(HostTree())
for read in (reader.read_file(sys.argv[1]), reader.read_running(int(sys.argv[2]))):
    print(read.capability_string.reason, read.capability_string.unlock, sep=" / ")
"""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "qemu").touch(mode=0)
        # Process 1 is never the tests' own, and runs as root where anything does.
        shown = subprocess.run([sys.executable, "-c", script, f"{name}/qemu", "1"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [
        "permission denied / run as root, or grant CAP_DAC_READ_SEARCH",
        "permission denied / run as root, or grant CAP_SYS_PTRACE",
    ]


def test_executable_path_is_what_the_kernel_says() -> None:
    assert executable_path("/proc/self/exe") == str(Path("/proc/self/exe").readlink())


# The real program


@pytest.mark.integration
@pytest.mark.skipif(not QEMU.exists(), reason="no /usr/bin/qemu-system-x86_64 on this machine")
def test_real_qemu_is_read_as_it_says_itself() -> None:
    read = QemuReader(HostTree()).read_file(str(QEMU))
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()[0]
    version = read.version.get()
    assert said == f"QEMU emulator version {version.version}" + (f" ({version.package})" if version.package else "")
    if int(version.version.split(".")[0]) >= 11:
        assert read.capability_string.value is True
    assert read.capability_string.known
