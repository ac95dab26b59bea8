"""From options and settings to what a plan is made and carried out with."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.options import some_path
from exitguard.cli.target import Asked, request_for

if TYPE_CHECKING:
    from exitguard.act.apply import Setup
    from exitguard.model.run import Request

#: How a host is reached, and where its exitguard is.
_VARIABLES = ("exitguard_command", "exitguard_become")

InventoryOption = Annotated[
    Path | None,
    typer.Option(
        "--inventory", "-i", metavar="PATH", parser=some_path, help="The Ansible inventory of the hosts. Default: this machine itself."
    ),
]
RemedyDirOption = Annotated[
    Path | None,
    typer.Option("--remedy-dir", metavar="DIR", parser=some_path, help="Where runs and approvals lie. Default: the configured one."),
]
ExtraVarOption = Annotated[
    list[str] | None,
    typer.Option(
        "--extra-var",
        metavar="NAME=VALUE",
        help="A variable for every playbook, such as exitguard_command=/opt/exitguard/bin/exitguard. May be repeated.",
    ),
]


@dataclass
class Signals:
    """What signals ask for while a run goes on: a pause at the first, an end of the playbook under way at the second."""

    count: int = 0
    handlers: list[tuple[signal.Signals, object]] = field(default_factory=list)

    def listen(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP no longer end the process."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._heard)

    def asked(self) -> "Request | None":
        from exitguard.model.run import Request

        return Request.PAUSE if self.count else None

    def interrupted(self) -> bool:
        return self.count > 1

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if sys.stderr is not None and self.count == 1:
            os.write(2, b"exitguard: pausing after what is under way; once more ends that too, and it is looked at when resumed.\n")


def setup_for(
    asked: Asked,
    *,
    inventory: Path | None = None,
    remedy_dir: Path | None = None,
    extra_vars: list[str] | None = None,
    signals: Signals | None = None,
) -> "Setup":
    """What a plan is made and carried out with. Raises PolicyError, ConfigError, ResourcesError, typer.BadParameter."""
    request = request_for(asked, os.environ)

    from exitguard.act.apply import Setup
    from exitguard.config import load_settings, remedy_dir_of
    from exitguard.policy.load import load_rulebook
    from exitguard.resources import playbooks_dir

    settings = load_settings(asked.config, os.environ).settings
    found = Setup(
        rulebook=load_rulebook(request.policy_files, request.waiver_files),
        request=request,
        playbooks=playbooks_dir(),
        inventory=inventory.absolute() if inventory is not None else None,
        remedy_dir=remedy_dir.absolute() if remedy_dir is not None else remedy_dir_of(settings),
        common=dict(_variable(text) for text in extra_vars or ()),
        progress=_progress(),
    )
    return found if signals is None else replace(found, asked=signals.asked, interrupted=signals.interrupted)


def runs_dir(config: Path | None, remedy_dir: Path | None) -> Path:
    """The directory of the runs. Raises ConfigError."""
    from exitguard.config import load_settings, remedy_dir_of

    return (remedy_dir or remedy_dir_of(load_settings(config, os.environ).settings)).absolute() / "runs"


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(f"expected NAME=VALUE, found {text!r}", param_hint="--extra-var")
    # What a step is told comes from the plan alone: extra variables are stronger than all others, and in no hash.
    if name not in _VARIABLES and not name.startswith("ansible_") and not name.endswith("_python"):
        allowed = f"{', '.join(_VARIABLES)}, ansible_... or ..._python"
        raise typer.BadParameter(f"expected one of {allowed}, found {name!r}: the rest is the plan's to say", param_hint="--extra-var")
    return name, value


def _progress() -> Callable[[str, str, str], None]:
    """Lines on a terminal, nothing elsewhere: standard error of a unit is its journal, which the log is for."""
    if sys.stderr is None or not sys.stderr.isatty():
        return lambda _host, _task, _status: None

    from exitguard.cli.output import note

    return lambda host, task, status: note((f"  {host}: {task}: {status}",))
