"""What Nova will write into an instance's XML, and where that comes from, by everything that is known of it. Pure.

Three things decide what Nova writes each time it generates the XML (nova/virt/hardware.py, get_pmu_constraint): what the flavor
embedded in the instance says, what its stored image properties say, and whether this Nova has a default of its own:

    flavor     image      default    Nova writes              origin
    on|off     silent     any        what the flavor says     flavor
    silent     on|off     any        what the image says      image; remedy, where this agent set it
    on|off     the same   any        what both say            flavor_and_image
    on|off     the other  any        nothing: start refused   conflict
    silent     silent     yes        off                      cloud_default
    silent     silent     no         no element               qemu_default

Often not all three are known. So every possibility is kept that the evidence leaves, and only what all of them have in common is
concluded: whatever turns out to be so later, what was said stays true. Evidence is taken strongest first; what leaves no possibility is
out of date or wrong, and is set aside:

1. the embedded flavor, and stored image properties where Nova shows them (its API, or the XML of a run from 32.0.0 on);
2. what Nova wrote when it began this run here;
3. the record of a stored property that this agent set;
4. whether this compute's Nova has a default, by witnesses;
5. what was copied: Glance's image, where it has not changed since the instance was made, or the XML of its last start. nova-manage may
   have changed the copy since, so this proves nothing of a default, and does not hold against a definition that says otherwise.

The origin is `behind_nova` where the definition says what Nova does not write for any of the possibilities that are left.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from exitguard.audit.nova import wish
from exitguard.model.finding import Verdict
from exitguard.model.instance import PmuOrigin
from exitguard.model.pmu import PmuElement, PmuSetting, Tri


class Said(StrEnum):
    """What a flavor or an image says of the PMU."""

    ON = "on"
    OFF = "off"
    SILENT = "silent"
    UNKNOWN = "unknown"


class Source(StrEnum):
    """What decided what the stored image properties say."""

    SHOWN = "shown"
    WRITTEN = "written"
    RECORD = "record"
    DEFAULT = "default"
    COPY = "copy"
    NOTHING = "nothing"


def said(text: str | None) -> Said:
    """A property's text as it is stored; one that is no boolean is unknown, since what becomes of it is up to Nova's version."""
    if text is None:
        return Said.UNKNOWN
    if not text:
        return Said.SILENT
    wanted = wish(text)
    return Said.UNKNOWN if wanted is None else Said.ON if wanted else Said.OFF


class Possibility(NamedTuple):
    """One way in which it may be: nothing in it is unknown."""

    flavor: Said
    image: Said
    default: bool

    @property
    def conflicts(self) -> bool:
        return {self.flavor, self.image} == {Said.ON, Said.OFF}

    @property
    def asked_on(self) -> bool:
        return Said.ON in (self.flavor, self.image)


_SAID = (Said.ON, Said.OFF, Said.SILENT)
_ALL = tuple(Possibility(*values) for values in product(_SAID, _SAID, (True, False)))


def written_for(possibility: Possibility) -> PmuElement | None:
    """The element that Nova writes; None where it refuses to."""
    if possibility.conflicts:
        return None
    if possibility.asked_on:
        return PmuElement.ON
    if Said.OFF in possibility[:2] or possibility.default:
        return PmuElement.OFF
    return PmuElement.ABSENT


class Known(NamedTuple):
    """What is known of one instance; UNKNOWN and None for what is not."""

    #: Embedded, and of the stored image properties as Nova shows them.
    flavor: Said
    image: Said
    #: Whether Nova on its compute host defaults to PMU off.
    default: Tri = Tri.UNKNOWN
    #: The element that Nova itself wrote for the run that its host's facts show.
    wrote: PmuElement | None = None
    #: What nova_instance_pmu_off set, by its record.
    record: Said = Said.UNKNOWN
    #: What was copied from the image, unless nova-manage has changed it since.
    copied: Said = Said.UNKNOWN
    #: The element of the definition.
    defined: PmuElement | None = None
    #: Whether it is known to run; else the definition may be older than what is stored now, and Nova writes it anew before it counts.
    runs: bool = False


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What follows from what is known, with every possibility that it leaves."""

    possible: tuple[Possibility, ...]
    #: The element that Nova will write next; None where that is not known, or where it refuses to.
    next_element: PmuElement | None
    origin: PmuOrigin
    conflict: Tri
    #: Whether flavor or image ask for the PMU.
    asked_on: Tri
    #: What the stored image properties say, and what shows that.
    image: Said
    image_by: Source


@lru_cache(maxsize=1 << 15)  # over all that can be known there are fewer
def conclude(known: Known) -> Conclusion:
    """What all the possibilities have in common that the evidence leaves."""
    possible, image_by = _left(known)
    elements = {written_for(each) for each in possible}
    origins = {_origin(each, known) for each in possible}
    return Conclusion(
        possible=possible,
        next_element=elements.pop() if len(elements) == 1 else None,
        origin=origins.pop() if len(origins) == 1 else PmuOrigin.UNKNOWN,
        conflict=_agreed(each.conflicts for each in possible),
        asked_on=_agreed(each.asked_on for each in possible),
        image=_image(possible),
        image_by=image_by,
    )


def _left(known: Known) -> tuple[tuple[Possibility, ...], Source]:
    """The possibilities that the evidence leaves, and which evidence decided what the image says."""
    possible, decided_by = _ALL, Source.NOTHING
    for source, left in _evidence(known):
        possible = tuple(each for each in possible if each in left) or possible
        if decided_by is Source.NOTHING and _image(possible) is not Said.UNKNOWN:
            decided_by = source
    copied = _with_copy(possible, known)
    if decided_by is Source.NOTHING and _image(copied) is not Said.UNKNOWN:
        decided_by = Source.COPY
    return copied, decided_by


