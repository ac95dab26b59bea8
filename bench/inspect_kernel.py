"""`exitguard kernel inspect` as whole processes, against objdump: what a person would read the same out of.

The modules are Debian's (tests/integration/debian_kernels.py fetches and keeps them). The peer disassembles the whole module, since
nothing less shows which functions there are; it answers no question by that.
"""

import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "integration"))

from debian_kernels import Unavailable, fetch
from measurement import Contest, Measurement, SkippedError

_SERIES = "6.12"
_MANY = 20
_DECIDED = (0, 2)


def _module_and_image(folder: Path) -> tuple[Path, Path]:
    if shutil.which("objdump") is None:
        raise SkippedError("needs objdump (Debian: binutils)")
    try:
        kernel = fetch(_SERIES)
    except Unavailable as error:
        raise SkippedError(f"needs one of Debian's kernels: {error}") from None
    module = folder / "kvm.ko"
    content = kernel.module.read_bytes()
    module.write_bytes(lzma.decompress(content) if kernel.module.suffix == ".xz" else content)
    return module, kernel.image


@contextmanager
def _prepare(*, with_base: bool, modules: int) -> Iterator[Contest]:
    program = Path(sys.executable).with_name("exitguard")
    if not program.exists():
        raise SkippedError(f"needs the command exitguard beside {sys.executable}: install the package there")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, image = _module_and_image(folder)
        files = [folder / f"copy-{index}" / "kvm.ko" for index in range(modules)]
        for file in files:
            file.parent.mkdir()
            shutil.copy(module, file)
        base = ["--btf-base", str(image)] if with_base else []
        command = [str(program), "kernel", "inspect", "--no-listing", *base, *map(str, files)]
        largest = _run(command) >> 10
        yield Contest(
            subject=lambda: _run(command),
            peer=lambda: [_run(["objdump", "--disassemble", str(file)]) for file in files],
            note=f"{module.stat().st_size >> 10} KiB each; the largest of the command's processes had {largest} MiB",
        )


def _run(command: list[str]) -> int:
    """Run it; the KiB of the largest of it and of the processes that it started itself."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in _DECIDED:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return usage.ru_maxrss


MEASUREMENTS = (
    Measurement(
        name="inspect-1",
        what="exitguard kernel inspect of one kvm.ko, by its code alone (goal: 0.5 s, 150 MiB)",
        peer="objdump --disassemble of the module",
        goal_ratio=4.0,
        pairs=15,
        prepare=partial(_prepare, with_base=False, modules=1),
    ),
    Measurement(
        name="inspect-btf",
        what="the same with the BTF of its vmlinuz, unpacked for it (goal: 3 s)",
        peer="objdump --disassemble of the module",
        goal_ratio=25.0,
        pairs=9,
        prepare=partial(_prepare, with_base=True, modules=1),
    ),
    Measurement(
        name="inspect-20",
        what=f"exitguard kernel inspect of {_MANY} modules in one call (goal: 5 s)",
        peer=f"objdump --disassemble of each of the {_MANY}",
        goal_ratio=2.2,
        pairs=5,
        prepare=partial(_prepare, with_base=False, modules=_MANY),
    ),
)
