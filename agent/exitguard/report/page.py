"""The building blocks of a page for people: headings, paragraphs, label and value, columns. Rich does the layout.

Everything is a `Text`, never markup: a domain named `[red]` is printed as that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from exitguard.report.text import DEFAULT_LIMIT_CHARACTERS, plain, visible

NARROWEST_COLUMNS = 32
WIDEST_COLUMNS = 120  # longer lines are hard to follow

#: Colour by meaning, in the sixteen colours that every terminal maps to its own theme. The word always says it too.
GOOD = "green"
BAD = "red"
WORST = "bold red"
DOUBT = "yellow"
CALM = "cyan"
FAINT = "dim"
STRONG = "bold"


@dataclass(frozen=True)
class Look:
    """What the place can show where a page is printed."""

    width: int = 80
    color: bool = False
    unicode: bool = True

    @property
    def columns(self) -> int:
        """The width that pages are laid out for."""
        return max(NARROWEST_COLUMNS, min(self.width, WIDEST_COLUMNS))

    def own(self, text: str, style: str = "") -> Text:
        """A sentence of ours; its typography gives way where only ASCII can be shown."""
        return _styled(text if self.unicode else plain(text), style)

    def foreign(self, text: str, style: str = "", *, limit_characters: int = DEFAULT_LIMIT_CHARACTERS) -> Text:
        """A text that others wrote, made harmless and visible."""
        return _styled(visible(text, limit_characters=limit_characters, ascii_only=not self.unicode), style)


def _styled(text: str, style: str) -> Text:
    """Styled as a span: a style of the whole `Text` would colour whatever is appended later."""
    return Text.assemble((text, style))


def heading(look: Look, title: str, note: str = "") -> Text:
    """An empty line and a section's title, with a faint note beside it."""
    line = Text("\n").append_text(look.own(title, STRONG))
    return line.append_text(look.own(f"  {note}", FAINT)) if note else line


def indented(text: RenderableType, columns: int = 2) -> Padding:
    """A paragraph, its wrapped lines indented alike."""
    return Padding(text, (0, 0, 0, columns))


def hanging(look: Look, mark: str, text: Text, *, columns: int = 2, style: str = "") -> RenderableType:
    """A paragraph behind a mark such as `1.`, wrapped lines aligned with its first word."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, overflow="crop")
    grid.add_column(overflow="fold", ratio=1)
    grid.add_row(look.own(mark, style), text)
    return indented(grid, columns)


def labelled(look: Look, rows: Iterable[tuple[str, Text]], *, columns: int = 2, label_columns: int | None = None) -> RenderableType:
    """Label and value, the values aligned; stacked where the terminal is narrow."""
    entries = list(rows)
    widest = label_columns or max((len(label) for label, _ in entries), default=0)
    if look.columns < widest + 30:
        stacked = Text("\n").join(Text.assemble(look.own(label, FAINT), " ", value) for label, value in entries)
        return indented(stacked, columns)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, overflow="crop", width=widest, style=FAINT)
    grid.add_column(overflow="fold", ratio=1)
    for label, value in entries:
        grid.add_row(look.own(label), value)
    return indented(grid, columns)


def columns(look: Look, titles: Sequence[str], rows: Iterable[Sequence[Text]]) -> RenderableType:
    """A table of columns; the first takes the room that the others leave, and folds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=FAINT, show_edge=False)
    for place, title in enumerate(titles):
        first = place == 0
        table.add_column(look.own(title), overflow="fold", no_wrap=not first, ratio=1 if first else None)
    for row in rows:
        table.add_row(*row)
    return indented(table)


def render(look: Look, parts: Iterable[RenderableType]) -> str:
    """The page as text, a newline at the end, no white space at the ends of lines."""
    # The height is given only so that Rich does not ask the terminal; nothing here depends on it.
    console = Console(
        file=StringIO(),
        width=look.columns,
        height=100,
        force_terminal=look.color,
        color_system="standard" if look.color else None,
        no_color=not look.color,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().split("\n")).rstrip("\n") + "\n"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """`1 domain`, `2 domains`, `5,000 domains`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def listed(names: Sequence[str], *, most: int = 4) -> str:
    """`a, b, c and 12 more`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
