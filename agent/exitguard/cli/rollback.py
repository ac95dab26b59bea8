"""`exitguard rollback RUN`: undo what a run changed, where that is exact."""

import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from exitguard.cli.apply import EXIT_DONE, refusals, tell_ending
from exitguard.cli.log import configure_logging
from exitguard.cli.options import (
    ConfigOption,
    ConnectOption,
    PolicyOption,
    StateDirOption,
    TimeoutOption,
    WaiversOption,
)
from exitguard.cli.output import look_for, write_result
from exitguard.cli.remedy_setup import ExtraVarOption, InventoryOption, RemedyDirOption, Signals, setup_for
from exitguard.cli.target import Asked

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run, or how its id begins.")]
ShowOption = Annotated[bool, typer.Option("--show", help="Show what would be undone, and undo nothing.")]


def rollback(
    context: typer.Context,
    *,
    run: RunArgument,
    show: ShowOption = False,
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
    """Undo what a run changed, as a run of its own: checked, in waves, verified. What cannot be undone exactly is left and named.

    It needs no approval, and no window: the way back is always open. A run that is not over has to be aborted first.
    """
    configure_logging(context.obj, os.environ)
    asked = Asked(connect=connect, policy=policy, waivers=waivers, config=config, state_dir=state_dir, timeout=timeout)
    signals = Signals()
    setup = setup_for(asked, inventory=inventory, remedy_dir=remedy_dir, extra_vars=extra_var, signals=signals)

    from exitguard.act.apply import apply_plan, plan_back
    from exitguard.report.plan_table import plan_page
    from exitguard.store.journal import RunStore

    store = RunStore(setup.remedy_dir / "runs")
    with refusals():
        plan = plan_back(store.read(store.resolve(run)), setup, datetime.now(UTC))
        if show or not plan.steps:
            write_result(plan_page(plan, look_for(None, os.environ)), None)
            raise typer.Exit(EXIT_DONE)
        signals.listen()
        run_id, ending = apply_plan(plan, setup, now=datetime.now(UTC))
    raise typer.Exit(tell_ending(run_id, ending))
