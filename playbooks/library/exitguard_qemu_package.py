#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module exitguard_qemu_package: QEMU packages in pinned versions, once it is proved that every guest's machine type stays."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_qemu_package
short_description: Install a pinned QEMU that switches KVM's PMU off with pmu=off
description:
  - Looks into the packages before they are installed. Their QEMU must hold the message of KVM_PMU_CAP_DISABLE, must run on this host, and
    must have every machine type that a definition, a run or a managed save of this host uses.
  - Installs exactly the pinned versions and nothing beside them; removes nothing, and goes back to no older version.
  - No guest and no libvirtd is restarted. Guests that run keep their QEMU until their next cold start, or a migration.
options:
  packages:
    description: The packages, each in exactly one version.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The package.
        type: str
        required: true
      version:
        description: Its version, as the package manager writes it.
        type: str
        required: true
  machine_types:
    description: Machine types that must be there beside those of the host's own guests.
    type: list
    elements: str
    default: []
  migration_checked:
    description:
      - The operator's word that every host to which these guests migrate gets a QEMU that treats pmu=off alike. Without it nothing is done.
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
  update_lists:
    description: Whether apt fetches the lists of packages anew. Check mode does not.
    type: bool
    default: true
  run_as:
    description: The user without privileges who runs the unpacked QEMU, to have it list its machine types.
    type: str
    default: nobody
  work_folder:
    description: Where packages are unpacked, on a file system where programs may run. Empty again afterwards.
    type: path
    default: /var/cache/exitguard
  lock_file:
    description: Locked meanwhile, so that no two remedies run at once. Made if it is missing.
    type: path
    default: /run/exitguard/remedy.lock
requirements:
  - libvirt-python (python3-libvirt) in the Python that runs the module
  - apt, or dnf
attributes:
  check_mode:
    support: full
    description: Downloads, unpacks and tries the packages, and leaves nothing of that behind.
  diff_mode:
    support: none
author:
  - exitguard maintainers
"""

EXAMPLES = r"""
- name: Install the QEMU that the operator chose
  exitguard_qemu_package:
    packages:
      - {name: qemu-system-x86, version: "1:11.1.3+ds-1"}
      - {name: qemu-system-common, version: "1:11.1.3+ds-1"}
      - {name: qemu-system-data, version: "1:11.1.3+ds-1"}
    migration_checked: true
"""

RETURN = r"""
exitguard:
  description: What became of the host, in C(steps), a list of one; its C(outcome) is done, already, refused (nothing changed) or failed.
  returned: always
  type: dict
machine_types:
  description: The machine types in use, each with the guests that use it.
  returned: when the packages were looked into
  type: dict
deprecated:
  description: Those in use that the pinned QEMU calls deprecated, which a later one will not have.
  returned: when the packages were looked into
  type: list
