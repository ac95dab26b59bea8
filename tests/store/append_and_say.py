"""Appends event after event to the newest run of a store, or to a new one, and says the number of each once it is on the disk.

Arguments: the directory of the store, how many.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from exitguard.model.canonical import record_hash
from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.plan import (
    Approval,
    Disruption,
    DomainPmuChange,
    Mode,
    Pace,
    Plan,
    PlanInputs,
    PlannedHost,
    SavingPerExit,
    Step,
    Wave,
    step_id,
)
from exitguard.model.pmu import PmuElement
from exitguard.model.run import EventKind, StepOutcome, Undo
from exitguard.store.journal import RunJournal, RunStore

START = datetime(2026, 11, 23, 2, 46, 1, 250000, tzinfo=UTC)
HOST_ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
DOMAIN = "813b0c1a-48cc-4074-9228-2fd0b7077ef5"
BASIS = "sha256:" + "ab" * 32


def seconds(count: int) -> datetime:
    """`count` seconds after START."""
    return START + timedelta(seconds=count)


def a_plan(name: str = "web-1") -> Plan:
    """A plan of one step; another name makes another plan."""
    change = DomainPmuChange(uuid=DOMAIN, before=PmuElement.ABSENT)
    step = Step(
        id=step_id(HOST_ID, change, BASIS),
        host_id=HOST_ID,
        subject=Subject(kind=SubjectKind.DOMAIN, id=DOMAIN, name=name),
        change=change,
        basis=BASIS,
        why="the next start has the PMU on",
        safe=("libvirt owns the definition",),
        disruption=Disruption.NONE,
        takes_effect="when its owner restarts it",
        diff="+    <pmu state='off'/>\n",
        savings=(SavingPerExit(provenance="unquantified", reason="nothing was measured on such a machine"),),
        reversible=True,
    )
    plan = Plan(
        made_at=START,
        hash="",
        mode=Mode.OPPORTUNISTIC,
        approval=Approval.NONE,
        inputs=PlanInputs(
            policy="pmu-off 1.0",
            policy_hash=BASIS,
            waivers_hash=BASIS,
            playbooks_hash=BASIS,
            hosts=(PlannedHost(id=HOST_ID, hostname="vm", inventory_name=None, facts_hash=BASIS),),
        ),
        pace=Pace(
            waves=(Wave(name="canary", hosts=(HOST_ID,)),),
            max_hosts_in_flight=1,
            failure_budget=0,
            step_timeout_seconds=300,
            pause_between_waves_seconds=0,
            automatic_rollback=True,
        ),
        steps=(step,),
        left_alone=(),
    )
    return plan.model_copy(update={"hash": record_hash(plan.content())})


def append_event(journal: RunJournal) -> int:
    """Append an event that its number alone decides; the number. Some are larger than a page."""
    seq = len(journal.events)
    undo = Undo(element="absent", definition_before=BASIS, definition_after=BASIS)
    fields = {"step": BASIS, "outcome": StepOutcome.DONE, "reason": f"{seq} " * (seq % 7) * 300, "undo": undo}
    return journal.append(EventKind.STEP_FINISHED, seconds(seq), **fields).seq


def make_run(store: RunStore, events: int, *, ending: EventKind | None = None) -> str:
    """The id of a new run with so many events, and one more of the kind `ending`."""
    with store.create(a_plan(), START) as journal:
        for _ in range(events):
            append_event(journal)
        if ending is not None:
            journal.append(ending, START)
        return journal.run_id


def main() -> None:
    store, count = RunStore(Path(sys.argv[1])), int(sys.argv[2])
    run_id = store.latest()
    with store.create(a_plan(), START) if run_id is None else store.open(run_id) as journal:
        for _ in range(count):
            sys.stdout.write(f"{append_event(journal)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
