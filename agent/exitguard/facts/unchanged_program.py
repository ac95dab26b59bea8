"""Whether the file at a program's path is still the one that a process was started from, told without looking into the process.

/proc/<pid>/exe is for those who may trace the process. Its command line, its mounts and its size are for everybody; and a file that
was neither changed, replaced nor renamed since before the process started is the file that it was started from. All of it must hold:

- The path leads to the same place of the same file system for the process and for us (facts/mounts.py). A libvirt in a container
  starts its container's files.
- That file system is a kind of which it is known that every change of a file, its renaming included, sets the file's change time
  (st_ctime), which nobody can set to another value.
- The file's change time lies before the start; and each name on the way to it is as old, or stands in a folder in which no name has
  changed since: a link that leads elsewhere today is not taken for the one of that day.
- The code of the process has the size of the code in the file.
- The clock was not set forward since the boot, by which times of before and of after would not compare: sysfs is mounted within
  seconds of the boot, and shows the time of that moment by the clock of that moment.

What is left: whoever may run programs as the guest's user can lie about the command line, as about every other fact of it. And
nobody set the clock back and forward again, or mounted another file system over the path, to hide a QEMU with code of the same size.
"""

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from exitguard.facts.clock import read_boot_time
from exitguard.facts.mounts import MountTable, parse_mounts
from exitguard.facts.tree import HostTree, why

_SYSFS = "/sys"
#: How long after the boot sysfs may be mounted: by then the kernel of a host with terabytes of memory has started.
_SYSFS_WITHIN_SECONDS = 60.0
#: btime is cut to seconds, start times to clock ticks, file times to the ticks of the kernel's timer.
_ROUNDING_SECONDS = 2.0
#: The most by which the clock may have been set forward unnoticed; files have to be older than the process by that.
MARGIN_SECONDS = _SYSFS_WITHIN_SECONDS + 2 * _ROUNDING_SECONDS
#: File systems of local disks and memory. Others have times of other machines (NFS), go back in time (ZFS), or show files of
#: changing origin (overlay).
_KINDS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"})
_MAX_LINKS = 40  # the kernel's own bound on symbolic links in one path (path_resolution(7))
_LIMIT_BYTES = 8 << 20
# elf(5): Elf64_Ehdr and Elf64_Phdr, little endian.
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_PT_LOAD = 1
_PF_X = 1
_MAX_PROGRAM_HEADERS = 256
_MAX_TABLE_OFFSET = 1 << 30


@dataclass(frozen=True)
class BootClock:
    """When the host booted by today's clock, and when it mounted sysfs by the clock of that day; in seconds since 1970."""

    boot_seconds: float
    sysfs_seconds: float
    ticks_per_second: int

    def why_unsteady(self) -> str | None:
        """Why times of before and of after cannot be compared; None where they can."""
        late_seconds = self.sysfs_seconds - self.boot_seconds
        if -_ROUNDING_SECONDS <= late_seconds <= _SYSFS_WITHIN_SECONDS:
            return None
        return (
            f"the clock seems to have been set since the boot: {_SYSFS} is of {abs(late_seconds):.0f} s "
            f"{'before' if late_seconds < 0 else 'after'} it"
        )

    def latest_change_seconds(self, start_ticks: int) -> float:
        """Before when a file must have been changed last, to be the one that a process was started from."""
        return self.boot_seconds + start_ticks / self.ticks_per_second - MARGIN_SECONDS


@dataclass
class ProgramFiles:
    """What is read once for all processes of this machine."""

    tree: HostTree
    clock: BootClock | None = None

    def why_not(self, pid: int, path: str, start_ticks: int, descriptor: int) -> str | None:
        """Why the file that `descriptor` has open need not be the one that the process was started from by `path`; None where it is.

        `path` is absolute.
        """
        try:
            clock = self.clock = self.clock or _read_clock(self.tree)
            names = list(_names_on_the_way(path))
            opened = os.fstat(descriptor)
            found = names[-1].status
            if (opened.st_dev, opened.st_ino, opened.st_ctime_ns) != (found.st_dev, found.st_ino, found.st_ctime_ns):
                return "the file was replaced while it was read"
            return (
                clock.why_unsteady()
                or why_newer(names, clock.latest_change_seconds(start_ticks))
                or _why_elsewhere(names, self._own_mounts, self._mounts(pid))
                or self._why_other_code(pid, descriptor)
            )
        except OSError as error:
            return f"{error.filename or path}: {why(error)}"

    @cached_property
    def _own_mounts(self) -> MountTable:
        return self._mounts(os.getpid())

    def _mounts(self, pid: int) -> MountTable:
        content = self.tree.read_bytes(f"/proc/{pid}/mountinfo", limit_bytes=_LIMIT_BYTES)
        if content.value is None:
            raise OSError(0, content.reason, content.source)
        return parse_mounts(content.value)

    def _why_other_code(self, pid: int, descriptor: int) -> str | None:
        """Field 4 of /proc/<pid>/statm (proc(5)) is the code of the program itself, in pages."""
        fields = (self.tree.read_text(f"/proc/{pid}/statm").value or "").split()
        sizes = code_pages(descriptor)
        if len(fields) < 4 or not fields[3].isdecimal():  # noqa: PLR2004 - text is the fourth
            return "the size of its code is not told"
        return None if int(fields[3]) in sizes else "its code has another size than the code in that file"


