"""Maintenance windows: whether one is open, until when, and when the next one opens. Pure; the time is an argument."""

from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

    from exitguard.policy.remedies import Window


@lru_cache(maxsize=64)
def _trigger(start: str, time_zone: str) -> "CronTrigger":
    """When a window opens. Raises ValueError for what is no such time, or no such zone."""
    from zoneinfo import ZoneInfo

    from apscheduler.triggers.cron import CronTrigger

    try:
        zone = ZoneInfo(time_zone)
    except (KeyError, OSError) as error:  # KeyError: ZoneInfoNotFoundError
        raise ValueError(f"expected a time zone that this machine knows, such as Europe/Berlin, found {time_zone!r}") from error
    weekday = start.rpartition(" ")[2]
    if any(character.isdigit() for character in weekday.partition("/")[0]):
        # cron counts from Sunday, APScheduler from Monday: a window must not open on another day than its reader believes.
        raise ValueError(f"expected weekdays by name, such as sat or mon-fri, found {weekday!r}")
    try:
        return CronTrigger.from_crontab(start, timezone=zone)
    except ValueError as error:
        raise ValueError(f"expected cron's five fields, such as '0 2 * * sat', found {start!r}: {error}") from None


def refuse_bad_window(start: str, time_zone: str) -> None:
    """Raises ValueError, in the operator's words, where `start` and `time_zone` say no time at all."""
    _trigger(start, time_zone)


def closes_at(windows: "tuple[Window, ...]", now: datetime) -> datetime | None:
    """When the window that is open at `now` closes, the last one where several are; None where none is open."""
    ends = []
    for window in windows:
        length = timedelta(minutes=window.duration_minutes)
        opened = _trigger(window.start, window.time_zone).get_next_fire_time(None, now - length)
        while opened is not None and opened <= now:
            end = opened + length
            if end > now:
                ends.append(end)
            opened = _trigger(window.start, window.time_zone).get_next_fire_time(opened, opened + timedelta(microseconds=1))
    return max(ends, default=None)


def opens_at(windows: "tuple[Window, ...]", now: datetime) -> datetime | None:
    """When the next window opens; None where none ever does."""
    starts = [_trigger(window.start, window.time_zone).get_next_fire_time(None, now) for window in windows]
    return min((start for start in starts if start is not None), default=None)
