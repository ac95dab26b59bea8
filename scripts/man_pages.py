"""Writes a man page for every verb: `man_pages.py DIRECTORY`, which gets exitguard.1, exitguard-audit.1, exitguard-nova-audit.1 ...

Nothing in a page changes from one build to the next: the footer names the version instead of a date.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cli_reference import environment
from command_tree import EVERYWHERE, Choice, Verb, verbs

from exitguard import __version__
from exitguard.settings import SYSTEM_CONFIG, SYSTEM_STATE_DIR

_FILES = {
    str(SYSTEM_CONFIG): "The settings of the agent; `exitguard config show --effective` prints those that apply.",
    str(SYSTEM_STATE_DIR): "What the audits remember. It belongs to the user of the service.",
    "/usr/share/doc/exitguard": "The other documents, operations.md among them.",
}
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
_CODE = re.compile(r"`([^`]*)`")
#: What roff reads as something else than the character that stands there (groff_char(7), man(7)).
_CHARACTERS = {"\\": "\\(rs", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", '"': "\\(dq"}


def man_pages() -> dict[str, str]:
    """Every page by the name of its file."""
    tree = list(verbs())
    by_words = {verb.words: verb for verb in tree}
    return {f"{_page(verb.words)}.1": "\n".join(_lines(verb, by_words)) + "\n" for verb in tree}


def literal(text: str) -> str:
    """`text` on one line, as roff prints it unchanged: no request, no escape, ASCII alone."""
    escaped = "".join(
        _CHARACTERS.get(character) or (character if character.isascii() else f"\\[u{ord(character):04X}]")
        for character in " ".join(text.split())
    )
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def prose(text: str) -> str:
    """Text of a help: what stands in backquotes in bold; of a link its words."""
    pieces = _CODE.split(_LINK.sub(r"\1", text))
    # Outside of code, inside, outside ...; blanks at the seams count.
    set_in_type = [_bold(piece) if place % 2 else _keeping_blanks(piece) for place, piece in enumerate(pieces)]
    return "".join(set_in_type) or "\\&"


def _bold(text: str) -> str:
    return f"\\fB{literal(text)}\\fR"


def _keeping_blanks(text: str) -> str:
    before, after = " " * text.startswith(" "), " " * (text.endswith(" ") and bool(text.strip()))
    return f"{before}{literal(text)}{after}"


def _lines(verb: Verb, by_words: dict[tuple[str, ...], Verb]) -> Iterator[str]:
    page = _page(verb.words)
    yield f'.TH {literal(page.upper())} 1 "" "exitguard {literal(__version__)}" "exitguard manual"'
    # No word is broken, and lines end where they end: commands are to be copied.
    yield from (".nh", ".ad l", ".SH NAME", f"{literal(page)} \\- {prose(verb.summary)}")
    yield from (".SH SYNOPSIS", f"{_bold(verb.line)} {literal(verb.usage)}")
    yield ".SH DESCRIPTION"
    for place, paragraph in enumerate(verb.description):
        yield from ([".PP"] if place else [])
        yield prose(paragraph)
    if verb.verbs:
        yield ".SH COMMANDS"
        for words in verb.verbs:
            yield from (".TP", _bold(words[-1]), f"{prose(by_words[words].summary)}. See {_reference(words)}.")
    if verb.arguments:
        yield ".SH ARGUMENTS"
        for argument in verb.arguments:
            yield from (".TP", f"\\fI{literal(argument.usage)}\\fR", prose(argument.what))
    yield ".SH OPTIONS"
    for option in verb.options:
        yield from (".TP", _heading(option), prose(option.what + _marks(option)))
    yield from (".SH EXIT STATUS", prose(verb.exit_codes), ".PP", f"Of every verb: {literal(EVERYWHERE)}")
    if not verb.words:
        yield ".SH ENVIRONMENT"
        for name, what in environment().items():
            yield from (".TP", _bold(name), prose(f"{what[:1].upper()}{what[1:]}."))
        yield ".SH FILES"
        for name, what in _FILES.items():
            yield from (".TP", f"\\fI{literal(name)}\\fR", prose(what))
    yield from (".SH EXAMPLES", ".nf", *(literal(line) for line in verb.examples), ".fi")
    related = [words for words in by_words if words == verb.words[:-1] or words[:-1] == verb.words if words != verb.words]
    if related:
        yield from (".SH SEE ALSO", ",\n".join(_reference(words) for words in related))


def _heading(option: Choice) -> str:
    value = f" \\fI{literal(option.value)}\\fR" if option.value else ""
    return ", ".join(_bold(spelling) for spelling in option.spellings) + value


def _marks(option: Choice) -> str:
    default = f" Default: {option.default}." if option.default else ""
    return default + (f" Range: {option.allowed}." if option.allowed else "")


def _reference(words: tuple[str, ...]) -> str:
    return f"{_bold(_page(words))}(1)"


def _page(words: tuple[str, ...]) -> str:
    return "-".join(("exitguard", *words))


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: man_pages.py DIRECTORY", file=sys.stderr)
        return 64
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in man_pages().items():
        (directory / name).write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
