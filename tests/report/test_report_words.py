"""Every member of the vocabulary has its words, and each word is found again by `explain`."""

from enum import StrEnum

import pytest

from exitguard.model import domain, finding, host, instance, kernel, plan, pmu, run
from exitguard.report.words import KINDS, WORDS, all_names, label, meaning, members_named

ALL_MEMBERS = [member for kind in WORDS for member in kind]
#: Words for verdicts on a page; the words themselves explain nothing more. The names of remedies are terms (terms.py).
WITHOUT_WORDS = {finding.Severity, finding.SubjectKind, pmu.PmuElement, pmu.Tri, plan.Remedy, plan.Disruption, run.Request}


def test_every_enumeration_of_the_vocabulary_has_words_or_needs_none() -> None:
    kinds = {
        value
        for module in (domain, finding, host, instance, kernel, plan, pmu, run)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, StrEnum) and value is not StrEnum
    }
    assert kinds == set(WORDS) | WITHOUT_WORDS
    assert set(KINDS) == set(WORDS)


@pytest.mark.parametrize("kind", list(WORDS))
def test_every_member_has_a_text_of_its_own(kind: type[StrEnum]) -> None:
    assert set(WORDS[kind]) == set(kind)
    meanings = [meaning(member) for member in kind]
    assert len(set(meanings)) == len(meanings)
    for member in kind:
        assert type(next(key for key in WORDS[kind] if key == member)) is kind


@pytest.mark.parametrize("member", ALL_MEMBERS, ids=lambda member: f"{type(member).__name__}.{member.name}")
def test_labels_fit_a_column_and_meanings_are_sentences(member: StrEnum) -> None:
    assert 0 < len(label(member)) <= 18
    assert meaning(member)[0].isupper()
    assert meaning(member).endswith(".")


@pytest.mark.parametrize("member", ALL_MEMBERS, ids=lambda member: f"{type(member).__name__}.{member.name}")
def test_a_member_is_found_by_its_value_and_by_its_label(member: StrEnum) -> None:
    # Members of different enumerations may be equal as text: only the identity tells.
    assert any(found is member for found in members_named(member.value))
    assert any(found is member for found in members_named(label(member).upper()))
    assert member.value in all_names()


def test_there_are_several_kinds_of_unknown() -> None:
    kinds = {type(member) for member in members_named("unknown")}
    shared = {kernel.KernelState, finding.Verdict, pmu.ChainState, pmu.PmuSetting, domain.OwnerKind, plan.LeftAloneBecause}
    assert shared | {instance.PmuOrigin} == kinds


def test_dashes_and_case_do_not_matter() -> None:
    assert members_named("Pending-Restart") == (pmu.ChainState.PENDING_RESTART,)


def test_a_word_that_nobody_uses_is_not_found() -> None:
    assert members_named("frobnicated") == ()
