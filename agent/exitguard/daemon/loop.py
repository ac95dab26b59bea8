"""The job loop: APScheduler's jobs, one after another, in the thread that runs it.

Everything the daemon does happens in this loop: jobs, signals, events. So nothing needs locks, a job that hangs stops the loop, and
the watchdog, which only this loop feeds, notices.

APScheduler plans by the wall clock. A clock that is stepped would leave every job in a far future, or make it run a
thousand times over; the loop compares it with CLOCK_BOOTTIME and moves the plan along.
"""

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.interval import IntervalTrigger

#: The loop looks around at least this often: it feeds the watchdog, and after a suspend nothing is late by more.
_LONGEST_WAIT_SECONDS = 20.0
#: A clock that is slewed moves far less in one turn.
_STEP_SECONDS = 2.0
_JITTER_SHARE = 0.1


class Wake:
    """Wakes the loop: from a signal handler, and from other threads."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        """Let the wait that is under way, or the next one, end at once."""
        with suppress(BlockingIOError):  # set many times, and not yet looked at
            os.eventfd_write(self._descriptor, 1)

    def wait(self, seconds: float) -> None:
        """Wait until somebody calls set(), `seconds` at most."""
        if select.select([self._descriptor], [], [], max(0.0, seconds))[0]:
            os.eventfd_read(self._descriptor)


@dataclass(frozen=True)
class Interval:
    """How often a job runs, and how long after the start for the first time. A tenth of the interval is left to chance."""

    seconds: float
    first_after_seconds: float = 0.0


@dataclass(frozen=True)
class JobOutcome:
    """How one run of a job ended: `error` is None for a good one; `missed` was due and too late, and did not run."""

    job: str
    error: BaseException | None = None
    missed: bool = False


class JobLoop(BaseScheduler):  # type: ignore[misc] # APScheduler has no types
    """APScheduler's plan, worked off by `run`. `outcome` hears how each run of a job ended, `stepped` by how much the clock was set."""

    def __init__(self, wake: Wake, outcome: Callable[[JobOutcome], None], stepped: Callable[[float], None]) -> None:
        super().__init__(
            timezone=UTC,
            # It calls the job right here: its name says what others use it for.
            executors={"default": DebugExecutor()},
            job_defaults={"coalesce": True, "max_instances": 1},
        )
        self._wake = wake
        self._outcome = outcome
        self._stepped = stepped
        self._drift_seconds = _drift_seconds()
        self._ended = False
        self.add_listener(self._tell, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)

    def wakeup(self) -> None:
        self._wake.set()

    def shutdown(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002 - APScheduler's own signature
        super().shutdown(wait)

    def end(self) -> None:
        """Let `run` return after what is under way. Safe in a signal handler."""
        self._ended = True
        self._wake.set()

    @property
    def ended(self) -> bool:
        return self._ended

    def plan(self, name: str, job: Callable[[], None], interval: Interval) -> None:
        """Run `job` every `interval`; one that is late by a whole interval is missed, and the next one is planned."""
        self.add_job(
            job,
            _trigger(interval),
            id=name,
            name=name,
            misfire_grace_time=max(1, int(interval.seconds)),
            next_run_time=datetime.now(UTC) + timedelta(seconds=interval.first_after_seconds),
            replace_existing=True,
        )

    def replan(self, name: str, interval: Interval) -> None:
        """Another interval for a job, counted from now."""
        self.modify_job(name, misfire_grace_time=max(1, int(interval.seconds)))
        self.reschedule_job(name, trigger=_trigger(interval))

    def run_now(self, name: str, job: Callable[[], None]) -> None:
        """One run of a job that is not planned; for `turn` to call."""
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - the outer edge of a job, as APScheduler's own
            self._outcome(JobOutcome(name, error=error))
        else:
            self._outcome(JobOutcome(name))

    def run(self, turn: Callable[[], float | None]) -> None:
        """Work off the plan until `end`. `turn` is called in every turn of the loop; it may say in how many seconds it wants the next."""
        self.start()
        try:
            while not self.ended:
                self._follow_the_clock()
                until_job = self._process_jobs()
                until_turn = 0.0 if self.ended else turn()
                self._wake.wait(min(wait for wait in (until_job, until_turn, _LONGEST_WAIT_SECONDS) if wait is not None))
        finally:
            self.shutdown(wait=False)

    def _follow_the_clock(self) -> None:
        drift_seconds = _drift_seconds()
        step_seconds = drift_seconds - self._drift_seconds
        self._drift_seconds = drift_seconds
        if abs(step_seconds) < _STEP_SECONDS:
            return
        for job in self.get_jobs():
            if job.next_run_time is not None:
                job.modify(next_run_time=job.next_run_time + timedelta(seconds=step_seconds))
        self._stepped(step_seconds)

    def _tell(self, event: Any) -> None:
        match event.code:
            case _ if event.code == EVENT_JOB_EXECUTED:
                self._outcome(JobOutcome(event.job_id))
            case _ if event.code == EVENT_JOB_ERROR:
                self._outcome(JobOutcome(event.job_id, error=event.exception))
            case _:
                self._outcome(JobOutcome(event.job_id, missed=True))


def _trigger(interval: Interval) -> IntervalTrigger:
    return IntervalTrigger(seconds=max(1, round(interval.seconds)), jitter=interval.seconds * _JITTER_SHARE, timezone=UTC)


def _drift_seconds() -> float:
    """The wall clock against the time since boot, which runs on through a suspend and is never stepped."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
