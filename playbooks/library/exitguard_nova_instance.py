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
    Where the stored image properties are not shown, what Glance says of the image today stands for them.
  - Nova knows no way to unset the property, and before microversion 2.98 does not show it. What was set is noted in a file an instance,
    before nova-manage runs as an intent and after it as done, so that neither is forgotten when everything ends in the middle.
    From 2.98 on it is read back as well.
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

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_host_step import ALREADY, CHANGED_SINCE, FAILED, REFUSED, Ended, last_words
from ansible.module_utils.exitguard_nova import CLOUD_OPTIONS, Cloud, CloudError, each_change, open_cloud, wish, write_record

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
STOPPED = "SHUTOFF"
#: nova-manage image_property set, https://docs.openstack.org/nova/latest/cli/nova-manage.html
_NOT_STOPPED, _TOO_LONG, _NOT_STARTED = 3, 124, 127
_WHY = {
    2: "nova-manage does not know the instance, or knows no cell for it",
    _NOT_STOPPED: "nova-manage found it neither stopped nor shelved: it was started meanwhile",
    4: "nova-manage takes no such property",
    5: "nova-manage takes no such property",
    6: "nova-manage takes no such value",
}
_WORDS_BYTES = _RECORD_BYTES = 64 * 1024


def stored_text(server: dict[str, Any]) -> str | None:
    """What its stored image properties say of the PMU: "" where they are silent, None where they are not shown (before 2.98)."""
    image = server.get("image")
    properties = image.get("properties") if isinstance(image, dict) else None
    if not isinstance(properties, dict):
        return None
    return "" if properties.get("hw_pmu") is None else str(properties["hw_pmu"]) or " "


def doing(server: dict[str, Any]) -> str | None:
    """What it is and does, unless it is stopped and Nova does nothing with it."""
    task = server.get("OS-EXT-STS:task_state")
    if server.get("status") == STOPPED and task is None:
        return None
    return f"{server.get('status')}{f' ({task})' if task else ''}"


def look_at_words(server: dict[str, Any], stored: str | None) -> None:
    """Raises Ended where the embedded flavor and what is stored of the image say that nothing is to be set beside them, or nothing more."""
    specs = (server.get("flavor") or {}).get("extra_specs")
    if not isinstance(specs, dict):
        raise Ended(REFUSED, "its embedded flavor was not shown: were hw:pmu=true in it, the next start would destroy the instance")
    embedded = "" if specs.get("hw:pmu") is None else str(specs["hw:pmu"]) or " "
    if wish(embedded) is True:
        raise Ended(
            REFUSED, "its embedded flavor asks for the PMU: it keeps it. With hw_pmu=false beside it, the next start would destroy it"
        )
    if wish(stored) is False or wish(embedded) is False:
        raise Ended(ALREADY, "its flavor or its stored image properties say so already")
    if embedded:
        raise Ended(REFUSED, f"its embedded flavor says hw:pmu={embedded.strip()[:40]!r}, which is neither true nor false")
    if stored:
        raise Ended(REFUSED, f"its stored image properties say hw_pmu={stored.strip()[:40]!r}, which is neither true nor false")


def looked_at(cloud: Cloud, change: dict[str, Any], record: Path) -> str | None:
    """When the instance's disk was made. Raises Ended where the instance is not to be changed."""
    server = cloud.server(change["uuid"])
    if server is None:
        raise Ended(CHANGED_SINCE, "there is no such instance any more")
    image = server["image"] if isinstance(server.get("image"), dict) else {}
    stored = stored_text(server)
    if wish(stored) is True:
        raise Ended(REFUSED, "its stored image properties ask for the PMU: it keeps it")
    if server.get("locked") is not False:
        raise Ended(REFUSED, "Nova's lock is on it" if server.get("locked") else "whether Nova's lock is on it was not shown")
    if not image.get("id"):
        raise Ended(REFUSED, "it boots from a volume, whose properties are Cinder's: resize it to a flavor with hw:pmu=false")
    if image["id"] != change["image"]:
        raise Ended(CHANGED_SINCE, "it was rebuilt onto another image since it was planned")
    look_at_words(server, stored)
    launched_at = server.get("OS-SRV-USG:launched_at")
    if change["launched_at"] not in (None, "", launched_at):
        raise Ended(CHANGED_SINCE, "it was rebuilt, resized or unshelved since it was planned")
    if stored is None and noted(record, image["id"], launched_at):
        raise Ended(ALREADY, f"it was set before, by {record}")
    busy = doing(server)
    if busy is not None:
        raise Ended(CHANGED_SINCE, f"it is {busy}, and can be changed only while its owner has it stopped")
    if stored is None and wish(str((cloud.image(image["id"]) or {}).get("hw_pmu", ""))) is True:
        raise Ended(REFUSED, "its image asks for the PMU, and whether the instance was made with that is not shown: it keeps it")
    return None if launched_at is None else str(launched_at)


