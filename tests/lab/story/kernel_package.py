"""A Debian package of a kernel with the guard: Debian's own 6.12, with KVM's modules as the lab has built them."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_MODULES = ("kvm.ko", "kvm-amd.ko", "kvm-intel.ko")
_CONTROL = """Package: linux-image-{release}
Version: {version}
Architecture: amd64
Maintainer: exitguard's lab <root@localhost>
Description: Debian's Linux {release} with a guarded KVM, for the lab alone
"""
#: As Debian's own: whoever wants to know of a new kernel is told (initramfs-tools, GRUB).
_POSTINST = """#!/bin/sh
set -e
depmod {release}
DEB_MAINT_PARAMS="$*" run-parts --arg={release} --arg=/boot/vmlinuz-{release} /etc/kernel/postinst.d
"""


@dataclass(frozen=True)
class KernelPackage:
    path: Path
    name: str
    version: str
    release: str


def make_kernel_package(lineage: Path, variant: str, folder: Path) -> KernelPackage:
    """The package of a lineage that scripts/lab_kernels.sh has built, with the modules of one of its variants."""
    built = dict(line.split(" ", 1) for line in (lineage / "built-from").read_text().splitlines())
    release, version = built["release"], f"{built['version']}+guard1"
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(lineage / "debian", tree, symlinks=True)
    kvm = tree / "lib/modules" / release / "kernel/arch/x86/kvm"
    for name in _MODULES:
        for before in kvm.glob(f"{name}*"):
            before.unlink()
        shutil.copyfile(lineage / variant / name, kvm / name)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(_CONTROL.format(release=release, version=version))
    postinst = tree / "DEBIAN/postinst"
    postinst.write_text(_POSTINST.format(release=release))
    postinst.chmod(0o755)
    path = folder / f"linux-image-{release}.deb"
    # Nothing has to be unpacked by an emulated processor.
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C.UTF-8"})
    shutil.rmtree(tree)
    return KernelPackage(path, f"linux-image-{release}", version, release)
