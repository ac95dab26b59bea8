"""Carrying out a plan: whether it may be, and then a run of it, which any later call can take up again.

What a plan was made from has to be what it is carried out with: policy, waivers, playbooks and inventory are hashed anew, and a plan
that was edited does not have its own hash. Whether each step is still true is looked at on its host, right before it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from exitguard.act.ansible import end_leftovers, require_ansible
from exitguard.act.approval import ApprovalError, find_approval, spend_approval
from exitguard.act.conduct import Ending, Surroundings, conduct, remembered, replay
from exitguard.act.observe import Cloud, Here, Inventory, Observer
from exitguard.act.origins import inventory_hash, playbooks_hash
from exitguard.act.world import World
from exitguard.cycle import AuditRequest
from exitguard.model.canonical import record_hash
from exitguard.model.plan import Approval, Mode, Plan, change_subject, step_id
from exitguard.model.run import EventKind, Request
from exitguard.model.time import format_rfc3339
from exitguard.policy.schema import Rulebook
from exitguard.policy.window import closes_at, opens_at
from exitguard.remedy.plan import policy_hash, waivers_hash
from exitguard.remedy.rollout import Done, next_action
from exitguard.remedy.undo import undo_plan
from exitguard.store.journal import RunJournal, RunRecord, RunStore

#: Each fork of Ansible's takes some 60 MB on the control node.
_MOST_FORKS = 50
#: Older ones that are over are forgotten; what they changed can then no longer be undone by name.
_RUNS_KEPT = 200


class NotApplied(Exception):  # noqa: N818 - a refusal, not a fault
    """The plan is not carried out, and nothing was changed; the message says why, and what to do."""


class WaitsForApproval(NotApplied):
    """The plan is fine, and nobody has approved it yet."""


class OutsideWindow(NotApplied):
    """The plan is fine, and no maintenance window is open."""


@dataclass(frozen=True)
class Setup:
    """What a plan is carried out with."""

    rulebook: Rulebook
    request: AuditRequest
    playbooks: Path
    #: None for this machine itself.
    inventory: Path | None
    remedy_dir: Path
    #: Extra variables for every playbook, such as the name of the hosts' exitguard.
    common: dict[str, str] = field(default_factory=dict)
    #: What a signal asks for: a pause at first, an end at once when it comes again.
    asked: Callable[[], Request | None] = lambda: None
    interrupted: Callable[[], bool] = lambda: False
    progress: Callable[[str, str, str], None] = lambda _host, _task, _status: None

    @property
    def approvals(self) -> Path:
        return self.remedy_dir / "approvals"

    @property
    def cloud_records(self) -> Path:
        """What was set in clouds and their APIs do not show, and what canaries have shown."""
        return self.remedy_dir / "nova"


def refuse_other_origins(plan: Plan, setup: Setup) -> None:
    """Raises NotApplied for a plan that was edited, or that was made from something else than it would be carried out with."""
    if record_hash(plan.content()) != plan.hash:
        raise NotApplied(f"the plan does not have the hash {plan.hash} that it names: it was edited or damaged. Make a new plan.")
    _refuse_forged_steps(plan)
    now = {
        "policy": (plan.inputs.policy_hash, policy_hash(setup.rulebook)),
        "waivers": (plan.inputs.waivers_hash, waivers_hash(setup.rulebook)),
        "playbooks": (plan.inputs.playbooks_hash, playbooks_hash(setup.playbooks)),
        "inventory": (plan.inputs.inventory_hash, None if setup.inventory is None else inventory_hash(setup.inventory)),
    }
    changed = [what for what, (then, current) in now.items() if then != current]
    if not changed:
        _refuse_forged_words(plan, setup)  # under another policy they would differ without anybody's edit
        return
    if changed == ["inventory"] and plan.inputs.inventory_hash is None:
        raise NotApplied("the plan was made for this machine itself: leave out --inventory.")
    if changed == ["inventory"] and setup.inventory is None:
        raise NotApplied("the plan was made for hosts of an inventory: name the same one with --inventory.")
    raise NotApplied(
        f"not what the plan was made from any more: {', '.join(changed)}. If it was made with another --policy, --waivers or --inventory "
        f"than you gave now (its policy: {plan.inputs.policy}), give the same; else make a new plan, and have it approved."
    )


def _refuse_forged_steps(plan: Plan) -> None:
    """Raises NotApplied where a step is not what its id says."""
    hosts = {host.id for host in plan.inputs.hosts}
    for step in plan.steps:
        about = change_subject(step.change)
        about = step.host_id if about == "host" else about
        if step.id != step_id(step.host_id, step.change, step.basis) or step.subject.id != about or step.host_id not in hosts:
            raise NotApplied(f"step {step.id} about {step.subject.name} is not what its id says: the plan was edited. Make a new plan.")


def _refuse_forged_words(plan: Plan, setup: Setup) -> None:
    """Raises NotApplied where the plan says of itself what the policy, which is the one that it was made from, decides otherwise."""
    if plan.undoes is not None:
        return  # made by plan_back from a journal of ours, and never read from a file that an operator gives
    remedies = setup.rulebook.policy.remedies
    pace = plan.pace.model_dump(exclude={"waves"})
    said = (plan.mode, plan.approval, pace)
    if said != (remedies.mode, remedies.approval, remedies.rollout.model_dump(include=set(pace))):
        raise NotApplied("mode, approval or pace of the plan are not those of the policy: the plan was edited. Make a new plan.")


def refuse_closed(plan: Plan, rulebook: Rulebook, now: datetime) -> None:
    """Raises NotApplied where the policy's mode lets nothing begin now."""
    if plan.mode is Mode.REPORT:
        raise NotApplied("the policy's remedies have mode: report, so plans are shown and none is carried out.")
    closed = _closed(plan, rulebook, now)
    if closed is not None:
        raise OutsideWindow(f"{closed}.")


