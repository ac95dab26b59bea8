"""`exitguard audit`: observe, judge, store, tell."""

import os
from dataclasses import replace
from datetime import UTC, datetime

import typer

from exitguard.cli.ledger import with_savings
from exitguard.cli.log import configure_logging
from exitguard.cli.options import (
    ConfigOption,
    ConnectOption,
    Format,
    FormatOption,
    NoStoreOption,
    OutputOption,
    PolicyOption,
    StateDirOption,
    SysrootOption,
    TimeoutOption,
    WaiversOption,
)
from exitguard.cli.output import look_for, note, write_result
from exitguard.cli.target import Asked, request_for, state_dir_for, unstored_notice


def audit(
    context: typer.Context,
    *,
    connect: ConnectOption = None,
    sysroot: SysrootOption = None,
    policy: PolicyOption = None,
    waivers: WaiversOption = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    no_store: NoStoreOption = False,
    timeout: TimeoutOption = None,
) -> None:
    """Observe this host and its domains, judge them by the policy, and say what is so. Changes nothing."""
    configure_logging(context.obj, os.environ)
    what = Asked(connect=connect, sysroot=sysroot, policy=policy, waivers=waivers, config=config, state_dir=state_dir)
    what = replace(what, no_store=no_store, timeout=timeout)
    request = request_for(what, os.environ)

    import structlog

    from exitguard.cycle import run_audit
    from exitguard.report.json_document import json_text
    from exitguard.report.table import audit_table

    outcome = run_audit(request)
    report = outcome.report if sysroot is not None else with_savings(outcome.report, state_dir_for(what, os.environ), datetime.now(UTC))
    structlog.get_logger().info(
        "audit.finished", domains=len(report.domains), exit_code=report.summary.exit_code, **report.summary.by_verdict
    )
    note((*unstored_notice(what, request), *outcome.notices))
    write_result(json_text(report) if output_format is Format.JSON else audit_table(report, look_for(output, os.environ)), output)
    raise typer.Exit(report.summary.exit_code)
