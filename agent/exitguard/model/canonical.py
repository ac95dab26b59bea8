"""RFC 8785 canonical JSON, integers only, and the `sha256:` hashes over it.

Integers only, because the one hard part of RFC 8785 is the printing of floating point, and a fact that needs a fraction
should name a smaller unit instead.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring

_LARGEST_EXACT = 2**53 - 1  # RFC 8785 section 3.2.2.3 builds on I-JSON (RFC 7493 section 2.2): larger integers are not exact

#: Below these, code points and UTF-16 units, by which RFC 8785 sorts, are in the same order, and nothing is a lone surrogate.
_FROM_SURROGATES_ON = re.compile("[\ud800-\U0010ffff]")

JsonValue = str | int | bool | None | Iterable["JsonValue"] | Mapping[str, "JsonValue"]


def canonical_json(value: JsonValue) -> bytes:
    """`value` as RFC 8785 JSON in UTF-8. Raises ValueError for floats, inexact integers, lone surrogates and non-string keys."""
    return _write(value).encode("utf-8")


def content_hash(value: JsonValue) -> str:
    """`sha256:` and 64 hex digits over the canonical JSON of `value`."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def record_hash(dumped: JsonValue) -> str:
    """`content_hash` of what a record's `model_dump(mode="json")` gave, several times as fast.

    Such a dump has text for keys and no fractions, since no record has a float (tests/model/test_canonical.py looks at all of them).
    """
    return "sha256:" + hashlib.sha256(record_json(dumped)).hexdigest()


def record_json(dumped: JsonValue) -> bytes:
    """`canonical_json` of the same, several times as fast. Raises ValueError for not-a-number, infinity and lone surrogates."""
    text = json.dumps(dumped, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
    if not text.isascii() and _FROM_SURROGATES_ON.search(text):
        return canonical_json(dumped)
    return text.encode("utf-8")


def _write(value: object) -> str:
    match value:
        case None | bool():
            return json.dumps(value)
        case int():
            if abs(value) > _LARGEST_EXACT:
                raise ValueError(f"{value} is too large for canonical JSON: expected at most 2^53-1; write it as a string")
            return str(value)
        case str():
            return _string(value)
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise ValueError("canonical JSON has string keys only")
            members = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
            return "{" + ",".join(f"{_string(key)}:{_write(member)}" for key, member in members) + "}"
        case list() | tuple():
            return "[" + ",".join(_write(item) for item in value) + "]"
        case _:
            raise ValueError(
                f"{type(value).__name__} has no canonical JSON here: expected text, integers, booleans, null, lists and objects"
            )


def _string(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text with a lone surrogate has no canonical JSON: {text!r}") from error
    return encode_basestring(text)
