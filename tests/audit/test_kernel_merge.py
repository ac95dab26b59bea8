"""Machine code among the other evidence about the running kernel, and what an affected one costs a PMU-off guest."""

import pytest
from audit_builders import BUILD_ID, GUARD_ENTRY, RELEASE, affected_kernel, kvm_module
from test_kernel_machine_code import CONDITION, RETIRED, TRIGGER, callee, reading

from exitguard.audit.kernel import judge_kernel
from exitguard.model.host import Cpu, KernelFacts, KvmFacts, KvmModule, LivePatch
from exitguard.model.kernel import Body, EvidenceMethod, KernelState, KernelStatement, KernelVerdict
from exitguard.model.machine_code import Callee, MachineCode
from exitguard.model.record import seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import BuildVerdict, Kernels, Provenance

KERNELS = load_rulebook().kernels
EQUIVALENT = reading(RETIRED, callee=Callee(name=RETIRED, returns_when_empty=("pmc_counting_instructions",)))
GUARDED = reading(called_when_off=False)
CONDITIONAL = reading(conditions=(CONDITION,))
TORN = reading(obstacle="ends in the middle of a section")


def with_code(code: MachineCode | str, kernel: KernelFacts | None = None) -> KernelFacts:
    """A kernel with a reading; a text is the reason why there is none."""
    observed = unseen("/lib/modules", code) if isinstance(code, str) else seen(code.path, code)
    return (kernel or affected_kernel()).model_copy(update={"machine_code": observed})


def judged(
    kernel: KernelFacts, *, kernels: Kernels = KERNELS, kvm: KvmFacts | None = None, cpu: Cpu | None = None
) -> tuple[KernelVerdict, tuple[KernelStatement, ...]]:
    return judge_kernel(kernel, kvm or kvm_module(), kernels, cpu=cpu)


def decided(state: KernelState, body: Body | None = None) -> Kernels:
    """The shipped kernels, and a verdict on the build that runs."""
    build = BuildVerdict(build_id=BUILD_ID, release=RELEASE, state=state, body=body, provenance=Provenance.LAB, note="inspected")
    return KERNELS.model_copy(update={"builds": (build,)})


def methods(verdict: KernelVerdict) -> list[str]:
    return [disagreement.partition(":")[0] for disagreement in verdict.disagreements]


def test_machine_code_alone_settles_a_kernel_that_nothing_else_tells_of() -> None:
    for code, state, body in (
        (reading(), KernelState.AFFECTED, Body.A),
        (GUARDED, KernelState.GUARDED, Body.A),
        (EQUIVALENT, KernelState.EQUIVALENT, None),
        (reading(None), KernelState.NOT_AFFECTED, None),
    ):
        verdict, statements = judged(with_code(code, affected_kernel(release=None, symbols=None, changelog=None)))
        assert (verdict.state, verdict.body, verdict.disagreements) == (state, body, ())
        assert [statement.method for statement in statements] == [EvidenceMethod.MACHINE_CODE]
        assert verdict.reason.startswith(f"{code.path}: {statements[0].value}")


def test_machine_code_beats_a_build_verdict_a_changelog_symbols_and_the_version_and_shows_each() -> None:
    symbols = (RETIRED, "kvm_skip_emulated_instruction")
    kernel = affected_kernel(changelog=(GUARD_ENTRY,), symbols=symbols, release="5.15.0")
    verdict, _ = judged(
        with_code(reading(callee=callee(body=Body.B)), kernel),
        kernels=decided(KernelState.EQUIVALENT),
        kvm=kvm_module(build_id=BUILD_ID),
    )
    assert (verdict.state, verdict.body) == (KernelState.AFFECTED, Body.B)
    assert methods(verdict) == ["build_id", "changelog", "symbols", "version"]


def test_symbols_that_rule_the_state_out_are_shown_against_machine_code() -> None:
    verdict, _ = judged(with_code(EQUIVALENT, affected_kernel(changelog=None)))
    assert verdict.state is KernelState.EQUIVALENT
    assert methods(verdict) == ["symbols", "version"]


def test_two_bodies_are_a_disagreement_too() -> None:
    verdict, _ = judged(with_code(reading(callee=callee(body=Body.B))))
    assert (verdict.state, verdict.body) == (KernelState.AFFECTED, Body.B)
    assert methods(verdict) == ["version"]


def test_evidence_that_agrees_is_no_disagreement() -> None:
    assert judged(with_code(reading()))[0].disagreements == ()


