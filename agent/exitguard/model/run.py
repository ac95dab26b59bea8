"""The words for a rollout under way: the events of its journal, in the order in which they were written.

Each event is written and on the disk before what it announces is done; what it reports is written right after it was seen.
"""

from enum import StrEnum

from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class EventKind(StrEnum):
    STARTED = "started"  # the run exists; nothing has been done
    BATCH_STARTED = "batch_started"  # `hosts` of `wave` are in flight from now on
    HOST_CHECKED = "host_checked"  # `host` was observed anew: `check`, `reason`, `due` steps, `running` domains
    STEPS_STARTED = "steps_started"  # `steps` are about to be carried out
    STEP_FINISHED = "step_finished"  # `step` ended with `outcome`
    STEP_SETTLED = "step_settled"  # `step`, whose end nobody saw, was found done or not done by a fresh look: `outcome`
    HOST_VERIFIED = "host_verified"  # `host` was observed anew after its steps: `passed`, `reason`
    WAVE_PASSED = "wave_passed"
    STOPPED = "stopped"  # more hosts failed than the budget allows: `reason`
    PAUSED = "paused"
    RESUMED = "resumed"
    ABORTED = "aborted"  # for good
    UNDO_STARTED = "undo_started"  # `steps` are about to be undone
    STEP_UNDONE = "step_undone"  # `step` ended with `outcome`: done means restored
    FINISHED = "finished"


class HostCheck(StrEnum):
    """What a fresh look before the steps found."""

    READY = "ready"  # at least one step is still true
    LEFT = "left"  # none is: done already, changed since, in maintenance
    FAILED = "failed"  # it could not be looked at


class StepOutcome(StrEnum):
    DONE = "done"  # changed, and seen to be changed
    ALREADY = "already"  # there was nothing to change
    CHANGED_SINCE = "changed_since"  # what the step rests on is no longer so: it was not carried out
    NOT_DONE = "not_done"  # settled: it never took effect
    REFUSED = "refused"  # its own checks on the host refused it: nothing was changed
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"


class Undo(Record):
    """What an undo needs to know of what was there before. No secret is in it."""

    #: What `<pmu>` said: on, off or absent; of a flavor or image the property's text, "" where it was silent.
    element: str
    #: sha256 of the definition without its secrets, before and after the change; None for a flavor or image.
    definition_before: str | None = None
    definition_after: str | None = None


class RunEvent(Record):
    """One line of the journal. `seq` counts from 0 without a gap."""

    seq: int
    at: UtcTime
    kind: EventKind
    plan: str | None = None
    wave: int | None = None
    hosts: tuple[str, ...] = ()
    host: str | None = None
    step: str | None = None
    steps: tuple[str, ...] = ()
    check: HostCheck | None = None
    outcome: StepOutcome | None = None
    passed: bool | None = None
    #: Of a checked host: the steps that are still true.
    due: tuple[str, ...] = ()
    #: Of a checked host: uuids of the domains that run.
    running: tuple[str, ...] = ()
    reason: str = ""
    undo: Undo | None = None


class Request(StrEnum):
    """What an operator asks of a run that is under way."""

    PAUSE = "pause"
    ABORT = "abort"
