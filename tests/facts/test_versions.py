import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.versions import version_key


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.1.0-9-amd64", "6.1.0-56-amd64"),
        ("5.14.0-503.9.1.el9_5.x86_64", "5.14.0-503.11.1.el9_5.x86_64"),
        ("1.0~rc1", "1.0"),
        ("1.0", "1.0^git1"),
        ("1.0^git1", "1.0.1"),
        ("1.0", "1.0a"),
        ("1.0a", "1.0.1"),
        ("0123-0-rescue", "0123-5.14.0-70"),
        ("1.09", "1.10"),
    ],
)
def test_older_comes_first(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


def test_leading_zeros_do_not_count() -> None:
    assert version_key("1.010") == version_key("1.10")


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_texts_have_an_order(left: str, right: str) -> None:
    assert (version_key(left) < version_key(right)) + (version_key(right) < version_key(left)) + (
        version_key(left) == version_key(right)
    ) == 1


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_numbers_are_compared_as_numbers(left: int, right: int) -> None:
    assert (version_key(f"v{left}") < version_key(f"v{right}")) == (left < right)
