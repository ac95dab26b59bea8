"""No text from outside can act on a terminal, and none is shown as another than it is."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.report.text import plain, visible

#: Everything a terminal or a renderer obeys, hides or reorders.
ANY_TEXT = st.text(st.characters(), max_size=400)


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\r\n", r"two\x0alines\x0d\x0a"),
        ("\x00\x07\x7f", r"\x00\x07\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066isolated\u2069", r"\u2066isolated\u2069"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\u2028line\u2029paragraph", r"\u2028line\u2029paragraph"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("\ud800", r"\ud800"),
        ("private\ue000", r"private\ue000"),
        ("no\u00a0break\u3000wide", r"no\xa0break\u3000wide"),
        ("blank\u3164\u2800", r"blank\u3164\u2800"),
        ("select\ufe0f", r"select\ufe0f"),
        ("[red][link=file:///etc/passwd]markup[/]", "[red][link=file:///etc/passwd]markup[/]"),
        ("Größe 日本語 é", "Größe 日本語 é"),
    ],
)
def test_what_acts_or_hides_is_escaped_and_the_rest_stays(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


def test_a_pile_of_combining_marks_does_not_grow_over_the_lines_above() -> None:
    shown = visible("Z" + "\u0301" * 50, limit_characters=1000)
    assert shown.startswith("Z\u0301\u0301\\u0301")
    assert shown.count("\u0301") == 2


@given(ANY_TEXT)
def test_nothing_that_acts_survives(text: str) -> None:
    for character in visible(text):
        assert character.isprintable()
        assert unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert character == " " or not character.isspace()


@given(ANY_TEXT)
def test_ascii_only_is_ascii_and_printable(text: str) -> None:
    shown = visible(text, ascii_only=True)
    assert shown.isascii()
    assert not shown or shown.isprintable()


@given(ANY_TEXT, st.integers(min_value=10, max_value=300), st.booleans())
def test_the_limit_holds_and_what_is_missing_is_marked(text: str, limit: int, ascii_only: bool) -> None:  # noqa: FBT001 - a hypothesis argument
    shown = visible(text, limit_characters=limit, ascii_only=ascii_only)
    assert len(shown) <= limit
    whole = visible(text, limit_characters=100_000, ascii_only=ascii_only)
    ellipsis = "..." if ascii_only else "…"
    assert shown == whole or (shown.endswith(ellipsis) and whole.startswith(shown.removesuffix(ellipsis)))


@given(ANY_TEXT)
def test_what_is_visible_stays_as_it_is(text: str) -> None:
    assert visible(visible(text)) == visible(text)


def test_ten_thousand_characters_become_a_line_with_an_ellipsis() -> None:
    assert visible("x" * 10_000) == "x" * 199 + "…"


def test_no_escape_is_torn_at_the_limit() -> None:
    assert visible("\x1b" * 100, limit_characters=10) == r"\x1b\x1b…"


def test_our_own_typography_has_an_ascii_form() -> None:
    assert plain("set → live · … — “yes”") == 'set -> live | ... - "yes"'
