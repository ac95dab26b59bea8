"""The instances of a cloud by one thing that they have in common: as a page, as CSV, and as Markdown."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from exitguard.report.cells import csv_pieces, markdown_code, markdown_rows
from exitguard.report.cloud_groups import CloudGroups, Counts, Group, GroupBy, Standing
from exitguard.report.cloud_instances import STANDING_LABELS, STANDING_STYLES
from exitguard.report.page import DOUBT, FAINT, STRONG, Look, columns, counted, heading, indented, render
from exitguard.report.table import moment

_MOST_GROUPS = 100
_NARROWEST_NAME_COLUMNS = 20
#: What is well first: so it reads as a sum.
COLUMNS = (
    Standing.OFF_AND_KEPT,
    Standing.OFF_NEXT,
    Standing.ON_BY_DEFAULT,
    Standing.OPTED_OUT,
    Standing.CONFLICT,
    Standing.BEHIND_NOVA,
    Standing.UNKNOWN,
)
#: What instances without a name are under.
_NAMELESS = {
    GroupBy.PROJECT: "(not shown)",
    GroupBy.FLAVOR: "(not shown)",
    GroupBy.ZONE: "(no zone, or not shown)",
    GroupBy.AGGREGATE: "(no aggregate, or not shown)",
    GroupBy.BUILD: "(build not known)",
    GroupBy.HOST: "(no host, or not shown)",
}


def groups_page(groups: CloudGroups, look: Look) -> str:
    """The groups as a page, the largest first; the last line is the sum."""
    return render(look, _parts(groups, look))


def groups_csv(groups: CloudGroups, look: Look) -> Iterator[str]:
    """A line a group, and no sum: a spreadsheet makes its own."""
    titles = [groups.by.value, "instances", *(each.value for each in COLUMNS)]
    return csv_pieces(titles, ([group.name, *_numbers(group, COLUMNS)] for group in groups.groups), look)


def groups_markdown(groups: CloudGroups, look: Look) -> Iterator[str]:
    """A heading, a table of all groups with its sum, and what the words mean."""
    yield f"## Instances of {markdown_code(groups.cloud.name, look)} by {groups.by.value}\n\n"
    yield f"Observed {moment(groups.observed_at)}, policy {markdown_code(groups.policy, look)}.\n\n"
    shown = _shown(groups.total)
    rows: list[list[str | int]] = [[_code(group, groups.by, look), *_numbers(group, shown)] for group in groups.groups]
    titles = [groups.by.value, "instances", *(STANDING_LABELS[each] for each in shown)]
    yield from markdown_rows(titles, [*rows, ["**all**", *_numbers(groups.total, shown)]])
    for note in _notes(groups):
        yield f"\n{note}\n"


def _code(group: Group, by: GroupBy, look: Look) -> str:
    return _NAMELESS[by] if group.name is None else markdown_code(group.name, look)


def _parts(groups: CloudGroups, look: Look) -> Iterator[RenderableType]:
    yield Text.assemble(
        look.own("Instances of "),
        look.foreign(groups.cloud.name, STRONG, limit_characters=64),
        look.own(f" by {groups.by.value}"),
        look.own("  policy ", FAINT),
        look.foreign(groups.policy, FAINT, limit_characters=80),
        look.own(f" · observed {moment(groups.observed_at)}", FAINT),
    )
    yield heading(look, counted(len(groups.groups), groups.by.value), counted(groups.total.instances, "instance"))
    if groups.groups:
        shown = _shown(groups.total)
        yield from _table(groups, shown, look) if _has_room(groups, shown, look) else _stacked(groups, shown, look)
    left = len(groups.groups) - _MOST_GROUPS
    if left > 0:
        yield indented(look.own(f"… and {left:,} more, see --format csv or json; all is the sum of them too", DOUBT))
    for note in _notes(groups):
        yield indented(look.own(note, FAINT))


def _notes(groups: CloudGroups) -> Iterator[str]:
    if groups.counted_again:
        more = counted(groups.counted_again, "instance")
        yield f"An instance stands in each aggregate of its host: the lines add up to {more} more than `all`, which has each of them once."
    shown = [each for each in COLUMNS if _of(groups.total, each)]
    words = ", ".join(f"`{STANDING_LABELS[each]}`" for each in shown)
    if shown:
        yield f"`exitguard explain` says what is meant by {words}."


def _shown(total: Counts) -> tuple[Standing, ...]:
    """The columns that are not empty throughout."""
    return tuple(each for each in COLUMNS if _of(total, each))


def _of(counts: Counts, how: Standing) -> int:
    return int(getattr(counts, how.value))


def _numbers(counts: Counts, shown: Sequence[Standing]) -> list[int]:
    return [counts.instances, *(_of(counts, each) for each in shown)]


def _widths(groups: CloudGroups, shown: Sequence[Standing]) -> list[int]:
    titles = ["instances", *(STANDING_LABELS[each] for each in shown)]
    return [max(len(title), len(f"{number:,}")) for title, number in zip(titles, _numbers(groups.total, shown), strict=True)]


def _has_room(groups: CloudGroups, shown: Sequence[Standing], look: Look) -> bool:
    return look.columns - sum(width + 2 for width in _widths(groups, shown)) - 2 >= _NARROWEST_NAME_COLUMNS


def _table(groups: CloudGroups, shown: Sequence[Standing], look: Look) -> Iterator[RenderableType]:
    widths = _widths(groups, shown)
    styles = ["", *(STANDING_STYLES[each] for each in shown)]

    def row(name: Text, counts: Counts) -> list[Text]:
        numbers = zip(_numbers(counts, shown), widths, styles, strict=True)
        return [name, *(look.own(f"{number:>{width},}", style if number else FAINT) for number, width, style in numbers)]

    titles = ["instances", *(STANDING_LABELS[each] for each in shown)]
    rows = [row(_name(group, groups.by, look), group) for group in groups.groups[:_MOST_GROUPS]]
    yield columns(
        look,
        [groups.by.value, *(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))],
        [*rows, row(look.own("all", STRONG), groups.total)],
    )


def _stacked(groups: CloudGroups, shown: Sequence[Standing], look: Look) -> Iterator[RenderableType]:
    """A name, and its counts below: where the numbers leave no room for it."""
    for group in groups.groups[:_MOST_GROUPS]:
        yield indented(_name(group, groups.by, look))
        yield indented(_counted(group, shown, look), 4)
    yield indented(look.own("all", STRONG))
    yield indented(_counted(groups.total, shown, look), 4)


def _counted(counts: Counts, shown: Sequence[Standing], look: Look) -> Text:
    parts = [look.own(f"{_of(counts, each):,} {STANDING_LABELS[each]}", STANDING_STYLES[each]) for each in shown if _of(counts, each)]
    return Text.assemble(look.own(f"{counted(counts.instances, 'instance')}: "), look.own(" · ", FAINT).join(parts))


def _name(group: Group, by: GroupBy, look: Look) -> Text:
    return look.own(_NAMELESS[by], FAINT) if group.name is None else look.foreign(group.name, limit_characters=64)
