"""A Debian 12 for a virtual machine, built from packages once and kept: systemd, libvirtd, QEMU, sshd, the cloud kernel.

The disk is written by `mke2fs -d`: no loop device, no mount, no boot loader. The cloud kernel has NVMe and ext4 built in and is
started by QEMU itself, so that no initramfs has to be unpacked by an emulated processor. Packages come from wherever this machine's
apt has its own from; the machine made of them reaches no network.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CODENAME = "bookworm"
_PACKAGES = (
    *("systemd-sysv", "dbus", "udev", "libpam-systemd", "kmod", "iproute2", "procps", "e2fsprogs", "openssh-server", "python3"),
    *("libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients", "qemu-system-x86", "linux-image-cloud-amd64"),
)
_PROGRAMS = ("mmdebstrap", "mke2fs", "ssh-keygen", "apt-get", "apt-config")
_DISK_BYTES = 4 * 2**30
_BUILD_LIMIT_SECONDS = 900
_BUILDING = "building-"
_KEPT_SECONDS = 24 * 3600
#: What apt must be told to reach the archive from here at all.
_APT_OPTIONS = ("Acquire::http::", "Acquire::https::", "Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::Retries")
#: QEMU's user network: the machine always has this address.
_NETWORK = """[Match]
Type=ether
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
"""
#: What an idle Debian does at its own time would only disturb a test.
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service"),
    *("fstrim.timer", "getty@tty1.service", "systemd-networkd-wait-online.service"),
)
#: The lines that update-grub writes and that tell which kernel boots next. There is no boot loader in this machine.
_GRUB = """set default="0"
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class gnu --class os $menuentry_id_option 'gnulinux-simple' {{
	linux	/boot/{kernel} root=/dev/nvme0n1 rw
	initrd	/boot/{initrd}
}}
"""


class ImageError(Exception):
    """The machine's disk could not be made; the message holds what the failing program said."""


@dataclass(frozen=True)
class DebianImage:
    """What it takes to start the machine and to be let in. The disk is only ever read."""

    disk: Path
    kernel: Path
    private_key: Path
    #: The machine's own ssh key, as a known_hosts file for the host name `machine`.
    known_hosts: Path


def why_no_image() -> str | None:
    """What this machine lacks to build the disk; None where nothing is missing."""
    if os.geteuid() != 0:
        return "a Debian disk takes root to build: run the tests as root"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"missing: {', '.join(missing)} (`make test` installs what it can)"
    return None if _source_files() else f"apt has no sources of Debian {CODENAME} here"


def cached_image(folder: Path, more_packages: tuple[str, ...] = ()) -> DebianImage:
    """The image below `folder`, built there unless this very recipe has been built before. Raises ImageError."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        finished = folder / hashlib.sha256(Path(__file__).read_bytes() + repr(more_packages).encode()).hexdigest()[:16]
        if not finished.is_dir():
            for leftover in folder.iterdir():  # of a build that was killed, or of an old recipe that no machine runs from any more
                if leftover.is_dir() and (leftover.name.startswith(_BUILDING) or time.time() - leftover.stat().st_mtime > _KEPT_SECONDS):
                    shutil.rmtree(leftover)
            building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=folder))
            try:
                _build(building, more_packages)
                building.rename(finished)
            except BaseException:
                shutil.rmtree(building)
                raise
        return _image_in(finished)


def _image_in(folder: Path) -> DebianImage:
    return DebianImage(folder / "disk", folder / "kernel", folder / "key", folder / "known_hosts")


def _build(folder: Path, more_packages: tuple[str, ...]) -> None:
    image = _image_in(folder)
    root = folder / "root"
    options = ["--mode=root", "--variant=minbase", "--aptopt=APT::Install-Recommends false"]
    options += [f"--aptopt={line}" for line in _apt_options()]
    options += [f"--dpkgopt={option}" for option in ("force-unsafe-io", "force-confold")]
    # The kernel that QEMU starts needs no initramfs; the package makes a small one once, and no other package makes it anew.
    keep_initramfs = 'mkdir -p "$1/etc/initramfs-tools"; echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"'
    options += [f"--setup-hook={keep_initramfs}", f"--include={','.join((*_PACKAGES, *more_packages))}"]
    _run("mmdebstrap", *options, CODENAME, str(root), *map(str, _source_files()))
    _set_up(root, image)
    kernel = next((root / "boot").glob("vmlinuz-*"))
    shutil.copyfile(kernel, image.kernel)
    with image.disk.open("wb") as disk:
        disk.truncate(_DISK_BYTES)
    lazy = "lazy_itable_init=1,lazy_journal_init=1"
    _run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", lazy, "-d", str(root), str(image.disk))
    shutil.rmtree(root)


def _set_up(root: Path, image: DebianImage) -> None:
    """What an installer would ask for: a name, a network, who may come in."""
    (root / "etc/hostname").write_text("machine\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost machine\n")
    (root / "etc/fstab").write_text("/dev/nvme0n1 / ext4 defaults 0 0\n")
    (root / "etc/systemd/network/10-user.network").write_text(_NETWORK)
    # In memory: what is logged while the disk is full or read-only is to be read too.
    (root / "etc/systemd/journald.conf.d").mkdir(exist_ok=True)
    (root / "etc/systemd/journald.conf.d/memory.conf").write_text("[Journal]\nStorage=volatile\n")
    units = root / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).symlink_to("/dev/null")
    (units / "multi-user.target.wants/systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    kernel, initrd = (next((root / "boot").glob(pattern)).name for pattern in ("vmlinuz-*", "initrd.img-*"))
    (root / "boot/grub").mkdir(exist_ok=True)
    (root / "boot/grub/grub.cfg").write_text(_GRUB.format(kernel=kernel, initrd=initrd))

    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f", str(image.private_key))
    ssh = root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(image.private_key.with_suffix(".pub"), ssh / "authorized_keys")
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    image.known_hosts.write_text(f"machine {host_key[0]} {host_key[1]}\n")


def _source_files() -> list[Path]:
    """The files of this machine's apt that name Debian's archive, with their options and keys."""
    if shutil.which("apt-get") is None:
        return []
    words = _run("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(SOURCESENTRY)", "Created-By: Packages")
    sources = (line.split() for line in words.splitlines())
    return sorted({Path(file.rpartition(":")[0]) for release, component, file in sources if release == CODENAME and component == "main"})


def _apt_options() -> list[str]:
    lines = _run("apt-config", "dump", "--no-empty").splitlines()
    return [line for line in lines if line.startswith(_APT_OPTIONS)]


def _run(*command: str) -> str:
    """The program's output. Raises ImageError with the end of what it said."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_LIMIT_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"{command[0]} took longer than {_BUILD_LIMIT_SECONDS} seconds") from None
    if result.returncode != 0:
        raise ImageError(f"{command[0]} ended with {result.returncode}:\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}")
    return result.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time: another run of the tests waits for it, and then finds the image."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
