# SPDX-License-Identifier: Apache-2.0
"""The initramfs images of a host: whether a module and its configuration are in them, and how they are made anew.

A module that is loaded out of an initramfs gets its options from the configuration that was copied in there.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.exitguard_host_step import ProgramFailedError, must

_LIST_SECONDS = 300
_MAKE_SECONDS = 1800
#: Debian's and EL's names; images of kdump boot no guests.
_PATTERNS = ("boot/initrd.img-*", "boot/initramfs-*.img")
#: Where other set-ups keep theirs: the Boot Loader Specification's folders, and unified kernel images.
_OTHERS = ("boot/*/*/initrd", "boot/*/*/linux", "boot/efi/EFI/Linux/*.efi", "boot/EFI/Linux/*.efi", "efi/EFI/Linux/*.efi", "efi/*/*/initrd")


class InitramfsError(Exception):
    """It cannot be told what is in an image, or it cannot be made anew; the message says why and what to do."""


@dataclass(frozen=True)
class Image:
    path: Path
    release: str
    has_module: bool
    has_configuration: bool


def read_images(sysroot: Path, module: str, configuration: str) -> tuple[Image, ...]:
    """Every image, with whether the module and the file of configuration are in it. Raises InitramfsError."""
    others = sorted(path for pattern in _OTHERS for path in sysroot.glob(pattern))
    if others:
        raise InitramfsError(f"{others[0]}: an initramfs may be in there, and how it is made anew on this host is not known")
    images = []
    for pattern in _PATTERNS:
        for path in sorted(sysroot.glob(pattern)):
            release = re.sub(r"^(?:initrd\.img-|initramfs-)|\.img$", "", path.name)
            if release.endswith("kdump") or path.name.endswith((".bak", ".old", ".dpkg-bak", "~")):
                continue
            listing = _listing(path)
            images.append(Image(path, release, lists(listing, rf"{module}\.ko(?:\.\w+)?"), lists(listing, re.escape(configuration))))
    return tuple(images)


def lists(listing: str, name: str) -> bool:
    """Whether a file of this name (a regular expression) is in the listing: of lsinitramfs, or lines of `ls -l` as lsinitrd prints them."""
    return re.search(rf"(?:^|[\s/]){name}$", listing, re.MULTILINE) is not None


def _listing(path: Path) -> str:
    program = next((name for name in ("lsinitramfs", "lsinitrd") if shutil.which(name)), None)
    if program is None:
        raise InitramfsError(
            f"what is in {path} cannot be told: expected lsinitramfs (initramfs-tools-core) or lsinitrd (dracut), found neither"
        )
    try:
        return must([program, str(path)], _LIST_SECONDS)
    except ProgramFailedError as error:
        raise InitramfsError(f"what is in {path} cannot be told: {error}") from None


def make_anew(image: Image) -> None:
    """Make the image of one kernel anew, by the host's own tool. Raises InitramfsError."""
    if shutil.which("update-initramfs"):
        command = ["update-initramfs", "-u", "-k", image.release]
    elif shutil.which("dracut"):
        command = ["dracut", "--force", str(image.path), image.release]
    else:
        raise InitramfsError(f"{image.path} cannot be made anew: expected update-initramfs or dracut, found neither")
    try:
        must(command, _MAKE_SECONDS)
    except ProgramFailedError as error:
        raise InitramfsError(str(error)) from None
