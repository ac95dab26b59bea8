"""An operator's word to a run: to the process that works on it, or into its journal where none does."""

from datetime import datetime
from enum import StrEnum

from exitguard.act.apply import NotApplied
from exitguard.act.conduct import replay
from exitguard.model.run import EventKind, Request
from exitguard.remedy.rollout import Done, advance, next_action
from exitguard.store.journal import RunStore


class Heard(StrEnum):
    """Who heard it."""

    OF_ITS_PROCESS = "of its process"
    WRITTEN_DOWN = "written down"


def ask_for(store: RunStore, run_id: str, wish: Request, now: datetime) -> Heard:
    """Ask for a pause or an end. Raises NotApplied for a run that is over, StoreError."""
    record = store.read(run_id)
    if record.finished:
        raise NotApplied(f"run {run_id} is over: {replay(record.plan, record.events).standing.value}. There is nothing to {wish.value}.")
    if record.held:
        store.request(run_id, wish, now)
        return Heard.OF_ITS_PROCESS
    kind = EventKind.PAUSED if wish is Request.PAUSE else EventKind.ABORTED
    with store.open(run_id) as journal:
        state = replay(journal.plan, journal.events)
        if not journal.events:
            state = advance(state, journal.append(EventKind.STARTED, now, plan=journal.plan.hash))
        if not isinstance(next_action(state, now), Done):
            journal.append(kind, now, reason="asked by an operator while nobody worked on it")
        journal.requested()  # what was asked for earlier, of a process that ended before it heard
        journal.forget_request()
    return Heard.WRITTEN_DOWN