@pytest.mark.parametrize(
    ("kernel", "kernels", "state"),
    [
        (affected_kernel(), decided(KernelState.GUARDED), KernelState.GUARDED),
        (affected_kernel(), decided(KernelState.AFFECTED, Body.A), KernelState.AFFECTED),
        (affected_kernel(changelog=(GUARD_ENTRY,)), KERNELS, KernelState.GUARDED),
        (affected_kernel(symbols=(RETIRED, "kvm_skip_emulated_instruction")), KERNELS, KernelState.EQUIVALENT),
        (affected_kernel(), KERNELS, KernelState.AFFECTED),
    ],
    ids=["build-id guarded", "build-id affected", "changelog", "symbols", "version, symbols and changelog"],
)
def test_where_machine_code_settles_nothing_the_next_evidence_does_and_the_reason_is_kept(
    kernel: KernelFacts, kernels: Kernels, state: KernelState
) -> None:
    verdict, statements = judged(with_code(TORN, kernel), kernels=kernels, kvm=kvm_module(build_id=BUILD_ID))
    assert verdict.state is state
    assert (statements[0].method, statements[0].state) == (EvidenceMethod.MACHINE_CODE, KernelState.UNKNOWN)
    assert statements[0].value == "ends in the middle of a section"
    assert "machine_code" not in methods(verdict)


def test_where_nothing_settles_it_the_reason_is_that_of_the_machine_code() -> None:
    verdict, _ = judged(with_code(TORN, affected_kernel(changelog=None)))
    assert verdict.state is KernelState.UNKNOWN
    assert verdict.reason.endswith("nor does anything else: ends in the middle of a section")


def test_where_the_machine_code_was_not_read_the_reason_says_why() -> None:
    for kernel in (affected_kernel(changelog=None), affected_kernel(changelog=None, symbols=None)):
        verdict, _ = judged(with_code("is another build than what runs", kernel))
        assert verdict.state is KernelState.UNKNOWN
        assert "the machine code would decide (is another build than what runs)" in verdict.reason


def test_a_call_on_a_condition_is_not_called_affected_by_version_and_silence() -> None:
    """A vendor's own guard is one such condition: names and numbers do not see it."""
    for code in (
        CONDITIONAL,
        reading(called_when_on=False),
        reading(callee=callee(other_exits=(CONDITION,))),
        reading(callee=callee(returns_when_empty=("other",))),
    ):
        verdict, _ = judged(with_code(code))
        assert verdict.state is KernelState.UNKNOWN
        assert methods(verdict) == ["machine_code", "version"]


def test_who_decided_the_build_knew_more_than_a_condition_that_is_not_recognised() -> None:
    verdict, _ = judged(with_code(CONDITIONAL), kernels=decided(KernelState.AFFECTED, Body.A), kvm=kvm_module(build_id=BUILD_ID))
    assert verdict.state is KernelState.AFFECTED
    assert methods(verdict) == ["machine_code"]
    guarded, _ = judged(with_code(CONDITIONAL, affected_kernel(changelog=(GUARD_ENTRY,))))
    assert guarded.state is KernelState.GUARDED


def test_symbols_that_miss_a_call_which_is_there_settle_nothing() -> None:
    kernel = affected_kernel(symbols=("kvm_skip_emulated_instruction",))
    assert judged(kernel)[0].state is KernelState.NOT_AFFECTED
    verdict, _ = judged(with_code(reading(callee=callee(body=None)), kernel))
    assert verdict.state is KernelState.UNKNOWN
    assert methods(verdict) == ["machine_code", "symbols", "version"]


def test_a_build_that_was_left_undecided_disagrees_with_nobody() -> None:
    verdict, _ = judged(affected_kernel(), kernels=decided(KernelState.UNKNOWN), kvm=kvm_module(build_id=BUILD_ID))
    assert (verdict.state, verdict.disagreements) == (KernelState.AFFECTED, ())


@pytest.mark.parametrize("code", [reading(), GUARDED, EQUIVALENT, reading(None)], ids=["affected", "guarded", "equivalent", "not affected"])
def test_a_live_patched_function_is_never_judged_by_the_machine_code_of_the_original(code: MachineCode) -> None:
    patch = LivePatch(name="kpatch_7", enabled=True, transition=False, replaces_skip=True)
    verdict, _ = judged(with_code(code, affected_kernel(live_patches=(patch,))))
    assert (verdict.state, verdict.body, verdict.returns_at_once) == (KernelState.UNKNOWN, None, None)
    assert "kpatch_7" in verdict.reason
    hidden = with_code(code).model_copy(update={"live_patches": unseen("/sys/kernel/livepatch", "permission denied")})
    assert judged(hidden)[0].state is KernelState.UNKNOWN


