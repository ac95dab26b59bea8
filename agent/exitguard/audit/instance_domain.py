"""The domain of one instance among the facts of hosts, joined by uuid and by the host that Nova names. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exitguard.audit.computes import Compute, Computes
from exitguard.audit.host_side import HostSide, NovaDomain
from exitguard.model.cloud import Server

SHELVED_OFFLOADED = "SHELVED_OFFLOADED"
#: In these an instance may have no domain, and none is missing.
_NO_DOMAIN = frozenset({"DELETED", "SOFT_DELETED", "BUILD", "ERROR", "MIGRATING", "RESIZE"})
_MOST_NAMES = 3

#: By uuid the host whose facts have it, or the hosts: a list only where there are several, since nearly none has.
Index = Mapping[str, HostSide | list[HostSide]]


@dataclass(frozen=True, slots=True)
class Found:
    """The domain of one instance among the facts that were given, or why there is none."""

    domain: NovaDomain | None
    side: HostSide | None
    #: What there is to say of it; "" where a domain was found and nothing is odd.
    note: str = ""
    #: Whether its host's domains were listed without it.
    missing: bool = False


def index_domains(sides: Iterable[HostSide]) -> Index:
    """Where each domain is."""
    index: dict[str, HostSide | list[HostSide]] = {}
    for side in sides:
        for uuid in side.domains:
            before = index.get(uuid)
            if before is None:
                index[uuid] = side
            elif isinstance(before, list):
                before.append(side)
            else:
                index[uuid] = [before, side]
    return index


def find_domain(server: Server, computes: Computes, index: Index) -> Found:
    """The domain of a server on the host that Nova names, or on the only one that has it where Nova names none."""
    having = index.get(server.uuid)
    sides = [] if having is None else having if isinstance(having, list) else [having]
    if server.status == SHELVED_OFFLOADED:
        return Found(None, None, _left_behind(sides) if sides else "it is shelved: no host has a domain of it")
    compute = computes.by_host.get(server.host) if server.host is not None else None
    named = [side for side in sides if compute is not None and computes.host_of_side.get(side.host_id) == compute.host]
    if len(named) == 1:
        others = ", ".join(side.name for side in sides if side is not named[0])
        return _found(server, named[0], f"also found on {others}, while Nova says {server.host}" if others else "")
    if len(sides) > 1:
        names = " and ".join(f"{side.name} ({side.host_id})" for side in sides[:_MOST_NAMES])
        return Found(None, None, f"domains of it were found on {names}, and which one Nova means cannot be told")
    if not sides:
        return _not_found(server, compute)
    if compute is None:
        return _found(server, sides[0], "")
    if sides[0].host_id not in computes.host_of_side and not compute.sides:
        return _found(server, sides[0], f"found on {sides[0].name}; whether that is {server.host} cannot be told by name")
    return Found(None, None, f"Nova says that it is on {server.host}: {_left_behind(sides)}")


def _found(server: Server, side: HostSide, note: str) -> Found:
    return Found(side.domains[server.uuid], side, note)


def _left_behind(sides: list[HostSide]) -> str:
    names = ", ".join(side.name for side in sides[:_MOST_NAMES])
    return f"the domain of it on {names} was left behind, or the facts are older than its move"


def _not_found(server: Server, compute: Compute | None) -> Found:
    if compute is None:
        return Found(None, None, "its host was not shown, and no facts that were given have its domain")
    if not compute.sides:
        return Found(None, None, f"no facts of its host {compute.host} were given")
    unlisted = next((side.unlisted for side in compute.sides if side.unlisted is not None), None)
    if unlisted is not None:
        return Found(None, None, f"the domains of {compute.host} could not be listed: {unlisted}")
    if server.status in _NO_DOMAIN:
        return Found(None, None, f"{compute.host} has no domain of it, as may be of one that is {server.status}")
    return Found(None, None, f"{compute.host} has no domain of it: it was undefined, or came after the host was looked at", missing=True)
