"""RFC 8785, integers only: compared with an independent implementation."""

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from exitguard.model.canonical import canonical_json, content_hash, record_hash
from exitguard.model.documents import FactsDocument
from exitguard.model.plan import Plan
from exitguard.policy.schema import Rulebook

TEXT = st.text(st.characters(codec="utf-8"))
INTEGERS = st.integers(min_value=-(2**53) + 1, max_value=2**53 - 1)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30
)


@given(DOCUMENTS)
def test_it_is_what_another_implementation_writes(document: object) -> None:
    assert canonical_json(document) == rfc8785.dumps(document)


def test_keys_are_sorted_by_utf_16_code_units_not_by_code_points() -> None:
    assert canonical_json({"\U0001f600": 1, "\ufb33": 2}) == '{"\U0001f600":1,"\ufb33":2}'.encode()


def test_the_order_of_writing_does_not_change_a_hash_and_a_value_does() -> None:
    assert content_hash({"a": 1, "b": [True, None]}) == content_hash({"b": (True, None), "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})


def test_a_hash_is_sha256_over_the_canonical_text() -> None:
    # printf '{}' | sha256sum
    assert content_hash({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [1.0, float("nan"), 2**53, -(2**53), "\ud800", {"a": "\udfff"}, {1: "a"}, b"bytes", object()])
def test_what_has_no_exact_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"canonical JSON|too large"):
        canonical_json(value)


@given(DOCUMENTS)
def test_the_fast_hash_of_a_record_is_the_hash(document: object) -> None:
    assert record_hash(document) == content_hash(document)


@pytest.mark.parametrize("record", [FactsDocument, Plan, Rulebook])
def test_no_record_that_is_hashed_fast_has_a_fraction_anywhere(record: type[BaseModel]) -> None:
    def types(schema: object) -> set[object]:
        if isinstance(schema, dict):
            return ({"number"} if schema.get("type") == "number" else set()) | {each for value in schema.values() for each in types(value)}
        return {each for value in schema for each in types(value)} if isinstance(schema, list) else set()

    assert types(record.model_json_schema(mode="serialization")) == set()
