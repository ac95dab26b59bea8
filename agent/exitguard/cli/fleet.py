"""The hub that operators' verbs ask: `--fleet`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exitguard.fleet.operator import HubOperator
    from exitguard.model.hub import FleetHost

FleetOption = Annotated[bool, typer.Option("--fleet", help="Of all hosts: ask the hub at hub_url, by the token in hub_token_file.")]
_EXIT_ERROR = 1
_PASSWORD_IN_URL = re.compile(r"://[^/@]*:[^/@]*@")
_A_PAGE = "1000"


def hub_for(config: Path | None) -> "HubOperator":
    """The hub of the settings, by an operator's token. Raises Refusal, ConfigError."""
    from exitguard.config import load_settings

    settings = load_settings(config, os.environ).settings
    if settings.hub_url is None or settings.hub_token_file is None:
        missing = "hub_url (or $EXITGUARD_HUB_URL)" if settings.hub_url is None else "hub_token_file (or $EXITGUARD_HUB_TOKEN_FILE)"
        raise Refusal(
            f"exitguard: {missing} is not set. Expected the hub's URL, and a file with what `exitguard hub token` printed there.",
            code=_EXIT_ERROR,
        )

    require_client()

    from exitguard.fleet.operator import HubError, HubOperator, HubToken

    try:
        return HubOperator(HubToken(settings.hub_url, settings.hub_token_file, settings.hub_ca_file))
    except HubError as error:
        raise Refusal(f"exitguard: {error}", code=_EXIT_ERROR) from error


def refuse_password_in_url(database: str, option: str, belongs: str) -> None:
    """Raises typer.BadParameter, which does not show it, for a database's URL with a password."""
    if _PASSWORD_IN_URL.search(database):
        raise typer.BadParameter(f"everyone on this machine sees arguments: a password belongs in {belongs}", param_hint=option)


def require_client() -> None:
    """Raises Refusal where what speaks to a hub is not installed."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("httpx", "stamina", "zstandard")):
        raise Refusal("exitguard: what speaks to a hub is not installed. Expected exitguard[hub]: install that.", code=_EXIT_ERROR)


def hosts_of(hub: "HubOperator") -> "Iterator[FleetHost]":
    """Every host that was let in, in the order of their ids. Raises HubError."""
    from exitguard.model.hub import HostPage

    after: str | None = ""
    while after is not None:
        page = hub.get("/v1/hosts", HostPage, {"limit": _A_PAGE, "after": after})
        yield from page.hosts
        after = page.after if page.after is None or page.after > after else None  # no hub goes backwards
