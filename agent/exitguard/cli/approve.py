"""`exitguard approve PLAN`: a person's word that exactly this plan may be carried out, once."""

import os
import pwd
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from exitguard.cli.apply import refusals
from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, some_path, some_text
from exitguard.cli.output import look_for, note, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.remedy_setup import RemedyDirOption, runs_dir

PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", parser=some_path, help="The plan that is approved.")]
ApproverOption = Annotated[
    str | None, typer.Option("--approver", metavar="NAME", parser=some_text, help="Who approves. Default: whoever is logged in.")
]
CommentOption = Annotated[str, typer.Option("--comment", metavar="TEXT", help="Why, or the number of the change.")]
HoursOption = Annotated[int, typer.Option("--hours", min=1, max=720, help="For how long the approval is good.")]


def approve(
    context: typer.Context,
    *,
    plan: PlanArgument,
    approver: ApproverOption = None,
    comment: CommentOption = "",
    hours: HoursOption = 24,
    config: ConfigOption = None,
    remedy_dir: RemedyDirOption = None,
) -> None:
    """Approve a plan: whoever carries it out finds a file that names its hash. It is good for one run, and for these hours only.

    The plan is shown first. Nothing is carried out by this.
    """
    configure_logging(context.obj, os.environ)

    from exitguard.act.approval import ApprovalError, write_approval
    from exitguard.act.plan_file import read_plan
    from exitguard.model.canonical import record_hash
    from exitguard.report.plan_table import plan_page

    with refusals():
        approved = read_plan(plan)
    if record_hash(approved.content()) != approved.hash:
        raise Refusal(f"exitguard: {plan}: does not have the hash that it names: it was edited or damaged. Make a new plan.", code=1)
    write_result(plan_page(approved, look_for(None, os.environ), named=str(plan)), None)
    now = datetime.now(UTC)
    directory = runs_dir(config, remedy_dir).parent / "approvals"
    try:
        path = write_approval(
            directory,
            approved.hash,
            approver=approver or _whoever(),
            approved_at=now,
            expires=now + timedelta(hours=hours),
            comment=comment,
        )
    except ApprovalError as error:
        raise Refusal(f"exitguard: {error}", code=1) from error
    note((f"Approved for {hours} hours and one run: {path}",))


def _whoever() -> str:
    """The user behind sudo, or this one."""
    name = os.environ.get("SUDO_USER")
    if name:
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user id {os.getuid()}"
