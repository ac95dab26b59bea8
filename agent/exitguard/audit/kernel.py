"""The state of the running kernel, merged from evidence of different strength. Pure.

Strongest first: machine code, a build decided once by file, the package's changelog, the symbols, the version table. The
strongest that settles it wins and whatever contradicts it is shown. Two things are never concluded: `guarded` or `affected`
from a version alone, since vendors backport and the guard leaves no symbol; anything from the original function where a live
patch has replaced it.
"""

from exitguard.model.host import Changelog, InstalledKernel, KernelFacts, KvmFacts
from exitguard.model.kernel import Body, EvidenceMethod, KernelState, KernelStatement, KernelVerdict
from exitguard.policy.lineage import find_kernel_lineage
from exitguard.policy.schema import Kernels, Provenance

#: The function that every skipped instruction runs through, and what tells an older or newer body (domain facts in the docs).
ANCHOR = "kvm_skip_emulated_instruction"
TRIGGER = "kvm_pmu_trigger_event"
RETIRED = "kvm_pmu_instruction_retired"

_HARMLESS = (KernelState.GUARDED, KernelState.EQUIVALENT, KernelState.NOT_AFFECTED)


def kernel_statements(kernel: KernelFacts, kvm: KvmFacts, kernels: Kernels) -> tuple[KernelStatement, ...]:
    """What each kind of evidence says, strongest first. Evidence that says nothing is left out."""
    found = (
        _by_build_id(kvm, kernels),
        _by_changelog(kernel),
        _by_symbols(kernel),
        _by_version(kernel, kernels),
    )
    return tuple(statement for statement in found if statement is not None)


def _by_build_id(kvm: KvmFacts, kernels: Kernels) -> KernelStatement | None:
    """A shipped verdict, tied to the code that runs by the build-id of the file that KVM came from."""
    build = next((build for build in kernels.builds if build.build_id == kvm.build_id.value), None)
    if build is None:
        return None
    value = f"build-id {build.build_id} was decided as {build.state.value}: {build.note}"
    return KernelStatement(method=EvidenceMethod.BUILD_ID, state=build.state, body=build.body, source=kvm.build_id.source, value=value)


def _by_changelog(kernel: KernelFacts) -> KernelStatement | None:
    changelog: Changelog | None = kernel.changelog.value
    if changelog is None:
        return None
    source = f"{kernel.changelog.source} ({changelog.package})"
    if changelog.guard_entries:
        value = f"names the guard: {changelog.guard_entries[0]}"
        return KernelStatement(method=EvidenceMethod.CHANGELOG, state=KernelState.GUARDED, source=source, value=value)
    # Its silence does not settle anything, but it makes a guard that nobody mentions unlikely: see _settle_affected.
    return KernelStatement(method=EvidenceMethod.CHANGELOG, state=None, source=source, value="does not name the guard")


def _by_symbols(kernel: KernelFacts) -> KernelStatement | None:
    symbols = kernel.symbols.value
    if symbols is None or ANCHOR not in symbols:
        return None
    source, method = kernel.symbols.source, EvidenceMethod.SYMBOLS
    if RETIRED in symbols:
        return KernelStatement(method=method, state=KernelState.EQUIVALENT, source=source, value=f"{RETIRED} is there")
    if TRIGGER in symbols:
        return KernelStatement(
            method=method,
            state=None,
            excludes=(KernelState.EQUIVALENT, KernelState.NOT_AFFECTED),
            source=source,
            value=f"{TRIGGER} is there: affected, or guarded (the guard leaves no symbol)",
        )
    value = f"{ANCHOR} is there, and neither {TRIGGER} nor {RETIRED}"
    return KernelStatement(method=method, state=KernelState.NOT_AFFECTED, source=source, value=value)


def _by_version(kernel: KernelFacts, kernels: Kernels) -> KernelStatement | None:
    if kernel.release.value is None:
        return None
    lineage = find_kernel_lineage(kernels, kernel.release.value)
    if lineage is None or lineage.state is KernelState.UNKNOWN:
        return None
    value = f"{kernel.release.value}: {lineage.state.value} ({lineage.id}, by {lineage.provenance.value}): {lineage.note}"
    return KernelStatement(
        method=EvidenceMethod.VERSION, state=lineage.state, body=lineage.body, source="policies/kernels.yaml", value=value
    )


