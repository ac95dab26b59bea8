"""How often each key may call: a bucket of tokens a key, in this process; replicas count each for itself."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_BUCKETS = 200_000


class Rates:
    """Any thread may ask. A key that was silent long enough has a full bucket, and needs none."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        #: Tokens left, and when that was; the longest unused first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, key: str) -> float:
        """0 where the key may call now, which is counted; else how long until it may."""
        now = self._clock()
        with self._lock:
            left, at = self._buckets.pop(key, (float(self._burst), now))
            left = min(float(self._burst), left + (now - at) * self._per_second)
            allowed = left >= 1
            self._buckets[key] = (left - 1 if allowed else left, now)
            while len(self._buckets) > _MOST_BUCKETS:
                self._buckets.popitem(last=False)
            return 0.0 if allowed else (1 - left) / self._per_second
