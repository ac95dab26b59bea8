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
    has failed. One that does not end in time, or that nobody answers for, is told as that, and how to end it.
  - An instance that waits for another resize to be confirmed or reverted is refused, since whoever began that has the word. So is one that
    was left so by a run of this module that was killed.
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
    description: Whether the flavor may have other numbers of processors, memory or disk, or other extra specs, than the instance has now.
    type: bool
    default: false
  running_accepted:
    description: Whether running instances are resized too, which restarts them.
    type: bool
    default: false
  resize_timeout_seconds:
    description: How long one resize may take until it is confirmed.
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
from collections.abc import Callable
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
#: It has two flavors then, and which one stays is somebody's to say.
_TWO_FLAVORS = ("RESIZE", TO_CONFIRM, "REVERT_RESIZE")
_SIZES = ("vcpus", "ram", "disk", "ephemeral", "swap")
_FLAVOR_NAMES = {"ephemeral": "OS-FLV-EXT-DATA:ephemeral"}
_POLL_SECONDS = 2.0
_SERVER_ERRORS = 500


def specs_of(flavor: Any) -> dict[str, Any] | None:
    """The extra specs of a flavor, or of an instance's copy of one; None where they were not shown."""
    specs = flavor.get("extra_specs") if isinstance(flavor, dict) else None
    return specs if isinstance(specs, dict) else None


def says_off(server: dict[str, Any]) -> bool:
    """Whether the instance's own copy of its flavor says hw:pmu=false."""
    return wish((specs_of(server.get("flavor")) or {}).get("hw:pmu")) is False


def told(server: dict[str, Any]) -> str:
    task = server.get("OS-EXT-STS:task_state")
    return f"{server.get('status')}{f' ({task})' if task else ''}"


def settled(server: dict[str, Any]) -> bool:
    """Whether it is up or down, and Nova does nothing with it."""
    return server.get("status") in (STOPPED, RUNNING) and server.get("OS-EXT-STS:task_state") is None


def target_flavor(cloud: Cloud, flavor_id: str) -> dict[str, Any]:
    """The flavor to resize to. Raises Ended."""
    flavor = cloud.flavor(flavor_id)
    if flavor is None:
        raise Ended(REFUSED, f"there is no flavor {flavor_id!r}")
    if wish(flavor["extra_specs"].get("hw:pmu")) is not False:
        raise Ended(REFUSED, f"flavor {flavor.get('name')!r} does not say hw:pmu=false: a resize to it would not switch the PMU off")
    return flavor


def differences(embedded: dict[str, Any], flavor: dict[str, Any]) -> list[str]:
    """What a resize would change beside the PMU."""
    sizes = [size for size in _SIZES if (embedded.get(size) or 0) != (flavor.get(_FLAVOR_NAMES.get(size, size)) or 0)]
    before, after = embedded["extra_specs"], flavor["extra_specs"]
    return sizes + sorted(key for key in before.keys() | after.keys() if key != "hw:pmu" and before.get(key) != after.get(key))


def refuse_those_who_ask(cloud: Cloud, server: dict[str, Any], specs: dict[str, Any]) -> None:
    """Raises Ended where the flavor or the image of an instance asks for the PMU, or may have when it was made."""
    image = server["image"] if isinstance(server.get("image"), dict) else {}
    properties = image.get("properties")
    if wish(specs.get("hw:pmu")) is True or (isinstance(properties, dict) and wish(properties.get("hw_pmu")) is True):
        raise Ended(REFUSED, "its flavor or image asks for the PMU: it keeps it")
    if isinstance(properties, dict) or not image.get("id"):
        return
    today = (cloud.image(image["id"]) or {}).get("hw_pmu")
    if wish(None if today is None else str(today)) is True:
        raise Ended(REFUSED, "its image asks for the PMU, and whether the instance was made with that is not shown: it keeps it")


def looked_at(module: Any, cloud: Cloud, server: dict[str, Any] | None, flavor: dict[str, Any]) -> str:
    """What would be done, in a sentence. Raises Ended where nothing is to be."""
    if server is None:
        raise Ended(CHANGED_SINCE, "there is no such instance any more")
    if server.get("status") in _TWO_FLAVORS:
        raise Ended(
            REFUSED,
            f"it is {told(server)}: a resize of it has not ended. Whoever began it confirms or reverts it: "
            f"`openstack server resize confirm {server.get('id')}`, or `revert`",
        )
    specs = specs_of(server.get("flavor"))
    if specs is None:
        raise Ended(REFUSED, "its embedded flavor was not shown")
    if wish(specs.get("hw:pmu")) is False:
        raise Ended(ALREADY, "its embedded flavor says hw:pmu=false already")
    refuse_those_who_ask(cloud, server, specs)
    if server.get("locked") is not False:
        raise Ended(REFUSED, "Nova's lock is on it" if server.get("locked") else "whether Nova's lock is on it was not shown")
    allowed = (STOPPED, RUNNING) if module.params["running_accepted"] else (STOPPED,)
    if server.get("status") not in allowed or not settled(server):
        raise Ended(REFUSED, f"it is {told(server)}: expected {' or '.join(allowed)}, and nothing going on")
    differs = differences(server["flavor"], flavor)
    if differs and not module.params["other_size_accepted"]:
        raise Ended(
            REFUSED,
            f"the flavor has another {', '.join(differs)[:200]}: say other_size_accepted if its owner wants that. Nothing was changed",
        )
    return f"would be resized from {server['flavor'].get('original_name')!r} to {flavor.get('name')!r}"


