"""The run of the probe: pairs of virtual machines, one for each arm, entered in turn (A B B A) on one CPU, for a bounded time.

Where a machine's pages come to lie costs its exits more or less, so each loop is run in several pairs, made anew, in either order.

Nothing is left behind, however it ends: a virtual machine lives in descriptors of this process. Nothing is judged here but what makes
going on pointless; savings/measurement.py decides what stands.
"""

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType

from exitguard.facts.cpu import read_cpu
from exitguard.facts.probe.errors import CannotMeasureError
from exitguard.facts.probe.frequency import CoreClock, check_tsc, core_clock
from exitguard.facts.probe.guest_code import GuestProgram, guest_program
from exitguard.facts.probe.machine import KvmHandle, VirtualMachine, open_kvm, virtual_machine
from exitguard.facts.probe.processors import choose_cpu, read_cpu_times
from exitguard.facts.tree import HostTree
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, Check, CheckOutcome, LoopReading, ProbeReading, Refused, Round

#: Within one entry, before its timed iterations: caches and branch predictors, which a switch of the vCPU empties.
_WARM_UP_SHARE = 8
#: Groups of rounds in which another thread ran are made again, up to so many times what was asked for.
_MOST_TIMES_WANTED = 3
#: Over so many pairs of machines the rounds that were asked for are spread.
_PAIRS = 10
#: What the kernel does in threads of its own for machines that ended, were made and were entered for the first time, it does meanwhile.
_SETTLE_SECONDS = 0.02
#: Once the time is over, how often that is said again: a signal that comes just before KVM_RUN begins does not end it.
_AGAIN_SECONDS = 0.1


DEFAULT_LOOPS = (Loop.CPUID, Loop.MSR, Loop.IO, Loop.HLT)


@dataclass(frozen=True)
class ProbeRequest:
    """What to measure, how often, and for how long at most."""

    loops: tuple[Loop, ...] = DEFAULT_LOOPS
    #: Timed in each entry of the guest.
    iterations: int = 4000
    #: Entries for each arm and loop, in pairs; fewer where the time is over.
    rounds: int = 100
    seconds: float = 10.0
    #: None: the least busy one that is nobody's own.
    cpu: int | None = None


class _TimeOver(Exception):  # noqa: N818 - the expected end of what takes longer
    """The time that was allowed is over."""


@dataclass
class _Progress:
    """What is there so far, for when it ends early."""

    measured_on: int | None = None
    tsc_kilohertz: int | None = None
    both_arms: bool = False
    loops: list[LoopReading] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def reading(self, refused: Refused | None = None) -> ProbeReading:
        return ProbeReading(
            measured_on=self.measured_on,
            tsc_kilohertz=self.tsc_kilohertz,
            both_arms=self.both_arms,
            loops=tuple(self.loops),
            checks=tuple(self.checks),
            refused=refused,
        )


def probe(tree: HostTree, request: ProbeRequest) -> ProbeReading:
    """What the machine showed. Never raises for what it cannot do: that is `refused`. Only in the main thread, whose alarm bounds it."""
    progress = _Progress()
    try:
        with open_kvm(tree) as handle, _one_cpu(tree, request.cpu) as cpu, core_clock(tree, cpu) as clock:
            progress.measured_on = cpu
            progress.both_arms = handle.both_arms
            progress.checks.append(check_tsc(tree))
            session = _Session(tree, request, handle, clock, progress)
            for number, loop in enumerate(request.loops):
                session.measure(loop, until_share=(number + 1) / len(request.loops))
    except CannotMeasureError as error:
        return progress.reading(Refused(reason=error.reason, next_step=error.next_step))
    return progress.reading()


@contextmanager
def _one_cpu(tree: HostTree, asked: int | None) -> Iterator[int]:
    """This thread on one CPU, and back where it was allowed before."""
    before = os.sched_getaffinity(0)
    cpu = choose_cpu(tree, frozenset(before), asked)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, before)


