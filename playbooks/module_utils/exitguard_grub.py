# SPDX-License-Identifier: Apache-2.0
"""GRUB's menu and environment block, as far as booting one kernel once, and another by default, depends on them.

Parsing is pure; `read_boot_loader` alone reads files. What grub.cfg has to say is what grub-mkconfig writes (util/grub.d/00_header.in,
10_linux.in). Anything else is a GrubError: a boot entry that was guessed may leave a host at its boot prompt.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: grub-core/lib/envblk.c: the block's first line, and the size that GRUB itself writes (util/grub-editenv.c).
_SIGNATURE = "# GRUB Environment Block\n"
_BLOCK_BYTES = 1024
_NEXT_ENTRY = "${next_entry}"
_SAVED_ENTRY = "${saved_entry}"
_LINUX_COMMANDS = frozenset({"linux", "linux16", "linuxefi"})
_RECOVERY_WORDS = frozenset({"single", "rescue", "emergency", "recovery", "systemd.unit=rescue.target", "systemd.unit=emergency.target"})
#: Debian's and Ubuntu's folder below /boot, then that of EL, Fedora and SUSE; the names of the tools begin alike.
_FOLDERS = ("grub", "grub2")
#: File systems that GRUB reads and does not write (Ubuntu's 00_header has this list), so that it cannot forget a one-shot entry.
_READ_ONLY_FILE_SYSTEMS = frozenset({"btrfs", "cpiofs", "newc", "odc", "romfs", "squash4", "tarfs", "zfs"})


class GrubError(Exception):
    """The boot loader's files are not those that a one-shot boot takes; the message says which, and what to do."""


@dataclass(frozen=True)
class Entry:
    """One menu entry that loads Linux. `spec` is what grub-reboot and grub-set-default take."""

    spec: str
    #: Of the entry and of the submenus around it, outermost first: id and title. GRUB takes either.
    names: tuple[tuple[str, str], ...]
    release: str
    #: Whether the entry is named after its release, and so still loads the same kernel when another one is installed.
    stable: bool
    recovery: bool


@dataclass(frozen=True)
class BootLoader:
    """GRUB of one host."""

    folder: str
    #: `grub` or `grub2`: what the names of its tools begin with.
    prefix: str
    config: str
    environment: dict[str, str]
    entries: tuple[Entry, ...]

    @property
    def saved(self) -> str:
        """What `saved_entry` holds; empty where it holds nothing."""
        return self.environment.get("saved_entry", "")

    @property
    def once(self) -> str:
        """What `next_entry` holds; empty where no one-shot boot is asked for."""
        return self.environment.get("next_entry", "")

    def release_of(self, spec: str) -> str | None:
        """The release that an entry loads now and after other kernels come, or None where the name says no such thing."""
        pieces = spec.split(">")
        for entry in self.entries:
            if len(pieces) == len(entry.names) and all(piece and piece in names for piece, names in zip(pieces, entry.names)):  # noqa: B905 - Python 3.10's
                return entry.release if _is_named_after(pieces[-1], entry.release) else None
        return None

    def entry_for(self, release: str) -> Entry:
        """The entry of a release. Raises GrubError where none is named after it."""
        for entry in self.entries:
            # By its own spec: of two entries that share a name GRUB takes the first.
            if entry.release == release and entry.stable and not entry.recovery and self.release_of(entry.spec) == release:
                return entry
        raise GrubError(
            f"{self.folder}/grub.cfg: expected a menu entry that loads vmlinuz-{release} and is named after it; "
            f"found {', '.join(sorted({entry.release for entry in self.entries})) or 'no kernel'}. "
            "Run update-grub, and look whether its menu is GRUB's own"
        )


@dataclass
class _Open:
    """A menu entry or submenu whose brace has not closed yet."""

    kind: str
    names: tuple[str, str]
    images: list[str] = field(default_factory=list)
    words: set[str] = field(default_factory=set)


def parse_environment(block: str) -> dict[str, str]:
    """The variables of an environment block. Raises GrubError where it is none that GRUB itself would write to."""
    if not block.startswith(_SIGNATURE) or len(block) != _BLOCK_BYTES:
        raise GrubError(
            f"expected an environment block of {_BLOCK_BYTES} bytes that grub-editenv made; found {len(block)} bytes of another kind"
        )
    variables = {}
    for line in block.split("\n"):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            variables[name] = re.sub(r"\\(.)", r"\1", value)
    return variables


