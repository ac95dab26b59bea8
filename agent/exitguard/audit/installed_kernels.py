"""Which of the installed kernels would help by being booted, and how that is known. Pure.

A kernel helps that is guarded or equivalent. One from before the call is no cure: it is older. The strongest evidence that
settles a kernel speaks: the machine code of its files, a build decided once, the package's changelog, the version table.
"""

from collections.abc import Iterator

from exitguard.audit.machine_code import machine_code_statement
from exitguard.model.host import InstalledKernel, KernelFacts
from exitguard.model.kernel import InstalledVerdict, KernelState
from exitguard.policy.lineage import find_kernel_lineage
from exitguard.policy.schema import Kernels, Provenance

#: Whether it helps, and how that is known.
_Answer = tuple[bool | None, str]
_HELPFUL = (KernelState.GUARDED, KernelState.EQUIVALENT)


def judge_installed(kernel: KernelFacts, kernels: Kernels) -> tuple[InstalledVerdict, ...]:
    """A verdict on every installed kernel, in their order, oldest first; none where they cannot be seen."""
    return tuple(_judge(installed, kernel, kernels) for installed in kernel.installed.value or ())


def helpful_kernel(verdicts: tuple[InstalledVerdict, ...], boots_next: str | None) -> str | None:
    """The release to boot: the one that boots next, if it helps; else the newest that does."""
    helpful = [verdict.release for verdict in verdicts if verdict.helps]
    return boots_next if boots_next in helpful else helpful[-1] if helpful else None


def _judge(installed: InstalledKernel, kernel: KernelFacts, kernels: Kernels) -> InstalledVerdict:
    if kernel.release.value is None:
        return InstalledVerdict(release=installed.release, helps=None, how="it may be the one that runs, whose release is not known")
    same = installed.release == kernel.release.value
    decided = next(_by_file(installed, kernels), None)
    helps, how = decided or (_as_newer_build(installed, kernel) if same else _by_package(installed, kernels))
    return InstalledVerdict(release=installed.release, helps=helps, how=how)


def _by_file(installed: InstalledKernel, kernels: Kernels) -> Iterator[_Answer]:
    reading = installed.machine_code
    if reading is None:
        return
    statement = machine_code_statement(reading)
    if statement.state is not None and statement.state is not KernelState.UNKNOWN:
        yield _decided(statement.state, f"by its machine code: {statement.value}")
    build = next((build for build in kernels.builds if build.build_id == reading.build_id), None)
    if build is not None and build.state is not KernelState.UNKNOWN:
        yield _decided(build.state, f"by its build-id {build.build_id}: {build.note}")


def _decided(state: KernelState, how: str) -> _Answer:
    return state in _HELPFUL, f"{state.value} {how}"


def _as_newer_build(installed: InstalledKernel, kernel: KernelFacts) -> _Answer:
    """A newer build under the name of the one that runs, which Debian makes of most updates."""
    if kernel.machine_code.known and installed.machine_code is None and installed.machine_code_reason is None:
        return False, "its file is the build that runs"
    if installed.guard_entries is None:
        return None, f"no changelog of it settles it{_unread(installed)}"
    if not installed.guard_entries:
        return False, "its changelog does not name the guard"
    running = kernel.changelog.value
    if running is None or running.guard_entries:
        return None, f"its changelog names the guard, and whether the build that runs has it is not known{_unread(installed)}"
    return True, f"guarded by its changelog, which the one of the build that runs is not: {installed.guard_entries[0]}"


def _by_package(installed: InstalledKernel, kernels: Kernels) -> _Answer:
    if installed.guard_entries:
        return True, f"guarded by its changelog: {installed.guard_entries[0]}"
    lineage = find_kernel_lineage(kernels, installed.release)
    # An inference is no ground for a reboot.
    if lineage is not None and lineage.state is KernelState.EQUIVALENT and lineage.provenance is not Provenance.INFERENCE:
        return True, f"equivalent by its version ({lineage.id}, by {lineage.provenance.value})"
    if installed.guard_entries is None:
        return None, f"no changelog of it settles it{_unread(installed)}"
    return False, f"its changelog does not name the guard{_unread(installed)}"


def _unread(installed: InstalledKernel) -> str:
    if installed.machine_code is not None:
        return f", nor does its machine code settle it: {machine_code_statement(installed.machine_code).value}"
    return f", and its machine code was not read: {installed.machine_code_reason}" if installed.machine_code_reason is not None else ""
