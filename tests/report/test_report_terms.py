"""The words of the reports that no enumeration has are explained, each remedy that a policy can name among them."""

from typing import get_args

import pytest

from exitguard.policy.schema import Remedy
from exitguard.report.terms import ONLY_NAMED, TERMS, terms_named
from exitguard.report.words import members_named


@pytest.mark.parametrize("name", list(TERMS))
def test_every_term_is_a_sentence_of_its_own(name: str) -> None:
    assert TERMS[name].meaning[0].isupper()
    assert TERMS[name].meaning.endswith(".")
    assert [term.meaning for term in TERMS.values()].count(TERMS[name].meaning) == 1


@pytest.mark.parametrize("name", list(TERMS))
def test_every_term_is_found_and_is_no_member_of_an_enumeration(name: str) -> None:
    assert terms_named(name.upper().replace("_", "-")) == (name,)
    assert members_named(name) == ()


def test_every_remedy_is_explained_as_one_that_is_only_named() -> None:
    assert {name for name, term in TERMS.items() if term.meaning.endswith(ONLY_NAMED)} == set(get_args(Remedy))
    assert all(remedy in TERMS["remedy"].meaning for remedy in get_args(Remedy))


def test_a_word_that_nobody_prints_is_no_term() -> None:
    assert terms_named("frobnicated") == ()
