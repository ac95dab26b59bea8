#!/usr/bin/python
"""Ansible module exitguard_nova_resize: moves instances to a flavor whose PMU is off, and confirms or takes back each resize."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_nova_resize
short_description: Resize Nova instances to a flavor with hw:pmu=false
description:
  - The other way to switch the PMU of an existing instance off. A resize takes the instance down, may move it to another host, and changes
    what its owner pays for, so this is for whoever has the owner's word. exitguard never plans it.
  - Only stopped instances are resized, unless C(running_accepted). A resize that Nova has accepted is watched until it can be confirmed or
    has failed, and one that does not end in time is told as that.
options:
  uuids:
    description: The instances.
    type: list
    elements: str
    required: true
  flavor:
    description: Id of the flavor, which has to say hw:pmu=false.
    type: str
    required: true
  other_size_accepted:
    description: Whether the flavor may have other numbers of processors, memory or disk than the instance has now.
    type: bool
    default: false
  running_accepted:
    description: Whether running instances are resized too, which restarts them.
    type: bool
    default: false
  resize_timeout_seconds:
    description: How long one resize may take until it can be confirmed.
    type: int
    default: 900
  cloud:
    description: Its name in clouds.yaml. Empty - the OS_ variables.
    type: str
    default: ""
  cloud_id:
    description: The cloud that this is for. Another one is refused. Empty - any.
    type: str
    default: ""
  failure_budget:
    description: How many instances may fail before no other is begun.
    type: int
    default: 0
  timeout_seconds:
    description: How long one request may take.
    type: int
    default: 60
requirements:
  - openstacksdk in the Python that runs the module
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - exitguard maintainers
"""

EXAMPLES = r"""
- name: Give a stopped instance a flavor without a PMU
  exitguard_nova_resize:
    uuids: [0d3ee2b1-6a0b-4a52-8ad4-2ec6ac9c1d11]
    flavor: "42"
"""

RETURN = r"""
exitguard:
  description: For each instance C(subject), C(outcome) and C(reason).
  returned: where the cloud could be reached
  type: dict
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_host_step import ALREADY, CHANGED_SINCE, FAILED, REFUSED, Ended
from ansible.module_utils.exitguard_nova import (
    ACCEPTED,
    CLOUD_OPTIONS,
    NO_CONTENT,
    Cloud,
    CloudError,
    each_change,
    open_cloud,
    part,
    wish,
)

STOPPED, RUNNING, TO_CONFIRM, BROKEN = "SHUTOFF", "ACTIVE", "VERIFY_RESIZE", "ERROR"
_SIZES = ("vcpus", "ram", "disk", "ephemeral", "swap")
_POLL_SECONDS = 2.0


def target_flavor(cloud: Cloud, flavor_id: str) -> dict[str, Any]:
    """The flavor to resize to. Raises Ended."""
    flavor = cloud.flavor(flavor_id)
    if flavor is None:
        raise Ended(REFUSED, f"there is no flavor {flavor_id!r}")
    if wish(flavor["extra_specs"].get("hw:pmu")) is not False:
        raise Ended(REFUSED, f"flavor {flavor.get('name')!r} does not say hw:pmu=false: a resize to it would not switch the PMU off")
    return flavor


def looked_at(module: Any, server: dict[str, Any] | None, flavor: dict[str, Any]) -> str:
    """What would be done, in a sentence. Raises Ended where nothing is to be."""
    if server is None:
        raise Ended(CHANGED_SINCE, "there is no such instance any more")
    embedded = server.get("flavor") or {}
    specs = embedded.get("extra_specs")
    image = server["image"] if isinstance(server.get("image"), dict) else {}
    stored = (image.get("properties") or {}).get("hw_pmu")
    if not isinstance(specs, dict):
        raise Ended(REFUSED, "its embedded flavor was not shown")
    if wish(specs.get("hw:pmu")) is False:
        raise Ended(ALREADY, "its embedded flavor says hw:pmu=false already")
    if wish(specs.get("hw:pmu")) is True or wish(stored) is True:
        raise Ended(REFUSED, "its flavor or image asks for the PMU: it keeps it")
    if server.get("locked") is not False:
        raise Ended(REFUSED, "Nova's lock is on it, or was not shown")
    status, task = server.get("status"), server.get("OS-EXT-STS:task_state")
    allowed = (STOPPED, RUNNING) if module.params["running_accepted"] else (STOPPED,)
    if status not in allowed or task is not None:
        raise Ended(REFUSED, f"it is {status}{f' ({task})' if task else ''}: expected {' or '.join(allowed)}, and nothing going on")
    names = {"ephemeral": "OS-FLV-EXT-DATA:ephemeral"}
    differs = [size for size in _SIZES if (embedded.get(size) or 0) != (flavor.get(names.get(size, size)) or 0)]
    if differs and not module.params["other_size_accepted"]:
        raise Ended(REFUSED, f"the flavor has another {', '.join(differs)}: say other_size_accepted if its owner wants that")
    return f"would be resized from {embedded.get('original_name')!r} to {flavor.get('name')!r}"


def why_it_failed(cloud: Cloud, uuid: str, server: dict[str, Any]) -> str:
    """Nova's own words of a resize that it had accepted."""
    fault = server.get("fault") or {}
    told = str(fault.get("message") or "")
    try:
        actions = cloud.nova("GET", f"/servers/{part(uuid)}/os-instance-actions")["instanceActions"]
        last = next((each for each in actions if each.get("action") == "resize"), {})
        told = told or str(last.get("message") or "")
    except (CloudError, KeyError, TypeError, AttributeError):
        pass
    return " ".join(told.split())[:300] or "Nova says no more"


