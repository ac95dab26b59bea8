"""`exitguard daemon`: keep the audit of this host current, in the foreground, until SIGTERM."""

import os
import sys

import typer

from exitguard.cli.log import LogFormat
from exitguard.cli.options import ConfigOption
from exitguard.cli.refusal import Refusal

_EXIT_ERROR = 1


def daemon(context: typer.Context, *, config: ConfigOption = None) -> None:
    """Audit this host again and again, and after every change of a domain. Runs in the foreground; SIGHUP reloads, SIGTERM ends it.

    Everything else is a setting: `exitguard config show --effective`.
    """
    _check(config)
    words = [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", "exitguard.daemon"]  # nothing of the current directory
    words += ["--config", str(config)] if config is not None else []
    words += ["--log-format", str(context.obj.log_format)] if context.obj.log_format is not LogFormat.AUTO else []
    # One arena: the daemon's few threads gain nothing by more, and each would hold memory for good (mallopt(3)).
    environment = {"MALLOC_ARENA_MAX": "1", **os.environ}
    # The same process goes on as the daemon, without what the command line took. So systemd sees one process, this one.
    os.execve(sys.executable, words, environment)  # noqa: S606 - this very program


def _check(config: "ConfigOption") -> None:
    """What is wrong with settings, policy or the program itself is told here, in the words of the command line.

    And a store of an older exitguard is brought up to date, or a new one made: the process that stays never needs what that takes.
    """
    from datetime import UTC, datetime
    from importlib.util import find_spec

    from exitguard.config import load_settings
    from exitguard.policy.load import load_rulebook

    if find_spec("apscheduler") is None or find_spec("prometheus_client") is None:
        raise Refusal(
            "exitguard daemon: the packages for a host are not installed. Expected exitguard[host]: install that.", code=_EXIT_ERROR
        )
    settings = load_settings(config, os.environ).settings
    load_rulebook(settings.policy_files, settings.waiver_files)
    if settings.hub_url is not None and any(find_spec(name) is None for name in ("httpx", "stamina", "zstandard")):
        raise Refusal(
            "exitguard daemon: hub_url is set, and what pushing takes is not installed. Expected exitguard[host]: install that.",
            code=_EXIT_ERROR,
        )

    from exitguard.store.database import open_for_writing
    from exitguard.store.errors import StoreError, StoreOfAnother
    from exitguard.store.state_dir import DATABASE_NAME, prepare_directory

    try:
        prepare_directory(settings.state_dir)
        open_for_writing(settings.state_dir / DATABASE_NAME, now=datetime.now(UTC)).close()
    except StoreOfAnother as error:
        raise Refusal(f"exitguard daemon: {error}", code=_EXIT_ERROR) from None
    except StoreError:
        return  # the daemon says so itself, and tries again with every audit
