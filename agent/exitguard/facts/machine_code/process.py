"""The process that reads kernel images, as its parent sees it: started, asked, waited for, ended.

Whatever becomes of it is an answer or a reason. It never outlives its parent's interest: it is killed with all that it started.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

import exitguard
from exitguard.facts.machine_code.messages import Answer, FileRole, Request
from exitguard.facts.tree import one_line, why
from exitguard.model.canonical import canonical_json

_MODULE = "exitguard.facts.machine_code"
#: An answer with the longest listing has some 50 KB.
_ANSWER_LIMIT_BYTES = 1 << 20
_COMPLAINT_LIMIT_BYTES = 4096
_CHUNK_BYTES = 1 << 16
_MOST_CHUNKS = 64
#: At most so long between two signs of life of the parent.
_TURN_SECONDS = 0.25
#: How long an answer may take that is there already, where the parent comes late.
_LATE_SECONDS = 1.0
#: How long a process that has closed its output may take to be gone.
_GONE_SECONDS = 1.0
_MEBIBYTE = 1 << 20


class NotStarted(Exception):  # noqa: N818 - a reason, not an error of the program
    """Why the process could not be started; nothing is known about any file by that."""


@dataclass(frozen=True)
class Unanswered:
    """Why there is no answer."""

    reason: str
    #: Whether the same files would bring about the same once more.
    lasting: bool


class ReaderProcess:
    """One process; `close` it, and it is gone. Raises NotStarted."""

    def __init__(self, *, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._seconds = 0.0
        self._deadline = 0.0
        self._said = b""
        self._complaint = b""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - this very program
                _words(memory_bytes),
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # a group of its own, which ends with it; and a terminal's Ctrl-C is its parent's
                bufsize=0,
            )
        except OSError as error:
            self._socket.close()
            raise NotStarted(f"the process that reads kernel images could not be started: {why(error)}") from None
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._selector = selectors.DefaultSelector()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:  # never: both are pipes
                os.set_blocking(stream.fileno(), False)
                self._selector.register(stream.fileno(), selectors.EVENT_READ, data=stream is self._process.stdout)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Request, files: Mapping[FileRole, BinaryIO], *, seconds: float) -> None:
        """Send one request; `answer` waits for what comes of it."""
        self._said = b""
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        # A process that is gone by now has closed its output too, and that is where it is noticed.
        with suppress(BrokenPipeError, ConnectionError):
            socket.send_fds(self._socket, [request.model_dump_json().encode()], [files[role].fileno() for role in request.roles])

    def answer(self, pulse: Callable[[], None]) -> Answer | Unanswered:
        """The answer, as far as it can be believed. After an `Unanswered` the process is of no more use."""
        deadline = max(self._deadline, time.monotonic() + _LATE_SECONDS)
        while b"\n" not in self._said:
            pulse()
            left = deadline - time.monotonic()
            if left <= 0:
                return self._too_late()
            if not self._listen(min(left, _TURN_SECONDS)):
                return self._gone()
            if len(self._said) > _ANSWER_LIMIT_BYTES:
                return Unanswered(f"the reader's answer is longer than {_ANSWER_LIMIT_BYTES // _MEBIBYTE} MiB", lasting=True)
        line, _, more = self._said.partition(b"\n")
        if more:
            return Unanswered("the reader said more than was asked", lasting=True)
        return self._understood(line)

    def close(self) -> None:
        """Kill the process with everything that it started, and wait until it is gone."""
        with suppress(ProcessLookupError, PermissionError):  # not reaped yet, so the number is still its own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        self._socket.close()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _listen(self, seconds: float) -> bool:
        """Take what there is within so long; False once there will be no more."""
        for key, _ in self._selector.select(seconds):
            with suppress(BlockingIOError):
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if key.data:
                    if not chunk:
                        return False
                    self._said += chunk
                elif chunk:
                    self._complaint = (self._complaint + chunk)[-_COMPLAINT_LIMIT_BYTES:]
                else:
                    self._selector.unregister(key.fd)
        return True

    def _understood(self, line: bytes) -> Answer | Unanswered:
        try:
            answer = Answer.model_validate_json(line)
            if answer.reading is not None:
                canonical_json(answer.reading.model_dump(mode="json"))  # a fact has to have a hash
        except (ValidationError, ValueError):
            return Unanswered("the reader's answer could not be understood", lasting=True)
        if answer.exhausted:
            return Unanswered(f"needed more than {self._memory_bytes // _MEBIBYTE} MiB of memory", lasting=True)
        return answer

    def _too_late(self) -> Unanswered:
        return Unanswered(f"took longer than {self._seconds:g} s", lasting=True)

    def _gone(self) -> Unanswered:
        """Why a process ended that had a request."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GONE_SECONDS)
        code = self._process.poll()
        self._hear_the_rest()
        if code is None:
            return Unanswered("the reader closed its output without an answer", lasting=False)
        if code == -signal.SIGXCPU:
            return self._too_late()
        if code == -signal.SIGKILL:
            return Unanswered("the reader was killed (signal 9), as the kernel does where memory runs out", lasting=False)
        if code < 0:
            return Unanswered(f"the reader ended with signal {-code}: {_signal_words(-code)}", lasting=True)
        if b"MemoryError" in self._complaint:
            return Unanswered(f"needed more than {self._memory_bytes // _MEBIBYTE} MiB of memory", lasting=True)
        return Unanswered(f"the reader ended with exit code {code}: {self._last_complaint()}", lasting=False)

    def _hear_the_rest(self) -> None:
        """What the process said on standard error and has not been taken yet: its output may end before that is looked at."""
        if self._process.stderr is None:  # never: it is a pipe
            return
        with suppress(OSError):  # nothing more for now, or closed
            for _ in range(_MOST_CHUNKS):
                chunk = os.read(self._process.stderr.fileno(), _CHUNK_BYTES)
                if not chunk:
                    return
                self._complaint = (self._complaint + chunk)[-_COMPLAINT_LIMIT_BYTES:]

    def _last_complaint(self) -> str:
        lines = self._complaint.decode("utf-8", "replace").strip().splitlines()
        return one_line(lines[-1]) if lines else "it said nothing"


def _words(memory_bytes: int) -> Sequence[str]:
    """Nothing of the current directory is imported, and nothing else than by the parent."""
    words = [sys.executable, "-I" if sys.flags.isolated else "-P"]
    if sys.dont_write_bytecode:
        words.append("-B")
    return (*words, "-m", _MODULE, str(memory_bytes))


def _environment() -> dict[str, str]:
    """No more than Python needs: what the parent's environment says is for the parent."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}
    root = str(Path(exitguard.__file__).resolve().parent.parent)
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # noqa: PTH100 - text for text
    # What is installed is found by itself, after Python's own library; a checkout that was started from within is not.
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.append(root)
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _signal_words(number: int) -> str:
    return (signal.strsignal(number) or "of no name").lower()
