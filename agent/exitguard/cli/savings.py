"""`exitguard savings`: how often this host's guests exit, and what the guard saves of that, or would."""

import os
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, Format, FormatOption, OutputOption, StateDirOption
from exitguard.cli.output import look_for, write_result
from exitguard.cli.report import aged, last_report, time_of
from exitguard.cli.target import Asked, state_dir_for

_WINDOW = timedelta(days=1)
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Samples of then and later; of the last day, if not given.")
]


def savings(
    context: typer.Context,
    *,
    since: SinceOption = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Tell what the guard saves on this host, by samples of KVM's counters and the cost matrix. Exit code 3: nothing to tell."""
    asked_since = time_of(since, "--since")
    configure_logging(context.obj, os.environ)
    directory = state_dir_for(Asked(config=config, state_dir=state_dir), os.environ)

    from exitguard.config import load_settings
    from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN
    from exitguard.policy.load import load_rulebook
    from exitguard.report.json_document import json_text
    from exitguard.report.savings_table import savings_table
    from exitguard.savings.account import account
    from exitguard.store.host import HostStore

    settings = load_settings(config, os.environ).settings
    costs = load_rulebook(settings.policy_files, settings.waiver_files).costs
    now = datetime.now(UTC)
    begin = asked_since or now - _WINDOW
    with HostStore.open(directory, now=now, read_only=True) as store:
        report, stale = aged(last_report(store, None), store.audited_at(), now)
        found = account(report, store.samples(begin), costs, since=begin)
    text = json_text(found) if output_format is Format.JSON else savings_table(found, look_for(output, os.environ), stale=stale)
    write_result(text, output)
    raise typer.Exit(EXIT_COMPLIANT if found.domains and not stale else EXIT_UNKNOWN)
