"""The kernels that are installed, and the one that the boot loader would start next.

Boot loaders that are understood: GRUB 2 with its own menu (Debian, Ubuntu, SUSE) and GRUB 2 with Boot Loader Specification
entries (EL 9, Fedora: the command `blscfg`). For every other, and wherever grub.cfg decides by something that only the boot
itself knows, the answer is a reason and not a guess. What a menu means is in facts/grub.py.
"""

import re

from exitguard.facts.grub import (
    BlsEntry,
    BootChoiceError,
    next_bls_release,
    next_menu_release,
    parse_bls_entry,
    parse_grub_config,
    parse_grubenv,
)
from exitguard.facts.tree import HostTree, one_line, unseen_like
from exitguard.facts.versions import version_key
from exitguard.model.record import Observed, seen, unseen

#: What `uname -r` may look like; __NEW_UTS_LEN in <linux/utsname.h> bounds it at 64. It becomes part of paths and arguments here.
RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~^:-]{0,63}")
_MAX_KERNELS = 64
_MAX_BLS_ENTRIES = 256
_MODULES = "/lib/modules"
_ENTRIES = "/boot/loader/entries"
#: Debian's and Ubuntu's place, then Fedora's, EL's and SUSE's.
_GRUB_FOLDERS = ("/boot/grub", "/boot/grub2")


def read_installed(tree: HostTree) -> Observed[tuple[str, ...]]:
    """The releases of the kernels that could be booted, oldest first: those with modules and with a kernel image."""
    names = tree.names(_MODULES)
    if names.value is None:
        return unseen_like(names)
    releases = [name for name in names.value if RELEASE.fullmatch(name)]
    if len(releases) > _MAX_KERNELS:
        return unseen(_MODULES, f"holds {len(releases)} folders, expected at most {_MAX_KERNELS} kernels")
    with_image = [release for release in releases if any(tree.exists(path) for path in image_paths(release))]
    return seen(_MODULES, tuple(sorted(with_image, key=version_key)))


def image_paths(release: str) -> tuple[str, ...]:
    """Where distributions put the image of a kernel."""
    return (f"/boot/vmlinuz-{release}", f"{_MODULES}/{release}/vmlinuz")


def read_boots_next(tree: HostTree) -> Observed[str]:
    """The release that the boot loader would start next, or why that cannot be told."""
    for folder in _GRUB_FOLDERS:
        config = tree.read_text(f"{folder}/grub.cfg", limit_bytes=4 << 20)
        if config.value is not None:
            return _from_grub(tree, folder, config.value)
        if tree.exists(f"{folder}/grub.cfg") or config.unlock is not None:
            return unseen_like(config)
    if tree.exists("/boot/loader/loader.conf") or tree.exists("/boot/efi/loader/loader.conf"):
        return unseen("/boot/loader", "the boot loader is systemd-boot, whose choice may also stand in EFI variables: this is not read")
    return unseen("/boot", "no boot loader configuration was found: looked for grub/grub.cfg, grub2/grub.cfg and loader/loader.conf")


def _from_grub(tree: HostTree, folder: str, config: str) -> Observed[str]:
    source = f"{folder}/grub.cfg"
    block = tree.read_text(f"{folder}/grubenv")
    if block.value is None and (tree.exists(f"{folder}/grubenv") or block.unlock is not None):
        return unseen_like(block)
    environment = parse_grubenv(block.value or "")
    custom = tree.read_text(f"{folder}/custom.cfg")
    if re.search(r"\b(set\s+)?default=", custom.value or ""):
        return unseen(f"{folder}/custom.cfg", "sets the default entry by itself, which is not followed here")
    try:
        parsed = parse_grub_config(config)
        if parsed.entries_before_bls is None:
            return _release(source, next_menu_release(parsed, environment))
        entries = _read_bls_entries(tree)
        if entries.value is None:
            return unseen_like(entries)
        return _release(_ENTRIES, next_bls_release(parsed, environment, entries.value))
    except BootChoiceError as error:
        return unseen(source, one_line(str(error), limit_characters=300))


def _read_bls_entries(tree: HostTree) -> Observed[tuple[BlsEntry, ...]]:
    names = tree.names(_ENTRIES)
    if names.value is None:
        return unseen_like(names)
    files = [name for name in names.value if name.endswith(".conf")]
    if len(files) > _MAX_BLS_ENTRIES:
        return unseen(_ENTRIES, f"holds {len(files)} entries, expected at most {_MAX_BLS_ENTRIES}")
    entries: list[BlsEntry] = []
    for name in files:
        text = tree.read_text(f"{_ENTRIES}/{name}", limit_bytes=64 << 10)
        if text.value is None:
            return unseen_like(text)
        entries.append(parse_bls_entry(name, text.value))
    return seen(_ENTRIES, tuple(entries))


def _release(source: str, release: str) -> Observed[str]:
    if not RELEASE.fullmatch(release):
        return unseen(source, "the chosen entry's linux line names no kernel release")
    return seen(source, release)
