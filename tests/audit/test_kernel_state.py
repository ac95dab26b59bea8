"""The state of a kernel, by the strength of the evidence."""

import pytest
from audit_builders import BUILD_ID, GUARD_ENTRY, RELEASE, affected_kernel, kvm_module

from exitguard.audit.kernel import judge_kernel
from exitguard.model.host import InstalledKernel, KernelFacts, LivePatch
from exitguard.model.kernel import Body, EvidenceMethod, KernelState, KernelVerdict
from exitguard.model.record import unseen
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import BuildVerdict, Kernels, Provenance

KERNELS = load_rulebook().kernels


def verdict(kernel: KernelFacts, kernels: Kernels = KERNELS) -> KernelVerdict:
    return judge_kernel(kernel, kvm_module(), kernels)[0]


def test_a_debian_6_1_whose_changelog_is_silent_is_affected_with_body_a() -> None:
    judged = verdict(affected_kernel())
    assert (judged.state, judged.body, judged.disagreements) == (KernelState.AFFECTED, Body.A, ())


def test_a_changelog_that_names_the_guard_makes_it_guarded_against_the_version_table_and_shows_that() -> None:
    judged = verdict(affected_kernel(changelog=(GUARD_ENTRY,)))
    assert (judged.state, judged.body) == (KernelState.GUARDED, Body.A)
    assert [text.partition(":")[0] for text in judged.disagreements] == ["version"]


def test_the_retired_function_makes_it_equivalent_whatever_the_version() -> None:
    symbols = ("kvm_pmu_instruction_retired", "kvm_pmu_trigger_event", "kvm_skip_emulated_instruction")
    judged = verdict(affected_kernel(symbols=symbols, changelog=None))
    assert (judged.state, judged.body) == (KernelState.EQUIVALENT, None)
    assert "6.1" in judged.disagreements[0]


def test_a_kernel_with_neither_helper_is_not_affected() -> None:
    assert verdict(affected_kernel(release="5.10.0-30-amd64", symbols=("kvm_skip_emulated_instruction",))).state is KernelState.NOT_AFFECTED


def test_symbols_without_kvm_say_nothing() -> None:
    judged = verdict(affected_kernel(symbols=(), changelog=None))
    assert judged.state is KernelState.UNKNOWN
    assert "only the version speaks" in judged.reason


def test_a_version_alone_never_decides() -> None:
    for release in (RELEASE, "6.18.15", "5.15.0-100-generic", "6.12.0-55.el10.x86_64"):
        assert verdict(affected_kernel(release=release, symbols=None, changelog=None)).state is KernelState.UNKNOWN


def test_symbols_and_version_without_a_changelog_leave_it_open_and_name_what_would_decide() -> None:
    judged = verdict(affected_kernel(changelog=None))
    assert judged.state is KernelState.UNKNOWN
    assert "changelog" in judged.reason
    assert "machine code" in judged.reason


def test_a_kernel_nobody_knows_with_the_helper_is_affected_or_guarded_and_no_more() -> None:
    assert verdict(affected_kernel(release="4.18.0-553.el8_10.x86_64")).state is KernelState.UNKNOWN


def test_nothing_readable_is_unknown() -> None:
    judged = verdict(affected_kernel(release=None, symbols=None, changelog=None, build_id=None))
    assert (judged.state, judged.reason) == (KernelState.UNKNOWN, "no evidence about this kernel could be read")


def test_a_build_that_was_decided_by_file_beats_the_changelog_and_the_contradiction_is_shown() -> None:
    build = BuildVerdict(
        build_id="ab" * 20, release=RELEASE, state=KernelState.AFFECTED, body=Body.B, provenance=Provenance.LAB, note="inspected"
    )
    kernels = KERNELS.model_copy(update={"builds": (build,)})
    judged, statements = judge_kernel(affected_kernel(changelog=(GUARD_ENTRY,)), kvm_module(build_id="ab" * 20), kernels)
    assert (judged.state, judged.body) == (KernelState.AFFECTED, Body.B)
    assert [text.partition(":")[0] for text in judged.disagreements] == ["changelog", "version"]
    assert statements[0].method is EvidenceMethod.BUILD_ID


