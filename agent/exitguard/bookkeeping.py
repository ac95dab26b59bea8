"""The ledger brought up to date: from stored samples to stored rows.

What is made is made anew from the samples each time, from the newest hour that has rows on; so a kill, a failure or a late run changes
nothing of the result. Costs one pass over the samples of a few hours.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from exitguard.model.ledger import OwnCost
from exitguard.model.samples import Samples
from exitguard.savings.hours import HOUR, hour_of, hours
from exitguard.savings.intervals import intervals
from exitguard.savings.ledger import Judged, rows

if TYPE_CHECKING:
    from exitguard.store.host import HostStore

#: An interval that begins before the first hour to be made begins with a sample no older than this before it; what began earlier is a gap.
_LOOK_BACK = 2 * HOUR
_EVER = datetime(1970, 1, 1, tzinfo=UTC)


def keep_books(
    store: "HostStore",
    judged: Mapping[str, Judged],
    own_costs: Iterable[OwnCost],
    *,
    now: datetime,
    pulse: Callable[[], None] = lambda: None,
) -> int:
    """Bring the ledger of `store` up to its last sample; how many rows were written. Raises StoreError: then nothing was.

    `judged` says how the runs of now stand (savings.ledger.judged_runs). `pulse` is called all the while, and may raise to end it.
    """
    ledger = store.ledger
    last = ledger.last_hour()
    # After a clock that was set back, hours come again: then they are made anew from all their samples, the old and the new. The hour
    # before is made too: the interval that led here may end in it.
    since = _EVER if last is None else min(last, hour_of(now)) - HOUR
    begin = _EVER if last is None else since - _LOOK_BACK
    found = hours(intervals(_with_pulse(store.samples(begin), pulse)))
    stored = ledger.rows(since, {key for key, _ in found})
    new = rows(found, judged, stored, since=since)
    ledger.record(new, (), own_costs)
    return len(new)


def _with_pulse(samples: Iterable[Samples], pulse: Callable[[], None]) -> Iterator[Samples]:
    for each in samples:
        pulse()
        yield each
