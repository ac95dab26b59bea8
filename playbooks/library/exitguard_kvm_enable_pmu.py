#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module exitguard_kvm_enable_pmu: kvm.enable_pmu=N for a whole host, from the next load of the module on, or no longer."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_kvm_enable_pmu
short_description: Switch the guest PMU off for a whole host
description:
  - Writes /etc/modprobe.d/exitguard-kvm-enable-pmu.conf, so that every guest that starts after the next load of the kvm module, at the
    latest after the next boot, has no PMU. No module is unloaded, nothing is rebooted, and no guest that runs is touched.
  - Refuses where a guest of this host asks for the PMU, where guests run outside libvirt, and where something else sets the parameter.
  - An initramfs is made anew where the module is in it, since it would be loaded with the options that are in there.
options:
  state:
    description: V(absent) removes the file, as long as it is as it was written.
    type: str
    choices: [present, absent]
    default: present
  opted_out_guests_stay_away:
    description:
      - The operator's word that no guest that asks for the PMU is placed on this host, or migrated to it. Without it nothing is done.
    type: bool
    default: false
  uri:
    description: The libvirt whose guests are asked for.
    type: str
    default: qemu:///system
  timeout_seconds:
    description: How long to wait for the lock, and for libvirt.
    type: int
    default: 60
  initramfs:
    description: V(leave) where the operator sees to the initramfs; it is then neither looked at nor made anew.
    type: str
    choices: [refresh, leave]
    default: refresh
  lock_file:
    description: Locked meanwhile, so that no two remedies run at once. Made if it is missing.
    type: path
    default: /run/exitguard/remedy.lock
  sysroot:
    description: The file tree of the host. Another than / is for tests and for images; an initramfs in it cannot be made anew.
    type: path
    default: /
requirements:
  - libvirt-python (python3-libvirt) in the Python that runs the module
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - exitguard maintainers
"""

EXAMPLES = r"""
- name: Switch the guest PMU off, from the next load of the kvm module on
  exitguard_kvm_enable_pmu:
    opted_out_guests_stay_away: true

- name: Take that back
  exitguard_kvm_enable_pmu:
    state: absent
"""

RETURN = r"""
exitguard:
  description: What became of the host, in C(steps), a list of one; its C(outcome) is done, already, refused (nothing changed) or failed.
  returned: always
  type: dict
"""

import contextlib
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_guests import Guest, GuestsUnknownError, listed, read_guests, read_unmanaged
from ansible.module_utils.exitguard_host_step import ALREADY, DONE, FAILED, REFUSED, Ended, locked, tell
from ansible.module_utils.exitguard_initramfs import Image, InitramfsError, make_anew, read_images
from ansible.module_utils.exitguard_modprobe import ConfigurationError, LoadedModule, Setting, read_module, read_settings

FOLDER, NAME = "etc/modprobe.d", "exitguard-kvm-enable-pmu.conf"
OWN_FILE = f"/{FOLDER}/{NAME}"
TEXT = """\
# Written by exitguard's remedy kvm_enable_pmu_off: no guest of this host has a PMU, once the kvm module was loaded with this option.
# To undo it, run the playbook kvm_enable_pmu_off.yml with kvm_enable_pmu_off_state=absent; it removes this file only if nobody edited it.
options kvm enable_pmu=N
"""
WORD = (
    "kvm_enable_pmu_off_opted_out_guests_stay_away is not true. It is the operator's word that the scheduler and migration bring no guest "
    "here that asks for a PMU: it would start, and silently have none"
)
_NEXT_LOAD = "in force when the kvm module is next loaded, at the latest at the next boot"
_COMMAND_LINE = "kvm.enable_pmu=N"


class Host:
    """What the module was asked, and where."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self.sysroot = Path(parameters["sysroot"])
        self.own_file = self.sysroot / FOLDER / NAME

    @property
    def own_text(self) -> str | None:
        """The text of the remedy's own file, None where there is none. Raises Ended for something else at its place."""
        if self.own_file.is_symlink() or (self.own_file.exists() and not self.own_file.is_file()):
            raise Ended(REFUSED, f"{OWN_FILE} is no regular file, expected one that this remedy wrote, or none. Nothing was changed")
        try:
            return self.own_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Ended(REFUSED, f"{OWN_FILE} cannot be read: {error.strerror}. Nothing was changed") from None

    def stale_images(self, *, wanted: bool) -> tuple[Image, ...]:
        """Images to make anew: with the module and without our file, or with our file where it is no longer wanted. Raises Ended."""
        if self.parameters["initramfs"] == "leave":
            return ()
        try:
            images = read_images(self.sysroot, "kvm", f"{FOLDER}/{NAME}")
        except InitramfsError as error:
            raise Ended(REFUSED, f"{error}; with kvm_enable_pmu_off_initramfs=leave it is the operator's. Nothing was changed") from None
        stale = tuple(
            image for image in images if (image.has_module and not image.has_configuration if wanted else image.has_configuration)
        )
        if stale and self.sysroot.resolve() != Path("/"):
            raise Ended(REFUSED, f"{stale[0].path} has to be made anew, which is not possible in another file tree. Nothing was changed")
        return stale


