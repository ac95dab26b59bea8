"""`exitguard apply`: carry out a plan, and nothing else."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, ConnectOption, PolicyOption, StateDirOption, TimeoutOption, WaiversOption, some_path
from exitguard.cli.output import note, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.remedy_setup import ExtraVarOption, InventoryOption, RemedyDirOption, Signals, setup_for
from exitguard.cli.target import Asked

if TYPE_CHECKING:
    from exitguard.act.apply import Setup
    from exitguard.act.conduct import Ending

PlanArgument = Annotated[
    Path | None, typer.Argument(metavar="[PLAN]", parser=some_path, help="The plan: `exitguard plan --format json --output PLAN`.")
]
HereOption = Annotated[
    bool, typer.Option("--here", help="Observe and plan this machine anew, and carry out what policy and approvals allow.")
]
CheckOption = Annotated[bool, typer.Option("--check", help="Rehearse by Ansible's check mode: nothing is changed.")]

EXIT_DONE = 0
EXIT_FAILED = 2
EXIT_WAITS = 3


def apply(
    context: typer.Context,
    *,
    plan: PlanArgument = None,
    here: HereOption = False,
    check: CheckOption = False,
    inventory: InventoryOption = None,
    connect: ConnectOption = None,
    policy: PolicyOption = None,
    waivers: WaiversOption = None,
    extra_var: ExtraVarOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    remedy_dir: RemedyDirOption = None,
    timeout: TimeoutOption = None,
) -> None:
    """Carry out a plan in waves, verify each host by looking anew, and stop at the first that is not as it should be.

    Exit codes: 0 done or nothing to do, 2 stopped, aborted or failed, 3 waits (approval, window, pause, or
    an end by a signal) or left steps that were no longer true, 1 error.
    """
    configure_logging(context.obj, os.environ)
    if (plan is None) is not here:
        raise typer.BadParameter("give either a plan or --here", param_hint="PLAN")
    if here and (inventory is not None or check):
        raise typer.BadParameter("is about this machine: give neither --inventory nor --check with it", param_hint="--here")
    asked = Asked(connect=connect, policy=policy, waivers=waivers, config=config, state_dir=state_dir, timeout=timeout)
    signals = Signals()
    setup = setup_for(asked, inventory=inventory, remedy_dir=remedy_dir, extra_vars=extra_var, signals=signals)
    if check and plan is not None:
        raise typer.Exit(_rehearse(plan, setup))
    signals.listen()
    raise typer.Exit(_apply_here(setup) if plan is None else _apply(plan, setup))


def _apply(path: Path, setup: "Setup") -> int:
    from exitguard.act.apply import apply_given
    from exitguard.act.plan_file import read_plan

    with refusals():
        run_id, ending = apply_given(read_plan(path), setup, now=datetime.now(UTC))
    return tell_ending(run_id, ending)


def _apply_here(setup: "Setup") -> int:
    from exitguard.act.here import apply_here

    with refusals():
        done = apply_here(setup, datetime.now(UTC))
    if done.run_id is None or done.ending is None:
        left = len(done.plan.left_alone) if done.plan is not None else 0
        write_result(f"Nothing to do on this host; {left} left alone: `exitguard plan` says why.\n", None)
        return EXIT_DONE
    return tell_ending(done.run_id, done.ending)


def _rehearse(path: Path, setup: "Setup") -> int:
    from exitguard.act.apply import rehearse
    from exitguard.act.plan_file import read_plan
    from exitguard.model.run import StepOutcome
    from exitguard.report.text import visible

    with refusals(), tempfile.TemporaryDirectory(prefix="exitguard-check-") as directory:
        world = rehearse(read_plan(path), setup, Path(directory))
        results = list(world.rehearse())
    names = {host.id: host.inventory_name or host.hostname or host.id for host in world.plan.inputs.hosts}
    lines = [
        f"{names[step.host_id]}: {step.subject.name}: {step.remedy.value}: {outcome.value}{f' ({reason})' if reason else ''}"
        for step, outcome, reason in results
    ]
    write_result("".join(visible(line, limit_characters=400, ascii_only=True) + "\n" for line in lines), None)
    bad = [outcome for _, outcome, _ in results if outcome not in (StepOutcome.DONE, StepOutcome.ALREADY, StepOutcome.CHANGED_SINCE)]
    note((f"{len(results)} steps rehearsed, {len(bad)} would fail; nothing was changed.",))
    return EXIT_FAILED if bad else EXIT_DONE


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what act raises into refusals with this verb's exit codes."""
    from exitguard.act.ansible import AnsibleError
    from exitguard.act.apply import NotApplied, OutsideWindow, WaitsForApproval
    from exitguard.act.origins import OriginsError
    from exitguard.act.plan_file import PlanFileError
    from exitguard.remedy.plan import PlanError
    from exitguard.remedy.rollout import RolloutError

    try:
        yield
    except (WaitsForApproval, OutsideWindow) as error:
        raise Refusal(f"exitguard: {error}", code=EXIT_WAITS) from error
    except (NotApplied, PlanFileError, OriginsError, PlanError, AnsibleError, RolloutError) as error:
        raise Refusal(f"exitguard: {error}", code=1) from error


def tell_ending(run_id: str, ending: "Ending") -> int:
    """Say how one process's work on a run ended, and what to type next; the exit code."""
    from exitguard.act.conduct import Ended

    reason = f": {ending.reason}" if ending.reason else ""
    match ending.how:
        case Ended.FINISHED if ending.left:
            left = f"{ending.left} of its steps were not carried out, since they are not true any more, and are not in force"
            note((f"Run {run_id} is through; {left}. `exitguard rollout status {run_id}` says why.",))
            return EXIT_WAITS
        case Ended.FINISHED:
            write_result(f"Run {run_id} is done. `exitguard rollout status {run_id}` shows each step.\n", None)
            return EXIT_DONE
        case Ended.FINISHED_WITH_FAILURES:
            note((f"Run {run_id} went through, and not every host is as it should be{reason}. See `exitguard rollout status {run_id}`.",))
            return EXIT_FAILED
        case Ended.ABORTED:
            note((f"Run {run_id} was aborted{reason}. `exitguard rollback {run_id}` undoes what it changed.",))
            return EXIT_FAILED
        case Ended.STOPPED:
            note(
                (
                    f"Run {run_id} stopped{reason}.",
                    f"See `exitguard rollout status {run_id}`; then `exitguard rollout resume {run_id}`, or abort it.",
                )
            )
            return EXIT_FAILED
        case _:
            note(
                (f"Run {run_id} waits ({ending.how.value.replace('_', ' ')}){reason}.", f"Go on with `exitguard rollout resume {run_id}`.")
            )
            return EXIT_WAITS
