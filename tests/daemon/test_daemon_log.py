"""The daemon's log, read from the pipe, terminal or file that it was given."""

import json
import logging
import os
import pty
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from exitguard.daemon.log import bound, bounded_values, configure_log, get_logger
from exitguard.model.pmu import ChainState


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root.setLevel(level)
    root.handlers[:] = handlers
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


class Pipe:
    """A pipe in the place of standard error."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)

    def text(self) -> str:
        told = b""
        while True:
            try:
                piece = os.read(self.read_end, 1 << 20)
            except BlockingIOError:
                return told.decode()
            if not piece:
                return told.decode()
            told += piece

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    @property
    def journal_stream(self) -> str:
        status = os.fstat(self.write_end)
        return f"{status.st_dev}:{status.st_ino}"


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for end in (made.read_end, made.write_end):
        with suppress(OSError):  # a test closed it
            os.close(end)


def run(script: str, *, environ: Mapping[str, str] | None = None, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """`script` as a process of its own, its log on the standard error that is returned."""
    head = "import os, sys\nfrom exitguard.daemon.log import configure_log, get_logger\n"
    return subprocess.run(
        [sys.executable, "-c", head + script],
        check=False,
        text=True,
        timeout=120,
        env={**os.environ, **(environ or {})},
        **({"capture_output": True} | arguments),
    )


def test_not_a_terminal_gets_one_json_object_a_line(pipe: Pipe) -> None:
    configure_log("info", {}, file_descriptor=pipe.write_end)
    get_logger().info("audit.finished", domains=512, seconds=0.41)
    get_logger().warning("domain.stuck", name="web")
    first, second = pipe.events()
    assert (first["event"], first["level"], first["domains"], first["seconds"]) == ("audit.finished", "info", 512, 0.41)
    assert (second["event"], second["level"], second["name"]) == ("domain.stuck", "warning", "web")
    assert datetime.fromisoformat(first["timestamp"]).tzinfo is not None


def test_level_can_change_while_it_runs(pipe: Pipe) -> None:
    log = get_logger()
    configure_log("warning", {}, file_descriptor=pipe.write_end)
    log.info("quiet")
    configure_log("debug", {}, file_descriptor=pipe.write_end)
    log.debug("loud")
    assert [event["event"] for event in pipe.events()] == ["loud"]


def test_bound_fields_are_in_each_event_of_this_thread_only(pipe: Pipe) -> None:
    configure_log("info", {}, file_descriptor=pipe.write_end)
    with bound(run_id="r1", host="h1"), bound(domain="\x1b[31mweb"):
        get_logger().info("judged", extra=1)
        other = threading.Thread(target=lambda: get_logger().info("elsewhere"))
        other.start()
        other.join()
    get_logger().info("later")
    judged, elsewhere, later = pipe.events()
    assert list(judged) == ["timestamp", "level", "event", "host", "run_id", "domain", "extra"]
    assert (judged["run_id"], judged["host"], judged["domain"]) == ("r1", "h1", r"\x1b[31mweb")
    assert elsewhere.keys() == later.keys() == {"timestamp", "level", "event"}


@pytest.mark.parametrize("log_format", ["auto", "console"])
def test_in_the_journal_every_line_begins_with_its_priority(pipe: Pipe, log_format: Any) -> None:
    configure_log("debug", {"JOURNAL_STREAM": pipe.journal_stream}, log_format=log_format, file_descriptor=pipe.write_end)
    log = get_logger()
    for method in (log.debug, log.info, log.warning, log.error, log.critical):
        method("said")
    assert [line[:3] for line in pipe.text().splitlines()] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    log.error("failed", exc_info=ValueError("two\nlines"))
    lines = pipe.text().splitlines()
    assert {line[:3] for line in lines} == {"<3>"}
    assert (len(lines) > 1) is (log_format == "console")


def test_priorities_are_for_the_journal_only(pipe: Pipe) -> None:
    # Redirected to a file, the variable is still there and names the old stream.
    configure_log("info", {"JOURNAL_STREAM": "1:2"}, file_descriptor=pipe.write_end)
    get_logger().info("said")
    assert pipe.text().startswith("{")


@pytest.mark.parametrize(
    ("environ", "colored"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_terminal_gets_lines_for_people(environ: dict[str, str], colored: bool) -> None:  # noqa: FBT001
    controller, terminal = pty.openpty()
    try:
        configure_log("info", environ, file_descriptor=terminal)
        get_logger().info("audit.finished", domains=512, name="\x1b]0;title\x07")
        told = os.read(controller, 65536).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert "audit.finished" in told
    assert ("\x1b[" in told) is colored
    assert "\x1b]" not in told
    assert "\x07" not in told


def test_format_that_was_asked_for_beats_the_terminal(pipe: Pipe) -> None:
    controller, terminal = pty.openpty()
    try:
        configure_log("info", {}, log_format="json", file_descriptor=terminal)
        get_logger().info("said")
        assert json.loads(os.read(controller, 65536))["event"] == "said"
    finally:
        os.close(controller)
        os.close(terminal)
    configure_log("info", {}, log_format="console", file_descriptor=pipe.write_end)
    get_logger().info("said")
    assert not pipe.text().startswith("{")


class Loud(IntEnum):
    ELEVEN = 11


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("web\x1b\n\u202e", r"web\x1b\x0a\u202e"),
        ("\udce9", r"\udce9"),
        ("caf\u00e9", "caf\u00e9"),
        (b"\xff\n", r"b'\xff\n'"),
        (ChainState.OPTED_OUT, "opted_out"),
        (Loud.ELEVEN, 11),
        (True, True),
        (None, None),
        (2**64 - 1, 2**64 - 1),
        pytest.param(1 << 16609, "a number of 16610 bits", id="huge"),
        (float("nan"), "nan"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (Path("/var/lib\n"), r"/var/lib\x0a"),
        (Broken(), "<Broken that cannot be shown>"),
        ({"a\n": ["\x1b", ("\x07",)], 3: {"x"}}, {r"a\x0a": [r"\x1b", [r"\x07"]], "3": ["x"]}),
        ([[[[["deep"]]]]], [[[["1 more"]]]]),
        (list(range(60)), [*range(50), "10 more"]),
        (dict.fromkeys(range(60), 1), dict.fromkeys(map(str, range(50)), 1) | {"...": "10 more"}),
    ],
)
def test_value_is_told_as_harmless_json(pipe: Pipe, value: object, shown: object) -> None:
    configure_log("info", {}, file_descriptor=pipe.write_end)
    get_logger().info("said", value=value)
    [event] = pipe.events()
    assert event["value"] == shown


_hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner) | st.tuples(inner),
)


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), _hostile, max_size=5))
def test_whatever_is_said_is_printable_json_in_one_line(event: dict[str, Any]) -> None:
    told = bounded_values(None, "info", dict(event))
    line = json.dumps(list(told.values()), ensure_ascii=False, allow_nan=False)
    assert told.keys() == event.keys()
    assert line.isprintable()
    assert line.encode().decode() == line


def test_no_line_is_longer_than_the_journal_takes(pipe: Pipe) -> None:
    configure_log("info", {"JOURNAL_STREAM": pipe.journal_stream}, file_descriptor=pipe.write_end)
    with bound(run_id="r1", host="h1"):
        get_logger().error(
            "\U0001f427" * 10_000, exc_info=ValueError("\U0001f427" * 10_000), **{f"field{n}": "\u00e9" * 10_000 for n in range(100)}
        )
    [line] = pipe.text().splitlines()
    assert len(line.encode()) < 48 * 1024
    event = json.loads(line.removeprefix("<3>"))
    assert (event["level"], event["run_id"], event["host"]) == ("error", "r1", "h1")
    assert "ValueError" in event["exception"]
    assert event["fields_left_out"] == 100 - sum(name.startswith("field") and name != "fields_left_out" for name in event)
    assert event["fields_left_out"] > 0


def deep(depth: int) -> None:
    if depth == 0:
        raise ValueError("the innermost\n\x1b[31mreason")
    if depth % 2:
        deep(depth - 1)
    else:
        deep(depth - 1)


def test_exception_is_a_field_that_keeps_the_end_of_its_traceback(pipe: Pipe) -> None:
    configure_log("info", {}, file_descriptor=pipe.write_end)
    try:
        try:
            deep(300)
        except ValueError as error:
            raise RuntimeError("x" * 100_000) from error
    except RuntimeError:
        get_logger().exception("job.failed", job="audit")
    [event] = pipe.events()
    assert (event["event"], event["level"], event["job"]) == ("job.failed", "error", "audit")
    assert len(event["exception"]) <= 6010
    assert event["exception"].splitlines()[-1].startswith("RuntimeError: xxx")
    assert "\nValueError: the innermost\n" + r"\x1b[31mreason" in event["exception"]
    assert "exc_info" not in event


class BrokenError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no cause")


def test_exception_that_cannot_be_told_is_named(pipe: Pipe) -> None:
    configure_log("info", {}, file_descriptor=pipe.write_end)
    get_logger().error("job.failed", exc_info=BrokenError())
    [event] = pipe.events()
    assert event["exception"] == "BrokenError, whose traceback cannot be shown"


def test_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    configure_log("info", {}, file_descriptor=pipe.write_end)
    os.close(pipe.read_end)
    get_logger().info("unheard")


def test_lines_that_found_no_room_are_counted_once_there_is_some(tmp_path: Path) -> None:
    script = """
