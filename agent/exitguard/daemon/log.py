"""The daemon's log on standard error: JSON lines for the journal, lines for people on a terminal.

A line is one event with fields: `get_logger().info("audit.finished", domains=512)`. `run_id`, `host` and `domain` are bound with
`bound()` for as long as they are true; a new thread begins with none, so a job binds its own. What libraries log or warn of, and
exceptions that nobody caught, are events too. No value acts on a terminal, no line is too long for the journal, and no log
that cannot be written stops the daemon: the next line that can says how many were lost.
"""

import json
import logging
import math
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import date
from functools import partialmethod
from itertools import islice
from types import TracebackType
from typing import Any, Literal

from exitguard.report.text import visible


@contextmanager
def _without_rich() -> Iterator[None]:
    """While structlog is imported: it would load Rich for tracebacks not wanted here, 3 MiB for the life of the daemon."""
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # as the import system has it: there is no such module
    try:
        yield
    finally:
        del sys.modules["rich"]


with _without_rich():
    import structlog

#: A logger; other modules of the daemon take it from here, so that structlog is never imported with Rich.
get_logger = structlog.get_logger
#: A context manager: every event inside it, in this thread, carries these fields.
bound = structlog.contextvars.bound_contextvars

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]

STANDARD_ERROR = 2
_LIMIT_CHARACTERS = 1000
_LIMIT_EXCEPTION_CHARACTERS = 6000
_LIMIT_FRAMES = 20
_LIMIT_ITEMS = 50
_LIMIT_DEPTH = 4
#: The journal splits a line beyond 48 KiB (LineMax= in journald.conf(5)), and the rest would have no priority and be no JSON.
_LIMIT_LINE_BYTES = 40_000
_EXCEPTION = "exception"
#: Told first, and so never left out of a line that would be too long.
_HEAD = ("timestamp", "level", "event", "host", "run_id", "job", "domain", _EXCEPTION)
#: What this process reports of the scheduler as events of its own: the runs of jobs. Its other errors have no event.
_SCHEDULER, _SCHEDULER_RUNS = "apscheduler", "apscheduler.executors"
_WARNINGS = "py.warnings"
_LIBVIRT_LOG_VARIABLES = ("LIBVIRT_DEBUG", "LIBVIRT_LOG_FILTERS", "LIBVIRT_LOG_OUTPUTS")


def configure_log(
    level: LogLevel, environ: MutableMapping[str, str], *, log_format: LogFormat = "auto", file_descriptor: int = STANDARD_ERROR
) -> None:
    """Events of `level` and above on standard error from now on. To be called first of all, and again when the level changes.

    Under systemd each line begins with its priority, so that `journalctl -p warning` finds it (sd-daemon(3)).
    """
    _keep_open(file_descriptor)
    terminal = os.isatty(file_descriptor)
    output = _Output(file_descriptor, priorities=_is_journal(file_descriptor, environ))
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(ensure_ascii=False)
    if log_format == "console" or (log_format == "auto" and terminal):
        color = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        renderer = structlog.dev.ConsoleRenderer(colors=color, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            output.say_what_was_lost,
            exception_field,
            bounded_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )
    _take_over_logging()
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash
    sys.unraisablehook = _log_ignored
    # libvirt's client library reads this when it is loaded, and writes lines of its own (https://libvirt.org/logging.html).
    if not any(name in environ for name in _LIBVIRT_LOG_VARIABLES):
        environ["LIBVIRT_DEBUG"] = "error"