def vendor(*modules: str) -> KvmFacts:
    module = KvmModule(form="module", vendor_modules=modules)
    return kvm_module().model_copy(update={"module": seen("/sys/module/kvm", module)})


def cpu(virtualization: str) -> Cpu:
    fields = {"vendor": "GenuineIntel", "model_name": "x", "family": 6, "model": 1, "stepping": 1, "microcode": "0x1", "logical_cpus": 1}
    return Cpu.model_validate(fields | {"virtualization": virtualization, "hypervisor": False})


@pytest.mark.parametrize(
    ("body", "kvm", "processor", "expected"),
    [
        (Body.A, vendor("kvm_amd"), None, False),
        (Body.A, vendor("kvm_intel"), None, True),
        (Body.A, vendor("kvm_amd"), cpu("vmx"), False),
        (Body.A, vendor("kvm_amd", "kvm_intel"), cpu("vmx"), True),
        (Body.A, vendor("kvm_amd", "kvm_intel"), cpu("svm"), False),
        (Body.A, vendor("kvm_amd", "kvm_intel"), None, None),
        (Body.A, vendor(), cpu("svm"), False),
        (Body.A, vendor("kvm_pvm"), cpu("none"), None),
        (Body.A, vendor(), None, None),
        (Body.B, vendor("kvm_amd"), None, True),
        (Body.B, vendor("kvm_intel"), None, True),
        (Body.B, vendor(), None, True),
    ],
)
def test_whether_a_pmu_off_guests_call_returns_at_once_follows_body_and_vendor(
    body: Body, kvm: KvmFacts, processor: Cpu | None, *, expected: bool | None
) -> None:
    verdict, _ = judged(with_code(reading(callee=callee(body=body))), kvm=kvm, cpu=processor)
    assert (verdict.state, verdict.returns_at_once) == (KernelState.AFFECTED, expected)
    words = {True: "finds no counter, and returns", False: "walks the counters of a PMU-off guest too", None: "depends on the CPU's vendor"}
    assert words[expected] in verdict.reason


def test_vendor_is_not_asked_where_kvm_shows_no_module() -> None:
    hidden = kvm_module().model_copy(update={"module": unseen("/sys/module/kvm", "not loaded")})
    assert judged(with_code(reading()), kvm=hidden, cpu=cpu("svm"))[0].returns_at_once is False


def test_what_the_call_costs_is_said_of_affected_kernels_alone() -> None:
    for code in (GUARDED, EQUIVALENT, reading(None), TORN):
        verdict, _ = judged(with_code(code, affected_kernel(changelog=None)))
        assert verdict.returns_at_once is None
        assert "PMU-off guest" not in verdict.reason
    of_no_body = affected_kernel(release="5.14.0-611.el9.x86_64")
    verdict, _ = judged(of_no_body)
    assert (verdict.state, verdict.body, verdict.returns_at_once) == (KernelState.AFFECTED, None, None)
    assert TRIGGER not in verdict.reason


@pytest.mark.parametrize("running", ["00" * 20, "ff" * 20])
def test_verdict_on_another_build_says_nothing_of_this_one(running: str) -> None:
    assert (
        judged(affected_kernel(), kernels=decided(KernelState.GUARDED), kvm=kvm_module(build_id=running))[0].state is KernelState.AFFECTED
    )


def test_an_open_state_shows_disagreement_only_where_there_are_two_sides() -> None:
    alone = judged(affected_kernel(symbols=None, changelog=None))[0]
    assert (alone.state, alone.disagreements) == (KernelState.UNKNOWN, ())
    nothing = judged(affected_kernel(release=None, symbols=None, changelog=None))[0]
    assert (nothing.state, nothing.disagreements) == (KernelState.UNKNOWN, ())
    patch = LivePatch(name="kpatch_7", enabled=True, transition=False, replaces_skip=True)
    agreed = judged(with_code(reading(), affected_kernel(live_patches=(patch,))))[0]
    assert (agreed.state, agreed.disagreements) == (KernelState.UNKNOWN, ())
    two_sides = judged(with_code(GUARDED, affected_kernel(live_patches=(patch,))))[0]
    assert (two_sides.state, methods(two_sides)) == (KernelState.UNKNOWN, ["machine_code", "version"])