def why_it_failed(cloud: Cloud, server: dict[str, Any]) -> str:
    """Nova's own words of a resize that it had accepted: of its fault, else of the last event of the action."""
    fault = server.get("fault")
    words = str(fault.get("message") or "") if isinstance(fault, dict) else ""
    if not words:
        actions = f"/servers/{part(str(server.get('id')))}/os-instance-actions"
        try:
            last = next(each for each in cloud.nova("GET", actions)["instanceActions"] if each["action"] == "resize")
            words = str(last.get("message") or "")
            events = cloud.nova("GET", f"{actions}/{part(str(last['request_id']))}")["instanceAction"]["events"]
            words = next((str(event["details"]) for event in events if event.get("details")), words)
        except (CloudError, StopIteration, KeyError, TypeError, AttributeError):
            pass  # its end is known; these are only the words for it
    return " ".join(words.split())[:300].rstrip(".") or "Nova says no more"


class Resize:
    """One resize that Nova was asked for, until its end. Each step raises Ended where it fails, with what to do next."""

    def __init__(self, cloud: Cloud, uuid: str, seconds: float) -> None:
        self.cloud = cloud
        self.uuid = uuid
        self.deadline = time.monotonic() + seconds
        self.way_out = f"`openstack server resize confirm {uuid}`, or `revert`, ends it"
        #: Why it is not certain that Nova was ever asked.
        self.doubt = ""

    def ask(self, action: dict[str, Any]) -> None:
        self.cloud.nova("POST", f"/servers/{part(self.uuid)}/action", action, expected=(ACCEPTED, NO_CONTENT))

    def begin(self, flavor: dict[str, Any]) -> None:
        try:
            self.ask({"resize": {"flavorRef": flavor["id"]}})
        except CloudError as error:
            if error.status is not None and error.status < _SERVER_ERRORS:
                raise Ended(FAILED, f"Nova refused the resize: {error}. Nothing was changed") from None
            self.doubt = f"the resize was asked for, and not answered as expected ({error})"

    def wait(self, until: Callable[[dict[str, Any]], bool], late: str) -> dict[str, Any]:
        """The instance once it is so, or broken. An answer that fails is asked for again until the deadline."""
        unseen = ""
        while True:
            try:
                server = self.cloud.server(self.uuid)
                if server is None:
                    raise Ended(FAILED, "it was deleted while it was resized")
                if server.get("status") == BROKEN or until(server):
                    return server
                unseen, state = "", f"it is {told(server)}"
            except CloudError as error:
                unseen, state = str(error), ""
            if time.monotonic() > self.deadline:
                raise Ended(FAILED, f"{late}: {state or f'it cannot be looked at ({unseen})'}. {self.way_out}")
            time.sleep(_POLL_SECONDS)

    def refuse_broken(self, server: dict[str, Any], when: str) -> None:
        if server.get("status") == BROKEN:
            why = why_it_failed(self.cloud, server)
            raise Ended(FAILED, f"{when}, and it is in ERROR: {why}. `openstack server show {self.uuid}` has more: it needs its operator")

    def until_it_can_be_confirmed(self) -> bool:
        """Whether somebody has to confirm it still: Nova may do so by itself."""
        server = self.wait(
            lambda server: settled(server) or (server.get("status") == TO_CONFIRM and server.get("OS-EXT-STS:task_state") is None),
            "the resize did not end in time",
        )
        self.refuse_broken(server, "Nova accepted the resize")
        if server.get("status") == TO_CONFIRM:
            if not says_off(server):
                self.take_back()
            return True
        if says_off(server):
            return False
        if self.doubt:
            raise Ended(FAILED, f"{self.doubt}. It is {told(server)} with its old flavor now: look at it again before anything else")
        why = why_it_failed(self.cloud, server)
        raise Ended(FAILED, f"Nova accepted the resize, and it failed later: {why}. It is {told(server)}, and has its old flavor")

    def take_back(self) -> None:
        """Raises Ended, whatever comes of it: the flavor was changed under the resize."""
        why = "after the resize its flavor does not say hw:pmu=false"
        try:
            self.ask({"revertResize": None})
        except CloudError as error:
            raise Ended(FAILED, f"{why}, and it could not be taken back: {error}. {self.way_out}") from None
        server = self.wait(settled, f"{why}, and it was not taken back in time")
        self.refuse_broken(server, f"{why}, it was taken back")
        raise Ended(FAILED, f"{why}: it was taken back, and is {told(server)} with its old flavor")

    def confirm(self) -> None:
        refused = ""
        try:
            self.ask({"confirmResize": None})
        except CloudError as error:
            refused = str(error)
            # Nova confirms by itself after resize_confirm_window, and its owner may: then there is nothing left to confirm.
            server = self.wait(lambda server: server.get("OS-EXT-STS:task_state") is None, f"it is resized, and not confirmed ({refused})")
            if server.get("status") == TO_CONFIRM:
                raise Ended(FAILED, f"it is resized, and Nova did not confirm it: {refused}. {self.way_out}") from None
        server = self.wait(settled, "it is resized, and not confirmed in time")
        self.refuse_broken(server, "it was resized and to be confirmed")
        if not says_off(server):
            raise Ended(FAILED, f"it was resized, and somebody else has taken it back: it is {told(server)} with its old flavor")


def change_one(module: Any, cloud: Cloud, uuid: str) -> tuple[str, str]:
    flavor = target_flavor(cloud, module.params["flavor"])
    server = cloud.server(uuid)
    would = looked_at(module, cloud, server, flavor)
    was = str(((server or {}).get("flavor") or {}).get("original_name"))
    if module.check_mode:
        return would, was
    resize = Resize(cloud, uuid, module.params["resize_timeout_seconds"])
    resize.begin(flavor)
    if resize.until_it_can_be_confirmed():
        resize.confirm()
        return f"resized from {was!r} to {flavor.get('name')!r}, and confirmed", was
    return f"resized from {was!r} to {flavor.get('name')!r}; it was confirmed by another", was


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
