"""Directories and files that nobody else may have a hand in: what is read there decides what is done to hosts.

They belong to this user (or to root), and neither their group nor others may write to them. Links are not followed.
"""

import errno
import os
import pwd
import stat
from pathlib import Path
from typing import BinaryIO

from exitguard.store.errors import StoreError, StoreFull, StoreOfAnother, explain_os

_DIRECTORY_MODE = 0o700
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def explain_private(error: OSError, path: Path, expected: str) -> StoreError:
    """`error` at `path`, which is one of these, for the operator; `expected` says what it should have been."""
    explained = explain_os(error, path, expected)
    if isinstance(explained, StoreFull):
        return explained
    if isinstance(error, PermissionError):
        next_step = "Run as the user who owns it (root, for what the package set up)."
    else:
        next_step = "Look at it with `ls -ld`, and correct the path or the directory."
    return StoreError(f"{path}: {explained.reason}. Expected {expected}. {next_step}", reason=explained.reason)


def name_of_user(user_id: int) -> str:
    """The name of the user, or the number where it has none."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def open_regular(path: Path | str, *, within: int | None = None) -> BinaryIO:
    """The file at `path`, open for reading; relative to the directory that is open as `within`. Raises OSError, also where it is no file.

    A link is not followed, and a pipe in its place is not waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def hand_of_others(status: os.stat_result) -> str | None:
    """Why others than this user and root could have written what `status` is of, as the end of a sentence; None: they could not."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {name_of_user(status.st_uid)}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written to by more than its owner (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def make_private_directory(path: Path) -> None:
    """Create `path`, and what is missing above it, with mode 0700; one that is there has to be private. Raises StoreError."""
    expected = "a directory that this user may write to"
    try:
        missing = []
        above = path
        while not above.exists() and not above.is_symlink():
            missing.append(above)
            above = above.parent
        for directory in reversed(missing):
            directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise explain_private(error, path, expected) from error
    check_private_directory(path)


def check_private_directory(path: Path) -> None:
    """Raises StoreError where `path` is not a directory of this user that this user alone may write to, or a link to one."""
    try:
        descriptor = os.open(path, _OPEN_DIRECTORY)
    except OSError as error:
        raise explain_private(error, path, "a directory of this user's, and no link to one") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if status.st_uid != os.geteuid():
        owner = name_of_user(status.st_uid)
        raise StoreOfAnother(
            f"{path}: belongs to user {owner}, and it decides what is done to hosts. Expected a directory of user "
            f"{name_of_user(os.geteuid())}: run as {owner} (`runuser -u {owner} -- exitguard ...`), or name another directory.",
            reason="the directory of another user",
        )
    problem = hand_of_others(status)
    if problem is not None:
        raise StoreError(
            f"{path}: {problem}, and it decides what is done to hosts. Expected mode 0700: see who has been there, then "
            f"`chmod 700 {path}`.",
            reason="a directory that others may write to",
        )
