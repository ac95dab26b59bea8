#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes the kernel that runs GRUB's default, once it is the wanted one, has the guard, and the host is healthy on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: exitguard_kernel_promote
short_description: Makes the running kernel the default, where the host is healthy on it
description:
  - Refuses unless exactly the given release runs, systemd and libvirt are well, KVM is there, the kernel had no oops and no machine check,
    and its machine code is guarded, equivalent or not affected.
  - Changes GRUB's saved entry and nothing else. Check mode looks at everything and writes nothing.
options:
  release: {description: What uname -r has to say., type: str, required: true}
  inspect_command:
    description: The command that tells of a kernel whether it has the guard.
    type: list
    elements: str
    default: [exitguard, kernel, inspect]
  accepted_failed_units: {description: Units of systemd that may have failed., type: list, elements: str, default: []}
author: exitguard maintainers
"""
EXAMPLES = r"""
- exitguard_kernel_promote:
    release: 6.1.0-57-amd64
"""
RETURN = r"""
exitguard: {description: The outcome with its reason., type: dict, returned: always}
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_grub import BootLoader, Entry, GrubError, check_undisturbed, read_boot_loader
from ansible.module_utils.exitguard_host_step import MAINTENANCE
from ansible.module_utils.exitguard_kernel_host import (
    describe,
    program_runner,
    step,
    why_not_guarded,
    why_system_is_not_up,
    why_tainted,
)

_QUESTION_SECONDS = 60
_INSPECTION_SECONDS = 300


class Promotion:
    """One kernel that is to become the default of one host."""

    def __init__(self, module: AnsibleModule) -> None:
        self._options = module.params
        self._check = module.check_mode
        self._run = program_runner(module)
        self._find = module.get_bin_path
        self.release = self._options["release"]
        self.diff: dict[str, str] | None = None

    def carry_out(self) -> tuple[str, str]:
        """(outcome, reason)."""
        running = os.uname().release
        if running != self.release:
            return (
                "refused",
                f"kernel {running} runs, expected {self.release}: reboot the host first, or see why that kernel did not come up",
            )
        try:
            loader = read_boot_loader()
            entry = loader.entry_for(self.release)
            if loader.release_of(loader.saved) == self.release:
                return "already", f"kernel {self.release} runs and is the default already"
            check_undisturbed(loader)
        except GrubError as error:
            return "refused", str(error)
        notes = []
        for question in (self._systemd, self._libvirt, self._kvm, self._taint):
            reason, note = question()
            if reason is not None:
                return "refused", f"the host is not healthy on kernel {self.release}: {reason}. The default stays as it is"
            notes += [note] if note else []
        answer, reason = self._guard()
        if reason is not None:
            return "refused", f"{reason}. The default stays as it is"
        self.diff = {"before": f"saved default: {loader.saved or '(none)'}\n", "after": f"saved default: {entry.spec}\n"}
        said = " ".join([f"kernel {self.release} ({describe(answer)}) the default.", *notes])
        return ("done", f"would make {said}") if self._check else self._promote(loader, entry, f"made {said}")

    def _promote(self, loader: BootLoader, entry: Entry, said: str) -> tuple[str, str]:
        code, _, err = self._run([f"{loader.prefix}-set-default", entry.spec], _QUESTION_SECONDS)
        try:
            after = read_boot_loader().saved
        except GrubError as error:
            return "failed", f"after {loader.prefix}-set-default: {error}. What boots next is NOT certain: see {loader.folder}/grubenv"
        if after == entry.spec:
            return "done", said
        return (
            "failed",
            f"{loader.prefix}-set-default failed with exit code {code}: {err.strip()[:300]}. The saved default is {after or '(none)'!r}",
        )

    def _systemd(self) -> tuple[str | None, str | None]:
        if not Path("/run/systemd/system").is_dir():
            return None, "systemd does not run here, so it was not asked."
        _, out, _ = self._run(["systemctl", "is-system-running"], _QUESTION_SECONDS)
        state = out.strip()
        _, listed, _ = self._run(["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"], _QUESTION_SECONDS)
        failed = [line.split()[0] for line in listed.splitlines() if line.split()]
        note = f"Failed units that were accepted: {', '.join(failed)}." if state == "degraded" else None
        return why_system_is_not_up(state, failed, self._options["accepted_failed_units"]), note

    def _libvirt(self) -> tuple[str | None, str | None]:
        if not self._find("virsh"):
            return None, "virsh is not installed, so libvirt was not asked."
        code, _, err = self._run(["virsh", "--connect", "qemu:///system", "--readonly", "list", "--name"], _QUESTION_SECONDS)
        if code == 0:
            return None, None
        said = f"no answer within {_QUESTION_SECONDS} seconds" if code in (124, 137) else err.strip()[:300]
        return f"libvirt does not answer on qemu:///system: {said}", None

    def _kvm(self) -> tuple[str | None, str | None]:
        return None if Path(
            "/dev/kvm"
        ).is_char_device() else "there is no /dev/kvm: KVM's modules are not loaded, or do not fit this kernel", None

    def _taint(self) -> tuple[str | None, str | None]:
        try:
            return why_tainted(Path("/proc/sys/kernel/tainted").read_text(encoding="ascii")), None
        except OSError as error:
            return f"/proc/sys/kernel/tainted cannot be read: {error.strerror}", None

    def _guard(self) -> tuple[str, str | None]:
        argv = [*self._options["inspect_command"], "--format", "json", "--running"]
        code, out, err = self._run(argv, _INSPECTION_SECONDS)
        if not out.strip():
            return out, f"{' '.join(argv)} gave no answer (exit code {code}): {err.strip()[:300]}"
        return out, why_not_guarded(out, self.release)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "inspect_command": {"type": "list", "elements": "str", "default": ["exitguard", "kernel", "inspect"]},
            "accepted_failed_units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if os.path.lexists(MAINTENANCE):
        maintained = f"refused, nothing was changed: the host is in maintenance: {MAINTENANCE} is there"
        module.fail_json(msg=maintained, exitguard=step("refused", maintained))
    promotion = Promotion(module)
    outcome, reason = promotion.carry_out()
    if outcome in ("refused", "failed"):
        reason = f"refused, nothing was changed: {reason}" if outcome == "refused" else reason
        module.fail_json(msg=reason, exitguard=step(outcome, reason))
    shown = {"diff": promotion.diff} if promotion.diff is not None else {}
    module.exit_json(changed=outcome == "done", msg=reason, exitguard=step(outcome, reason), **shown)


if __name__ == "__main__":
    main()
