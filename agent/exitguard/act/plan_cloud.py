"""A plan for an OpenStack cloud: a fresh look through its API, joined with the facts of its hosts, judged and decided."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from exitguard.act.facts_file import read_facts
from exitguard.act.origins import playbooks_hash
from exitguard.audit.cloud import host_side, judge_cloud
from exitguard.cycle import without_collector
from exitguard.facts.openstack import CloudRequest, read_cloud
from exitguard.model.plan import Plan
from exitguard.policy.schema import Rulebook
from exitguard.remedy.cloud_steps import plan_cloud
from exitguard.remedy.plan import Origins, assemble


@dataclass(frozen=True)
class CloudSetup:
    """What a plan for a cloud is made with."""

    cloud: str
    rulebook: Rulebook
    playbooks: Path
    #: What playbooks noted of clouds.
    records: Path


@without_collector()
def plan_for_cloud(setup: CloudSetup, files: Iterable[Path], *, made_at: datetime) -> Plan:
    """What would be changed in the cloud. `files` hold facts of its hosts. Raises CloudError, FactsError, PlanError."""
    facts = read_cloud(CloudRequest(cloud=setup.cloud, record_dir=setup.records), made_at)
    report = judge_cloud(facts, (host_side(read_facts(path), setup.rulebook) for path in files), setup.rulebook)
    planned = plan_cloud(facts, report, setup.rulebook, now=made_at)
    return assemble([planned], setup.rulebook, Origins(playbooks_hash(setup.playbooks)), made_at=made_at)
