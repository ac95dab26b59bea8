"""A real KVM host without hardware virtualisation: Debian's cloud kernel on an AMD processor that QEMU emulates.

QEMU's TCG emulates SVM with nested paging, so KVM's own path for AMD runs in there, and its guests make real VM exits. By -icount one
emulated instruction is one tick of the TSC: what an exit takes is counted, not timed, and comes out the same on any machine.

The host has two disks and no network: the first is its root, whose /init is the only program that starts; onto the second it writes a tar
archive of what it has to tell.
"""

import lzma
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("qemu-system-x86_64", "mke2fs", "setpriv")
_DISK_BYTES = 2**30
_WAY_OUT_BYTES = 64 * 2**20
_MEMORY_MIB = 1024
_LOG_LINES = 40
#: What scripts/lab_kernels.sh writes when a variant is whole.
_BUILT = "patches.sha256"
#: What a host's init says last.
END = "lab: all is told"
#: KVM's modules are the variant's; these are Debian's own.
_DEBIANS_MODULES = ("virt/lib/irqbypass.ko",)
_VARIANTS_MODULES = ("kvm.ko", "kvm-amd.ko")


class LabError(Exception):
    """The lab could not be made or did not run to its end; the message holds what was said last."""


@dataclass(frozen=True)
class Kernels:
    """One lineage of scripts/lab_kernels.sh: `.local/lab-kernels/6.1`."""

    folder: Path

    @property
    def release(self) -> str:
        return self.folder.resolve().name

    @property
    def image(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def built_from(self) -> dict[str, str]:
        """The version of the source and of what it was compiled with, by name."""
        lines = (self.folder / "built-from").read_text().splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def module(self, variant: str, name: str) -> Path:
        return self.folder / variant / name

    def patches_sha256(self, variant: str) -> str:
        return (self.folder / variant / _BUILT).read_text().strip()

    def why_not(self, variants: tuple[str, ...]) -> str | None:
        """What is not built yet; None where everything is there."""
        missing = [variant for variant in variants if not (self.folder / variant / _BUILT).exists()]
        return f"{self.folder}: {', '.join(missing)} not built: run scripts/lab_kernels.sh {self.folder.name}" if missing else None

    def put_modules(self, variants: tuple[str, ...], target: Path) -> None:
        """What KVM takes, below `target`: Debian's own modules, and a folder for each variant."""
        debians = self.folder / "debian/lib/modules" / self.release / "kernel"
        for name in _DEBIANS_MODULES:
            put_module(debians / name, target)
        for variant in variants:
            (target / variant).mkdir()
            for name in _VARIANTS_MODULES:
                shutil.copy(self.module(variant, name), target / variant)


def put_module(debians: Path, target: Path) -> None:
    """A module of Debian's below `target`, unpacked where newer kernels have it compressed: a plain insmod reads no other."""
    packed = debians.with_name(debians.name + ".xz")
    if packed.exists():
        (target / debians.name).write_bytes(lzma.decompress(packed.read_bytes()))
    else:
        shutil.copy(debians, target)


def why_no_host() -> str | None:
    """What this machine lacks to run it; None where nothing is missing."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"missing: {', '.join(missing)}; apt-get install qemu-system-x86 e2fsprogs util-linux" if missing else None


def make_disk(root: Path, disk: Path) -> Path:
    """The host's first disk, `disk`, with what is below `root`. Raises LabError."""
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(root), str(disk))
    return disk


def boot(folder: Path, disk: Path, kernel: Path, arguments: str, *, limit_seconds: int = 600) -> Path:
    """Boot once, with `arguments` for kernel and init; the folder below `folder` with what the host told. Raises LabError."""
    way_out = folder / "way-out"
    with way_out.open("wb") as file:
        file.truncate(_WAY_OUT_BYTES)
    console = folder / "console.log"
    words = ["qemu-system-x86_64", "-accel", "tcg", "-icount", "shift=0,sleep=off", "-cpu", "EPYC,+svm,+npt", "-smp", "1"]
    words += ["-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{console}"]
    command_line = f"root=/dev/nvme0n1 rw init=/init console=ttyS0 quiet panic=-1 {arguments}"
    words += ["-kernel", str(kernel), "-append", command_line]
    words += ["-drive", f"if=none,id=disk,file={disk},format=raw,snapshot=on", "-drive", f"if=none,id=out,file={way_out},format=raw"]
    words += ["-device", "nvme,id=nvme,serial=lab", "-device", "nvme-ns,drive=disk,bus=nvme,nsid=1"]
    words += ["-device", "nvme-ns,drive=out,bus=nvme,nsid=2"]
    try:
        # The kernel ends QEMU with this process, however that ends.
        run("setpriv", "--pdeathsig", "KILL", "--", *words, limit_seconds=limit_seconds)
    except LabError as error:
        raise LabError(f"{error}\nThe host ({arguments}) said last:\n{_last_lines(console)}") from None
    if END not in console.read_text(errors="replace"):
        raise LabError(f"the host ({arguments}) did not come to its end. It said last:\n{_last_lines(console)}")
    told = folder / "host"
    shutil.rmtree(told, ignore_errors=True)
    with tarfile.open(way_out) as archive:
        archive.extractall(told, filter="tar")
    way_out.unlink()
    return told


def emulator() -> str:
    """The emulator in words, for whoever wants to run it again."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{version}, TCG, -icount shift=0, -cpu EPYC,+svm,+npt"


def run(*command: str, limit_seconds: int = 120) -> str:
    """What it printed. Raises LabError for any end but 0."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{command[0]} took longer than {limit_seconds} seconds") from None
    if result.returncode != 0:
        raise LabError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}")
    return result.stdout


def _last_lines(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:]) if path.exists() else "nothing"
