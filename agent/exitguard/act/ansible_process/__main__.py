"""The process that runs one playbook: `python -m exitguard.act.ansible_process`, which act/ansible.py starts.

Its standard input is a request, and then stays open: its end means that the run is to end, because its parent wants it, or is gone. Its
standard output is one line of JSON a message. Time-out, end of input and SIGTERM end every process of the run, wherever it went.

ansible-runner is imported here alone. Its `run` cannot share a process, and a slow event handler makes it lose its child; so this
process does one run, and the handler only enqueues.
"""

import os
import queue
import re
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

from ansible_runner import Runner, RunnerConfig

from exitguard.act.ansible_process.environment import environment_of_ansible
from exitguard.act.ansible_process.marked import Ending, Mark, end_marked
from exitguard.act.ansible_process.messages import GRACE_SECONDS, MARK_VARIABLE, Kind, Message, Request, Status
from exitguard.act.ansible_process.reduced import is_hidden, reduced
from exitguard.act.ansible_process.run_files import RunFiles

_OUTPUT_LIMIT_BYTES = 4 << 20
_OUTPUT_PIECE_CHARACTERS = 64 << 10
#: How long ansible-runner may take to notice that Ansible has ended.
_NOTICE_SECONDS = 1
_RUNNER_SECONDS = 10.0
_ERROR_LINES = 12
_KEPT_LINES = 200
_LINE_CHARACTERS = 400
_PARTIAL_EVENT = re.compile(r"[0-9A-Za-z_-]{1,128}")
_EVENTS_FOR_PEOPLE = frozenset({"verbose", "debug", "warning", "system_warning", "deprecated", "error"})


