"""From the JSON of Nova and Glance to records. Pure.

Answers come over the network and carry tenants' words: every field is looked at, and what is not as expected is a reason, never a guess.
Formats: https://docs.openstack.org/api-ref/compute/ and https://docs.openstack.org/api-ref/image/v2/.
"""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, overload

from exitguard.facts.openstack.errors import UnseenError
from exitguard.model.cloud import Aggregate, ComputeService, Flavor, Hypervisor, Image, Server

FLAVOR_PROPERTY = "hw:pmu"
IMAGE_PROPERTY = "hw_pmu"
_EMPTY = "empty"  # as facts/domain_xml.py tells it
_MOST_CHARACTERS = 1024
#: Brackets, braces and commas of one answer: 1,000 servers have some 100,000. What is not counted here could unfold to many times its size.
_MOST_VALUES = 4_000_000
#: What Nova calls the status of a server or a service whose cell it cannot reach (microversion 2.69; Nova's admin/cells, "Handling cell
#: failures"): of such a server only id, project and creation are told, of a service only its host.
_OUT_OF_REACH = "UNKNOWN"
#: The state of such a nova-compute here; Nova tells none.
STATE_UNKNOWN = "unknown"
#: "Policy doesn't allow os_compute_api:os-services:list to be performed." (nova.exception.PolicyNotAuthorized)
_POLICY = re.compile(rb"Policy doesn't allow ([A-Za-z0-9_.:%-]{1,128}) to be performed")


def load_json(body: bytes, told: str) -> dict[str, Any]:
    """The JSON object of an answer. Raises UnseenError."""
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES:
        raise UnseenError(f"{told}: expected at most {_MOST_VALUES} values in one answer, found more")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnseenError(f"{told}: the answer is no JSON: {str(error)[:100]}") from error
    if not isinstance(document, dict):
        raise UnseenError(f"{told}: expected a JSON object, found {type(document).__name__}")
    return document


def forbidden_policy(body: bytes) -> str | None:
    """The name of the policy that refused, where the answer tells it."""
    found = _POLICY.search(body)
    return f"the policy {found[1].decode('ascii')}" if found is not None else None


def parse_server(found: Mapping[str, Any]) -> Server:
    """A server of /servers/detail. Raises UnseenError."""
    if found.get("status") == _OUT_OF_REACH and "flavor" not in found:
        raise UnseenError(
            "Nova cannot reach the cell of this server, and tells no more than its id; ask again once the cell's database is back"
        )
    flavor = _mapping(found, "flavor")
    image = found.get("image")
    return Server(
        uuid=_text(found, "id"),
        name=_text(found, "name"),
        project=_shared(_text(found, "tenant_id")),
        status=_shared(_text(found, "status")),
        task_state=_maybe(found, "OS-EXT-STS:task_state"),
        locked=_flag(found, "locked"),
        created_at=_maybe(found, "created"),
        launched_at=_maybe(found, "OS-SRV-USG:launched_at"),
        flavor=_shared(_maybe(flavor, "original_name") or _maybe(flavor, "id") or ""),
        flavor_hw_pmu=_property(flavor, "extra_specs", FLAVOR_PROPERTY),
        image=_shared(_maybe(image, "id")) if isinstance(image, dict) else None,
        image_hw_pmu=_property(image, "properties", IMAGE_PROPERTY) if isinstance(image, dict) else None,
        zone=_shared(_maybe(found, "OS-EXT-AZ:availability_zone")) or None,
        host=_shared(_maybe(found, "OS-EXT-SRV-ATTR:host")),
        hypervisor_hostname=_shared(_maybe(found, "OS-EXT-SRV-ATTR:hypervisor_hostname")),
        domain_name=_maybe(found, "OS-EXT-SRV-ATTR:instance_name"),
    )


def parse_flavor(found: Mapping[str, Any]) -> Flavor:
    """A flavor of /flavors/detail; its extra specs are in there from microversion 2.61 on."""
    public = _flag(found, "os-flavor-access:is_public")
    return Flavor(
        id=_text(found, "id"),
        name=_text(found, "name"),
        hw_pmu=_property(found, "extra_specs", FLAVOR_PROPERTY),
        is_public=public is not False,
    )


