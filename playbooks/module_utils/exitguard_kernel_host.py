# SPDX-License-Identifier: Apache-2.0
"""What a host has to be like for a kernel to be installed on it, and for one that runs to be called healthy.

Every `why_...` gives a reason in the operator's words, or None where nothing stands against it. Paths come in as arguments.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

_MIB = 1 << 20
#: The least that a line of fstab(5) has: device, mount point, type and options.
_FSTAB_FIELDS = 4
#: The variable's attributes come first, then its one byte (efivarfs, UEFI specification 3.3).
_ATTRIBUTES_BYTES = 4
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: Set by boot loaders that implement systemd's Boot Loader Interface.
_LOADER_INFO = "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_PE32_PLUS = 0x20B
_ACCEPTED_STATES = ("guarded", "equivalent", "not_affected")
#: Documentation/admin-guide/tainted-kernels.rst
_BAD_TAINTS = {4: "the processor reported a machine check", 7: "the kernel died (oops or BUG)"}


def why_no_space(path: str, free_mib: int) -> str | None:
    """Why a file system has too little room; None where it has enough."""
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize // _MIB
    if free >= free_mib:
        return None
    return f"{path} has {free} MiB free, expected at least {free_mib}: remove old kernels, or make it larger"


def why_boot_is_not_mounted(fstab: str, mounts: str) -> str | None:
    """Why /boot would take the kernel where the boot loader does not look: a file system of its own that is not mounted."""
    expected = {
        fields[1]
        for fields in (line.split() for line in fstab.splitlines())
        if len(fields) >= _FSTAB_FIELDS and not fields[0].startswith("#")
    }
    mounted = {fields[1] for fields in (line.split() for line in mounts.splitlines()) if len(fields) > 1}
    missing = sorted({"/boot", "/boot/efi"} & expected - mounted)
    if not missing:
        return None
    return f"{', '.join(missing)}: a file system of its own by /etc/fstab, and not mounted. Mount it: what is installed now would be hidden"


def parse_dkms(text: str) -> list[tuple[str, str | None, str]]:
    """(module, kernel or None, state) of each line of `dkms status`, in the spelling of 2.x (name, version) and 3.x (name/version)."""
    found = []
    for line in text.splitlines():
        match = re.match(r"^([^,/:]+)[,/]\s*([^,:]+)(?:,\s*([^,:]+),\s*[^,:]+)?:\s*(\w+)", line)
        if match is not None:
            found.append((f"{match.group(1).strip()}/{match.group(2).strip()}", match.group(3), match.group(4)))
    return found


def why_dkms(status: Sequence[tuple[str, str | None, str]], release: str, headers: str, pinned_names: Collection[str]) -> str | None:
    """Why DKMS modules would be missing after the boot; None where none is needed, or all of them can be built."""
    built = {module for module, kernel, state in status if kernel == release and state in ("installed", "built")}
    missing = sorted({module for module, _, _ in status} - built)
    if not missing or headers in pinned_names:
        return None
    return (
        f"DKMS modules have no build for {release}: {', '.join(missing)}. Expected {headers} among kernel_guard_packages, so that they are "
        "built with it; or remove those that nothing needs (dkms remove)"
    )


def secure_boot(firmware: Path) -> bool | None:
    """True, False, or None where it cannot be told. `firmware` is /sys/firmware/efi."""
    if not firmware.is_dir():
        return False  # started by a BIOS
    value = _variable(firmware, _SECURE_BOOT)
    return None if value is None else value == b"\x01"


def other_loader(firmware: Path) -> str | None:
    """What the boot loader calls itself where it is another than GRUB; None where it is GRUB, or does not say."""
    value = _variable(firmware, _LOADER_INFO)
    name = "" if value is None else value.decode("utf-16-le", errors="replace").rstrip("\0")
    return name if name and not name.upper().startswith("GRUB") else None


def _variable(firmware: Path, name: str) -> bytes | None:
    try:
        content = (firmware / "efivars" / name).read_bytes()
    except OSError:
        return None
    return content[_ATTRIBUTES_BYTES:] or None


def is_signed(image: Path) -> bool:
    """Whether a kernel image carries a signature for UEFI: an entry in the PE header's certificate table (PE/COFF, data directory 4)."""
    with image.open("rb") as file:
        head = file.read(4096)
    try:
        (header,) = struct.unpack_from("<I", head, 0x3C)
        if head[:2] != b"MZ" or head[header : header + 4] != b"PE\0\0":
            return False
        optional = header + 24
        (magic,) = struct.unpack_from("<H", head, optional)
        # In PE32+ the directories begin 112 bytes into the optional header; in PE32 96.
        directories = optional + (112 if magic == _PE32_PLUS else 96)
        address, size = struct.unpack_from("<II", head, directories + 4 * 8)
    except struct.error:
        return False
    return bool(address and size)


