"""The laws of a rollout, held against each line of a journal by means of their own, beside the state machine."""

from copy import deepcopy
from dataclasses import dataclass, field

import plan_builders as b
from rollout_world import Process

from exitguard.model.plan import Plan
from exitguard.model.run import EventKind, HostCheck, RunEvent, StepOutcome
from exitguard.remedy.rollout import Announce, Check, HostPhase, RolloutState, StepState, next_action

FAILURES = (StepOutcome.REFUSED, StepOutcome.FAILED, StepOutcome.UNREACHABLE, StepOutcome.TIMED_OUT)


@dataclass
class Watch:
    """Reads a journal beside the state machine, by means of its own, and fails at the first line that breaks a law."""

    plan: Plan
    running: set[str] = field(default_factory=set)  # announced, and neither ended nor settled
    uncertain: set[str] = field(default_factory=set)  # ended, and nobody knows with what effect
    in_effect: set[str] = field(default_factory=set)  # done by this run
    fresh: dict[str, set[str]] = field(default_factory=dict)  # due by a look since the process was last taken up, not started since
    failed: set[str] = field(default_factory=set)
    held: bool = False  # stopped, paused, aborted or finished
    stopped: bool = False
    for_good: bool = False

    def __post_init__(self) -> None:
        self.steps = {step.id: step for step in self.plan.steps}
        self.waves = {host: number for number, wave in enumerate(self.plan.pace.waves) for host in wave.hosts}

    def see(self, line: RunEvent, after: RolloutState) -> None:
        match line.kind:
            case EventKind.BATCH_STARTED:
                assert not self.held
                assert not self.running
                self.alone_in_flight(line.hosts)
                self.earlier_waves_are_over(line.hosts[0], after)
            case EventKind.HOST_CHECKED | EventKind.HOST_VERIFIED:
                self.see_look(line)
            case EventKind.STEPS_STARTED:
                self.see_steps_started(line)
            case EventKind.STEP_FINISHED | EventKind.STEP_SETTLED | EventKind.STEP_UNDONE:
                self.see_step_ended(line)
            case EventKind.UNDO_STARTED:
                self.see_undo_started(line)
            case EventKind.STARTED:
                assert line.seq == 0
            case _:
                self.see_turn(line)
        self.bounded(after)

    def see_turn(self, line: RunEvent) -> None:
        """A line about the run as a whole."""
        if line.kind is EventKind.RESUMED:
            self.fresh.clear()
            if self.stopped:
                self.failed.clear()
            self.stopped, self.held = False, self.for_good
            return
        if line.kind in (EventKind.WAVE_PASSED, EventKind.FINISHED):
            assert not self.held
            assert len(self.failed) <= self.plan.pace.failure_budget
        if line.kind is EventKind.STOPPED:
            assert len(self.failed) > self.plan.pace.failure_budget
            self.stopped = True
        if line.kind not in (EventKind.PAUSED, EventKind.ABORTED):
            assert not self.running
        self.for_good = self.for_good or line.kind in (EventKind.FINISHED, EventKind.ABORTED)
        self.held = self.held or line.kind is not EventKind.WAVE_PASSED

    def see_look(self, line: RunEvent) -> None:
        assert line.host in self.waves
        if line.kind is EventKind.HOST_CHECKED:
            self.fresh[line.host] = set(line.due)
            failed = line.check is HostCheck.FAILED
        else:
            failed = not line.passed
        if failed:
            self.failed.add(line.host)

    def see_undo_started(self, line: RunEvent) -> None:
        assert not self.held
        assert not self.running
        assert len(self.failed) > self.plan.pace.failure_budget
        assert self.plan.pace.automatic_rollback
        assert all(self.steps[step].reversible for step in line.steps)
        assert set(line.steps) <= self.in_effect
        self.running |= set(line.steps)
        self.alone_in_flight({self.steps[step].host_id for step in line.steps})

    def see_steps_started(self, line: RunEvent) -> None:
        assert not self.held
        assert not self.running
        assert len(self.failed) <= self.plan.pace.failure_budget
        assert line.steps
        assert len(set(line.steps)) == len(line.steps)
        for step in line.steps:
            assert step not in self.in_effect | self.uncertain
            self.fresh[self.steps[step].host_id].remove(step)  # found due by a look, and once for each look
        assert len({self.steps[step].remedy for step in line.steps}) == 1
        self.running |= set(line.steps)
        self.alone_in_flight({self.steps[step].host_id for step in line.steps})

    def see_step_ended(self, line: RunEvent) -> None:
        assert line.step in (self.running | self.uncertain if line.kind is EventKind.STEP_SETTLED else self.running)
        self.running.discard(line.step)
        self.uncertain.discard(line.step)
        if line.outcome in FAILURES and line.outcome is not StepOutcome.REFUSED:
            self.uncertain.add(line.step)
        undone = line.kind is EventKind.STEP_UNDONE
        if line.outcome in ((StepOutcome.DONE, StepOutcome.ALREADY) if undone else (StepOutcome.NOT_DONE,)):
            self.in_effect.discard(line.step)
        elif line.outcome is StepOutcome.DONE:
            self.in_effect.add(line.step)
        if line.outcome in FAILURES and not undone:
            self.failed.add(self.steps[line.step].host_id)

    def alone_in_flight(self, hosts: set[str] | tuple[str, ...]) -> None:
        assert 0 < len(hosts) <= self.plan.pace.max_hosts_in_flight
        assert len({self.waves[host] for host in hosts}) == 1

    def earlier_waves_are_over(self, host: str, after: RolloutState) -> None:
        for other, wave in self.waves.items():
            if wave < self.waves[host]:
                assert after.phase(other) not in (HostPhase.WAITING, HostPhase.IN_FLIGHT)

    def bounded(self, after: RolloutState) -> None:
        in_flight = [host.id for host in after.every_host() if host.phase is HostPhase.IN_FLIGHT]
        assert sorted(in_flight) == sorted(after.in_flight)
        assert len(in_flight) <= self.plan.pace.max_hosts_in_flight
        assert len({self.waves[host] for host in in_flight}) <= 1
        assert {step for step in self.steps if after.step(step).state is StepState.DONE} == self.in_effect - self.being_undone(after)
        assert {host.id for host in after.failed_hosts()} == self.failed
        assert after.failures == len(self.failed)

    def being_undone(self, after: RolloutState) -> set[str]:
        undoing = (StepState.UNDOING, StepState.UNDO_IN_DOUBT, StepState.UNDO_UNCERTAIN)
        return {step for step in self.steps if after.step(step).state in undoing}


def watched(process: Process) -> Process:
    """`process`, every line of its journal held against the laws, and every state asked what is next."""
    watch = Watch(process.state.plan)
    for line, after in zip(process.journal, process.states[1:], strict=True):
        watch.see(line, after)
        next_is_told(after)
    return process


def copied(state: RolloutState) -> RolloutState:
    """The same by value; the plan itself cannot change."""
    return deepcopy(state, {id(state.index): state.index})


def next_is_told(state: RolloutState) -> None:
    """`next_action` has an answer at any time, and the same one for a state that is the same by value."""
    again = copied(state)
    for now in (b.T0, b.T0.replace(year=2030)):
        for may_start in (True, False):
            told = next_action(state, now, may_start=may_start)
            assert told == next_action(again, now, may_start=may_start)
            starts = isinstance(told, Announce) and told.kind in (EventKind.BATCH_STARTED, EventKind.STEPS_STARTED)
            assert may_start or not (starts or isinstance(told, Check))
