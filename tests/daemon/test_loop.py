"""The job loop: one thread, one job at a time, a plan that follows a stepped clock."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from exitguard.daemon import loop as loop_module
from exitguard.daemon.loop import Interval, JobLoop, JobOutcome, Wake

LIMIT_SECONDS = 60


def ignore(_seconds: float) -> None:
    pass


def job_loop(outcomes: list[JobOutcome], stepped: Callable[[float], None] = ignore) -> JobLoop:
    return JobLoop(Wake(), outcomes.append, stepped)


def until(loop: JobLoop, condition: Callable[[], bool]) -> Callable[[], float | None]:
    """A turn that ends the loop once the condition holds."""
    deadline = time.monotonic() + LIMIT_SECONDS

    def turn() -> float | None:
        if condition() or time.monotonic() > deadline:
            loop.end()
        return 0.01

    return turn


def test_jobs_run_one_after_another_in_the_thread_of_the_loop() -> None:
    outcomes: list[JobOutcome] = []
    loop = job_loop(outcomes)
    threads: set[int] = set()
    running: list[str] = []

    def job(name: str) -> Callable[[], None]:
        def work() -> None:
            assert not running
            running.append(name)
            threads.add(threading.get_ident())
            running.clear()

        return work

    loop.plan("one", job("one"), Interval(3600))
    loop.plan("two", job("two"), Interval(3600))
    loop.run(until(loop, lambda: len(outcomes) == 2))
    assert {outcome.job for outcome in outcomes} == {"one", "two"}
    assert all(outcome.error is None and not outcome.missed for outcome in outcomes)
    assert threads == {threading.get_ident()}


def test_failed_job_is_told_and_planned_again() -> None:
    outcomes: list[JobOutcome] = []
    loop = job_loop(outcomes)

    def fail() -> None:
        raise RuntimeError("as planned")

    loop.plan("bad", fail, Interval(1))
    loop.run(until(loop, lambda: len(outcomes) >= 2))
    assert [str(outcome.error) for outcome in outcomes[:2]] == ["as planned", "as planned"]


def test_job_that_is_late_by_more_than_its_interval_is_missed() -> None:
    outcomes: list[JobOutcome] = []
    loop = job_loop(outcomes)
    loop.plan("slow", lambda: time.sleep(2.5), Interval(3600))
    loop.plan("short", lambda: None, Interval(1, first_after_seconds=0.01))
    time.sleep(0.05)  # both are due in one turn, and the slow one goes first
    loop.run(until(loop, lambda: any(outcome.missed for outcome in outcomes)))
    assert [outcome.job for outcome in outcomes if outcome.missed] == ["short"]


def test_backlog_of_runs_is_one_run() -> None:
    outcomes: list[JobOutcome] = []
    loop = job_loop(outcomes)
    loop.plan("job", lambda: None, Interval(60))
    loop.start()
    # As after a suspend of an hour.
    loop.modify_job("job", next_run_time=datetime.now(UTC) - timedelta(hours=1))
    loop._process_jobs()
    assert len(outcomes) == 1
    assert (loop.get_job("job").next_run_time - datetime.now(UTC)).total_seconds() > -60
    loop.shutdown(wait=False)


@pytest.mark.parametrize("hours", [1, -1, 24 * 365])
def test_plan_moves_along_with_a_stepped_clock(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    outcomes: list[JobOutcome] = []
    told: list[float] = []
    loop = job_loop(outcomes, told.append)
    loop.plan("job", lambda: None, Interval(600, first_after_seconds=300))
    loop.start()
    before = loop.get_job("job").next_run_time
    real = loop_module._drift_seconds()
    monkeypatch.setattr(loop_module, "_drift_seconds", lambda: real + hours * 3600)
    loop._follow_the_clock()
    loop._follow_the_clock()
    moved = loop.get_job("job").next_run_time - before
    assert abs(moved.total_seconds() - hours * 3600) < 1
    assert [round(seconds / 3600) for seconds in told] == [hours]
    assert outcomes == []
    loop.shutdown(wait=False)


def test_slewed_clock_moves_nothing() -> None:
    outcomes: list[JobOutcome] = []
    told: list[float] = []
    loop = job_loop(outcomes, told.append)
    for _ in range(100):
        loop._follow_the_clock()
    assert told == []


def test_signal_wakes_a_loop_that_has_nothing_to_do() -> None:
    script = """
import os, signal, sys
from exitguard.daemon.loop import JobLoop, Wake
loop = JobLoop(Wake(), lambda outcome: None, lambda seconds: None)
signal.signal(signal.SIGTERM, lambda number, frame: loop.end())
def turn():
    print("turn", flush=True)
    return None
loop.run(turn)
print("ended", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "turn\n"
        # Between two turns it waits for twenty seconds: the signal ends that.
        time.sleep(0.2)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.read().splitlines()[-1] == "ended"
        assert process.wait(LIMIT_SECONDS) == 0
        assert time.monotonic() - began < loop_module._LONGEST_WAIT_SECONDS


def test_wake_before_the_wait_is_not_lost() -> None:
    wake = Wake()
    for _ in range(1000):
        wake.set()
    began = time.monotonic()
    wake.wait(LIMIT_SECONDS)
    assert time.monotonic() - began < LIMIT_SECONDS / 2
