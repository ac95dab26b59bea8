"""One look at a cloud: each listing by itself, so that what one role may not see hides nothing else."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from exitguard.facts.openstack.connection import CloudConnection, open_cloud
from exitguard.facts.openstack.errors import ForbiddenError, UnseenError
from exitguard.facts.openstack.pages import read_pages
from exitguard.facts.openstack.parse import (
    parse_aggregate,
    parse_flavor,
    parse_hypervisor,
    parse_image,
    parse_server,
    parse_service,
)
from exitguard.facts.openstack.records import read_canaries, read_remedied
from exitguard.facts.openstack.request import CloudRequest
from exitguard.model.cloud import CloudFacts, Server
from exitguard.model.record import Observed, seen, unseen

T = TypeVar("T")
_PAGE = {"limit": "1000"}  # Nova's own most (api.max_limit), and Glance's (api_limit_max)
#: `/os-hypervisors/detail?with_servers=true` (microversion 2.53).
_WITH_SERVERS = (2, 53)


def read_cloud(request: CloudRequest, observed_at: datetime) -> CloudFacts:
    """Everything that the API shows to this role. Raises CloudError where nothing at all could be asked."""
    cloud = open_cloud(request)
    compute = cloud.compute()
    servers, scope = _servers(cloud)
    records = request.record_dir
    remedied, not_remedied = read_remedied(records, cloud.identity.id) if records is not None else ((), ())
    canaries, no_canaries = read_canaries(records, cloud.identity.id) if records is not None else ((), ())
    return CloudFacts(
        observed_at=observed_at,
        cloud=cloud.identity,
        scope=scope,
        flavors=_observed(
            "nova: flavors",
            lambda: read_pages(compute, "/flavors/detail", "flavors", parse_flavor, parameters={**_PAGE, "is_public": "None"}),
        ),
        images=_observed("glance: images", lambda: read_pages(cloud.image(), "/images", "images", parse_image, parameters=_PAGE)),
        servers=servers,
        services=_observed(
            "nova: os-services",
            lambda: read_pages(compute, "/os-services", "services", parse_service, parameters={"binary": "nova-compute"}),
        ),
        hypervisors=_observed("nova: os-hypervisors", lambda: _hypervisors(cloud)),
        aggregates=_observed(
            "nova: os-aggregates", lambda: read_pages(compute, "/os-aggregates", "aggregates", parse_aggregate, parameters={})
        ),
        remedied=remedied,
        canaries=canaries,
        notices=(*not_remedied, *no_canaries),
    )


def _servers(cloud: CloudConnection) -> tuple[Observed[tuple[Server, ...]], Any]:
    """All servers, or those of the credentials' own project where the role may see no others; and which of the two."""
    compute = cloud.compute()

    def ask(parameters: Mapping[str, str]) -> tuple[Server, ...]:
        return read_pages(compute, "/servers/detail", "servers", parse_server, parameters={**_PAGE, **parameters})

    try:
        return seen("nova: servers of all projects", ask({"all_tenants": "1"})), "cloud"
    except ForbiddenError:
        return _observed("nova: servers of one project", lambda: ask({})), "project"
    except UnseenError as error:
        return unseen("nova: servers of all projects", str(error), unlock=error.unlock), "cloud"


def _hypervisors(cloud: CloudConnection) -> tuple[Any, ...]:
    if not cloud.speaks(_WITH_SERVERS):
        raise UnseenError(f"microversion 2.53 is needed, and this Nova offers {cloud.identity.microversion_offered}")
    parameters = {**_PAGE, "with_servers": "true"}
    return read_pages(cloud.compute(), "/os-hypervisors/detail", "hypervisors", parse_hypervisor, parameters=parameters)


def _observed(source: str, ask: Callable[[], tuple[T, ...]]) -> Observed[tuple[T, ...]]:
    try:
        return seen(source, ask())
    except UnseenError as error:
        return unseen(source, str(error), unlock=error.unlock)
