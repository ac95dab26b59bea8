"""Which installed kernel would help by being booted, how that is known, and what HOST-KERNEL-REBOOT says of it."""

import pytest
from audit_builders import BUILD_ID, GUARD_ENTRY, RELEASE, affected_kernel, facts
from test_kernel_machine_code import CONDITION, RETIRED, reading

from exitguard.audit.installed_kernels import judge_installed
from exitguard.audit.judge import judge
from exitguard.model.finding import Finding, Verdict
from exitguard.model.host import InstalledKernel, KernelFacts
from exitguard.model.kernel import KernelState
from exitguard.model.machine_code import Callee, MachineCode
from exitguard.model.record import seen
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import BuildVerdict, Kernels, Provenance

RULEBOOK = load_rulebook()
KERNELS = RULEBOOK.kernels
NEWER, EQUIVALENT_BY_VERSION = "6.1.0-57-amd64", "6.18.15"
AFFECTED, GUARDED = reading(), reading(called_when_off=False)
EQUIVALENT = reading(RETIRED, callee=Callee(name=RETIRED, returns_when_empty=("pmc_counting_instructions",)))
UNSETTLED = reading(conditions=(CONDITION,), build_id=BUILD_ID)


def installed(code: MachineCode | None = None, *, release: str = NEWER, entries: tuple[str, ...] | None = None) -> InstalledKernel:
    return InstalledKernel(release=release, guard_entries=entries, machine_code=code)


def decided(state: KernelState) -> Kernels:
    build = BuildVerdict(build_id=BUILD_ID, release=NEWER, state=state, provenance=Provenance.LAB, note="read in the lab")
    return KERNELS.model_copy(update={"builds": (build,)})


def answer(
    other: InstalledKernel, *, kernels: Kernels = KERNELS, running: KernelFacts | None = None, changelog: tuple[str, ...] | None = ()
) -> tuple[bool | None, str]:
    base = running or affected_kernel(changelog=changelog)
    kernel = base.model_copy(update={"installed": seen("/lib/modules", (other,))})
    (verdict,) = judge_installed(kernel, kernels)
    assert verdict.release == other.release
    return verdict.helps, verdict.how


@pytest.mark.parametrize(
    ("code", "helps", "how"),
    [
        (GUARDED, True, "guarded by its machine code: "),
        (EQUIVALENT, True, "equivalent by its machine code: "),
        (AFFECTED, False, "affected by its machine code: "),
        (reading(None), False, "not_affected by its machine code: "),
    ],
    ids=["guarded", "equivalent", "affected", "not affected, so older"],
)
@pytest.mark.parametrize("release", [NEWER, RELEASE, EQUIVALENT_BY_VERSION])
@pytest.mark.parametrize("entries", [None, (), (GUARD_ENTRY,)])
def test_machine_code_says_whether_an_installed_kernel_helps_whatever_version_and_changelog_say(
    code: MachineCode, *, helps: bool, how: str, release: str, entries: tuple[str, ...] | None
) -> None:
    for kernels in (KERNELS, decided(KernelState.GUARDED), decided(KernelState.AFFECTED)):
        found, words = answer(installed(code.model_copy(update={"build_id": BUILD_ID}), release=release, entries=entries), kernels=kernels)
        assert found is helps
        assert words.startswith(how)


@pytest.mark.parametrize(("state", "helps"), [(KernelState.GUARDED, True), (KernelState.EQUIVALENT, True), (KernelState.AFFECTED, False)])
def test_where_the_reading_settles_nothing_the_verdict_on_its_build_does(state: KernelState, *, helps: bool) -> None:
    other = installed(UNSETTLED, release=EQUIVALENT_BY_VERSION, entries=(GUARD_ENTRY,))
    found, how = answer(other, kernels=decided(state))
    assert (found, how) == (helps, f"{state.value} by its build-id {BUILD_ID}: read in the lab")


def test_a_build_that_was_left_undecided_leaves_it_to_the_package() -> None:
    assert answer(installed(UNSETTLED, entries=(GUARD_ENTRY,)), kernels=decided(KernelState.UNKNOWN))[0] is True


@pytest.mark.parametrize("build_id", ["00" * 20, "ff" * 20, None])
def test_a_verdict_on_another_build_says_nothing_of_this_one(build_id: str | None) -> None:
    other = installed(UNSETTLED.model_copy(update={"build_id": build_id}), entries=())
    assert answer(other, kernels=decided(KernelState.GUARDED))[0] is False


@pytest.mark.parametrize("release", ["5.19.0-1-amd64", NEWER])
def test_a_changelog_of_another_release_needs_none_to_compare_with(release: str) -> None:
    assert answer(installed(release=release, entries=(GUARD_ENTRY,)), changelog=None) == (True, f"guarded by its changelog: {GUARD_ENTRY}")


def test_the_first_entry_that_names_the_guard_is_told() -> None:
    entries = (GUARD_ENTRY, "VSTOR-132543")
    assert answer(installed(entries=entries))[1].endswith(GUARD_ENTRY)
    assert answer(installed(release=RELEASE, entries=entries))[1].endswith(GUARD_ENTRY)


