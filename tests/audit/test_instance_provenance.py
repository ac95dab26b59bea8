"""Where an instance's PMU setting comes from and what Nova writes next: over every combination of what can be known."""

from collections.abc import Iterator
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.audit.instance import (
    Conclusion,
    Known,
    Possibility,
    Said,
    conclude,
    conflict_verdict,
    pmu_verdict,
    said,
    survives,
    written_for,
)
from exitguard.model.finding import Verdict
from exitguard.model.instance import PmuOrigin
from exitguard.model.pmu import PmuElement, PmuSetting, Tri

ON, OFF, SILENT, UNKNOWN = Said
ELEMENTS = (*PmuElement, None)
ABSENT_MEANS = (PmuSetting.DEFAULT_ON, PmuSetting.DEFAULT_OFF, PmuSetting.UNKNOWN)


@cache
def every_combination() -> tuple[tuple[Known, Conclusion], ...]:
    """All 24,576 combinations of what can be known of an instance."""
    values = product(Said, Said, Tri, ELEMENTS, (UNKNOWN, OFF), Said, ELEMENTS, (False, True))
    return tuple((known, conclude(known)) for known in (Known(*each) for each in values))


def fits(possibility: Possibility, known: Known) -> bool:
    """Whether nothing that is known speaks against it; this is said independently of the code that concludes."""
    return (
        known.flavor in (UNKNOWN, possibility.flavor)
        and known.image in (UNKNOWN, possibility.image)
        and known.record in (UNKNOWN, possibility.image)
        and known.copied in (UNKNOWN, possibility.image)
        and known.default in (Tri.UNKNOWN, Tri.YES if possibility.default else Tri.NO)
        and (known.wrote is None or known.wrote is written_for(possibility))
    )


@pytest.mark.parametrize(
    ("flavor", "image", "default", "element"),
    [
        (ON, SILENT, False, PmuElement.ON),
        (OFF, SILENT, False, PmuElement.OFF),
        (ON, SILENT, True, PmuElement.ON),
        (OFF, SILENT, True, PmuElement.OFF),
        (SILENT, ON, False, PmuElement.ON),
        (SILENT, OFF, False, PmuElement.OFF),
        (SILENT, ON, True, PmuElement.ON),
        (SILENT, OFF, True, PmuElement.OFF),
        (ON, ON, False, PmuElement.ON),
        (OFF, OFF, False, PmuElement.OFF),
        (ON, ON, True, PmuElement.ON),
        (OFF, OFF, True, PmuElement.OFF),
        (ON, OFF, False, None),
        (OFF, ON, False, None),
        (ON, OFF, True, None),
        (OFF, ON, True, None),
        (SILENT, SILENT, True, PmuElement.OFF),
        (SILENT, SILENT, False, PmuElement.ABSENT),
    ],
)
def test_what_nova_writes_for_flavor_image_and_default(flavor: Said, image: Said, default: bool, element: PmuElement | None) -> None:  # noqa: FBT001
    assert written_for(Possibility(flavor, image, default)) is element


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, UNKNOWN),
        ("", SILENT),
        ("true", ON),
        ("True", ON),
        ("1", ON),
        ("yes", ON),
        ("false", OFF),
        ("off", OFF),
        ("0", OFF),
        ("maybe", UNKNOWN),
        ("empty", UNKNOWN),
        (" ", UNKNOWN),
    ],
)
def test_a_text_that_is_no_boolean_is_neither_silence_nor_a_wish(text: str | None, says: Said) -> None:
    assert said(text) is says


def test_every_origin_and_every_verdict_is_reached() -> None:
    assert {conclusion.origin for _, conclusion in every_combination()} == set(PmuOrigin)
    verdicts = {pmu_verdict(conclusion, means) for _, conclusion in every_combination() for means in ABSENT_MEANS}
    assert verdicts == {Verdict.PASS, Verdict.FAIL, Verdict.NOT_APPLICABLE, Verdict.UNKNOWN}
    assert {conflict_verdict(conclusion) for _, conclusion in every_combination()} == {Verdict.PASS, Verdict.FAIL, Verdict.UNKNOWN}


def test_whoever_asked_for_the_pmu_is_never_failed() -> None:
    for known, conclusion in every_combination():
        if ON in (known.flavor, known.image):
            assert {pmu_verdict(conclusion, means) for means in ABSENT_MEANS} == {Verdict.NOT_APPLICABLE}


def test_whoever_may_have_asked_is_never_failed() -> None:
    for _, conclusion in every_combination():
        if any(each.asked_on for each in conclusion.possible):
            assert Verdict.FAIL not in {pmu_verdict(conclusion, means) for means in ABSENT_MEANS}


def test_a_failure_is_an_instance_known_silent_on_a_nova_without_a_default_whose_cpu_mode_means_on() -> None:
    for _, conclusion in every_combination():
        for means in ABSENT_MEANS:
            if pmu_verdict(conclusion, means) is Verdict.FAIL:
                assert conclusion.possible == (Possibility(SILENT, SILENT, default=False),)
                assert means is PmuSetting.DEFAULT_ON


