"""The words of the reports that no enumeration has are explained, each remedy that a policy can name among them."""

from pathlib import Path

import pytest

from exitguard.model.instance import PmuOrigin
from exitguard.model.plan import LeftAloneBecause, Remedy
from exitguard.report.terms import PLANNED, TERMS, terms_named
from exitguard.report.words import members_named


@pytest.mark.parametrize("name", list(TERMS))
def test_every_term_is_a_sentence_of_its_own(name: str) -> None:
    assert TERMS[name].meaning[0].isupper()
    assert TERMS[name].meaning.endswith(".")
    assert [term.meaning for term in TERMS.values()].count(TERMS[name].meaning) == 1


@pytest.mark.parametrize("name", list(TERMS))
def test_every_term_is_found_and_is_no_member_of_an_enumeration(name: str) -> None:
    assert terms_named(name.upper().replace("_", "-")) == (name,)
    # The mark `locked` is also the reason why a plan leaves a domain alone, and a setting may come from a remedy: both are told.
    both = {"locked": (LeftAloneBecause.LOCKED,), "remedy": (PmuOrigin.REMEDY,)}
    assert members_named(name) == both.get(name, ())


def test_every_remedy_is_explained_with_what_becomes_of_it() -> None:
    assert all(TERMS[remedy].meaning.endswith(PLANNED) for remedy in Remedy)
    assert all(remedy in TERMS["remedy"].meaning for remedy in Remedy)


def test_every_remedy_that_is_explained_as_one_that_plans_have_has_its_playbook() -> None:
    playbooks = Path(__file__).resolve().parents[2] / "playbooks"
    assert all((playbooks / f"{remedy.value}.yml").is_file() for remedy in Remedy)


def test_a_word_that_nobody_prints_is_no_term() -> None:
    assert terms_named("frobnicated") == ()