import resource
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
configure_log("info", os.environ)
log = get_logger()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))
for number in range(100):
    log.info("said", number=number, padding="x" * 900)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.info("heard again")
log.info("and again")
"""
    path = tmp_path / "log"
    with path.open("w") as file:
        assert run(script, capture_output=False, stderr=file).returncode == 0
    *heard, torn, again, last = path.read_text().splitlines()
    assert [json.loads(line)["number"] for line in heard] == list(range(len(heard)))
    assert len("\n".join([*heard, torn])) == 10_000
    assert not torn.endswith("}")  # what was cut off is ended, so that it spoils no other line
    assert json.loads(again)["lines_lost_before"] == 100 - len(heard)
    assert "lines_lost_before" not in json.loads(last)


def test_full_disk_is_no_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        configure_log("info", {}, file_descriptor=full)
        get_logger().info("no room")
    finally:
        os.close(full)


def test_closed_standard_error_never_becomes_another_file(tmp_path: Path) -> None:
    other = tmp_path / "database"
    script = """
configure_log("info", os.environ)
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
get_logger().error("unheard")
os.write(descriptor, b"untouched")
assert descriptor > 2, descriptor
assert os.readlink("/proc/self/fd/2") == "/dev/null"
"""
    head = "import os, sys\nfrom exitguard.daemon.log import configure_log, get_logger\n"
    finished = subprocess.run(
        ["/bin/sh", "-c", '"$@" 2>&-', "sh", sys.executable, "-c", head + script, str(other)], check=False, timeout=120
    )
    assert finished.returncode == 0
    assert other.read_text() == "untouched"


def logged_by(pipe: Pipe, act: Callable[[], object]) -> list[dict[str, Any]]:
    configure_log("debug", {}, file_descriptor=pipe.write_end)
    configure_log("debug", {}, file_descriptor=pipe.write_end)  # a reload must not double anything
    act()
    return pipe.events()


def test_what_libraries_log_is_an_event(pipe: Pipe) -> None:
    def act() -> None:
        logging.getLogger("sqlalchemy.pool").error("lost %s\x1b", "it", exc_info=ValueError("why"))
        logging.getLogger("alembic.runtime").info("not worth a line")
        logging.getLogger("odd").log(35, "between the levels")

    first, second = logged_by(pipe, act)
    assert (first["event"], first["level"], first["library"], first["message"]) == (
        "library.message",
        "error",
        "sqlalchemy.pool",
        r"lost it\x1b",
    )
    assert first["exception"] == "ValueError: why"
    assert (second["level"], second["message"]) == ("warning", "between the levels")


def test_python_warning_is_an_event(pipe: Pipe) -> None:
    def act() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old way", DeprecationWarning, stacklevel=1)

    logging.captureWarnings(False)
    [event] = logged_by(pipe, act)
    assert (event["level"], event["library"]) == ("warning", "py.warnings")
    assert event["message"].endswith("DeprecationWarning: old way")


def test_schedulers_lines_about_runs_are_left_out_but_not_its_own_errors(pipe: Pipe) -> None:
    def act() -> None:
        logging.getLogger("apscheduler.executors.default").error("Job raised an exception")
        logging.getLogger("apscheduler.scheduler").warning("maximum number of running instances reached")
        logging.getLogger("apscheduler.scheduler").error("Error notifying listener")

    assert [event["message"] for event in logged_by(pipe, act)] == ["Error notifying listener"]


@pytest.mark.parametrize(
    ("script", "returned", "event", "level"),
    [
        ("raise ValueError('bad end')", 1, "process.crashed", "critical"),
        (
            "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='events')\nt.start(); t.join()",
            0,
            "thread.crashed",
            "critical",
        ),
        ("class Late:\n    def __del__(self): raise ValueError('late')\nLate()", 0, "exception.ignored", "error"),
        ("import logging\nlogging.warning('two %s %s', 'arguments')", 0, "library.message", "warning"),
        ("import warnings\nwarnings.warn('old way')", 0, "library.message", "warning"),
    ],
)
def test_nothing_reaches_standard_error_bare(script: str, returned: int, event: str, level: str) -> None:
    finished = run(f"configure_log('info', os.environ)\n{script}\n")
    [line] = finished.stderr.splitlines()
    assert finished.returncode == returned
    told = json.loads(line)
    assert (told["event"], told["level"]) == (event, level)


def test_thread_that_ends_itself_is_no_crash() -> None:
    finished = run("configure_log('info', os.environ)\nimport threading\nt = threading.Thread(target=sys.exit)\nt.start(); t.join()\n")
    assert (finished.returncode, finished.stderr) == (0, "")


def test_rich_and_typer_are_not_loaded_by_the_log() -> None:
    finished = run(
        "configure_log('info', os.environ)\nget_logger().info('x')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('rich', 'typer', 'alembic')])\n"
        "import rich\nprint(rich.__name__)\n"  # and they still can be
    )
    assert finished.stdout.splitlines() == ["[]", "rich"]


def test_libvirts_own_log_is_left_to_whoever_asked_for_it(pipe: Pipe) -> None:
    quiet: dict[str, str] = {}
    configure_log("info", quiet, file_descriptor=pipe.write_end)
    assert quiet == {"LIBVIRT_DEBUG": "error"}
    asked = {"LIBVIRT_LOG_OUTPUTS": "1:file:/tmp/x"}
    configure_log("info", asked, file_descriptor=pipe.write_end)
    assert asked == {"LIBVIRT_LOG_OUTPUTS": "1:file:/tmp/x"}
