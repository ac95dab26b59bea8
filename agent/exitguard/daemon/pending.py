"""Domains that wait to be judged anew, and when: at once after quiet, ever less often the more there is. Pure but for its lock.

Events come in libvirt's thread, by the thousand when a host is evacuated; they are only noted here. What was noted is taken by the
job loop: soon after the first event, so that one change is judged at once, and never again before a pause that is a multiple of what
the judging took. So a storm of events costs a bounded share of one CPU: a twentieth for domains that are looked at alone, a
twentieth for audits of the whole host, which is what more than a handful of domains at once ask for.
"""

import threading
from dataclasses import dataclass, field

#: A start makes two or three events within a moment.
_SETTLE_SECONDS = 0.2
#: The pause after judging, as a multiple of the time that it took.
_PAUSE_FACTOR = 19.0
_SHORTEST_PAUSE_SECONDS = 1.0
#: More domains than this are looked at in one audit of the whole host.
MOST_DOMAINS = 16
#: A connection for events comes a moment after the start, and a restart of libvirtd defines its domains for a while: one audit is enough.
_EVERYTHING_SETTLE_SECONDS = 2.0
#: The shortest pause after such an audit.
_AUDIT_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Taken:
    """What is to be judged now: these domains, or everything."""

    uuids: frozenset[str]
    everything: bool


@dataclass
class PendingDomains:
    """What waits. Times are seconds of one monotonic clock."""

    _uuids: set[str] = field(default_factory=set)
    #: Since when anything waits, and an audit of everything.
    _since: float | None = None
    _everything_since: float | None = None
    _domains_not_before: float = 0.0
    _everything_not_before: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._uuids)

    def add(self, uuid: str, now: float) -> bool:
        """Note an event about a domain. Whether something is due now that was not before, so that somebody has to be woken."""
        with self._lock:
            before = (self._since, self._everything_since)
            self._add(uuid, now)
            return before != (self._since, self._everything_since)

    def add_everything(self, now: float, *, at_once: bool = False) -> None:
        """Note that events may have been missed, or that what was seen concerns every domain; `at_once` where a person asks for it."""
        with self._lock:
            self._add_everything(now)
            if at_once:
                self._everything_since = now - _EVERYTHING_SETTLE_SECONDS
                self._everything_not_before = now

    def due_in(self, now: float) -> float | None:
        """Seconds until something is to be taken, 0 if now; None while nothing waits."""
        with self._lock:
            return min((max(0.0, at - now) for at in (self._domains_at(), self._everything_at()) if at is not None), default=None)

    def take(self, now: float) -> Taken:
        """All that waits, but for an audit of everything that is not due yet; an event that comes from now on waits for the next time."""
        with self._lock:
            everything_at = self._everything_at()
            everything = everything_at is not None and everything_at <= now
            taken = Taken(frozenset(self._uuids), everything)
            self._uuids, self._since = set(), None
            if everything:
                self._everything_since = None
            return taken

    def take_all(self) -> None:
        """An audit of everything begins, due or not: whatever waits is part of it."""
        with self._lock:
            self._uuids, self._since, self._everything_since = set(), None, None

    def pause(self, took_seconds: float, now: float, *, everything: bool) -> None:
        """Nothing of this kind is due again before a pause that fits what it took."""
        with self._lock:
            if everything:
                self._everything_not_before = now + max(_AUDIT_PAUSE_SECONDS, took_seconds * _PAUSE_FACTOR)
            else:
                self._domains_not_before = now + max(_SHORTEST_PAUSE_SECONDS, took_seconds * _PAUSE_FACTOR)

    def _add(self, uuid: str, now: float) -> None:
        if len(self._uuids) < MOST_DOMAINS or uuid in self._uuids:
            self._uuids.add(uuid)
            self._since = now if self._since is None else self._since
        else:
            self._add_everything(now)

    def _add_everything(self, now: float) -> None:
        self._everything_since = now if self._everything_since is None else self._everything_since

    def _domains_at(self) -> float | None:
        return None if self._since is None else max(self._since + _SETTLE_SECONDS, self._domains_not_before)

    def _everything_at(self) -> float | None:
        return (
            None
            if self._everything_since is None
            else max(self._everything_since + _EVERYTHING_SETTLE_SECONDS, self._everything_not_before)
        )
