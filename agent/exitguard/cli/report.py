"""`exitguard report`: the last audit that was stored, or what changed since a time."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.ledger import with_savings_of
from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, Format, FormatOption, OutputOption, StateDirOption
from exitguard.cli.output import look_for, note, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.target import Asked, state_dir_for

if TYPE_CHECKING:
    from exitguard.model.documents import AuditReport
    from exitguard.store.host import HostStore

#: A host is looked at far more often than this; an older report does not speak for it any more.
STALE_AFTER = timedelta(days=1)

AtOption = Annotated[str | None, typer.Option("--at", metavar="TIME", help="The report in force then, for example 2026-01-31T00:00:00Z.")]
SinceOption = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Instead: what changed since then, and what was lost.")]


def report(
    context: typer.Context,
    *,
    at: AtOption = None,
    since: SinceOption = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Print the last stored audit without looking at the host again. One older than a day is stale: exit code 3 instead of 0."""
    if at is not None and since is not None:
        raise typer.BadParameter("give either --at or --since", param_hint="--at")
    asked_at, asked_since = time_of(at, "--at"), time_of(since, "--since")
    configure_logging(context.obj, os.environ)
    directory = state_dir_for(Asked(config=config, state_dir=state_dir), os.environ)

    from exitguard.store.host import HostStore

    now = datetime.now(UTC)
    with HostStore.open(directory, now=now, read_only=True) as store:
        stored, stale = aged(last_report(store, asked_at), store.audited_at(asked_at), asked_at or now)
        if asked_at is None:
            _tell_losses(store, stored.observed_at)
            stored = with_savings_of(stored, store, now)
        text = (
            _report(stored, output_format, output, stale=stale)
            if asked_since is None
            else _changes(store, asked_since, output_format, output)
        )
    write_result(text, output)
    raise typer.Exit(stored.summary.exit_code)


def last_report(store: "HostStore", at: datetime | None) -> "AuditReport":
    """The report that was in force at `at`, or the last one. Raises Refusal where there is none, StoreError."""
    from exitguard.model.finding import EXIT_UNKNOWN

    found = store.report(at)
    if found is None:
        when = f" of {at:%Y-%m-%d %H:%M:%S} UTC or earlier" if at is not None else ""
        raise Refusal(f"exitguard: {store.state_dir} holds no audit{when}: run `exitguard audit` first.", code=EXIT_UNKNOWN)
    return found


def aged(stored: "AuditReport", audited_at: datetime | None, at: datetime) -> tuple["AuditReport", bool]:
    """The report as it may be told at `at`, and whether it is stale: then it no longer says that the host is compliant.

    It is as old as the last audit of the whole host: an event that made one domain be looked at says nothing of the others.
    """
    from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN

    # A report from the future has an unknown age: the clock was wrong then, or is now.
    stale = abs(at - (audited_at or stored.observed_at)) > STALE_AFTER
    if stale and stored.summary.exit_code == EXIT_COMPLIANT:
        return stored.model_copy(update={"summary": stored.summary.model_copy(update={"exit_code": EXIT_UNKNOWN})}), True
    return stored, stale


def _report(stored: "AuditReport", output_format: Format, output: Path | None, *, stale: bool) -> str:
    from exitguard.report.json_document import json_text
    from exitguard.report.table import audit_table

    if output_format is Format.TABLE:
        return audit_table(stored, look_for(output, os.environ), stale=stale)
    if stale:
        note([f"exitguard: stale: this report is of {stored.observed_at:%Y-%m-%d %H:%M} UTC; run `exitguard audit`."])
    return json_text(stored)


def _changes(store: "HostStore", since: datetime, output_format: Format, output: Path | None) -> str:
    from exitguard.report.changes import Changes, changes_page
    from exitguard.report.json_document import json_text

    changes = Changes(since=since, transitions=store.transitions(since), gaps=store.gaps(since))
    return json_text(changes) if output_format is Format.JSON else changes_page(changes, look_for(output, os.environ))


def _tell_losses(store: "HostStore", since: datetime) -> None:
    note(
        f"exitguard: since the last stored audit at least {gap.dropped} could not be stored, the last at {gap.last_at:%Y-%m-%d %H:%M} UTC: "
        f"{gap.reason}"
        for gap in store.gaps(since)
        if gap.last_at > since
    )


def time_of(text: str | None, option: str) -> datetime | None:
    """The time that an option gives. Raises typer.BadParameter for what is none."""
    from exitguard.model.time import parse_rfc3339

    if text is None:
        return None
    try:
        return parse_rfc3339(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
