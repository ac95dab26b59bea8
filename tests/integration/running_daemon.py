"""A daemon as a process of its own, with its settings, its log, and a service manager's socket that hears what it notifies."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 90


@dataclass
class RunningDaemon:
    """One daemon. `events` are the lines of its log, `notified` what it told its service manager."""

    process: "subprocess.Popen[bytes]"
    config: Path
    log: Path
    state_dir: Path
    _socket: socket.socket
    _messages: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def named(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """The events of this name whose fields have these values."""
        return [each for each in self.events if each["event"] == event and all(each.get(key) == value for key, value in fields.items())]

    @property
    def notified(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._messages.append(self._socket.recv(8192, socket.MSG_DONTWAIT).decode())
        return self._messages

    def wait_for(self, what: str, condition: Callable[[], bool], *, limit_seconds: float = LIMIT_SECONDS) -> None:
        """Return when `condition` holds. Fails with the log where it never does, or the daemon ends."""
        deadline = time.monotonic() + limit_seconds
        while not condition():
            ended = self.process.poll()
            assert ended is None or condition(), f"the daemon ended with {ended} before: {what}\n{self.log.read_text()[-6000:]}"
            assert time.monotonic() < deadline, f"never: {what}\n{self.log.read_text()[-6000:]}"
            time.sleep(0.05)

    def wait_for_event(self, event: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """The newest of at least `count` events of this name and these fields."""
        self.wait_for(f"{count} x {event} {fields}", lambda: len(self.named(event, **fields)) >= count)
        return self.named(event, **fields)[-1]

    def configure(self, settings: Mapping[str, object]) -> None:
        write_settings(self.config, self.state_dir, settings)

    def reload(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(LIMIT_SECONDS)

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def write_settings(config: Path, state_dir: Path, settings: Mapping[str, object]) -> None:
    """Settings as a whole file, replaced at once; JSON is YAML."""
    values = {"state_dir": str(state_dir), **settings}
    new = config.with_suffix(".new")
    new.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    new.replace(config)


@contextlib.contextmanager
def running_daemon(
    home: Path,
    settings: Mapping[str, object],
    *,
    watchdog_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[RunningDaemon]:
    """A daemon that has been started, in `folder` if given; at the end it is gone, whatever became of it."""
    home.mkdir(parents=True, exist_ok=True)
    config, log, state_dir = home / "config.yaml", home / "daemon.log", home / "state"
    write_settings(config, state_dir, settings)
    with (
        tempfile.TemporaryDirectory(prefix="exitguard-notify-", dir="/tmp") as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
    ):
        ear.bind(f"{short}/notify")
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "NOTIFY_SOCKET": f"{short}/notify",
            "PYTHONWARNINGS": "error",
            **(environment or {}),
        }
        if watchdog_seconds is not None:
            variables["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1_000_000))
        command = [str(Path(sys.executable).with_name("exitguard")), "--log-format", "json", "daemon", "--config", str(config)]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, env=variables, cwd=folder
            )
        try:
            yield RunningDaemon(process, config, log, state_dir, ear)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.wait(LIMIT_SECONDS)
