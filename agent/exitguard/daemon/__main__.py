"""The process that stays: `python -m exitguard.daemon`, which `exitguard daemon` becomes.

A process of its own, so that what only the command line or a migration needs is not in memory for years.
"""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from exitguard.daemon.log import configure_log, get_logger
from exitguard.daemon.notify import Notifier
from exitguard.daemon.service import AlreadyRunning, Start, load, run
from exitguard.policy.problem import ProblemsError

_OK = 0
_ERROR = 1


def main() -> int:
    """Run the daemon to its end and give its exit code."""
    parser = argparse.ArgumentParser(prog="exitguard daemon", allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--log-format", choices=("auto", "console", "json"), default="auto")
    arguments = parser.parse_args()
    start = Start(arguments.config, dict(os.environ), arguments.log_format)
    notifier = Notifier.from_environment(os.environ)
    configure_log("info", os.environ, log_format=start.log_format)
    log = get_logger()
    try:
        loaded, rulebook = load(start)
    except ProblemsError as error:
        for problem in error.problems:
            log.error("start.refused", problem=problem.sentence)  # noqa: TRY400 - the operator's fault, and in the operator's words
        return _ERROR
    configure_log(loaded.settings.log_level, os.environ, log_format=start.log_format)
    try:
        run(start, loaded, rulebook, notifier)
    except AlreadyRunning as error:
        log.error("start.refused", problem=str(error))  # noqa: TRY400 - nobody's fault but a second start
        return _ERROR
    return _OK


def _exit(code: int) -> None:
    """End without waiting for threads: one may sit in a call of libvirt's that never returns. Everything of ours is closed by now."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main())
