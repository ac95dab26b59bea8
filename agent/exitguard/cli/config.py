"""`exitguard config`: the agent's settings, where each came from, and whether they are good."""

import os
from pathlib import Path
from typing import Annotated

import typer

from exitguard.cli.options import ConfigOption, OutputOption, some_path
from exitguard.cli.output import write_result

app = typer.Typer(help="The agent's settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(config: ConfigOption = None, output: OutputOption = None) -> None:
    """Print the settings that apply, as a configuration file, each with its origin."""
    import json

    from exitguard.config import load_settings

    loaded = load_settings(config, os.environ)
    values = loaded.settings.model_dump(mode="json")
    # JSON is YAML: values with quotes and escapes read back as they are.
    write_result("".join(f"{name}: {json.dumps(value)}  # {_origin(str(loaded.origin(name)))}\n" for name, value in values.items()), output)


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", parser=some_path, help="Default: the file that applies here.")] = None,
) -> None:
    """Say whether the agent would run on this file and this environment; all problems at once."""
    from exitguard.config import load_settings
    from exitguard.report.text import visible

    loaded = load_settings(file, os.environ)
    what = visible(str(loaded.file), ascii_only=True) if loaded.file is not None else "no file, so the defaults and the environment apply"
    write_result(f"good: {what}\n", None)


def _origin(text: str) -> str:
    from exitguard.report.text import visible

    return visible(text, ascii_only=True)
