# SPDX-License-Identifier: Apache-2.0
"""A canary: a small instance of a silent flavor and a silent image on one compute host, found again by the mark that it carries.

The mark is the beginning of its name and its metadata, in the project of whoever makes it. Only what has both is ever removed.
"""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import quote
from xml.parsers import expat

from ansible.module_utils.exitguard_domain_xml import DomainXmlRefusedError, pmu_element
from ansible.module_utils.exitguard_host_step import REFUSED, Ended
from ansible.module_utils.exitguard_nova import ACCEPTED, NO_CONTENT, NOT_FOUND, Cloud, CloudError, part
from ansible.module_utils.exitguard_nova_hosts import every, listed

NAME = "exitguard-canary-"
_MARK = {"exitguard": "canary"}
_OF_HOST, _OF_RUN = "exitguard_canary_host", "exitguard_canary_run"
#: From this microversion on a host is asked for by name, and the scheduler looks whether it will do.
_BY_HOST = (2, 74)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOVA = re.compile(r"http://openstack\.org/xmlns/libvirt/nova/[0-9.]+}(instance|package)")
_NAME_CHARACTERS, _VERSION_CHARACTERS, _WORDS_CHARACTERS = 255, 64, 400
_POLL_SECONDS = 0.5
_SERVER_ERROR = 500
#: What Nova's answer to a deletion leaves where deleted instances are kept for a while (reclaim_instance_interval).
_KEPT = "SOFT_DELETED"


class CanaryProblemError(Exception):
    """The canary did not come up, show what it should, or go away; the message says how far it got."""


# What it is made of


def planned(cloud: Cloud, service: dict[str, Any], *, flavor: str, image: str, network: str, run: str) -> dict[str, Any]:
    """The request that makes it. Raises Ended where it would prove nothing, or could not come up; and CloudError."""
    host = str(service["host"])
    if service.get("status") != "enabled":
        raise Ended(REFUSED, f"its nova-compute is disabled ({service.get('disabled_reason') or 'no reason given'}): nothing would start")
    if service.get("state") != "up":
        raise Ended(REFUSED, "its nova-compute is down: nothing would start there")
    if network and not _UUID.fullmatch(network):
        raise Ended(REFUSED, f"expected the id of a network, found {network[:64]!r}")
    request: dict[str, Any] = {
        "name": f"{NAME}{host}"[:_NAME_CHARACTERS],
        "metadata": {**_MARK, _OF_HOST: host, _OF_RUN: run},
        "flavorRef": silent_flavor(cloud, flavor),
        "imageRef": silent_image(cloud, image),
        "networks": [{"uuid": network}] if network else "none",
    }
    if cloud.microversion >= _BY_HOST:
        request["host"] = host
    else:
        request["availability_zone"] = f"{service.get('zone') or 'nova'}:{host}"
    return request


def silent_flavor(cloud: Cloud, named: str) -> str:
    """The id of a flavor that says nothing of the PMU. Raises Ended and CloudError."""
    found = cloud.flavor(named) if named else None
    if found is None:
        ids = [str(each["id"]) for each in every(cloud, "/flavors", "flavors", {"is_public": "None"}) if each.get("name") == named != ""]
        found = cloud.flavor(ids[0]) if len(ids) == 1 else None
    if found is None:
        raise Ended(REFUSED, f"flavor {named!r} was not found: expected the name or id of one without hw:pmu")
    if "hw:pmu" in found["extra_specs"]:
        raise Ended(REFUSED, f"flavor {named!r} says hw:pmu={found['extra_specs']['hw:pmu']!r}: expected one that says nothing")
    return str(found["id"])


def silent_image(cloud: Cloud, named: str) -> str:
    """The id of an image that says nothing of the PMU. Raises Ended and CloudError."""
    found = cloud.image(named) if _UUID.fullmatch(named) else None
    if found is None:
        # Glance's `in:` takes a name that holds anything, quoted.
        escaped = named.replace("\\", "\\\\").replace('"', '\\"')
        answer = cloud.glance("GET", "/images?name=" + quote(f'in:"{escaped}"', safe=""))
        images = [each for each in listed(cloud, answer, "images") if each.get("name") == named != ""]
        if len(images) > 1:
            raise Ended(REFUSED, f"{len(images)} images are called {named!r}: expected the id of one")
        found = images[0] if images else None
    if found is None:
        raise Ended(REFUSED, f"image {named!r} was not found: expected the name or id of one without hw_pmu")
    if "hw_pmu" in found:
        raise Ended(REFUSED, f"image {named!r} says hw_pmu={found['hw_pmu']!r}: expected one that says nothing")
    if found.get("status") != "active":
        raise Ended(REFUSED, f"image {named!r} is {found.get('status')}: expected an active one")
    return str(found["id"])


# Its life


def begin(cloud: Cloud, host: str, request: dict[str, Any], deadline: float) -> str:
    """Make it: its uuid, once it runs. Raises Ended where Nova made nothing, CanaryProblemError and CloudError where it may be there."""
    try:
        made = cloud.nova("POST", "/servers", {"server": request}, expected=(ACCEPTED,))
    except CloudError as error:
        if error.status is not None and error.status < _SERVER_ERROR:
            raise Ended(REFUSED, f"Nova refused it: {error}") from None
        raise
    uuid = str((made.get("server") or {}).get("id")) if isinstance(made, dict) else ""
    if not _UUID.fullmatch(uuid):
        raise CanaryProblemError(f"Nova accepted it, and gave {uuid[:64]!r} for its id")
    while True:
        server = cloud.server(uuid)
        if server is None:
            raise CanaryProblemError("it is gone: somebody else removed it")
        if server.get("status") == "ACTIVE" and server.get("OS-EXT-STS:task_state") is None:
            break
        if server.get("status") == "ERROR":
            raise CanaryProblemError(f"Nova accepted it, and then it failed: {why_failed(cloud, server)}")
        if time.monotonic() > deadline:
            raise CanaryProblemError(f"it is {doing(server)} after the time that it has; {why_failed(cloud, server)}")
        time.sleep(_POLL_SECONDS)
    says_something(server)
    if server.get("OS-EXT-SRV-ATTR:host") not in (None, host):
        raise CanaryProblemError(f"it was put on {server['OS-EXT-SRV-ATTR:host']}")
    return uuid


