"""QEMU program files: version, and whether they can clear kvm->arch.enable_pmu. Files are read, never run.

The capability is told by the message that its failure would print, "Failed to set KVM_PMU_CAP_DISABLE" (QEMU 383374465155,
first released in 11.0; a downstream backport carries it too). The version stands in the same file, in the text of --version.
"""

import os
import re
import time
from dataclasses import dataclass, field

from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.facts.unchanged_program import ProgramFiles
from exitguard.model.host import QemuBinary, QemuVersion
from exitguard.model.record import Observed, seen, unseen

CAPABILITY_STRING = b"Failed to set KVM_PMU_CAP_DISABLE"
#: The source as facts name it: a pid is a sample, and would change the hash of an unchanged domain at every start.
EXECUTABLE = "/proc/<pid>/exe"
#: What shows that link of another user's process.
TRACE_UNLOCK = "run as root, or grant CAP_SYS_PTRACE"
_VERSION = re.compile(rb"QEMU emulator version (\d{1,4}(?:\.\d{1,4}){1,3})(?: \(([^)\x00\n]{0,200})\))?")
_DELETED = " (deleted)"
_CHUNK_BYTES = 1 << 20
#: More than the longest version text.
_OVERLAP_BYTES = 512
_LIMIT_BYTES = 1 << 30
_MAX_REMEMBERED = 256
#: A file that was changed a moment ago may change again without a change of its times, which are only as fine as a clock tick.
_SETTLED_NANOSECONDS = 2_000_000_000

_FileIdentity = tuple[int, int, int, int, int]
_Contents = tuple[Observed[QemuVersion], Observed[bool]]
#: What was found in files that have not changed since: a process scans a program once, not in every audit.
_remembered: dict[_FileIdentity, _Contents] = {}


@dataclass
class QemuReader:
    """Reads QEMU files, each file once however many domains run it."""

    tree: HostTree
    _known: dict[_FileIdentity, _Contents] = field(default_factory=dict)
    program_files: ProgramFiles = field(init=False)

    def __post_init__(self) -> None:
        self.program_files = ProgramFiles(self.tree)

    def read_file(self, path: str) -> QemuBinary:
        """The QEMU installed at `path`."""
        try:
            with self.tree.open(path) as file:
                version, capability = self._scan(file.fileno(), path)
        except OSError as error:
            return _unreadable(path, path, error, deleted=False)
        return QemuBinary(path=path, version=version, capability_string=capability)

    def read_running(self, pid: int) -> QemuBinary:
        """The QEMU that process `pid` runs: the open file itself, be it deleted or in another mount namespace."""
        try:
            link = self.tree.locate(f"/proc/{pid}") + "/exe"
            path = executable_path(link)
            # procfs says 0 for the length of such a link. Any other file system holds a copy of it, and following that one
            # on this machine would lead out of the tree.
            if os.lstat(link).st_size != 0:
                return self.read_file(path)
            descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return _unreadable(EXECUTABLE, EXECUTABLE, error, deleted=False)
        try:
            deleted = path.endswith(_DELETED)
            path = path.removesuffix(_DELETED)
            version, capability = self._scan(descriptor, path)
        except OSError as error:
            return _unreadable(path, EXECUTABLE, error, deleted=deleted)
        finally:
            os.close(descriptor)
        return QemuBinary(path=path, version=version, capability_string=capability, deleted=deleted)

    def read_started(self, pid: int, path: str, start_ticks: int) -> Observed[QemuBinary]:
        """The QEMU at `path`, where it is still the file that process `pid` was started from; else why that cannot be told.

        For a process that may not be looked into: facts/unchanged_program.py says by what else that is known.
        """
        if not path.startswith("/"):
            return _unknown_program("its command line names no absolute path")
        try:
            with self.tree.open(path) as file:
                descriptor = file.fileno()
                changed = os.fstat(descriptor).st_ctime_ns
                reason = self.program_files.why_not(pid, path, start_ticks, descriptor)
                if reason is not None:
                    return _unknown_program(reason)
                version, capability = self._scan(descriptor, path)
                if os.fstat(descriptor).st_ctime_ns != changed:
                    return _unknown_program(f"{path} was changed while it was read")
        except OSError as error:
            return _unknown_program(f"{path}: {why(error)}")
        # A script that starts QEMU is no QEMU, and a file that could not be read tells nothing.
        unread = version.reason or capability.reason
        if unread is not None:
            return _unknown_program(f"{path}: {unread}")
        binary = QemuBinary(path=path, version=version, capability_string=capability)
        return seen(f"{path}, unchanged since before the process started", binary)

    def _scan(self, descriptor: int, path: str) -> tuple[Observed[QemuVersion], Observed[bool]]:
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if identity not in self._known:
            self._known[identity] = _remembered.get(identity) or _scan(descriptor, status.st_size, path)
            _remember(identity, self._known[identity])
        version, capability = self._known[identity]
        # A file has many names (qemu-kvm is often a link): the source is the one that was asked for, whichever came first.
        return version.model_copy(update={"source": path}), capability.model_copy(update={"source": path})


