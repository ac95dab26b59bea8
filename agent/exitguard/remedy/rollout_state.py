"""How far a rollout has come: of every host a phase, of every step a state, and the one wave that hosts are taken from. Pure.

A state is never changed: `advance` (remedy/rollout_events.py) makes another one of it and a journal line. Hosts in flight are kept
apart from all others, so that a line costs what the batch is large, not what the fleet is.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from exitguard.model.plan import Disruption, Plan, Remedy, Step
from exitguard.model.run import StepOutcome, Undo

_NAMED_AT_MOST = 5


class RolloutError(Exception):
    """A plan or a journal that nothing may be carried out on; the message says why, and what to do."""


class IllegalPlan(RolloutError):  # noqa: N818 - it says what the plan is
    """The plan contradicts itself."""


class StepState(StrEnum):
    """How a step stands."""

    WAITING = "waiting"  # never started
    LEFT = "left"  # a fresh look found it no longer due
    STARTED = "started"  # announced; its end was not seen yet
    IN_DOUBT = "in_doubt"  # started by a process that has ended since: a fresh look has to settle it
    DONE = "done"  # in effect, by this run
    NOT_DONE = "not_done"  # ended, and this run changed nothing
    UNCERTAIN = "uncertain"  # failed, timed out, out of reach: whether it took effect is not known
    UNDOING = "undoing"  # its undo was announced; the end was not seen yet
    UNDO_IN_DOUBT = "undo_in_doubt"  # its undo was started by a process that has ended since
    UNDO_UNCERTAIN = "undo_uncertain"  # whether the undo took effect is not known
    UNDONE = "undone"  # what was there before is restored


class HostPhase(StrEnum):
    """How a host stands."""

    WAITING = "waiting"  # not begun, or let go by a stop before it was through: it is looked at anew when it is its turn
    IN_FLIGHT = "in_flight"
    DONE = "done"  # this run changed something there, and it was verified
    LEFT = "left"  # there was nothing to change
    FAILED = "failed"
    UNDONE = "undone"  # it failed, and nothing of what this run changed there is left


class Standing(StrEnum):
    """How the run as a whole stands."""

    NEW = "new"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABORTED = "aborted"
    FINISHED = "finished"


_IN_THE_OPEN = (StepState.STARTED, StepState.IN_DOUBT, StepState.UNDOING, StepState.UNDO_IN_DOUBT)
_MAY_BE_CHANGED = (StepState.DONE, StepState.UNCERTAIN, StepState.UNDO_UNCERTAIN)


@dataclass(frozen=True, slots=True)
class StepProgress:
    """One step: how it stands, how it ended and what an undo needs to know."""

    state: StepState = StepState.WAITING
    outcome: StepOutcome | None = None
    reason: str = ""
    undo: Undo | None = None
    #: How its undo ended, where one was tried and did not restore it.
    undo_outcome: StepOutcome | None = None


@dataclass(frozen=True, slots=True)
class HostProgress:
    """One host: its phase, its steps by id, and what is still to be done there while it is in flight."""

    id: str
    steps: Mapping[str, StepProgress]
    phase: HostPhase = HostPhase.WAITING
    checked: bool = False
    #: What the fresh look before the steps said.
    reason: str = ""
    #: Steps that this look found due and that were not started since.
    due: frozenset[str] = frozenset()
    #: Whether anything was started since a verification was last passed.
    unverified: bool = False
    #: The verification after the last start; None before it.
    verification: bool | None = None
    #: Why the host failed; None where it did not.
    failure: str | None = None

    @property
    def has_open_steps(self) -> bool:
        """Whether the end of anything that was started is still to be seen."""
        return any(step.state in _IN_THE_OPEN for step in self.steps.values())

    @property
    def to_check(self) -> bool:
        return not self.checked and self.failure is None

    @property
    def to_verify(self) -> bool:
        return self.unverified and self.verification is None and not self.has_open_steps

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done there."""
        return not (self.to_check or self.due or (self.unverified and self.verification is None) or self.has_open_steps)

    @property
    def last_phase(self) -> HostPhase:
        """The phase of a host that is over."""
        states = {step.state for step in self.steps.values()}
        if self.failure is not None:
            return HostPhase.UNDONE if StepState.UNDONE in states and states.isdisjoint(_MAY_BE_CHANGED) else HostPhase.FAILED
        return HostPhase.DONE if StepState.DONE in states else HostPhase.LEFT