def set_off(host: Host, *, check: bool) -> tuple[Ended, dict[str, str] | None]:
    """How the step ends, and the diff. Raises Ended as well."""
    if not host.parameters["opted_out_guests_stay_away"]:
        raise Ended(REFUSED, f"{WORD}. Nothing was changed")
    try:
        settings = read_settings(host.sysroot, "kvm", "enable_pmu")
        module = read_module(host.sysroot, "kvm", "enable_pmu", platform.release())
    except ConfigurationError as error:
        raise Ended(REFUSED, f"{error}. Nothing was changed") from None
    _refuse_contradictions(settings)
    _refuse_where_no_file_helps(module, settings)
    before = host.own_text
    others = [setting for setting in settings if setting.file != OWN_FILE or before != TEXT]
    if others:
        raise Ended(ALREADY, f"{others[0].where} sets {others[0].text} already; {_now(module)}")
    if before not in (None, TEXT):
        raise Ended(REFUSED, f"{OWN_FILE} is not as this remedy writes it, and sets nothing: remove it by hand. Nothing was changed")
    stale = host.stale_images(wanted=True)
    if before == TEXT and not stale:
        raise Ended(ALREADY, f"{OWN_FILE} is there; {_now(module)}")
    _refuse_for_guests(host)
    if not check:
        if before is None:
            _write(host.own_file)
        _make_anew(stale, f"{OWN_FILE} is written", host, wanted=True)
    diff = None if before == TEXT else {"before": "", "after": TEXT, "before_header": OWN_FILE, "after_header": OWN_FILE}
    return Ended(DONE, f"{OWN_FILE}{_and_images(stale)}; {_now(module)}, {_NEXT_LOAD}"), diff


def take_back(host: Host, *, check: bool) -> tuple[Ended, dict[str, str] | None]:
    """The same for the way back."""
    before = host.own_text
    if before not in (None, TEXT):
        raise Ended(REFUSED, f"{OWN_FILE} was edited since this remedy wrote it: remove it by hand. Nothing was changed")
    stale = host.stale_images(wanted=False)
    if before is None and not stale:
        raise Ended(ALREADY, f"there is no {OWN_FILE}")
    if not check:
        if before is not None:
            host.own_file.unlink()
            _sync(host.own_file.parent)
        _make_anew(stale, f"{OWN_FILE} is removed", host, wanted=False)
    diff = None if before is None else {"before": TEXT, "after": "", "before_header": OWN_FILE, "after_header": OWN_FILE}
    return Ended(DONE, f"{OWN_FILE} removed{_and_images(stale)}; {_NEXT_LOAD}"), diff


def _refuse_contradictions(settings: tuple[Setting, ...]) -> None:
    for setting in settings:
        if setting.value is not False:
            raise Ended(
                REFUSED,
                f"{setting.where} sets {setting.text}, and somebody meant that. Expected no setting of kvm's enable_pmu but N: take it out "
                "there first, or leave this host as it is. Nothing was changed",
            )


def _refuse_where_no_file_helps(module: LoadedModule, settings: tuple[Setting, ...]) -> None:
    if module.form == "missing":
        raise Ended(REFUSED, f"the running kernel {platform.release()} has no kvm module that is known here. Nothing was changed")
    if module.lacks_parameter:
        raise Ended(
            REFUSED, f"kvm of the running kernel {platform.release()} has no parameter enable_pmu (Linux 5.17 has). Nothing was changed"
        )
    if module.form != "built_in":
        return
    on_command_line = [setting for setting in settings if setting.line == 0]
    if on_command_line:
        raise Ended(ALREADY, f"{on_command_line[0].where} sets {on_command_line[0].text}; {_now(module)}")
    raise Ended(
        REFUSED,
        f"KVM is built into this kernel, and no file of modprobe reaches it: put {_COMMAND_LINE} on the kernel command line and boot at a "
        f"time of your own choosing; {_now(module)}. Nothing was changed",
    )


