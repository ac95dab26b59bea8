#!/usr/bin/python
"""Ansible module exitguard_nova_instance: hw_pmu=false among the stored image properties of stopped instances, by nova-manage."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_nova_instance
short_description: Switch the PMU of stopped Nova instances off, from their next start on
description:
  - Runs C(nova-manage image_property set UUID --property hw_pmu=false) for instances that their owner has stopped. Nova keeps the property
    over hard reboots, stops and starts.
  - No instance is started, stopped or rebuilt. Refused are locked instances, those whose flavor or image asks for the PMU, and those whose
    embedded flavor says anything - an embedded C(hw:pmu=true) and a stored C(hw_pmu=false) would make the next start destroy the instance.
  - Nova knows no way to unset the property, and before microversion 2.98 does not show it. What was set is noted in a file an instance,
    before nova-manage runs as an intent and after it as done, so that neither is forgotten when everything ends in the middle.
options:
  changes:
    description: The instances.
    type: list
    elements: dict
    required: true
    suboptions:
      uuid:
        description: The instance.
        type: str
        required: true
      image:
        description: The image that it was planned on. Another one is changed_since.
        type: str
      launched_at:
        description: C(OS-SRV-USG:launched_at) that it was planned on. Another one is a rebuild, a resize or an unshelve, and changed_since.
        type: str
  nova_manage:
    description: The command, word by word, such as [docker, exec, nova_api, nova-manage].
    type: list
    elements: str
    default: [nova-manage]
  record_dir:
    description: Where it is noted what was set - C(<record_dir>/<cloud id>/instances/<uuid>.json).
    type: path
    default: /var/lib/exitguard-remedy/nova
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
    description: How long one request, or one nova-manage, may take.
    type: int
    default: 60
requirements:
  - openstacksdk in the Python that runs the module
  - a nova-manage that reaches the database of the cell
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - exitguard maintainers
"""

EXAMPLES = r"""
- name: Switch the PMU of a stopped instance off
  exitguard_nova_instance:
    changes: [{uuid: 0d3ee2b1-6a0b-4a52-8ad4-2ec6ac9c1d11, image: 4cd7941f-4a02-4e8e-aa76-e3616ab80074}]
"""

RETURN = r"""
exitguard:
  description: For each instance C(subject), C(outcome) and C(reason).
  returned: where the cloud could be reached
  type: dict
"""

import json
import re
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_host_step import ALREADY, CHANGED_SINCE, FAILED, REFUSED, Ended, last_words, run
from ansible.module_utils.exitguard_nova import CLOUD_OPTIONS, Cloud, each_change, open_cloud, wish, write_record

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
STOPPED = "SHUTOFF"
#: nova-manage image_property set, https://docs.openstack.org/nova/latest/cli/nova-manage.html
_NOT_STOPPED, _NOT_STARTED = 3, 127
_WHY = {
    2: "nova-manage does not know the instance, or knows no cell for it",
    _NOT_STOPPED: "nova-manage found it neither stopped nor shelved: it was started meanwhile",
    4: "nova-manage takes no such property",
    5: "nova-manage takes no such property",
}


