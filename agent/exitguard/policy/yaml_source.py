"""YAML text as plain data, with the line of every value, so that a fault can be shown where it stands.

A small and unsurprising part of YAML: one document, block or flow, without anchors, aliases, tags and repeated keys.
Of unquoted text only `true`, `false`, `null` (or nothing) and decimal integers mean something else than what is written:
YAML 1.1 reads `off` as false, 6.10 as 6.1 and 2026-01-31 as a date, which no policy about `pmu: off` survives.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exitguard.policy.problem import MAX_PROBLEMS, Problem, ProblemsError, bounded_message, bounded_problems, path_text

if TYPE_CHECKING:
    from yaml.events import Event

LIMIT_BYTES = 1 << 20
LIMIT_DEPTH = 32
LIMIT_VALUES = 100_000
#: Everything but YAML 1.1's c-printable (section 5.1).
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_LARGEST_INTEGER_DIGITS = 15  # below 2^53, so that every reader of the JSON form agrees
_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None, "": None}

YamlValue = str | int | bool | None | list["YamlValue"] | dict[str, "YamlValue"]
YamlPath = tuple[str | int, ...]


class SourceError(ProblemsError):
    """A file that cannot be read, or that is not YAML as this module reads it."""


@dataclass(frozen=True)
class YamlSource:
    """The data of one file. `lines` has the line, from 1, of every value by its path: that of its key, or of its list item."""

    file: str
    data: YamlValue
    lines: Mapping[YamlPath, int]

    def nearest(self, path: YamlPath) -> YamlPath:
        """The longest beginning of `path` that the file has."""
        while path not in self.lines and path:
            path = path[:-1]
        return path

    def problem(self, path: YamlPath, message: str) -> Problem:
        """A problem of the value at `path`; where the file has no such value, at the line of what should hold it."""
        return Problem(file=self.file, line=self.lines.get(self.nearest(path)), path=path_text(path), message=bounded_message(message))


@dataclass
class _Open:
    """A list or mapping whose end has not come yet; `key` is the mapping's key that waits for its value."""

    path: YamlPath
    value: list[YamlValue] | dict[str, YamlValue]
    key: str | None = None
    key_line: int = 0
    #: True where the key is a repeated one: its value is read, and thrown away.
    discard: bool = False


