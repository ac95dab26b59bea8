"""`exitguard doctor`: what can be seen from here, what cannot, why, and what would show it."""

import os
import pwd

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, ConnectOption, OutputOption, SysrootOption, TimeoutOption
from exitguard.cli.output import look_for, write_result
from exitguard.cli.target import Asked, request_for


def doctor(
    context: typer.Context,
    *,
    connect: ConnectOption = None,
    sysroot: SysrootOption = None,
    output: OutputOption = None,
    config: ConfigOption = None,
    timeout: TimeoutOption = None,
) -> None:
    """Name every source that could not be read, why, and which privilege or package would show it. Exit code 3 where there is one."""
    configure_logging(context.obj, os.environ)
    request = request_for(Asked(connect=connect, sysroot=sysroot, config=config, timeout=timeout), os.environ)

    from exitguard.cycle import observe
    from exitguard.report.doctor import doctor_exit_code, doctor_page

    facts = observe(request).facts
    write_result(doctor_page(facts, look_for(output, os.environ), user=_user()), output)
    raise typer.Exit(doctor_exit_code(facts))


def _user() -> str:
    """Who looks: what is seen depends on it. A uid where the user database does not know it."""
    try:
        return f"user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"uid {os.geteuid()}"
