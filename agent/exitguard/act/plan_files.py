"""A plan for many hosts, from one file of facts each: read and decided one by one, so that only what is planned stays in memory."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from exitguard.act.facts_file import read_facts
from exitguard.cycle import without_collector
from exitguard.model.plan import Plan
from exitguard.policy.schema import Rulebook
from exitguard.remedy.plan import HostPlan, Origins, assemble, plan_host


@without_collector()
def plan_files(files: Iterable[Path], rulebook: Rulebook, origins: Origins, *, made_at: datetime) -> Plan:
    """One plan for the hosts of these files, each named after its host in the inventory. Raises FactsError, PlanError."""
    return assemble(_hosts(files, rulebook, made_at), rulebook, origins, made_at=made_at)


def _hosts(files: Iterable[Path], rulebook: Rulebook, now: datetime) -> Iterator[HostPlan]:
    for path in files:
        yield plan_host(read_facts(path), rulebook, inventory_name=path.stem, now=now)