def test_only_the_build_that_runs_is_recognised() -> None:
    build = BuildVerdict(build_id=BUILD_ID, release=RELEASE, state=KernelState.GUARDED, provenance=Provenance.LAB, note="inspected")
    kernels = KERNELS.model_copy(update={"builds": (build,)})
    assert judge_kernel(affected_kernel(), kvm_module(build_id=BUILD_ID), kernels)[0].state is KernelState.GUARDED
    assert judge_kernel(affected_kernel(), kvm_module(build_id="cd" * 20), kernels)[0].state is KernelState.AFFECTED


@pytest.mark.parametrize(("enabled", "transition"), [(True, False), (True, True), (False, True)])
def test_a_live_patch_of_the_function_makes_every_statement_about_the_original_worthless(enabled: bool, transition: bool) -> None:  # noqa: FBT001 - pytest passes them by name
    patch = LivePatch(name="kpatch_7", enabled=enabled, transition=transition, replaces_skip=True)
    judged = verdict(affected_kernel(changelog=(GUARD_ENTRY,), live_patches=(patch,)))
    assert (judged.state, judged.body) == (KernelState.UNKNOWN, None)
    assert "kpatch_7" in judged.reason


def test_a_live_patch_that_is_off_or_of_another_function_changes_nothing() -> None:
    off = LivePatch(name="off", enabled=False, transition=False, replaces_skip=True)
    other = LivePatch(name="other", enabled=True, transition=False, replaces_skip=False)
    assert verdict(affected_kernel(live_patches=(off, other))).state is KernelState.AFFECTED


def test_an_installed_guarded_kernel_is_a_pending_reboot() -> None:
    installed = (
        InstalledKernel(release=RELEASE, guard_entries=()),
        InstalledKernel(release="6.1.0-57-amd64", guard_entries=(GUARD_ENTRY,)),
    )
    judged = verdict(affected_kernel(installed=installed))
    assert (judged.pending_reboot, judged.pending_release) == (True, "6.1.0-57-amd64")


def test_an_installed_equivalent_kernel_is_a_pending_reboot_and_the_one_that_boots_next_is_named() -> None:
    installed = (
        InstalledKernel(release="6.18.15", guard_entries=()),
        InstalledKernel(release="6.19.3", guard_entries=()),
        InstalledKernel(release=RELEASE, guard_entries=()),
    )
    assert verdict(affected_kernel(installed=installed, boots_next="6.18.15")).pending_release == "6.18.15"
    assert verdict(affected_kernel(installed=installed)).pending_release == "6.19.3"


def test_an_installed_kernel_that_would_not_help_is_no_reason_to_reboot() -> None:
    installed = (
        InstalledKernel(release=RELEASE, guard_entries=()),
        InstalledKernel(release="6.1.0-57-amd64", guard_entries=()),
        InstalledKernel(release="5.10.0-30-amd64", guard_entries=()),
    )
    assert not verdict(affected_kernel(installed=installed)).pending_reboot


def test_a_good_kernel_never_waits_for_a_reboot() -> None:
    installed = (InstalledKernel(release="6.18.15", guard_entries=()), InstalledKernel(release=RELEASE, guard_entries=(GUARD_ENTRY,)))
    judged = verdict(affected_kernel(changelog=(GUARD_ENTRY,), installed=installed))
    assert (judged.pending_reboot, judged.pending_release) == (False, None)


def test_a_newer_build_of_the_running_release_is_a_pending_reboot() -> None:
    """Debian keeps a release name over several package versions: what is on the disk need not be what was booted."""
    installed = (InstalledKernel(release=RELEASE, guard_entries=(GUARD_ENTRY,)),)
    assert verdict(affected_kernel(installed=installed)).pending_release == RELEASE


def test_an_unknown_running_kernel_may_be_the_installed_one_that_looks_better() -> None:
    installed = (InstalledKernel(release="6.18.15", guard_entries=()),)
    assert not verdict(affected_kernel(release=None, symbols=None, changelog=None, installed=installed)).pending_reboot


def test_whether_a_live_patch_is_there_must_be_seen() -> None:
    symbols = ("kvm_pmu_instruction_retired", "kvm_skip_emulated_instruction")
    kernel = affected_kernel(symbols=symbols).model_copy(update={"live_patches": unseen("/sys/kernel/livepatch", "permission denied")})
    judged = verdict(kernel)
    assert judged.state is KernelState.UNKNOWN
    assert "permission denied" in judged.reason
