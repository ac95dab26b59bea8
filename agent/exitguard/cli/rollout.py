"""`exitguard rollout status|pause|resume|abort`: runs of plans, and an operator's word to them."""

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.apply import refusals, tell_ending
from exitguard.cli.log import configure_logging
from exitguard.cli.options import (
    ConfigOption,
    ConnectOption,
    Format,
    FormatOption,
    OutputOption,
    PolicyOption,
    StateDirOption,
    TimeoutOption,
    WaiversOption,
)
from exitguard.cli.output import look_for, note, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.remedy_setup import ExtraVarOption, InventoryOption, RemedyDirOption, Signals, runs_dir, setup_for
from exitguard.cli.target import Asked

if TYPE_CHECKING:
    from exitguard.model.run import Request
    from exitguard.store.journal import RunStore

app = typer.Typer(help="Look at runs of plans, pause them, go on, or end them.", no_args_is_help=True, rich_markup_mode=None)

RunArgument = Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run, or how its id begins. Default: the last one.")]
EXIT_NO_RUN = 3


@app.command("status")
def status(
    context: typer.Context,
    *,
    run: RunArgument = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    remedy_dir: RemedyDirOption = None,
) -> None:
    """Show what a run has done, why it stopped, what is changed and what is not, and what to type next."""
    configure_logging(context.obj, os.environ)
    store = _store(runs_dir(config, remedy_dir))
    with refusals():
        from exitguard.act.conduct import replay
        from exitguard.report.json_document import json_text
        from exitguard.report.run_table import status_of, status_page

        record = store.read(_run_id(store, run))
        document = status_of(record.run_id, replay(record.plan, record.events), record.events, held=record.held)
        write_result(json_text(document) if output_format is Format.JSON else status_page(document, look_for(output, os.environ)), output)


@app.command("pause")
def pause(context: typer.Context, *, run: RunArgument = None, config: ConfigOption = None, remedy_dir: RemedyDirOption = None) -> None:
    """Let what is under way end, verify it, and start nothing more until `rollout resume`."""
    from exitguard.model.run import Request

    configure_logging(context.obj, os.environ)
    _ask(_store(runs_dir(config, remedy_dir)), run, Request.PAUSE)


@app.command("abort")
def abort(context: typer.Context, *, run: RunArgument = None, config: ConfigOption = None, remedy_dir: RemedyDirOption = None) -> None:
    """End a run for good: a playbook under way is ended, nothing more is started, and what was changed stays (see `rollback`)."""
    from exitguard.model.run import Request

    configure_logging(context.obj, os.environ)
    _ask(_store(runs_dir(config, remedy_dir)), run, Request.ABORT)


@app.command("resume")
def resume(
    context: typer.Context,
    *,
    run: RunArgument = None,
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
    """Go on with a run: what was under way is looked at first, hosts that failed get a fresh chance, nothing is done twice."""
    configure_logging(context.obj, os.environ)
    asked = Asked(connect=connect, policy=policy, waivers=waivers, config=config, state_dir=state_dir, timeout=timeout)
    signals = Signals()
    setup = setup_for(asked, inventory=inventory, remedy_dir=remedy_dir, extra_vars=extra_var, signals=signals)
    run_id = _run_id(_store(setup.remedy_dir / "runs"), run)

    from exitguard.act.apply import resume_run

    signals.listen()
    with refusals():
        ending = resume_run(run_id, setup)
    raise typer.Exit(tell_ending(run_id, ending))


def _store(directory: "os.PathLike[str]") -> "RunStore":
    from pathlib import Path

    from exitguard.store.journal import RunStore

    return RunStore(Path(directory))


def _run_id(store: "RunStore", run: str | None) -> str:
    """The run that is meant. Raises Refusal where there is none, StoreError for a name that is not clear."""
    if run is not None:
        return store.resolve(run)
    latest = store.latest()
    if latest is None:
        raise Refusal("exitguard: there has been no run yet: `exitguard apply PLAN` begins one.", code=EXIT_NO_RUN)
    return latest


def _ask(store: "RunStore", run: str | None, wish: "Request") -> None:
    """Ask the process that works on the run; where none does, write it down here."""
    from exitguard.act.wish import Heard, ask_for

    run_id = _run_id(store, run)
    with refusals():
        answer = ask_for(store, run_id, wish, datetime.now(UTC))
    if answer is Heard.OF_ITS_PROCESS:
        note((f"Run {run_id} is asked to {wish.value}. `exitguard rollout status {run_id}` shows when it has.",))
    else:
        note((f"Run {run_id}: {wish.value} is written down; nobody works on it. `exitguard rollout status {run_id}` shows how it stands.",))