def _keep_open(file_descriptor: int) -> None:
    """A standard error that is closed becomes /dev/null: else the next file to be opened, the database, would take its number."""
    try:
        os.fstat(file_descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != file_descriptor:
            os.dup2(null, file_descriptor)
            os.close(null)
        else:
            os.set_inheritable(null, True)  # as standard error is


def _is_journal(file_descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether the journal reads it: $JOURNAL_STREAM names its device and inode (systemd.exec(5)); it may have been redirected."""
    status = os.fstat(file_descriptor)
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Output:
    """What structlog calls a logger: it writes finished lines to a file descriptor, and never raises."""

    def __init__(self, file_descriptor: int, *, priorities: bool) -> None:
        self._file_descriptor = file_descriptor
        self._priorities = priorities
        self._lost = 0
        self._torn = False
        # Reentrant, since a signal handler that logs may interrupt a write.
        self._lock = threading.RLock()

    def say_what_was_lost(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if self._lost:
            event["lines_lost_before"] = self._lost
        return event

    def _write(self, priority: int, text: str) -> None:
        # The journal takes a priority a line, and a traceback on a console has many.
        lines = text.split("\n") if self._priorities else [text]
        data = "".join(f"<{priority}>{line}\n" if self._priorities else f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        with self._lock:
            if self._torn:
                data = b"\n" + data
            try:
                while data:
                    data = data[os.write(self._file_descriptor, data) :]
                    self._torn = bool(data)
            except OSError:  # nobody reads any more, or the disk is full: it may pass, and there is no other place to say so
                self._lost += 1
            else:
                self._lost = 0

    # The priorities of syslog(3). structlog calls the method that is named after the level.
    debug = partialmethod(_write, 7)
    info = partialmethod(_write, 6)
    warning = partialmethod(_write, 4)
    error = partialmethod(_write, 3)
    critical = partialmethod(_write, 2)


def exception_field(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: `exc_info` becomes the text of a traceback, its innermost frames and its end kept."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given else None
    if error is not None:
        event[_EXCEPTION] = _traceback_text(error)
    return event


def _traceback_text(error: BaseException) -> str:
    try:
        told = traceback.TracebackException.from_exception(error, limit=-_LIMIT_FRAMES, compact=True)
        lines = [line for part in told.format() for line in part[: 10 * _LIMIT_CHARACTERS].splitlines()]
    except Exception:  # noqa: BLE001 - a broken exception class is foreign code, and this is said while handling another error
        lines = [f"{type(error).__name__}, whose traceback cannot be shown"]
    kept: list[str] = []
    room = _LIMIT_EXCEPTION_CHARACTERS
    for line in reversed(lines):
        shown = visible(line, limit_characters=_LIMIT_CHARACTERS)
        room -= len(shown) + 1
        if room < 0:
            kept.append("...")
            break
        kept.append(shown)
    return "\n".join(reversed(kept))


def bounded_values(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: each value harmless and short, the line short too; `fields_left_out` counts what found no room."""
    names = [name for name in _HEAD if name in event]
    names += [name for name in event if name not in _HEAD]
    kept: dict[str, Any] = {}
    room = _LIMIT_LINE_BYTES
    left_out = 0
    for name in names:
        value = event[name] if name == _EXCEPTION else _bounded(event[name], _LIMIT_DEPTH)
        size = len(name) + len(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"))
        if size <= room:
            kept[name] = value
            room -= size
        else:
            left_out += 1
    if left_out:
        kept["fields_left_out"] = left_out
    return kept


def _bounded(value: object, depth: int) -> object:
    """`value` as JSON has it: text visible and short, collections short and shallow, anything else as text."""
    match value:
        case None | bool():
            return value
        case str() | bytes():
            return visible(str(value) if isinstance(value, str) else repr(value[:_LIMIT_CHARACTERS]), limit_characters=_LIMIT_CHARACTERS)
        case int():
            return int(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"  # noqa: PLR2004 - what readers of JSON hold
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case date():  # a datetime is one
            return value.isoformat()
        case Mapping() | list() | tuple() | AbstractSet() if depth == 0:
            return f"{len(value)} more"
        case Mapping():
            shown = {visible(_text_of(key)): _bounded(item, depth - 1) for key, item in islice(value.items(), _LIMIT_ITEMS)}
            return shown | ({"...": f"{len(value) - _LIMIT_ITEMS} more"} if len(value) > _LIMIT_ITEMS else {})
        case list() | tuple() | AbstractSet():
            listed = [_bounded(item, depth - 1) for item in islice(value, _LIMIT_ITEMS)]
            return listed + ([f"{len(value) - _LIMIT_ITEMS} more"] if len(value) > _LIMIT_ITEMS else [])
        case _:
            return visible(_text_of(value), limit_characters=_LIMIT_CHARACTERS)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever a foreign __str__ raises, a line of log is not the place to fail
        return f"<{type(value).__name__} that cannot be shown>"


class _LibraryEvents(logging.Handler):
    """What libraries say through the standard library's logging, Python's warnings among it, as events of this log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's arguments that do not fit its own message
            message = _text_of(record.msg)
        if record.name == _WARNINGS:
            message = message.split("\n", 1)[0]  # the source line follows
        level = max((known for known in (10, 20, 30, 40, 50) if known <= record.levelno), default=10)
        get_logger().log(level, "library.message", library=record.name, message=message, exc_info=record.exc_info)


def _take_over_logging() -> None:
    root = logging.getLogger()
    for handler in [known for known in root.handlers if isinstance(known, _LibraryEvents)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryEvents())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger(_SCHEDULER).setLevel(logging.ERROR)
    logging.getLogger(_SCHEDULER_RUNS).setLevel(logging.CRITICAL + 1)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)  # whoever pressed the keys knows
    else:
        get_logger().critical("process.crashed", exc_info=error)


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    if not issubclass(crash.exc_type, SystemExit):
        get_logger().critical("thread.crashed", thread=crash.thread.name if crash.thread else None, exc_info=crash.exc_value)


def _log_ignored(ignored: "sys.UnraisableHookArgs") -> None:
    get_logger().error("exception.ignored", where=ignored.err_msg, what=ignored.object, exc_info=ignored.exc_value)
