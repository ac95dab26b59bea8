#!/usr/bin/python
"""Ansible module exitguard_nova_service: keeps new instances off compute hosts, and lets them come back where it was us who did."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_nova_service
short_description: Disable compute services of Nova under exitguard's mark, and enable those again
description:
  - Disabling keeps new instances off a host, and puts C(exitguard:), an id and a reason into Nova's C(disabled_reason). It is read back.
  - A service that somebody else has disabled is left as it is. Enabled is only what carries the mark, and the same id where one is given.
  - No instance is moved, stopped or started. How many are on the host is told; to drain it is a person's work.
options:
  hosts:
    description: The compute hosts, as Nova names them.
    type: list
    elements: str
    required: true
  state:
    description: What they are to be.
    type: str
    choices: [disabled, enabled]
    default: disabled
  id:
    description: Whose maintenance it is, one word such as a ticket. Needed to disable; to enable, empty is whatever id the mark has.
    type: str
    default: ""
  why:
    description: What operators read behind the id.
    type: str
    default: maintenance
  cloud:
    description: Its name in clouds.yaml. Empty - the OS_ variables.
    type: str
    default: ""
  cloud_id:
    description: The cloud that this is for. Another one is refused. Empty - any.
    type: str
    default: ""
  timeout_seconds:
    description: How long one request may take.
    type: int
    default: 60
requirements:
  - openstacksdk in the Python that runs the module
  - microversion 2.53 of Nova or later
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - exitguard maintainers
"""

EXAMPLES = r"""
- name: Keep new instances off a host
  exitguard_nova_service:
    hosts: [compute-7]
    id: CHG-4711
    why: new kernel
"""

RETURN = r"""
exitguard:
  description:
    - For each host C(subject), C(outcome), C(reason), and C(undo) with the C(element) that was there before - C(enabled), or the reason
      under which it was disabled.
  returned: where the cloud could be reached
  type: dict
"""

import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_host_step import ALREADY, FAILED, REFUSED, Ended
from ansible.module_utils.exitguard_nova import CLOUD_OPTIONS, FORBIDDEN, Cloud, CloudError, each_change, open_cloud, part
from ansible.module_utils.exitguard_nova_hosts import compute_service, every

ENABLED, DISABLED = "enabled", "disabled"
MARK = "exitguard: "
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/#-]{0,63}")
#: nova/api/openstack/compute/schemas/services.py
_REASON_CHARACTERS = 255


def told_state(service: dict[str, Any]) -> str:
    """`enabled`, or the reason for which it is disabled."""
    if service.get("status") == ENABLED:
        return ENABLED
    return str(service.get("disabled_reason") or "") or "no reason given"


def id_of(service: dict[str, Any]) -> str | None:
    """Whose maintenance of ours it is; None where the mark is not there."""
    reason = str(service.get("disabled_reason") or "")
    return reason[len(MARK) :].split(" ", maxsplit=1)[0] if reason.startswith(MARK) else None


def why_not(service: dict[str, Any], wanted: str, maintenance: str) -> None:
    """Raises Ended where the service is to be left as it is."""
    by, theirs = told_state(service), id_of(service)
    if service.get("status") == wanted == ENABLED:
        raise Ended(ALREADY, "it is enabled")
    if wanted == ENABLED and theirs is None:
        raise Ended(REFUSED, f"disabled by another, and left so: {by}")
    if wanted == ENABLED and maintenance and theirs != maintenance:
        raise Ended(REFUSED, f"disabled by exitguard for {theirs}, not for {maintenance}: {by}")
    if wanted == DISABLED and service.get("status") == DISABLED:
        whose = "" if theirs == maintenance else " by another" if theirs is None else f" by exitguard for {theirs}"
        raise Ended(ALREADY, f"already disabled{whose}: {by}")


def guests(cloud: Cloud, host: str) -> str:
    """How many instances are on a host, and what is to be done about them."""
    try:
        found = len(every(cloud, "/servers", "servers", {"all_tenants": "1", "host": host}))
    except CloudError as error:
        return f"how many instances are there is not known ({error})"
    if not found:
        return "no instance is there"
    return f"{found} instance{'s are' if found > 1 else ' is'} there: drain this host, which nobody does for you"


def change_one(module: Any, cloud: Cloud, host: str) -> tuple[str, str]:
    wanted, reason = module.params["state"], marked(module.params)
    service = compute_service(cloud, host)
    down = "; its nova-compute is down" if service.get("state") != "up" else ""
    try:
        why_not(service, wanted, module.params["id"])
    except Ended as ended:
        more = f"; {guests(cloud, host)}" if wanted == DISABLED else ""
        raise Ended(ended.outcome, f"{ended}{down}{more}") from None
    before = told_state(service)
    if not module.check_mode:
        change(cloud, service, wanted, reason)
    more = f"; {guests(cloud, host)}" if wanted == DISABLED else ""
    return f"{'would be ' if module.check_mode else ''}{wanted}{'' if module.check_mode else ', and read back'}{down}{more}", before


def change(cloud: Cloud, service: dict[str, Any], wanted: str, reason: str) -> None:
    """Set the status, and see that it is. Raises Ended.

    What remains: Nova has no "disable if it is enabled". Whoever disables the service between the look and this loses their reason.
    """
    body = {"status": wanted, **({"disabled_reason": reason} if wanted == DISABLED else {})}
    unanswered = ""
    try:
        cloud.nova("PUT", f"/os-services/{part(str(service['id']))}", body)
    except CloudError as error:
        if error.status == FORBIDDEN:
            raise Ended(REFUSED, f"this role may not change compute services: {error}") from None
        if error.status is not None:
            raise
        unanswered = f"{error}. "
    now = compute_service(cloud, str(service["host"]))
    if now.get("status") != wanted or (wanted == DISABLED and now.get("disabled_reason") != reason):
        raise Ended(FAILED, f"{unanswered}Read back it is not so: {now.get('status')}, {now.get('disabled_reason') or 'no reason given'}")


def marked(params: dict[str, Any]) -> str:
    return f"{MARK}{params['id']} {params['why']}".rstrip()


def why_senseless(params: dict[str, Any]) -> str | None:
    """What is wrong with the options beyond their types."""
    if (params["id"] or params["state"] == DISABLED) and not _ID.fullmatch(params["id"]):
        return f"id: expected one word, such as a ticket's, of at most 64 letters, digits and ._:/#-, found {params['id'][:80]!r}"
    if not params["why"].isprintable() or len(marked(params)) > _REASON_CHARACTERS:
        return f"why: expected one line; with the mark and the id before it Nova takes {_REASON_CHARACTERS} characters"
    repeated = sorted({host for host in params["hosts"] if params["hosts"].count(host) > 1})
    return f"hosts: {repeated[0]} is named twice; expected each host once" if repeated else None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **CLOUD_OPTIONS,
            "hosts": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": [DISABLED, ENABLED], "default": DISABLED},
            "id": {"type": "str", "default": ""},
            "why": {"type": "str", "default": "maintenance"},
        },
        supports_check_mode=True,
    )
    senseless = why_senseless(module.params)
    if senseless:
        module.fail_json(msg=senseless)
    cloud = open_cloud(module)
    after = ENABLED if module.params["state"] == ENABLED else marked(module.params)
    # Each host is looked at for itself: one that is refused says nothing of the others.
    module.params["changes"] = [{"host": host, "after": after} for host in module.params["hosts"]]
    module.params["failure_budget"] = len(module.params["hosts"])
    each_change(module, "host", lambda asked: change_one(module, cloud, asked["host"]))


if __name__ == "__main__":
    main()
