"""`exitguard savings`: how often this host's guests exit, what is saved of that, and what holds the rest back."""

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, Format, FormatOption, OutputOption, StateDirOption
from exitguard.cli.output import look_for, write_result
from exitguard.cli.report import aged, last_report, time_of
from exitguard.cli.target import Asked, state_dir_for

if TYPE_CHECKING:
    from exitguard.savings.account import Books
    from exitguard.store.ledger import LedgerView

#: What is told where nothing is asked for, and what is drawn at least.
_DAY, _BESIDE = timedelta(days=1), timedelta(days=2)
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Beside now: from the hour, or day, of then on, instead of one day."),
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
    """Tell what is saved on this host, what holds the rest back, and how that is known: out of the daemon's ledger.

    Exit code 0: there is an account; 3: there is none, or the last audit is older than a day.
    """
    asked_since = time_of(since, "--since")
    configure_logging(context.obj, os.environ)
    directory = state_dir_for(Asked(config=config, state_dir=state_dir), os.environ)

    from exitguard.config import load_settings
    from exitguard.facts.frequency import read_frequency
    from exitguard.facts.tree import HostTree
    from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN
    from exitguard.policy.load import load_rulebook
    from exitguard.report.json_document import json_text
    from exitguard.report.savings_page import savings_page
    from exitguard.savings.account import account
    from exitguard.savings.hours import hour_of
    from exitguard.store.host import HostStore

    now = datetime.now(UTC)
    with HostStore.open(directory, now=now, read_only=True) as store:
        report, stale = aged(last_report(store, None), store.audited_at(), now)
        view = store.ledger.read(hour_of(asked_since or now - _DAY), now, beside=_BESIDE)
    settings = load_settings(config, os.environ).settings
    costs = load_rulebook(settings.policy_files, settings.waiver_files).costs
    found = account(report, _books(view), read_frequency(HostTree()), costs)
    text = json_text(found) if output_format is Format.JSON else savings_page(found, look_for(output, os.environ), stale=stale)
    write_result(text, output)
    raise typer.Exit(EXIT_COMPLIANT if found.domains and not stale else EXIT_UNKNOWN)


def _books(view: "LedgerView") -> "Books":
    from exitguard.bookkeeping import sums_of
    from exitguard.savings.account import Books

    return Books(
        booked_until=view.booked_until,
        present=sums_of(view.now),
        asked=sums_of(view.asked),
        resolution=view.resolution,
        by_time=view.by_time,
        unaccounted=view.unaccounted,
    )
