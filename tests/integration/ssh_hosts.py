"""Hosts that are reached over SSH, on this machine: what a control node would see of a small fleet.

    with ssh_hosts(3, tmp_path) as lab:
        subprocess.run(["ansible-playbook", "-i", lab.inventory, ...])

Each host is a LibvirtLab with an sshd inside: mounts, processes, host name and network of its own, a libvirtd with guests of its own. Its
/etc is a copy of this machine's, and it has its own machine-id, host id, /etc/exitguard, /var/lib/exitguard, /boot, /tmp, home of root
and so on; `SshHost.root` holds them as the host sees them. All else is this machine's, and the host may only read it, unless another file
system is mounted there: programs, /usr, the checkout. So packages cannot be installed in it. Kernel and processor are shared; the host's
command `exitguard` is recorded_exitguard.py, which says how that is made up for.

sshd listens on a loopback address inside the host's network, where nothing else is, and nothing listens on this machine. The ssh
configuration that the inventory names has a small program connect there and hand the socket to ssh: a TCP connection like any other, so
that a refused, a silent and a lost one are what they would be.

Everything ends with the test process, however that ends: see libvirt_lab.py.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from libvirt_lab import LibvirtLab, _child, open_lab, why_no_lab
from recorded_exitguard import RecordedKernel

from exitguard.store.state_dir import mint_host_id, prepare_directory

#: Whose `exitguard` and Python the hosts run.
PYTHON = sys.executable
SSHD = Path("/usr/sbin/sshd")
_REPOSITORY = Path(__file__).resolve().parents[2]
_PORT = 22
_LIMIT_SECONDS = 60
#: A host's files that are not this machine's, beside those that LibvirtLab keeps: by path, with their mode.
_OWN = {"etc": 0o755, "var/lib": 0o755, "var/log": 0o755, "var/cache": 0o755, "var/tmp": 0o1777, "boot": 0o755, "tmp": 0o1777}
_HOME = "/run/root"
#: On the PATH of whoever logs in: the host's `exitguard`, and the file that names the kernel it is to be observed on.
_COMMANDS = "/run/lab"
EXITGUARD_COMMAND = f"{_COMMANDS}/exitguard"
_KERNEL_FILE = f"{_COMMANDS}/kernel"
_PATH = f"{_COMMANDS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SSHD_CONFIG = f"""ListenAddress {{address}}
Port {_PORT}
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
PidFile none
PrintMotd no
AcceptEnv LANG LC_*
SetEnv PATH={_PATH}
Subsystem sftp internal-sftp
"""
_SSH_CONFIG = """Host {name} {address}
    HostName {address}
    User root
    IdentityFile {key}
    IdentitiesOnly yes
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    BatchMode yes
    ProxyCommand nsenter --target {pid} --net -- {python} -I -S {connect} {address} {port}
    ProxyUseFdpass yes
"""
_CONNECT = """# Connects where its process is, and hands the socket to the ssh that started it.
import socket, sys

try:
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
except OSError as error:
    sys.exit(f"connect to {sys.argv[1]} port {sys.argv[2]}: {error.strerror or error}")
