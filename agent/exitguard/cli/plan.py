"""`exitguard plan`: what would be changed, why that is safe, and what is left alone. Changes nothing."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.fleet import FleetOption, hub_for
from exitguard.cli.log import configure_logging
from exitguard.cli.options import (
    ConfigOption,
    ConnectOption,
    Format,
    FormatOption,
    OutputOption,
    PolicyOption,
    StateDirOption,
    TimeoutOption,
    WaiversOption,
    some_path,
)
from exitguard.cli.output import look_for, note, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.remedy_setup import InventoryOption, RemedyDirOption, setup_for
from exitguard.cli.target import Asked

if TYPE_CHECKING:
    from exitguard.act.apply import Setup
    from exitguard.model.plan import Plan

FactsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FACTS]...",
        parser=some_path,
        help="Files of facts, or a directory of them, named after the inventory's hosts (see playbooks/facts.yml). Default: this machine.",
    ),
]


def plan(
    context: typer.Context,
    *,
    facts: FactsArgument = None,
    inventory: InventoryOption = None,
    fleet: FleetOption = False,
    cloud: Annotated[
        str | None,
        typer.Option(
            "--cloud", metavar="NAME", help="Plan for an OpenStack cloud of clouds.yaml instead; FACTS are then those of its compute hosts."
        ),
    ] = None,
    connect: ConnectOption = None,
    policy: PolicyOption = None,
    waivers: WaiversOption = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    remedy_dir: RemedyDirOption = None,
    timeout: TimeoutOption = None,
) -> None:
    """Show what the policy's remedies would change, why that is safe, and what is left alone and why. Changes nothing."""
    configure_logging(context.obj, os.environ)
    if cloud is not None and inventory is not None:
        raise typer.BadParameter("a plan is for a cloud or for the hosts of an inventory, not for both", param_hint="--cloud")
    if facts and inventory is None and cloud is None:
        raise typer.BadParameter("name the inventory whose hosts these facts are of, with --inventory", param_hint="FACTS")
    if fleet and (facts or cloud is not None or inventory is None):
        raise typer.BadParameter("takes the facts from the hub: give --inventory, and neither FACTS nor --cloud", param_hint="--fleet")
    if inventory is not None and not facts and not fleet:
        raise typer.BadParameter("give the facts of its hosts as well: playbooks/facts.yml brings them home", param_hint="--inventory")
    asked = Asked(connect=connect, policy=policy, waivers=waivers, config=config, state_dir=state_dir, timeout=timeout)
    setup = setup_for(asked, inventory=inventory, remedy_dir=remedy_dir)
    if fleet:
        made = plan_for_fleet(setup, config)
    else:
        made = plan_for(setup, facts or []) if cloud is None else plan_for_cloud(setup, cloud, facts or [])

    from exitguard.report.json_document import json_text
    from exitguard.report.plan_table import plan_page

    write_result(json_text(made) if output_format is Format.JSON else plan_page(made, look_for(output, os.environ)), output)


def plan_for(setup: "Setup", facts: "list[Path]") -> "Plan":
    """A plan from files of facts, or of this machine as it is now. Raises Refusal."""
    from exitguard.act.facts_file import FactsError
    from exitguard.act.here import plan_here
    from exitguard.act.origins import OriginsError, inventory_hash, playbooks_hash
    from exitguard.act.plan_files import plan_files
    from exitguard.remedy.plan import Origins, PlanError

    now = datetime.now(UTC)
    try:
        if setup.inventory is None:
            return plan_here(setup, now)
        origins = Origins(playbooks_hash(setup.playbooks), inventory_hash(setup.inventory))
        return plan_files(_files(facts), setup.rulebook, origins, made_at=now)
    except (PlanError, FactsError, OriginsError) as error:
        raise Refusal(f"exitguard: {error}", code=1) from error


def plan_for_fleet(setup: "Setup", config: Path | None) -> "Plan":
    """A plan for the hosts of the hub, as they last said that they are. Raises Refusal."""
    from exitguard.act.origins import OriginsError, inventory_hash, playbooks_hash
    from exitguard.act.plan_files import plan_facts
    from exitguard.cli.fleet_inventory import facts_of_fleet, named_hosts
    from exitguard.fleet.operator import HubError
    from exitguard.remedy.plan import Origins, PlanError

    now = datetime.now(UTC)
    try:
        origins = Origins(playbooks_hash(setup.playbooks), None if setup.inventory is None else inventory_hash(setup.inventory))
        with hub_for(config) as hub:
            named = named_hosts(hub)
            made = plan_facts(facts_of_fleet(hub, named, now), setup.rulebook, origins, made_at=now)
    except (PlanError, OriginsError, HubError) as error:
        raise Refusal(f"exitguard: {error}", code=1) from error
    note(f"exitguard: left out: {sentence}" for sentence in named.left_out)
    return made


def plan_for_cloud(setup: "Setup", cloud: str, facts: "list[Path]") -> "Plan":
    """A plan for a cloud as it is now. Raises Refusal."""
    from exitguard.act import plan_cloud
    from exitguard.act.facts_file import FactsError
    from exitguard.act.origins import OriginsError
    from exitguard.facts.openstack import CloudError
    from exitguard.remedy.plan import PlanError

    made_with = plan_cloud.CloudSetup(cloud=cloud, rulebook=setup.rulebook, playbooks=setup.playbooks, records=setup.cloud_records)
    try:
        return plan_cloud.plan_for_cloud(made_with, _files(facts), made_at=datetime.now(UTC))
    except (PlanError, FactsError, OriginsError, CloudError) as error:
        raise Refusal(f"exitguard: {error}", code=1) from error


def _files(facts: "list[Path]") -> "list[Path]":
    """The files that were named, a directory standing for all of its `.json`. Raises Refusal for one without any."""
    found = []
    for path in facts:
        here = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not here:
            raise Refusal(f"exitguard: {path}: holds no facts. Expected files HOST.json, as playbooks/facts.yml writes them.", code=1)
        found += here
    return found