def doing(server: dict[str, Any]) -> str:
    task = server.get("OS-EXT-STS:task_state")
    return f"{server.get('status')} ({task})" if task else str(server.get("status"))


def says_something(server: dict[str, Any]) -> None:
    """Raises CanaryProblemError where the canary's own copies are not known to be silent."""
    specs = (server.get("flavor") or {}).get("extra_specs")
    image = server.get("image")
    stored = image.get("properties") if isinstance(image, dict) else None
    if not isinstance(specs, dict):
        raise CanaryProblemError("the extra specs that it was made with are not shown: it would prove nothing")
    if "hw:pmu" in specs or (isinstance(stored, dict) and "hw_pmu" in stored):
        raise CanaryProblemError("its flavor or image has been changed just now, and says something of the PMU: it proves nothing")


def why_failed(cloud: Cloud, server: dict[str, Any]) -> str:
    """What Nova tells of an instance that does not come up: its fault, else the last thing that was tried."""
    fault = server.get("fault")
    if isinstance(fault, dict) and fault.get("message"):
        return one_line(str(fault["message"]))
    try:
        path = f"/servers/{part(str(server.get('id')))}/os-instance-actions"
        actions = listed(cloud, cloud.nova("GET", path), "instanceActions")
        if not actions:
            return "Nova tells no fault and no action"
        latest = max(actions, key=lambda action: str(action.get("start_time")))
        shown = cloud.nova("GET", f"{path}/{part(str(latest.get('request_id')))}").get("instanceAction") or {}
        events = [each for each in shown.get("events") or [] if isinstance(each, dict)]
        told = [f"{each.get('event')}: {each.get('details') or each.get('result') or 'under way'}" for each in events]
    except (CloudError, AttributeError) as error:
        return f"Nova tells no fault, and its actions were not to be had ({error})"
    return one_line(f"the last action is {latest.get('action')} ({'; '.join(told) or latest.get('message') or 'without events'})")


def ours(cloud: Cloud, host: str, run: str | None = None) -> list[str]:
    """The canaries of a host that are there, of one run or of all. Raises CloudError."""
    found = every(cloud, "/servers/detail", "servers", {"name": f"^{NAME}"})
    mark = {**_MARK, _OF_HOST: host, **({} if run is None else {_OF_RUN: run})}
    return [
        str(server["id"])
        for server in found
        if str(server.get("name")).startswith(NAME) and mark.items() <= dict(server.get("metadata") or {}).items()
    ]


def remove(cloud: Cloud, uuids: list[str], deadline: float) -> None:
    """Delete them, and see them gone. Raises CanaryProblemError and CloudError."""
    for uuid in uuids:
        if not _UUID.fullmatch(uuid):
            raise CanaryProblemError(f"expected a uuid, found {uuid[:64]!r}")
        cloud.nova("DELETE", f"/servers/{uuid}", expected=(NO_CONTENT, NOT_FOUND))
    forced: set[str] = set()
    for uuid in uuids:
        while (server := cloud.server(uuid)) is not None and server.get("status") != "DELETED":
            if server.get("status") == _KEPT and uuid not in forced:
                cloud.nova("POST", f"/servers/{uuid}/action", {"forceDelete": None}, expected=(ACCEPTED, NOT_FOUND))
                forced.add(uuid)
            if time.monotonic() > deadline:
                raise CanaryProblemError(f"{uuid} is still {doing(server)}; {why_failed(cloud, server)}")
            time.sleep(_POLL_SECONDS)


# What its XML shows


def seen_in(xml: str, uuid: str) -> tuple[str, str]:
    """The element and Nova's version, out of what libvirt has of the canary's run. Raises CanaryProblemError."""
    try:
        element = pmu_element(xml)
        texts = _Texts(xml)
    except (DomainXmlRefusedError, expat.ExpatError) as error:
        raise CanaryProblemError(f"its XML is not one: {error}") from None
    if texts.uuid != uuid:
        raise CanaryProblemError(f"expected the XML of {uuid}, found that of {texts.uuid[:64] or 'none'}")
    if not texts.version:
        raise CanaryProblemError("its XML does not name the package of Nova (nova:package) that made it")
    return element, texts.version[:_VERSION_CHARACTERS]


class _Texts:
    """The two texts of a domain XML that are looked for. pmu_element has bounded the text, and refused a document type."""

    def __init__(self, xml: str) -> None:
        self.uuid = self.version = ""
        self._path: list[str] = []
        parser = expat.ParserCreate(namespace_separator="}")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = lambda _name: self._path.pop()
        parser.CharacterDataHandler = self._text
        parser.Parse(xml.encode("utf-8", "surrogatepass"), True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        in_nova = [each for each in self._path[2:] if _NOVA.fullmatch(each)]
        if self._path[1:2] == ["metadata"] and len(in_nova) == len(self._path) - 2 == len(("instance", "package")):
            self.version = attributes.get("version", "")

    def _text(self, text: str) -> None:
        if self._path == ["domain", "uuid"]:
            self.uuid += text.strip()


def one_line(text: str) -> str:
    """A cloud's words on one line of bounded length."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())[:_WORDS_CHARACTERS]
