"""A libvirtd of our own beside the machine's: other sockets, other state, nothing of it left afterwards.

It sees empty file systems over libvirt's folders, in a mount namespace of its own, so the machine's own domains and its own
daemon are neither seen nor touched.
"""

import grp
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libvirt_python import load_libvirt
from measurement import SkippedError
from nova_domain import PREFIX

_FOLDERS = ("/etc/libvirt", "/var/lib/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
#: A first start asks every QEMU on the machine what it can do.
_START_SECONDS = 60
_STOP_SECONDS = 20
_KVM = Path("/dev/kvm")

_DAEMON_CONF = """\
unix_sock_dir = "{folder}"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "4:file:{folder}/libvirtd.log"
"""
# Without virtlogd, QEMU's output goes to a file; without a security driver nothing depends on the machine's.
_QEMU_CONF = 'stdio_handler = "file"\nsecurity_driver = "none"\n'

# $1 is the folder, $2 and on are the mount points. `exec` keeps the pid, by which the daemon is ended.
_SCRIPT = """\
set -eu
folder=$1; shift
for point do mkdir -p "$point"; mount -t tmpfs -o mode=0755 exitguard-bench "$point"; done
cp "$folder/qemu.conf" /etc/libvirt/qemu.conf
exec libvirtd -f "$folder/libvirtd.conf" -p "$folder/libvirtd.pid"
"""


@dataclass(frozen=True)
class PrivateLibvirtd:
    """The daemon that runs, and an open read-write connection to it."""

    #: libvirt-python.
    libvirt: Any
    #: Of its read-only socket, which is what an audit uses.
    uri: str
    connection: Any

    @property
    def versions(self) -> str:
        return f"libvirt {_dotted(self.connection.getLibVersion())}, QEMU {_dotted(self.connection.getVersion())}"

    def define(self, xml: str) -> Any:
        return self.connection.defineXML(xml)

    def has_kvm(self) -> bool:
        """Whether domains of type kvm can be defined."""
        return "<domain type='kvm'" in self.connection.getCapabilities()


@contextmanager
def private_libvirtd() -> Iterator[PrivateLibvirtd]:
    """A running daemon. At the end its domains are ended, then the daemon, by pid. Raises SkippedError."""
    if os.geteuid() != 0:
        raise SkippedError("needs root, for a mount namespace and a libvirtd of its own")
    for program in ("libvirtd", "qemu-system-x86_64", "unshare"):
        if shutil.which(program) is None:
            raise SkippedError(f"needs {program}: install libvirt-daemon-system, libvirt-daemon-driver-qemu, qemu-system-x86, util-linux")
    libvirt = load_libvirt()
    with tempfile.TemporaryDirectory(prefix="exitguard-bench-") as name, _kvm_for_its_group():
        folder = Path(name)
        folder.chmod(0o755)
        process = _start(folder)
        try:
            uri = f"qemu+unix:///system?socket={folder}/libvirt-sock-ro"
            connection = _connect(libvirt, f"qemu+unix:///system?socket={folder}/libvirt-sock", process, folder)
            try:
                yield PrivateLibvirtd(libvirt, uri, connection)
            finally:
                _end_domains(libvirt, connection)
        finally:
            _stop(process)


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "libvirtd.conf").write_text(_DAEMON_CONF.format(folder=folder))
    (folder / "qemu.conf").write_text(_QEMU_CONF)
    command = ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", str(folder), *_FOLDERS]
    with (folder / "stderr").open("wb") as errors:
        # In a session of its own: a Ctrl-C is for the measurement, which then ends the domains first and the daemon after them.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True)


def _connect(libvirt: Any, uri: str, process: subprocess.Popen[bytes], folder: Path) -> Any:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return libvirt.open(uri)
        except libvirt.libvirtError as error:
            if process.poll() is not None:
                said = (folder / "stderr").read_text(errors="replace").strip()[-300:]
                raise SkippedError(f"libvirtd ended at once with {process.returncode}: {said or 'it said nothing'}") from None
            if time.monotonic() > deadline:
                raise SkippedError(f"libvirtd does not answer after {_START_SECONDS} s: {error}") from None
            time.sleep(0.05)


def _end_domains(libvirt: Any, connection: Any) -> None:
    for domain in connection.listAllDomains(0):
        if domain.name().startswith(PREFIX):
            with suppress(libvirt.libvirtError):
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
    connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _kvm_for_its_group() -> Iterator[None]:
    """A /dev/kvm that QEMU's user may open: where it may not, libvirt asks QEMU anew, for many seconds, at every call."""
    try:
        before = _KVM.stat()
        group = grp.getgrnam("kvm").gr_gid
    except (OSError, KeyError):
        yield
        return
    if before.st_gid == group and before.st_mode & 0o060 == 0o060:
        yield
        return
    os.chown(_KVM, -1, group)
    _KVM.chmod(0o660)
    try:
        yield
    finally:
        os.chown(_KVM, -1, before.st_gid)
        _KVM.chmod(stat.S_IMODE(before.st_mode))


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1_000 % 1_000}.{version % 1_000}"