class _Session:
    """One opened KVM, one CPU, and the time that is left."""

    def __init__(self, tree: HostTree, request: ProbeRequest, handle: KvmHandle, clock: CoreClock, progress: _Progress) -> None:
        self._tree = tree
        self._request = request
        self._handle = handle
        self._clock = clock
        self._progress = progress
        self._begun = time.monotonic()
        cpu = read_cpu(tree).value
        self._intel = cpu is not None and cpu.virtualization == "vmx"

    def measure(self, loop: Loop, *, until_share: float) -> None:
        """The rounds of one loop, until they are enough or its share of the time is over. Raises CannotMeasureError."""
        program = guest_program(loop, intel=self._intel)
        rounds: list[Round] = []
        steal_before = self._steal()
        until = self._begun + self._request.seconds * until_share
        wanted = max(1, self._request.rounds // 2)
        in_pair = max(1, wanted // _PAIRS)
        undisturbed = made = 0
        while undisturbed < wanted and made < _MOST_TIMES_WANTED * wanted and time.monotonic() < until:
            for group in self._pair(loop, program, made // in_pair, in_pair, until):
                rounds += group
                made += 1
                undisturbed += not any(each.preemptions for each in group)
        steal_after = self._steal()
        self._progress.loops.append(
            LoopReading(
                loop=loop,
                iterations=self._request.iterations,
                exits_per_iteration=program.exits_per_iteration,
                steal_ticks=None if steal_before is None or steal_after is None else steal_after - steal_before,
                rounds=tuple(rounds),
            )
        )

    def _pair(self, loop: Loop, program: GuestProgram, pair: int, wanted: int, until: float) -> list[list[Round]]:
        """Groups of rounds of one pair of machines, fewer than `wanted` where the time is over. Raises CannotMeasureError."""
        arms = (Arm.AS_CREATED, Arm.PMU_OFF) if self._progress.both_arms else (Arm.AS_CREATED,)
        if pair % 2:
            arms = arms[::-1]
        groups: list[list[Round]] = []
        with ExitStack() as stack, _bounded(until - time.monotonic()):
            machines = {arm: stack.enter_context(virtual_machine(self._handle, program, arm, intel=self._intel)) for arm in arms}
            self._progress.tsc_kilohertz = machines[Arm.AS_CREATED].tsc_kilohertz
            for arm in arms:  # one entry each that counts for nothing but that the exits are real
                self._expect_real_exits(loop, self._enter(program, machines[arm], arm, pair))
            time.sleep(_SETTLE_SECONDS)
            # Whole groups alone: half of one would weigh one arm's drift more than the other's.
            while len(groups) < wanted:
                groups.append([self._enter(program, machines[arm], arm, pair) for arm in (*arms, *reversed(arms))])
        return groups

    def _enter(self, program: GuestProgram, machine: VirtualMachine, arm: Arm, pair: int) -> Round:
        iterations = self._request.iterations
        warm_up = max(1, iterations // _WARM_UP_SHARE)
        preemptions = _preemptions()
        counters = self._clock.counters()
        begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        entry = machine.enter(warm_up=warm_up, iterations=iterations)
        end = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        later = self._clock.counters()
        return Round(
            arm=arm,
            pair=pair,
            tsc_begin=entry.tsc_begin,
            tsc_end=entry.tsc_end,
            begin_nanoseconds=begin,
            end_nanoseconds=end,
            exits_counted=entry.exits,
            exits_made=(warm_up + iterations) * program.exits_per_iteration + 1,  # the last is the end
            preemptions=_preemptions() - preemptions + entry.interruptions,
            cycles_per_tick=None if counters is None or later is None else counters.cycles_per_tick_until(later),
            kilohertz=self._clock.kilohertz(),
        )

    def _expect_real_exits(self, loop: Loop, entry: Round) -> None:
        if entry.exits_are_real:
            return
        detail = f"the {loop} loop made {entry.exits_made:,} exits, and KVM's statistics of its vCPU counted {entry.exits_counted:,}"
        self._progress.checks.append(Check(name="real exits", outcome=CheckOutcome.FAILED, detail=detail))
        raise CannotMeasureError(
            f"{detail}: this KVM does not run the guest by hardware virtualisation, so there is no VM exit here to measure",
            "measure on a host with hardware virtualisation (a machine of its own, or a guest with nested virtualisation)",
        )

    def _steal(self) -> int | None:
        times = read_cpu_times(self._tree).get(self._clock.cpu)
        return times.steal if times is not None else None


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """What is inside ends when the time is over, even a guest that runs on: a signal makes KVM_RUN return (api.rst section 4.10)."""

    def over(_number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise _TimeOver

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the probe bounds its time by an alarm, which only the main thread gets")
    previous = signal.signal(signal.SIGALRM, over)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), _AGAIN_SECONDS)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeOver:
        pass
    finally:
        signal.signal(signal.SIGALRM, previous)
