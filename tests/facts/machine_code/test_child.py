"""Readings made by a process apart: whatever becomes of that process, each image has an answer or a reason, and nothing is left behind."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from small_modules import ANOTHER_BUILD_ID, BUILD_ID, RELEASE, SMALL_BTF, compile_module, put

from exitguard.facts.machine_code import __main__ as reader
from exitguard.facts.machine_code import child, memory
from exitguard.facts.machine_code.child import read_images
from exitguard.facts.machine_code.files import ImageFiles
from exitguard.facts.machine_code.image import Image
from exitguard.facts.machine_code.messages import PACKAGES, Answer, Request
from exitguard.facts.machine_code.process import ReaderProcess, Unanswered
from exitguard.facts.tree import HostTree
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed

DEADLINE_SECONDS = 60.0
MEMORY_BYTES = 512 << 20


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    memory.forget()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_module(tmp_path_factory.mktemp("module"))


@pytest.fixture
def root(tmp_path: Path, module: bytes) -> Path:
    """A tree with /kvm.ko, and /not.ko, which is none."""
    put(tmp_path, "/kvm.ko", module)
    put(tmp_path, "/not.ko", "no module")
    return tmp_path


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[ReaderProcess]:
    """Every process that is started, in order."""
    started: list[ReaderProcess] = []

    def start(*, memory_bytes: int) -> ReaderProcess:
        started.append(ReaderProcess(memory_bytes=memory_bytes))
        return started[-1]

    monkeypatch.setattr(child, "ReaderProcess", start)
    return started


def images(*paths: str) -> tuple[ImageFiles, ...]:
    return tuple(ImageFiles(code=path) for path in paths)


def read(root: Path, *paths: str, pulse: Callable[[], None] = lambda: None) -> tuple[Observed[MachineCode], ...]:
    return read_images(HostTree(root), images(*paths), use_base=False, pulse=pulse)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


def test_answers_come_in_the_order_asked_one_for_each(root: Path, processes: list[ReaderProcess]) -> None:
    put(root, "/folder/file")
    first, missing, folder, nonsense, last = read(root, "/kvm.ko", "/missing.ko", "/folder", "/not.ko", "/./kvm.ko")
    assert first.get().build_id == last.get().build_id == BUILD_ID
    assert (first.get().release, first.get().obstacle, first.get().helpers_present) == (RELEASE, None, ())
    assert (first.get().path, first.source, last.source) == ("/kvm.ko", "/kvm.ko", "/./kvm.ko")
    assert (missing.source, missing.reason) == ("/missing.ko", "no such file or directory")
    assert (folder.source, folder.reason) == ("/folder", "not a regular file")
    assert nonsense.source == "/not.ko"
    assert nonsense.reason is not None
    assert len(processes) == 1


def test_nothing_to_read_starts_no_process(root: Path, processes: list[ReaderProcess]) -> None:
    assert read(root) == ()
    assert not read(root, "/missing.ko")[0].known
    assert processes == []


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/mem", "/proc/self/mem"])
def test_what_is_no_file_of_bytes_is_never_handed_over(path: str) -> None:
    (observed,) = read_images(HostTree(), images(path), use_base=False)
    assert observed.reason is not None


def test_pipe_that_nobody_writes_to_is_refused_at_once(root: Path) -> None:
    os.mkfifo(root / "pipe.ko")
    assert read(root, "/pipe.ko")[0].reason == "not a regular file"


def read_with_first_reader(root: Path, processes: list[ReaderProcess], number: signal.Signals) -> tuple[Observed[MachineCode], ...]:
    """Readings whose first process gets a signal as soon as it has its first request."""

    def pulse() -> None:
        if len(processes) == 1:
            os.kill(processes[0].pid, number)

    return read(root, "/kvm.ko", "/./kvm.ko", pulse=pulse)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "the reader ended with signal 11: segmentation fault"),
        (signal.SIGABRT, "the reader ended with signal 6: aborted"),
        (signal.SIGXCPU, "took longer than 30 s"),
        (signal.SIGKILL, "the reader was killed (signal 9), as the kernel does where memory runs out"),
    ],
)
def test_reader_that_dies_costs_one_image_and_another_reads_the_rest(
    root: Path, processes: list[ReaderProcess], number: signal.Signals, reason: str
) -> None:
    died, after = read_with_first_reader(root, processes, number)
    assert (died.source, died.reason) == ("/kvm.ko", reason)
    assert after.get().build_id == BUILD_ID
    assert len(processes) == 2
    assert all(gone(process.pid) for process in processes)


def test_reader_that_hangs_is_ended(root: Path, processes: list[ReaderProcess]) -> None:
    (hung,) = read_images(
        HostTree(root),
        images("/kvm.ko"),
        use_base=False,
        seconds_per_image=0.2,
        pulse=lambda: os.kill(processes[0].pid, signal.SIGSTOP),
    )
    assert hung.reason == "took longer than 0.2 s"
    assert gone(processes[0].pid)


def test_reader_without_memory_says_so_and_is_ended(root: Path) -> None:
    """More than Python and its libraries take, and less than the file does."""
    with (root / "large.ko").open("wb") as file:
        file.write((root / "kvm.ko").read_bytes())
        file.truncate(200 << 20)
    large, after = read_images(HostTree(root), images("/large.ko", "/kvm.ko"), use_base=False, memory_bytes=240 << 20)
    assert large.reason == "needed more than 240 MiB of memory"
    assert after.known


def test_process_that_cannot_even_start_in_so_little_memory_is_a_reason(root: Path) -> None:
    (observed,) = read_images(HostTree(root), images("/kvm.ko"), use_base=False, memory_bytes=16 << 20)
    assert observed.reason is not None
    assert "reader" in observed.reason or "16 MiB" in observed.reason


def test_program_that_cannot_be_started_is_a_reason(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/missing/python")
    (observed,) = read(root, "/kvm.ko")
    assert observed.reason == "the process that reads kernel images could not be started: no such file or directory"
    assert memory._remembered == {}


class Stop(BaseException):
    """What ends an audit."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