"""

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_guests import GuestsUnknownError, listed, read_guests
from ansible.module_utils.exitguard_host_step import ALREADY, DONE, FAILED, REFUSED, Ended, locked, tell
from ansible.module_utils.exitguard_qemu_packages import Apt, Dnf, PackageError, Pin, package_manager, refuse_more_than_pinned
from ansible.module_utils.exitguard_qemu_program import (
    CAPABILITY_STRING,
    PROGRAMS,
    MachineTypes,
    ProgramError,
    find_programs,
    has_capability_string,
    machines_in_use,
    missing_machines,
    read_machine_types,
)

WORD = (
    "qemu_pmu_cap_migration_checked is not true. It is the operator's word that every host to which these guests migrate gets a QEMU that "
    "treats pmu=off alike: else a migration would switch the PMU of a running guest"
)
_MESSAGE = CAPABILITY_STRING.decode()
_KEEP = "guests that run keep their QEMU until their next cold start or a migration"
_UNPACKED = "qemu-"


def act(parameters: dict[str, Any], more: dict[str, Any], *, check: bool) -> Ended:
    """How the step ends; `more` takes what is told beside that. Raises Ended as well."""
    if not parameters["migration_checked"]:
        raise Ended(REFUSED, f"{WORD}. Nothing was changed")
    pins = [Pin(package["name"], package["version"]) for package in parameters["packages"]]
    begun = False
    try:
        manager = package_manager()
        installed = manager.installed(pins)
        due = [pin for pin in pins if pin not in installed]
        if not due:
            return _told_of_installed(pins)
        _guests_machines(parameters)  # before anything is downloaded
        _refuse_unavailable(manager, pins, parameters, check=check)
        with _folder(parameters["work_folder"], parameters["run_as"], keep_others=check) as folder:
            files, tree = _unpacked(manager, pins, folder)
            programs = _look_into(tree, parameters, more)
            if check:
                return Ended(DONE, f"would install {_named(due)}; {_KEEP}")
            begun = True
            manager.install(files, pins)
    except PackageError as error:
        if begun:
            raise Ended(FAILED, f"the installation did not end well: {error}. {_what_is_there(manager, pins)}") from None
        raise Ended(REFUSED, f"{error}. Nothing was changed") from None
    except ProgramError as error:
        raise Ended(REFUSED, f"cannot tell which machine types the pinned QEMU has: {error}. Nothing was changed") from None
    left = [pin for pin in pins if pin not in manager.installed(pins)]
    if left or not all(path in map(str, _installed_programs()) and has_capability_string(Path(path)) for path in programs):
        raise Ended(FAILED, f"installed, but what is there now is not what was looked into. {_what_is_there(manager, pins)}")
    return Ended(DONE, f"installed {_named(due)}; {_KEEP}{_deprecation(more)}")


def _told_of_installed(pins: Sequence[Pin]) -> Ended:
    if any(has_capability_string(path) for path in _installed_programs()):
        return Ended(ALREADY, f"installed are {_named(pins)}; {_KEEP}")
    return Ended(REFUSED, f"{_named(pins)} are installed, and no QEMU there holds {_MESSAGE!r}: pin a build that does. Nothing was changed")


def _installed_programs() -> list[Path]:
    return [path for path in (Path("/") / name for name in PROGRAMS) if path.is_file()]


def _guests_machines(parameters: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    try:
        guests = read_guests(parameters["uri"], parameters["timeout_seconds"])
    except GuestsUnknownError as error:
        raise Ended(REFUSED, f"which machine types the guests use cannot be told: {error}. Nothing was changed") from None
    return machines_in_use(((guest.name, guest.machines) for guest in guests), parameters["machine_types"])


def _refuse_unavailable(manager: Apt | Dnf, pins: Sequence[Pin], parameters: dict[str, Any], *, check: bool) -> None:
    manager.refuse_unfinished()
    if parameters["update_lists"] and not check:
        manager.refresh()
    for pin in pins:
        available = manager.available(pin.name)
        if pin.version not in available:
            stale = ". Check mode does not refresh the lists of packages" if check else ""
            raise PackageError(f"{pin} is not to be had; the archives of this host have {listed(available) or 'no such package'}{stale}")
    installed = manager.installed(pins)
    refuse_more_than_pinned(manager.changes(pins), [pin for pin in pins if pin not in installed])


@contextlib.contextmanager
def _folder(parent: str, user: str, *, keep_others: bool) -> Iterator[Path]:
    """A folder that root fills and the user may look into, and nobody else; gone afterwards, with what an interrupted attempt left."""
    work = Path(parent)
    made = not work.exists()
    try:
        work.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not keep_others:  # check mode holds no lock, and an attempt may be under way
            for other in work.glob(f"{_UNPACKED}*"):
                shutil.rmtree(other, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_UNPACKED, dir=work))
    except OSError as error:
        raise Ended(REFUSED, f"nothing can be unpacked in {parent}: {error.strerror}. Nothing was changed") from None
    try:
        with contextlib.suppress(KeyError):  # without the user nothing runs, and that says so by itself
            os.chown(folder, 0, pwd.getpwnam(user).pw_gid)
        folder.chmod(0o710)
        yield folder
    finally:
        shutil.rmtree(folder)
        if made:
            with contextlib.suppress(OSError):  # another attempt is in it
                work.rmdir()


def _unpacked(manager: Apt | Dnf, pins: Sequence[Pin], folder: Path) -> tuple[tuple[Path, ...], Path]:
    downloads, tree = folder / "packages", folder / "tree"
    downloads.mkdir(mode=0o700)
    tree.mkdir(mode=0o755)
    files = manager.bring(pins, downloads)
    for file in files:
        manager.unpack(file, tree)
    return files, tree


def _look_into(tree: Path, parameters: dict[str, Any], more: dict[str, Any]) -> tuple[str, ...]:
    """The QEMU programs. Refuses one that does not switch KVM's PMU off, that does not run, or that lacks a machine type in use."""
    programs = find_programs(tree)
    if not programs:
        raise PackageError(f"none of the pinned packages holds {listed(['/' + name for name in PROGRAMS])}")
    for program in programs:
        if not has_capability_string(tree / program):
            raise PackageError(
                f"/{program} of the pinned packages does not hold {_MESSAGE!r}: pmu=off would not reach KVM. Pin a build that does"
            )
    try:
        user = pwd.getpwnam(parameters["run_as"])
    except KeyError:
        raise ProgramError(f"there is no user {parameters['run_as']!r} to run it") from None
    offered = [read_machine_types(tree, program, user.pw_uid, user.pw_gid) for program in programs]
    common = MachineTypes(
        frozenset.intersection(*[types.names for types in offered]), frozenset.union(*[types.deprecated for types in offered])
    )
    # Once more: guests come and go while packages are downloaded.
    in_use = _guests_machines(parameters)
    more["machine_types"] = {machine: list(names) for machine, names in in_use.items()}
    more["deprecated"] = sorted(common.deprecated & set(in_use))
    missing = missing_machines(in_use, common)
    if missing:
        words = "; ".join(f"{machine} ({listed(names)})" for machine, names in missing.items())
        raise Ended(REFUSED, f"the pinned QEMU has no machine type {words}: these guests would not start again. Nothing was changed")
    return tuple(f"/{program}" for program in programs)