def judge_kernel(kernel: KernelFacts, kvm: KvmFacts, kernels: Kernels) -> tuple[KernelVerdict, tuple[KernelStatement, ...]]:
    """The verdict on the running kernel, and every statement that went into it."""
    statements = kernel_statements(kernel, kvm, kernels)
    state, reason, winner = _settle(statements)
    patched = None if state is KernelState.UNKNOWN else _replaced_by_live_patch(kernel)
    if patched is not None:
        state, reason, winner = KernelState.UNKNOWN, patched, None
    body = _body(state, winner, statements)
    pending = None if state in _HARMLESS else _helpful_kernel(kernel, kernels)
    verdict = KernelVerdict(
        state=state,
        body=body,
        reason=reason,
        pending_reboot=pending is not None,
        pending_release=pending,
        disagreements=_disagreements(state, statements),
    )
    return verdict, statements


def _settle(statements: tuple[KernelStatement, ...]) -> tuple[KernelState, str, KernelStatement | None]:
    by_method = {statement.method: statement for statement in statements}
    for statement in statements:
        if statement.state is None or statement.state is KernelState.UNKNOWN or statement.method is EvidenceMethod.VERSION:
            continue
        return statement.state, f"{statement.source}: {statement.value}", statement
    version = by_method.get(EvidenceMethod.VERSION)
    symbols = by_method.get(EvidenceMethod.SYMBOLS)
    changelog = by_method.get(EvidenceMethod.CHANGELOG)
    if version is not None and version.state is KernelState.AFFECTED and symbols is not None and changelog is not None:
        reason = f"{version.value}; the symbols fit, and {changelog.source} {changelog.value}"
        return KernelState.AFFECTED, reason, version
    if symbols is not None:
        missing = "the package's changelog or the machine code" if changelog is None else "the machine code"
        return KernelState.UNKNOWN, f"affected or guarded: the symbols allow both, and the guard leaves none; {missing} would decide", None
    if version is not None:
        return KernelState.UNKNOWN, f"only the version speaks, which never decides, since vendors backport: {version.value}", None
    return KernelState.UNKNOWN, "no evidence about this kernel could be read", None


def _replaced_by_live_patch(kernel: KernelFacts) -> str | None:
    if kernel.live_patches.value is None:
        return f"whether a live patch has replaced {ANCHOR} or its PMU call cannot be seen: {kernel.live_patches.reason}"
    for patch in kernel.live_patches.value:
        if patch.replaces_skip and (patch.enabled or patch.transition):
            return f"live patch {patch.name} replaces {ANCHOR} or its PMU call: the original says nothing about what runs"
    return None


def _body(state: KernelState, winner: KernelStatement | None, statements: tuple[KernelStatement, ...]) -> Body | None:
    if state not in (KernelState.AFFECTED, KernelState.GUARDED):
        return None
    if winner is not None and winner.body is not None:
        return winner.body
    return next((statement.body for statement in statements if statement.body is not None), None)


def _disagreements(state: KernelState, statements: tuple[KernelStatement, ...]) -> tuple[str, ...]:
    if state is KernelState.UNKNOWN:
        settled = {statement.state for statement in statements if statement.state is not None}
        return (
            tuple(f"{statement.method.value}: {statement.value}" for statement in statements if statement.state) if len(settled) > 1 else ()
        )
    return tuple(
        f"{statement.method.value}: {statement.value}"
        for statement in statements
        if state in statement.excludes or (statement.state is not None and statement.state is not state)
    )


def _helpful_kernel(kernel: KernelFacts, kernels: Kernels) -> str | None:
    """An installed kernel that is known to do no PMU work, while the running one is not: the one that boots next, if it is one."""
    helpful = [installed.release for installed in kernel.installed.value or () if _helps(installed, kernel, kernels)]
    boots_next = kernel.boots_next.value
    return boots_next if boots_next in helpful else helpful[-1] if helpful else None


def _helps(installed: InstalledKernel, kernel: KernelFacts, kernels: Kernels) -> bool:
    if kernel.release.value is None:
        return False  # it may be the running one
    if installed.release == kernel.release.value:
        # A newer build under the same name, where the changelog of the running one is known to be silent.
        running = kernel.changelog.value
        return bool(installed.guard_entries) and running is not None and not running.guard_entries
    if installed.guard_entries:
        return True
    lineage = find_kernel_lineage(kernels, installed.release)
    # An older kernel without the call is no cure, and an inference is no ground for a reboot.
    return lineage is not None and lineage.state is KernelState.EQUIVALENT and lineage.provenance is not Provenance.INFERENCE
