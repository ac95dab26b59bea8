"""A real KVM host for the chain lab, without hardware virtualisation: Debian's cloud kernel on an AMD processor that QEMU emulates.

QEMU's TCG emulates SVM with nested paging, so KVM's own path for AMD runs in there, and its guests make real VM exits. By -icount one
emulated instruction is one tick of the TSC: what an exit takes is counted, not timed, and comes out the same on any machine.
"""

import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from chain_guests import Guest

HERE = Path(__file__).parent
_PROGRAMS = ("qemu-system-x86_64", "mke2fs", "as", "ld", "setpriv")
_DISK_BYTES = 2**30
_WAY_OUT_BYTES = 64 * 2**20
_MEMORY_MIB = 1024
_LIMIT_SECONDS = 600
_LOG_LINES = 40
#: What scripts/lab_kernels.sh writes when a variant is whole.
_BUILT = "patches.sha256"
#: What init says last.
_END = "lab: all is told"
#: KVM's modules are the variant's; these are Debian's own.
_DEBIANS_MODULES = ("virt/lib/irqbypass.ko",)
_VARIANTS_MODULES = ("kvm.ko", "kvm-amd.ko")
_FOLDERS = ("bin", "dev", "proc", "sys", "seen", "lab/modules", "qemu")


class LabError(Exception):
    """The lab could not be made or did not run to its end; the message holds what was said last."""


@dataclass(frozen=True)
class Kernels:
    """One lineage of scripts/lab_kernels.sh: `.local/lab-kernels/6.1`."""

    folder: Path

    @property
    def release(self) -> str:
        return self.folder.resolve().name

    def module(self, variant: str, name: str) -> Path:
        return self.folder / variant / name

    def patches_sha256(self, variant: str) -> str:
        return (self.folder / variant / _BUILT).read_text().strip()

    def why_not(self, variants: tuple[str, ...]) -> str | None:
        """What is not built yet; None where everything is there."""
        missing = [variant for variant in variants if not (self.folder / variant / _BUILT).exists()]
        return f"{self.folder}: {', '.join(missing)} not built: run scripts/lab_kernels.sh 6.1" if missing else None


def why_no_host() -> str | None:
    """What this machine lacks to run it; None where nothing is missing."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"missing: {', '.join(missing)}; apt-get install qemu-system-x86 e2fsprogs binutils util-linux" if missing else None


def make_disk(folder: Path, kernels: Kernels, variants: tuple[str, ...], qemus: dict[str, Path], guests: tuple[Guest, ...]) -> Path:
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
    modules = kernels.folder / "debian/lib/modules" / kernels.release / "kernel"
    for name in _DEBIANS_MODULES:
        shutil.copy(modules / name, root / "lab/modules")
    for variant in variants:
        (root / "lab/modules" / variant).mkdir()
        for name in _VARIANTS_MODULES:
            shutil.copy(kernels.module(variant, name), root / "lab/modules" / variant)
    lines = (f"{guest.qemu} {guest.name} {guest.uuid} {guest.cpu}\n" for guest in guests)
    (root / "lab/cells").write_text("".join(lines))
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(root), str(disk))
    shutil.rmtree(root)
    return disk


def run_host(folder: Path, disk: Path, kernels: Kernels, variant: str) -> Path:
    """Boot once with this variant of KVM and run every guest; the folder below `folder` with what the host showed of itself."""
    way_out = folder / "way-out"
    with way_out.open("wb") as file:
        file.truncate(_WAY_OUT_BYTES)
    console = folder / "console.log"
    words = ["qemu-system-x86_64", "-accel", "tcg", "-icount", "shift=0,sleep=off", "-cpu", "EPYC,+svm,+npt", "-smp", "1"]
    words += ["-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{console}"]
    command_line = f"root=/dev/nvme0n1 rw init=/init console=ttyS0 quiet panic=-1 mitigations=off lab.variant={variant}"
    words += ["-kernel", str(kernels.folder / "vmlinuz"), "-append", command_line]
    words += ["-drive", f"if=none,id=disk,file={disk},format=raw,snapshot=on", "-drive", f"if=none,id=out,file={way_out},format=raw"]
    words += ["-device", "nvme,id=nvme,serial=lab", "-device", "nvme-ns,drive=disk,bus=nvme,nsid=1"]
    words += ["-device", "nvme-ns,drive=out,bus=nvme,nsid=2"]
    try:
        # The kernel ends QEMU with this process, however that ends.
        _run("setpriv", "--pdeathsig", "KILL", "--", *words, limit_seconds=_LIMIT_SECONDS)
    except LabError as error:
        raise LabError(f"{error}\nThe host with KVM's variant {variant} said last:\n{_last_lines(console)}") from None
    if _END not in console.read_text(errors="replace"):
        raise LabError(f"the host with KVM's variant {variant} did not come to its end. It said last:\n{_last_lines(console)}")
    seen = folder / "host"
    shutil.rmtree(seen, ignore_errors=True)
    with tarfile.open(way_out) as archive:
        archive.extractall(seen, filter="tar")
    way_out.unlink()
    return seen


def make_boot_sector(folder: Path) -> Path:
    """The nested guest, 512 bytes. Raises LabError."""
    assembled, sector = folder / "boot_sector.o", folder / "boot_sector"
    _run("as", "--32", "-o", str(assembled), str(HERE / "boot_sector.s"))
    _run("ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-o", str(sector), str(assembled))
    return sector


def _last_lines(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:]) if path.exists() else "nothing"


def _run(*command: str, limit_seconds: int = 120) -> None:
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{command[0]} took longer than {limit_seconds} seconds") from None
    if result.returncode != 0:
        raise LabError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}")
