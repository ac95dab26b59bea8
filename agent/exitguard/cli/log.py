"""Logs go to standard error: lines for people on a terminal, JSON elsewhere. Standard output is for data."""

import logging
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_LIMIT_CHARACTERS = 1000
_LIBVIRT_LOG_VARIABLES = ("LIBVIRT_DEBUG", "LIBVIRT_LOG_FILTERS", "LIBVIRT_LOG_OUTPUTS")


class LogFormat(StrEnum):
    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


@dataclass(frozen=True)
class Logging:
    """What the options before the verb ask for."""

    verbose: bool = False
    log_format: LogFormat = LogFormat.AUTO


def configure_logging(wanted: Logging, environ: MutableMapping[str, str]) -> None:
    """Warnings and worse on standard error, or with `verbose` information too. For verbs that may log: structlog is slow to import.

    libvirt's client library warns there by itself, in lines of its own; but with `verbose`, it is told to log errors only.
    """
    import structlog

    terminal = sys.stderr is not None and sys.stderr.isatty()
    console = wanted.log_format is LogFormat.CONSOLE or (wanted.log_format is LogFormat.AUTO and terminal)
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(ensure_ascii=True)
    if console:
        color = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        renderer = structlog.dev.ConsoleRenderer(colors=color, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            visible_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if wanted.verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Read when libvirt is loaded, before any handler of ours can be registered (https://libvirt.org/logging.html).
    if not wanted.verbose and not any(name in environ for name in _LIBVIRT_LOG_VARIABLES):
        environ["LIBVIRT_DEBUG"] = "error"


def visible_values(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: names of guests reach logs too, and no value may act on the terminal of whoever reads them."""
    from exitguard.report.text import visible

    for key, value in event.items():
        if isinstance(value, str):
            event[key] = visible(value, limit_characters=_LIMIT_CHARACTERS)
    return event