def test_whatever_ends_the_parents_work_leaves_no_process(root: Path, processes: list[ReaderProcess], error: type[BaseException]) -> None:
    before = open_descriptors()

    def interrupt() -> None:
        raise error

    with pytest.raises(error):
        read(root, "/kvm.ko", pulse=interrupt)
    assert len(processes) == 1
    with pytest.raises(ChildProcessError):  # nobody is left to be waited for
        os.waitpid(processes[0].pid, os.WNOHANG)
    assert open_descriptors() == before


def test_no_descriptor_is_left_open(root: Path) -> None:
    read(root, "/kvm.ko")
    before = open_descriptors()
    for _ in range(3):
        memory.forget()
        read(root, "/kvm.ko", "/not.ko", "/missing.ko")
    assert open_descriptors() == before


@pytest.fixture
def process() -> Iterator[ReaderProcess]:
    """One that has taken from itself what it does not need, and waits for a request."""
    started = ReaderProcess(memory_bytes=MEMORY_BYTES)
    try:
        wait_until(lambda: confined(started.pid))
        yield started
    finally:
        started.close()


def confined(pid: int) -> bool:
    """Whether a process has taken from itself what it does not need; this is the last of it."""
    return Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


def test_process_can_take_little_memory_write_nothing_and_dump_no_core(process: ReaderProcess) -> None:
    assert resource.prlimit(process.pid, resource.RLIMIT_AS) == (MEMORY_BYTES, MEMORY_BYTES)
    assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == (0, 0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)


def test_process_has_nothing_of_its_parents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXITGUARD_STATE_DIR", "/secret")
    monkeypatch.setenv("LIBCAPSTONE_PATH", str(tmp_path))
    with (tmp_path / "parents").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        process = ReaderProcess(memory_bytes=MEMORY_BYTES)
        try:
            wait_until(lambda: confined(process.pid))
            proc = Path(f"/proc/{process.pid}")
            variables = {variable.partition("=")[0] for variable in (proc / "environ").read_text().split("\0") if variable}
            opened = [os.readlink(link) for link in (proc / "fd").iterdir()]  # noqa: PTH115 - sockets and pipes are no paths
            group = os.getpgid(process.pid)
        finally:
            process.close()
    assert variables <= {"PATH", "LC_ALL", "MALLOC_ARENA_MAX", "PYTHONPATH"}
    assert {name.partition(":")[0] for name in opened} == {"socket", "pipe"}
    assert group == process.pid


def test_process_does_not_load_what_the_agent_is_made_of(process: ReaderProcess) -> None:
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "pydantic_core" in mapped
    assert not any(name in mapped for name in ("libvirt", "sqlalchemy", "greenlet", "_sqlite3", "_ssl"))
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", "import sys, exitguard.facts.machine_code.__main__; print(*sys.modules)"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    assert {"sqlalchemy", "libvirt", "typer", "rich", "alembic", "structlog", "apscheduler", "subprocess"}.isdisjoint(loaded)


