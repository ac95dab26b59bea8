"""Waivers, applied: which failing findings somebody has answered for. Pure; the time is an argument.

What a waiver covers, by the scope it gives:

- hosts only: every finding about those hosts and about every domain on them, and about every instance that a cloud has on them;
- domains only: findings about those domains or instances, on any host;
- both: findings about those domains or instances on those hosts;
- flavors, or images: findings about those flavors or images of a cloud.

Only a failing finding about a host, a domain, or a cloud's flavor, image or instance can be waived: not knowing is no failure, and a
fault of the waivers themselves is never waived. Names match exactly, as written; there are no patterns, since tenants may choose the names
of their domains, instances and images. A name can still be taken by another, above all on another host: the uuid is the safe way, and an
entry that is a UUID matches ids only, never a name that looks like one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import compress
from typing import NamedTuple
from uuid import UUID

from exitguard.model.finding import Finding, Subject, SubjectKind, Verdict
from exitguard.model.time import format_rfc3339
from exitguard.policy.schema import Waiver

ALL = "*"


@dataclass(frozen=True)
class WaiverUse:
    """What became of the waivers on one host, or of those about one cloud: each stands in exactly one of these, in the order given."""

    #: In force, and covering at least one failing finding.
    active: tuple[Waiver, ...] = ()
    expired: tuple[Waiver, ...] = ()
    #: Created in the future: a clock is wrong, or the date is.
    not_yet: tuple[Waiver, ...] = ()
    #: In force for this host, and covering no failing finding: what it was for is mended, or its scope or rules are misspelt.
    unmatched: tuple[Waiver, ...] = ()
    #: In force for other hosts, or for domains that are not here: a fleet shares its waiver files, so that is no fault.
    elsewhere: tuple[Waiver, ...] = ()


def apply_waivers(
    findings: tuple[Finding, ...], waivers: tuple[Waiver, ...], *, host_id: str, hostname: str | None, now: datetime
) -> tuple[tuple[Finding, ...], WaiverUse]:
    """The findings of one host in the same order, the covered ones as `waived`, and what became of each waiver.

    The first waiver that covers a finding is named by it; a later one that covers it too counts as active all the same.
    A waiver is in force from `created` until before `expires`.
    """
    if not waivers:
        return findings, WaiverUse()
    in_force = tuple(waiver for waiver in waivers if waiver.created <= now < waiver.expires)
    domains = tuple({finding.subject.id: finding.subject for finding in findings if finding.subject.kind is SubjectKind.DOMAIN}.values())
    here = tuple(_concerns(waiver, host_id, hostname, domains) for waiver in in_force)
    concerned = tuple(compress(in_force, here))
    used: set[int] = set()
    judged: list[Finding] = []
    for finding in findings:
        matching = [index for index, waiver in enumerate(concerned) if _covers(waiver, finding)]
        used.update(matching)
        judged.append(_waive(finding, concerned[matching[0]]) if matching else finding)
    return tuple(judged), WaiverUse(
        active=tuple(waiver for index, waiver in enumerate(concerned) if index in used),
        expired=tuple(waiver for waiver in waivers if now >= waiver.expires),
        not_yet=tuple(waiver for waiver in waivers if now < waiver.created),
        unmatched=tuple(waiver for index, waiver in enumerate(concerned) if index not in used),
        elsewhere=tuple(compress(in_force, (not concerns for concerns in here))),
    )


def protects(waiver: Waiver, subject: Subject, *, host_id: str, hostname: str | None) -> bool:
    """Whether a waiver's scope names this domain, on this host: whoever answered for any failure of it wants it left alone.

    Unlike `apply_waivers` this asks for no failing finding: a waiver for a running guest protects it while it is shut off, too.
    """
    return _has(waiver, subject, Place(host_id, hostname))


class Place(NamedTuple):
    """Where something is: a host's id, and its name. None where it is not known."""

    host_id: str | None
    hostname: str | None


@dataclass(frozen=True)
class Inhabitants:
    """What there is in a cloud: every id and name of its flavors, images, instances and compute hosts, ids as `str(UUID)` writes them."""

    flavors: frozenset[str]
    images: frozenset[str]
    domains: frozenset[str]
    hosts: frozenset[str]


