"""One look at a cloud: each listing by itself, so that what one role may not see hides nothing else."""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from exitguard.facts.openstack.blind_spots import blind_spots
from exitguard.facts.openstack.connection import CloudConnection, open_cloud
from exitguard.facts.openstack.errors import ForbiddenError, TooLargeError, UnseenError
from exitguard.facts.openstack.pages import parse_item, read_pages
from exitguard.facts.openstack.parse import (
    STATE_UNKNOWN,
    parse_aggregate,
    parse_flavor,
    parse_hypervisor,
    parse_image,
    parse_server,
    parse_service,
)
from exitguard.facts.openstack.records import read_canaries, read_remedied
from exitguard.facts.openstack.request import CloudRequest
from exitguard.model.cloud import CloudFacts, ComputeService, Flavor, Hypervisor, Image, Server
from exitguard.model.record import Observed, seen, unseen

T = TypeVar("T")
Scope = Literal["cloud", "project"]
_PAGE = {"limit": "1000"}  # Nova's own most (api.max_limit), and Glance's (api_limit_max)
#: Nova asks three questions of its databases for each hypervisor, and proxies before it have time-outs.
_PAGE_OF_HYPERVISORS = {"limit": "100"}
_PAGE_OF_LARGE_SERVERS = {"limit": "100"}
#: `/os-hypervisors/detail?with_servers=true`.
_WITH_SERVERS = (2, 53)


def read_cloud(request: CloudRequest, observed_at: datetime) -> CloudFacts:
    """Everything that the API shows to this role. Raises CloudError where nothing at all could be asked."""
    with closing(open_cloud(request)) as cloud:
        return _read(cloud, request.record_dir, observed_at)


def _read(cloud: CloudConnection, records: Path | None, observed_at: datetime) -> CloudFacts:
    services = _observed("nova: os-services", lambda: _services(cloud))
    servers, scope = _servers(cloud)
    flavors = _observed("nova: flavors", lambda: _flavors(cloud))
    out_of_reach = tuple(service.host for service in services.value or () if service.state == STATE_UNKNOWN)
    remedied, not_remedied = read_remedied(records, cloud.identity.id) if records is not None else ((), ())
    canaries, no_canaries = read_canaries(records, cloud.identity.id) if records is not None else ((), ())
    return CloudFacts(
        observed_at=observed_at,
        cloud=cloud.identity,
        scope=scope,
        flavors=flavors,
        images=_observed("glance: images", lambda: _images(cloud)),
        servers=_whole(servers, out_of_reach),
        services=services,
        hypervisors=_whole(_observed("nova: os-hypervisors", lambda: _hypervisors(cloud)), out_of_reach),
        aggregates=_observed(
            "nova: os-aggregates", lambda: read_pages(cloud.compute, "/os-aggregates", "aggregates", parse_aggregate, parameters={})
        ),
        remedied=remedied,
        canaries=canaries,
        notices=(*blind_spots(cloud.microversion, scope, flavors.value or (), servers.value or ()), *not_remedied, *no_canaries),
    )


def _flavors(cloud: CloudConnection) -> tuple[Flavor, ...]:
    parameters = {**_PAGE, "is_public": "None"}  # those that are not public too
    return read_pages(cloud.compute, "/flavors/detail", "flavors", parse_flavor, parameters=parameters)


def _images(cloud: CloudConnection) -> tuple[Image, ...]:
    """All images: Glance leaves community images out where they are not asked for, and hidden ones, of which instances may still run."""
    every = {**_PAGE, "visibility": "all", "member_status": "all"}
    shown = read_pages(cloud.image, "/images", "images", parse_image, parameters=every)
    hidden = read_pages(cloud.image, "/images", "images", parse_image, parameters={**every, "os_hidden": "true"})
    found = {image.id: image for image in (*shown, *hidden)}
    return tuple(found[each] for each in sorted(found))


def _servers(cloud: CloudConnection) -> tuple[Observed[tuple[Server, ...]], Scope]:
    """All servers, or those of the credentials' own project where the role may see no others; and which of the two.

    The first page is asked for without a limit: from microversion 2.69 on Nova then shows which servers it cannot reach, and with one it
    leaves them out in silence (nova/api/openstack/compute/servers.py, _is_cell_down_supported). Its own limit holds either way.
    """

    def ask(parameters: Mapping[str, str]) -> tuple[Server, ...]:
        try:
            return read_pages(cloud.compute, "/servers/detail", "servers", parse_server, parameters=parameters)
        except TooLargeError:
            smaller = {**parameters, **_PAGE_OF_LARGE_SERVERS}
            return read_pages(cloud.compute, "/servers/detail", "servers", parse_server, parameters=smaller)

    try:
        return seen("nova: servers of all projects", ask({"all_tenants": "1"})), "cloud"
    except ForbiddenError:
        return _observed("nova: servers of one project", lambda: ask({})), "project"
    except UnseenError as error:
        return unseen("nova: servers of all projects", str(error), unlock=error.unlock), "cloud"


def _services(cloud: CloudConnection) -> tuple[ComputeService, ...]:
    """Every nova-compute. They come in one page, and one that Nova cannot reach has no id to tell it by."""
    document = cloud.compute.get("/os-services", {"binary": "nova-compute"})
    found = document.get("services")
    if not isinstance(found, list):
        raise UnseenError(f"/os-services: expected a list 'services', found {type(found).__name__}")
    services = (parse_item(parse_service, service, f"/os-services: services[{index}]") for index, service in enumerate(found))
    return tuple(sorted(services, key=lambda service: (service.host, service.id)))


def _hypervisors(cloud: CloudConnection) -> tuple[Hypervisor, ...]:
    if cloud.microversion < _WITH_SERVERS:
        raise UnseenError(f"microversion 2.53 is needed, and this Nova offers {cloud.identity.microversion_offered}")
    return read_pages(
        cloud.compute,
        "/os-hypervisors/detail",
        "hypervisors",
        parse_hypervisor,
        parameters={**_PAGE_OF_HYPERVISORS, "with_servers": "true"},
        microversion=cloud.microversion_without_uptimes,
    )


def _whole(listing: Observed[tuple[T, ...]], out_of_reach: tuple[str, ...]) -> Observed[tuple[T, ...]]:
    """The listing, unless Nova has left a cell out of it: a part of a listing is none."""
    if not out_of_reach or not listing.known:
        return listing
    hosts = ", ".join(out_of_reach[:3]) + (f" and {len(out_of_reach) - 3} more" if len(out_of_reach) > 3 else "")  # noqa: PLR2004 - as many as fit a line
    return unseen(
        listing.source,
        f"Nova cannot reach the cell of {hosts}, and leaves out what runs there; ask again once the cell's database is back",
    )


def _observed(source: str, ask: Callable[[], tuple[T, ...]]) -> Observed[tuple[T, ...]]:
    try:
        return seen(source, ask())
    except UnseenError as error:
        return unseen(source, str(error), unlock=error.unlock)