def test_process_ends_with_its_parent_even_where_it_hangs(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import time\nfrom exitguard.facts.machine_code.process import ReaderProcess\n"
        f"print(ReaderProcess(memory_bytes={MEMORY_BYTES}).pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: confined(pid))
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
    wait_until(lambda: gone(pid))


def test_process_ends_by_itself_where_nobody_asks_any_more(process: ReaderProcess) -> None:
    process._socket.close()
    wait_until(lambda: gone(process.pid))


def ask(process: ReaderProcess, path: Path, *, roles: tuple[str, ...] = ("code",)) -> Answer | Unanswered:
    with path.open("rb") as file:
        process.ask(Request(path=str(path), roles=roles, seconds=30), dict.fromkeys(roles, file), seconds=DEADLINE_SECONDS)
        return process.answer(lambda: None)


def test_request_that_makes_no_sense_is_a_reason(process: ReaderProcess, root: Path) -> None:
    answer = ask(process, root / "kvm.ko", roles=("system_map",))
    assert isinstance(answer, Answer)
    assert answer.fault is not None


def test_process_that_ended_before_it_was_asked_is_a_reason(process: ReaderProcess, root: Path) -> None:
    os.kill(process.pid, signal.SIGTERM)
    wait_until(lambda: gone(process.pid))
    answer = ask(process, root / "kvm.ko")
    assert isinstance(answer, Unanswered)
    assert answer.reason == "the reader ended with signal 15: terminated"


def speaking(monkeypatch: pytest.MonkeyPatch, program: str) -> ReaderProcess:
    """A process that says what a broken or conquered reader might say."""
    monkeypatch.setattr("exitguard.facts.machine_code.process._words", lambda _bytes: [sys.executable, "-I", "-S", "-c", program])
    return ReaderProcess(memory_bytes=MEMORY_BYTES)


LARGE_ADDRESS = '{"reading": {"path": "x", "listing": [{"function": "f", "address": 9007199254740992, "text": "ret"}]}}'


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('nonsense')", "could not be understood"),
        ("print('[]')", "could not be understood"),
        ('print(\'{"reading": {"path": 1}}\')', "could not be understood"),
        ('print(\'{"reading": {"path": "\\\\ud800"}}\')', "could not be understood"),
        (f"print({LARGE_ADDRESS!r})", "could not be understood"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\n')", "could not be understood"),
        ("print('{}\\n{}')", "said more than was asked"),
        ("import sys\nwhile True: sys.stdout.write('x' * 65536)", "longer than 1 MiB"),
        ("import os, time\nos.close(1)\ntime.sleep(600)", "closed its output without an answer"),
        ("raise SystemExit('the\\x1b last\\x07 words')", "ended with exit code 1: the last words"),
        ("raise SystemExit(3)", "ended with exit code 3: it said nothing"),
        ("import sys; sys.stderr.write('x' * 10000000 + '\\nMemoryError\\n'); sys.exit(1)", "needed more than 512 MiB"),
    ],
)
def test_whatever_a_process_says_is_an_answer_or_a_reason(root: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str) -> None:
    process = speaking(monkeypatch, program)
    try:
        answer = ask(process, root / "kvm.ko")
    finally:
        process.close()
    assert isinstance(answer, Unanswered)
    assert reason in answer.reason
    assert gone(process.pid)