def check_defaults(config: str) -> None:
    """Nothing, where grub.cfg boots `next_entry` once and else `saved_entry`. Raises GrubError where it does not."""
    found = re.findall(r"^\s*set default=(.*?)\s*$", config, re.MULTILINE)
    values = [value.strip().strip("\"'") for value in found]
    what_to_do = "Set GRUB_DEFAULT=saved in /etc/default/grub and run update-grub (EL9: grub2-mkconfig -o /boot/grub2/grub.cfg)"
    if _NEXT_ENTRY not in values or "save_env next_entry" not in config:
        raise GrubError(f"it does not boot next_entry and forget it, so one boot alone cannot be asked for. {what_to_do}")
    # EL counts boots, and takes the entry after the default one after failed ones; only where boot_counter is set.
    others = [value for value in values if value != _NEXT_ENTRY and not ("boot_counter" in config and value == "1")]
    if set(others) != {_SAVED_ENTRY}:
        raise GrubError(
            f"its default is {' or '.join(sorted(set(others))) or 'not set'}, not saved_entry, so another kernel becomes the default as "
            f"soon as it is installed. {what_to_do}"
        )


def parse_menu(config: str) -> tuple[Entry, ...]:
    """The entries of grub.cfg that load Linux, in order. Raises GrubError where its blocks do not close."""
    entries: list[Entry] = []
    blocks: list[_Open] = []
    for number, line in enumerate(config.split("\n"), start=1):
        text = line.strip()
        if text == "}":
            if not blocks:
                raise GrubError(f"line {number} closes a block that was never opened")
            closed = blocks.pop()
            if closed.kind == "menuentry":
                entries.extend(_entries_of(closed, [block for block in blocks if block.kind == "submenu"]))
        elif text.startswith(("menuentry ", "submenu ", "function ")) and text.endswith("{"):
            blocks.append(_open(text, number))
        elif blocks and text.split(None, 1)[:1] and text.split(None, 1)[0] in _LINUX_COMMANDS:
            words = text.split()
            blocks[-1].images.append(words[1] if len(words) > 1 else "")
            blocks[-1].words.update(words[2:])
    if blocks:
        raise GrubError("it ends within a menu entry")
    # What GRUB does with a name that two entries share is to take the first.
    first: dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry.spec, entry)
    return tuple(first.values())


def _open(text: str, number: int) -> _Open:
    try:
        words = shlex.split(text[:-1])
    except ValueError as error:
        raise GrubError(f"line {number}: {error}") from None
    if words[0] == "function":
        return _Open("function", ("", ""))
    identifiers = [words[at + 1] for at in range(1, len(words) - 1) if words[at] in ("$menuentry_id_option", "--id")]
    title = words[1] if len(words) > 1 else ""
    return _Open(words[0], (identifiers[0] if identifiers else "", title))


def _entries_of(block: _Open, parents: list[_Open]) -> list[Entry]:
    """The entry of a closed block: none where it loads no kernel, or one that its name does not tell."""
    releases = {_release(image) for image in block.images}
    release = releases.pop() if len(releases) == 1 else None
    if release is None:
        return []
    # Every level by its id, else by its title.
    names = (*(parent.names for parent in parents), block.names)
    pieces = [identifier or title for identifier, title in names]
    identifier, title = block.names
    recovery = bool(block.words & _RECOVERY_WORDS) or "recovery" in (identifier + title).lower()
    # A `>` within a name would have to be doubled, and next to another one it says two things (grub-core/normal/menu.c).
    stable = _is_named_after(pieces[-1], release) and not any(">" in piece for piece in pieces)
    return [Entry(">".join(pieces), names, release, stable, recovery)]


def _is_named_after(name: str, release: str) -> bool:
    """Whether a release stands in a name as a whole word: 6.1.0-5 is not 6.1.0-56."""
    return re.search(rf"(?<![0-9A-Za-z.]){re.escape(release)}(?![0-9A-Za-z.+~])", name) is not None


def parse_loader_entry(name: str, text: str) -> Entry | None:
    """The entry of one loader/entries/*.conf (Boot Loader Specification); None where it loads no kernel that its name tells."""
    values: dict[str, str] = {}
    for line in text.split("\n"):
        words = line.split(None, 1)
        if len(words) > 1 and not words[0].startswith("#"):
            values.setdefault(words[0], words[1].strip())
    release = _release(values.get("linux", ""))
    if release is None:
        return None
    identifier = name[: -len(".conf")]
    recovery = bool(set(values.get("options", "").split()) & _RECOVERY_WORDS) or "-rescue" in identifier
    names = ((identifier, values.get("title", "")),)
    return Entry(identifier, names, release, identifier.endswith("-" + release), recovery)