def _read_clock(tree: HostTree) -> BootClock:
    boot_time = read_boot_time(tree)
    if boot_time.value is None:
        raise OSError(0, boot_time.reason, boot_time.source)
    return BootClock(boot_time.value.timestamp(), os.stat(_SYSFS).st_ctime, os.sysconf("SC_CLK_TCK"))  # noqa: PTH116 - a string


@dataclass(frozen=True)
class Name:
    """One name on the way to a file: a folder, a link or the file itself, and the folder in which the name stands."""

    path: str
    status: os.stat_result
    folder: os.stat_result


def _names_on_the_way(path: str) -> Iterator[Name]:
    """Every name that the kernel looks up for `path`, in that order; the last is the file. Raises OSError."""
    here, folder = "/", os.lstat("/")
    pending = [part for part in reversed(path.split("/")) if part not in {"", "."}]
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            here = os.path.dirname(here)  # noqa: PTH120
            folder = os.lstat(here)
            continue
        name = os.path.join(here, part)  # noqa: PTH118
        status = os.lstat(name)
        yield Name(name, status, folder)
        if not stat.S_ISLNK(status.st_mode):
            here, folder = name, status
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(0, "too many symbolic links", path)
        target = os.readlink(name)  # noqa: PTH115
        if target.startswith("/"):
            here, folder = "/", os.lstat("/")
        pending.extend(piece for piece in reversed(target.split("/")) if piece not in {"", "."})


def why_newer(names: list[Name], latest_seconds: float) -> str | None:
    """Why `names` may have led elsewhere at `latest_seconds`, or to another content; None where they did not."""
    *way, file = names
    if file.status.st_ctime >= latest_seconds:
        return f"{file.path} was replaced or changed after the process started, or in the {MARGIN_SECONDS:.0f} s before"
    for name in way:
        # Renaming sets the change time of what is renamed, and that of the folder.
        if name.status.st_ctime >= latest_seconds and name.folder.st_ctime >= latest_seconds:
            return f"{name.path} may have led elsewhere when the process started"
    return None


def _why_elsewhere(names: list[Name], ours: MountTable, theirs: MountTable) -> str | None:
    for path in ("/", *(name.path for name in names)):
        place = ours.place(path)
        if place is None or place != theirs.place(path):
            return f"{path} is another one for the process: it lives in another mount namespace"
        if place.kind not in _KINDS:
            return f"{path} lies on {place.kind}, whose file times do not tell"
    return None


def code_pages(descriptor: int) -> frozenset[int]:
    """How many pages of code the kernel may count for a program (load_elf_binary() in fs/binfmt_elf.c); none for anything but ELF.

    From the first executable segment to the end of the last; before Linux 5.10 from the first segment of any kind.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    head = os.pread(descriptor, _ELF_HEADER.size, 0)
    if len(head) < _ELF_HEADER.size or not head.startswith(_ELF64_LITTLE_ENDIAN):
        return frozenset()
    *_, table_offset, _, _, _, entry_bytes, entries, _, _, _ = _ELF_HEADER.unpack(head)
    if entry_bytes != _PROGRAM_HEADER.size or entries > _MAX_PROGRAM_HEADERS or table_offset > _MAX_TABLE_OFFSET:
        return frozenset()
    table = os.pread(descriptor, entries * entry_bytes, table_offset)
    if len(table) < entries * entry_bytes:
        return frozenset()
    loaded = [
        (flags, address, in_file) for kind, flags, _, address, _, in_file, _, _ in _PROGRAM_HEADER.iter_unpack(table) if kind == _PT_LOAD
    ]
    code = [(address, in_file) for flags, address, in_file in loaded if flags & _PF_X]
    if not code:
        return frozenset()
    last_page = -(-max(address + in_file for address, in_file in code) // page_bytes)
    starts = (min(address for address, _ in code), min(address for _, address, _ in loaded))
    return frozenset(last_page - start // page_bytes for start in starts)