def test_answer_about_another_file_is_told_of_the_file_that_was_asked_about(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """print('{"reading": {"path": "/another", "obstacle": "two\\\\nlines\\\\u001b[31m"}}')"""
    monkeypatch.setattr("exitguard.facts.machine_code.process._words", lambda _bytes: [sys.executable, "-I", "-S", "-c", program])
    reading = read(root, "/kvm.ko")[0].get()
    assert (reading.path, reading.obstacle) == ("/kvm.ko", "two lines [31m")


@pytest.mark.parametrize("package", PACKAGES)
def test_missing_package_is_named_with_what_installs_it(
    root: Path, processes: list[ReaderProcess], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    present = child.find_spec
    monkeypatch.setattr(child, "find_spec", lambda name: None if name == package else present(name))
    (observed,) = read(root, "/kvm.ko")
    assert observed.reason == f"needs the extra exitguard[kernel]: {PACKAGES[package]} is not installed"
    assert observed.unlock == "pip install 'exitguard[kernel]'"
    assert (processes, memory._remembered) == ([], {})


# What the process does, without one around it.


def in_process(root: Path, *roles: str, path: str = "/kvm.ko", base_of_build: str | None = None, base_was_named: bool = False) -> Answer:
    request = Request(path=path, roles=("code", *roles), base_of_build=base_of_build, base_was_named=base_was_named, seconds=30)
    files = {role: (root / {"code": path.lstrip("/"), "btf_base": "base", "system_map": "map"}[role]).open("rb") for role in request.roles}
    try:
        return reader.answer(request, files)
    finally:
        for file in files.values():
            file.close()


def test_reader_answers_with_a_reading_or_an_obstacle(root: Path) -> None:
    answer = in_process(root)
    assert answer.reading is not None
    assert (answer.reading.build_id, answer.reading.release) == (BUILD_ID, RELEASE)
    assert in_process(root, path="/not.ko").obstacle


def test_missing_package_is_no_fault_and_any_other_surprise_is_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with(error: Exception) -> Answer:
        def fail(*_: object, **__: object) -> MachineCode:
            raise error

        monkeypatch.setattr(reader, "read_skip", fail)
        return in_process(root)

    assert fail_with(ModuleNotFoundError("no", name="capstone.x86")).missing == "capstone"
    assert fail_with(ModuleNotFoundError("no", name="another")).fault == "ModuleNotFoundError: no"
    assert fail_with(RecursionError("too deep")).fault == "RecursionError: too deep"
    with pytest.raises(MemoryError):
        fail_with(MemoryError())  # type: ignore[arg-type]


def test_processor_time_is_limited_anew_for_each_image() -> None:
    before = resource.getrlimit(resource.RLIMIT_CPU)
    try:
        reader.limit_processor_time(100)
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        assert 0 < soft - used.ru_utime - used.ru_stime <= 101
        assert hard == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)


@pytest.fixture
def bases_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """The bases that readings were made with; the module has BTF that has to begin somewhere."""
    put(root, "/kvm.ko", compile_module(root, btf=True))
    used: list[bytes | None] = []

    def note(image: Image, *, btf_base: bytes | None) -> MachineCode:
        used.append(btf_base)
        return MachineCode(path=image.path)

    monkeypatch.setattr(reader, "read_skip", note)
    return used


RAW_BTF = b"\x9f\xeb\x01 and so on"


def test_base_is_raw_btf_or_what_an_image_has(root: Path, bases_used: list[bytes | None]) -> None:
    put(root, "/base", RAW_BTF)
    in_process(root, "btf_base")
    (root / "base").write_bytes((root / "kvm.ko").read_bytes())
    in_process(root, "btf_base")
    assert bases_used == [RAW_BTF, SMALL_BTF]


def test_base_of_another_build_is_not_used(root: Path, bases_used: list[bytes | None]) -> None:
    put(root, "/base", RAW_BTF)
    in_process(root, "btf_base", base_of_build=BUILD_ID)
    in_process(root, "btf_base", base_of_build=ANOTHER_BUILD_ID)
    assert bases_used == [RAW_BTF, None]


@pytest.mark.parametrize("content", [b"", b"no kernel"])
def test_base_that_cannot_be_read_is_one_source_less_and_an_obstacle_where_it_was_named(
    root: Path, bases_used: list[bytes | None], content: bytes
) -> None:
    put(root, "/base", content)
    assert in_process(root, "btf_base").reading is not None
    assert bases_used == [None]
    assert (in_process(root, "btf_base", base_was_named=True).obstacle or "").startswith("the kernel that was named for its BTF: ")


def test_module_without_btf_needs_no_base(root: Path, bases_used: list[bytes | None]) -> None:
    put(root, "/kvm.ko", compile_module(root))
    put(root, "/base", b"no kernel")
    assert in_process(root, "btf_base", base_was_named=True).reading is not None
    assert bases_used == [None]


def test_base_that_is_not_there_is_one_source_less_and_a_reason_where_it_was_named(root: Path) -> None:
    found, named = read_images(
        HostTree(root),
        [ImageFiles(code="/kvm.ko", btf_base="/missing"), ImageFiles(code="/kvm.ko", btf_base="/missing", base_was_named=True)],
        use_base=True,
    )
    assert found.known
    assert (named.source, named.reason) == ("/missing", "no such file or directory")
