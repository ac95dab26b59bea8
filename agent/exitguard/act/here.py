"""The privileged half of the agent on its own host: observe anew, plan anew, and carry out what policy and approval allow.

Nothing that the unprivileged daemon wrote is read here: it only says that there is something to look at. The plan is made from what this
process sees itself and from the policy in /etc, and an approval names the hash of exactly that plan.
"""

from dataclasses import dataclass
from datetime import datetime

from exitguard.act.apply import Setup, WaitsForApproval, apply_plan, refuse_closed, refuse_unfinished, resume_run, unfinished
from exitguard.act.conduct import Ending, replay
from exitguard.act.origins import playbooks_hash
from exitguard.act.plan_file import save_plan
from exitguard.cycle import observe
from exitguard.model.plan import Plan
from exitguard.remedy.plan import Origins, assemble, plan_host
from exitguard.remedy.rollout import Standing
from exitguard.store.journal import RunStore

#: After one of these an operator has to say how to go on.
_HALTS = (Standing.STOPPED, Standing.PAUSED)


@dataclass(frozen=True)
class Done:
    """What came of it: a run and its ending, or a plan with nothing to do."""

    run_id: str | None
    ending: Ending | None
    plan: Plan | None


def plan_here(setup: Setup, now: datetime) -> Plan:
    """A plan for this machine, by what is seen of it now."""
    facts = observe(setup.request).facts
    return assemble([plan_host(facts, setup.rulebook)], setup.rulebook, Origins(playbooks_hash(setup.playbooks)), made_at=now)


def apply_here(setup: Setup, now: datetime) -> Done:
    """Go on with a run that was interrupted; else plan, and carry out. Raises NotApplied where nothing is done, StoreError."""
    store = RunStore(setup.remedy_dir / "runs")
    record = unfinished(store)
    if record is not None and not record.held and replay(record.plan, record.events).standing not in _HALTS:
        return Done(record.run_id, resume_run(record.run_id, setup), record.plan)
    refuse_unfinished(store)
    plan = plan_here(setup, now)
    if not plan.steps:
        return Done(None, None, plan)
    refuse_closed(plan, setup.rulebook, now)
    try:
        run_id, ending = apply_plan(plan, setup, now=now)
    except WaitsForApproval as error:
        kept = save_plan(plan, setup.remedy_dir / "plans")
        raise WaitsForApproval(f"{error} The plan: {kept}") from error
    return Done(run_id, ending, plan)
