"""`exitguard waiver check`: whether waiver files would be accepted, and whether their waivers can cover anything."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from exitguard.cli.options import ConfigOption, PolicyOption, some_path
from exitguard.cli.output import write_result
from exitguard.cli.refusal import Refusal

app = typer.Typer(help="Waivers: failures that somebody has answered for.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def waiver() -> None:
    """Keep `check` a verb of its own while it is the only one."""


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", parser=some_path, help="Waiver files.")],
    policy: PolicyOption = None,
    config: ConfigOption = None,
) -> None:
    """Say whether the waivers are well formed, about rules of the policy, and not expired; all problems at once."""
    from exitguard.config import load_settings
    from exitguard.model.finding import EXIT_ERROR
    from exitguard.policy.load import load_rulebook, load_waivers

    # The policy that `audit` would judge by here, so that both say the same of a waiver.
    policy_files = tuple(policy or ()) or load_settings(config, os.environ).settings.policy_files
    rule_ids = [rule.id for rule in load_rulebook(policy_files).policy.rules]
    waivers, problems = load_waivers(tuple(files), rule_ids=rule_ids, now=datetime.now(UTC))
    if problems:
        raise Refusal(*(problem.sentence for problem in problems), code=EXIT_ERROR)
    ids = "".join(f", {waiver.id}" for waiver in waivers)
    write_result(f"good: {len(waivers)} {'waiver' if len(waivers) == 1 else 'waivers'}{ids}\n", None)
