"""QEMU program files: version, and whether they can clear kvm->arch.enable_pmu. Files are read, never run.

The capability is told by the message that its failure would print, "Failed to set KVM_PMU_CAP_DISABLE" (QEMU 383374465155,
first released in 11.0; a downstream backport carries it too). The version stands in the same file, in the text of --version.
"""

import os
import re
from dataclasses import dataclass, field

from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.model.host import QemuBinary, QemuVersion
from exitguard.model.record import Observed, seen, unseen

CAPABILITY_STRING = b"Failed to set KVM_PMU_CAP_DISABLE"
#: The source as facts name it: a pid is a sample, and would change the hash of an unchanged domain at every start.
EXECUTABLE = "/proc/<pid>/exe"
_VERSION = re.compile(rb"QEMU emulator version (\d{1,4}(?:\.\d{1,4}){1,3})(?: \(([^)\x00\n]{0,200})\))?")
_CHUNK_BYTES = 1 << 20
_OVERLAP_BYTES = 512
_LIMIT_BYTES = 1 << 30


@dataclass
class QemuReader:
    """Reads QEMU files, each file once however many domains run it."""

    tree: HostTree
    _known: dict[tuple[int, int, int, int], tuple[Observed[QemuVersion], Observed[bool]]] = field(default_factory=dict)

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
        link = self.tree.locate(f"/proc/{pid}") + "/exe"
        try:
            path = os.readlink(link)  # noqa: PTH115 - what the kernel says, not a path to follow
            descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return _unreadable(EXECUTABLE, EXECUTABLE, error, deleted=False)
        try:
            deleted = path.endswith(" (deleted)")
            path = path.removesuffix(" (deleted)")
            version, capability = self._scan(descriptor, path)
        except OSError as error:
            return _unreadable(path, EXECUTABLE, error, deleted=deleted)
        finally:
            os.close(descriptor)
        return QemuBinary(path=path, version=version, capability_string=capability, deleted=deleted)

    def _scan(self, descriptor: int, path: str) -> tuple[Observed[QemuVersion], Observed[bool]]:
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = _scan(descriptor, status.st_size, path)
        return self._known[key]


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
            break
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
    """The version text in a piece of a QEMU program; one that touches the end of an incomplete piece is left for the next."""
    match = _VERSION.search(window)
    if match is None or (not complete and match.end() + 1 >= len(window)):
        return None
    return QemuVersion(version=match[1].decode("ascii"), package=(match[2] or b"").decode("utf-8", "replace"))


def _unreadable(path: str, source: str, error: OSError, *, deleted: bool) -> QemuBinary:
    unlock = unlock_for(error)
    if unlock and source.startswith("/proc/"):
        unlock = "run as root, or grant CAP_SYS_PTRACE"
    return QemuBinary(
        path=path,
        version=unseen(source, why(error), unlock=unlock),
        capability_string=unseen(source, why(error), unlock=unlock),
        deleted=deleted,
    )