def test_flavor_and_image_that_are_shown_decide_whatever_else_is_said() -> None:
    for known, conclusion in every_combination():
        if known.flavor not in (UNKNOWN, SILENT) and known.image is SILENT:
            assert conclusion.next_element == PmuElement(known.flavor.value)
        if known.flavor is SILENT and known.image not in (UNKNOWN, SILENT):
            assert conclusion.next_element == PmuElement(known.image.value)


def test_a_conflict_is_exactly_where_both_are_known_to_say_different_things() -> None:
    for known, conclusion in every_combination():
        if UNKNOWN not in (known.flavor, known.image):
            assert (conclusion.conflict is Tri.YES) == ({known.flavor, known.image} == {ON, OFF})
        assert (conclusion.conflict is Tri.YES) == (conclusion.origin is PmuOrigin.CONFLICT)
        if conclusion.conflict is Tri.YES:
            assert conclusion.next_element is None


def test_a_run_without_the_element_proves_that_nobody_says_anything() -> None:
    for known, conclusion in every_combination():
        if known.wrote is PmuElement.ABSENT and known.flavor in (SILENT, UNKNOWN) and known.image in (SILENT, UNKNOWN):
            assert conclusion.possible == (Possibility(SILENT, SILENT, default=False),)


def test_what_glance_says_proves_no_default() -> None:
    for known, conclusion in every_combination():
        without = conclude(known._replace(copied=UNKNOWN))
        assert {each.default for each in conclusion.possible} == {each.default for each in without.possible}


def test_whoever_runs_with_the_pmu_on_is_not_failed_on_glances_word_alone() -> None:
    """nova-manage may have set hw_pmu=true before Nova wrote the definition: then it was asked for."""
    for known, conclusion in every_combination():
        if known.defined is PmuElement.ON and (known.flavor, known.image, known.wrote, known.record) == (SILENT, UNKNOWN, None, UNKNOWN):
            assert pmu_verdict(conclusion, PmuSetting.DEFAULT_ON) is Verdict.UNKNOWN or known.copied is ON


def test_an_element_off_with_a_silent_flavor_is_an_images_or_a_defaults_and_is_written_again() -> None:
    unsure = conclude(Known(SILENT, UNKNOWN, wrote=PmuElement.OFF, copied=SILENT, defined=PmuElement.OFF, runs=True))
    assert (unsure.origin, unsure.next_element) == (PmuOrigin.UNKNOWN, PmuElement.OFF)
    assert pmu_verdict(unsure, PmuSetting.DEFAULT_ON) is Verdict.PASS
    disproved = conclude(Known(SILENT, UNKNOWN, Tri.NO, wrote=PmuElement.OFF, copied=SILENT, defined=PmuElement.OFF, runs=True))
    assert disproved.origin is PmuOrigin.IMAGE
    proven = conclude(Known(SILENT, SILENT, Tri.YES, wrote=PmuElement.OFF, defined=PmuElement.OFF, runs=True))
    assert proven.origin is PmuOrigin.CLOUD_DEFAULT


def refinements(known: Known) -> Iterator[Known]:
    """What is known once one more thing is, such that it could be so together with all the rest."""
    open_now = (
        *(known._replace(flavor=each) for each in (ON, OFF, SILENT) if known.flavor is UNKNOWN),
        *(known._replace(image=each) for each in (ON, OFF, SILENT) if known.image is UNKNOWN),
        *(known._replace(copied=each) for each in (ON, OFF, SILENT) if known.copied is UNKNOWN),
        *(known._replace(record=OFF) for _ in range(known.record is UNKNOWN)),
        *(known._replace(default=each) for each in (Tri.YES, Tri.NO) if known.default is Tri.UNKNOWN),
        *(known._replace(wrote=each) for each in PmuElement if known.wrote is None),
    )
    yield from (learned for learned in open_now if any(fits(each, learned) for each in conclude(known).possible))


def test_what_is_concluded_without_knowing_stays_true_whatever_it_turns_out_to_be() -> None:
    compared = 0
    for known, conclusion in every_combination():
        if not any(fits(each, known) for each in conclusion.possible):
            continue  # what is known contradicts itself
        for learned in refinements(known):
            after = conclude(learned)
            if learned.copied is known.copied is UNKNOWN:
                assert set(after.possible) <= set(conclusion.possible), (known, learned)
            if conclusion.next_element is not None:
                assert after.next_element is conclusion.next_element, (known, learned)
            if conclusion.conflict is not Tri.UNKNOWN:
                assert after.conflict is conclusion.conflict
            for means in ABSENT_MEANS:
                before = pmu_verdict(conclusion, means)
                assert before in (Verdict.UNKNOWN, pmu_verdict(after, means)), (known, learned)
            compared += 1
    assert compared > 5_000


