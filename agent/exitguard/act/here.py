"""The privileged half of the agent on its own host: observe anew, plan anew, and carry out what policy and approval allow.

Nothing that the unprivileged daemon wrote is read here: it only says that there is something to look at. The plan is made from what this
process sees itself and from the policy in /etc, and an approval names the hash of exactly that plan.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from exitguard.act.apply import NotApplied, Setup, WaitsForApproval, apply_plan, refuse_closed, refuse_unfinished, resume_run, unfinished
from exitguard.act.conduct import Ending, replay
from exitguard.act.origins import playbooks_hash
from exitguard.act.plan_file import save_plan
from exitguard.cycle import observe
from exitguard.model.documents import FactsDocument
from exitguard.model.plan import Plan
from exitguard.remedy.plan import Origins, assemble, plan_host
from exitguard.remedy.rollout import Standing
from exitguard.store.errors import explain_os
from exitguard.store.journal import RunStore
from exitguard.store.private import make_private_directory, open_regular

#: After one of these an operator has to say how to go on.
_LIMIT_BYTES = 256
_HALTS = (Standing.STOPPED, Standing.PAUSED)


@dataclass(frozen=True)
class Outcome:
    """What came of it: a run and its ending, or a plan with nothing to do."""

    run_id: str | None
    ending: Ending | None
    plan: Plan | None


def plan_here(setup: Setup, now: datetime) -> Plan:
    """A plan for this machine, by what is seen of it now."""
    return _plan(observe(setup.request).facts, setup, now)


def _plan(facts: FactsDocument, setup: Setup, now: datetime) -> Plan:
    return assemble([plan_host(facts, setup.rulebook, now=now)], setup.rulebook, Origins(playbooks_hash(setup.playbooks)), made_at=now)


def apply_here(setup: Setup, now: datetime) -> Outcome:
    """Go on with a run that was interrupted; else plan, and carry out. Raises NotApplied where nothing is done, StoreError."""
    store = RunStore(setup.remedy_dir / "runs")
    record = unfinished(store)
    if record is not None and not record.held and replay(record.plan, record.events).standing not in _HALTS:
        return Outcome(record.run_id, resume_run(record.run_id, setup), record.plan)
    refuse_unfinished(store)
    facts = observe(setup.request).facts
    _refuse_another_identity(facts.host.identity.id, setup.remedy_dir)
    plan = _plan(facts, setup, now)
    if not plan.steps:
        return Outcome(None, None, plan)
    refuse_closed(plan, setup.rulebook, now)
    try:
        run_id, ending = apply_plan(plan, setup, now=now)
    except WaitsForApproval as error:
        kept = save_plan(plan, setup.remedy_dir / "plans")
        raise WaitsForApproval(f"the plan {kept} waits for its approval: `exitguard approve {kept}`. ({error})") from error
    return Outcome(run_id, ending, plan)


def _refuse_another_identity(host_id: str, remedy_dir: Path) -> None:
    """Raises NotApplied where this host goes by another id than the one that it was first dealt with under.

    The id lies in the daemon's directory, and waivers may name it: whoever could change it could take a waiver away.
    """
    path = remedy_dir / "host-id"
    try:
        make_private_directory(remedy_dir)
        with suppress(FileExistsError), path.open("x", encoding="ascii") as file:
            file.write(f"{host_id}\n")
        with open_regular(path) as known:
            before = known.read(_LIMIT_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise explain_os(error, path, "a file that root may write and read") from error
    if before != host_id:
        raise NotApplied(
            f"this host was first dealt with as {before}, and its state directory now says {host_id}: its waivers may be for the other id. "
            f"If the new id is right (the state directory was lost, or moved), remove {path} and try again."
        )
