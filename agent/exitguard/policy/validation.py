"""Plain data into a model, strictly; what does not fit is told in an operator's words: what was expected, what was found, where."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from exitguard.policy.part import PATTERN_WORDS
from exitguard.policy.problem import Problem, bounded_problems
from exitguard.policy.yaml_source import SourceError, YamlPath, YamlSource, YamlValue

M = TypeVar("M", bound=BaseModel)

_SHOWN_CHARACTERS = 60
_SHOWN_KEYS = 5

#: pydantic's error types (https://docs.pydantic.dev/latest/errors/validation_errors/) as what was expected instead.
_EXPECTED: Mapping[str, str] = {
    "string_type": "text",
    "path_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "enum": "{expected}",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}


def validate(model: type[M], source: YamlSource, value: YamlValue, *, at: YamlPath = ()) -> M:
    """`value`, which stands in `source` at the path `at`, as a `model`. Raises SourceError with all that is wrong.

    Strict, as JSON: a list is a tuple and text may name a member of an enumeration, but no text becomes true or a number.
    """
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise SourceError(bounded_problems(_problems(error, source, model, at))) from None


def _problems(error: ValidationError, source: YamlSource, model: type[BaseModel], at: YamlPath) -> list[Problem]:
    """In the order of the file, one a value."""
    details = [detail for detail in error.errors(include_url=False) if not _is_echo(detail)]
    paths = [_path(detail, source, at) for detail in details]
    expected: dict[tuple[YamlPath, str], list[str]] = {}
    sentences: list[tuple[YamlPath, str]] = []
    for detail, path in zip(details, paths, strict=True):
        context = detail.get("ctx", {})
        match detail["type"]:
            case "fault":
                sentences.append(((*path, *context["path"]), context["message"]))
            case "missing":
                sentences.append((path, "expected this key, found none"))
            case "extra_forbidden":
                sentences.append((path, _unknown_key(detail["loc"], model)))
            case "value_error":
                sentences.append((path, _with_input(str(context["error"]), detail["input"])))
            case _ if any(len(other) > len(path) and other[: len(path)] == path for other in paths):
                pass  # of a union: the member that was meant has more to say
            case _:
                words = _expectation(detail["type"], context, detail["msg"])
                expected.setdefault((path, shown(detail["input"])), []).append(words)
    for (path, found), alternatives in expected.items():
        words = " or ".join(dict.fromkeys(alternatives))
        sentences.append((path, f"expected {words}, found {found}{_hint(words, found)}"))
    problems = [source.problem(path, sentence) for path, sentence in sentences]
    return sorted(problems, key=lambda problem: problem.line or 0)


def shown(value: object) -> str:
    """A value of a file as a message shows it, bounded."""
    match value:
        case None | bool():
            return {None: "nothing", True: "true", False: "false"}[value]
        case int() | float():
            return f"the number {value}"
        case str():
            return repr(value) if len(value) <= _SHOWN_CHARACTERS else repr(value[:_SHOWN_CHARACTERS]) + "…"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            keys = ", ".join(str(key)[:_SHOWN_CHARACTERS] for key in list(value)[:_SHOWN_KEYS])
            return f"a mapping with the keys {keys}{', …' if len(value) > _SHOWN_KEYS else ''}" if value else "an empty mapping"
        case _:
            return f"a {type(value).__name__}"


def _is_echo(detail: ErrorDetails) -> bool:
    """A list that is long enough, but not of good members: pydantic then calls it too short as well."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _path(detail: ErrorDetails, source: YamlSource, at: YamlPath) -> YamlPath:
    """Where an error is in the file: without what pydantic adds to name the members of a union."""
    location = detail["loc"]
    about_key = detail["type"] in {"missing", "extra_forbidden"}
    path = at
    for part in location[:-1] if about_key else location:
        if (*path, part) in source.lines:
            path = (*path, part)
    return (*path, location[-1]) if about_key else path


def _expectation(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**context)
    match kind:
        case "string_pattern_mismatch":
            return PATTERN_WORDS.get(context["pattern"], f"text that matches {context['pattern']}")
        case "string_too_long":
            return f"at most {_count(context['max_length'], 'character')}"
        case "string_too_short":
            return f"at least {_count(context['min_length'], 'character')}"
        case "too_short":
            return f"a list of at least {context['min_length']}"
        case _:
            return f"something else ({message[:1].lower()}{message[1:]})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _hint(words: str, found: str) -> str:
    return ": write it in quotes" if words == "text" and found.startswith(("the number ", "true", "false")) else ""


def _with_input(message: str, value: object) -> str:
    """A validator's own sentence, and the value where the sentence does not show it."""
    return message if isinstance(value, dict | list) or repr(value) in message else f"{message}, found {shown(value)}"


def _unknown_key(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = _fields_at(location[:-1], model)
    near = difflib.get_close_matches(str(location[-1])[:_SHOWN_CHARACTERS], known, n=1)
    if near:
        return f"this key is unknown: did you mean {near[0]!r}?"
    return f"this key is unknown: expected one of {', '.join(known)}" if known else "this key is unknown"


def _fields_at(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The keys that are known where `location` leads from `model`."""
    for part in location:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            inner = None if field is None else _model_in(field.annotation)
            if inner is None:
                return []  # a part that names the member of a union
            model = inner
    return list(model.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model that an annotation such as `tuple[Rule, ...]` or `Scope | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for argument in get_args(annotation) if (inner := _model_in(argument)) is not None), None)
