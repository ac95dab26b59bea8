"""Builds put into the text of a kernels file: what stands there already stays as it is, comments and line ends included. Pure.

The text is changed where the list ends, by the places that the YAML parser gives. Whether the result says what the file said before, and
the new builds, and nothing else, is read off the result itself.
"""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from exitguard.policy.schema import BuildVerdict, Kernels
from exitguard.policy.validation import validate
from exitguard.policy.yaml_source import Piece, SourceError, YamlValue, parse_yaml, yaml_pieces

_KEY = "builds"
_BYTE_ORDER_MARK = "\ufeff"
_LINE_COLUMNS = 120
_NEW_FILE = """\
# Kernel builds decided by `exitguard kernel inspect`, recognised on hosts by their build-id without any privilege. A file with nothing
# but builds adds to what is known of kernels: name it in `policy_files` of the settings, or give it as --policy.
kind: kernels
schema_version: 1
"""


def new_builds_text(builds: Sequence[BuildVerdict]) -> str:
    """A kernels file with these builds alone."""
    return _NEW_FILE + _items_with_key(builds, "", "\n")


def with_builds(text: str, file: str, builds: Sequence[BuildVerdict]) -> str:
    """`text`, a good kernels file named `file`, with builds that it does not have yet at the end of its list. Raises SourceError."""
    mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
    before = text.removeprefix(mark)
    source = parse_yaml(before, file)
    expected = _with_builds_data(source.data, builds)
    for candidate in _candidates(before, file, builds):
        changed = parse_yaml(candidate, file)  # a text that is too large now is told as that
        if changed.data == expected:
            validate(Kernels, changed, changed.data)
            return mark + candidate
    raise SourceError((source.problem((_KEY,), "expected a list that builds can be added to, found one of a form that is not understood"),))


def _with_builds_data(data: YamlValue, builds: Sequence[BuildVerdict]) -> dict[str, YamlValue]:
    if not isinstance(data, dict) or not isinstance(data.get(_KEY, []), list):
        raise TypeError("a good kernels file is a mapping with a list of builds")
    known = data.get(_KEY, [])
    return {**data, _KEY: [*(known if isinstance(known, list) else []), *(_data(build) for build in builds)]}


def _data(build: BuildVerdict) -> dict[str, YamlValue]:
    return build.model_dump(mode="json", exclude_none=True)


def _candidates(text: str, file: str, builds: Sequence[BuildVerdict]) -> Iterator[str]:
    """The text with the builds in it, the best looking first. Not each of them is right."""
    pieces = list(yaml_pieces(text, file))
    root, values = pieces[0], _values(pieces)
    newline = "\r\n" if "\r\n" in text else "\n"
    inline = ", ".join(map(_inline, builds))
    if _KEY not in values:
        last = _end(values[next(reversed(values))])
        if root.flow:
            yield f"{text[:last]}, {_KEY}: [{inline}]{text[last:]}"
        else:
            yield from _with_lines(text, last, _items_with_key(builds, " " * root.column, newline), newline)
        return
    first, *items, end = values[_KEY]
    if not first.flow:
        yield from _with_lines(text, _end(items), _items(builds, " " * first.column, newline), newline)
    elif items:
        last = _end(items)
        yield f"{text[:last]}, {inline}{text[last:]}"
    elif root.flow:
        yield f"{text[: first.start]}[{inline}]{text[end.end :]}"
    else:
        head = text[: first.start].rstrip(" ")
        lines = _items(builds, " " * (root.column + 2), newline)
        yield from _with_lines(head + text[end.end :], len(head), lines, newline)


def _values(pieces: Sequence[Piece]) -> dict[str, Sequence[Piece]]:
    """The pieces of each value of the mapping that all the pieces are."""
    values: dict[str, Sequence[Piece]] = {}
    at = 1
    while at < len(pieces) - 1:
        after = at + 2
        depth = pieces[at + 1].step
        while depth:
            depth += pieces[after].step
            after += 1
        values[pieces[at].value] = pieces[at + 1 : after]
        at = after
    return values


def _end(pieces: Sequence[Piece]) -> int:
    """Where the last of the pieces ends that has a place in the text; the end of a list without brackets has none."""
    return max(piece.end for piece in pieces if not piece.step or piece.end > piece.start)


def _with_lines(text: str, last: int, lines: str, newline: str) -> Iterator[str]:
    """The text with lines after that of the character before `last`: before the empty lines there, and after them."""
    after = last if text[last - 1] == "\n" else _next_line(text, last)
    content = _next_line(text, len(text[:after].rstrip()))
    for at in dict.fromkeys((min(content, after), after)):
        begun = "" if text[at - 1] == "\n" else newline
        yield text[:at] + begun + lines + text[at:]


def _next_line(text: str, at: int) -> int:
    """Where the next line begins, or the text ends."""
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def _items_with_key(builds: Sequence[BuildVerdict], indent: str, newline: str) -> str:
    return f"{indent}{_KEY}:{newline}{_items(builds, f'{indent}  ', newline)}"


def _items(builds: Sequence[BuildVerdict], indent: str, newline: str) -> str:
    return "".join(f"{indent}{line}{newline}" for build in builds for line in _lines(build, len(indent)))


def _lines(build: BuildVerdict, columns: int) -> Iterator[str]:
    """One item of the list; a note that fills more than a line is folded."""
    mark = "- "
    for key, value in _data(build).items():
        text = f"{mark}{key}: {_scalar(value)}"
        folded = wrap(str(value), _LINE_COLUMNS - columns - 4, break_long_words=False, break_on_hyphens=False)
        if key == "note" and columns + len(text) > _LINE_COLUMNS and " ".join(folded) == value:
            yield f"{mark}{key}: >-"
            yield from (f"    {line}" for line in folded)
        else:
            yield text
        mark = "  "


def _inline(build: BuildVerdict) -> str:
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in _data(build).items()) + "}"


def _scalar(value: YamlValue) -> str:
    """Words of ours as they are, and what others wrote in quotes: digits alone would be a number, and `null` nothing."""
    text = str(value)
    return text if text.replace("_", "").isalpha() and text.isascii() and text not in ("null", "true", "false") else _quoted(text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