def why_not_guarded(answer: str, release: str) -> str | None:
    """Why a kernel that `exitguard kernel inspect --format json` looked into is not wanted; None where it has the guard, or needs none."""
    try:
        kernels = json.loads(answer)["kernels"]
        found = [(kernel["release"], kernel["state"], kernel["reason"]) for kernel in kernels]
    except (ValueError, KeyError, TypeError):
        return "exitguard kernel inspect gave no answer that can be read: expected JSON of exitguard 0.1 or newer"
    if not found:
        return "exitguard kernel inspect found no kernel in it"
    for seen_release, state, reason in found:
        if state not in _ACCEPTED_STATES:
            return f"kernel {seen_release or 'without a release'} is {state}: {reason}. Expected {' or '.join(_ACCEPTED_STATES)}"
        if seen_release != release:
            return f"it holds kernel {seen_release or 'without a release'}, expected {release} (kernel_guard_release)"
    return None


def describe(answer: str) -> str:
    """State and reason of the first kernel of an inspection that `why_not_guarded` had nothing against."""
    kernel = json.loads(answer)["kernels"][0]
    return f"{kernel['state']}: {kernel['reason']}"


def why_tainted(text: str) -> str | None:
    """Why /proc/sys/kernel/tainted speaks against a kernel; None where it does not."""
    try:
        bits = int(text)
    except ValueError:
        return f"/proc/sys/kernel/tainted holds {text.strip()[:40]!r}, expected a number"
    reasons = [reason for bit, reason in sorted(_BAD_TAINTS.items()) if bits >> bit & 1]
    return f"{' and '.join(reasons)} since it booted (/proc/sys/kernel/tainted is {bits}): see the kernel log" if reasons else None


def why_system_is_not_up(state: str, failed_units: Collection[str], accepted_units: Collection[str]) -> str | None:
    """Why systemd's own verdict speaks against the host; None where it is up, or degraded by accepted units alone."""
    if state == "running":
        return None
    if state == "degraded":
        others = sorted(set(failed_units) - set(accepted_units))
        if not others:
            return None
        return (
            f"systemd is degraded, failed units: {', '.join(others)}. Mend them, or name those that failed before this kernel too in "
            "kernel_guard_accepted_failed_units"
        )
    return f"systemctl is-system-running says {state or 'nothing'}, expected running: wait until the host is up"


def program_runner(module: Any) -> Callable[..., tuple[int, str, str]]:
    """`run(argv, seconds, environment, folder)` over a module's run_command: (exit code, stdout, stderr); 124 where it took too long."""

    def run(argv: list[str], seconds: int, environment: dict[str, str] | None = None, folder: str | None = None) -> tuple[int, str, str]:
        command = ["timeout", "--kill-after=10", str(seconds), *argv]
        code, out, err = module.run_command(command, environ_update={"LC_ALL": "C.UTF-8", **(environment or {})}, cwd=folder)
        return code, out, err

    return run


def step(outcome: str, reason: str) -> dict[str, Any]:
    """What exitguard collects of a host: one outcome. The way back is a boot entry, so nothing is kept for an undo."""
    return {"steps": [{"subject": "host", "outcome": outcome, "reason": reason, "undo": None}]}