@dataclass(frozen=True, slots=True)
class PlanIndex:
    """A plan, with the ways to find things in it."""

    plan: Plan
    steps: Mapping[str, Step]
    host_steps: Mapping[str, tuple[str, ...]]
    wave_of: Mapping[str, int]
    names: Mapping[str, str]

    @property
    def waves(self) -> tuple[tuple[str, ...], ...]:
        return tuple(wave.hosts for wave in self.plan.pace.waves)

    def name(self, host_id: str) -> str:
        """What operators call the host."""
        return self.names.get(host_id, host_id)


@dataclass(frozen=True, slots=True)
class RolloutState:
    """The rollout after `next_seq` journal lines."""

    index: PlanIndex
    #: Hosts that are not in flight; of a host in flight, what was known before.
    hosts: Mapping[str, HostProgress]
    in_flight: Mapping[str, HostProgress]
    #: The first wave that has not passed; None: all have.
    wave: int | None
    #: Hosts of this wave that wait for their turn.
    queue: tuple[str, ...]
    passed: frozenset[int] = frozenset()
    passed_at: datetime | None = None
    standing: Standing = Standing.NEW
    #: Why it was stopped, paused or aborted.
    why: str = ""
    #: Failed hosts, counted anew after each stop.
    failures: int = 0
    next_seq: int = 0

    @property
    def plan(self) -> Plan:
        return self.index.plan

    @property
    def is_breached(self) -> bool:
        """Whether more hosts failed than the plan allows."""
        return self.failures > self.plan.pace.failure_budget

    @property
    def is_ended(self) -> bool:
        """Whether nothing can ever follow but, after an abort, nothing at all."""
        return self.standing is Standing.FINISHED or (self.standing is Standing.ABORTED and not self.has_work_in_flight)

    @property
    def has_work_in_flight(self) -> bool:
        """Whether anything that was started has yet to be ended, settled or verified."""
        return any(host.has_open_steps or host.to_verify for host in self.in_flight.values())

    def host(self, host_id: str) -> HostProgress:
        """How one host stands. Raises KeyError for a host without a wave."""
        return self.in_flight.get(host_id) or self.hosts[host_id]

    def step(self, step_id: str) -> StepProgress:
        """How one step stands. Raises KeyError for a step outside the plan."""
        return self.host(self.index.steps[step_id].host_id).steps[step_id]

    def every_host(self) -> Iterator[HostProgress]:
        """All hosts of the plan, in the order of their waves."""
        return (self.host(host_id) for wave in self.index.waves for host_id in wave)

    def phase(self, host_id: str) -> HostPhase:
        """The phase of one host; of an aborted run, no host stays in flight."""
        phase = self.host(host_id).phase
        return HostPhase.WAITING if phase is HostPhase.IN_FLIGHT and self.is_ended else phase

    def count_hosts(self) -> Counter[HostPhase]:
        """How many hosts are in each phase."""
        return Counter(self.phase(host.id) for host in self.every_host())

    def count_steps(self) -> Counter[StepState]:
        """How many steps are in each state."""
        return Counter(step.state for host in self.every_host() for step in host.steps.values())

    def failed_hosts(self) -> tuple[HostProgress, ...]:
        """The hosts that failed since the last stop, undone ones included, in the order of their waves."""
        return tuple(host for host in self.every_host() if host.failure is not None)

    def in_flight_in(self, *states: StepState) -> tuple[str, ...]:
        """The steps of hosts in flight that are in one of `states`."""
        return tuple(
            step_id for host in self.in_flight.values() for step_id in self.index.host_steps[host.id] if host.steps[step_id].state in states
        )


