"""kernel_guard, qemu_pmu_cap and kvm_enable_pmu_off: what is to change on a host as a whole, and what is left alone. Pure.

Nothing here restarts a guest or a host, and nothing is planned that an operator has not pinned or answered for.
"""

from collections.abc import Iterable
from typing import TypeVar

from exitguard.model.domain import OwnerKind
from exitguard.model.finding import Finding, Verdict
from exitguard.model.host import TargetKind
from exitguard.model.kernel import KernelState
from exitguard.model.plan import (
    KernelGuardChange,
    KvmEnablePmuOffChange,
    LeftAloneBecause,
    Mode,
    PinnedPackage,
    QemuPmuCapChange,
    Remedy,
    SavingPerExit,
)
from exitguard.model.pmu import LinkName, Tri
from exitguard.policy.remedies import KernelPin, Package, QemuPin
from exitguard.remedy.looked_at import Decision, LookedAt
from exitguard.remedy.saving import nothing, saved_by_guard, saved_by_pmu_off

_REBOOT_IS_YOURS = "at the next boot of the host, which is yours to choose; it boots the new kernel once, and falls back by itself"
_PERF_LOST = ("hardware performance events inside the guest: perf with cycles or instructions, VTune, rr",)
_P = TypeVar("_P", KernelPin, QemuPin)
_HELPFUL = (KernelState.GUARDED, KernelState.EQUIVALENT, KernelState.NOT_AFFECTED)


def decide_host(looked: LookedAt, finding: Finding, remedy: Remedy) -> Decision:
    """What to do about the host and one rule whose remedy is `remedy`."""
    if finding.verdict is Verdict.PASS and remedy is Remedy.KERNEL_GUARD:
        return _promote(looked)
    if finding.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE):
        return None
    subject = finding.subject
    if finding.verdict is Verdict.WAIVED:
        return looked.leave(subject, remedy, LeftAloneBecause.WAIVED, finding.reason)
    if finding.verdict is not Verdict.FAIL:
        return looked.leave(subject, remedy, LeftAloneBecause.UNKNOWN, finding.reason)
    if looked.facts.target.kind is not TargetKind.LOCAL:
        reason = f"seen as a {looked.facts.target.kind.value} target: plan with facts that were gathered on the host itself"
        return looked.leave(subject, remedy, LeftAloneBecause.NOT_REACHABLE, reason)
    match remedy:
        case Remedy.KERNEL_GUARD:
            return _kernel(looked, finding)
        case Remedy.QEMU_PMU_CAP:
            return _qemu(looked, finding)
        case Remedy.KVM_ENABLE_PMU_OFF:
            return _kvm(looked, finding)
        case _:
            return looked.leave(subject, remedy, LeftAloneBecause.NO_REMEDY, f"this version has no playbook for {remedy.value}")


def _kernel(looked: LookedAt, finding: Finding) -> Decision:
    remedy, subject, kernel = Remedy.KERNEL_GUARD, finding.subject, looked.facts.kernel
    verdict = looked.judged.host.kernel
    pin = _pin(looked, looked.remedies.kernels)
    if pin is None:
        return looked.leave(subject, remedy, LeftAloneBecause.NOT_PINNED, _no_pin(looked, "kernel", "kernels"))
    installed = next((each for each in verdict.installed if each.release == pin.release), None)
    if installed is not None and installed.helps is False:
        reason = f"the pinned {pin.release} is installed and would not help: {installed.how}"
        return looked.leave(subject, remedy, LeftAloneBecause.NOT_PINNED, reason)
    if installed is not None and kernel.boots_next.value == pin.release:
        reason = f"the pinned {pin.release} is installed and boots next: the reboot is yours to choose"
        return looked.leave(subject, remedy, LeftAloneBecause.PENDING, reason)
    if installed is not None:
        # Chosen for one boot and not running: it may have failed that boot, and must not be sent into another by itself.
        reason = (
            f"the pinned {pin.release} is installed, and neither runs nor boots next: it may have failed its one boot. Find out why, then "
            "choose it again by hand with playbooks/kernel_guard.yml"
        )
        return looked.leave(subject, remedy, LeftAloneBecause.NEEDS_REQUEST, reason)
    running = kernel.release.value
    return looked.step(
        subject,
        KernelGuardChange(stage="install", packages=_pinned(pin.packages), release=pin.release),
        basis=_kernel_basis(looked),
        why=finding.reason,
        safe=(
            "the package is unpacked and its machine code read first: one that is not guarded or equivalent is refused",
            "the running kernel stays installed and stays the default: the new one is booted once",
            "nothing is removed, nothing is rebooted",
        ),
        takes_effect=_REBOOT_IS_YOURS,
        guest_loses=(),
        diff="\n".join(
            (
                f"   running {running}",
                *(f"+  {package.name} {package.version}" for package in pin.packages),
                f"-  boots next: {kernel.boots_next.value or 'not known'}",
                f"+  boots next: {pin.release}, once",
            )
        ),
        savings=_saved_by_the_guard(looked),
        reversible=False,
    )


