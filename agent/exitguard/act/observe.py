"""Looking anew: at this machine with the agent's own eyes, at others through playbooks/facts.yml, at a cloud through its API.

Nothing is changed by it.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from exitguard.act.ansible import HostOutcome, PlaybookRun, run_playbook
from exitguard.act.facts_file import FactsError, read_facts
from exitguard.cycle import AuditRequest, observe
from exitguard.facts.openstack import CloudError, CloudRequest, read_cloud
from exitguard.model.documents import FactsDocument
from exitguard.model.plan import PlannedHost
from exitguard.remedy.sight import CloudSight, HostSight, Sight


@dataclass(frozen=True)
class Look:
    """What one look at a host or a cloud gave, or why it gave nothing."""

    sight: Sight | None
    reason: str = ""


class Observer(Protocol):
    """Whoever can look at hosts."""

    def look(self, hosts: tuple[PlannedHost, ...], *, cancelled: Callable[[], bool]) -> Mapping[str, Look]:
        """By host id, one look each."""


@dataclass(frozen=True)
class Here:
    """This machine."""

    request: AuditRequest

    def look(self, hosts: tuple[PlannedHost, ...], *, cancelled: Callable[[], bool]) -> Mapping[str, Look]:
        """One look at this machine, which has to be the host that was planned for."""
        del cancelled  # libvirt's answers are bounded in time
        facts = observe(self.request).facts
        return {host.id: _of_this_host(host, facts, "this machine") for host in hosts}


@dataclass(frozen=True)
class Inventory:
    """Hosts that Ansible reaches."""

    inventory: Path
    playbooks: Path
    #: Where ansible-runner keeps its files.
    directory: Path
    common: Mapping[str, str]
    forks: int
    timeout_seconds: int

    def look(self, hosts: tuple[PlannedHost, ...], *, cancelled: Callable[[], bool]) -> Mapping[str, Look]:
        """One look at each host through its own agent."""
        by_name = {host.inventory_name or host.hostname or host.id: host for host in hosts}
        results = Path(tempfile.mkdtemp(prefix="facts-", dir=self.directory))
        try:
            run = PlaybookRun(
                playbook=self.playbooks / "facts.yml",
                hosts=tuple(by_name),
                inventory=self.inventory,
                variables={},
                common={**self.common, "facts_dir": str(results)},
                check=False,
                forks=self.forks,
                timeout_seconds=PlaybookRun.time_for(len(by_name), self.forks, self.timeout_seconds),
            )
            result = run_playbook(run, self.directory, cancelled=cancelled)
            looks = {}
            for name, host in by_name.items():
                answer = result.hosts.get(name)
                if answer is None or answer.outcome is not HostOutcome.OK:
                    looks[host.id] = Look(None, answer.reason if answer is not None else result.reason or "Ansible gave no result for it")
                    continue
                try:
                    looks[host.id] = _of_this_host(host, read_facts(results / f"{name}.json"), name)
                except FactsError as error:
                    looks[host.id] = Look(None, str(error))
            return looks
        finally:
            shutil.rmtree(results, ignore_errors=True)


def _of_this_host(host: PlannedHost, facts: FactsDocument, told: str) -> Look:
    """Facts of another host are no facts: a wrong inventory must not lead a step astray."""
    found = facts.host.identity.id
    if found == host.id:
        return Look(HostSight(facts))
    name = facts.host.identity.hostname.value or "a host without a name"
    return Look(
        None, f"{told} answers as {name}, host id {found}; the plan is for host id {host.id}., so that the inventory may be the wrong one"
    )


@dataclass(frozen=True)
class Cloud:
    """A cloud, through its API."""

    #: What playbooks noted of it.
    records: Path

    def look(self, hosts: tuple[PlannedHost, ...], *, cancelled: Callable[[], bool]) -> Mapping[str, Look]:
        """One look at the cloud, which has to be the one that was planned for."""
        del cancelled  # each request is bounded in time
        looks = {}
        for host in hosts:
            try:
                facts = read_cloud(CloudRequest(cloud=host.cloud, record_dir=self.records), datetime.now(UTC))
            except CloudError as error:
                looks[host.id] = Look(None, str(error))
                continue
            if facts.cloud.id == host.id:
                looks[host.id] = Look(CloudSight(facts))
            else:
                why = f"{host.cloud} leads to the cloud {facts.cloud.id}; the plan is for {host.id}: clouds.yaml may have changed"
                looks[host.id] = Look(None, why)
        return looks