def _deprecation(more: dict[str, Any]) -> str:
    return f"; deprecated there, and gone in a later one: {listed(more['deprecated'])}" if more["deprecated"] else ""


def _what_is_there(manager: Apt | Dnf, pins: Sequence[Pin]) -> str:
    try:
        return f"Installed are now {_named(manager.installed(pins)) or 'none of the pinned packages'}: look at the host before trying again"
    except PackageError as error:
        return f"What is installed now cannot be told ({error}): look at the host before trying again"


def _named(pins: Sequence[Pin]) -> str:
    return listed([str(pin) for pin in pins])


def main() -> None:
    package = {"name": {"type": "str", "required": True}, "version": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "dict", "options": package, "required": True},
            "machine_types": {"type": "list", "elements": "str", "default": []},
            "migration_checked": {"type": "bool", "default": False},
            "uri": {"type": "str", "default": "qemu:///system"},
            "timeout_seconds": {"type": "int", "default": 60},
            "update_lists": {"type": "bool", "default": True},
            "run_as": {"type": "str", "default": "nobody"},
            "work_folder": {"type": "path", "default": "/var/cache/exitguard"},
            "lock_file": {"type": "path", "default": "/run/exitguard/remedy.lock"},
        },
        supports_check_mode=True,
    )
    seconds = module.params["timeout_seconds"]
    if seconds < 1:
        module.fail_json(msg="timeout_seconds: expected at least 1")
    names = [package["name"] for package in module.params["packages"]]
    if not names or len(set(names)) < len(names):
        module.fail_json(msg=f"packages: expected at least one, each named once; found {', '.join(names) or 'none'}")
    more: dict[str, Any] = {}
    try:
        # Check mode makes no file that stays, and reading needs no lock.
        with contextlib.nullcontext() if module.check_mode else locked(module.params["lock_file"], seconds):
            ended = act(module.params, more, check=module.check_mode)
    except Ended as raised:
        ended = raised
    tell(module, ended, **more)


if __name__ == "__main__":
    main()
