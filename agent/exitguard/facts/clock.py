"""The two clocks of an observation: time since boot, which never jumps, and when the boot was."""

import re
import time

from exitguard.facts.tree import HostTree, unseen_like
from exitguard.model.record import Observed, unseen
from exitguard.model.time import UtcTime, from_microseconds

_STAT = "/proc/stat"
#: Up to the year 9999; a hostile file may hold any number.
_BTIME = re.compile(r"^btime ([0-9]{1,12})$", re.MULTILINE)
_LAST_SECOND = 253_402_300_799


def boottime_nanoseconds() -> int:
    """Nanoseconds since this machine booted, suspended time included (CLOCK_BOOTTIME, clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def read_boot_time(tree: HostTree) -> Observed[UtcTime]:
    """When the host booted, to the second; it moves when the clock is set."""
    # One line for every interrupt source of every CPU: large hosts have megabytes.
    text = tree.read_text(_STAT, limit_bytes=16 << 20)
    return parse_boot_time(text.value) if text.value is not None else unseen_like(text)


def parse_boot_time(text: str) -> Observed[UtcTime]:
    """`btime` of /proc/stat: seconds since 1970 (proc(5))."""
    match = _BTIME.search(text)
    if match is None or int(match[1]) > _LAST_SECOND:
        return unseen(_STAT, "holds no btime line with a time that exists")
    return Observed[UtcTime](source=_STAT, value=from_microseconds(int(match[1]) * 1_000_000))
