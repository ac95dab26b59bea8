"""A host's file tree: this machine's own, or one below a directory (`--sysroot`). Reads are bounded and never block.

Below a directory, symbolic links are followed as the host itself would follow them: an absolute link starts at the
directory again, and none leads out of it.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from exitguard.model.record import Observed, seen, unseen

#: Enough for every small file in /proc, /sys and /etc that is read here.
DEFAULT_LIMIT_BYTES = 1 << 20
_MAX_LINKS = 40  # the kernel's own bound on symbolic links in one path (path_resolution(7))
_ROOT_NEEDED = "run as root, or grant CAP_DAC_READ_SEARCH"


@dataclass(frozen=True)
class HostTree:
    """The files of one host. `root` is `/` for this machine."""

    root: Path = Path("/")

    @property
    def is_this_machine(self) -> bool:
        return self.root == Path("/")

    def read_bytes(self, path: str, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Observed[bytes]:
        """The whole content of a regular file of at most `limit_bytes`, or why not."""
        try:
            with self.open(path) as file:
                content = file.read(limit_bytes + 1)
        except OSError as error:
            return unseen(path, why(error), unlock=unlock_for(error))
        if len(content) > limit_bytes:
            return unseen(path, f"larger than {limit_bytes} bytes, which is more than this file can rightly hold")
        return seen(path, content)

    def read_text(self, path: str, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Observed[str]:
        """Like `read_bytes`, as UTF-8 with foreign bytes replaced, white space at both ends removed."""
        content = self.read_bytes(path, limit_bytes=limit_bytes)
        if content.value is None:
            return Observed(source=path, reason=content.reason, unlock=content.unlock)
        return seen(path, content.value.decode("utf-8", "replace").strip())

    def names(self, path: str) -> Observed[tuple[str, ...]]:
        """The sorted names in a directory, or why they cannot be listed."""
        try:
            return seen(path, tuple(sorted(os.listdir(self.locate(path)))))  # noqa: PTH208 - names, not paths
        except OSError as error:
            return unseen(path, why(error), unlock=unlock_for(error))

    def exists(self, path: str) -> bool:
        """Whether the path leads to something; False too where that may not be known."""
        try:
            return os.path.exists(self.locate(path))  # noqa: PTH110 - a string, for speed
        except OSError:
            return False

    def open(self, path: str) -> BinaryIO:
        """Open a regular file for reading. Raises OSError; never waits on a FIFO, never takes a terminal."""
        descriptor = os.open(self.locate(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(0, "not a regular file", path)
        return os.fdopen(descriptor, "rb")

    def locate(self, path: str) -> str:
        """Where `path` of the host lies on this machine. Raises OSError for a loop of links."""
        if self.is_this_machine:
            return path
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
            links += 1
            if links > _MAX_LINKS:
                raise OSError(0, "too many symbolic links", path)
            if target.startswith("/"):
                resolved = []
            pending.extend(piece for piece in reversed(target.split("/")) if piece)
        return os.path.join(self.root, *resolved)  # noqa: PTH118 - a string, for speed


def why(error: OSError) -> str:
    """An OSError as a reason for an operator: lower case, no errno, no path (the source already names it)."""
    return (error.strerror or str(error)).lower()


def unlock_for(error: OSError) -> str | None:
    """What would let the same read succeed, where a privilege is what is missing."""
    return _ROOT_NEEDED if isinstance(error, PermissionError) else None
