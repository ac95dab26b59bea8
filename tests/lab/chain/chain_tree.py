"""The file tree of a lab host, as `exitguard audit --sysroot` reads one: what the host showed of itself, and the files on its disk.

Everything in it was observed but the libvirt definitions, which are supplied: libvirt is not in this lab. Each says what the -cpu argument
of its guest says, and stands both for the definition and for the run.
"""

import os
from pathlib import Path

from chain_guests import Guest
from emulated_host import Kernels, LabError

from exitguard.facts.libvirt_files import DEFINITIONS, RUNNING, SAVES

#: boot_sector.s
ROUNDS = 9
EXITS_PER_ROUND = 5000
#: What isa-debug-exit makes of the 0 that the guest writes: twice the value, plus one (hw/misc/debugexit.c).
_ENDED_BY_GUEST = 1
_EMULATOR = "usr/bin/qemu-system-x86_64"
_STATUS = "<domstatus state='running' reason='booted' pid='{pid}'>\n{domain}</domstatus>\n"


def complete(tree: Path, kernels: Kernels, variant: str, qemus: dict[str, Path], guests: tuple[Guest, ...]) -> None:
    """Add to `tree`, which holds what the host showed, what was on its disk, and libvirt's files. Raises LabError."""
    modules = tree / "lib/modules" / kernels.release / "kernel/arch/x86/kvm"
    modules.mkdir(parents=True)
    for name in ("kvm.ko", "kvm-amd.ko"):
        os.link(kernels.module(variant, name), modules / name)
    (tree / "boot").mkdir()
    os.link((kernels.folder / "vmlinuz").resolve(), tree / "boot" / f"vmlinuz-{kernels.release}")
    for name, root in qemus.items():
        program = tree / "qemu" / name / _EMULATOR
        program.parent.mkdir(parents=True)
        os.link(root / _EMULATOR, program)
    for folder in (DEFINITIONS, RUNNING, SAVES):
        (tree / folder.lstrip("/")).mkdir(parents=True)
    pids = _pids(tree, guests)
    for guest in guests:
        (tree / DEFINITIONS.lstrip("/") / f"{guest.name}.xml").write_text(guest.definition)
        status = _STATUS.format(pid=pids[guest.uuid], domain=guest.definition)
        (tree / RUNNING.lstrip("/") / f"{guest.name}.xml").write_text(status)


def ticks_of(tree: Path, guest: Guest) -> tuple[int, ...]:
    """What each round of the guest took, in TSC ticks. Raises LabError for a guest that did not come to its end."""
    told = {what: _read(tree / "lab" / f"{guest.name}.{what}") for what in ("ended", "said", "ticks")}
    rounds = tuple(int(line) for line in told["ticks"].split())
    if told["ended"] != str(_ENDED_BY_GUEST) or len(rounds) != ROUNDS:
        ended, said = (told[what] or "nothing" for what in ("ended", "said"))
        expected = f"expected {_ENDED_BY_GUEST} after {ROUNDS}"
        raise LabError(f"{guest.name}: QEMU ended with {ended} after {len(rounds)} rounds, {expected}. It said: {said}")
    return rounds


def _read(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.exists() else ""


def _pids(tree: Path, guests: tuple[Guest, ...]) -> dict[str, str]:
    """By -uuid, the process that ran the guest. Raises LabError where one is missing."""
    found = {}
    for file in (tree / "proc").glob("*/cmdline"):
        words = file.read_bytes().split(b"\x00")
        if b"-uuid" in words:
            found[words[words.index(b"-uuid") + 1].decode()] = file.parent.name
    missing = [guest.name for guest in guests if guest.uuid not in found]
    if missing:
        raise LabError(f"no process was seen of {', '.join(missing)}: its QEMU did not start, or ended at once")
    return found
