"""The options that several verbs share, worded once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    TABLE = "table"  # for people
    JSON = "json"  # for programs; `exitguard schema` describes it


def some_text(text: str) -> str:
    """`text`, refused where it is empty: an unset variable of a script, which must not silently mean the default."""
    if not text.strip():
        raise typer.BadParameter(
            "expected a value, found an empty one: leave it out for the default, or set the variable that it came from"
        )
    return text


def some_path(text: str) -> Path:
    """`text` as a path, refused where it is empty: pathlib takes that for the current directory."""
    return Path(some_text(text))


def _directory(text: str) -> Path:
    path = some_path(text)
    if not path.is_dir():
        raise typer.BadParameter(f"{text!r} is not a directory" if path.exists() else f"directory {text!r} does not exist")
    return path


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="table for people, json for programs.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", parser=some_path, help="Write here instead of to standard output; never half written."),
]
ConnectOption = Annotated[
    str | None,
    typer.Option(
        "--connect", "-c", metavar="URI", parser=some_text, help="The libvirt to ask. Default: the configured one, else qemu:///system."
    ),
]
SysrootOption = Annotated[
    Path | None,
    typer.Option("--sysroot", metavar="DIR", parser=_directory, help="Read a host's file tree below DIR, and nothing of this machine."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", parser=some_path, help="The settings of the agent. Default: the usual places."),
]
PolicyOption = Annotated[
    list[Path] | None,
    typer.Option("--policy", metavar="FILE", parser=some_path, help="Judge by this file instead of what ships. May be repeated."),
]
WaiversOption = Annotated[
    list[Path] | None,
    typer.Option("--waivers", metavar="FILE", parser=some_path, help="Failures that somebody answers for. May be repeated."),
]
StateDirOption = Annotated[Path | None, typer.Option("--state-dir", metavar="DIR", parser=some_path, help="Where audits are remembered.")]
NoStoreOption = Annotated[bool, typer.Option("--no-store", help="Remember nothing; the host id is then provisional.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", min=0.5, max=60.0, help="How long one libvirt call may take before its domain counts as stuck."
    ),
]