def _evidence(known: Known) -> Iterator[tuple[Source, frozenset[Possibility]]]:
    """What each piece of evidence leaves, the strongest first."""
    yield Source.SHOWN, _those(lambda each: known.flavor in (each.flavor, Said.UNKNOWN) and known.image in (each.image, Said.UNKNOWN))
    yield Source.WRITTEN, _those(lambda each: known.wrote is None or written_for(each) is known.wrote)
    yield Source.RECORD, _those(lambda each: known.record in (each.image, Said.UNKNOWN))
    yield Source.DEFAULT, _those(lambda each: known.default in (Tri.UNKNOWN, Tri.YES if each.default else Tri.NO))


def _with_copy(possible: tuple[Possibility, ...], known: Known) -> tuple[Possibility, ...]:
    """What a copy leaves: another image only where its like with the copy is ruled out, or does not explain a definition that it does."""
    if known.copied is Said.UNKNOWN:
        return possible
    likes = {each: each._replace(image=known.copied) for each in possible}
    return tuple(
        each
        for each, like in likes.items()
        if each == like or like not in likes or (written_for(each) is known.defined is not None and written_for(like) is not known.defined)
    )


def _those(may_be: Callable[[Possibility], bool]) -> frozenset[Possibility]:
    return frozenset(filter(may_be, _ALL))


def _image(possible: tuple[Possibility, ...]) -> Said:
    images = {each.image for each in possible}
    return images.pop() if len(images) == 1 else Said.UNKNOWN


def _origin(possibility: Possibility, known: Known) -> PmuOrigin:
    if possibility.conflicts:
        return PmuOrigin.CONFLICT
    if known.defined not in (None, written_for(possibility)) and not _may_be_older(possibility, known):
        return PmuOrigin.BEHIND_NOVA
    match possibility:
        case (Said.SILENT, Said.SILENT, default):
            return PmuOrigin.CLOUD_DEFAULT if default else PmuOrigin.QEMU_DEFAULT
        case (_, Said.SILENT, _):
            return PmuOrigin.FLAVOR
        case (Said.SILENT, image, _):
            return PmuOrigin.REMEDY if image is known.record else PmuOrigin.IMAGE
        case _:
            return PmuOrigin.FLAVOR_AND_IMAGE


def _may_be_older(possibility: Possibility, known: Known) -> bool:
    """Whether a definition that differs may be Nova's own, of before a stored property was set or a default came.

    Properties can be set while an instance is stopped only; its flavor changes by a resize only, which writes the definition anew.
    """
    if possibility.flavor is not Said.SILENT:
        return False
    if possibility.image is not Said.SILENT:
        return not known.runs
    return possibility.default and known.wrote is None and known.defined is PmuElement.ABSENT


def setting_after(element: PmuElement | None, absent_means: PmuSetting) -> PmuSetting:
    """What the next start will have; `absent_means`: what QEMU does without an element, by the CPU mode."""
    if element is None:
        return PmuSetting.UNKNOWN
    return absent_means if element is PmuElement.ABSENT else PmuSetting(element.value)


def survives(conclusion: Conclusion, persistent: PmuSetting, absent_means: PmuSetting) -> Tri:
    """Whether the next start by Nova has what the definition says now."""
    return _agreed(_survives(each, persistent, absent_means) for each in conclusion.possible)


def _survives(possibility: Possibility, persistent: PmuSetting, absent_means: PmuSetting) -> Tri:
    if possibility.conflicts:
        return Tri.NO
    settings = (persistent, setting_after(written_for(possibility), absent_means))
    if PmuSetting.UNKNOWN in settings or persistent is PmuSetting.NONE:
        return Tri.UNKNOWN
    return Tri.YES if settings[0] is settings[1] else Tri.NO


def pmu_verdict(conclusion: Conclusion, absent_means: PmuSetting) -> Verdict:
    """NOVA-INSTANCE-PMU: the next start by Nova has the PMU off, unless flavor or image ask for it."""
    verdicts = {_pmu_verdict(each, absent_means) for each in conclusion.possible}
    return verdicts.pop() if len(verdicts) == 1 else Verdict.UNKNOWN


def _pmu_verdict(possibility: Possibility, absent_means: PmuSetting) -> Verdict:
    if possibility.asked_on:
        return Verdict.NOT_APPLICABLE
    match setting_after(written_for(possibility), absent_means):
        case PmuSetting.OFF | PmuSetting.DEFAULT_OFF:
            return Verdict.PASS
        case PmuSetting.DEFAULT_ON:
            return Verdict.FAIL
        case _:
            return Verdict.UNKNOWN


def conflict_verdict(conclusion: Conclusion) -> Verdict:
    """NOVA-FLAVOR-IMAGE-CONFLICT: the next start is not refused."""
    return {Tri.YES: Verdict.FAIL, Tri.NO: Verdict.PASS, Tri.UNKNOWN: Verdict.UNKNOWN}[conclusion.conflict]


def _agreed(answers: Iterable[Tri | bool]) -> Tri:
    """What all say; unknown where they do not say the same."""
    distinct = {each if isinstance(each, Tri) else Tri.YES if each else Tri.NO for each in answers}
    return distinct.pop() if len(distinct) == 1 else Tri.UNKNOWN