def looked_at(cloud: Cloud, change: dict[str, Any], record: Path) -> str | None:
    """When the instance's disk was made. Raises Ended where the instance is not to be changed."""
    server = cloud.server(change["uuid"])
    if server is None:
        raise Ended(CHANGED_SINCE, "there is no such instance any more")
    image = server["image"] if isinstance(server.get("image"), dict) else {}
    stored = image.get("properties")
    stored = stored.get("hw_pmu", "") if isinstance(stored, dict) else None
    if wish(stored) is True:
        raise Ended(REFUSED, "its stored image properties ask for the PMU: it keeps it")
    if server.get("locked") is not False:
        raise Ended(REFUSED, "Nova's lock is on it" if server.get("locked") else "whether Nova's lock is on it was not shown")
    if not image.get("id"):
        raise Ended(REFUSED, "it boots from a volume, whose properties are Cinder's: resize it to a flavor with hw:pmu=false")
    if image["id"] != change["image"]:
        raise Ended(CHANGED_SINCE, "it was rebuilt onto another image since it was planned")
    specs = (server.get("flavor") or {}).get("extra_specs")
    if not isinstance(specs, dict):
        raise Ended(REFUSED, "its embedded flavor was not shown: were hw:pmu=true in it, the next start would destroy the instance")
    embedded = specs.get("hw:pmu", "")
    if wish(embedded) is True:
        raise Ended(
            REFUSED, "its embedded flavor asks for the PMU: it keeps it. With hw_pmu=false beside it, the next start would destroy it"
        )
    if wish(stored) is False or wish(embedded) is False:
        raise Ended(ALREADY, "its flavor or its stored image properties say so already")
    if embedded:
        raise Ended(REFUSED, f"its embedded flavor says hw:pmu={embedded[:40]!r}, which is neither true nor false")
    launched_at = server.get("OS-SRV-USG:launched_at")
    if change["launched_at"] not in (None, "", launched_at):
        raise Ended(CHANGED_SINCE, "it was rebuilt, resized or unshelved since it was planned")
    if stored is None and noted(record, image["id"], launched_at):
        raise Ended(ALREADY, f"it was set before, by {record}")
    if server.get("status") != STOPPED or server.get("OS-EXT-STS:task_state") is not None:
        doing = server.get("OS-EXT-STS:task_state")
        told = f"{server.get('status')}{f' ({doing})' if doing else ''}"
        raise Ended(CHANGED_SINCE, f"it is {told}, and can be changed only while its owner has it stopped")
    return None if launched_at is None else str(launched_at)


def noted(record: Path, image: str, launched_at: str | None) -> bool:
    """Whether it was set on the instance while it had this image and this disk: a rebuild drops it, onto the same image too."""
    try:
        found = json.loads(record.read_text(encoding="utf-8")[:65536])
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict) or wish(str(found.get("hw_pmu"))) is not False or launched_at is None:
        return False
    return (found.get("image"), found.get("launched_at")) == (image, launched_at)


def change_one(module: Any, cloud: Cloud, change: dict[str, Any]) -> tuple[str, str]:
    subject = change["uuid"]
    if not _UUID.fullmatch(subject):
        raise Ended(REFUSED, f"expected a uuid, found {subject[:64]!r}")
    folder = Path(module.params["record_dir"]) / cloud.id
    record, intent = folder / "instances" / f"{subject}.json", folder / "intents" / f"{subject}.json"
    launched_at = looked_at(cloud, change, record)
    if module.check_mode:
        return "would be set", ""
    set_at = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    set_on = {"uuid": subject, "image": change["image"], "launched_at": launched_at}
    content = {"schema_version": 1, "cloud": cloud.id, **set_on, "hw_pmu": "false", "set_at": set_at}
    # An intent that is left behind says that nova-manage may have run. To run it again does no harm, and makes it certain.
    try:
        write_record(intent, content)
    except Ended as ended:
        raise Ended(REFUSED, f"{ended}. Nothing was changed: what is set has to be noted") from None
    words = [*module.params["nova_manage"], "image_property", "set", subject, "--property", "hw_pmu=false"]
    code, out, err = run(words, module.params["timeout_seconds"])
    if code in _WHY or code == _NOT_STARTED:  # nothing was changed
        intent.unlink(missing_ok=True)
        raise Ended(CHANGED_SINCE if code == _NOT_STOPPED else REFUSED, f"{_WHY.get(code, err)}. Nothing was changed")
    if code != 0:
        raise Ended(FAILED, f"{words[0]} ended with {code}: {last_words(err or out)}. Whether it was set is not known: try again")
    try:
        write_record(record, content)
    except Ended as ended:
        raise Ended(FAILED, f"it was set, and that could not be noted: {ended}. Try again: to set it twice does no harm") from None
    intent.unlink(missing_ok=True)
    return "set: in force when its owner starts it", ""


def main() -> None:
    change = {"uuid": {"type": "str", "required": True}, "image": {"type": "str"}, "launched_at": {"type": "str"}}
    module = AnsibleModule(
        argument_spec={
            **CLOUD_OPTIONS,
            "changes": {"type": "list", "elements": "dict", "required": True, "options": change},
            "nova_manage": {"type": "list", "elements": "str", "default": ["nova-manage"]},
            "record_dir": {"type": "path", "default": "/var/lib/exitguard-remedy/nova"},
            "failure_budget": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    cloud = open_cloud(module)
    each_change(module, "uuid", lambda change: change_one(module, cloud, change))


if __name__ == "__main__":
    main()
