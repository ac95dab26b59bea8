"""What KVM's counters moved by between two looks at one run of a domain.

Counters are compared within one incarnation only. What cannot be a count of exits (backwards, gone, more than any host makes) is left
out as a whole interval, with the reason: nothing negative is ever made, and nothing is counted twice, since each interval begins with
the sample that ended the one before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from exitguard.model.samples import VCPUS, Incarnation, SampledExits, Samples

#: More exits a second than all vCPUs of any one guest make: some 1,000 vCPUs with 1,000,000 exits a second each.
MOST_PER_SECOND = 1_000_000_000
_NANOSECONDS = 1_000_000_000


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
    #: What was traced in a short part of it.
    sampled: SampledExits | None = None


@dataclass(frozen=True)
class Look:
    """The last counters that were seen of one run."""

    incarnation: Incarnation
    boottime_nanoseconds: int
    counters: dict[str, int]


def intervals(samples: Iterable[Samples], looks: dict[str, Look]) -> Iterator[Interval]:
    """The intervals of all runs, in the order of the samples that end them.

    `looks` has the last look at each run by the key of its incarnation, and is brought along: whoever keeps it goes on where this ended,
    however long ago that was.
    """
    for document in samples:
        for sample in document.domains:
            if sample.incarnation is None or sample.counters is None:
                continue  # not looked at: what it counted meanwhile is in the next look
            look = Look(sample.incarnation, document.boottime_nanoseconds, sample.counters)
            before = looks.get(sample.incarnation.key)
            if before is not None and look.boottime_nanoseconds <= before.boottime_nanoseconds:
                continue  # the same look again, or an older one: what is between is counted already
            looks[sample.incarnation.key] = look
            if before is not None:
                yield replace(_between(before, look, document.observed_at), sampled=sample.sampled)


def _between(before: Look, after: Look, observed_at: datetime) -> Interval:
    seconds = (after.boottime_nanoseconds - before.boottime_nanoseconds) / _NANOSECONDS
    counts, reason = _moved(before.counters, after.counters, seconds)
    return Interval(after.incarnation, observed_at, seconds, counts, reason)


def _moved(before: dict[str, int], after: dict[str, int], seconds: float) -> tuple[dict[str, int] | None, str | None]:
    if "exits" not in before and "exits" not in after:
        return None, "the run has no counter of exits: it is emulated (TCG), or its QEMU is older than 7.1"
    gone = sorted(before.keys() - after.keys())
    if gone or "exits" not in before:
        return None, f"not in both samples: {', '.join(gone or ['exits'])}"
    if before.get(VCPUS) != after.get(VCPUS):
        return None, f"vCPUs came or went: {before.get(VCPUS, 'an unknown number')}, then {after.get(VCPUS, 'an unknown number')}"
    most = max(1.0, seconds) * MOST_PER_SECOND
    counts: dict[str, int] = {}
    for name in sorted(before.keys() - {VCPUS}):
        moved = after[name] - before[name]
        if moved < 0:
            return None, f"{name} went backwards, from {before[name]} to {after[name]}"
        if moved > most:
            return None, f"{name} moved by {moved} in {seconds:.0f} s, which is more than any guest makes"
        counts[name] = moved
    return counts, None
