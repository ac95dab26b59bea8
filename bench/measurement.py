"""What a measurement is: one thing timed against a peer in interleaved pairs, in one run, and the ratio that came out.

A ratio of two times taken one after the other on the same machine says more than either time: what slows one down slows the
other down too. Pairs are interleaved (A B A B), so that a drift of the machine falls on both.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

#: Runs once, returns nothing that is looked at; raises where it did not do what is to be timed.
Work = Callable[[], object]


class SkippedError(Exception):
    """The measurement cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Contest:
    """The two works, ready to run: all that they need is set up."""

    subject: Work
    peer: Work
    #: Each time is divided by these, where the two do not do the same amount of work.
    subject_units: int = 1
    peer_units: int = 1
    #: What a reader has to know about this run: sizes, versions.
    note: str = ""


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    name: str
    #: What is timed, and what it is compared with.
    what: str
    peer: str
    #: The largest ratio of the two that is still as good as wanted.
    goal_ratio: float
    pairs: int
    #: Sets up, yields the contest, and cleans up. Raises SkippedError.
    prepare: Callable[[], AbstractContextManager[Contest]]


@dataclass(frozen=True)
class Pair:
    subject_seconds: float
    peer_seconds: float

    @property
    def ratio(self) -> float:
        return self.subject_seconds / self.peer_seconds


@dataclass(frozen=True)
class Result:
    """What came out; times are per unit of work."""

    measurement: Measurement
    pairs: tuple[Pair, ...]
    note: str

    @property
    def subject_seconds(self) -> float:
        return median(pair.subject_seconds for pair in self.pairs)

    @property
    def peer_seconds(self) -> float:
        return median(pair.peer_seconds for pair in self.pairs)

    @property
    def ratio(self) -> float:
        return median(pair.ratio for pair in self.pairs)

    @property
    def met(self) -> bool:
        return self.ratio <= self.measurement.goal_ratio


def measure(measurement: Measurement, pairs: int) -> Result:
    """Set up, warm both up, time `pairs` pairs, clean up. Raises SkippedError."""
    with measurement.prepare() as contest:
        contest.subject()
        contest.peer()
        return Result(measurement, tuple(_time_pairs(contest, pairs)), contest.note)


def _time_pairs(contest: Contest, pairs: int) -> Iterator[Pair]:
    for _ in range(pairs):
        subject_seconds = _time(contest.subject) / contest.subject_units
        yield Pair(subject_seconds, _time(contest.peer) / contest.peer_units)


def _time(work: Work) -> float:
    # What the other one left behind is cleared before, so that neither pays for its neighbour.
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
