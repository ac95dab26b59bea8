"""A real libvirtd that can touch nobody's guests: its mounts, processes and network are its own, in namespaces that end with it.

The daemon sees the machine's programs, but its own /etc/libvirt, /run and /var: `root` holds them, laid out like a host's file
tree. The first process of its PID namespace reads a pipe that only the test process holds, so that the kernel ends the daemon and
every guest with the test process, however that ends. Without /run there is no D-Bus either: no systemd hears of these guests.

/dev/kvm is a device node of the namespace's own, since libvirt's QEMU needs a group on it that the machine's may not have.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USUAL_QEMUS = (Path("/usr/bin/qemu-system-x86_64"), Path("/usr/libexec/qemu-kvm"))
QEMU = next((path for path in USUAL_QEMUS if path.exists()), USUAL_QEMUS[0])
#: What QEMU prints where setting KVM_PMU_CAP_DISABLE fails (383374465155).
CAPABILITY_STRING = b"Failed to set KVM_PMU_CAP_DISABLE"
_LIMIT_SECONDS = 60
_OWN_FOLDERS = ("etc/libvirt", "run", "var/lib/libvirt", "var/cache/libvirt", "var/log/libvirt")
#: No cgroup is made and no huge page touched; a driver for confinement would need a policy for the paths of this lab.
_QEMU_CONF = """cgroup_controllers = []
hugetlbfs_mount = []
namespaces = []
security_driver = "none"
stdio_handler = "file"
"""
_DAEMON_CONF = """auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0700"
audit_level = 0
"""

# SIGCHLD is ignored so that the kernel reaps the orphans of this namespace: libvirt waits 40 s for a QEMU that nobody reaps.
_FIRST_PROCESS = """
set -e
root=$1; shift
mount --make-rprivate /
for folder; do mount --bind "$root/$folder" "/$folder"; done
if [ -c /dev/kvm ] && getent group kvm >/dev/null; then
    mkdir -p /run/devices
    mount -t tmpfs -o mode=0755 tmpfs /run/devices
    mknod -m 0660 /run/devices/kvm c "0x$(stat -c %t /dev/kvm)" "0x$(stat -c %T /dev/kvm)" &&
        chgrp kvm /run/devices/kvm && mount --bind /run/devices/kvm /dev/kvm || echo "/dev/kvm stays as it is" >&2
fi
echo ready
exec env --ignore-signal=CHLD cat
"""


def why_no_lab() -> str | None:
    """What this machine lacks for a libvirtd of the tests' own; None where nothing is missing."""
    if os.geteuid() != 0:
        return "a libvirtd of the tests' own needs root: run the tests as root"
    programs = ("libvirtd", "virsh", "unshare", "nsenter", "setpriv", "mount", "mknod")
    missing = [program for program in programs if shutil.which(program) is None]
    missing += [] if QEMU.exists() else [str(QEMU)]
    if missing:
        return f"missing: {', '.join(missing)} (`make test` installs what it can)"
    try:
        import libvirt  # noqa: F401, PLC0415 - an optional package
    except ImportError as error:
        return f"libvirt-python cannot be loaded: {error}"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "true"], capture_output=True, text=True, check=False
    )
    return f"namespaces cannot be made here: {probe.stderr.strip()}" if probe.returncode != 0 else None


