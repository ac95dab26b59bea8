#!/usr/bin/python
"""Ansible module exitguard_nova_canary: an instance that shows what Nova makes of a flavor and an image that say nothing of the PMU."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_nova_canary
short_description: Make, judge and remove a canary instance on a compute host of Nova
description:
  - The parts of the role nova_canary, which reads the canary's XML on the compute host between them.
  - V(begun) removes canaries that an earlier run left on the host, makes a new one of a flavor and an image that must both be silent, and
    waits until it runs. It never fails for what the cloud says; the result tells.
  - V(ended) removes the canary, whatever became of it, and then notes what its XML showed.
  - V(told) ends the run with what became of each host, and fails where a host was refused or failed.
options:
  state:
    description: Which part.
    type: str
    choices: [begun, ended, told]
    required: true
  host:
    description: The compute host, as Nova names it.
    type: str
    default: ""
  hosts:
    description: Of V(told) - all of them.
    type: list
    elements: str
    default: []
  flavor:
    description: Name or id of a flavor without C(hw:pmu).
    type: str
    default: ""
  image:
    description: Name or id of an image without C(hw_pmu).
    type: str
    default: ""
  network:
    description: Id of a network; empty is none.
    type: str
    default: ""
  run:
    description: One word that no other run has.
    type: str
    default: ""
  begun:
    description: Of V(ended) - the C(canary) of V(begun); empty where that did not come to its end.
    type: dict
    default: {}
  domain_xml:
    description: Of V(ended) - what libvirt has of the canary's run.
    type: str
    default: ""
  problem:
    description: Of V(ended) - why there is no such XML.
    type: str
    default: ""
  steps:
    description: Of V(told) - the C(canary.step) of each V(ended).
    type: list
    elements: dict
    default: []
  record_dir:
    description: Where it is noted what was seen - C(<record_dir>/<cloud id>/canaries/<host>.json).
    type: path
    default: /var/lib/exitguard-remedy/nova
  limit_seconds:
    description: How long Nova may take to build a canary, and to remove one.
    type: int
    default: 300
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
    support: none
author:
  - exitguard maintainers
"""

EXAMPLES = r"""
- name: Start a canary
  exitguard_nova_canary:
    state: begun
    host: compute-7
    flavor: tiny
    image: cirros
    run: 20261123T040616Z-5f1c
"""

RETURN = r"""
canary:
  description: Of V(begun) and V(ended), C(uuid), C(problem), C(left) and the C(step), as far as there are any.
  returned: where the cloud could be reached
  type: dict
exitguard:
  description: Of V(told), for each host C(subject), C(outcome) and C(reason).
  returned: always
  type: dict
"""

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_canary_instance import (
    CanaryProblemError,
    begin,
    ours,
    planned,
    remove,
    seen_in,
)
from ansible.module_utils.exitguard_host_step import DONE, FAILED, REFUSED, Ended
from ansible.module_utils.exitguard_nova import CLOUD_OPTIONS, Cloud, CloudError, open_cloud, write_record
from ansible.module_utils.exitguard_nova_hosts import compute_service


def begun(module: Any, cloud: Cloud) -> dict[str, Any]:
    """Where the canary got to: its uuid, or the step or problem that there is instead."""
    params = module.params
    host, deadline = params["host"], time.monotonic() + params["limit_seconds"]
    try:
        service = compute_service(cloud, host)
        wanted = planned(cloud, service, flavor=params["flavor"], image=params["image"], network=params["network"], run=params["run"])
        stale = ours(cloud, host)
        if module.check_mode:
            more = f", after {len(stale)} that an earlier run left" if stale else ""
            return {"step": step(host, DONE, f"a canary would be made and removed{more}")}
        remove(cloud, stale, deadline)
    except Ended as ended:
        return {"step": step(host, ended.outcome, str(ended))}
    except CloudError as error:
        return {"step": step(host, FAILED, str(error))}
    except CanaryProblemError as problem:
        return {"step": step(host, FAILED, f"no canary was made, since one of an earlier run is still there: {problem}"), "left": True}
    try:
        return {"uuid": begin(cloud, host, wanted, deadline), "cloud": cloud.id}
    except Ended as ended:
        return {"step": step(host, ended.outcome, str(ended))}
    except (CloudError, CanaryProblemError) as problem:
        return {"problem": str(problem)}