@dataclass
class _Reading:
    """What has been read so far of one document."""

    file: str
    lines: dict[YamlPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    open: list[_Open] = field(default_factory=list)
    root: YamlValue = None
    values: int = 0

    def report(self, line: int, path: YamlPath, message: str) -> None:
        self.problems.append(Problem(file=self.file, line=line, path=path_text(path), message=bounded_message(message)))

    def stop(self, line: int | None, path: YamlPath, message: str) -> SourceError:
        """The error for a fault after which nothing more can be understood."""
        last = Problem(file=self.file, line=line, path=path_text(path), message=bounded_message(message))
        return SourceError(bounded_problems([*self.problems, last]))


def parse_yaml(text: str, file: str) -> YamlSource:
    """The data of one YAML document; `file` is its name in problems. An empty document is null.

    Raises SourceError with every problem found, up to the first that hides the rest.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LIMIT_BYTES:
        problem = Problem(file=file, line=None, path="", message=f"expected at most {LIMIT_BYTES} bytes, found more")
        raise SourceError((problem,))
    reading = _Reading(file)
    documents = 0
    for event in _events(text, reading):
        if type(event).__name__ == "DocumentStartEvent":
            documents += 1
            if documents > 1:
                raise reading.stop(_line(event), (), "expected one YAML document, found the start of a second ('---')")
        _take(event, reading)
        if len(reading.problems) > MAX_PROBLEMS:
            break
    if reading.problems:
        raise SourceError(bounded_problems(reading.problems))
    reading.lines.setdefault((), 1)
    return YamlSource(file, reading.root, reading.lines)


@dataclass(frozen=True)
class Piece:
    """A part of a text: a scalar, or the beginning or end of a list or mapping. Places are in characters from the text's beginning."""

    start: int
    end: int
    #: From the beginning of its line.
    column: int
    #: How many levels deeper it is after it: 1, 0 or -1.
    step: int
    #: Whether a list or mapping that begins here is one in brackets.
    flow: bool = False
    #: Of a scalar; empty for all else.
    value: str = ""


def yaml_pieces(text: str, file: str) -> Iterator[Piece]:
    """What `parse_yaml` reads, piece by piece, for who changes a part of a text. Raises SourceError."""
    for event in _events(text, _Reading(file)):
        name = type(event).__name__
        if name.startswith(("Stream", "Document")):
            continue
        start, end = event.start_mark, event.end_mark
        yield Piece(
            start=start.index,  # type: ignore[union-attr]  # a parser's events have their marks
            end=end.index,  # type: ignore[union-attr]
            column=start.column,  # type: ignore[union-attr]
            step=1 if name.endswith("StartEvent") else -1 if name.endswith("EndEvent") else 0,
            flow=bool(getattr(event, "flow_style", False)),
            value=getattr(event, "value", ""),
        )


def _events(text: str, reading: _Reading) -> "Iterator[Event]":
    """PyYAML's events: libyaml's where it was built with it. Neither recurses, and neither builds objects."""
    import yaml

    unprintable = _UNPRINTABLE.search(text)
    if unprintable is not None:
        raise reading.stop(
            text.count("\n", 0, unprintable.start()) + 1,
            (),
            f"not YAML: expected printable text, found the character U+{ord(unprintable.group()):04X}",
        )
    try:
        yield from yaml.parse(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # The end of a text without a line end counts as the line after it.
        line = None if mark is None else min(mark.line, text.count("\n")) + 1
        begun = f" {error.context}" if error.context else ""
        if begun and error.context_mark is not None:
            begun += f" that begins in line {error.context_mark.line + 1}"
        raise reading.stop(line, (), f"not YAML: {error.problem}{begun}") from None


def _line(event: "Event") -> int:
    line: int = event.start_mark.line  # type: ignore[union-attr]  # a parser's events have their marks
    return line + 1


def _take(event: "Event", reading: _Reading) -> None:
    """One event's part in the document. Events are told apart by name, so that yaml stays out of the imports."""
    match type(event).__name__:
        case "ScalarEvent":
            _take_scalar(event, reading)
        case "SequenceStartEvent":
            _open(event, reading, [])
        case "MappingStartEvent":
            _open(event, reading, {})
        case "SequenceEndEvent" | "MappingEndEvent":
            reading.open.pop()
        case "AliasEvent":
            _refuse_key(event, reading, "an alias ('*')")
            path = _place(reading, _line(event), None)
            reading.report(_line(event), path, "expected the value itself, found an alias ('*'): write the value out")
        case _:
            pass  # the starts and ends of the stream and its documents


def _take_scalar(event: "Event", reading: _Reading) -> None:
    text: str = event.value  # type: ignore[attr-defined]
    if reading.open and isinstance(reading.open[-1].value, dict) and reading.open[-1].key is None:
        _take_key(event, text, reading)
        return
    line = _line(event)
    plain: bool = event.style in {None, ""}  # type: ignore[attr-defined]
    value: YamlValue = text
    too_large = False
    if plain and text in _WORDS:
        value = _WORDS[text]
    elif plain and _INTEGER.fullmatch(text):
        too_large = len(text.lstrip("-")) > _LARGEST_INTEGER_DIGITS
        value = text if too_large else int(text)
    path = _place(reading, line, value)
    if too_large:
        reading.report(
            reading.lines.get(path, line), path, f"expected an integer of at most {_LARGEST_INTEGER_DIGITS} digits: if it is text, quote it"
        )
    _refuse_decoration(event, reading, path)


def _take_key(event: "Event", key: str, reading: _Reading) -> None:
    mapping = reading.open[-1]
    path = (*mapping.path, key)
    mapping.key, mapping.key_line, mapping.discard = key, _line(event), False
    _refuse_decoration(event, reading, path)
    if isinstance(mapping.value, dict) and key in mapping.value:
        mapping.discard = True
        reading.report(_line(event), path, f"expected each key once, found it again: it first stands in line {reading.lines[path]}")


def _open(event: "Event", reading: _Reading, value: list[YamlValue] | dict[str, YamlValue]) -> None:
    _refuse_key(event, reading, "a list" if isinstance(value, list) else "a mapping")
    path = _place(reading, _line(event), value)
    _refuse_decoration(event, reading, path)
    if len(reading.open) == LIMIT_DEPTH:
        raise reading.stop(_line(event), (), f"expected at most {LIMIT_DEPTH} levels of lists and mappings, found more")
    reading.open.append(_Open(path, value))


def _place(reading: _Reading, line: int, value: YamlValue) -> YamlPath:
    """Put a value where the document has come to, and say where that is."""
    reading.values += 1
    if reading.values > LIMIT_VALUES:
        raise reading.stop(line, (), f"expected at most {LIMIT_VALUES} values, found more")
    if not reading.open:
        reading.root = value
        reading.lines[()] = line
        return ()
    parent = reading.open[-1]
    if isinstance(parent.value, list):
        path: YamlPath = (*parent.path, len(parent.value))
        parent.value.append(value)
        reading.lines[path] = line
        return path
    if parent.key is None:
        raise AssertionError("a mapping's value came before its key")
    path = (*parent.path, parent.key)
    if not parent.discard:
        parent.value[parent.key] = value
        reading.lines[path] = parent.key_line
    parent.key = None
    return path


def _refuse_key(event: "Event", reading: _Reading, found: str) -> None:
    """Lists, mappings and aliases are no keys here."""
    if reading.open and isinstance(reading.open[-1].value, dict) and reading.open[-1].key is None:
        raise reading.stop(_line(event), reading.open[-1].path, f"expected text as a key, found {found}")


def _refuse_decoration(event: "Event", reading: _Reading, path: YamlPath) -> None:
    anchor: str | None = event.anchor  # type: ignore[attr-defined]
    tag: str | None = event.tag  # type: ignore[attr-defined]
    if anchor is not None:
        reading.report(_line(event), path, f"expected no anchor, found '&{anchor}': write the value out where it is used")
    if tag is not None:
        reading.report(_line(event), path, f"expected no tag, found {tag!r}: values here are plain YAML")
