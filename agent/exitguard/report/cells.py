"""Rows for spreadsheets (CSV) and for tickets and wikis (Markdown). Names are tenants' words: in neither form may they act.

A spreadsheet computes what begins with an equals sign, a plus, a minus or an at sign; Markdown makes links, mentions, images and HTML of
text, but of nothing that stands in a code span.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO

from exitguard.report.page import Look

_LIMIT_CHARACTERS = 400
#: What makes a formula of a cell, as OWASP's "CSV Injection" lists it; the last four are full-width forms, which some locales take too.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_pieces(titles: Sequence[str], rows: Iterable[Sequence[str | int | None]], look: Look) -> Iterator[str]:
    """Lines as RFC 4180 has them, but ended by a newline alone; the first has the titles. None is an empty cell."""
    yield csv_lines([titles], look)
    for cells in rows:
        yield csv_lines([cells], look)


def csv_lines(rows: Iterable[Sequence[str | int | None]], look: Look, *, end: str = "\n") -> str:
    """Lines with their ends."""
    lines = StringIO()
    csv.writer(lines, lineterminator=end).writerows([_csv_cell(cell, look) for cell in cells] for cells in rows)
    return lines.getvalue()


def _csv_cell(cell: str | int | None, look: Look) -> str | int:
    if cell is None:
        return ""
    if isinstance(cell, int):
        return cell
    shown = _shown(cell, look)
    return f"'{shown}" if shown.lstrip(" ").startswith(_FORMULA) else shown


def markdown_code(text: str, look: Look) -> str:
    """A text from outside as a code span (CommonMark 6.1), in which nothing acts; for a line or for a cell of a table."""
    shown = _shown(text, look)
    if not shown.strip(" "):
        return "(empty)"
    fence = "`" * (max((len(run) for run in re.findall(r"`+", shown)), default=0) + 1)
    padding = " " if shown[0] in "` " or shown[-1] in "` " else ""
    # The bar would end the cell: GitHub Flavored Markdown takes the backslash away again, in code too.
    return f"{fence}{padding}{shown}{padding}{fence}".replace("|", "\\|")


def markdown_rows(titles: Sequence[str], rows: Iterable[Sequence[str | int]]) -> Iterator[str]:
    """A table of GitHub Flavored Markdown; numbers are aligned to the right. Texts from outside have to be code spans already."""
    found = list(rows)
    numbers = [bool(found) and all(isinstance(cells[place], int) for cells in found) for place in range(len(titles))]
    yield _markdown_line(titles)
    yield _markdown_line(["---:" if number else "---" for number in numbers])
    for cells in found:
        yield _markdown_line([f"{cell:,}" if isinstance(cell, int) else cell for cell in cells])


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _shown(text: str, look: Look) -> str:
    if text.isascii() and text.isprintable() and len(text) <= _LIMIT_CHARACTERS:  # harmless; a cloud has millions of such cells
        return text
    return look.foreign(text, limit_characters=_LIMIT_CHARACTERS).plain