class Teller:
    """Writes messages to the parent, and what Ansible says to a file, in a thread of its own."""

    def __init__(self, answers: BinaryIO, output: Path, gone: threading.Event) -> None:
        self._queue: queue.SimpleQueue[tuple[tuple[Message, ...], str] | None] = queue.SimpleQueue()
        self._answers = answers
        self._output = output
        self._gone = gone
        self._thread = threading.Thread(target=self._work, name="teller", daemon=True)
        self._thread.start()

    def tell(self, messages: tuple[Message, ...], output: str = "") -> None:
        self._queue.put((messages, output))

    def finish(self) -> None:
        """Returns when all is written, or nobody reads it."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        left = _OUTPUT_LIMIT_BYTES
        self._output.touch(mode=0o600)
        with self._output.open("w", encoding="utf-8", errors="replace") as file:
            while (item := self._queue.get()) is not None:
                messages, output = item
                try:
                    for message in messages:
                        self._answers.write(message.to_line())
                    self._answers.flush()
                except OSError:
                    self._gone.set()
                piece = _readable(output)[: max(left, 0)]
                left -= len(piece)
                if piece:
                    file.write(piece + "\n")
                    file.flush()


class Listener(Runner):  # type: ignore[misc] # ansible-runner has no types
    """ansible-runner, with events from nobody but its own callback plugin.

    It takes each event from a file that the plugin wrote, which the output names between escape sequences. What a host makes Ansible
    print may hold such sequences too, with an event of the host's own making inside.
    """

    def event_callback(self, event_data: dict[str, Any]) -> None:
        uuid = str(event_data.get("uuid", ""))
        if event_data.get("event") == "EOF":
            super().event_callback({"event": "EOF"})
            return
        events = Path(self.config.artifact_dir, "job_events")
        known = _PARTIAL_EVENT.fullmatch(uuid) is not None and (events / f"{uuid}-partial.json").is_file()
        kept = {name: event_data[name] for name in ("stdout", "counter", "start_line", "end_line", "verbose") if name in event_data}
        # Lines outside of any event have none of the plugin's files; they are text.
        super().event_callback(kept | {"uuid": uuid} if known else kept | {"event": "verbose", "uuid": "of-no-event"})


class Run:
    """One run, and why it ended."""

    def __init__(self, request: Request, teller: Teller, stop: threading.Event) -> None:
        self.request = request
        self.teller = teller
        self.stop = stop
        self.done = threading.Event()
        self.timed_out = False
        self.stranger = ""
        self.totals_seen = False
        self._hosts = frozenset(request.hosts)
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._mark = Mark(os.environ[MARK_VARIABLE], request.sockets)
        self._left: Ending = Ending(0)

    def handle(self, event: dict[str, Any]) -> bool:
        """Enqueue what is worth it; False: ansible-runner is to keep no file of the event, which holds all that a host said."""
        messages = tuple(reduced(event))
        output = "" if is_hidden(event) else str(event.get("stdout") or "")[:_OUTPUT_PIECE_CHARACTERS]
        if output and event.get("event") in _EVENTS_FOR_PEOPLE:
            self._said.append(output[:_LINE_CHARACTERS])
        for message in messages:
            self.totals_seen |= message.kind is Kind.TOTALS
            if message.host and message.host not in self._hosts and not self.stop.is_set():
                self.stranger = message.host
                self.stop.set()
        self.teller.tell(messages, output)
        return False

    def watch(self) -> None:
        """End everything once the run is to end before it is done."""
        deadline = time.monotonic() + self.request.timeout_seconds
        while not self.done.is_set():
            if not self.stop.wait(max(deadline - time.monotonic(), 0)):
                self.timed_out = not self.done.is_set()
            if self.done.is_set():
                return
            # Again and again: it may be just about to be started.
            self._left = self.end_all()
            if self.done.wait(_RUNNER_SECONDS if self._left.ended else 1):
                return
            if self._left.ended:
                os._exit(1)  # nobody is left that could be waited for

    def end_all(self) -> Ending:
        return end_marked((self._mark,), grace_seconds=GRACE_SECONDS, keep=frozenset({os.getpid()}))

    def carry_out(self) -> Message:
        """Run the playbook; the last message."""
        problem = ""
        try:
            self._runner().run()
        except Exception as error:  # noqa: BLE001 - the outermost edge of ansible-runner: whatever it was, the last message says so
            problem = f"{type(error).__name__}: {error}"
        self.done.set()
        # A module whose task was given up, or a connection that is kept open, may still be there.
        left = self.end_all().left
        reason = f"could not be ended: {', '.join(left)}" if left else ""
        if self.stranger:
            return Message(
                Kind.ENDED, status=Status.BROKEN, text=f"Ansible began to work on a host that was not asked for: {self.stranger}"
            )
        if self.totals_seen:
            return Message(Kind.ENDED, status=Status.COMPLETED, text=reason)
        if self.timed_out:
            return Message(Kind.ENDED, status=Status.TIMED_OUT, text=reason)
        if self.stop.is_set():
            return Message(Kind.ENDED, status=Status.STOPPED, text=reason)
        return Message(Kind.ENDED, status=Status.BROKEN, text=problem or self._last_words())

    def _runner(self) -> Runner:
        directory = Path(self.request.directory)
        private = RunFiles(directory, self._mark).work / "runner"
        private.mkdir(mode=0o700)
        config = RunnerConfig(
            str(private),
            playbook=self.request.playbook,
            ident="run",
            fact_cache_type="memory",
            suppress_env_files=True,
        )
        config.prepare()
        config.command = list(self.request.command)
        config.cwd = str(Path.cwd())
        config.env = environment_of_ansible(config.env, os.environ)
        config.suppress_output_file = config.suppress_ansible_output = True
        config.pexpect_timeout = _NOTICE_SECONDS

        def no_environment_on_disk(status: dict[str, Any], runner_config: RunnerConfig) -> None:
            # ansible-runner writes the command with the whole environment just before it starts it.
            if status["status"] == "running":
                Path(runner_config.artifact_dir, "command").unlink(missing_ok=True)

        return Listener(config, event_handler=self.handle, status_handler=no_environment_on_disk)

    def _last_words(self) -> str:
        """Where Ansible ended by itself before any totals, it said why: from its first error on, else whatever came last."""
        said = list(self._said)
        first = next((number for number, text in enumerate(said) if "ERROR" in text), max(len(said) - _ERROR_LINES, 0))
        return "\n".join(said[first : first + _ERROR_LINES]) or "Ansible ended without a word"


def main() -> int:
    """Run what is asked for on standard input."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no answer
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    line = requests.readline()
    if not line.endswith(b"\n"):
        return 1  # its parent has ended while asking
    request = Request.from_line(line)

    def wait_for_parent() -> None:
        requests.read()
        stop.set()

    teller = Teller(answers, Path(request.directory, "output.txt"), stop)
    run = Run(request, teller, stop)
    for work in (wait_for_parent, run.watch):
        threading.Thread(target=work, daemon=True).start()
    ended = run.carry_out()
    teller.tell((ended,))
    teller.finish()
    return 0


def _readable(text: str) -> str:
    """Without what a terminal would obey."""
    whole = text.replace("\r\n", "\n").strip("\n")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in whole)


if __name__ == "__main__":
    # One thread sits in a read that may never return.
    os._exit(main())
