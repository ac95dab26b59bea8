"""`exitguard policy`: whether policy files would be accepted, and what they demand."""

import os
from pathlib import Path
from typing import Annotated

import typer

from exitguard.cli.options import Format, FormatOption, OutputOption, some_path
from exitguard.cli.output import look_for, write_result

app = typer.Typer(help="The policy: what hosts and guests are judged by.", no_args_is_help=True, rich_markup_mode=None)

FilesArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="[FILE]...", parser=some_path, help="Policy files. Default: what ships.")
]


@app.command()
def check(files: FilesArgument = None) -> None:
    """Say whether an audit would run on these files; all problems at once."""
    from exitguard.policy.load import load_rulebook

    policy = load_rulebook(tuple(files or ())).policy
    write_result(f"good: policy {policy.id} {policy.version}, {len(policy.rules)} rules\n", None)


@app.command()
def show(files: FilesArgument = None, output_format: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """Print the policy that these files make: its rules, with severity and remedy."""
    from exitguard.policy.load import load_rulebook
    from exitguard.report.json_document import json_text
    from exitguard.report.policy_page import policy_page

    policy = load_rulebook(tuple(files or ())).policy
    write_result(json_text(policy) if output_format is Format.JSON else policy_page(policy, look_for(output, os.environ)), output)