def begin(plan: Plan) -> RolloutState:
    """The state before the first journal line. Raises IllegalPlan for a plan that no rollout can follow."""
    pace = plan.pace
    if pace.max_hosts_in_flight < 1 or pace.failure_budget < 0:
        raise IllegalPlan(
            f"the plan lets {pace.max_hosts_in_flight} hosts be in flight with a failure budget of {pace.failure_budget}: expected at "
            "least 1, and 0 or more. Make the plan anew."
        )
    wave_of: dict[str, int] = {}
    for number, wave in enumerate(pace.waves):
        for host_id in wave.hosts:
            if host_id in wave_of:
                raise IllegalPlan(f"host {host_id} is in the plan's waves twice: expected once. Make the plan anew.")
            wave_of[host_id] = number
    steps: dict[str, Step] = {}
    of_host: dict[str, list[str]] = {host_id: [] for host_id in wave_of}
    for step in plan.steps:
        if step.id in steps:
            raise IllegalPlan(f"step {step.id} is in the plan twice: expected once. Make the plan anew.")
        if step.host_id not in wave_of:
            raise IllegalPlan(f"host {step.host_id} has a step and is in no wave of the plan: expected one wave. Make the plan anew.")
        steps[step.id] = step
        of_host[step.host_id].append(step.id)
    index = PlanIndex(
        plan=plan,
        steps=steps,
        host_steps={host_id: tuple(ids) for host_id, ids in of_host.items()},
        wave_of=wave_of,
        names={host.id: host.inventory_name or host.hostname or host.id for host in plan.inputs.hosts},
    )
    waiting = StepProgress()
    hosts = {host_id: HostProgress(host_id, dict.fromkeys(ids, waiting)) for host_id, ids in index.host_steps.items()}
    return RolloutState(index, hosts, in_flight={}, wave=0 if pace.waves else None, queue=pace.waves[0].hosts if pace.waves else ())


class DueSteps(NamedTuple):
    """What is started next: all due steps of one remedy in the batch."""

    remedy: Remedy
    steps: tuple[str, ...]


def next_batch(state: RolloutState) -> tuple[str, ...]:
    """The hosts that are taken in flight next; none while any other is, or where the wave has none left."""
    return () if state.in_flight else state.queue[: state.plan.pace.max_hosts_in_flight]


def next_due(state: RolloutState) -> DueSteps | None:
    """The steps that are started next: of the first remedy, in the order of `Remedy`, that is due on any host in flight."""
    steps = state.index.steps
    due = [step_id for host in state.in_flight.values() for step_id in state.index.host_steps[host.id] if step_id in host.due]
    if not due:
        return None
    wanted = {steps[step_id].remedy for step_id in due}
    remedy = next(remedy for remedy in Remedy if remedy in wanted)
    return DueSteps(remedy, tuple(step_id for step_id in due if steps[step_id].remedy is remedy))


def next_undo(state: RolloutState) -> tuple[str, ...]:
    """The steps that are undone next: of as many hosts of one wave as may be in flight, the last wave first."""
    pace = state.plan.pace
    if not pace.automatic_rollback:
        return ()
    for wave in reversed(state.index.waves):
        found = [ids for host_id in wave if (ids := _undoable(state, state.host(host_id)))]
        if found:
            return tuple(step_id for ids in found[: pace.max_hosts_in_flight] for step_id in ids)
    return ()


def _undoable(state: RolloutState, host: HostProgress) -> tuple[str, ...]:
    """What this run changed on a host that was verified and did not pass, as far as undoing it is exact and disturbs nobody."""
    if host.verification is not False:
        return ()
    return tuple(
        step_id
        for step_id in state.index.host_steps[host.id]
        if host.steps[step_id].state is StepState.DONE
        and host.steps[step_id].undo_outcome is None
        and state.index.steps[step_id].reversible
        and state.index.steps[step_id].disruption is Disruption.NONE
    )


def next_wave_at(state: RolloutState) -> datetime | None:
    """When the wave may begin; None where none has passed yet."""
    return None if state.passed_at is None else state.passed_at + timedelta(seconds=state.plan.pace.pause_between_waves_seconds)


def told_failures(state: RolloutState) -> str:
    """How many hosts failed, how many may, and the first of them with their reasons."""
    failed = state.failed_hosts()
    told = [f"{state.index.name(host.id)}: {host.failure}" for host in failed[:_NAMED_AT_MOST]]
    if len(failed) > _NAMED_AT_MOST:
        told.append(f"and {len(failed) - _NAMED_AT_MOST} more")
    return (
        f"{len(failed)} {'host' if len(failed) == 1 else 'hosts'} failed, the plan allows {state.plan.pace.failure_budget}: "
        + "; ".join(told)
    )