def _release(image: str) -> str | None:
    match = re.match(r"^(?:vmlinuz|vmlinux)-(.+)$", image.rsplit("/", 1)[-1])
    return match.group(1) if match else None


def configured_default(files: Iterable[str]) -> str | None:
    """What GRUB_DEFAULT is set to by the texts of /etc/default/grub and its drop-ins, in the order in which they are read."""
    found = None
    for text in files:
        for value in re.findall(r"^\s*(?:export\s+)?GRUB_DEFAULT=(.*?)\s*$", text, re.MULTILINE):
            found = value.split("#", 1)[0].strip().strip("\"'")
    return found


def read_boot_loader(root: Path = Path("/")) -> BootLoader:
    """GRUB of the host whose files are below `root`. Raises GrubError where a one-shot boot cannot be asked for plainly."""
    boot = root / "boot"
    for name in _FOLDERS:
        path = boot / name / "grub.cfg"
        if path.is_file():
            return _read(root, boot / name, _text(path))
    raise GrubError(
        f"{boot}: expected grub/grub.cfg or grub2/grub.cfg, found neither. Only GRUB 2 can be asked for one boot; boot the kernel by hand"
    )


def _read(root: Path, folder: Path, config: str) -> BootLoader:
    block, prefix = folder / "grubenv", folder.name
    if not block.is_file():
        raise GrubError(f"{block}: expected GRUB's environment block, found none. Make it: {prefix}-editenv {block} create")
    try:
        environment = parse_environment(_text(block))
    except GrubError as error:
        raise GrubError(f"{block}: {error}. Make it anew: {prefix}-editenv {block} create") from None
    try:
        check_defaults(config)
        entries = parse_menu(config)
    except GrubError as error:
        raise GrubError(f"{folder}/grub.cfg: {error}") from None
    custom = folder / "custom.cfg"
    if custom.is_file() and re.search(r"\bdefault=", _text(custom)):
        raise GrubError(f"{custom}: sets the default entry by itself, expected it to leave that to grub.cfg. Take the line out")
    bls = re.search(r"^\s*blscfg\s*$", config, re.MULTILINE) is not None
    if bls:
        entries = _loader_entries(root / "boot/loader/entries")
    else:
        _check_configured(root / "etc/default")
    return BootLoader(str(folder), prefix, config, environment, entries)


def _check_configured(folder: Path) -> None:
    """Raises GrubError where the next update-grub, which every kernel package runs, would write another default than grub.cfg has."""
    names = [folder / "grub", *sorted((folder / "grub.d").glob("*.cfg"))]
    default = configured_default([_text(name) for name in names if name.is_file()])
    if default != "saved":
        raise GrubError(
            f"{folder}/grub: GRUB_DEFAULT is {default or 'not set'}, expected saved: grub.cfg is written anew with every kernel, and the "
            "new one would become the default. Set GRUB_DEFAULT=saved and run update-grub"
        )


def _loader_entries(folder: Path) -> tuple[Entry, ...]:
    entries = (parse_loader_entry(path.name, _text(path)) for path in sorted(folder.glob("*.conf")))
    return tuple(entry for entry in entries if entry is not None)


def check_undisturbed(loader: BootLoader) -> None:
    """Nothing, where no boot is asked for or counted by somebody else. Raises GrubError."""
    for name in ("prev_saved_entry", "initrdfail", "boot_counter"):
        if loader.environment.get(name):
            raise GrubError(
                f"{loader.folder}/grubenv: {name} is {loader.environment[name]!r}, so GRUB may boot another entry than the saved one. "
                f"Expected it unset: {loader.prefix}-editenv {loader.folder}/grubenv unset {name}"
            )


def why_not_written(file_system: str, abstraction: str) -> str | None:
    """Why GRUB itself could not write its environment block there, and so would boot a one-shot entry for ever; None where it can."""
    if file_system in _READ_ONLY_FILE_SYSTEMS:
        return f"it lies on {file_system}, which GRUB reads and cannot write"
    if abstraction:
        return f"it lies on {abstraction}, to which GRUB cannot write"
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise GrubError(f"{path}: cannot be read: {error.strerror}") from None
