"""The way to a cloud: authentication, its catalogue, and one endpoint after another. Nothing is asked with another verb than GET."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from exitguard.facts.openstack.errors import CloudError, ForbiddenError, UnseenError
from exitguard.facts.openstack.parse import forbidden_policy, load_json
from exitguard.facts.openstack.request import CloudRequest
from exitguard.model.cloud import CloudIdentity

if TYPE_CHECKING:
    from keystoneauth1.adapter import Adapter
    from openstack.connection import Connection

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
            wait = min(_retry_after(headers) or 2.0**attempt, patience)
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

    def __init__(self, request: CloudRequest, connection: "Connection", endpoint: str) -> None:
        self._request = request
        self._connection = connection
        compute = connection.compute
        data = compute.get_endpoint_data()
        offered = getattr(data, "max_microversion", None) or (2, 1)
        self.microversion: tuple[int, int] = min(tuple(offered), _NEWEST)
        region = connection.config.get_region_name()
        self.identity = CloudIdentity(
            id=cloud_id(endpoint, connection.current_project_id),
            name=str(connection.config.name),
            region=str(region) if region else None,
            microversion=".".join(map(str, self.microversion)),
            microversion_offered=".".join(map(str, offered)),
        )

    def compute(self) -> Service:
        return Service(self._connection.compute, self._request, self.identity.microversion)

    def image(self) -> Service:
        """Raises UnseenError where the catalogue has none."""
        try:
            adapter = self._connection.image
        except Exception as error:
            raise UnseenError(f"the image service: {_first_line(error)}") from error
        return Service(adapter, self._request)


def open_cloud(request: CloudRequest) -> CloudConnection:
    """Authenticate and find the compute API. Raises CloudError."""
    try:
        from keystoneauth1 import exceptions

        import openstack
        from openstack import exceptions as sdk_exceptions
    except ImportError as error:
        raise CloudError(f"{error}. Install exitguard[openstack] to look at a cloud.") from error
    told = request.cloud or "the cloud of the OS_ variables"
    try:
        connection = openstack.connect(cloud=request.cloud, api_timeout=request.timeout_seconds, app_name="exitguard")
        endpoint = connection.compute.get_endpoint()
        if not endpoint:
            raise CloudError(f"{told}: its catalogue has no compute service for this region. Expected one: see region_name in clouds.yaml.")
        return CloudConnection(request, connection, endpoint)
    except (exceptions.ClientException, sdk_exceptions.SDKException, sdk_exceptions.ConfigException) as error:
        raise CloudError(
            f"{told}: {_first_line(error)}. Expected an entry of clouds.yaml, or OS_ variables, that lead to a cloud."
        ) from error


def cloud_id(endpoint: str, project: str | None) -> str:
    """A cloud by where its compute API is, whoever asks."""
    place = endpoint.rstrip("/")
    if project and place.endswith(f"/{project}"):
        place = place[: -len(project)].rstrip("/")
    return str(uuid5(NAMESPACE_URL, place))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
