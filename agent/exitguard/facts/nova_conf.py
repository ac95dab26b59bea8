"""One option out of nova-compute's settings, and nothing else of them: these files hold passwords.

Read line by line as Nova reads them (oslo_config/iniparser.py and cfg.py; compared with oslo.config 9.0.0 and 10.7.0): sections in
brackets, `key = value` or `key: value`, one pair of quotes taken off, further lines of a value indented, comments only at the start of
a line, of a key that is given again the last value, of several files the last that has it. A section's name is compared in small
letters but for [DEFAULT]. A file in which any line is none of these is one that Nova refuses to start with, so nothing is said of it.

Python's own configparser is no help here: it passes [DEFAULT] on to every section, and its errors quote the line.
"""

from collections.abc import Iterator

from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.model.host import NovaOption
from exitguard.model.record import Observed, seen, unseen

_LIMIT_BYTES = 1 << 20
#: oslo_utils.strutils, TRUE_STRINGS and FALSE_STRINGS.
_BOOLEANS = frozenset(("1", "t", "true", "on", "y", "yes", "0", "f", "false", "off", "n", "no"))


class NovaConfError(ValueError):
    """A text that oslo.config does not take for settings; the message names the line by its number, and holds nothing of it."""


def read_nova_option(tree: HostTree, name: str, expected: str, files: tuple[str, ...]) -> Observed[NovaOption]:
    """What `files` say of the option `name` (`section.option`), the last that sets it; or why that cannot be told.

    One file that is there and cannot be read makes it unknown: it may be the one that counts. Of a value that is neither a boolean nor
    `expected`, nothing is kept but that there is one.
    """
    section, _, option = name.partition(".")
    texts = [(path, _read(tree, path)) for path in files]
    there = [(path, text) for path, text in texts if text is not None]
    if not there:
        return unseen(", ".join(files), "no such file: nova-compute is not installed here, or has its settings elsewhere")
    found = NovaOption(name=name, file=None, value=None)
    for path, text in there:
        if text.value is None:
            return unseen(path, text.reason or "cannot be read", unlock=text.unlock)
        try:
            value = parse(text.value, section, option)
        except NovaConfError as error:
            return unseen(path, str(error))
        if value is not None:
            harmless = value.lower() in _BOOLEANS or value == expected
            found = NovaOption(name=name, file=path, value=value if harmless else None)
    return seen(", ".join(path for path, _ in there), found)


def parse(text: str, section: str, option: str) -> str | None:
    """The text of one option, None where it is not set. Raises NovaConfError."""
    value = None
    for where, key, given in _assignments(text):
        if key == option and _same_section(where, section):
            value = given
    return value


def _read(tree: HostTree, path: str) -> Observed[str] | None:
    """The text of one file; None where there is none."""
    try:
        with tree.open(path) as file:
            content = file.read(_LIMIT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return unseen(path, why(error), unlock=unlock_for(error))
    if len(content) > _LIMIT_BYTES:
        return unseen(path, f"larger than {_LIMIT_BYTES} bytes, which is more than this file can rightly hold")
    try:
        return seen(path, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return unseen(path, f"expected text in UTF-8, found something else at byte {error.start}")


def _assignments(text: str) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of each assignment."""
    section = None
    pending: tuple[str, str, list[str]] | None = None
    # Nova iterates over an open file: only these three end a line, not every character that str.splitlines() knows.
    for number, full in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        line = full.rstrip()
        if line.startswith((" ", "\t")):
            if pending is None:
                raise NovaConfError(f"line {number} is indented and continues nothing: Nova would not read this file")
            pending[2].append(line.lstrip())
            continue
        if pending is not None:
            yield _complete(pending)
            pending = None
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            if not line.endswith("]") or line == "[]":
                raise NovaConfError(f"line {number} begins a section and does not end it: Nova would not read this file")
            section = line[1:-1]
            continue
        pending = _assignment(line, section, number)
    if pending is not None:
        yield _complete(pending)


def _assignment(line: str, section: str | None, number: int) -> tuple[str, str, list[str]]:
    ends = [position for position in (line.find("="), line.find(":")) if position >= 0]
    if not ends or not line[: min(ends)].strip():
        raise NovaConfError(f"line {number} is no section, no comment and no key with a value: Nova would not read this file")
    if section is None:
        raise NovaConfError(f"line {number} sets something outside any section: Nova would not read this file")
    value = line[min(ends) + 1 :].strip()
    if value and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return section, line[: min(ends)].strip(), [value]


def _complete(pending: tuple[str, str, list[str]]) -> tuple[str, str, str]:
    section, key, lines = pending
    return section, key, "\n".join(lines)


def _same_section(written: str, wanted: str) -> bool:
    return written == wanted if "DEFAULT" in (written, wanted) else written.lower() == wanted.lower()
