# SPDX-License-Identifier: Apache-2.0
"""The compute hosts of an OpenStack cloud as its API names them, and listings that come in pages."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from ansible.module_utils.exitguard_host_step import REFUSED, Ended
from ansible.module_utils.exitguard_nova import FORBIDDEN, Cloud, CloudError

#: What Nova takes for a host (nova/api/validation/parameter_types.py), less what would be no name of a file.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
#: From this microversion on a service has a uuid, by which it is changed.
_SERVICES_BY_UUID = (2, 53)
_PAGE = 1000
#: More than this is not what was asked for.
_MOST_PAGES = 100


def compute_service(cloud: Cloud, host: str) -> dict[str, Any]:
    """The nova-compute of a host: id, host, zone, status, state, disabled_reason. Raises Ended where there is not exactly one."""
    if not _HOST.fullmatch(host):
        raise Ended(REFUSED, f"expected the name of a compute host, found {host[:64]!r}")
    if cloud.microversion < _SERVICES_BY_UUID:
        raise Ended(REFUSED, f"this Nova speaks microversion {'.'.join(map(str, cloud.microversion))}: expected at least 2.53")
    try:
        found = cloud.nova("GET", f"/os-services?{urlencode({'binary': 'nova-compute', 'host': host})}")
    except CloudError as error:
        if error.status == FORBIDDEN:
            raise Ended(REFUSED, f"this role may not see compute services: {error}") from None
        raise
    services = [each for each in listed(cloud, found, "services") if each.get("host") == host and each.get("binary") == "nova-compute"]
    if len(services) != 1 or not services[0].get("id"):
        raise Ended(REFUSED, f"expected one nova-compute on a host of this name, found {len(services)}: `openstack compute service list`")
    return services[0]


def every(cloud: Cloud, path: str, key: str, query: dict[str, str]) -> list[dict[str, Any]]:
    """All items of a listing of Nova's, page by page. Raises CloudError."""
    items: list[dict[str, Any]] = []
    marker: dict[str, str] = {}
    for _ in range(_MOST_PAGES):
        page = listed(cloud, cloud.nova("GET", f"{path}?{urlencode({**query, 'limit': str(_PAGE), **marker})}"), key)
        items += page
        # A cloud may give smaller pages than it is asked for: the end is an empty one.
        if not page or marker == {"marker": str(page[-1].get("id"))}:
            return items
        marker = {"marker": str(page[-1].get("id"))}
    raise CloudError(f"GET {path}: no end after {_MOST_PAGES} pages")


def listed(cloud: Cloud, answer: Any, key: str) -> list[dict[str, Any]]:
    """The items under a key of an answer. Raises CloudError where there are none."""
    items = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise CloudError(f"{cloud.told}: expected an answer with {key}")
    return [item for item in items if isinstance(item, dict)]
