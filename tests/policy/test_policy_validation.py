"""What pydantic finds is told in an operator's words, whatever the model; test_policy_load.py has the cases of the policy."""

from datetime import date

import pytest
from pydantic import BaseModel, ConfigDict

from exitguard.policy.validation import shown, validate
from exitguard.policy.yaml_source import SourceError, parse_yaml


class Left(BaseModel):
    model_config = ConfigDict(extra="forbid")
    left: int


class Right(BaseModel):
    model_config = ConfigDict(extra="forbid")
    right: int


class Either(BaseModel):
    one: Left | Right | None = None
    day: date | None = None


def sentences(text: str) -> list[str]:
    source = parse_yaml(text, "x.yaml")
    with pytest.raises(SourceError) as caught:
        validate(Either, source, source.data)
    return [problem.sentence for problem in caught.value.problems]


def test_error_without_words_of_its_own_keeps_those_of_the_library() -> None:
    (sentence,) = sentences("day: tomorrow\n")
    assert sentence.startswith("x.yaml:1: day: expected something else (input should be a valid date")
    assert sentence.endswith("found 'tomorrow'")


def test_unknown_key_in_a_union_of_models_has_its_line() -> None:
    assert "x.yaml:3: one.middle: this key is unknown" in sentences("one:\n  left: 1\n  middle: 2\n")


def test_value_of_no_member_of_a_union_is_expected_once() -> None:
    assert sentences("one: 5\n") == ["x.yaml:1: one: expected a mapping, found the number 5"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        (True, "true"),
        (False, "false"),
        (0, "the number 0"),
        (2.5, "the number 2.5"),
        ("off", "'off'"),
        ("x" * 61, "'" + "x" * 60 + "'…"),
        ([], "a list of 0"),
        ({}, "an empty mapping"),
        ({"a": 1, "b": 2}, "a mapping with the keys a, b"),
        (dict.fromkeys("abcdef"), "a mapping with the keys a, b, c, d, e, …"),
    ],
)
def test_value_is_shown_in_a_few_words(value: object, words: str) -> None:
    assert shown(value) == words
