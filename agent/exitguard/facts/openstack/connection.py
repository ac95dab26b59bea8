"""The way to a cloud: authentication, its catalogue, and one endpoint after another. Nothing is asked with another verb than GET."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from exitguard.facts.openstack.errors import CloudError, ForbiddenError, UnseenError
from exitguard.facts.openstack.parse import forbidden_policy, load_json
from exitguard.facts.openstack.request import CloudRequest
from exitguard.model.cloud import CloudIdentity

if TYPE_CHECKING:
    from keystoneauth1.adapter import Adapter
    from openstack.config.cloud_region import CloudRegion

#: The newest microversion whose answers this code has been read against; a newer Nova is asked for this one.
_NEWEST = (2, 100)
_LIMIT_BYTES = 64 * 1024 * 1024  # 1,000 servers with the largest user data and metadata that Nova takes
_CHUNK_BYTES = 256 * 1024
_RETRIES = 3
_MOST_PATIENCE_SECONDS = 30.0
_AGAIN = frozenset({429, 500, 502, 503, 504})
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _OK = 401, 403, 404, 200


class Service:
    """One endpoint of a cloud. GET only, at a bounded pace."""

    def __init__(self, adapter: "Adapter", request: CloudRequest, microversion: str | None = None) -> None:
        self._adapter = adapter
        self._request = request
        self._microversion = microversion
        self._next_at = 0.0

    def get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """The JSON object at `path`. Raises UnseenError, ForbiddenError."""
        patience = _MOST_PATIENCE_SECONDS
        for attempt in range(_RETRIES + 1):
            status, headers, body = self._ask(path, parameters)
            if status == _OK:
                return load_json(body, path)
            asked = _retry_after(headers)
            wait = min(2.0**attempt if asked is None else asked, patience)
            patience -= wait
            if status not in _AGAIN or attempt == _RETRIES or patience <= 0:
                break
            time.sleep(wait)
        if status == _FORBIDDEN:
            raise ForbiddenError(f"{path}: 403: this role may not see it", unlock=forbidden_policy(body))
        if status == _UNAUTHORIZED:
            raise UnseenError(f"{path}: 401: the token ended, and a new one was refused too", unlock="credentials that are valid")
        raise UnseenError(f"{path}: expected 200, found {status}")

    def _ask(self, path: str, parameters: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and the whole body of one answer. keystoneauth asks for a new token once where the old one ended."""
        import requests
        from keystoneauth1 import exceptions

        now = time.monotonic()
        time.sleep(max(0.0, self._next_at - now))
        self._next_at = max(now, self._next_at) + 1 / self._request.requests_per_second
        deadline = time.monotonic() + self._request.timeout_seconds
        try:
            answer = self._adapter.get(
                path,
                params=dict(parameters),
                microversion=self._microversion,
                raise_exc=False,
                log=False,
                stream=True,
                redirect=False,
                connect_retries=0,
            )
            with contextlib.closing(answer):
                return answer.status_code, answer.headers, b"".join(_chunks(answer, deadline, path))
        except exceptions.ClientException as error:
            raise UnseenError(f"{path}: {_first_line(error)}") from error
        except (requests.RequestException, OSError) as error:
            raise UnseenError(f"{path}: the answer broke off: {_first_line(error)}") from error


def _chunks(answer: Any, deadline: float, path: str) -> Iterator[bytes]:
    size = 0
    for chunk in answer.iter_content(_CHUNK_BYTES):
        size += len(chunk)
        if size > _LIMIT_BYTES:
            raise UnseenError(f"{path}: expected an answer of at most {_LIMIT_BYTES} bytes, found more")
        if time.monotonic() > deadline:
            raise UnseenError(f"{path}: the answer did not end in time")
        yield chunk


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


class CloudConnection:
    """A cloud that let this agent in."""

    def __init__(self, request: CloudRequest, region: "CloudRegion", compute: "Adapter", identity: CloudIdentity) -> None:
        self._request = request
        self._region = region
        self._compute = compute
        self.identity = identity

    def compute(self) -> Service:
        return Service(self._compute, self._request, self.identity.microversion)

    def image(self) -> Service:
        return Service(_adapter(self._region, "image", "2"), self._request)

    def speaks(self, microversion: tuple[int, int]) -> bool:
        return _version(self.identity.microversion) >= microversion


def open_cloud(request: CloudRequest) -> CloudConnection:
    """Authenticate and find the compute API. Raises CloudError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the SDK's own, about what it will drop: nothing that an operator could do about
        return _open(request)


def _open(request: CloudRequest) -> CloudConnection:
    try:
        from keystoneauth1 import exceptions

        import openstack
        from openstack import exceptions as sdk_exceptions
    except ImportError as error:
        raise CloudError(f"{error}. Install exitguard[openstack] to look at a cloud.") from error
    told = request.cloud or "the cloud of the OS_ variables"
    try:
        region = openstack.config.get_cloud_region(cloud=request.cloud, api_timeout=request.timeout_seconds, app_name="exitguard")
        compute = _adapter(region, "compute", "2")
        endpoint = compute.get_endpoint()
        if not endpoint:
            raise CloudError(f"{told}: its catalogue has no compute service for this region. Expected one: see region_name in clouds.yaml.")
        offered = getattr(compute.get_endpoint_data(), "max_microversion", None) or (2, 1)
        name = region.get_region_name("compute")
        identity = CloudIdentity(
            id=cloud_id(endpoint, compute.get_project_id()),
            name=str(region.name),
            region=str(name) if name else None,
            microversion=".".join(map(str, min(tuple(offered), _NEWEST))),
            microversion_offered=".".join(map(str, offered)),
        )
        return CloudConnection(request, region, compute, identity)
    except (exceptions.ClientException, sdk_exceptions.SDKException, sdk_exceptions.ConfigException) as error:
        expected = "Expected an entry of clouds.yaml, or OS_ variables, that lead to a cloud"
        raise CloudError(f"{told}: {_first_line(error)}. {expected}.") from error


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


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def cloud_id(endpoint: str, project: str | None) -> str:
    """A cloud by where its compute API is, whoever asks."""
    place = endpoint.rstrip("/")
    if project and place.endswith(f"/{project}"):
        place = place[: -len(project)].rstrip("/")
    return str(uuid5(NAMESPACE_URL, place))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
