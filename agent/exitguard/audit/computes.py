"""The compute hosts of a cloud, joined with the facts of hosts by name, and whether Nova on each defaults to PMU off. Pure.

A host's name is its own (short or full); Nova calls a compute host by its service's name and by its hypervisor's. Two names are those of
one host where they are the same in full, or where one of them is short and the other begins with it, unless the compute host has a full
name too, which is another; case does not count. A name that fits several compute hosts is nobody's.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exitguard.audit.host_side import HostSide
from exitguard.audit.nova import NovaDefault, Witness, weigh
from exitguard.model.cloud import Canary, CloudFacts
from exitguard.model.instance import ComputeReport
from exitguard.model.pmu import PmuElement, Tri

_QEMU_TYPES = ("QEMU", "KVM")
_ELEMENTS = {element.value: element for element in PmuElement}
_MOST_NAMES = 3


@dataclass(frozen=True, slots=True)
class Compute:
    """One compute host as Nova names it; `sides` are the hosts whose facts were given under a name of its."""

    host: str
    zone: str | None
    aggregates: tuple[str, ...]
    #: Whether it runs QEMU; None where that was not shown.
    qemu: bool | None
    sides: tuple[HostSide, ...]

    @property
    def builds(self) -> tuple[str, ...]:
        return tuple(sorted({domain.build for side in self.sides for domain in side.domains.values() if domain.build}))


@dataclass(frozen=True)
class Computes:
    """All compute hosts that the API shows, and where the facts of each host belong."""

    by_host: Mapping[str, Compute]
    #: Host id to the compute host; not there where its name is none that Nova knows, or several.
    host_of_side: Mapping[str, str]
    #: Facts of hosts that belong to no compute host, and why not.
    astray: tuple[tuple[HostSide, str], ...]


def find_computes(cloud: CloudFacts, sides: Iterable[HostSide]) -> Computes:
    """The compute hosts that services, hypervisors and servers name, each with the facts of its host."""
    names, types = _names(cloud)
    known = _KnownNames(names)
    sides_of: dict[str, list[HostSide]] = defaultdict(list)
    astray = []
    for side in sides:
        candidates = known.hosts_called(side.hostname)
        if len(candidates) == 1:
            sides_of[candidates[0]].append(side)
        else:
            astray.append((side, _why_astray(side, candidates)))
    zones = {service.host: service.zone for service in cloud.services.value or ()}
    aggregates: dict[str, list[str]] = defaultdict(list)
    for aggregate in cloud.aggregates.value or ():
        for host in aggregate.hosts:
            aggregates[host].append(aggregate.name)
    by_host = {
        host: Compute(
            host=host,
            zone=zones.get(host),
            aggregates=tuple(sorted(aggregates[host])) if host in aggregates else (),
            qemu=any(each.upper() in _QEMU_TYPES for each in types[host]) if host in types else None,
            sides=tuple(sides_of.get(host, ())),
        )
        for host in sorted(names)
    }
    return Computes(by_host, {side.host_id: host for host, of_host in sides_of.items() for side in of_host}, tuple(astray))


def _names(cloud: CloudFacts) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By compute host every name that it goes by, and the types of its hypervisors."""
    names: dict[str, set[str]] = defaultdict(set)
    types: dict[str, set[str]] = defaultdict(set)
    for service in cloud.services.value or ():
        names[service.host].add(service.host)
    for hypervisor in cloud.hypervisors.value or ():
        names[hypervisor.host] |= {hypervisor.host, hypervisor.hostname}
        types[hypervisor.host].add(hypervisor.type)
    for host, hostname in {(server.host, server.hypervisor_hostname) for server in cloud.servers.value or ()}:
        if host is not None:
            names[host] |= {host, hostname} if hostname is not None else {host}
    return names, types


class _KnownNames:
    """Which compute hosts a host's own name may mean."""

    def __init__(self, names: Mapping[str, set[str]]) -> None:
        self._full: dict[str, set[str]] = defaultdict(set)
        #: By the short form of a full name; by a short name of those that have no full one that begins with it.
        self._short: dict[str, set[str]] = defaultdict(set)
        self._only_short: dict[str, set[str]] = defaultdict(set)
        for host, called in names.items():
            lowered = {name.lower() for name in called}
            shortened = {name.partition(".")[0] for name in lowered if "." in name}
            for name in lowered:
                self._full[name].add(host)
                if "." not in name and name not in shortened:
                    self._only_short[name].add(host)
            for name in shortened:
                self._short[name].add(host)

    def hosts_called(self, hostname: str | None) -> list[str]:
        name = (hostname or "").lower()
        if not name:
            return []
        short, _, domain = name.partition(".")
        found = self._full.get(name) or (self._only_short.get(short) if domain else self._short.get(name))
        return sorted(found or ())


def _why_astray(side: HostSide, candidates: list[str]) -> str:
    if not candidates:
        return f"no compute host of this cloud is called {side.name}"
    return f"{side.name} may be any of the compute hosts {', '.join(candidates[:_MOST_NAMES])}"


@dataclass(frozen=True, slots=True)
class Default:
    """Whether Nova on one compute host defaults to PMU off, and by what."""

    holds: Tri
    reason: str
    witnesses_for: int
    witnesses_against: int


def judge_default(compute: Compute, silent: frozenset[str], canaries: tuple[Canary, ...]) -> Default:
    """Proof, disproof, or unknown. `silent` are the uuids of instances here whose flavor and stored image properties are known to be.

    A canary counts while the version of Nova that made it is one that instances here were started by.
    """
    builds = compute.builds
    counted = [each for each in canaries if each.version in builds]
    witnesses = [Witness(domain.uuid, domain.wrote, domain.uuid in silent) for side in compute.sides for domain in side.domains.values()]
    witnesses += [Witness(f"canary {each.version}", _ELEMENTS.get(each.element), silent=True) for each in counted]
    weighed = weigh(witnesses)
    return Default(weighed.holds, _why(compute, weighed, counted, canaries), len(weighed.proofs), len(weighed.disproofs))


def _why(compute: Compute, weighed: NovaDefault, counted: list[Canary], canaries: tuple[Canary, ...]) -> str:
    counts = f"{len(weighed.proofs)} witnesses for it, {len(weighed.disproofs)} against"
    match weighed.holds:
        case Tri.YES:
            return f"Nova defaults to PMU off here: {counts}"
        case Tri.NO:
            return f"Nova leaves the PMU to QEMU here: {counts}"
        case _ if weighed.proofs:
            return f"the witnesses contradict each other: {counts}"
    outdated = [each.version for each in canaries if each not in counted]
    told = f"; a canary of Nova {outdated[0]} does not count, since no instance here was started by it" if outdated else ""
    if compute.qemu is False:
        return "its hypervisor is no QEMU"
    if not compute.sides:
        return f"no facts of this host were given: `exitguard facts` there has its instances' XML{told}"
    return f"none of its instances is a witness: a canary would show it{told}"


def compute_report(compute: Compute, default: Default, instances: int) -> ComputeReport:
    """One compute host as the report has it."""
    return ComputeReport(
        host=compute.host,
        host_id=compute.sides[0].host_id if len(compute.sides) == 1 else None,
        zone=compute.zone,
        aggregates=compute.aggregates,
        builds=compute.builds,
        default_off=default.holds,
        reason=default.reason,
        witnesses_for=default.witnesses_for,
        witnesses_against=default.witnesses_against,
        instances=instances,
    )


def count_instances(cloud: CloudFacts) -> Counter[str]:
    """How many servers each compute host has."""
    return Counter(server.host for server in cloud.servers.value or () if server.host is not None)
