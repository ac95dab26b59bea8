"""The host of the chain lab: what is on its disk, and how it is started."""

import os
import shutil
from pathlib import Path

from chain_guests import MITIGATIONS, Guest
from emulated_host import Kernels, boot, make_disk, run

HERE = Path(__file__).parent
_FOLDERS = ("bin", "dev", "proc", "sys", "seen", "lab/modules", "qemu")


def why_no_boot_sector() -> str | None:
    """What this machine lacks to make the nested guest; None where nothing is missing."""
    missing = [program for program in ("as", "ld") if shutil.which(program) is None]
    return f"missing: {', '.join(missing)}; apt-get install binutils" if missing else None


def make_chain_disk(folder: Path, kernels: Kernels, variants: tuple[str, ...], qemus: dict[str, Path], guests: tuple[Guest, ...]) -> Path:
    """The host's disk, made anew below `folder`: a shell, KVM's modules of every variant, each QEMU in a root of its own."""
    root = folder / "disk-root"
    shutil.rmtree(root, ignore_errors=True)
    for name in _FOLDERS:
        (root / name).mkdir(parents=True)
    boot_sector = make_boot_sector(folder)
    for name, qemu in qemus.items():
        # The same files, not copies of them.
        shutil.copytree(qemu, root / "qemu" / name, symlinks=True, copy_function=os.link)
        for below in ("dev", "proc", "tmp"):
            (root / "qemu" / name / below).mkdir(exist_ok=True)
        shutil.copyfile(boot_sector, root / "qemu" / name / "boot_sector")
    shutil.copy(next(iter(qemus.values())) / "bin/busybox", root / "bin/busybox")
    shutil.copy(HERE / "init", root / "init")
    (root / "init").chmod(0o755)
    kernels.put_modules(variants, root / "lab/modules")
    lines = (f"{guest.qemu} {guest.name} {guest.uuid} {guest.cpu}\n" for guest in guests)
    (root / "lab/cells").write_text("".join(lines))
    disk = make_disk(root, folder / "disk")
    shutil.rmtree(root)
    return disk


def run_chain_host(folder: Path, disk: Path, kernels: Kernels, variant: str) -> Path:
    """Boot once with this variant of KVM and run every guest; the folder below `folder` with what the host showed of itself."""
    return boot(folder, disk, kernels.image, f"mitigations={MITIGATIONS} lab.variant={variant}")


def make_boot_sector(folder: Path) -> Path:
    """The nested guest, 512 bytes. Raises LabError."""
    assembled, sector = folder / "boot_sector.o", folder / "boot_sector"
    run("as", "--32", "-o", str(assembled), str(HERE / "boot_sector.s"))
    run("ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-o", str(sector), str(assembled))
    return sector