def resize(module: Any, cloud: Cloud, uuid: str, flavor: dict[str, Any]) -> None:
    """Raises Ended where it failed, with what to do next."""
    path = f"/servers/{part(uuid)}/action"
    cloud.nova("POST", path, {"resize": {"flavorRef": flavor["id"]}}, expected=(ACCEPTED,))
    deadline = time.monotonic() + module.params["resize_timeout_seconds"]
    while True:
        server = cloud.server(uuid)
        if server is None:
            raise Ended(FAILED, "it was deleted while it was resized")
        status, task = server.get("status"), server.get("OS-EXT-STS:task_state")
        if status == TO_CONFIRM and task is None:
            break
        if status == BROKEN or (status in (STOPPED, RUNNING) and task is None):
            raise Ended(FAILED, f"Nova accepted the resize, and it failed later: {why_it_failed(cloud, uuid, server)}. It is {status} now")
        if time.monotonic() > deadline:
            raise Ended(
                FAILED, f"the resize did not end in time: it is {status}. `openstack server resize confirm` or `revert {uuid}` ends it"
            )
        time.sleep(_POLL_SECONDS)
    if wish(((server.get("flavor") or {}).get("extra_specs") or {}).get("hw:pmu")) is not False:
        cloud.nova("POST", path, {"revertResize": None}, expected=(ACCEPTED,))
        raise Ended(FAILED, "after the resize its flavor does not say hw:pmu=false: it was taken back")
    cloud.nova("POST", path, {"confirmResize": None}, expected=(NO_CONTENT, ACCEPTED))
    while (server := cloud.server(uuid)) is not None and server.get("status") == TO_CONFIRM:
        if time.monotonic() > deadline:
            raise Ended(FAILED, f"it is resized, and not confirmed in time: `openstack server resize confirm {uuid}` ends it")
        time.sleep(_POLL_SECONDS)


def change_one(module: Any, cloud: Cloud, uuid: str) -> tuple[str, str]:
    flavor = target_flavor(cloud, module.params["flavor"])
    server = cloud.server(uuid)
    told = looked_at(module, server, flavor)
    was = str(((server or {}).get("flavor") or {}).get("original_name"))
    if module.check_mode:
        return told, was
    resize(module, cloud, uuid, flavor)
    return f"resized from {was!r} to {flavor.get('name')!r}, and confirmed", was


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **CLOUD_OPTIONS,
            "uuids": {"type": "list", "elements": "str", "required": True},
            "flavor": {"type": "str", "required": True},
            "other_size_accepted": {"type": "bool", "default": False},
            "running_accepted": {"type": "bool", "default": False},
            "resize_timeout_seconds": {"type": "int", "default": 900},
            "failure_budget": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    cloud = open_cloud(module)
    module.params["changes"] = [{"uuid": uuid, "after": module.params["flavor"]} for uuid in module.params["uuids"]]
    each_change(module, "uuid", lambda change: change_one(module, cloud, change["uuid"]))


if __name__ == "__main__":
    main()