def _remember(identity: _FileIdentity, contents: _Contents) -> None:
    *_, changed_nanoseconds = identity
    if time.time_ns() - changed_nanoseconds > _SETTLED_NANOSECONDS:
        if len(_remembered) >= _MAX_REMEMBERED:
            _remembered.clear()
        _remembered[identity] = contents


def executable_path(link: str) -> str:
    """What the kernel calls the file behind a /proc/<pid>/exe; bytes that are not UTF-8 replaced. Raises OSError."""
    return os.fsencode(os.readlink(link)).decode("utf-8", "replace")  # noqa: PTH115 - what the kernel says, not a path to follow


def _scan(descriptor: int, size_bytes: int, path: str) -> tuple[Observed[QemuVersion], Observed[bool]]:
    """One pass in chunks (not mmap: a file truncated meanwhile would kill the reader)."""
    if size_bytes > _LIMIT_BYTES:
        reason = f"{size_bytes} bytes, expected a program of at most {_LIMIT_BYTES}"
        return unseen(path, reason), unseen(path, reason)
    version: QemuVersion | None = None
    capability = False
    offset = 0
    tail = b""
    while offset < size_bytes and not (version and capability):
        chunk = os.pread(descriptor, _CHUNK_BYTES, offset)
        if not chunk:
            reason = f"it became shorter while it was read: {offset} bytes of {size_bytes}"
            return unseen(path, reason), unseen(path, reason)
        offset += len(chunk)
        window = tail + chunk
        if version is None:
            version = find_version(window, complete=offset >= size_bytes)
        capability = capability or CAPABILITY_STRING in window
        tail = window[-_OVERLAP_BYTES:]
    return (
        seen(path, version) if version else unseen(path, "the file holds no QEMU version text"),
        seen(path, capability),
    )


def find_version(window: bytes, *, complete: bool = True) -> QemuVersion | None:
    """The version text in a piece of a QEMU program; one so near the end of an incomplete piece that it may go on is left for the next."""
    match = _VERSION.search(window)
    if match is None or (not complete and match.start() >= len(window) - _OVERLAP_BYTES):
        return None
    return QemuVersion(version=match[1].decode("ascii"), package=(match[2] or b"").decode("utf-8", "replace"))


def _unknown_program(reason: str) -> Observed[QemuBinary]:
    return unseen(EXECUTABLE, f"permission denied, and {reason}", unlock=TRACE_UNLOCK)


def _unreadable(path: str, source: str, error: OSError, *, deleted: bool) -> QemuBinary:
    unlock = unlock_for(error)
    if unlock and source.startswith("/proc/"):
        unlock = TRACE_UNLOCK
    return QemuBinary(
        path=path,
        version=unseen(source, why(error), unlock=unlock),
        capability_string=unseen(source, why(error), unlock=unlock),
        deleted=deleted,
    )
