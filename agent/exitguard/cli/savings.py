"""`exitguard savings`: how often this host's guests exit, what is saved of that, and what holds the rest back."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.fleet import FleetOption, hub_for
from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, Format, FormatOption, OutputOption, StateDirOption
from exitguard.cli.output import look_for, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.report import aged, last_report, time_of
from exitguard.cli.target import Asked, state_dir_for

if TYPE_CHECKING:
    from exitguard.savings.account import Books
    from exitguard.store.ledger import LedgerView

#: What is told where nothing is asked for, and what is drawn at least.
_DAY, _BESIDE = timedelta(days=1), timedelta(days=2)
AtOption = Annotated[str | None, typer.Option("--at", metavar="TIME", help="With --fleet: as it was then.")]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Beside now: from the hour, or day, of then on, instead of one day."),
]


def savings(
    context: typer.Context,
    *,
    fleet: FleetOption = False,
    at: AtOption = None,
    since: SinceOption = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Tell what is saved on this host, or on all of a fleet, what holds the rest back, and how that is known: out of the daemon's ledger.

    Exit code 0: there is an account; 3: there is none, or the last audit is older than a day.
    """
    asked_since = time_of(since, "--since")
    if (at is not None and not fleet) or (since is not None and fleet):
        raise typer.BadParameter("of a fleet what was so --at a time is told, of this host what is so --since one", param_hint="--fleet")
    configure_logging(context.obj, os.environ)
    if fleet:
        raise typer.Exit(_tell_fleet(time_of(at, "--at"), output_format, output, config))
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


def _tell_fleet(asked_at: datetime | None, output_format: Format, output: Path | None, config: Path | None) -> int:
    """What all hosts of the hub save; the exit code. Raises Refusal."""
    from exitguard.fleet.operator import HubError
    from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, EXIT_UNKNOWN
    from exitguard.model.hub import FleetSavingsLine
    from exitguard.model.time import format_rfc3339
    from exitguard.report.fleet_savings_page import FleetAccount, fleet_savings_page
    from exitguard.report.json_document import json_text

    at = asked_at or datetime.now(UTC)
    account = FleetAccount()
    try:
        with hub_for(config) as hub:
            for line in hub.lines("/v1/savings", FleetSavingsLine, {"at": format_rfc3339(at)}):
                account.add(line)
    except HubError as error:
        raise Refusal(f"exitguard: {error}", code=EXIT_ERROR) from error
    told = account.told(at)
    text = json_text(told) if output_format is Format.JSON else fleet_savings_page(told, account.total, look_for(output, os.environ))
    write_result(text, output)
    return EXIT_COMPLIANT if told.accounted else EXIT_UNKNOWN


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
