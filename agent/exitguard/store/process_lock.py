"""A lock that one process holds on a file, and that the kernel lifts when that process ends, however it ends.

It is an open file description lock (fcntl(2), F_OFD_SETLK) and not flock(2), since it can be asked after without being taken: a look at
who holds it never makes another process's attempt fail. The holder writes itself into the file for the operator to read; the text
counts only as long as the lock is held.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path

#: struct flock of 64-bit Linux: type, whence, start, length (0: all of the file), pid (0 for these locks).
_STRUCT_FLOCK = "hhqqi4x"
_FILE_MODE = 0o600
_TEXT_BYTES = 128


class ProcessLock:
    """One held lock. It ends with `release`, or with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, text: str) -> None:
        """Write into the file who holds the lock. Raises OSError."""
        # Always as long, over what is there: after the first time it needs no room on the disk.
        os.pwrite(self._descriptor, text.encode("ascii").ljust(_TEXT_BYTES - 1)[: _TEXT_BYTES - 1] + b"\n", 0)

    def release(self) -> None:
        os.close(self._descriptor)


def take(path: Path) -> ProcessLock | None:
    """The lock on `path`, created where it is missing; None where it is held, by this process or another. Raises OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
            if _is_at(descriptor, path):
                return ProcessLock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        os.close(descriptor)  # it was removed between opening and locking: the lock is on a file that nobody finds


def is_held(path: Path) -> bool:
    """Whether any process holds the lock on `path`, this one included. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    finally:
        os.close(descriptor)
    (kind, *_) = struct.unpack(_STRUCT_FLOCK, answer)
    return bool(kind != fcntl.F_UNLCK)


def holder(path: Path) -> str:
    """What the holder of the lock on `path` wrote; empty where it has not yet. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, _TEXT_BYTES, 0).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)


def _whole_file(kind: int) -> bytes:
    return struct.pack(_STRUCT_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
