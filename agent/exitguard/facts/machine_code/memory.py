"""What was read of kernel images before, by this very process: a file that has not changed is not read again in every audit."""

import os
import time
from collections.abc import Sequence
from typing import BinaryIO

from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed

#: Of a file: its path, and what changes when its content does.
Identity = tuple[str, int, int, int, int, int]
#: Of a reading: all of its files, and how they belong together.
Key = tuple[Identity | str | bool | None, ...]

_MOST_REMEMBERED = 48
#: A file that was changed a moment ago may change again without a change of its times, which are only as fine as a clock tick.
_SETTLED_NANOSECONDS = 2_000_000_000

#: A host that was busy for once must not stay unknown until the daemon is started anew.
_FAILURE_LASTS_SECONDS = 6 * 3600

#: Each answer with the monotonic time at which it was given.
_remembered: dict[Key, tuple[Observed[MachineCode], float]] = {}


def identity(path: str, file: BinaryIO, *, timeless: bool = False) -> Identity:
    """What tells an open file from every other, and from itself once it is changed.

    `timeless` is a file of sysfs: of one content for as long as the kernel runs, and with times that say nothing.
    """
    status = os.fstat(file.fileno())
    times = (0, 0) if timeless else (status.st_mtime_ns, status.st_ctime_ns)
    return (path, status.st_dev, status.st_ino, status.st_size, *times)


def recall(key: Key) -> Observed[MachineCode] | None:
    """What these files showed, or why they showed nothing; None where they were not read yet."""
    answer, given_at = _remembered.get(key, (None, 0.0))
    if answer is not None and answer.value is None and time.monotonic() - given_at > _FAILURE_LASTS_SECONDS:
        del _remembered[key]
        return None
    return answer


def remember(key: Key, answer: Observed[MachineCode]) -> None:
    """Keep an answer for as long as there is room: the oldest goes first."""
    if _changed_just_now([part for part in key if isinstance(part, tuple)]):
        return
    while len(_remembered) >= _MOST_REMEMBERED:
        del _remembered[next(iter(_remembered))]
    _remembered[key] = (answer, time.monotonic())


def forget() -> None:
    """Forget everything that was read."""
    _remembered.clear()


def _changed_just_now(files: Sequence[Identity]) -> bool:
    return any(time.time_ns() - changed <= _SETTLED_NANOSECONDS for *_, changed in files)
