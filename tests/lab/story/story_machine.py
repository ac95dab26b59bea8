"""A machine that reboots: its disk keeps what is written, and which kernel it boots is what GRUB's own files on that disk say.

QEMU starts the kernel itself, in GRUB's place: no boot loader's code runs in this machine. What GRUB would read is read instead while the
machine is off (grubenv's `next_entry`, else its `saved_entry`, then that entry of grub.cfg), and `next_entry` is taken away, as GRUB does,
before the kernel starts. There is no initramfs: both kernels have NVMe and ext4 built in.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from debian_image import DebianImage
from machine import Machine, MachineError

_GRUBENV, _GRUB_CFG = "/boot/grub/grubenv", "/boot/grub/grub.cfg"
#: grub-core/lib/envblk.c: the block's first line, its size, and what fills it.
_SIGNATURE, _BLOCK_BYTES = "# GRUB Environment Block\n", 1024
_OFF_SECONDS = 300


class RebootingMachine(Machine):
    """One disk of its own, a copy of the image's, in `folder`."""

    def __init__(self, image: DebianImage, folder: Path, *, memory_mib: int) -> None:
        self._own = folder
        self._own.mkdir(parents=True, exist_ok=True)
        disk = folder / "disk"
        subprocess.run(["cp", "--sparse=always", str(image.disk), str(disk)], check=True)
        shutil.copyfile(image.kernel, folder / "kernel")
        super().__init__(DebianImage(disk, image.kernel, image.private_key, image.known_hosts), memory_mib=memory_mib)

    def reboot(self, while_off: Callable[[Path, Path], None]) -> str:
        """Shut it down as an operator would, and start what GRUB would; the name of the kernel file that it chose.

        `while_off` gets the disk, of which it may only take a snapshot, and the chosen kernel.
        """
        self.run("systemctl reboot --no-block")
        assert self._qemu is not None
        deadline = time.monotonic() + _OFF_SECONDS
        while self._qemu.poll() is None:  # -no-reboot: QEMU ends where the machine would start again
            if time.monotonic() > deadline:
                raise self.failure(f"the machine did not go down within {_OFF_SECONDS} seconds")
            time.sleep(0.2)
        if self._ssh is not None:
            self._ssh.kill()
            self._ssh.wait()
        if self._monitor is not None:
            self._monitor.close()
        self._ssh = self._qemu = self._monitor = None
        for name in ("ssh", "monitor"):
            (self._folder / name).unlink(missing_ok=True)
        chosen = self._choose_kernel()
        while_off(self.image.disk, self._kernel())
        self.boot()
        return chosen

    def _kernel(self) -> Path:
        return self._own / "kernel"

    def _disk_options(self) -> str:
        return ""

    def _choose_kernel(self) -> str:
        variables = environment_of(self._file(_GRUBENV))
        once, saved = variables.get("next_entry", ""), variables.get("saved_entry", "")
        image = kernel_of(self._file(_GRUB_CFG), once or saved)
        if once:
            self._write_file(_GRUBENV, environment_block({**variables, "next_entry": ""}))
        self._dump(image, self._own / "kernel")
        return Path(image).name

    def _file(self, path: str) -> str:
        return self._debugfs(f"cat {path}")

    def _dump(self, path: str, target: Path) -> None:
        target.unlink(missing_ok=True)
        self._debugfs(f"dump {path} {target}")
        if not target.exists() or not target.stat().st_size:
            raise MachineError(f"{path} is not on the disk")

    def _write_file(self, path: str, text: str) -> None:
        beside = self._own / "written"
        beside.write_text(text)
        self._debugfs(f"rm {path}", "-w")
        self._debugfs(f"write {beside} {path}", "-w")

    def _debugfs(self, request: str, *options: str) -> str:
        done = subprocess.run(
            ["debugfs", *options, "-R", request, str(self.image.disk)], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise MachineError(f"debugfs {request}: {done.stderr}")
        return done.stdout


def kernel_of(grub_cfg: str, entry: str) -> str:
    """The kernel file of a menu entry, by the last part of its path (`submenu>entry`); the first of all where `entry` is empty."""
    wanted = entry.rpartition(">")[2]
    inside = not wanted
    for line in grub_cfg.splitlines():
        if line.lstrip().startswith("menuentry "):
            inside = not wanted or f"'{wanted}'" in line
        found = re.match(r"\s+linux\s+(\S+)", line)
        if inside and found is not None:
            return found[1]
    raise MachineError(f"grub.cfg has no entry {entry!r}")


def environment_of(block: str) -> dict[str, str]:
    """The variables of a GRUB environment block."""
    lines = (line for line in block.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def environment_block(variables: dict[str, str]) -> str:
    """A GRUB environment block with those variables that are not empty."""
    lines = "".join(f"{name}={value}\n" for name, value in variables.items() if value)
    return (_SIGNATURE + lines).ljust(_BLOCK_BYTES, "#")
