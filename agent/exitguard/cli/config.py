"""`exitguard config`: the agent's settings, where each came from, and whether they are good."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.options import ConfigOption, OutputOption, some_path
from exitguard.cli.output import note, write_result
from exitguard.cli.refusal import Refusal

if TYPE_CHECKING:
    from exitguard.config import LoadedSettings
    from exitguard.settings import Settings

app = typer.Typer(help="The agent's settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(
    *,
    effective: Annotated[bool, typer.Option("--effective", help="Every setting that applies, defaults included.")] = False,
    config: ConfigOption = None,
    output: OutputOption = None,
) -> None:
    """Print what is set here, by file or environment, as a configuration file; each value with its origin."""
    import json

    from exitguard.config import OriginKind, load_settings
    from exitguard.report.text import visible

    loaded = load_settings(config, os.environ)
    values = loaded.settings.model_dump(mode="json")
    lines = [
        # JSON is YAML: values with quotes and escapes read back as they are.
        f"{origin.setting}: {json.dumps(values[origin.setting])}  # {visible(str(origin), ascii_only=True)}\n"
        for origin in loaded.origins
        if effective or origin.kind is not OriginKind.DEFAULT
    ]
    if not lines:
        nowhere = "there is no file that does" if loaded.file is None else f"{loaded.file} sets nothing"
        note([f"Nothing is set: {nowhere}, nor does the environment. `exitguard config show --effective` prints the defaults."])
    write_result("".join(lines), output)


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", parser=some_path, help="Default: the file that applies here.")] = None,
) -> None:
    """Say whether the agent would run on this file, this environment, and the policy and waivers that they name.

    All problems of the settings at once, then those of the policy, then those of the waivers.
    """
    from exitguard.config import load_settings

    loaded = load_settings(file, os.environ)
    policy, waivers = _check_rulebook(loaded.settings)
    note(_state_dir_warning(loaded))
    write_result(f"good: {_read_from(loaded)}; {policy}, {waivers}\n", None)


def _check_rulebook(settings: "Settings") -> tuple[str, str]:
    """The policy and the number of waivers. Raises policy.load.PolicyError, or Refusal for waivers that would not be applied.

    A waiver that has expired is no fault of the settings: an audit tells it as what it is.
    """
    from exitguard.model.finding import EXIT_ERROR
    from exitguard.policy.load import load_rulebook

    rulebook = load_rulebook(settings.policy_files, settings.waiver_files)
    if rulebook.waiver_problems:
        raise Refusal(*(problem.sentence for problem in rulebook.waiver_problems), code=EXIT_ERROR)
    count = len(rulebook.waivers)
    return f"policy {rulebook.policy.id} {rulebook.policy.version}", f"{count} {'waiver' if count == 1 else 'waivers'}"


def _state_dir_warning(loaded: "LoadedSettings") -> tuple[str, ...]:
    """What to tell where audits of this user could not be remembered; a directory that is not there yet is made by the first one."""
    directory = loaded.settings.state_dir
    try:
        usable = os.access(directory, os.W_OK | os.X_OK, effective_ids=True) and directory.is_dir() if directory.exists() else True
    except OSError:  # below a directory that is closed to this user
        usable = False
    if usable:
        return ()
    here = f"{loaded.origin('state_dir')}: state_dir: {directory} is no directory that user id {os.geteuid()} may write to"
    return (f"Warning: {here}: what that user audits is told, and not remembered.",)


def _read_from(loaded: "LoadedSettings") -> str:
    from exitguard.report.text import visible

    return visible(str(loaded.file), ascii_only=True) if loaded.file is not None else "no file, so the defaults and the environment apply"
