"""A plan for many hosts, from the facts of each: read and decided one by one, so that only what is planned stays in memory."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from exitguard.act.facts_file import read_facts
from exitguard.cycle import without_collector
from exitguard.model.documents import FactsDocument
from exitguard.model.plan import Plan
from exitguard.policy.schema import Rulebook
from exitguard.remedy.plan import HostPlan, Origins, assemble, plan_host


def plan_files(files: Iterable[Path], rulebook: Rulebook, origins: Origins, *, made_at: datetime) -> Plan:
    """One plan for the hosts of these files, each named after its host in the inventory. Raises FactsError, PlanError."""
    return plan_facts(((path.stem, read_facts(path)) for path in files), rulebook, origins, made_at=made_at)


@without_collector()
def plan_facts(facts: Iterable[tuple[str, FactsDocument]], rulebook: Rulebook, origins: Origins, *, made_at: datetime) -> Plan:
    """One plan for hosts by their names in the inventory. Raises PlanError, and what `facts` raises."""
    return assemble(_hosts(facts, rulebook, made_at), rulebook, origins, made_at=made_at)


def _hosts(facts: Iterable[tuple[str, FactsDocument]], rulebook: Rulebook, now: datetime) -> Iterator[HostPlan]:
    for name, document in facts:
        yield plan_host(document, rulebook, inventory_name=name, now=now)
