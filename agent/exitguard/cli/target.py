"""From options and settings to one request: an option beats the environment, which beats the file, which beats the default."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from exitguard.cycle import AuditRequest


@dataclass(frozen=True)
class Asked:
    """The options of one command line that say what to audit, by what, and where to remember it; named and typed as in options.py."""

    connect: str | None = None
    sysroot: Path | None = None
    policy: list[Path] | None = None
    waivers: list[Path] | None = None
    config: Path | None = None
    state_dir: Path | None = None
    no_store: bool = False
    timeout: float | None = None


def request_for(asked: Asked, environ: Mapping[str, str]) -> "AuditRequest":
    """The request. Raises typer.BadParameter for options that exclude each other, config.ConfigError for bad settings."""
    if asked.connect is not None and asked.sysroot is not None:
        raise typer.BadParameter("reads files only, libvirt's included: give either --sysroot or --connect", param_hint="--sysroot")
    if asked.no_store and asked.state_dir is not None:
        raise typer.BadParameter("give either --no-store or --state-dir", param_hint="--no-store")

    from exitguard.config import load_settings
    from exitguard.cycle import AuditRequest
    from exitguard.settings import refuse_password

    if asked.connect is not None:
        try:
            refuse_password(asked.connect)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--connect") from None
    settings = load_settings(asked.config, environ).settings
    uri = None if asked.sysroot is not None else asked.connect or settings.connect
    request = AuditRequest(
        uri=uri,
        sysroot=asked.sysroot,
        policy_files=tuple(asked.policy or ()) or settings.policy_files,
        waiver_files=tuple(asked.waivers or ()) or settings.waiver_files,
        call_timeout_seconds=asked.timeout or settings.call_timeout_seconds,
    )
    # A store remembers one host. What was named on this command line alone may be another: it needs a store named there too.
    configured = request.target == AuditRequest(uri=settings.connect).target
    return replace(request, state_dir=asked.state_dir or (settings.state_dir if configured else None), remember=not asked.no_store)


def unstored_notice(asked: Asked, request: "AuditRequest") -> tuple[str, ...]:
    """What to tell who may take an audit for remembered that is not: its target is named on this command line alone, without a store."""
    if request.state_dir is not None or asked.no_store:
        return ()
    target = request.target.uri or request.target.sysroot
    why = f"the configured state directory is not for {target}, which only this command line names"
    return (f"Not stored: {why}. Give it a --state-dir of its own.",)


def state_dir_for(asked: Asked, environ: Mapping[str, str]) -> Path:
    """Where earlier audits are remembered. Raises config.ConfigError for bad settings."""
    from exitguard.config import load_settings

    return asked.state_dir or load_settings(asked.config, environ).settings.state_dir
