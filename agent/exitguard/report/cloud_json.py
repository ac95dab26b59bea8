"""A large document as JSON text in pieces, the same as `json_text` gives at once: a cloud has 100,000 instances, and memory is finite."""

from collections.abc import Iterator

from exitguard.model.record import Record
from exitguard.report.json_document import json_text


def json_pieces(document: Record) -> Iterator[str]:
    """`document` as indented JSON, field by field, and long lists of records one record at a time."""
    separator = "{"
    for name in type(document).model_fields:
        value = getattr(document, name)
        if isinstance(value, tuple) and value and all(isinstance(each, Record) for each in value):
            yield f'{separator}\n  "{name}": ['
            yield from _elements(value)
            yield "\n  ]"
            separator = ","
            continue
        # One field with its name: the braces of the object and the newline that json_text ends in are taken off.
        field = json_text_of(document, name)
        if field:
            yield f"{separator}\n  {field}"
            separator = ","
    yield "\n}\n"


def _elements(records: tuple[Record, ...]) -> Iterator[str]:
    separator = "\n"
    for record in records:
        # No string of a JSON text holds a bare newline, so each of them is one between lines.
        yield separator + "    " + json_text(record).rstrip("\n").replace("\n", "\n    ")
        separator = ",\n"


def json_text_of(document: Record, name: str) -> str:
    """`"name": value` as it stands in the document, or nothing where the field is left out of it."""
    text = document.model_dump_json(indent=2, ensure_ascii=True, include={name}).replace("\x7f", "\\u007f")
    return text.removeprefix("{").removesuffix("}").strip()
