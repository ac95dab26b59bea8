"""`exitguard --version`, against an interpreter that does nothing: what every call of the command pays."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measurement import Contest, Measurement, SkippedError


@contextmanager
def _prepare() -> Iterator[Contest]:
    program = Path(sys.executable).with_name("exitguard")
    if not program.exists():
        raise SkippedError(f"needs the command exitguard beside {sys.executable}: install the package there")
    yield Contest(
        subject=lambda: _run(str(program), "--version"),
        peer=lambda: _run(sys.executable, "-c", "pass"),
        note=f"the same interpreter, {sys.executable}",
    )


def _run(*command: str) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


MEASUREMENT = Measurement(
    name="version",
    what="exitguard --version",
    peer="python -c pass",
    goal_ratio=3.0,
    pairs=25,
    prepare=_prepare,
)
