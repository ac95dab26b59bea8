"""`exitguard inventory`: the hosts of a hub as an Ansible inventory script tells them."""

import json
import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from exitguard.cli.fleet import hub_for
from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, some_text
from exitguard.cli.output import note, write_result
from exitguard.cli.refusal import Refusal


def inventory(
    context: typer.Context,
    *,
    listed: Annotated[bool, typer.Option("--list", help="All hosts and groups: what Ansible asks for first. Default.")] = False,
    host: Annotated[str | None, typer.Option("--host", metavar="NAME", parser=some_text, help="The variables of one host.")] = None,
    config: ConfigOption = None,
) -> None:
    """Print the hosts of the hub at hub_url as JSON, for Ansible: an inventory script is `exec exitguard inventory "$@"`.

    Groups: exitguard_kernel_STATE, exitguard_exit_CODE, exitguard_silent.
    """
    if listed and host is not None:
        raise typer.BadParameter("give either --list or --host", param_hint="--host")
    configure_logging(context.obj, os.environ)

    from exitguard.cli.fleet_inventory import inventory as inventory_of
    from exitguard.cli.fleet_inventory import named_hosts
    from exitguard.fleet.operator import HubError

    try:
        with hub_for(config) as hub:
            named = named_hosts(hub)
    except HubError as error:
        raise Refusal(f"exitguard: {error}", code=1) from error
    note(f"exitguard: left out: {sentence}" for sentence in named.left_out)
    found = named.by_name.get(host) if host is not None else None
    told = inventory_of(named, datetime.now(UTC)) if host is None else {} if found is None else {"exitguard_host_id": found.host_id}
    write_result(json.dumps(told, indent=2, sort_keys=True) + "\n", None)
