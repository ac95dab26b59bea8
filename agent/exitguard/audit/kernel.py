"""The state of the running kernel, merged from evidence of different strength. Pure.

Strongest first: machine code, a build decided once by file, the package's changelog, the symbols, the version table. The
strongest that settles it wins and whatever contradicts it is shown. Two things are never concluded: `guarded` or `affected`
from a version alone, since vendors backport and the guard leaves no symbol; anything from the original function where a live
patch has replaced it.
"""

from collections.abc import Mapping
from typing import Literal, cast

from exitguard.audit.installed_kernels import helpful_kernel, judge_installed
from exitguard.audit.machine_code import ANCHOR, machine_code_statement
from exitguard.model.host import Changelog, Cpu, KernelFacts, KvmFacts
from exitguard.model.kernel import Body, EvidenceMethod, KernelState, KernelStatement, KernelVerdict
from exitguard.policy.lineage import find_kernel_lineage
from exitguard.policy.schema import Kernels

__all__ = ["judge_kernel", "kernel_statements", "machine_code_statement", "replaced_by_live_patch"]

#: What tells an older or newer body (domain facts in the docs).
TRIGGER = "kvm_pmu_trigger_event"
RETIRED = "kvm_pmu_instruction_retired"

#: A vendor module, and the virtualisation of the CPUs that it is for.
_VIRTUALIZATION: dict[str, Literal["svm", "vmx", "none"]] = {"kvm_amd": "svm", "kvm_intel": "vmx"}
#: What the cost of a PMU-off guest on an affected kernel depends on.
_AT_ONCE = {
    True: "for a PMU-off guest the PMU function finds no counter, and returns",
    False: "on AMD the PMU function walks the counters of a PMU-off guest too",
    None: "whether the PMU function finds counters to walk for a PMU-off guest depends on the CPU's vendor, which is not known",
}
_HARMLESS = (KernelState.GUARDED, KernelState.EQUIVALENT, KernelState.NOT_AFFECTED)


