#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Installs a pinned kernel that has the guard, and has GRUB boot it once. Never reboots, never changes what boots by default."""

from __future__ import annotations

DOCUMENTATION = r"""
module: exitguard_kernel_install
short_description: Installs pinned kernel packages and boots them once
description:
  - Looks into the packages before they are installed, and refuses a kernel whose machine code is not guarded, equivalent or not affected.
  - The running kernel stays the default of GRUB. The new one is its choice for the next boot alone. Nothing is rebooted or removed.
  - Check mode does everything but install, refresh package lists and write GRUB's environment block. It does fetch the packages into a
    private folder, looks into them, and clears them away.
options:
  packages:
    description: The packages, each in exactly one version. On EL 9 a version is VERSION-RELEASE.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Its name., type: str, required: true}
      version: {description: Its version., type: str, required: true}
  release:
    description: What uname -r says of that kernel.
    type: str
    required: true
  inspect_command:
    description: The command that tells of a kernel whether it has the guard.
    type: list
    elements: str
    default: [exitguard, kernel, inspect]
  boot_free_mib: {description: Room that /boot must have., type: int, default: 200}
  root_free_mib: {description: Room that / and the download folder must have., type: int, default: 1024}
  update_cache: {description: Fetch package lists anew where a version is not in them., type: bool, default: true}
  download_dir: {description: Where the private folder for the packages is made., type: path, default: /var/tmp}
author: exitguard maintainers
"""
EXAMPLES = r"""
- exitguard_kernel_install:
    packages: [{name: linux-image-6.1.0-57-amd64, version: 6.1.200-1}]
    release: 6.1.0-57-amd64
"""
RETURN = r"""
exitguard: {description: The outcome with its reason., type: dict, returned: always}
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_grub import BootLoader, GrubError, check_undisturbed, read_boot_loader, why_not_written
from ansible.module_utils.exitguard_host_step import MAINTENANCE
from ansible.module_utils.exitguard_kernel_host import (
    describe,
    is_signed,
    other_loader,
    parse_dkms,
    program_runner,
    secure_boot,
    step,
    why_boot_is_not_mounted,
    why_dkms,
    why_no_space,
    why_not_guarded,
)
from ansible.module_utils.exitguard_kernel_packages import Apt, Dnf, PackageError, Pin, check_changes

_FIRMWARE = Path("/sys/firmware/efi")
_QUESTION_SECONDS = 60
_INSPECTION_SECONDS = 300


class RefusedError(Exception):
    """The kernel is not installed, and nothing was changed."""


class FailedError(Exception):
    """Something went wrong after the first change."""


class Installation:
    """One kernel on its way onto one host."""

    def __init__(self, module: AnsibleModule) -> None:
        self._options = module.params
        self._check = module.check_mode
        self._run = program_runner(module)
        self._find = module.get_bin_path
        self.release = self._options["release"]
        self.running = os.uname().release
        self.pins = [Pin(package["name"], package["version"]) for package in self._options["packages"]]
        self.notes: list[str] = []
        self.diff: dict[str, str] | None = None
        self._packages = self._package_tool()

    def carry_out(self) -> tuple[str, str]:
        """(outcome, reason). Raises RefusedError where nothing was changed, FailedError where something was."""
        try:
            loader = self._loader()
            missing = self._missing()
            if self.release == self.running:
                return self._already_runs(missing)
            default_moves = self._default_moves(loader)
            if loader.release_of(loader.saved) == self.release and not missing:
                return "already", f"kernel {self.release} is installed and is the default already; it waits for a reboot"
            if missing:
                return self._install_anew(loader, default_moves=default_moves)
            return self._boot_once_if_not_yet(loader, default_moves=default_moves)
        except (GrubError, PackageError, OSError) as error:
            raise RefusedError(str(error)) from error

    def _package_tool(self) -> Apt | Dnf:
        if self._find("apt-get") and self._find("dpkg-query"):
            return Apt(self._run)
        if self._find("dnf") and self._find("rpm"):
            return Dnf(self._run)
        raise RefusedError("neither apt and dpkg nor dnf and rpm are here: kernels are installed on Debian's family and on EL 9 only")

    def _missing(self) -> list[Pin]:
        installed = self._packages.installed(self.pins)
        return [pin for pin in self.pins if pin.version not in installed.get(pin.name, ())]

    # ---- the boot loader ----

    def _loader(self) -> BootLoader:
        other = other_loader(_FIRMWARE)
        if other is not None:
            raise RefusedError(
                f"the firmware was handed to the boot loader {other}, expected GRUB: one boot alone is asked for by GRUB's means"
            )
        loader = read_boot_loader()
        check_undisturbed(loader)
        for tool in ("reboot", "set-default", "editenv", "probe"):
            if not self._find(f"{loader.prefix}-{tool}"):
                raise RefusedError(
                    f"{loader.prefix}-{tool} is not installed: expected GRUB's own tools (Debian: grub2-common, EL 9: grub2-tools)"
                )
        answers = []
        for target in ("fs", "abstraction"):
            code, out, err = self._run(
                [f"{loader.prefix}-probe", f"--target={target}", str(Path(loader.folder, "grubenv").resolve())], _QUESTION_SECONDS
            )
            if code != 0:
                raise RefusedError(
                    f"{loader.prefix}-probe cannot tell on what {loader.folder} lies: {err.strip()[:300]}. "
                    "Mend that first: update-grub fails too"
                )
            answers.append(out.strip())
        reason = why_not_written(*answers)
        if reason is not None:
            raise RefusedError(
                f"{loader.folder}/grubenv: {reason}, so an entry for one boot would stay for ever. "
                "Put /boot on a plain partition, or boot the kernel by hand"
            )
        return loader

    def _default_moves(self, loader: BootLoader) -> bool:
        """Whether the saved default has to be pinned to the running kernel. Raises RefusedError where it is another kernel's on purpose."""
        saved = loader.release_of(loader.saved)
        running = loader.entry_for(self.running)
        if saved is not None and saved not in (self.running, self.release):
            raise RefusedError(
                f"the saved default of GRUB is kernel {saved}, and {self.running} runs. Expected the running one, which is known to work: "
                f"boot {saved} first, or {loader.prefix}-set-default '{running.spec}'"
            )
        once = loader.release_of(loader.once) if loader.once else None
        if loader.once and once != self.release:
            raise RefusedError(
                f"somebody has chosen {loader.once!r} for the next boot. Reboot first, or take that back: "
                f"{loader.prefix}-editenv {loader.folder}/grubenv unset next_entry"
            )
        return saved is None

    def _set_default(self, loader: BootLoader, spec: str) -> None:
        self._write(loader, "set-default", spec)
        if read_boot_loader().saved != spec:
            raise FailedError(f"{loader.prefix}-set-default wrote nothing to {loader.folder}/grubenv")

    def _write(self, loader: BootLoader, tool: str, spec: str) -> None:
        # EL's tools find their folder by themselves; Debian's take the one of the usual /boot.
        code, _, err = self._run([f"{loader.prefix}-{tool}", spec], _QUESTION_SECONDS)
        if code != 0:
            raise FailedError(f"{loader.prefix}-{tool} failed with exit code {code}: {err.strip()[:300]}")

    # ---- what runs or is installed already ----

    def _already_runs(self, missing: Sequence[Pin]) -> tuple[str, str]:
        if missing:
            raise RefusedError(
                f"kernel {self.release} runs, from packages of another version. Installed over it, {', '.join(map(str, missing))} would "
                "leave no old kernel to go back to. Boot another kernel first, or pin one with a release of its own"
            )
        reason = why_not_guarded(self._inspect("--running"), self.release)
        if reason is not None:
            raise RefusedError(
                f"the packages are installed, and the kernel of that release that runs is not known to be theirs: {reason}. Reboot the host"
            )
        return "already", f"kernel {self.release} is installed and runs"

    def _boot_once_if_not_yet(self, loader: BootLoader, *, default_moves: bool) -> tuple[str, str]:
        answer = self._inspect(self.release)
        self._refuse(why_not_guarded(answer, self.release))
        self._refuse(self._dkms([pin.name for pin in self.pins]))
        self._refuse(self._unsigned(Path(f"/boot/vmlinuz-{self.release}")))
        entry = loader.entry_for(self.release)
        if loader.release_of(loader.once) == entry.release and not default_moves:
            return "already", f"kernel {self.release} is installed and is booted once at the next reboot; {self.running} stays the default"
        self._show(loader, ())
        if self._check:
            return "done", self._would(answer, "boot it once at the next reboot")
        return self._changing(loader, lambda: self._settle(loader, answer, "was installed already", default_moves=default_moves))

    # ---- a kernel that is not there yet ----

    def _install_anew(self, loader: BootLoader, *, default_moves: bool) -> tuple[str, str]:
        self._refuse(self._room())
        unfinished = self._packages.unfinished()
        if unfinished:
            raise RefusedError(f"dpkg left packages half-way: {', '.join(unfinished)}. Finish them first: dpkg --configure --pending")
        self._expect_available()
        self._refuse(self._dkms([pin.name for pin in self.pins]))
        place = Path(tempfile.mkdtemp(prefix="exitguard-kernel-", dir=self._options["download_dir"]))  # 0700
        try:
            return self._install_from(place, loader, default_moves=default_moves)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _install_from(self, place: Path, loader: BootLoader, *, default_moves: bool) -> tuple[str, str]:
        brought, tree = place / "packages", place / "tree"
        brought.mkdir()
        tree.mkdir()
        files = self._packages.bring(self.pins, brought)
        for file in files:
            self._packages.unpack(file, tree)
        answer = self._inspect(str(tree))
        self._refuse(why_not_guarded(answer, self.release))
        places = (tree / f"boot/vmlinuz-{self.release}", tree / f"lib/modules/{self.release}/vmlinuz")
        images = [image for image in places if image.is_file()]
        if not images:
            raise RefusedError(f"none of the packages holds vmlinuz-{self.release}: pin the package with the kernel's image as well")
        self._refuse(self._unsigned(images[0]))
        check_changes(self._packages.changes(files), self.pins)
        self._show(loader, self.pins)
        if self._check:
            return "done", self._would(answer, "install it, and boot it once at the next reboot")

        def change() -> tuple[str, str]:
            # Before anything is installed: from here on no crash lets another kernel boot by default.
            if default_moves:
                self._set_default(loader, loader.entry_for(self.running).spec)
            self._packages.install(files)
            return self._settle(read_boot_loader(), answer, "was installed", default_moves=default_moves)

        return self._changing(loader, change)

    def _settle(self, loader: BootLoader, answer: str, what: str, *, default_moves: bool) -> tuple[str, str]:
        """Keep the running kernel the default, and choose the new one for the next boot; each is read again."""
        missing = self._missing()
        if missing:
            raise FailedError(f"not installed: {', '.join(map(str, missing))}")
        if default_moves or loader.release_of(loader.saved) != self.running:  # EL 9 makes a new kernel the default by itself
            self._set_default(loader, loader.entry_for(self.running).spec)
        reason = self._dkms(())
        if reason is not None:
            raise FailedError(reason)
        entry = loader.entry_for(self.release)
        self._write(loader, "reboot", entry.spec)
        after = read_boot_loader()
        if after.once != entry.spec or after.release_of(after.saved) != self.running:
            raise FailedError(
                f"{after.folder}/grubenv holds saved_entry={after.saved!r} and next_entry={after.once!r} after it was written"
            )
        said = (
            f"kernel {self.release} {what} ({describe(answer)}). The next reboot, whenever you choose it, boots it once; "
            f"{self.running} stays the default until stage promote."
        )
        return "done", " ".join([said, *self.notes])

    def _changing(self, loader: BootLoader, change: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        try:
            return change()
        except (FailedError, RefusedError, GrubError, PackageError, OSError) as error:
            raise FailedError(f"{error}. {self._way_back(loader)}") from error

    def _way_back(self, before: BootLoader) -> str:
        """Have the running kernel boot again by default, as far as that can be done, and say what is so."""
        spec = before.entry_for(self.running).spec
        try:
            loader = read_boot_loader()
            if loader.release_of(loader.saved) != self.running:
                self._set_default(loader, spec)
            if loader.once:
                self._run([f"{loader.prefix}-editenv", f"{loader.folder}/grubenv", "unset", "next_entry"], _QUESTION_SECONDS)
            loader = read_boot_loader()
            if loader.release_of(loader.saved) == self.running and not loader.once:
                return (
                    f"The default stays kernel {self.running}, and nothing is chosen for the next boot; packages that were installed stay"
                )
        except (GrubError, FailedError, OSError) as error:
            unsure = f"What boots next is NOT certain ({error})"
        else:
            unsure = "What boots next is NOT certain"
        return f"{unsure}: see {before.folder}/grubenv before this host is rebooted; '{spec}' is the running kernel"

    # ---- single questions ----

    def _room(self) -> str | None:
        places = [("/boot", "boot_free_mib"), ("/", "root_free_mib"), (self._options["download_dir"], "root_free_mib")]
        reasons = [why_boot_is_not_mounted(_read("/etc/fstab"), _read("/proc/self/mounts"))]
        reasons += [why_no_space(path, self._options[name]) for path, name in places]
        return next((reason for reason in reasons if reason is not None), None)

    def _expect_available(self) -> None:
        missing = self._unavailable()
        if missing and self._options["update_cache"] and not self._check:
            self._packages.refresh()
            missing = self._unavailable()
        if missing:
            not_refreshed = " Package lists are not refreshed in check mode: this may be all that is wrong." if self._check else ""
            found = "; ".join(f"{pin.name}: {', '.join(versions) or 'no version'}" for pin, versions in missing)
            raise RefusedError(
                f"not to be had from this host's archives: {', '.join(str(pin) for pin, _ in missing)}. Found {found}.{not_refreshed}"
            )

    def _unavailable(self) -> list[tuple[Pin, tuple[str, ...]]]:
        found = [(pin, self._packages.available(pin)) for pin in self.pins]
        return [(pin, versions) for pin, versions in found if pin.version not in versions]

    def _dkms(self, pinned_names: Sequence[str]) -> str | None:
        if not self._find("dkms"):
            return None
        code, out, err = self._run(["dkms", "status"], _QUESTION_SECONDS)
        if code != 0:
            return f"dkms status failed with exit code {code}: {err.strip()[:300]}. Which modules need a build is not known"
        prefix = self._packages.headers_prefix
        # EL names the headers' package without the release, and pins its version.
        headers = prefix + self.release if isinstance(self._packages, Apt) else prefix.rstrip("-")
        return why_dkms(parse_dkms(out), self.release, headers, pinned_names)

    def _unsigned(self, image: Path) -> str | None:
        secure = secure_boot(_FIRMWARE)
        if secure is None:
            self.notes.append("Whether Secure Boot is on could not be read, so the image's signature was not asked for.")
        if secure and not is_signed(image):
            return f"Secure Boot is on, and {image.name} has no signature: GRUB would not start it. Pin the signed package"
        return None

    def _inspect(self, what: str) -> str:
        argv = [*self._options["inspect_command"], "--format", "json", what]
        code, out, err = self._run(argv, _INSPECTION_SECONDS)
        if not out.strip():
            raise RefusedError(f"{' '.join(argv)} gave no answer (exit code {code}): {err.strip()[:300]}")
        return out

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            raise RefusedError(reason)

    def _would(self, answer: str, what: str) -> str:
        return " ".join([f"would {what}: kernel {self.release}, {describe(answer)}", *self.notes])

    def _show(self, loader: BootLoader, pins: Sequence[Pin]) -> None:
        lines = [f"saved default: {loader.saved or '(none)'}", f"next boot only: {loader.once or '(none)'}"]
        after = [f"saved default: {loader.entry_for(self.running).spec}", f"next boot only: the entry of {self.release}"]
        before_packages = [f"{pin.name} not installed in version {pin.version}" for pin in pins]
        after_packages = [f"{pin.name} {pin.version}" for pin in pins]
        self.diff = {"before": "\n".join([*before_packages, *lines, ""]), "after": "\n".join([*after_packages, *after, ""])}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "packages": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": {"type": "str", "required": True}, "version": {"type": "str", "required": True}},
            },
            "release": {"type": "str", "required": True},
            "inspect_command": {"type": "list", "elements": "str", "default": ["exitguard", "kernel", "inspect"]},
            "boot_free_mib": {"type": "int", "default": 200},
            "root_free_mib": {"type": "int", "default": 1024},
            "update_cache": {"type": "bool", "default": True},
            "download_dir": {"type": "path", "default": "/var/tmp"},  # noqa: S108 - a folder with a random name is made in it
        },
        supports_check_mode=True,
    )
    if os.path.lexists(MAINTENANCE):
        maintained = f"refused, nothing was changed: the host is in maintenance: {MAINTENANCE} is there"
        module.fail_json(msg=maintained, exitguard=step("refused", maintained))
    _check_words(module)
    try:
        installation = Installation(module)
        outcome, reason = installation.carry_out()
    except RefusedError as error:
        reason = f"refused, nothing was changed: {error}"
        module.fail_json(msg=reason, exitguard=step("refused", reason))
    except FailedError as error:
        module.fail_json(msg=str(error), exitguard=step("failed", str(error)))
    shown = {"diff": installation.diff} if installation.diff is not None else {}
    module.exit_json(changed=outcome == "done", msg=reason, exitguard=step(outcome, reason), **shown)


def _check_words(module: AnsibleModule) -> None:
    """Names and versions become arguments of programs: nothing but what such a thing may look like goes through."""
    packages, release = module.params["packages"], module.params["release"]
    bad = [each["name"] for each in packages if not re.match(r"^[A-Za-z0-9][A-Za-z0-9+._-]*$", each["name"])]
    bad += [each["version"] for each in packages if not re.match(r"^[A-Za-z0-9][A-Za-z0-9.+:~^_-]*$", each["version"])]
    bad += [release] if not re.match(r"^[A-Za-z0-9][A-Za-z0-9._+~^:-]{0,63}$", release) else []
    if bad or not packages or len({each["name"] for each in packages}) != len(packages):
        reason = (
            "kernel_guard_packages, kernel_guard_release: expected packages, each once, with a name and a version, and a release; "
            f"found {', '.join(map(repr, bad)) or 'none, or one twice'}"
        )
        module.fail_json(msg=reason, exitguard=step("refused", reason))


if __name__ == "__main__":
    main()