def _saved_by_the_guard(looked: LookedAt) -> tuple[SavingPerExit, ...]:
    """Only of guests whose PMU is off in KVM: where there is none, the guard alone saves nothing."""
    links = (link for domain in looked.judged.domains for link in domain.report.chain.links)
    cleared = looked.judged.host.host_clears is Tri.YES or any(link.name is LinkName.PROPAGATED and link.holds is Tri.YES for link in links)
    if not cleared:
        return nothing("nothing by itself: no guest here is known to have its PMU off in KVM yet")
    return saved_by_guard(looked.rulebook.costs, looked.judged.host, looked.cpu, looked.mitigation_classes)


def _promote(looked: LookedAt) -> Decision:
    """The pinned kernel runs, and another one is the default: it is made the default, once it is seen to be healthy."""
    kernel, verdict = looked.facts.kernel, looked.judged.host.kernel
    pin = _pin(looked, looked.remedies.kernels)
    if (
        pin is None
        or kernel.release.value != pin.release
        or verdict.state not in _HELPFUL
        or looked.facts.target.kind is not TargetKind.LOCAL
    ):
        return None
    if kernel.boots_next.value == pin.release:
        return None
    subject = looked.judged.host_subject
    if kernel.boots_next.value is None:
        reason = f"{pin.release} runs; whether it is the default cannot be told: {kernel.boots_next.reason}"
        return looked.leave(subject, Remedy.KERNEL_GUARD, LeftAloneBecause.UNKNOWN, reason)
    return looked.step(
        subject,
        KernelGuardChange(stage="promote", packages=_pinned(pin.packages), release=pin.release),
        basis=_kernel_basis(looked),
        why=f"{pin.release} runs and is {verdict.state.value}, but {kernel.boots_next.value} would boot next",
        safe=(
            "the running kernel is checked first: its code, the system's state, libvirt, /dev/kvm, no oops",
            "only the boot loader's default changes",
        ),
        takes_effect="at the next boot of the host",
        guest_loses=(),
        diff=f"-  boots next: {kernel.boots_next.value}\n+  boots next: {pin.release}",
        savings=nothing("the saving is in force already: this keeps it over the next reboot"),
        reversible=False,
    )


def _qemu(looked: LookedAt, finding: Finding) -> Decision:
    remedy, subject = Remedy.QEMU_PMU_CAP, finding.subject
    pin = _pin(looked, looked.remedies.qemus)
    if pin is None:
        return looked.leave(subject, remedy, LeftAloneBecause.NOT_PINNED, _no_pin(looked, "QEMU", "qemus"))
    if looked.remedies.mode is not Mode.WINDOWED:
        reason = "QEMU is upgraded inside a maintenance window only: set mode: windowed and windows in the policy's remedies"
        return looked.leave(subject, remedy, LeftAloneBecause.NEEDS_REQUEST, reason)
    if not pin.migration_checked:
        reason = (
            "where guests migrate between a QEMU before 11.0 and one from 11.0 on, the PMU of a running guest changes: set "
            "migration_checked: true beside the pin once every host that they migrate to is to be upgraded"
        )
        return looked.leave(subject, remedy, LeftAloneBecause.NEEDS_REQUEST, reason)
    if looked.untouchable:
        reason = f"guests that may not be touched would get this QEMU at their next start: {_named(looked.untouchable)}"
        return looked.leave(subject, remedy, LeftAloneBecause.GUEST_WOULD_LOSE, reason)
    unread = [
        domain.name
        for domain in looked.judged.facts.domains
        for each in (domain.definition, domain.run)
        if each is not None and not each.known
    ]
    if unread:
        reason = f"the machine types in use are not all known: {', '.join(sorted(set(unread))[:5])} cannot be read"
        return looked.leave(subject, remedy, LeftAloneBecause.UNKNOWN, reason)
    machines = sorted(
        {
            each.value.machine
            for domain in looked.judged.facts.domains
            for each in (domain.definition, domain.run)
            if each is not None and each.value is not None and each.value.machine
        }
    )
    return looked.step(
        subject,
        QemuPmuCapChange(packages=_pinned(pin.packages), machine_types=tuple(machines)),
        basis={"qemu": [binary.model_dump(mode="json") for binary in looked.facts.qemu.value or ()], "machine_types": machines},
        why=finding.reason,
        safe=(
            "the package is unpacked first: one that does not tell KVM, or lacks a machine type in use, is refused",
            "running guests keep the QEMU that they were started with",
            "the operator has checked where these guests migrate to",
        ),
        takes_effect="at each guest's next cold start, or with its migration to this host",
        guest_loses=(*_PERF_LOST, "on AMD, guests whose PMU is off only by default lose the one that worked until now"),
        diff="\n".join(f"+  {package.name} {package.version}" for package in pin.packages),
        savings=saved_by_pmu_off(looked.rulebook.costs, looked.judged.host, looked.cpu, looked.mitigation_classes),
        reversible=False,
    )