def kernel_statements(kernel: KernelFacts, kvm: KvmFacts, kernels: Kernels) -> tuple[KernelStatement, ...]:
    """What each kind of evidence says, strongest first. Evidence that says nothing is left out."""
    found = (
        machine_code_statement(kernel.machine_code.value) if kernel.machine_code.value is not None else None,
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


def judge_kernel(
    kernel: KernelFacts, kvm: KvmFacts, kernels: Kernels, *, cpu: Cpu | None = None
) -> tuple[KernelVerdict, tuple[KernelStatement, ...]]:
    """The verdict on the running kernel, and every statement that went into it."""
    statements = kernel_statements(kernel, kvm, kernels)
    state, reason = _settle(statements, kernel)
    patched = None if state is KernelState.UNKNOWN else replaced_by_live_patch(kernel)
    if patched is not None:
        state, reason = KernelState.UNKNOWN, patched
    body = _body(state, statements)
    at_once = _returns_at_once(body, kvm, cpu) if state is KernelState.AFFECTED else None
    if state is KernelState.AFFECTED and body is not None:
        reason += f"; {_AT_ONCE[at_once]}"
    installed = judge_installed(kernel, kernels)
    pending = None if state in _HARMLESS else helpful_kernel(installed, kernel.boots_next.value)
    verdict = KernelVerdict(
        state=state,
        body=body,
        reason=reason,
        pending_reboot=pending is not None,
        pending_release=pending,
        installed=installed,
        returns_at_once=at_once,
        live_patched=_replacing_patch(kernel) is not None,
        disagreements=_disagreements(state, body, statements),
    )
    return verdict, statements


def _settle(statements: tuple[KernelStatement, ...], kernel: KernelFacts) -> tuple[KernelState, str]:
    by_method = {statement.method: statement for statement in statements}
    # What the instructions contradict is not concluded from names and numbers; who decided a build, or named the guard, knew more.
    code = by_method.get(EvidenceMethod.MACHINE_CODE)
    excluded = code.excludes if code is not None else ()
    for statement in statements:
        by_name = statement.method is EvidenceMethod.SYMBOLS and statement.state in excluded
        if statement.state in (None, KernelState.UNKNOWN) or statement.method is EvidenceMethod.VERSION or by_name:
            continue
        return cast(KernelState, statement.state), f"{statement.source}: {statement.value}"
    version = by_method.get(EvidenceMethod.VERSION)
    symbols = by_method.get(EvidenceMethod.SYMBOLS)
    changelog = by_method.get(EvidenceMethod.CHANGELOG)
    fits = symbols is not None and symbols.state is None and changelog is not None and changelog.state is None
    if version is not None and version.state is KernelState.AFFECTED and fits and KernelState.AFFECTED not in excluded:
        reason = f"{version.value}; the symbols fit, and {cast(KernelStatement, changelog).source} does not name the guard"
        return KernelState.AFFECTED, reason
    return KernelState.UNKNOWN, _why_unsettled(by_method, kernel)


def _why_unsettled(by_method: Mapping[EvidenceMethod, KernelStatement], kernel: KernelFacts) -> str:
    code = by_method.get(EvidenceMethod.MACHINE_CODE)
    if code is not None:
        return f"the machine code does not settle it, nor does anything else: {code.value}"
    version, symbols = by_method.get(EvidenceMethod.VERSION), by_method.get(EvidenceMethod.SYMBOLS)
    unread = f"the machine code would decide ({kernel.machine_code.reason})"
    if symbols is not None:
        missing = "the package's changelog or " if EvidenceMethod.CHANGELOG not in by_method else ""
        return f"affected or guarded: the symbols allow both, and the guard leaves none; {missing}{unread}"
    if version is not None:
        return f"only the version speaks, which never decides, since vendors backport: {version.value}; {unread}"
    return "no evidence about this kernel could be read"


def replaced_by_live_patch(kernel: KernelFacts) -> str | None:
    """Why the code of the kernel's own file says nothing about what runs; None where it does."""
    if kernel.live_patches.value is None:
        return f"whether a live patch has replaced {ANCHOR} or its PMU call cannot be seen: {kernel.live_patches.reason}"
    patch = _replacing_patch(kernel)
    return None if patch is None else f"live patch {patch} replaces {ANCHOR} or its PMU call: the original says nothing about what runs"


def _replacing_patch(kernel: KernelFacts) -> str | None:
    patches = kernel.live_patches.value or ()
    return next((patch.name for patch in patches if patch.replaces_skip and (patch.enabled or patch.transition)), None)


def _body(state: KernelState, statements: tuple[KernelStatement, ...]) -> Body | None:
    """What the strongest says that speaks of a body; who settles the state may know none."""
    if state not in (KernelState.AFFECTED, KernelState.GUARDED):
        return None
    return next((statement.body for statement in statements if statement.body is not None), None)


def _disagreements(state: KernelState, body: Body | None, statements: tuple[KernelStatement, ...]) -> tuple[str, ...]:
    """Where the state is settled, what contradicts it; else every side, where there are two."""
    said = [statement for statement in statements if statement.state not in (None, KernelState.UNKNOWN)]
    if state is not KernelState.UNKNOWN:
        against = [
            each
            for each in statements
            if state in each.excludes or (each in said and (each.state is not state or each.body not in (None, body)))
        ]
    else:
        excluding = [each for each in statements if any(other.state in each.excludes for other in said)]
        two_sided = excluding or len({each.state for each in said}) > 1
        against = [each for each in statements if each in said or each in excluding] if two_sided else []
    return tuple(f"{statement.method.value}: {statement.value}" for statement in against)


def _returns_at_once(body: Body | None, kvm: KvmFacts, cpu: Cpu | None) -> bool | None:
    """Whether a PMU-off guest's call finds no counter to walk: always in body B; in body A only on Intel, whose set is empty then."""
    if body is not Body.A:
        return None if body is None else True
    modules = kvm.module.value.vendor_modules if kvm.module.value is not None else ()
    vendors = {_VIRTUALIZATION[module] for module in modules if module in _VIRTUALIZATION}
    if len(vendors) != 1:  # both are built in, or none is loaded
        vendors = {cpu.virtualization} if cpu is not None else set()
    return True if vendors == {"vmx"} else False if vendors == {"svm"} else None
