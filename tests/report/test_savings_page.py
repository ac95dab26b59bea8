"""The account as a page: what is not known is never a zero, and what it rests on stands below it."""

import account_builders as accounts
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.report.bars import bar, sparkline
from exitguard.report.page import Look
from exitguard.report.savings_page import savings_page

WIDE, PLAIN = Look(width=120), Look(width=80, unicode=False)


@pytest.mark.parametrize("look", [WIDE, PLAIN], ids=["wide", "ascii"])
def test_page_names_sums_shares_and_what_they_rest_on(look: Look) -> None:
    text = savings_page(accounts.accounted(accounts.summed(accounts.SAVED), accounts.summed(accounts.AVAILABLE, run=2)), look, stale=False)
    assert "5,000 to 12,000" in text
    assert "held back: kernel" in text
    assert "table a-row" in text
    assert "GHz (a test)" in text
    assert look.unicode or text.isascii()
    assert max(map(len, text.splitlines())) <= look.columns


def test_unquantified_is_a_word_and_not_a_zero() -> None:
    text = savings_page(accounts.accounted(accounts.summed(accounts.UNPRICED)), WIDE, stale=False)
    assert text.startswith("UNQUANTIFIED")
    assert "what 100 to 200 skips a second would save is in no sum" in text


def test_instructions_are_told_as_no_cycles() -> None:
    text = savings_page(accounts.accounted(accounts.summed(accounts.UNPRICED)), Look(width=140), stale=False)
    assert "In instructions, which are no cycles: the guard, of a guest whose PMU is off: 200 to 227 an exit" in text


def test_host_that_is_not_worth_changing_is_told_so_first() -> None:
    text = savings_page(accounts.accounted(accounts.summed(accounts.AVAILABLE), cpu_seconds=360.0), WIDE, stale=False)
    assert text.startswith("NOT WORTH CHANGING HERE")


def test_stale_judgement_stands_above_everything() -> None:
    assert savings_page(accounts.accounted(accounts.summed(accounts.SAVED)), WIDE, stale=True).startswith("STALE")


def test_no_account_says_what_makes_one() -> None:
    assert "exitguard daemon" in savings_page(accounts.accounted(), WIDE, stale=False)


@given(st.floats(0, 1e18), st.floats(0, 1e18), st.integers(1, 80), st.booleans())
def test_bar_never_exceeds_its_width_and_shows_anything_above_zero(value: float, most: float, width: int, unicode: bool) -> None:  # noqa: FBT001
    drawn = bar(value, most, width, unicode=unicode)
    assert len(drawn) <= width
    assert bool(drawn) == (value > 0 and most > 0)


@given(st.lists(st.none() | st.floats(0, 1e18), max_size=60))
def test_sparkline_has_one_character_a_value(values: list[float | None]) -> None:
    drawn = sparkline(values)
    assert len(drawn) == len(values)
    assert all((character == " ") == (value is None) for character, value in zip(drawn, values, strict=True))
