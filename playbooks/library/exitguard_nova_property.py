#!/usr/bin/python
"""Ansible module exitguard_nova_property: sets hw:pmu of flavors, or hw_pmu of images, and reads it back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_nova_property
short_description: Set the PMU property of flavors or images of an OpenStack cloud
description:
  - Sets C(hw:pmu) in the extra specs of flavors, or C(hw_pmu) in the properties of images, and nothing else. Existing instances keep the
    copy that they were made with.
  - A flavor or image that says something else than planned, or is gone, is left as it is (changed_since).
  - Each is read back.
options:
  kind:
    description: What to change.
    type: str
    choices: [flavor, image]
    required: true
  changes:
    description: The changes.
    type: list
    elements: dict
    required: true
    suboptions:
      flavor_id:
        description: The flavor.
        type: str
      image_id:
        description: The image.
        type: str
      before:
        description: What the property says now; empty where it is not there. One that is there and empty is told as one space.
        type: str
        default: ""
      after:
        description: What it is to say; empty to take it away.
        type: str
        choices: ["", "true", "false"]
        default: "false"
  cloud:
    description: Its name in clouds.yaml. Empty - the OS_ variables.
    type: str
    default: ""
  cloud_id:
    description: The cloud that this is for. Another one is refused. Empty - any.
    type: str
    default: ""
  failure_budget:
    description: How many changes may fail before no other is begun.
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
- name: Switch the PMU off for instances to come of a flavor
  exitguard_nova_property:
    kind: flavor
    changes: [{flavor_id: "42", before: "", after: "false"}]
"""

RETURN = r"""
exitguard:
  description: For each change C(subject), C(outcome), C(reason), and C(undo) with the C(element) that was there before.
  returned: where the cloud could be reached
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_host_step import ALREADY, CHANGED_SINCE, FAILED, REFUSED, Ended
from ansible.module_utils.exitguard_nova import (
    CLOUD_OPTIONS,
    FORBIDDEN,
    NO_CONTENT,
    NOT_FOUND,
    OK,
    Cloud,
    CloudError,
    each_change,
    open_cloud,
    part,
)

FLAVOR_KEY, IMAGE_KEY = "hw:pmu", "hw_pmu"
_PATCH = "application/openstack-images-v2.1-json-patch"
#: What Nova and Glance take for a wish; nothing else is ever written.
_VALUES = ("", "true", "false")
#: A property that is there and empty: no silence, since Nova takes it for false.
_EMPTY = " "
_REQUEST_ERRORS = range(400, 500)


def found_text(cloud: Cloud, kind: str, subject: str) -> str:
    """What the property says now. Raises Ended where the flavor or image is gone."""
    found = cloud.flavor(subject) if kind == "flavor" else cloud.image(subject)
    if found is None:
        raise Ended(CHANGED_SINCE, f"there is no such {kind} any more")
    text = found["extra_specs"].get(FLAVOR_KEY) if kind == "flavor" else found.get(IMAGE_KEY)
    return "" if text is None else str(text) or _EMPTY


def told(text: str) -> str:
    """A property's text for a sentence."""
    return "nothing" if text == "" else "an empty text" if text == _EMPTY else text


def write(cloud: Cloud, kind: str, subject: str, *, before: str, after: str) -> None:
    """Set the property, or take it away. Raises Ended where the cloud refuses, CloudError where it does not say whether it did."""
    try:
        if kind == "flavor" and after == "":
            cloud.nova("DELETE", f"/flavors/{part(subject)}/os-extra_specs/{part(FLAVOR_KEY)}", expected=(OK, NO_CONTENT))
        elif kind == "flavor":
            cloud.nova("POST", f"/flavors/{part(subject)}/os-extra_specs", {"extra_specs": {FLAVOR_KEY: after}})
        else:
            operation = {"op": "remove" if after == "" else "replace" if before else "add", "path": f"/{IMAGE_KEY}"}
            if after:
                operation["value"] = after
            cloud.glance("PATCH", f"/images/{part(subject)}", [operation], content_type=_PATCH)
    except CloudError as error:
        if error.status == FORBIDDEN:
            raise Ended(REFUSED, f"this role may not change it: {error}") from None
        if error.status == NOT_FOUND:
            raise Ended(CHANGED_SINCE, f"it, or what it said, went away just now: {error}") from None
        if error.status in _REQUEST_ERRORS:
            raise Ended(FAILED, f"{error}. Nothing was changed") from None
        raise


def change_one(module: Any, cloud: Cloud, change: dict[str, Any]) -> tuple[str, str]:
    kind, before, after = module.params["kind"], change["before"], change["after"]
    subject = change[f"{kind}_id"]
    now = found_text(cloud, kind, subject)
    if now == after:
        raise Ended(ALREADY, "it says so already")
    if now != before:
        raise Ended(CHANGED_SINCE, f"it says {told(now)}, and was planned on {told(before)}: it is left as it is")
    if module.check_mode:
        return "would be set", before
    doubt = ""
    try:
        write(cloud, kind, subject, before=before, after=after)
    except CloudError as error:
        doubt = str(error)
    try:
        read_back = found_text(cloud, kind, subject)
    except CloudError as error:
        first = doubt or "it was set"
        raise Ended(FAILED, f"{first}, and could not be read back: {error}. What it says now is not known: run this again") from None
    if read_back == before and doubt:
        raise Ended(FAILED, f"{doubt}. It still says {told(before)}")
    if read_back != after:
        raise Ended(FAILED, f"{doubt or 'it was set'}, and says {told(read_back)} when read back: somebody else changes it too")
    return f"set, and read back{f', though: {doubt}' if doubt else ''}", before


def main() -> None:
    change = {
        "flavor_id": {"type": "str"},
        "image_id": {"type": "str"},
        "before": {"type": "str", "default": ""},
        "after": {"type": "str", "default": "false", "choices": list(_VALUES)},
    }
    module = AnsibleModule(
        argument_spec={
            **CLOUD_OPTIONS,
            "kind": {"type": "str", "choices": ["flavor", "image"], "required": True},
            "changes": {"type": "list", "elements": "dict", "required": True, "options": change},
            "failure_budget": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    cloud = open_cloud(module)
    key = f"{module.params['kind']}_id"
    if any(not change[key] for change in module.params["changes"]):
        module.fail_json(msg=f"expected {key} in each change")
    each_change(module, key, lambda change: change_one(module, cloud, change))


if __name__ == "__main__":
    main()
