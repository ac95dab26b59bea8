"""A host's file tree: this machine's own, or one below a directory (`--sysroot`). Reads are bounded and never block.

Below a directory, symbolic links are followed as the host itself would follow them: an absolute link starts at the
directory again, and none leads out of it, not even one that is put there between the looking and the opening.
Only regular files are opened: a path is looked at first, since opening a device may wake its driver.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar

from exitguard.model.record import Observed, seen, unseen

T = TypeVar("T")
S = TypeVar("S")

#: Enough for every small file in /proc, /sys and /etc that is read here.
DEFAULT_LIMIT_BYTES = 1 << 20
_SMALL_FILE_BYTES = 1 << 15
#: Enough for every directory that is listed here; /proc on a busy host is the largest.
NAMES_LIMIT = 100_000
_MAX_LINKS = 40  # the kernel's own bound on symbolic links in one path (path_resolution(7))
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ROOT_NEEDED = "run as root, or grant CAP_DAC_READ_SEARCH"


@dataclass(frozen=True)
class HostTree:
    """The files of one host. `root` is `/` for this machine."""

    root: Path = Path("/")

    @cached_property  # asked for every file that is opened
    def is_this_machine(self) -> bool:
        return self.root == Path("/")

    def read_bytes(self, path: str, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Observed[bytes]:
        """The whole content of a regular file of at most `limit_bytes`, or why not."""
        try:
            with self.open(path) as file:
                # Most files are small, and room for the largest that is allowed takes longer to make than they take to read.
                content = file.read(min(_SMALL_FILE_BYTES, limit_bytes + 1))
                if len(content) == _SMALL_FILE_BYTES:
                    content += file.read(limit_bytes + 1 - len(content))
        except OSError as error:
            return unseen(path, why(error), unlock=unlock_for(error))
        if len(content) > limit_bytes:
            return unseen(path, f"larger than {limit_bytes} bytes, which is more than this file can rightly hold")
        return seen(path, content)

    def read_text(self, path: str, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Observed[str]:
        """Like `read_bytes`, as UTF-8 with foreign bytes replaced, white space at both ends removed."""
        content = self.read_bytes(path, limit_bytes=limit_bytes)
        if content.value is None:
            return unseen_like(content)
        return seen(path, content.value.decode("utf-8", "replace").strip())

    def names(self, path: str) -> Observed[tuple[str, ...]]:
        """The sorted names in a directory, or why they cannot be listed. Names that are not UTF-8 are left out."""
        found: list[str] = []
        try:
            descriptor = self._open(path, stat.S_IFDIR)
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        if len(found) == NAMES_LIMIT:
                            return unseen(path, f"holds more than {NAMES_LIMIT} names, which is more than this directory can rightly hold")
                        if _is_unicode(entry.name):
                            found.append(entry.name)
            finally:
                os.close(descriptor)
        except OSError as error:
            return unseen(path, why(error), unlock=unlock_for(error))
        return seen(path, tuple(sorted(found)))

    def exists(self, path: str) -> bool:
        """Whether the path leads to something; False too where that may not be known."""
        try:
            with self._beside(path) as (directory, name):
                os.stat(name, dir_fd=directory, follow_symlinks=directory is None)
        except (OSError, ValueError):
            return False
        return True

    def open(self, path: str) -> BinaryIO:
        """Open a regular file for reading. Raises OSError; never waits on a FIFO, never opens a device."""
        return os.fdopen(self._open(path, stat.S_IFREG), "rb")

    def locate(self, path: str) -> str:
        """Where `path` of the host lies on this machine, for a program that is told a path. Raises OSError for a loop of links.

        Between this look and that program's own, whoever may write to the tree can change it; `open` has no such gap.
        """
        if self.is_this_machine:
            return path
        return os.path.join(self.root, *self._resolve(path))  # noqa: PTH118 - a string, for speed

    def _resolve(self, path: str) -> list[str]:
        """The components below `root` that `path` leads to, free of links when looked at."""
        resolved: list[str] = []
        pending = [part for part in reversed(path.split("/")) if part]
        links = 0
        while pending:
            part = pending.pop()
            if part == ".":
                continue
            if part == "..":
                resolved = resolved[:-1]
                continue
            here = os.path.join(self.root, *resolved, part)  # noqa: PTH118 - a string, for speed
            try:
                target = os.readlink(here)  # noqa: PTH115 - a string, for speed
            except OSError:
                resolved.append(part)
                continue
            except ValueError as error:
                raise _unusable(path) from error
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, "too many symbolic links", path)
            if target.startswith("/"):
                resolved = []
            pending.extend(piece for piece in reversed(target.split("/")) if piece)
        return resolved

    @contextmanager
    def _beside(self, path: str) -> Iterator[tuple[int | None, str]]:
        """A directory's descriptor, and the name in it that `path` leads to; on this machine None, and `path` for the kernel to follow."""
        if self.is_this_machine:
            yield None, path
            return
        *folders, name = self._resolve(path) or ["."]
        directory = os.open(self.root, _FOLDER)
        try:
            for folder in folders:
                # A link that was put there since _resolve() is not followed: it is no directory.
                following = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = following
            yield directory, name
        finally:
            os.close(directory)

    def _open(self, path: str, kind: int) -> int:
        try:
            with self._beside(path) as (directory, name):
                # Looked at before, so that no driver wakes; looked at again after, since it may be another by then.
                _expect(kind, os.stat(name, dir_fd=directory, follow_symlinks=directory is None), path)
                no_link = 0 if directory is None else os.O_NOFOLLOW
                descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | no_link, dir_fd=directory)
        except ValueError as error:
            raise _unusable(path) from error
        try:
            _expect(kind, os.fstat(descriptor), path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def why(error: OSError) -> str:
    """An OSError as a reason for an operator: lower case, no errno, no path (the source already names it)."""
    return (error.strerror or str(error)).lower()


def unlock_for(error: OSError) -> str | None:
    """What would let the same read succeed, where a privilege is what is missing."""
    return _ROOT_NEEDED if isinstance(error, PermissionError) else None


def unseen_like(other: Observed[S]) -> Observed[T]:
    """The reason why `other` could not be seen, for what would have been read out of it."""
    return Observed(source=other.source, reason=other.reason, unlock=other.unlock)


def one_line(text: str, *, limit_characters: int = 200) -> str:
    """`text` as one line to show: control and formatting characters gone, white space single, cut at the limit."""
    # Far more than the limit, so that white space within does not shorten the line; far less than a hostile file.
    head = text[: 20 * limit_characters]
    return " ".join("".join(character if character.isprintable() else " " for character in head).split())[:limit_characters]


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # surrogateescape: canonical JSON could not hold it
        return False
    return True


def _expect(kind: int, status: os.stat_result, path: str) -> None:
    if stat.S_IFMT(status.st_mode) != kind:
        raise OSError(errno.EINVAL, "not a directory" if kind == stat.S_IFDIR else "not a regular file", path)


def _unusable(path: str) -> OSError:
    return OSError(errno.EINVAL, "not a usable path", path)