def apply_cloud_waivers(
    findings: tuple[Finding, ...], waivers: tuple[Waiver, ...], *, places: Mapping[str, Place], inhabitants: Inhabitants, now: datetime
) -> tuple[tuple[Finding, ...], WaiverUse]:
    """As `apply_waivers`, of a cloud. `places` has of each instance where it is, by uuid."""
    if not waivers:
        return findings, WaiverUse()
    in_force = tuple(waiver for waiver in waivers if waiver.created <= now < waiver.expires)
    by_rule: dict[str, list[Waiver]] = {}
    for waiver in in_force:
        for rule in waiver.rules:
            by_rule.setdefault(rule, []).append(waiver)
    used: set[int] = set()
    judged = []
    for finding in findings:
        matching = [waiver for waiver in by_rule.get(finding.rule, ()) if _covers_in_cloud(waiver, finding, places)]
        used.update(map(id, matching))
        judged.append(_waive(finding, matching[0]) if matching else finding)
    idle = [waiver for waiver in in_force if id(waiver) not in used]
    return tuple(judged), WaiverUse(
        active=tuple(waiver for waiver in in_force if id(waiver) in used),
        expired=tuple(waiver for waiver in waivers if now >= waiver.expires),
        not_yet=tuple(waiver for waiver in waivers if now < waiver.created),
        unmatched=tuple(waiver for waiver in idle if _lives_here(waiver, inhabitants)),
        elsewhere=tuple(waiver for waiver in idle if not _lives_here(waiver, inhabitants)),
    )


def _covers_in_cloud(waiver: Waiver, finding: Finding, places: Mapping[str, Place]) -> bool:
    return finding.verdict is Verdict.FAIL and _has(waiver, finding.subject, places.get(finding.subject.id, Place(None, None)))


def _lives_here(waiver: Waiver, inhabitants: Inhabitants) -> bool:
    """Whether what a waiver names is in the cloud: its hosts where it names any, else whatever else it names."""
    scope = waiver.scope
    for named, there in (
        (scope.hosts, inhabitants.hosts),
        (scope.domains, inhabitants.domains),
        (scope.flavors, inhabitants.flavors),
        (scope.images, inhabitants.images),
    ):
        if named:
            return any(entry == ALL or str(_uuid(entry) or entry) in there for entry in named)
    return False


def _has(waiver: Waiver, subject: Subject, place: Place) -> bool:
    """Whether a waiver's scope has this subject, at this place."""
    scope = waiver.scope
    match subject.kind:
        case SubjectKind.FLAVOR:
            return any(_names(entry, subject.id, subject.name) for entry in scope.flavors)
        case SubjectKind.IMAGE:
            return any(_names(entry, subject.id, subject.name) for entry in scope.images)
        case SubjectKind.DOMAIN | SubjectKind.INSTANCE if scope.hosts or scope.domains:
            on_this_host = not scope.hosts or any(_names(entry, place.host_id, place.hostname) for entry in scope.hosts)
            return on_this_host and (not scope.domains or _scope_has_domain(waiver, subject))
        case _:
            return False


def _concerns(waiver: Waiver, host_id: str, hostname: str | None, domains: tuple[Subject, ...]) -> bool:
    """Whether a waiver is about this host: it names it, or it names no host and a domain that is here."""
    if waiver.scope.hosts:
        return any(_names(entry, host_id, hostname) for entry in waiver.scope.hosts)
    return any(_scope_has_domain(waiver, domain) for domain in domains)


def _covers(waiver: Waiver, finding: Finding) -> bool:
    if finding.verdict is not Verdict.FAIL or finding.rule not in waiver.rules:
        return False
    match finding.subject.kind:
        case SubjectKind.HOST:
            return bool(waiver.scope.hosts) and not waiver.scope.domains
        case SubjectKind.DOMAIN:
            return bool(waiver.scope.hosts and not waiver.scope.domains) or _scope_has_domain(waiver, finding.subject)
        case _:
            return False


def _scope_has_domain(waiver: Waiver, subject: Subject) -> bool:
    return any(_names(entry, subject.id, subject.name) for entry in waiver.scope.domains)


def _names(entry: str, subject_id: str | None, name: str | None) -> bool:
    if entry == ALL:
        return True
    uuid = _uuid(entry)
    if uuid is not None:
        return subject_id is not None and uuid == _uuid(subject_id)
    return entry in (name, subject_id)  # an id that is no uuid is a flavor's, which an operator chose


@lru_cache(maxsize=4096)
def _uuid(text: str) -> UUID | None:
    """`text` as a UUID, however it is written; None where it is none."""
    try:
        return UUID(text)
    except ValueError:
        return None


def _waive(finding: Finding, waiver: Waiver) -> Finding:
    reason = f"{finding.reason} (waived by {waiver.approver} until {format_rfc3339(waiver.expires)}, waiver {waiver.id})"
    return finding.model_copy(update={"verdict": Verdict.WAIVED, "waiver": waiver.id, "reason": reason})
