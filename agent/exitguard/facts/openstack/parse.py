"""From the JSON of Nova and Glance to records. Pure.

Answers come over the network and carry tenants' words: every field is looked at, and what is not as expected is a reason, never a guess.
Formats: https://docs.openstack.org/api-ref/compute/ and https://docs.openstack.org/api-ref/image/v2/.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from exitguard.facts.openstack.errors import UnseenError
from exitguard.model.cloud import Aggregate, ComputeService, Flavor, Hypervisor, Image, Server

FLAVOR_PROPERTY = "hw:pmu"
IMAGE_PROPERTY = "hw_pmu"
_MOST_CHARACTERS = 1024
#: "Policy doesn't allow os_compute_api:os-services:list to be performed." (nova.exception.PolicyNotAuthorized)
_POLICY = re.compile(rb"Policy doesn't allow ([A-Za-z0-9_.:%-]{1,128}) to be performed")


def load_json(body: bytes, told: str) -> dict[str, Any]:
    """The JSON object of an answer. Raises UnseenError."""
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
    flavor = _mapping(found, "flavor")
    image = found.get("image")
    return Server(
        uuid=_text(found, "id"),
        name=_text(found, "name"),
        project=_text(found, "tenant_id"),
        status=_text(found, "status"),
        task_state=_maybe(found, "OS-EXT-STS:task_state"),
        locked=_flag(found, "locked"),
        created_at=_maybe(found, "created"),
        flavor=_maybe(flavor, "original_name") or _maybe(flavor, "id") or "",
        flavor_hw_pmu=_property(flavor, "extra_specs", FLAVOR_PROPERTY),
        image=_maybe(image, "id") if isinstance(image, dict) else None,
        image_hw_pmu=_property(image, "properties", IMAGE_PROPERTY) if isinstance(image, dict) else None,
        zone=_maybe(found, "OS-EXT-AZ:availability_zone") or None,
        host=_maybe(found, "OS-EXT-SRV-ATTR:host"),
        hypervisor_hostname=_maybe(found, "OS-EXT-SRV-ATTR:hypervisor_hostname"),
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
        hw_pmu=_maybe(found, IMAGE_PROPERTY) or "",
        visibility=_text(found, "visibility"),
        owner=_maybe(found, "owner"),
        created_at=_maybe(found, "created_at"),
        updated_at=_maybe(found, "updated_at"),
    )


def parse_service(found: Mapping[str, Any]) -> ComputeService:
    """A nova-compute of /os-services."""
    return ComputeService(
        id=str(_field(found, "id")),
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
        id=str(_field(found, "id")),
        hostname=_text(found, "hypervisor_hostname"),
        host=_text(_mapping(found, "service"), "host"),
        type=_text(found, "hypervisor_type"),
        servers=tuple(sorted(_text(server, "uuid") for server in servers)),
    )


def parse_aggregate(found: Mapping[str, Any]) -> Aggregate:
    """An aggregate of /os-aggregates."""
    hosts = found.get("hosts")
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise UnseenError("hosts: expected a list of names")
    return Aggregate(name=_text(found, "name"), zone=_maybe(found, "availability_zone"), hosts=tuple(sorted(hosts)))


def _field(found: Mapping[str, Any], name: str) -> object:
    value = found.get(name)
    if value is None or value == "":
        raise UnseenError(f"{name}: expected a value, found none")
    return value


def _text(found: Mapping[str, Any], name: str) -> str:
    value = _field(found, name)
    if not isinstance(value, str):
        raise UnseenError(f"{name}: expected text, found {type(value).__name__}")
    return value[:_MOST_CHARACTERS]


def _maybe(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise UnseenError(f"{name}: expected text or null, found {type(value).__name__}")
    return None if value is None else value[:_MOST_CHARACTERS]


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
    return (text or "")[:_MOST_CHARACTERS]
