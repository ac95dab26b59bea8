"""The cost matrix, asked for one host: each unit on its own, each row only where it speaks of this host."""

from dataclasses import replace

import audit_builders as b
import pytest

from exitguard.audit.domain import HostJudgement
from exitguard.audit.judge import judge_host
from exitguard.model.host import Cpu, MitigationClass
from exitguard.model.kernel import Body, KernelState
from exitguard.policy.load import load_rulebook
from exitguard.remedy.saving import saved_by_guard, saved_by_pmu_off

SHIPPED = load_rulebook()
ZEN_2 = Cpu(
    vendor="AuthenticAMD",
    model_name="AMD EPYC 7302 16-Core Processor",
    family=23,
    model=49,
    stepping=0,
    microcode="0x830107a",
    logical_cpus=64,
    virtualization="svm",
    hypervisor=False,
)
ICE_LAKE = ZEN_2.model_copy(
    update={"vendor": "GenuineIntel", "model_name": "Xeon Gold 6338", "family": 6, "model": 106, "virtualization": "vmx"}
)
HEAVY = (MitigationClass.HEAVY_RETURN_TAX, MitigationClass.INDIRECT_CALL_TAX)


def host(state: KernelState, body: Body | None) -> HostJudgement:
    judgement, _ = judge_host(b.facts(), SHIPPED)
    return replace(judgement, kernel=judgement.kernel.model_copy(update={"state": state, "body": body}))


def told(savings: object) -> list[tuple[str, str | None, int | None, int | None]]:
    return [(each.provenance, each.unit, each.low, each.high) for each in savings]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cpu", "mitigations", "expected"),
    [
        (ZEN_2, HEAVY, [("table", "cycles", 57, 57), ("table", "instructions", 26, 29)]),
        (ZEN_2, (MitigationClass.LOW,), [("unquantified", None, None, None), ("table", "instructions", 26, 29)]),
        (ZEN_2.model_copy(update={"family": 25}), HEAVY, [("unquantified", None, None, None), ("table", "instructions", 26, 29)]),
        (ICE_LAKE, (MitigationClass.LOW,), [("table", "cycles", 26, 26)]),
        (None, None, [("unquantified", None, None, None)]),
    ],
)
def test_the_guard_on_body_b_saves_cycles_only_where_they_were_measured(cpu: Cpu | None, mitigations: object, expected: object) -> None:
    assert told(saved_by_guard(SHIPPED.costs, host(KernelState.AFFECTED, Body.B), cpu, mitigations)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "body", "expected"),
    [
        (KernelState.GUARDED, Body.A, (204, 231)),
        (KernelState.GUARDED, Body.B, (216, 230)),
        (KernelState.AFFECTED, Body.B, (185, 197)),
        (KernelState.AFFECTED, Body.A, (0, 0)),
    ],
)
def test_switching_the_pmu_off_saves_what_was_measured_on_that_body_with_and_without_the_guard(
    state: KernelState, body: Body, expected: tuple[int, int]
) -> None:
    cycles, instructions = saved_by_pmu_off(SHIPPED.costs, host(state, body), ZEN_2, HEAVY)
    assert cycles.provenance == "unquantified"  # the author measured the guard, not the switch
    assert (instructions.low, instructions.high) == expected
    assert instructions.costs


@pytest.mark.parametrize("state", [KernelState.EQUIVALENT, KernelState.NOT_AFFECTED, KernelState.UNKNOWN])
def test_nothing_is_claimed_where_there_is_nothing_to_save_or_the_kernel_is_not_known(state: KernelState) -> None:
    assert told(saved_by_pmu_off(SHIPPED.costs, host(state, None), ZEN_2, HEAVY)) == [("unquantified", None, None, None)]