def parse_image(found: Mapping[str, Any]) -> Image:
    """An image of Glance; its properties stand beside its own fields."""
    return Image(
        id=_text(found, "id"),
        name=_maybe(found, "name") or "",
        hw_pmu=_said(_maybe(found, IMAGE_PROPERTY)),
        visibility=_text(found, "visibility"),
        owner=_maybe(found, "owner"),
        created_at=_maybe(found, "created_at"),
        updated_at=_maybe(found, "updated_at"),
    )


def parse_service(found: Mapping[str, Any]) -> ComputeService:
    """A nova-compute of /os-services."""
    if found.get("status") == _OUT_OF_REACH and "state" not in found:
        host = _text(found, "host")
        return ComputeService(id="", host=host, zone=None, status=_OUT_OF_REACH, state=STATE_UNKNOWN, disabled_reason=None)
    return ComputeService(
        id=_identifier(found),
        host=_text(found, "host"),
        zone=_maybe(found, "zone"),
        status=_text(found, "status"),
        state=_text(found, "state"),
        disabled_reason=_maybe(found, "disabled_reason"),
    )


def parse_hypervisor(found: Mapping[str, Any]) -> Hypervisor:
    """A hypervisor of /os-hypervisors/detail, with the servers that it says it has."""
    servers = found.get("servers") or []
    if not isinstance(servers, list) or not all(isinstance(server, dict) for server in servers):
        raise UnseenError("servers: expected a list of objects")
    return Hypervisor(
        id=_identifier(found),
        hostname=_text(found, "hypervisor_hostname"),
        host=_text(_mapping(found, "service"), "host"),
        type=_text(found, "hypervisor_type"),
        servers=tuple(sorted(_text(server, "uuid") for server in servers)),
    )


def parse_aggregate(found: Mapping[str, Any]) -> Aggregate:
    """An aggregate of /os-aggregates."""
    _identifier(found)
    hosts = found.get("hosts")
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise UnseenError("hosts: expected a list of names")
    hosts = tuple(sorted(_shared(_bounded(host)) for host in hosts))
    return Aggregate(name=_text(found, "name"), zone=_maybe(found, "availability_zone"), hosts=hosts)


def _field(found: Mapping[str, Any], name: str) -> object:
    value = found.get(name)
    if value is None or value == "":
        raise UnseenError(f"{name}: expected a value, found none")
    return value


def _identifier(found: Mapping[str, Any]) -> str:
    """An id: text, or before microversion 2.53 a number."""
    value = _field(found, "id")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(found, "id")


def _text(found: Mapping[str, Any], name: str) -> str:
    value = _field(found, name)
    if not isinstance(value, str):
        raise UnseenError(f"{name}: expected text, found {type(value).__name__}")
    return _bounded(value)


def _maybe(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise UnseenError(f"{name}: expected text or null, found {type(value).__name__}")
    return None if value is None else _bounded(value)


def _flag(found: Mapping[str, Any], name: str) -> bool | None:
    value = found.get(name)
    if value is not None and not isinstance(value, bool):
        raise UnseenError(f"{name}: expected true or false, found {type(value).__name__}")
    return value


def _mapping(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    if not isinstance(value, dict):
        raise UnseenError(f"{name}: expected an object, found {type(value).__name__}")
    return value


def _property(found: Mapping[str, Any], group: str, name: str) -> str | None:
    """A property's text, "" where its group is shown without it, None where the group is not shown."""
    value = found.get(group)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UnseenError(f"{group}: expected an object, found {type(value).__name__}")
    text = value.get(name)
    if isinstance(text, bool):
        return str(text).lower()
    if text is not None and not isinstance(text, str):
        raise UnseenError(f"{group}.{name}: expected text, found {type(text).__name__}")
    return _shared(_said(text))


def _said(text: str | None) -> str:
    """A property's text. One that is there and empty is a word, which Nova takes for false, and not silence: told as `empty`."""
    return "" if text is None else _bounded(text) or _EMPTY


def _bounded(text: str) -> str:
    """Text that any encoding can hold: JSON may name one half of a character (a surrogate), which UTF-8 has no bytes for."""
    text = text[:_MOST_CHARACTERS]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@overload
def _shared(text: str) -> str: ...
@overload
def _shared(text: None) -> None: ...
def _shared(text: str | None) -> str | None:
    """One string for what thousands of servers have in common."""
    return None if text is None else sys.intern(text)
