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
    from exitguard.store.ledger import HostLedger

#: What counts as now, to the full hour; and what is drawn beside it.
_NOW, _BESIDE = timedelta(hours=1), timedelta(days=2)
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Means from the hour, or day, of then on, instead of the last two hours."),
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
    from exitguard.store.host import HostStore

    now = datetime.now(UTC)
    with HostStore.open(directory, now=now, read_only=True) as store:
        report, stale = aged(last_report(store, None), store.audited_at(), now)
        books = _read_books(store.ledger, asked_since or now - _NOW, now)
    settings = load_settings(config, os.environ).settings
    costs = load_rulebook(settings.policy_files, settings.waiver_files).costs
    found = account(report, books, read_frequency(HostTree()), costs)
    text = json_text(found) if output_format is Format.JSON else savings_page(found, look_for(output, os.environ), stale=stale)
    write_result(text, output)
    raise typer.Exit(EXIT_COMPLIANT if found.domains and not stale else EXIT_UNKNOWN)


def _read_books(ledger: "HostLedger", since: datetime, until: datetime) -> "Books":
    """The ledger from the hour of `since` on; where its hours do not reach back so far any more, by days."""
    from exitguard.model.savings import OwnUse
    from exitguard.savings.account import Books
    from exitguard.savings.hours import hour_of

    begin = hour_of(since)
    first, day = ledger.first_hour(), begin.replace(hour=0)
    by_days = first is not None and begin < first and bool(ledger.sums_by_day(day, first.replace(hour=0)))
    if by_days:
        begin = day
    cpu, running = ledger.own_cost(begin, until)
    return Books(
        since=begin,
        until=until,
        resolution="day" if by_days else "hour",
        by_run=ledger.days_by_run(begin, until) if by_days else ledger.sums_by_run(begin, until),
        by_time=ledger.sums_by_day(begin, until) if by_days else ledger.sums_by_hour(min(begin, until - _BESIDE), until),
        own=OwnUse(cpu_seconds=cpu / 1000, running_seconds=running / 1000),
        unaccounted=ledger.unaccounted(begin, until),
    )
