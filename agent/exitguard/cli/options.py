"""The options that several verbs share, worded once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    TABLE = "table"  # for people
    JSON = "json"  # for programs; `exitguard schema` describes it


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="table for people, json for programs.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of to standard output; never half written.")
]
ConnectOption = Annotated[
    str | None, typer.Option("--connect", "-c", metavar="URI", help="The libvirt to ask. Default: the configured one, else qemu:///system.")
]
SysrootOption = Annotated[
    Path | None,
    typer.Option(
        "--sysroot", metavar="DIR", exists=True, file_okay=False, help="Read a host's file tree below DIR, and nothing of this machine."
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The settings of the agent. Default: the usual places.")
]
PolicyOption = Annotated[
    list[Path] | None, typer.Option("--policy", metavar="FILE", help="Judge by this file instead of what ships. May be repeated.")
]
WaiversOption = Annotated[
    list[Path] | None, typer.Option("--waivers", metavar="FILE", help="Failures that somebody answers for. May be repeated.")
]
StateDirOption = Annotated[Path | None, typer.Option("--state-dir", metavar="DIR", help="Where audits are remembered.")]
NoStoreOption = Annotated[bool, typer.Option("--no-store", help="Remember nothing; the host id is then provisional.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", min=0.5, max=60.0, help="How long one libvirt call may take before its domain counts as stuck."
    ),
]
