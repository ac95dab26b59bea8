"""Which lineage of the policy speaks of a kernel release or of a QEMU version. Pure; the texts come from hosts and are hostile.

A lineage is the weakest evidence there is: what is known of a range of versions, vendors' backports aside.
"""

import re

from exitguard.policy.part import version_numbers
from exitguard.policy.schema import KernelLineage, Kernels, QemuLineage, Qemus

#: `uname -r` has at most 64 characters (__NEW_UTS_LEN, include/uapi/linux/utsname.h); a package text has about 40.
LONGEST_TEXT = 200
_LONGEST_NUMBER = 9
_LEADING_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def version_in_range(release: str, since: str | None, before: str | None) -> bool:
    """Whether the leading dotted numbers of `release` lie in [since, before); never for a text that does not begin with any.

    Missing numbers count as zero, and everything after the numbers counts for nothing: 6.9-rc1 is 6.9.0.
    """
    leading = _LEADING_NUMBERS.match(release) if len(release) <= LONGEST_TEXT else None
    if leading is None or any(len(number) > _LONGEST_NUMBER for number in leading.group().split(".")):
        return False
    numbers = version_numbers(leading.group())
    return (since is None or numbers >= version_numbers(since)) and (before is None or numbers < version_numbers(before))


def find_kernel_lineage(kernels: Kernels, release: str) -> KernelLineage | None:
    """The first lineage whose pattern matches the whole `uname -r` and whose range has its version; None where none does."""
    for lineage in kernels.lineages:
        if _matches(lineage.release, release) and version_in_range(release, lineage.since, lineage.before):
            return lineage
    return None


def find_qemu_lineage(qemus: Qemus, version: str, package: str) -> QemuLineage | None:
    """The first lineage whose pattern matches the whole `package` text and whose range has `version`; None where none does."""
    for lineage in qemus.lineages:
        if _matches(lineage.package, package) and version_in_range(version, lineage.since, lineage.before):
            return lineage
    return None


def _matches(pattern: str, text: str) -> bool:
    return len(text) <= LONGEST_TEXT and re.fullmatch(pattern, text, re.ASCII) is not None
