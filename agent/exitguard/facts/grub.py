"""What a GRUB 2 configuration means for the next boot: menus, submenus, the environment block, Boot Loader Specification entries.

Pure. The menu's rules are those of grub-core/normal/menu.c (get_entry_number: an index, else a title or id; a name that is not
there means the first entry); the default's are those of util/grub.d/00_header.in. Only what is written plainly is followed:
where an entry or the default depends on what only the boot evaluates, BootChoiceError says so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from exitguard.facts.versions import version_key

_MAX_DEPTH = 16
#: A comment, a separator of commands, or a word: quoted in either way, escaped, bare, or any of these glued together.
_TOKEN = re.compile(r"""[^\S\n]+|(?P<comment>\#[^\n]*)|(?P<end>[;\n])|(?P<word>(?:'[^']*'|"(?:[^"\\]|\\[\s\S])*"|\\[\s\S]|[^\s'"\\;])+)""")
_PIECE = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\[\s\S])*)"|\\([\s\S])|([^'"\\]+)""")
_INDEX = re.compile(r"[0-9]{1,9}")
_IMAGE = re.compile(r"(?:vmlinuz|vmlinux|bzImage|kernel)-(.+)")
_LINUX_COMMANDS = frozenset({"linux", "linux16", "linuxefi"})
_NEXT_ENTRY = "${next_entry}"
_SAVED_ENTRY = "${saved_entry}"


class BootChoiceError(Exception):
    """The configuration does not say plainly what boots next; the message says why, for the operator."""


@dataclass(frozen=True)
class MenuEntry:
    """One entry or submenu of grub.cfg. `images` are what its linux commands load: none for a submenu or another system."""

    title: str
    id: str | None
    conditional: bool
    images: tuple[str, ...] = ()
    #: None for an entry, the entries within for a submenu.
    submenu: tuple["MenuEntry", ...] | None = None


@dataclass(frozen=True)
class GrubConfig:
    """grub.cfg as far as it decides what boots next."""

    menu: tuple[MenuEntry, ...]
    #: What `default` is set to, in order, each with the conditions it stands under as one text.
    defaults: tuple[tuple[str, str], ...]
    #: How many entries stand before `blscfg` fills in the loader entries; None without that command.
    entries_before_bls: int | None


@dataclass(frozen=True)
class BlsEntry:
    """One loader/entries/*.conf; `id` is the file's name without the suffix."""

    id: str
    title: str | None
    linux: str | None


@dataclass
class _Block:
    """A block of grub.cfg that is still open: the words before its brace, and what it holds so far."""

    words: list[str]
    conditional: bool
    entries: list[MenuEntry] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


def parse_grubenv(text: str) -> dict[str, str]:
    """The variables of a GRUB environment block (`name=value` lines, `#` pads it; a backslash protects the next character)."""
    variables: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            variables[name] = re.sub(r"\\(.)", r"\1", value)
    return variables


def parse_bls_entry(file_name: str, text: str) -> BlsEntry:
    """An entry file of the Boot Loader Specification: lines of a key, white space and a value; the first of a key counts."""
    values: dict[str, str] = {}
    for line in text.split("\n"):
        words = line.split(maxsplit=1)
        if len(words) > 1 and not words[0].startswith("#"):
            values.setdefault(words[0], words[1].strip())
    return BlsEntry(id=file_name.removesuffix(".conf"), title=values.get("title"), linux=values.get("linux"))


def parse_grub_config(text: str) -> GrubConfig:
    """grub.cfg's menu and defaults. Raises BootChoiceError where its blocks or quotes do not close, or nest too deep."""
    root = _Block(words=[], conditional=False)
    blocks = [root]
    conditions: list[str] = []
    defaults: list[tuple[str, str]] = []
    entries_before_bls: int | None = None
    for words, opens in _commands(text):
        match words:
            case ["}"]:
                if len(blocks) == 1:
                    raise BootChoiceError("grub.cfg closes a block that was never opened")
                _close(blocks.pop(), blocks[-1])
            case _ if opens:
                if len(blocks) > _MAX_DEPTH:
                    raise BootChoiceError(f"grub.cfg nests blocks more than {_MAX_DEPTH} deep")
                # What stands in a function is in the menu only if the function is called: that counts as a condition too.
                plain = words[:1] in (["menuentry"], ["submenu"]) and not conditions and not blocks[-1].conditional
                blocks.append(_Block(words=words, conditional=not plain))
            case ["if" | "while" | "until" | "for", *condition]:
                conditions.append(" ".join(condition)[:1000])
            case ["fi" | "done", *_] if conditions:
                conditions.pop()
            case ["blscfg", *_] if entries_before_bls is None:
                entries_before_bls = len(root.entries)
            case [command, image, *_] if command in _LINUX_COMMANDS:
                blocks[-1].images.append(image)
            case ["set", assignment, *_] | [assignment] if assignment.startswith("default="):
                defaults.append((assignment.removeprefix("default="), " ".join(conditions)))
            case _:
                pass
    if len(blocks) != 1:
        raise BootChoiceError("grub.cfg ends within a block")
    return GrubConfig(menu=tuple(root.entries), defaults=tuple(defaults), entries_before_bls=entries_before_bls)


def next_menu_release(config: GrubConfig, environment: Mapping[str, str]) -> str:
    """The release that GRUB would start from grub.cfg's own menu. Raises BootChoiceError where that is not plain."""
    chosen = _chosen(config, environment)
    menu = config.menu
    if not menu:
        raise BootChoiceError("grub.cfg has no menu entry")
    while True:
        spec, chosen = _first_step(chosen)
        entry = _pick(menu, spec)
        if entry.submenu is None:
            return _release(entry.images, f"the entry {entry.title!r}")
        if not entry.submenu:
            raise BootChoiceError(f"the submenu {entry.title!r} is empty")
        menu = entry.submenu


def next_bls_release(config: GrubConfig, environment: Mapping[str, str], entries: Sequence[BlsEntry]) -> str:
    """The release of the loader entry that GRUB would start: the chosen, else the highest by version.

    Raises BootChoiceError where that is not plain.
    """
    if not entries:
        raise BootChoiceError("grub.cfg asks for loader entries (blscfg), and there are none")
    if config.entries_before_bls != 0:
        raise BootChoiceError("grub.cfg has entries of its own before the loader entries (blscfg)")
    chosen = _chosen(config, environment)
    ordered = sorted(entries, key=lambda entry: version_key(entry.id), reverse=True)
    index = int(chosen) if _INDEX.fullmatch(chosen) else 0
    if index >= len(ordered) or any(chosen in {entry.title, entry.id} for entry in config.menu):
        raise BootChoiceError(f"the default {chosen!r} is not one of the loader entries")
    entry = next((candidate for candidate in ordered if chosen in {candidate.id, candidate.title}), ordered[index])
    return _release((entry.linux,) if entry.linux else (), f"the loader entry {entry.id!r}")


def _commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """The commands of a script; the flag says that the command opens a block. A closing brace is a command of its own."""
    words: list[str] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise BootChoiceError("grub.cfg has a quote that does not close")
        at = token.end()
        word = token["word"]
        if word is None:
            ends = token["end"] is not None
        elif word in {"{", "}"}:
            if word == "{":
                yield words, True
            else:
                if words:
                    yield words, False
                yield ["}"], False
            words = []
            continue
        else:
            ends = not words and word in {"then", "else", "do"}  # a command follows these on the same line
            if not ends:
                words.append("".join(_unquoted(piece) for piece in _PIECE.finditer(word)))
        if ends and words:
            yield words, False
            words = []
    if words:
        yield words, False


def _unquoted(piece: re.Match[str]) -> str:
    single, double, escaped, bare = piece.groups()
    if double is not None:
        return re.sub(r'\\(["$\\])', r"\1", double)
    return single or escaped or bare or ""


def _close(block: _Block, parent: _Block) -> None:
    match block.words:
        case ["menuentry" | "submenu" as kind, title, *options]:
            entry_id = next((value for name, value in pairwise(options) if name in {"$menuentry_id_option", "--id"}), None)
            submenu = tuple(block.entries) if kind == "submenu" else None
            images = tuple(dict.fromkeys(block.images))
            parent.entries.append(MenuEntry(title=title, id=entry_id, conditional=block.conditional, images=images, submenu=submenu))
        case _:
            parent.entries.extend(block.entries)


def _chosen(config: GrubConfig, environment: Mapping[str, str]) -> str:
    """What `default` holds when the menu starts; empty means the first entry."""
    if environment.get("initrdfail") == "1":
        raise BootChoiceError("the last boot without an initrd failed (initrdfail), so GRUB takes the entry before it")
    one_shot = environment.get("next_entry", "")
    values: set[str] = set()
    for value, conditions in config.defaults:
        if value == _NEXT_ENTRY:
            if one_shot:
                return one_shot
        elif "boot_counter" not in conditions:
            values.add(value)
        elif environment.get("boot_counter"):
            raise BootChoiceError("the boot loader is counting boots (boot_counter) and may fall back to another entry")
    if len(values) > 1:
        raise BootChoiceError(f"grub.cfg sets the default in {len(values)} different ways")
    value = values.pop() if values else ""
    if value == _SAVED_ENTRY:
        return environment.get("saved_entry", "")
    if "$" in value:
        raise BootChoiceError(f"the default is {value!r}, which only the boot itself can evaluate")
    return value


def _first_step(chosen: str) -> tuple[str, str]:
    """`a>b>c` as `a` and `b>c`; `>>` stands for `>` itself."""
    at = 0
    while (at := chosen.find(">", at)) != -1:
        if chosen[at + 1 : at + 2] != ">":
            return chosen[:at].replace(">>", ">"), chosen[at + 1 :]
        at += 2
    return chosen.replace(">>", ">"), ""


def _pick(menu: tuple[MenuEntry, ...], spec: str) -> MenuEntry:
    """The entry that a title, an id or an index names; the first where nothing is named or the name is not there."""
    named = next((entry for entry in menu if spec and spec in {entry.title, entry.id}), None)
    if named is not None and not named.conditional:
        return named
    index = int(spec) if _INDEX.fullmatch(spec) else 0
    index = index if index < len(menu) else 0
    if named is not None or any(entry.conditional for entry in menu[: index + 1]):
        raise BootChoiceError("whether the chosen entry is in the menu depends on conditions that only the boot itself evaluates")
    return menu[index]


def _release(images: Sequence[str], what: str) -> str:
    if len(images) != 1:
        raise BootChoiceError(f"{what} loads {'no Linux kernel' if not images else 'one of several kernels'}")
    match = _IMAGE.fullmatch(images[0].rsplit("/", 1)[-1])
    if match is None:
        raise BootChoiceError(f"{what} loads {images[0]!r}, whose name holds no kernel release")
    return match[1]
