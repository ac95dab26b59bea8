"""How many hosts were how, and when: out of every audit that is remembered, and out of the time that passed since."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN
from exitguard.report.result import STALE_AFTER


@dataclass(frozen=True, slots=True)
class Moment:
    """How many hosts were how at a time."""

    at: datetime
    by_exit_code: Mapping[int, int]


def history_of(points: Iterable[tuple[str, datetime, int]], until: datetime) -> tuple[Moment, ...]:
    """A moment wherever a host became another, out of (host, when, exit code), up to `until`.

    A host that was compliant is unknown once its audit is stale. Nothing where no host was seen twice: then there is no before.
    """
    points = sorted({point for point in points if point[1] <= until}, key=lambda point: point[1])
    if len({host for host, _, _ in points}) == len(points):
        return ()
    seen: dict[str, datetime] = {}
    changes: list[tuple[datetime, str, int]] = []
    for host, at, code in points:
        if host in seen and at - seen[host] > STALE_AFTER:
            changes.append((seen[host] + STALE_AFTER, host, _STALE))
        seen[host] = at
        changes.append((at, host, code))
    changes += [(at + STALE_AFTER, host, _STALE) for host, at in seen.items() if until - at > STALE_AFTER]
    return tuple(_moments(sorted(changes, key=lambda change: change[0])))


#: No exit code: what a host is when its last audit has become stale.
_STALE = -1


def _moments(changes: Iterable[tuple[datetime, str, int]]) -> list[Moment]:
    latest: dict[str, int] = {}
    moments: list[Moment] = []
    for at, host, change in changes:
        before = latest.get(host)
        code = (EXIT_UNKNOWN if before == EXIT_COMPLIANT else before) if change == _STALE else change
        if code is None or code == before:
            continue
        latest[host] = code
        moment = Moment(at, Counter(latest.values()))
        if moments and moments[-1].at == at:
            moments.pop()
        moments.append(moment)
    return moments
