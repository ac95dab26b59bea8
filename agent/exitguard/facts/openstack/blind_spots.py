"""What a listing that was read as a whole does not show of its items, and why. Pure."""

from collections.abc import Iterable, Iterator
from typing import Literal

from exitguard.model.cloud import Flavor, Server

#: From these microversions on, Nova shows the extra specs of a server's own flavor, and of flavors in their listing.
_SERVERS_SPECS = (2, 47)
_FLAVORS_SPECS = (2, 61)
_FLAVORS_POLICY = "os_compute_api:os-flavor-extra-specs:index"
#: Before Nova 25 the policy of flavors decided.
_SERVERS_POLICY = "os_compute_api:servers:show:flavor-extra-specs"


def blind_spots(
    microversion: tuple[int, ...],
    scope: Literal["cloud", "project"],
    flavors: Iterable[Flavor],
    servers: Iterable[Server],
) -> Iterator[str]:
    """A sentence, without its full stop, for each thing that is not shown of flavors and servers."""
    flavors, servers = tuple(flavors), tuple(servers)
    if scope == "project":
        yield (
            "servers, flavors and images are those that one project may see: its role may not list those of all "
            "(policy os_compute_api:servers:detail:get_all_tenants)"
        )
    hidden = sum(flavor.hw_pmu is None for flavor in flavors)
    if hidden:
        why = _why(microversion, _FLAVORS_SPECS, _FLAVORS_POLICY)
        yield f"the extra specs of {hidden} of {len(flavors)} flavors are not shown: {why}"
    hidden = sum(server.flavor_hw_pmu is None for server in servers)
    if hidden:
        why = _why(microversion, _SERVERS_SPECS, _SERVERS_POLICY)
        yield f"the extra specs that {hidden} of {len(servers)} servers were made with are not shown: {why}"
    if servers and not any(server.host or server.hypervisor_hostname or server.domain_name for server in servers):
        yield "the hosts of servers are not shown: this role may not see them (policy os_compute_api:os-extended-server-attributes)"


def _why(microversion: tuple[int, ...], needed: tuple[int, int], policy: str) -> str:
    if microversion < needed:
        return f"that takes microversion {needed[0]}.{needed[1]}, and this Nova was asked in {'.'.join(map(str, microversion))}"
    return f"this role may not see them (policy {policy})"
