"""The command line put together. The verbs import what they need when they run, so that `--help` and completion stay fast."""

from typing import Annotated

import typer

from exitguard import __version__
from exitguard.cli import (
    apply,
    approve,
    audit,
    config,
    daemon,
    doctor,
    explain,
    facts,
    hub,
    inventory,
    kernel,
    measure,
    nova,
    plan,
    policy,
    report,
    rollback,
    rollout,
    savings,
    schema,
    simulate,
    waiver,
)
from exitguard.cli.examples import examples_of
from exitguard.cli.log import LogFormat, Logging
from exitguard.cli.output import write_result

app = typer.Typer(
    name="exitguard",
    help="Finds, with evidence, which KVM hosts and guests waste work on every VM exit because of the guest PMU.",
    epilog=f"{examples_of('')}\n\nExit codes: 0 compliant, 2 not compliant, 3 unknown or stale, 1 error, 64 usage.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: fast, and the same in a pipe
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("audit")(audit.audit)
app.command("report")(report.report)
app.command("savings")(savings.savings)
app.command("measure")(measure.measure)
app.command("explain")(explain.explain)
app.command("doctor")(doctor.doctor)
app.command("facts")(facts.facts)
app.add_typer(kernel.app, name="kernel")
app.add_typer(nova.app, name="nova")
app.command("plan")(plan.plan)
app.command("approve")(approve.approve)
app.command("apply")(apply.apply)
app.add_typer(rollout.app, name="rollout")
app.command("rollback")(rollback.rollback)
app.command("daemon")(daemon.daemon)
app.add_typer(hub.app, name="hub")
app.command("inventory")(inventory.inventory)
app.command("simulate")(simulate.simulate)
app.add_typer(policy.app, name="policy")
app.add_typer(waiver.app, name="waiver")
app.add_typer(config.app, name="config")
app.command("schema")(schema.schema)


def _end_with_examples(group: typer.Typer, words: tuple[str, ...] = ()) -> None:
    """Give every verb of `group`, and the groups in it, their examples. A verb without any is a KeyError: it is to get some."""
    for verb in group.registered_commands:
        name = str(verb.name or getattr(verb.callback, "__name__", ""))  # as Typer names it
        verb.epilog = examples_of(" ".join((*words, name)))
    for inner in group.registered_groups:
        path = (*words, str(inner.name))
        inner.epilog = examples_of(" ".join(path))
        if inner.typer_instance is not None:
            _end_with_examples(inner.typer_instance, path)


_end_with_examples(app)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer's calling convention
    if wanted:
        write_result(f"exitguard {__version__}\n", None)
        raise typer.Exit


@app.callback()
def before_the_verb(
    context: typer.Context,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done, on standard error.")] = False,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="auto: lines on a terminal, JSON elsewhere.")] = LogFormat.AUTO,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Keep the options that stand before the verb for the verb to use."""
    del debug, version  # cli/edge.py reads --debug, and --version has been answered
    context.obj = Logging(verbose=verbose, log_format=log_format)