def noted(record: Path, image: str, launched_at: str | None) -> bool:
    """Whether it was set on the instance while it had this image and this disk: a rebuild drops it, onto the same image too."""
    try:
        with record.open("rb") as file:
            found = json.loads(file.read(_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or wish(str(found.get("hw_pmu"))) is not False or launched_at is None:
        return False
    return (found.get("image"), found.get("launched_at")) == (image, launched_at)


def ran(words: list[str], seconds: int) -> tuple[int, str]:
    """Exit code and last words of a program, which is ended with its children after `seconds`."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the operator's nova-manage, by argument list
            words,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return _NOT_STARTED, f"{words[0]} cannot be started: {getattr(error, 'strerror', None) or error}"
    kept = bytearray()

    def keep() -> None:
        with process.stdout:
            while chunk := process.stdout.read1(_WORDS_BYTES):
                kept[:] = (kept + chunk)[-_WORDS_BYTES:]

    reader = threading.Thread(target=keep, daemon=True)
    reader.start()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(1)
        return _TOO_LONG, f"no end within {seconds} seconds"
    reader.join(1)  # a child that it left behind may hold the pipe open
    return code, last_words(bytes(kept).decode("utf-8", "replace"))


def looked_at_after(cloud: Cloud, change: dict[str, Any], launched_at: str | None, intent: Path) -> str:
    """When it is in force. Raises Ended where it is not certain that it is set: the intent stays then, and to set it twice does no harm."""
    try:
        server = cloud.server(change["uuid"])
    except CloudError as error:
        raise Ended(FAILED, f"nova-manage set it, and it could not be looked at after: {error}. Try again") from None
    if server is None:
        forget(intent)
        raise Ended(CHANGED_SINCE, "it was deleted while nova-manage ran")
    stored, busy = stored_text(server), doing(server)
    if stored is not None and wish(stored) is not False:
        raise Ended(FAILED, "nova-manage ended well, and Nova does not show it: expected the nova-manage of this cloud, and of its cell")
    image = server["image"].get("id") if isinstance(server.get("image"), dict) else None
    if (image, server.get("OS-SRV-USG:launched_at")) != (change["image"], launched_at):
        raise Ended(
            FAILED, "it was rebuilt, resized or unshelved while nova-manage ran, which may have dropped it. Try again once it is stopped"
        )
    if busy is not None and stored is None:
        raise Ended(FAILED, f"it is {busy}, since nova-manage ran: whether it was kept is not known. Try again once it is stopped")
    return (
        "in force when its owner starts it" if busy is None else f"it is {busy} since, and it is in force at its next hard reboot or start"
    )


def forget(intent: Path) -> None:
    """An intent that stays although it is certain costs the next run a look."""
    with contextlib.suppress(OSError):
        intent.unlink()


def change_one(module: Any, cloud: Cloud, change: dict[str, Any]) -> tuple[str, str]:
    subject = change["uuid"]
    if not _UUID.fullmatch(subject):
        raise Ended(REFUSED, f"expected a uuid, found {subject[:64]!r}")
    folder = Path(module.params["record_dir"]) / cloud.id
    record, intent = folder / "instances" / f"{subject}.json", folder / "intents" / f"{subject}.json"
    try:
        launched_at = looked_at(cloud, change, record)
    except Ended as ended:
        if not intent.exists():
            raise
        if ended.outcome == ALREADY:
            if not module.check_mode:
                forget(intent)
            raise
        raise Ended(ended.outcome, f"{ended}. An earlier run ended before it knew whether it had set it: {intent}") from None
    if module.check_mode:
        return "would be set", ""
    set_at = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    set_on = {"uuid": subject, "image": change["image"], "launched_at": launched_at}
    content = {"schema_version": 1, "cloud": cloud.id, **set_on, "hw_pmu": "false", "set_at": set_at}
    # An intent that is left behind says that nova-manage may have run. To run it again does no harm, and makes it certain.
    doubted = intent.exists()
    try:
        write_record(intent, content)
    except Ended as ended:
        raise Ended(REFUSED, f"{ended}. Nothing was changed: what is set has to be noted") from None
    words = [*module.params["nova_manage"], "image_property", "set", subject, "--property", "hw_pmu=false"]
    code, told = ran(words, module.params["timeout_seconds"])
    if code in _WHY or code == _NOT_STARTED:  # nothing was changed, now
        if not doubted:
            forget(intent)
        raise Ended(CHANGED_SINCE if code == _NOT_STOPPED else REFUSED, f"{_WHY.get(code, told)}. Nothing was changed")
    if code != 0:
        raise Ended(FAILED, f"{words[0]} ended with {code}: {told}. Whether it was set is not known: try again")
    when = looked_at_after(cloud, change, launched_at, intent)
    try:
        write_record(record, content)
    except Ended as ended:
        raise Ended(FAILED, f"it was set, and that could not be noted: {ended}. Try again: to set it twice does no harm") from None
    forget(intent)
    return f"set: {when}", ""


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
    if not module.params["nova_manage"]:
        module.fail_json(msg="expected words in nova_manage, found none")
    cloud = open_cloud(module)
    each_change(module, "uuid", lambda change: change_one(module, cloud, change))


if __name__ == "__main__":
    main()
