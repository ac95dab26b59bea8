"""Layout: the width is kept, colours appear only where they may, and lists are bounded."""

import re

import pytest
from rich.cells import cell_len
from rich.text import Text

from exitguard.report.page import Look, counted, hanging, indented, labelled, listed, render


@pytest.mark.parametrize("width", [20, 46, 80, 300])
def test_no_line_is_wider_than_the_terminal_allows(width: int) -> None:
    look = Look(width=width)
    words = look.foreign("long" * 30 + " words " * 30 + "日本" * 30, limit_characters=1000)
    page = render(look, [words, indented(words, 4), hanging(look, "1.", words), labelled(look, [("label", words)])])
    assert max(cell_len(line) for line in page.split("\n")) <= look.columns
    assert look.columns == max(32, min(width, 120))


def test_without_colour_there_is_no_escape_at_all() -> None:
    assert "\x1b" not in render(Look(), [Look().own("red", "bold red")])


def test_with_colour_there_are_only_colour_escapes() -> None:
    look = Look(color=True)
    page = render(look, [look.own("red", "red"), look.foreign("\x1b]0;title\x07[link=x]y[/link]")])
    assert "\x1b[31mred" in page
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;]*m", "", page)


def test_a_style_ends_with_its_text() -> None:
    look = Look(color=True)
    assert render(look, [look.own("red", "red").append_text(look.own("plain"))]) == "\x1b[31mred\x1b[0mplain\n"


def test_the_environment_does_not_change_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(color=True)
    before = render(look, [look.own("word " * 40, "red")])
    for name, value in {"COLUMNS": "40", "TERM": "dumb", "NO_COLOR": "1", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "0"}.items():
        monkeypatch.setenv(name, value)
    assert render(look, [look.own("word " * 40, "red")]) == before


def test_lines_have_no_white_space_at_their_ends() -> None:
    page = render(Look(), [indented(Text("short")), Text(""), indented(Text("end"))])
    assert page == "  short\n\n  end\n"


def test_counts_and_lists_read_as_sentences() -> None:
    assert counted(1, "domain") == "1 domain"
    assert counted(5000, "domain") == "5,000 domains"
    assert counted(2, "check fails", "checks fail") == "2 checks fail"
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(2000)], most=2) == "0, 1 and 1,998 more"
