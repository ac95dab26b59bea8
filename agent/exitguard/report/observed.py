"""Every observation in a document, seen or not, with the path that leads to it. What could not be seen is told everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exitguard.model.record import Observed, Record


@dataclass(frozen=True)
class Sighting:
    """One observation. `topic` is its path without the names of list elements: equal for the same fact of two domains."""

    topic: str
    #: The names of the list elements on the way to it, outermost first: a domain's, a program's.
    within: tuple[str, ...]
    observed: Observed[Any]


@dataclass(frozen=True)
class Missing:
    """What one source did not show, for one reason: one topic or several, of the host or of many domains."""

    topics: tuple[str, ...]
    source: str
    reason: str
    unlock: str | None
    #: The names on the way to each observation of the first topic; one empty tuple for a fact of the host.
    within: tuple[tuple[str, ...], ...]


def sightings(record: Record, topic: str = "", within: tuple[str, ...] = ()) -> Iterator[Sighting]:
    """Every `Observed` below `record`, in the order of the model, those inside of seen values included."""
    for field in type(record).model_fields:
        yield from _walk(getattr(record, field), f"{topic}.{field}" if topic else field, within)


def missing(record: Record) -> list[Missing]:
    """What was not seen, in the order of the model: the same fact of many domains together, and all that one source kept back."""
    facts: dict[tuple[str, str, str | None], list[Sighting]] = {}
    for sighting in sightings(record):
        if sighting.observed.reason is not None:
            facts.setdefault((sighting.topic, sighting.observed.reason, sighting.observed.unlock), []).append(sighting)
    sources: dict[tuple[object, ...], Missing] = {}
    for (topic, reason, unlock), members in facts.items():
        source = members[0].observed.source
        within = tuple(member.within for member in members)
        key = (source, reason, unlock, within)
        topics = sources[key].topics if key in sources else ()
        sources[key] = Missing((*topics, topic), source, reason, unlock, within)
    return list(sources.values())


def _walk(value: object, topic: str, within: tuple[str, ...]) -> Iterator[Sighting]:
    match value:
        case Observed():
            yield Sighting(topic, within, value)
            yield from _walk(value.value, topic, within)
        case Record():
            yield from sightings(value, topic, within)
        case tuple():
            for place, element in enumerate(value):
                yield from _walk(element, topic, (*within, _name_of(element, place)))
        case _:
            return


def _name_of(element: object, place: int) -> str:
    for attribute in ("name", "path", "release"):
        name = getattr(element, attribute, None)
        if isinstance(name, str):
            return name
    return str(place + 1)
