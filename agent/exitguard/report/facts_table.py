"""A facts document for a person: every fact with its value, or why there is none. Walks the model, so nothing is left out."""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainFacts
from exitguard.model.record import Observed, Record
from exitguard.report.page import DOUBT, FAINT, STRONG, Look, counted, heading, indented, labelled, render

_MOST_DOMAINS = 50
_MOST_ELEMENTS = 40
_LABEL_COLUMNS = 24


def facts_table(facts: FactsDocument, look: Look) -> str:
    """The facts as a page: the host's parts, then its domains."""
    return render(look, _parts(facts, look))


def _parts(facts: FactsDocument, look: Look) -> Iterator[RenderableType]:
    name = facts.host.identity.hostname.value or facts.host.identity.id
    yield Text.assemble(
        look.own("Facts of "),
        look.foreign(name, STRONG, limit_characters=64),
        look.own(f", observed {facts.observed_at:%Y-%m-%d %H:%M} UTC", FAINT),
    )
    yield look.own(facts.host_hash, FAINT)
    for field in type(facts.host).model_fields:
        yield heading(look, field.replace("_", " "))
        yield _section(getattr(facts.host, field), look)
    yield heading(look, "domains", counted(len(facts.domains), "domain"))
    for domain in facts.domains[:_MOST_DOMAINS]:
        yield indented(Text.assemble(look.foreign(domain.name, STRONG, limit_characters=64), look.own(f"  {domain.uuid}", FAINT)))
        yield labelled(look, list(_domain_rows(domain, look)), columns=4, label_columns=_LABEL_COLUMNS)
    if len(facts.domains) > _MOST_DOMAINS:
        yield indented(look.own(f"… and {len(facts.domains) - _MOST_DOMAINS:,} more, see --format json", DOUBT))


def _domain_rows(domain: DomainFacts, look: Look) -> Iterator[tuple[str, Text]]:
    for field in type(domain).model_fields:
        if field not in {"uuid", "name"}:
            yield from _rows(getattr(domain, field), field, look)


def _section(value: object, look: Look) -> RenderableType:
    rows = list(_rows(value, "", look))
    if len(rows) == 1 and not rows[0][0]:
        return indented(rows[0][1])
    return labelled(look, rows, label_columns=_LABEL_COLUMNS)


def _rows(value: object, label: str, look: Look) -> Iterator[tuple[str, Text]]:
    """One row a leaf; the label is the path of field names, shortened from the left where it is long."""
    match value:
        case Observed():
            if value.reason is not None:
                yield _fit(label, look), _unseen(value, look)
            else:
                yield from _rows(value.value, label, look)
        case Record():
            for field in type(value).model_fields:
                yield from _rows(getattr(value, field), f"{label} {field}" if label else field, look)
        case Mapping():
            yield from _elements([(str(key), element) for key, element in value.items()], label, look)
        case tuple() if any(isinstance(element, Record) for element in value):
            for place, element in enumerate(value[:_MOST_ELEMENTS], start=1):
                yield f"{place}.", Text()
                yield from _rows(element, label, look)
            if len(value) > _MOST_ELEMENTS:
                yield "", look.own(f"… and {len(value) - _MOST_ELEMENTS:,} more, see --format json", DOUBT)
        case tuple():
            yield _fit(label, look), _list(value, look)
        case _:
            yield _fit(label, look), _scalar(value, look)


def _elements(entries: list[tuple[str, object]], label: str, look: Look) -> Iterator[tuple[str, Text]]:
    if not entries:
        yield _fit(label, look), look.own("none", FAINT)
    for key, element in entries[:_MOST_ELEMENTS]:
        yield _fit(key, look), _scalar(element, look)
    if len(entries) > _MOST_ELEMENTS:
        yield "", look.own(f"… and {len(entries) - _MOST_ELEMENTS:,} more, see --format json", DOUBT)


def _unseen(observed: Observed[Any], look: Look) -> Text:
    text = Text.assemble(look.own("not seen: ", DOUBT), look.foreign(observed.reason or "", DOUBT))
    return text.append_text(look.own(" (", FAINT)).append_text(look.foreign(observed.source, FAINT)).append_text(look.own(")", FAINT))


def _list(values: tuple[object, ...], look: Look) -> Text:
    if not values:
        return look.own("none", FAINT)
    text = Text(", ").join(_scalar(value, look) for value in values[:_MOST_ELEMENTS])
    if len(values) > _MOST_ELEMENTS:
        text.append_text(look.own(f" and {len(values) - _MOST_ELEMENTS:,} more", FAINT))
    return text


def _scalar(value: object, look: Look) -> Text:
    match value:
        case None:
            return look.own("-", FAINT)
        case bool():
            return look.own("yes" if value else "no")
        case Enum():
            return look.own(str(value.value))
        case _:
            return look.foreign(str(value))


def _fit(label: str, look: Look) -> str:
    shown = look.foreign(label.replace("_", " ") if "." not in label else label).plain
    if len(shown) <= _LABEL_COLUMNS:
        return shown
    ellipsis = look.own("…").plain
    return ellipsis + shown[len(ellipsis) - _LABEL_COLUMNS :]