def ended(params: dict[str, Any]) -> dict[str, Any]:
    """What became of the host, and whether a canary was left there."""
    host, earlier = params["host"], params["begun"]
    if earlier.get("step"):
        return {"step": earlier["step"], "left": bool(earlier.get("left"))}
    removed, left = "the canary was removed", False
    try:
        cloud = Cloud(params["cloud"], params["timeout_seconds"])
        # Found by its mark, so that it is also one whose making was never answered.
        remove(cloud, ours(cloud, host, params["run"]), time.monotonic() + params["limit_seconds"])
    except (CloudError, CanaryProblemError) as error:
        may_be = "the canary could NOT be removed" if earlier else "whether a canary was left could not be seen"
        removed, left = f"{may_be}: {error}. Find it by: openstack server list --name exitguard-canary-", True
    try:
        shown = noted(params, str(earlier.get("cloud")))
    except CanaryProblemError as error:
        return {"step": step(host, FAILED, f"{error}; {removed}"), "left": left}
    return {"step": step(host, FAILED if left else DONE, f"{shown}; {removed}"), "left": left}


def noted(params: dict[str, Any], cloud: str) -> str:
    """What the canary showed, once it is noted. Raises CanaryProblemError."""
    host, uuid = params["host"], params["begun"].get("uuid")
    if not uuid:
        raise CanaryProblemError(params["begun"].get("problem") or params["problem"] or "how far it got is not known")
    if not params["domain_xml"]:
        raise CanaryProblemError(f"its XML could not be read on the compute host: {params['problem'] or 'no reason given'}")
    element, version = seen_in(params["domain_xml"], uuid)
    path = Path(params["record_dir"]) / cloud / "canaries" / f"{host}.json"
    observed_at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: UP017 - Python before 3.11 has no UTC
    seen = {"cloud": cloud, "host": host, "version": version, "element": element, "observed_at": observed_at}
    try:
        write_record(path, {"schema_version": 1, **seen})
    except Ended as unwritten:
        raise CanaryProblemError(f"Nova {version} {WORDS[element]}; but {str(unwritten).partition('. ')[0]}") from None
    return f"Nova {version} {WORDS[element]}"


WORDS = {
    "off": "wrote <pmu state='off'/> for a silent flavor and image: it defaults to PMU off here",
    "on": "wrote <pmu state='on'/> for a silent flavor and image: it defaults to PMU on here",
    "absent": "wrote no <pmu> for a silent flavor and image: it leaves the PMU to QEMU here",
}


def step(host: str, outcome: str, reason: str) -> dict[str, Any]:
    return {"subject": host, "outcome": outcome, "reason": reason, "undo": None}


def tell(module: Any) -> None:
    """End the run with what became of each host."""
    of_host = {each["subject"]: each for each in module.params["steps"]}
    unbegun = "not begun, since a canary could not be removed before it. Nothing was changed"
    steps = [of_host.get(host) or step(host, REFUSED, unbegun) for host in module.params["hosts"]]
    result = {"changed": any(each["outcome"] == DONE for each in steps), "exitguard": {"steps": steps}}
    bad = [each for each in steps if each["outcome"] in (REFUSED, FAILED)]
    if bad:
        first = f"{bad[0]['subject']}: {bad[0]['outcome']}: {bad[0]['reason']}"
        module.fail_json(msg=first if len(bad) == 1 else f"{first}; and {len(bad) - 1} more", **result)
    module.exit_json(msg="; ".join(f"{each['subject']}: {each['reason']}" for each in steps), **result)


def main() -> None:
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            **CLOUD_OPTIONS,
            "state": {"type": "str", "choices": ["begun", "ended", "told"], "required": True},
            "host": text,
            "hosts": {"type": "list", "elements": "str", "default": []},
            "flavor": text,
            "image": text,
            "network": text,
            "run": text,
            "begun": {"type": "dict", "default": {}},
            # Long, and nobody's business in a log.
            "domain_xml": {**text, "no_log": True},
            "problem": text,
            "steps": {"type": "list", "elements": "dict", "default": []},
            "record_dir": {"type": "path", "default": "/var/lib/exitguard-remedy/nova"},
            "limit_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "told":
        tell(module)
    canary = begun(module, open_cloud(module)) if module.params["state"] == "begun" else ended(module.params)
    module.exit_json(changed="uuid" in canary or canary.get("step", {}).get("outcome") == DONE, canary=canary)


if __name__ == "__main__":
    main()
