"""What KVM's counters moved by between two looks at one run of a domain.

Counters are compared within one incarnation only. What cannot be a count of exits (backwards, gone, more than any host makes) is left
out as a whole interval, with the reason: nothing negative is ever made, and nothing is counted twice, since each interval begins with
the sample that ended the one before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from exitguard.model.samples import DomainSample, Incarnation, Samples

#: More exits a second than all vCPUs of any one guest make: some 1,000 vCPUs with 1,000,000 exits a second each.
MOST_PER_SECOND = 1_000_000_000
_NANOSECONDS = 1_000_000_000
#: A clock that is slewed to the right time, not stepped, is no further off than this part of an interval, and this much at least.
_SLEWED_PART = 0.01
_SLEWED_SECONDS = 2.0


@dataclass(frozen=True)
class Interval:
    """The exits of one run between two samples. `counts` is None where they are not known, and then `reason` says why."""

    incarnation: Incarnation
    ended_at: datetime
    #: By CLOCK_BOOTTIME, so that a stepped clock makes it neither longer nor shorter.
    seconds: float
    #: By KVM's names, what each counter moved by; a counter that is missing in one of the samples is missing here.
    counts: dict[str, int] | None
    reason: str | None = None
    #: Whether the wall clock was stepped meanwhile: then the hours that it fell into are not certain.
    clock_stepped: bool = False

    @property
    def began_at(self) -> datetime:
        return self.ended_at - timedelta(seconds=self.seconds)


@dataclass(frozen=True)
class _Look:
    observed_at: datetime
    boottime_nanoseconds: int
    sample: DomainSample


def intervals(samples: Iterable[Samples]) -> Iterator[Interval]:
    """The intervals of all runs, in the order of the samples that end them. Holds one sample a domain, however many there are."""
    last: dict[str, _Look] = {}
    for document in samples:
        for sample in document.domains:
            if sample.incarnation is None or sample.counters is None:
                continue  # not looked at: what it counted meanwhile is in the next look
            look = _Look(document.observed_at, document.boottime_nanoseconds, sample)
            before = last.get(sample.uuid)
            same_run = before is not None and before.sample.incarnation == sample.incarnation
            if before is not None and same_run and look.boottime_nanoseconds <= before.boottime_nanoseconds:
                continue  # the same look again, or an older one: what is between is counted already
            last[sample.uuid] = look
            if before is not None and same_run:
                yield _between(before, look, sample.incarnation)


def _between(before: _Look, after: _Look, incarnation: Incarnation) -> Interval:
    seconds = (after.boottime_nanoseconds - before.boottime_nanoseconds) / _NANOSECONDS
    by_wall_clock = (after.observed_at - before.observed_at).total_seconds()
    stepped = abs(by_wall_clock - seconds) > max(_SLEWED_SECONDS, seconds * _SLEWED_PART)
    counts, reason = _moved(before.sample.counters or {}, after.sample.counters or {}, seconds)
    return Interval(incarnation, after.observed_at, seconds, counts, reason, clock_stepped=stepped)


def _moved(before: dict[str, int], after: dict[str, int], seconds: float) -> tuple[dict[str, int] | None, str | None]:
    if "exits" not in before and "exits" not in after:
        return None, "the run has no counter of exits: it is emulated (TCG), or its QEMU is older than 7.1"
    gone = sorted(before.keys() - after.keys())
    if gone or "exits" not in before:
        return None, f"not in both samples: {', '.join(gone or ['exits'])}"
    most = max(1.0, seconds) * MOST_PER_SECOND
    counts: dict[str, int] = {}
    for name in sorted(before):
        moved = after[name] - before[name]
        if moved < 0:
            return None, f"{name} went backwards, from {before[name]} to {after[name]}"
        if moved > most:
            return None, f"{name} moved by {moved} in {seconds:.0f} s, which is more than any guest makes"
        counts[name] = moved
    return counts, None