def test_an_origin_that_was_told_stays_unless_what_nova_wrote_or_a_record_of_this_agent_comes_to_light() -> None:
    for known, conclusion in every_combination():
        if conclusion.origin is PmuOrigin.UNKNOWN or not any(fits(each, known) for each in conclusion.possible):
            continue
        for learned in refinements(known):
            if learned.record is known.record and learned.wrote is known.wrote:
                assert conclude(learned).origin is conclusion.origin, (known, learned)


def test_only_a_definition_that_nova_does_not_write_is_behind_nova() -> None:
    for known, conclusion in every_combination():
        if conclusion.origin is PmuOrigin.BEHIND_NOVA:
            assert known.defined is not None
            assert known.defined not in {written_for(each) for each in conclusion.possible}


def test_a_definition_edited_while_it_runs_is_behind_nova() -> None:
    edited = Known(SILENT, SILENT, Tri.NO, wrote=PmuElement.ABSENT, defined=PmuElement.OFF, runs=True)
    assert conclude(edited).origin is PmuOrigin.BEHIND_NOVA
    assert conclude(edited._replace(flavor=UNKNOWN, image=UNKNOWN, default=Tri.UNKNOWN)).origin is PmuOrigin.BEHIND_NOVA
    assert survives(conclude(edited), PmuSetting.OFF, PmuSetting.DEFAULT_OFF) is Tri.NO


def test_a_definition_that_no_cause_explains_is_behind_nova_even_where_the_default_is_not_known() -> None:
    assert conclude(Known(SILENT, SILENT, defined=PmuElement.ON)).origin is PmuOrigin.BEHIND_NOVA


def test_a_stopped_instance_whose_property_was_set_since_is_not_behind_nova() -> None:
    set_since = Known(SILENT, UNKNOWN, record=OFF, copied=SILENT, defined=PmuElement.ABSENT)
    assert (conclude(set_since).origin, conclude(set_since).next_element) == (PmuOrigin.REMEDY, PmuElement.OFF)
    by_somebody = Known(SILENT, OFF, defined=PmuElement.ABSENT)
    assert conclude(by_somebody).origin is PmuOrigin.IMAGE
    assert conclude(by_somebody._replace(runs=True)).origin is PmuOrigin.BEHIND_NOVA
    by_flavor = Known(OFF, SILENT, defined=PmuElement.ABSENT)
    assert conclude(by_flavor).origin is PmuOrigin.BEHIND_NOVA


def test_a_record_that_what_nova_wrote_since_denies_is_set_aside() -> None:
    """A rebuild onto the same image drops the property, and leaves the record as it is."""
    dropped = conclude(Known(SILENT, UNKNOWN, wrote=PmuElement.ABSENT, record=OFF, copied=SILENT, defined=PmuElement.ABSENT, runs=True))
    assert (dropped.origin, dropped.next_element) == (PmuOrigin.QEMU_DEFAULT, PmuElement.ABSENT)


@pytest.mark.parametrize(
    ("known", "persistent", "means", "answer"),
    [
        (Known(OFF, SILENT), PmuSetting.OFF, PmuSetting.UNKNOWN, Tri.YES),
        (Known(OFF, SILENT), PmuSetting.DEFAULT_ON, PmuSetting.DEFAULT_ON, Tri.NO),
        (Known(SILENT, SILENT, Tri.NO), PmuSetting.DEFAULT_ON, PmuSetting.DEFAULT_ON, Tri.YES),
        (Known(SILENT, SILENT, Tri.NO), PmuSetting.OFF, PmuSetting.DEFAULT_OFF, Tri.NO),
        (Known(SILENT, SILENT), PmuSetting.ON, PmuSetting.DEFAULT_ON, Tri.NO),
        (Known(SILENT, SILENT), PmuSetting.OFF, PmuSetting.DEFAULT_ON, Tri.UNKNOWN),
        (Known(SILENT, SILENT, Tri.NO), PmuSetting.UNKNOWN, PmuSetting.DEFAULT_ON, Tri.UNKNOWN),
        (Known(SILENT, SILENT, Tri.NO), PmuSetting.OFF, PmuSetting.UNKNOWN, Tri.UNKNOWN),
        (Known(ON, OFF), PmuSetting.UNKNOWN, PmuSetting.UNKNOWN, Tri.NO),
    ],
)
def test_whether_the_definition_survives(known: Known, persistent: PmuSetting, means: PmuSetting, answer: Tri) -> None:
    assert survives(conclude(known), persistent, means) is answer


says = st.sampled_from(Said)
elements = st.sampled_from(ELEMENTS)
records = st.sampled_from((UNKNOWN, OFF))


@given(st.builds(Known, says, says, st.sampled_from(Tri), elements, records, says, elements, st.booleans()))
def test_some_possibility_is_always_left_and_shown_properties_are_never_set_aside(known: Known) -> None:
    possible = conclude(known).possible
    assert possible
    assert all(known.flavor in (UNKNOWN, each.flavor) and known.image in (UNKNOWN, each.image) for each in possible)