def test_where_no_file_settles_it_the_package_and_the_version_do() -> None:
    assert answer(installed(UNSETTLED, entries=(GUARD_ENTRY,))) == (True, f"guarded by its changelog: {GUARD_ENTRY}")
    assert answer(installed(release=EQUIVALENT_BY_VERSION)) == (True, "equivalent by its version (upstream-6.18, by source)")
    assert answer(installed(release="6.18.15-custom"))[0] is None  # taken for upstream, by inference
    helps, how = answer(installed(UNSETTLED, entries=()))
    assert helps is False
    assert how.startswith("its changelog does not name the guard, nor does its machine code settle it: ")
    helps, how = answer(installed(UNSETTLED))
    assert helps is None
    assert how.startswith("no changelog of it settles it, nor does its machine code settle it: ")
    unread = installed().model_copy(update={"machine_code_reason": "took longer than 30 s"})
    assert answer(unread) == (None, "no changelog of it settles it, and its machine code was not read: took longer than 30 s")


def test_the_files_of_the_build_that_runs_are_no_newer_build() -> None:
    tied = affected_kernel().model_copy(update={"machine_code": seen(AFFECTED.path, AFFECTED)})
    same = installed(release=RELEASE, entries=(GUARD_ENTRY,))
    assert answer(same, running=tied) == (False, "its file is the build that runs")
    assert answer(same)[0] is True  # where nothing is tied, a changelog that grew is a newer build
    unread = same.model_copy(update={"machine_code_reason": "took longer than 30 s"})
    assert answer(unread, running=tied)[0] is True
    assert answer(installed(GUARDED, release=RELEASE), running=tied)[0] is True


def test_a_newer_build_of_the_running_release_needs_the_running_changelog_to_compare_with() -> None:
    same = installed(release=RELEASE, entries=(GUARD_ENTRY,))
    for changelog in (None, (GUARD_ENTRY,)):
        helps, how = answer(same, changelog=changelog)
        assert helps is None
        assert how == "its changelog names the guard, and whether the build that runs has it is not known"
    assert answer(installed(release=RELEASE, entries=()))[0] is False
    assert answer(installed(release=RELEASE))[0] is None


def test_a_kernel_that_may_be_the_one_that_runs_is_open_whatever_its_code_says() -> None:
    nameless = affected_kernel(release=None)
    assert answer(installed(GUARDED), running=nameless) == (None, "it may be the one that runs, whose release is not known")


def reboot(*kernels: InstalledKernel, boots_next: str | None = RELEASE, changelog: tuple[str, ...] | None = ()) -> Finding:
    report = judge(facts(kernel=affected_kernel(installed=kernels, boots_next=boots_next, changelog=changelog)), RULEBOOK)
    (found,) = (finding for finding in report.findings if finding.rule == "HOST-KERNEL-REBOOT")
    return found


RUNS = InstalledKernel(release=RELEASE, guard_entries=())


def test_reboot_is_due_for_a_kernel_that_is_guarded_by_machine_code_and_the_finding_says_how_that_is_known() -> None:
    found = reboot(RUNS, installed(GUARDED), boots_next=NEWER)
    assert found.verdict is Verdict.FAIL
    assert found.reason.startswith(
        f"{NEWER} is installed and would help (guarded by its machine code: kvm_pmu_trigger_event is called only"
    )
    assert found.reason.endswith(f"but {RELEASE} runs; the boot loader would start {NEWER}")
    told = {each.source: each.value.partition(":")[0] for each in found.evidence[1:]}
    assert told == {f"installed {RELEASE}": "would not help", f"installed {NEWER}": "would help"}


def test_a_newer_build_of_the_same_release_is_named_as_such() -> None:
    found = reboot(installed(EQUIVALENT, release=RELEASE))
    assert found.verdict is Verdict.FAIL
    assert found.reason.startswith(f"a newer build of {RELEASE} is installed and would help (equivalent by its machine code: ")
    assert "but the older one runs" in found.reason


def test_boot_loader_that_would_start_one_that_does_not_help_is_told() -> None:
    found = reboot(RUNS, installed(GUARDED), installed(AFFECTED, release="6.1.0-58-amd64"), boots_next="6.1.0-58-amd64")
    assert "the boot loader would start 6.1.0-58-amd64, which would not help: affected by its machine code" in found.reason


def test_newer_kernel_that_is_affected_by_machine_code_is_said_not_to_help_though_its_version_promises_it() -> None:
    found = reboot(RUNS, installed(AFFECTED, release=EQUIVALENT_BY_VERSION))
    assert found.verdict is Verdict.PASS
    assert f"{EQUIVALENT_BY_VERSION} would not: affected by its machine code: " in found.reason
    assert RELEASE not in found.reason


def test_machine_code_closes_what_a_missing_changelog_leaves_open() -> None:
    assert reboot(RUNS, installed()).verdict is Verdict.UNKNOWN
    assert reboot(RUNS, installed(AFFECTED)).verdict is Verdict.PASS


def test_kernel_that_nothing_settles_leaves_the_rule_open_with_the_reason() -> None:
    found = reboot(RUNS, installed(reading(obstacle="ends in the middle of a section")))
    assert found.verdict is Verdict.UNKNOWN
    assert found.reason.endswith(
        f"{NEWER}: no changelog of it settles it, nor does its machine code settle it: ends in the middle of a section"
    )


def test_sentence_names_a_few_kernels_and_the_evidence_all() -> None:
    many = [installed(AFFECTED, release=f"6.1.0-{number}-amd64") for number in range(60, 66)]
    found = reboot(RUNS, *many)
    assert found.reason.count("would not: ") == 3
    assert "6.1.0-65-amd64" in found.reason
    assert len(found.evidence) == 1 + 7
