"""Programs of the stack: started with an environment of their own, watched while they come up, ended with their namespace."""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from stack_settings import Settings

#: Debian's: the packages of OpenStack are there, and in no other Python.
PYTHON = "/usr/bin/python3"
_START_LIMIT_SECONDS = 180
_STEP_LIMIT_SECONDS = 300
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class StackError(Exception):
    """The stack does not come up; says which part, and the end of its log."""


def entry_point(module: str) -> list[str]:
    """How a program is started whose package would bring an init script along: by its Python module."""
    code = f"import sys; sys.argv[0] = {module!r}; from {module} import main; sys.exit(main())"
    return [PYTHON, "-c", code]


def environment(settings: Settings, others: Mapping[str, str] | None = None) -> dict[str, str]:
    """What each program is given, and no more: no proxy, no PYTHONPATH of the caller."""
    own = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(settings.root / "home"),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "MALLOC_ARENA_MAX": "2",
    }
    return own | dict(others or {})


class Step:
    """A program that runs to its end, and may do so beside others."""

    def __init__(self, settings: Settings, name: str, words: list[str], standard_input: str = "") -> None:
        self._name = name
        self._log = settings.log(f"{name}.out")
        feed = settings.root / "run" / f"{name}.stdin"
        feed.touch(mode=0o600)
        feed.write_text(standard_input)
        with feed.open("rb") as given, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=given, stdout=log, stderr=log, env=environment(settings), cwd=settings.root / "home"
            )

    def done(self) -> None:
        """Return when it has ended well. Raises StackError otherwise."""
        try:
            code = self._process.wait(_STEP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code != 0:
            raise StackError(f"the step {self._name} ended with {code}:\n{_end_of(self._log)}")


class Services:
    """The programs that stay."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, words: list[str], others: Mapping[str, str] | None = None) -> None:
        with self._settings.log(f"{name}.out").open("ab") as log:
            self._running[name] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._settings, others),
                cwd=self._settings.root / "home",
                start_new_session=True,
            )

    def start_wsgi(self, name: str, port: int, file: str, processes: int, others: Mapping[str, str]) -> None:
        """A program that uWSGI serves."""
        words = ["/usr/bin/uwsgi_python3", "--plugins-dir", "/usr/lib/uwsgi/plugins", "--http-socket", f"127.0.0.1:{port}"]
        words += ["--wsgi-file", file, "--master", "--processes", str(processes), "--threads", "1", "--enable-threads", "--die-on-term"]
        words += ["--need-app", "--buffer-size", "65535", "--post-buffering", "65535", "--add-header", "Connection: close"]
        self.start(name, [*words, "--disable-logging", "--thunder-lock"], others)

    def wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        """Return when it is ready. Raises StackError where it ends instead, or takes too long."""
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        while not ready():
            code = self._running[name].poll()
            if code is not None or time.monotonic() > deadline:
                happened = "is not ready" if code is None else f"ended with {code}"
                logs = [self._settings.log(f"{name}.out"), self._settings.log(f"{name}.log")]
                raise StackError(f"{name} {happened}:\n" + "\n".join(_end_of(log) for log in logs if log.exists()))
            time.sleep(0.2)

    def wait_for_http(self, name: str, address: str) -> None:
        self.wait_for(name, lambda: _answers(address))

    def end(self) -> None:
        """End all of them, without asking: nothing of theirs is kept."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()


def _answers(address: str) -> bool:
    try:
        _DIRECT.open(address, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # 300, 401: somebody is there
    except OSError:
        return False
    return True


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