def _refuse_for_guests(host: Host) -> None:
    try:
        guests = read_guests(host.parameters["uri"], host.parameters["timeout_seconds"])
        unmanaged = read_unmanaged(host.sysroot, guests)
    except GuestsUnknownError as error:
        raise Ended(REFUSED, f"whether a guest of this host asks for the PMU cannot be told: {error}. Nothing was changed") from None
    asking = [f"{guest.name} ({guest.asks_for_pmu[0]})" for guest in guests if guest.asks_for_pmu]
    if asking:
        raise Ended(REFUSED, f"guests of this host ask for the PMU, and would silently lose it: {listed(asking)}. Nothing was changed")
    marked = [guest.name for guest in guests if _would_be_touched(guest)]
    if marked:
        raise Ended(REFUSED, f"guests of this host are marked as locked, and may have a PMU to lose: {listed(marked)}. Nothing was changed")
    if unmanaged:
        raise Ended(REFUSED, f"KVM guests run outside libvirt, and what they want cannot be told: {listed(unmanaged)}. Nothing was changed")


def _would_be_touched(guest: Guest) -> bool:
    return guest.locked and not guest.off_everywhere


def _write(path: Path) -> None:
    """The file, whole or not at all, through a name that modprobe does not read."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(prefix=".exitguard-", suffix=".unfinished", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(TEXT)
                os.fchmod(file.fileno(), 0o644)
                file.flush()
                os.fsync(file.fileno())
            # Not os.replace: a file that somebody else put there meanwhile is not ours to overwrite.
            os.link(unfinished, path)
        finally:
            Path(unfinished).unlink()
        _sync(path.parent)
    except OSError as error:
        raise Ended(FAILED, f"{OWN_FILE} could not be written: {error.strerror}") from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_anew(stale: tuple[Image, ...], so_far: str, host: Host, *, wanted: bool) -> None:
    """Make images anew, and see that they are. Raises Ended: the file stays, so that a second attempt goes on from there."""
    for image in stale:
        try:
            make_anew(image)
        except InitramfsError as error:
            raise Ended(FAILED, f"{so_far}, but not into {image.path}: {error}. {_what_now(wanted)}") from None
    try:
        left = host.stale_images(wanted=wanted) if stale else ()
    except Ended as ended:
        raise Ended(FAILED, f"{so_far}, but whether that is in the initramfs cannot be told: {ended}") from None
    if left:
        raise Ended(FAILED, f"{so_far}, but {left[0].path} was made anew and does not show it. {_what_now(wanted)}")


def _what_now(wanted: bool) -> str:  # noqa: FBT001 - which way it goes
    undo = "; to take it back, run it with kvm_enable_pmu_off_state=absent" if wanted else ""
    return f"Mend that and run the playbook again, which goes on from here{undo}"


def _and_images(stale: tuple[Image, ...]) -> str:
    return f", and in {listed([str(image.path) for image in stale])}" if stale else ""


def _now(module: LoadedModule) -> str:
    return "the module's value is not known now" if module.value is None else f"the module has {'Y' if module.value else 'N'} now"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "opted_out_guests_stay_away": {"type": "bool", "default": False},
            "uri": {"type": "str", "default": "qemu:///system"},
            "timeout_seconds": {"type": "int", "default": 60},
            "initramfs": {"type": "str", "choices": ["refresh", "leave"], "default": "refresh"},
            "lock_file": {"type": "path", "default": "/run/exitguard/remedy.lock"},
            "sysroot": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    seconds = module.params["timeout_seconds"]
    if seconds < 1:
        module.fail_json(msg="timeout_seconds: expected at least 1")
    act = set_off if module.params["state"] == "present" else take_back
    diff = None
    try:
        # Check mode makes no file, and reading needs no lock.
        with contextlib.nullcontext() if module.check_mode else locked(module.params["lock_file"], seconds):
            ended, diff = act(Host(module.params), check=module.check_mode)
    except Ended as raised:
        ended = raised
    tell(module, ended, **({"diff": diff} if diff else {}))


if __name__ == "__main__":
    main()
