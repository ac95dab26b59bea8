"""What the facts of one host bring to the audit of a cloud, without the rest of them: a fleet's facts are never in memory at once. Pure."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from exitguard.audit.domain import judge_domain
from exitguard.audit.judge import judge_host
from exitguard.audit.nova import written_by_nova
from exitguard.audit.pmu import setting_of_cpu_mode
from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainFacts, NovaInstance
from exitguard.model.pmu import ChainState, PmuElement, PmuSetting
from exitguard.policy.schema import Rulebook


@dataclass(frozen=True, slots=True)
class NovaDomain:
    """One domain of Nova's, as far as a cloud's audit looks at it."""

    uuid: str
    #: In libvirt, such as instance-0000002a.
    name: str
    #: What Nova's metadata says: its version, the flavor's name, and from 32.0.0 on what flavor and image say ("" silent, None not stored).
    build: str
    flavor: str
    flavor_hw_pmu: str | None
    image: str | None
    image_hw_pmu: str | None
    #: When Nova generated the XML, RFC 3339.
    generated_at: str | None
    #: The element that Nova wrote when it began this run here; that of the run; that of the definition. None where it is not known.
    wrote: PmuElement | None
    runs_with: PmuElement | None
    defined: PmuElement | None
    #: What an XML without the element would give it, by its CPU mode.
    absent_means: PmuSetting
    persistent: PmuSetting
    live: PmuSetting
    chain: ChainState
    active: bool | None
    #: An operator's mark in the metadata says: leave alone.
    locked: bool


@dataclass(frozen=True, slots=True)
class HostSide:
    """One host, reduced to its Nova domains."""

    host_id: str
    hostname: str | None
    observed_at: datetime
    #: Why its domains could not be listed; None where they were.
    unlisted: str | None
    domains: Mapping[str, NovaDomain]

    @property
    def name(self) -> str:
        return self.hostname or self.host_id


def host_side(facts: FactsDocument, rulebook: Rulebook) -> HostSide:
    """What of one host's facts the audit of a cloud needs, its domains judged as an audit of the host judges them."""
    judgement, _ = judge_host(facts, rulebook)
    domains = {}
    for domain in facts.domains:
        if domain.nova is not None:
            report = judge_domain(domain, judgement).report
            domains[domain.uuid] = _nova_domain(domain, domain.nova, report.pmu.persistent, report.pmu.live, report.chain.state)
    identity = facts.host.identity
    return HostSide(
        host_id=identity.id,
        hostname=identity.hostname.value,
        observed_at=facts.observed_at,
        unlisted=facts.host.libvirt.listing.reason,
        domains=domains,
    )


def _nova_domain(domain: DomainFacts, nova: NovaInstance, persistent: PmuSetting, live: PmuSetting, chain: ChainState) -> NovaDomain:
    definition = domain.definition.value if domain.definition is not None else None
    run = domain.run.value if domain.run is not None else None
    wrote = written_by_nova(domain)
    shape = run if wrote is not None else definition or run
    return NovaDomain(
        uuid=domain.uuid,
        name=domain.name,
        build=sys.intern(nova.version),
        flavor=sys.intern(nova.flavor),
        flavor_hw_pmu=nova.flavor_hw_pmu,
        image=sys.intern(nova.image) if nova.image is not None else None,
        image_hw_pmu=nova.image_hw_pmu,
        generated_at=nova.created_at,
        wrote=wrote,
        runs_with=run.pmu if run is not None and domain.active.value else None,
        defined=definition.pmu if definition is not None else None,
        absent_means=setting_of_cpu_mode(shape.cpu_mode) if shape is not None else PmuSetting.UNKNOWN,
        persistent=persistent,
        live=live,
        chain=chain,
        active=domain.active.value,
        locked=domain.locked,
    )
