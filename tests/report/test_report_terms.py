"""The words of the reports that no enumeration has are explained, each remedy that a policy can name among them."""

from pathlib import Path

import pytest

from exitguard.model.plan import LeftAloneBecause, Remedy
from exitguard.report.terms import ONLY_NAMED, PLANNED, TERMS, terms_named
from exitguard.report.words import members_named


@pytest.mark.parametrize("name", list(TERMS))
def test_every_term_is_a_sentence_of_its_own(name: str) -> None:
    assert TERMS[name].meaning[0].isupper()
    assert TERMS[name].meaning.endswith(".")
    assert [term.meaning for term in TERMS.values()].count(TERMS[name].meaning) == 1


@pytest.mark.parametrize("name", list(TERMS))
def test_every_term_is_found_and_is_no_member_of_an_enumeration(name: str) -> None:
    assert terms_named(name.upper().replace("_", "-")) == (name,)
    # The mark `locked` is also the reason why a plan leaves a domain alone: both are told.
    assert members_named(name) == ((LeftAloneBecause.LOCKED,) if name == "locked" else ())


def test_every_remedy_is_explained_as_one_that_plans_have_or_that_is_only_named() -> None:
    ending = {remedy: [sentence for sentence in (PLANNED, ONLY_NAMED) if TERMS[remedy].meaning.endswith(sentence)] for remedy in Remedy}
    assert all(len(sentences) == 1 for sentences in ending.values()), ending
    assert {remedy for remedy, sentences in ending.items() if sentences == [ONLY_NAMED]} == {
        Remedy.NOVA_FLAVOR_DEFAULT,
        Remedy.NOVA_INSTANCE_PMU_OFF,
    }
    assert all(remedy in TERMS["remedy"].meaning for remedy in Remedy)


def test_remedy_that_has_a_playbook_is_not_explained_as_only_named() -> None:
    playbooks = Path(__file__).resolve().parents[2] / "playbooks"
    with_playbook = {remedy for remedy in Remedy if (playbooks / f"{remedy.value}.yml").is_file()}
    assert Remedy.DOMAIN_PMU_OFF in with_playbook
    assert not {remedy for remedy in with_playbook if ONLY_NAMED in TERMS[remedy].meaning}


def test_a_word_that_nobody_prints_is_no_term() -> None:
    assert terms_named("frobnicated") == ()