def _kvm(looked: LookedAt, finding: Finding) -> Decision:
    remedy, subject, facts = Remedy.KVM_ENABLE_PMU_OFF, finding.subject, looked.facts
    if not looked.remedies.opted_out_guests_stay_away:
        reason = (
            "a guest that asks for its PMU and comes to this host later would silently not get it: set opted_out_guests_stay_away: true "
            "in the policy's remedies once placement and migration keep such guests away"
        )
        return looked.leave(subject, remedy, LeftAloneBecause.GUEST_WOULD_LOSE, reason)
    if facts.kvm.module.value is None:
        return looked.leave(subject, remedy, LeftAloneBecause.UNKNOWN, f"how KVM is built cannot be seen: {facts.kvm.module.reason}")
    if facts.kvm.module.value.form == "built_in":
        reason = "KVM is built in: set kvm.enable_pmu=N on the kernel's command line"
        return looked.leave(subject, remedy, LeftAloneBecause.NO_REMEDY, reason)
    for observed, what in ((facts.libvirt.listing, "libvirt's domains"), (facts.unmanaged, "guests outside libvirt")):
        if observed.reason is not None:
            return looked.leave(subject, remedy, LeftAloneBecause.UNKNOWN, f"{what} cannot be seen: {observed.reason}")
    if facts.unmanaged.value:
        reason = f"{len(facts.unmanaged.value)} guests run outside libvirt: whether they use their PMU is not known"
        return looked.leave(subject, remedy, LeftAloneBecause.GUEST_WOULD_LOSE, reason)
    wanted = [domain.report.name for domain in looked.judged.domains if domain.given.asked_on is not Tri.NO]
    strangers = [domain.name for domain in looked.judged.facts.domains if domain.owner.kind is OwnerKind.UNKNOWN]
    for names, what in (
        (wanted, "asked for their PMU, or may have"),
        (looked.untouchable, "may not be touched"),
        (strangers, "of an owner unknown"),
    ):
        if names:
            return looked.leave(subject, remedy, LeftAloneBecause.GUEST_WOULD_LOSE, f"guests {what}: {_named(names)}")
    return looked.step(
        subject,
        KvmEnablePmuOffChange(),
        basis={
            "parameters": {name: value for name, value in sorted((facts.kvm.parameters.value or {}).items()) if name.startswith("kvm.")},
            "form": facts.kvm.module.value.form,
            "domains": sorted(domain.uuid for domain in looked.judged.facts.domains),
        },
        why=finding.reason,
        safe=(
            "no guest of this host asks for its PMU, and the operator keeps others away",
            "one file below /etc/modprobe.d: no module is unloaded, nothing is rebooted",
        ),
        takes_effect="when the kvm module is loaded next: at the host's next boot",
        guest_loses=_PERF_LOST,
        diff="+  /etc/modprobe.d: options kvm enable_pmu=N",
        savings=saved_by_pmu_off(looked.rulebook.costs, looked.judged.host, looked.cpu, looked.mitigation_classes),
        reversible=False,
    )


def _named(names: Iterable[str], most: int = 5) -> str:
    told = sorted(names)
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")


def _kernel_basis(looked: LookedAt) -> dict[str, object]:
    kernel = looked.facts.kernel
    return {
        "release": kernel.release.value,
        "build_id": kernel.build_id.value,
        "installed": [each.release for each in kernel.installed.value or ()],
        "boots_next": kernel.boots_next.value,
    }


def _pin(looked: LookedAt, pins: Iterable[_P]) -> _P | None:
    """The pin for the host's distribution."""
    distribution = looked.facts.kernel.distribution.value
    if distribution is None:
        return None
    named = (distribution.id, distribution.version_id)
    return next((pin for pin in pins if (pin.distribution, pin.distribution_version) == named), None)


def _no_pin(looked: LookedAt, what: str, key: str) -> str:
    distribution = looked.facts.kernel.distribution.value
    name = "this host, whose distribution is not known" if distribution is None else f"{distribution.id} {distribution.version_id}"
    return f"no {what} is pinned for {name}: name its packages under remedies.{key} of the policy"


def _pinned(packages: Iterable[Package]) -> tuple[PinnedPackage, ...]:
    return tuple(PinnedPackage(name=package.name, version=package.version) for package in packages)
