"""The way to a cloud: its entry of clouds.yaml, authentication, its catalogue, and the endpoints of compute and images."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from exitguard.facts.openstack.errors import CloudError
from exitguard.facts.openstack.request import CloudRequest
from exitguard.facts.openstack.service import Service, first_line, within
from exitguard.model.cloud import CloudIdentity

if TYPE_CHECKING:
    from keystoneauth1.adapter import Adapter
    from openstack.config.cloud_region import CloudRegion

#: The newest microversion whose answers this code has been read against; a newer Nova is asked for this one.
_NEWEST = (2, 100)
#: From microversion 2.88 on Nova asks every compute host for its uptime while it lists hypervisors, one after another, and the hosts
#: wait for none of it here (nova/api/openstack/compute/hypervisors.py, _view_hypervisor).
_BEFORE_UPTIMES = (2, 87)
#: Authentication takes up to four answers: Keystone's versions, the token, the versions of Nova.
_ANSWERS_TO_OPEN = 4


class CloudConnection:
    """A cloud that let this agent in."""

    def __init__(self, request: CloudRequest, region: "CloudRegion", compute: "Adapter", identity: CloudIdentity, until: float) -> None:
        self._request = request
        self._region = region
        self._compute = compute
        self._until = until
        self.identity = identity
        self.microversion = tuple(int(part) for part in identity.microversion.split("."))

    @cached_property
    def compute(self) -> Service:
        return Service(self._compute, self._request, self._until, self.identity.microversion)

    @cached_property
    def image(self) -> Service:
        return Service(_adapter(self._region, "image", "2"), self._request, self._until)

    def close(self) -> None:
        """Every connection that is still open, at the end of the look."""
        self._region.get_session().session.close()

    @property
    def microversion_without_uptimes(self) -> str:
        """The one to list hypervisors in."""
        return _written(min(self.microversion, _BEFORE_UPTIMES))


def open_cloud(request: CloudRequest) -> CloudConnection:
    """Authenticate and find the compute API. Raises CloudError."""
    until = time.monotonic() + request.limit_seconds
    told = request.cloud or "the cloud of OS_CLOUD or the OS_ variables"
    expected = "Expected an entry of clouds.yaml, or OS_ variables, that lead to a cloud"
    seconds = min(request.timeout_seconds * _ANSWERS_TO_OPEN, request.limit_seconds)
    try:
        with _quiet():
            return within(seconds, lambda: _open(request, told, until))
    except ImportError as error:
        raise CloudError(f"{error}. Install exitguard[openstack] to look at a cloud.") from error
    except CloudError:
        raise
    except TimeoutError as error:
        raise CloudError(f"{told}: no token and no compute API within {seconds:g} seconds. {expected} that answers.") from error
    except Exception as error:
        # Beside its own the SDK lets through whatever its plug-ins raise, and what an entry of clouds.yaml that is no entry brings about.
        raise CloudError(f"{told}: {first_line(error)}. {expected}.") from error


def _open(request: CloudRequest, told: str, until: float) -> CloudConnection:
    import openstack

    region = openstack.config.get_cloud_region(cloud=request.cloud, api_timeout=request.timeout_seconds, app_name="exitguard")
    compute = _adapter(region, "compute", "2")
    data = compute.get_endpoint_data()
    if data is None:
        raise CloudError(f"{told}: its catalogue has no compute service for this region. Expected one: see region_name in clouds.yaml.")
    named = str(data.catalog_url or data.url)
    if data.max_microversion is None:
        raise CloudError(f"{told}: {named} does not say which microversions it offers. Expected a compute API that is up, of 2.1 or later.")
    offered = tuple(int(part) for part in data.max_microversion)
    name = region.get_region_name("compute")
    identity = CloudIdentity(
        id=cloud_id(named, compute.get_project_id()),
        name=str(region.name),
        region=str(name) if name else None,
        microversion=_written(min(offered, _NEWEST)),
        microversion_offered=_written(offered),
    )
    return CloudConnection(request, region, compute, identity, until)


def _adapter(region: "CloudRegion", service: str, version: str) -> "Adapter":
    from keystoneauth1 import adapter

    return adapter.Adapter(
        session=region.get_session(),
        service_type=region.get_service_type(service),
        service_name=region.get_service_name(service),
        interface=region.get_interface(service),
        region_name=region.get_region_name(service),
        endpoint_override=region.get_endpoint(service),
        min_version=version,
        max_version=f"{version}.latest",
    )


def cloud_id(endpoint: str, project: str | None) -> str:
    """A cloud by where its catalogue says that its compute API is, whoever asks."""
    place = endpoint.rstrip("/")
    if project and place.endswith(f"/{project}"):
        place = place[: -len(project)].rstrip("/")
    return str(uuid5(NAMESPACE_URL, place))


def _written(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@contextmanager
def _quiet() -> Iterator[None]:
    """The SDK's warnings are about what it will drop, and its log says again what it raises: nothing of it is for standard error."""
    log = logging.getLogger("keystoneauth")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
