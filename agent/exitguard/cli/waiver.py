"""`exitguard waiver check`: whether waiver files would be accepted."""

from pathlib import Path
from typing import Annotated

import typer

from exitguard.cli.options import some_path
from exitguard.cli.output import write_result
from exitguard.cli.refusal import Refusal

app = typer.Typer(help="Waivers: failures that somebody has answered for.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def waiver() -> None:
    """Keep `check` a verb of its own while it is the only one."""


@app.command()
def check(files: Annotated[list[Path], typer.Argument(metavar="FILE...", parser=some_path, help="Waiver files.")]) -> None:
    """Say whether the files hold well-formed waivers; all problems at once."""
    from exitguard.model.finding import EXIT_ERROR  # noqa: PLC0415 - `--help` does without
    from exitguard.policy.load import load_waivers  # noqa: PLC0415

    waivers, problems = load_waivers(tuple(files))
    if problems:
        raise Refusal(*(problem.sentence for problem in problems), code=EXIT_ERROR)
    ids = "".join(f", {waiver.id}" for waiver in waivers)
    write_result(f"good: {len(waivers)} {'waiver' if len(waivers) == 1 else 'waivers'}{ids}\n", None)
