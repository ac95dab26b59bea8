# SPDX-License-Identifier: Apache-2.0
"""One step of a whole host: the lock under which it is done, how it ends, and the programs that it runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DONE, ALREADY, CHANGED_SINCE, REFUSED, FAILED = "done", "already", "changed_since", "refused", "failed"
_LOCK_POLL_SECONDS = 0.1
#: No program's words are kept beyond this: they end in a journal.
_WORDS_CHARACTERS = 600


class Ended(Exception):  # noqa: N818 - no error: how a step ends
    """The outcome of the step, and why."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class ProgramFailedError(Exception):
    """A program could not be started, took too long, or ended with another exit code than 0; the message says which and why."""


def tell(module: Any, ended: Ended, **more: Any) -> None:
    """End the module with the one step of this host; refused and failed steps fail the task."""
    step = {"subject": "host", "outcome": ended.outcome, "reason": str(ended), "undo": None}
    result = {"changed": ended.outcome == DONE, "exitguard": {"steps": [step]}, **more}
    if ended.outcome in (REFUSED, FAILED):
        module.fail_json(msg=f"{ended.outcome}: {ended}", **result)
    module.exit_json(msg=f"{ended.outcome}: {ended}", **result)


#: An operator's mark; what stands in it is for people.
MAINTENANCE = "/etc/exitguard/maintenance"


@contextlib.contextmanager
def locked(path: str, timeout_seconds: int) -> Iterator[None]:
    """Hold the lock of all remedies of this host; it ends with this process, however that ends.

    Raises Ended where another holds it, and where the host is marked as in maintenance.
    """
    if os.path.lexists(MAINTENANCE):
        raise Ended(REFUSED, f"the host is in maintenance: {MAINTENANCE} is there. Nothing was changed")
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Ended(REFUSED, f"the lock {path} cannot be opened: {error.strerror}. Nothing was changed") from None
    try:
        _take(descriptor, path, time.monotonic() + timeout_seconds, timeout_seconds)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: str, deadline: float, timeout_seconds: int) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Ended(REFUSED, f"another attempt has held {path} for {timeout_seconds} seconds. Nothing was changed") from None
        except OSError as error:
            raise Ended(REFUSED, f"{path} cannot be locked: {error.strerror}. Nothing was changed") from None
        else:
            return
        time.sleep(_LOCK_POLL_SECONDS)


def run(argv: Sequence[str], seconds: int, environment: dict[str, str] | None = None, folder: str | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program; 124 where it was ended after `seconds`, 127 where there is no such program."""
    try:
        done = subprocess.run(  # noqa: S603 - programs of the distribution, by argument list
            list(argv),
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no end within {seconds} seconds"
    except OSError as error:
        return 127, "", f"{argv[0]} cannot be started: {error.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def must(argv: Sequence[str], seconds: int, environment: dict[str, str] | None = None) -> str:
    """Standard output of a program that has to succeed. Raises ProgramFailedError."""
    code, out, err = run(argv, seconds, environment)
    if code != 0:
        raise ProgramFailedError(f"{' '.join(argv[:4])} failed with exit code {code}: {last_words(err or out)}")
    return out


def last_words(text: str) -> str:
    """The last lines of what a program said, as one line of bounded length."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-4:])[:_WORDS_CHARACTERS] or "it said nothing"