connection.settimeout(None)
socket.send_fds(socket.socket(fileno=1), [b"\\0"], [connection.fileno()])
"""
# What the host is to see of this machine below a folder that it has one of its own of, /tmp for one, is put there first. In the
# end all that is left of this machine's file system is read-only.
_ENTER = """
set -e
root=$1 name=$2; shift 2
while [ "$1" != -- ]; do
    if [ -d "$root/${1%"${1#/*/}"}" ]; then mkdir -p "$root$1"; mount --bind "$1" "$root$1"; fi
    shift
done
shift
for entry in /var/lib/*/; do
    case $entry in
        /var/lib/libvirt/ | /var/lib/exitguard*) ;;
        *) mkdir -p "$root$entry"; mount --bind -o ro "$entry" "$root$entry" ;;
    esac
done
for folder; do mount --rbind "$root/$folder" "/$folder"; done
mount -o remount,bind,ro /
ip link set lo up
hostname "$name"
echo ready
exec cat
"""


def why_no_ssh_hosts() -> str | None:
    """What this machine lacks for hosts that are reached over SSH; None where nothing is missing."""
    missing = [program for program in ("ssh", "ssh-keygen", "ip", "hostname") if shutil.which(program) is None]
    missing += [] if SSHD.exists() else [str(SSHD)]
    return why_no_lab() or (f"missing: {', '.join(missing)} (`make test` installs what it can)" if missing else None)


@dataclass
class SshHost:
    """One host: its files below `root`, its guests in `libvirt`."""

    name: str
    address: str
    port: int
    root: Path
    #: None where the host was asked for without one: its libvirtd does not run.
    libvirt: LibvirtLab | None
    #: A process that is there as long as the host is, in all its namespaces.
    pid: int = field(repr=False)
    _sshd: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def inside(self, *words: str) -> list[str]:
        """The command line that runs `words` as this host's root would, without SSH."""
        namespaces = ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--pid", "--net", "--"]
        return [*namespaces, "env", "--chdir=/", "--ignore-environment", f"PATH={_PATH}", f"HOME={_HOME}", "LANG=C.UTF-8", *words]

    def processes(self) -> set[int]:
        """By this machine's numbers: sshd, what was started through it, and what run() started."""
        ours = Path(f"/proc/{self.pid}/ns/mnt").readlink()
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                if (entry / "ns/mnt").readlink() == ours:
                    found.add(int(entry.name))
        return found - {self.pid}


@dataclass
class SshLab:
    """The hosts, and what a control node needs to reach them."""

    hosts: tuple[SshHost, ...]
    inventory: Path
    #: `ssh -F ssh_config hv1` leads to a host, by its name or its address.
    ssh_config: Path
    #: For ANSIBLE_SSH_CONTROL_PATH_DIR: an empty folder with a path that is short enough for sockets.
    control_path_dir: Path

    def host(self, name: str) -> SshHost:
        return next(host for host in self.hosts if host.name == name)

    def run(self, host: SshHost, argv: Sequence[str], *, timeout_seconds: float = _LIMIT_SECONDS) -> "subprocess.CompletedProcess[str]":
        """Run a program in a host's namespaces as its root, to its end; SSH has no part in it."""
        return subprocess.run(
            host.inside(*argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )

    def ssh(self, host: SshHost, command: str, *options: str) -> "subprocess.CompletedProcess[str]":
        """What a shell on the host makes of `command`, over SSH."""
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), *options, host.name, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )

    def pretend(self, host: SshHost, kernel: RecordedKernel) -> None:
        """From now on the host is observed on this kernel."""
        (host.root / _KERNEL_FILE.lstrip("/")).write_text(f"{kernel.value}\n")

    # --- what may go wrong with a host ------------------------------------------------------------------------------------------

    def start_sshd(self, host: SshHost) -> None:
        """Start sshd unless it runs; return when it listens."""
        if host._sshd is not None and host._sshd.poll() is None:
            return
        with (host.root / "var/log/sshd.log").open("ab") as log:
            host._sshd = subprocess.Popen(host.inside(str(SSHD), "-D", "-e"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not _listens(host):
            if time.monotonic() > deadline or host._sshd.poll() is not None:
                raise RuntimeError(f"{host.name}: sshd does not listen:\n{(host.root / 'var/log/sshd.log').read_text()[-3000:]}")
            time.sleep(0.02)

    def stop_sshd(self, host: SshHost) -> None:
        """The host cannot be reached any more: connections are refused, and open ones are gone. What runs on it goes on."""
        assert host._sshd is not None
        for pid in host.processes():
            if _program(pid) == SSHD:
                _send(pid, signal.SIGKILL)
        host._sshd.wait(_LIMIT_SECONDS)

    def hang(self, host: SshHost) -> None:
        """The host takes connections, since its kernel does that, and says nothing more; what SSH started stands still as well."""
        stopped: set[int] = set()
        while running := host.processes() - stopped:  # one that was just being started may have been missed
            for pid in running:
                _send(pid, signal.SIGSTOP)
            stopped |= running

    def unhang(self, host: SshHost) -> None:
        """Everything goes on where it stood."""
        assert host._sshd is not None
        for pid in host.processes():
            _send(pid, signal.SIGCONT)
        host._sshd.send_signal(signal.SIGCONT)  # nsenter stops itself when its child is stopped


@contextlib.contextmanager
def ssh_hosts(
    count: int, directory: Path, *, libvirt: bool = True, kernels: Sequence[RecordedKernel] = (RecordedKernel.AFFECTED,)
) -> Iterator[SshLab]:
    """Hosts hv1, hv2 ... that can be logged in to; keys, inventory and ssh configuration are put into `directory`.

    The host at place n is observed on the kernel at place n of `kernels`, the last of which is that of all further ones.
    """
    key, known_hosts, connect = directory / "client_key", directory / "known_hosts", directory / "connect.py"
    ssh_config, inventory = directory / "ssh_config", directory / "inventory.yml"
    directory.mkdir(parents=True, exist_ok=True)
    _make_key(key)
    connect.write_text(_CONNECT)
    with contextlib.ExitStack() as stack:
        hosts = tuple(stack.enter_context(_open_host(number, key.with_suffix(".pub"), libvirt=libvirt)) for number in range(1, count + 1))
        # The path of a control socket may have some 100 characters, fewer than pytest's folders.
        control = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exitguard-ssh-", dir="/tmp")))
        known_hosts.write_text("".join(_known_host(host) for host in hosts))
        words = {"key": key, "known_hosts": known_hosts, "python": PYTHON, "connect": connect, "port": _PORT}
        ssh_config.write_text("".join(_SSH_CONFIG.format(name=host.name, address=host.address, pid=host.pid, **words) for host in hosts))
        inventory.write_text(_inventory(hosts, key, ssh_config))
        lab = SshLab(hosts, inventory, ssh_config, control)
        for number, host in enumerate(hosts):
            lab.pretend(host, kernels[min(number, len(kernels) - 1)])
            lab.start_sshd(host)
        yield lab


@contextlib.contextmanager
def _open_host(number: int, public_key: Path, *, libvirt: bool) -> Iterator[SshHost]:
    """A host without a running sshd."""
    name, address = f"hv{number}", f"127.0.1.{number}"
    with open_lab() as lab:
        if not libvirt:
            lab.kill_daemon()
        _furnish(lab.root, name, address, public_key)
        shown = dict.fromkeys(str(path) for path in (_REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), lab.root))
        unshare = lab.inside("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", _ENTER)
        command = [*unshare, "sh", str(lab.root), name, *shown, "--", *_OWN]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as entered:
            assert entered.stdout is not None
            assert entered.stderr is not None
            if entered.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{name} could not be set up: {entered.stderr.read().decode(errors='replace')}")
            host = SshHost(name, address, _PORT, lab.root, lab if libvirt else None, _child(entered.pid))
            try:
                yield host
            finally:
                for pid in host.processes() | {host.pid}:
                    _send(pid, signal.SIGKILL)
                if host._sshd is not None:
                    host._sshd.send_signal(signal.SIGCONT)  # one that stopped itself would never see its child end
                    host._sshd.wait(_LIMIT_SECONDS)


def _furnish(root: Path, name: str, address: str, public_key: Path) -> None:
    """Everything that makes the file tree of a host another one than this machine's."""
    for folder, mode in _OWN.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(mode)
    kept = {"libvirt", "exitguard", "ssh"}
    etc = [str(entry) for entry in Path("/etc").iterdir() if entry.name not in kept]
    subprocess.run(["cp", "--archive", "--", *etc, str(root / "etc")], check=True)
    _write(root / "etc/hostname", f"{name}\n")
    _write(root / "etc/machine-id", f"{uuid4().hex}\n")
    # A home that is the host's own; a locked password would lock out a key as well.
    _edit_root(root / "etc/passwd", {5: _HOME, 6: "/bin/sh"})
    _edit_root(root / "etc/shadow", {1: "*"})
    _write(root / "etc/ssh/sshd_config", _SSHD_CONFIG.format(address=address))
    _write(root / "etc/ssh/authorized_keys", public_key.read_text())
    _make_key(root / "etc/ssh/ssh_host_ed25519_key")
    (root / "etc/exitguard").mkdir()
    (root / "run/sshd").mkdir()  # sshd gives up its privileges in there
    (root / _HOME.lstrip("/")).mkdir(mode=0o700)
    prepare_directory(root / "var/lib/exitguard")
    mint_host_id(root / "var/lib/exitguard")
    program = Path(__file__).with_name("recorded_exitguard.py")
    _write(root / EXITGUARD_COMMAND.lstrip("/"), f'#!/bin/sh\nexec {PYTHON} -B {program} {_KERNEL_FILE} "$@"\n')
    (root / EXITGUARD_COMMAND.lstrip("/")).chmod(0o755)


def _inventory(hosts: Sequence[SshHost], key: Path, ssh_config: Path) -> str:
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": f"-F {ssh_config}",
        "ansible_python_interpreter": PYTHON,
        "exitguard_command": EXITGUARD_COMMAND,
    }
    reached = {host.name: {"ansible_host": host.address, "ansible_port": host.port} for host in hosts}
    return json.dumps({"all": {"vars": common, "hosts": reached}}, indent=2) + "\n"  # which is YAML too


def _known_host(host: SshHost) -> str:
    kind, key, *_ = (host.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    return f"{host.name},{host.address} {kind} {key}\n"


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f", str(path)], check=True)


def _write(path: Path, text: str) -> None:
    """Write a file in place of what is there, a link included."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _edit_root(path: Path, fields: dict[int, str]) -> None:
    """Change fields of root's line in a file such as /etc/passwd; the file keeps its mode."""
    lines = [line.split(":") for line in path.read_text().splitlines()]
    for line in lines:
        if line[0] == "root":
            for number, value in fields.items():
                line[number] = value
    path.write_text("".join(":".join(line) + "\n" for line in lines))


def _listens(host: SshHost) -> bool:
    """Whether the kernel knows a listening socket (state 0A) at the port in the host's network."""
    sockets = (line.split() for line in Path(f"/proc/{host.pid}/net/tcp").read_text().splitlines()[1:])
    return any(words[1].endswith(f":{host.port:04X}") and words[3] == "0A" for words in sockets)


def _program(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/exe").readlink()
    except OSError:  # ended meanwhile
        return None


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