@dataclass
class LibvirtLab:
    """A libvirtd, its file tree below `root`, and its guests."""

    root: Path
    first_pid: int
    _daemon: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def socket(self) -> Path:
        return self.root / "run/libvirt/libvirt-sock"

    @property
    def read_only_socket(self) -> Path:
        return self.root / "run/libvirt/libvirt-sock-ro"

    @property
    def uri(self) -> str:
        return uri_of(self.socket)

    def inside(self, *words: str) -> list[str]:
        """The command line that runs `words` in the lab's namespaces."""
        return ["nsenter", "--target", str(self.first_pid), "--mount", "--pid", "--net", "--", *words]

    # --- the daemon -------------------------------------------------------------------------------------------------------------

    def ensure_daemon(self) -> None:
        """Start libvirtd unless it runs; return when it answers."""
        if self._daemon is None or self._daemon.poll() is not None:
            (self.root / "run/libvirtd.pid").unlink(missing_ok=True)
            with (self.root / "libvirtd.log").open("ab") as log:
                self._daemon = subprocess.Popen(self.inside("libvirtd"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _LIMIT_SECONDS
        while True:
            answer = subprocess.run(["virsh", "-q", "-c", self.uri, "version"], capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                return
            if time.monotonic() > deadline or self._daemon.poll() is not None:
                log_end = (self.root / "libvirtd.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"libvirtd does not answer: {answer.stderr}\n{log_end}")
            time.sleep(0.05)

    def daemon_pid(self) -> int:
        """libvirtd itself: nsenter's child, by this machine's process numbers."""
        assert self._daemon is not None
        return _child(self._daemon.pid)

    def kill_daemon(self) -> None:
        """kill -9; the guests stay."""
        assert self._daemon is not None
        os.kill(self.daemon_pid(), signal.SIGKILL)
        self._daemon.wait(_LIMIT_SECONDS)

    @contextlib.contextmanager
    def stopped_daemon(self) -> Iterator[None]:
        """libvirtd takes connections, since the kernel does that for it, and answers nothing."""
        assert self._daemon is not None
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            self._daemon.send_signal(signal.SIGCONT)  # nsenter stops itself when its child is stopped

    def wait_for_end(self) -> None:
        """Return when libvirtd is gone, and writes nothing any more."""
        if self._daemon is not None:
            self._daemon.wait(_LIMIT_SECONDS)

    # --- the guests -------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        """A connection that may change things."""
        import libvirt  # noqa: PLC0415 - an optional package

        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # its default prints every error
        connection = libvirt.open(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def define(self, *documents: str) -> None:
        with self.connection() as connection:
            for xml in documents:
                connection.defineXML(xml)

    def start(self, *names: str) -> None:
        """Start defined guests paused: none of their code matters here."""
        import libvirt  # noqa: PLC0415 - as above

        with self.connection() as connection:
            for name in names:
                connection.lookupByName(name).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def try_to_start(self, *names: str) -> dict[str, str]:
        """Like start(), for guests that this machine may not be able to run: why, by name, for those that it is not."""
        import libvirt  # noqa: PLC0415 - as above

        failures = {}
        for name in names:
            try:
                self.start(name)
            except libvirt.libvirtError as error:
                failures[name] = str(error)
        return failures

    def start_transient(self, xml: str) -> None:
        import libvirt  # noqa: PLC0415 - as above

        with self.connection() as connection:
            connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)

    def why_not_startable(self, xml: str) -> str | None:
        """Why this guest does not start; None where it does. Leaves nothing behind."""
        import libvirt  # noqa: PLC0415 - as above

        with self.connection() as connection:
            try:
                connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED).destroy()
            except libvirt.libvirtError as error:
                return str(error)
        return None

    def save(self, name: str) -> None:
        """A managed save: the guest stops, and goes on at its next start."""
        with self.connection() as connection:
            connection.lookupByName(name).managedSave(0)

    def names(self) -> list[str]:
        """Every guest, running or not."""
        with self.connection() as connection:
            return sorted(domain.name() for domain in connection.listAllDomains(0))

    def clear(self) -> None:
        """End and forget every guest."""
        import libvirt  # noqa: PLC0415 - as above

        with self.connection() as connection:
            for domain in connection.listAllDomains(0):
                persistent = domain.isPersistent()
                if domain.isActive():
                    domain.destroy()
                if persistent:
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def xml(self, name: str, *, inactive: bool) -> str:
        """What virsh shows."""
        words = ["virsh", "-q", "-c", self.uri, "dumpxml", *(["--inactive"] if inactive else []), "--domain", name]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def command_line(self, uuid: str) -> list[str]:
        """The command line of the process that runs a guest, from /proc."""
        return _words(Path(f"/proc/{self.pid(uuid)}/cmdline"))

    def pid(self, uuid: str) -> int:
        """The process that runs a guest, by this machine's process numbers."""
        found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _names(path, uuid)]
        assert len(found) == 1, f"{len(found)} processes run {uuid}"
        return found[0]

    # --- QEMU -------------------------------------------------------------------------------------------------------------------

    def executable(self, uuid: str) -> Path:
        """The file that a guest's process runs."""
        return Path(f"/proc/{self.pid(uuid)}/exe").readlink()

    def qemu_has_capability(self) -> bool:
        """Whether this machine's QEMU sets KVM_PMU_CAP_DISABLE, as far as its file tells."""
        return CAPABILITY_STRING in QEMU.read_bytes()

    def copy_qemu(self, name: str) -> Path:
        """A QEMU program of our own, which finds its firmware and modules where the original does."""
        prefix = self.root / "qemu" / name
        (prefix / "bin").mkdir(parents=True)
        for folder in ("share", "lib", "lib64", "libexec"):
            if Path("/usr", folder).exists():
                (prefix / folder).symlink_to(Path("/usr", folder))
        return Path(shutil.copy(QEMU.resolve(), prefix / "bin" / QEMU.name))


def uri_of(socket: Path) -> str:
    return f"qemu+unix:///system?socket={socket}"


@contextlib.contextmanager
def open_lab() -> Iterator[LibvirtLab]:
    """A running libvirtd; at the end it and its guests are gone, and so are its files."""
    root = Path(tempfile.mkdtemp(prefix="exitguard-test-", dir="/tmp"))  # short: a socket goes there
    root.chmod(0o755)  # the guests' user and the tests' unprivileged one go through it
    for folder in _OWN_FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF)
    (root / "etc/libvirt/libvirtd.conf").write_text(_DAEMON_CONF)
    unshare = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
    command = [*unshare, "sh", "-c", _FIRST_PROCESS, "sh", str(root), *_OWN_FOLDERS]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unshared:
            assert unshared.stdout is not None
            assert unshared.stderr is not None
            if unshared.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the lab's namespaces could not be set up: {unshared.stderr.read().decode(errors='replace')}")
            lab = LibvirtLab(root, _child(unshared.pid))
            try:
                lab.ensure_daemon()
                yield lab
            finally:
                unshared.kill()  # --kill-child: the first process goes with it, and the namespace with that
                lab.wait_for_end()
    finally:
        shutil.rmtree(root)


def _child(pid: int) -> int:
    """The one child of a process, by this machine's process numbers."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _words(path: Path) -> list[str]:
    return path.read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")


def _names(path: Path, uuid: str) -> bool:
    try:
        words = _words(path)
    except OSError:
        return False
    return any(words[at : at + 2] == ["-uuid", uuid] for at in range(len(words)))
