"""Where a path leads in a process's mount namespace: which file system, and where in it. From /proc/<pid>/mountinfo (proc(5)).

Everybody may read that file, of every process. Two processes for which a path has the same place see the same file there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Place:
    """One path in one file system, wherever that is mounted. `kind` is the file system's: ext4, overlay."""

    device: str
    path: str
    kind: str


@dataclass(frozen=True)
class _Mount:
    identity: int
    parent: int
    device: str
    root: str
    point: str
    kind: str


class MountTable:
    """The mounts that one process sees."""

    def __init__(self, mounts: list[_Mount]) -> None:
        self._mounts = {mount.identity: mount for mount in mounts}
        #: By the mount below and the path: what is mounted there. None where two are, of which only the kernel knows the upper one.
        self._above: dict[tuple[int, str], _Mount | None] = {}
        for mount in mounts:
            if mount.identity != mount.parent:
                key = (mount.parent, mount.point)
                self._above[key] = None if key in self._above else mount

    def place(self, path: str) -> Place | None:
        """Where `path`, absolute and free of links, leads; None where the table does not tell."""
        mount = self._climb(self._lowest(), "/")
        for folder in _folders(path):
            mount = self._climb(mount, folder)
        if mount is None:
            return None
        below = path.removeprefix(mount.point).strip("/")
        return Place(mount.device, f"{mount.root.rstrip('/')}/{below}".rstrip("/") or "/", mount.kind)

    def _lowest(self) -> _Mount | None:
        """What is mounted on / first: of a process in a chroot(2) that is no mount point, nothing."""
        roots = {identity: mount for identity, mount in self._mounts.items() if mount.point == "/"}
        lowest = [mount for identity, mount in roots.items() if mount.parent not in roots or mount.parent == identity]
        return lowest[0] if len(lowest) == 1 else None

    def _climb(self, mount: _Mount | None, point: str) -> _Mount | None:
        while mount is not None and (mount.identity, point) in self._above:
            mount = self._above[mount.identity, point]
        return mount


def parse_mounts(content: bytes) -> MountTable:
    """The table of a mountinfo file. It tells nothing where one line cannot be understood: that mount may hide any other."""
    mounts = [_parse(line) for line in content.decode("utf-8", "surrogateescape").splitlines()]
    understood = [mount for mount in mounts if mount is not None]
    return MountTable(understood if len(understood) == len(mounts) else [])


def _parse(line: str) -> _Mount | None:
    """One line: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`."""
    mount, separator, source = line.partition(" - ")
    fields = mount.split(" ")
    try:
        identity, parent = int(fields[0]), int(fields[1])
        device, root, point = fields[2], _unescaped(fields[3]), _unescaped(fields[4])
    except (IndexError, ValueError):
        return None
    return _Mount(identity, parent, device, root, point, source.split(" ")[0]) if separator else None


def _unescaped(field: str) -> str:
    """Blanks and backslashes are written in octal (seq_path() in fs/seq_file.c)."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)


def _folders(path: str) -> Iterator[str]:
    """/usr/bin/qemu: /usr, /usr/bin, /usr/bin/qemu."""
    for end in range(2, len(path) + 1):
        if end == len(path) or path[end] == "/":
            yield path[:end]