def apply_given(plan: Plan, setup: Setup, *, now: datetime) -> tuple[str, Ending]:
    """Carry out a plan that came from a file: `apply_plan`, but for a plan that undoes. Raises NotApplied, StoreError."""
    if plan.undoes is not None:
        raise NotApplied(f"a plan that undoes is made from the run itself: `exitguard rollback {plan.undoes}`.")
    return apply_plan(plan, setup, now=now)


def apply_plan(plan: Plan, setup: Setup, *, now: datetime) -> tuple[str, Ending]:
    """Carry out a plan: the id of its run, and how it ended. Raises NotApplied before anything was changed, StoreError."""
    refuse_other_origins(plan, setup)
    refuse_closed(plan, setup.rulebook, now)
    if not plan.steps:
        raise NotApplied("the plan has no steps: there is nothing to do.")
    require_ansible()
    store = RunStore(setup.remedy_dir / "runs")
    refuse_unfinished(store)
    if _needs_approval(plan):
        try:
            find_approval(setup.approvals, plan.hash, now)
        except ApprovalError as error:
            raise WaitsForApproval(str(error)) from error
    with store.create(plan, now) as journal:
        ending = _conduct(journal, setup)
    store.forget(_RUNS_KEPT)
    return journal.run_id, ending


def resume_run(run_id: str, setup: Setup) -> Ending:
    """Go on with a run that was stopped, paused or interrupted. Raises NotApplied, StoreError."""
    with RunStore(setup.remedy_dir / "runs").open(run_id) as journal:
        state = replay(journal.plan, journal.events)
        if isinstance(next_action(state, datetime.now(UTC)), Done):  # an abort that was never settled is not over
            raise NotApplied(f"run {run_id} is over. `exitguard rollback {run_id}` undoes what it changed.")
        try:
            refuse_other_origins(journal.plan, setup)
        except NotApplied as error:
            if not state.has_work_in_flight:
                raise
            # What was under way has to be looked at all the same, else it could never be undone; nothing more is begun.
            return _conduct(journal, setup, closed=str(error))
        return _conduct(journal, setup)


def plan_back(record: RunRecord, setup: Setup, now: datetime) -> Plan:
    """A plan that undoes a run, made from what there is now: the way back stays open when policy or playbooks have changed since.

    Raises NotApplied for a run that is not over.
    """
    if not record.finished:
        raise NotApplied(f"run {record.run_id} is not over: end it with `exitguard rollout abort {record.run_id}` first.")
    if record.plan.undoes is not None:
        raise NotApplied(f"run {record.run_id} is itself an undo. To go forward again, make a plan, have it approved, and apply it.")
    back = undo_plan(record.plan, record.events, run_id=record.run_id, made_at=now)
    inputs = back.inputs.model_copy(
        update={
            "policy_hash": policy_hash(setup.rulebook),
            "waivers_hash": waivers_hash(setup.rulebook),
            "playbooks_hash": playbooks_hash(setup.playbooks),
            "inventory_hash": None if setup.inventory is None else inventory_hash(setup.inventory),
        }
    )
    if (inputs.inventory_hash is None) != (record.plan.inputs.inventory_hash is None):
        here = record.plan.inputs.inventory_hash is None
        raise NotApplied(
            "the run was on this machine itself: leave out --inventory." if here else "name the run's inventory with --inventory."
        )
    back = back.model_copy(update={"inputs": inputs, "mode": Mode.OPPORTUNISTIC, "approval": Approval.NONE})
    return back.model_copy(update={"hash": record_hash(back.content())})


