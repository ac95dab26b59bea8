"""`exitguard facts`: what is observed of a host and its domains, judged by nobody."""

import os

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.options import (
    ConfigOption,
    ConnectOption,
    Format,
    FormatOption,
    OutputOption,
    SysrootOption,
    TimeoutOption,
)
from exitguard.cli.output import look_for, write_result
from exitguard.cli.target import Asked, request_for


def facts(
    context: typer.Context,
    *,
    connect: ConnectOption = None,
    sysroot: SysrootOption = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    timeout: TimeoutOption = None,
) -> None:
    """Print every fact with its source, and why a fact is missing. Plans are made from these documents."""
    configure_logging(context.obj, os.environ)
    request = request_for(Asked(connect=connect, sysroot=sysroot, config=config, timeout=timeout), os.environ)

    from exitguard.cycle import observe
    from exitguard.report.facts_table import facts_table
    from exitguard.report.json_document import json_text

    document = observe(request).facts
    write_result(json_text(document) if output_format is Format.JSON else facts_table(document, look_for(output, os.environ)), output)