def refuse_unfinished(store: RunStore) -> None:
    """Raises NotApplied where an earlier run is not over: two rollouts on the same hosts would each undo the other's checks."""
    record = unfinished(store)
    if record is None:
        return
    if record.held:
        raise NotApplied(f"run {record.run_id} is under way: `exitguard rollout status {record.run_id}` shows it.")
    raise NotApplied(
        f"run {record.run_id} is not over. Look at it with `exitguard rollout status {record.run_id}`, then go on with "
        f"`exitguard rollout resume {record.run_id}`, or end it for good with `exitguard rollout abort {record.run_id}`."
    )


def unfinished(store: RunStore) -> RunRecord | None:
    """The run that is not over yet; there is at most one."""
    for run_id in reversed(store.run_ids()):
        record = store.read(run_id)
        if not record.finished:
            return record
    return None


def rehearse(plan: Plan, setup: Setup, directory: Path) -> World:
    """The world of a plan, for `World.rehearse`: nothing is written down. Raises NotApplied."""
    refuse_other_origins(plan, setup)
    return _world(plan, setup, directory, aborted=lambda: False)


def _needs_approval(plan: Plan) -> bool:
    """The way back is always open: an undo is asked for by whoever stands at the keyboard, and restores what was."""
    return plan.approval is Approval.REQUIRED and plan.undoes is None


def _spend_approval(journal: RunJournal, setup: Setup) -> None:
    """Before anything is done, also where an earlier process ended before that. Raises WaitsForApproval; the run is then over."""
    now = datetime.now(UTC)
    try:
        spend_approval(setup.approvals, journal.plan.hash, journal.run_id, now)
    except ApprovalError as error:
        if journal.events:
            raise WaitsForApproval(f"its approval was withdrawn: {error}") from error
        journal.append(EventKind.STARTED, now, plan=journal.plan.hash)
        journal.append(EventKind.ABORTED, now, reason=f"nothing was done: {error}")
        raise WaitsForApproval(str(error)) from error


def _conduct(journal: RunJournal, setup: Setup, *, closed: str | None = None) -> Ending:
    """Go on with a run; with `closed`, a reason why nothing may begin, only look at what was under way."""
    if _needs_approval(journal.plan):
        _spend_approval(journal, setup)
    end_leftovers(journal.ansible_dir)  # of a process that ended in the middle: two of them must never work at once
    plan = journal.plan
    world = _world(plan, setup, journal.ansible_dir, aborted=lambda: journal.requested() is Request.ABORT)
    known = remembered(journal.events)
    world.undos, world.ran, world.done = known.undos, known.ran, known.done
    around = Surroundings(
        now=lambda: datetime.now(UTC),
        sleep=time.sleep,
        closed=lambda now: closed or _closed(plan, setup.rulebook, now),
        asked=lambda: journal.requested() or setup.asked(),
    )
    return conduct(journal, world, around)


def _world(plan: Plan, setup: Setup, directory: Path, *, aborted: Callable[[], bool]) -> World:
    forks = min(plan.pace.max_hosts_in_flight, max(1, len(plan.inputs.hosts)), _MOST_FORKS)
    return World(
        plan=plan,
        rulebook=setup.rulebook,
        observer=_observer(plan, setup, directory, forks),
        playbooks=setup.playbooks,
        inventory=setup.inventory,
        directory=directory,
        records=setup.cloud_records,
        common=setup.common,
        forks=forks,
        undos={},
        ran={},
        done=set(),
        aborted=aborted,
        interrupted=setup.interrupted,
        progress=setup.progress,
    )


def _observer(plan: Plan, setup: Setup, directory: Path, forks: int) -> Observer:
    if any(host.cloud is not None for host in plan.inputs.hosts):
        return Cloud(setup.cloud_records)
    if setup.inventory is None:
        return Here(setup.request)
    return Inventory(setup.inventory, setup.playbooks, directory, dict(setup.common), forks, plan.pace.step_timeout_seconds)


def _closed(plan: Plan, rulebook: Rulebook, now: datetime) -> str | None:
    """Why no step may begin now; None where one may, and has the time that a step may take."""
    if plan.mode is not Mode.WINDOWED:
        return None
    windows = rulebook.policy.remedies.windows
    closes = closes_at(windows, now)
    if closes is not None and closes - now >= timedelta(seconds=plan.pace.step_timeout_seconds):
        return None
    if closes is not None:
        return f"the maintenance window closes at {format_rfc3339(closes)}, too soon for a step of {plan.pace.step_timeout_seconds} s"
    opens = opens_at(windows, now)
    return f"no maintenance window is open; the next one opens {format_rfc3339(opens) if opens is not None else 'never'}"
