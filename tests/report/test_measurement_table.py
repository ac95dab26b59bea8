"""A measurement as a page: what was measured on a real KVM, and what a refusal says."""

from pathlib import Path

import pytest

from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, ArmResult, Contrast, Estimate, LoopResult, Measurement, Refused
from exitguard.report.measurement_table import measurement_table
from exitguard.report.page import Look

WIDE, PLAIN = Look(width=120), Look(width=80, unicode=False)
#: `exitguard measure --loop cpuid --format json` on Debian's Linux 6.1 with the guard, on an AMD processor with SVM that QEMU emulates with
#: -icount, so that one instruction is one tick.
RECORDED = Measurement.model_validate_json((Path(__file__).parent / "measurement_linux_6.1_guarded.json").read_text())


def estimated(ticks: float) -> Estimate:
    return Estimate(median=ticks, low=ticks - 1, high=ticks + 1)


def two_arms(*, cycles: bool) -> Measurement:
    """The recorded one as it would be with both arms, and with core cycles where they can be read."""

    def arm(arm: Arm, ticks: float) -> ArmResult:
        return ArmResult(
            arm=arm,
            rounds=20,
            ticks_per_exit=estimated(ticks),
            cycles_per_exit=estimated(ticks * 1.5) if cycles else None,
            noise=0.001,
            spread=0.002,
            drift=0.0,
            ticks_per_exit_by_round=(ticks,) * 20,
        )

    contrast = Contrast(pairs=5, ticks_per_exit=estimated(204.4), cycles_per_exit=estimated(306.6) if cycles else None)
    arms = (arm(Arm.AS_CREATED, 2459.7), arm(Arm.PMU_OFF, 2255.3))
    result = LoopResult(loop=Loop.HLT, iterations=4000, exits_per_iteration=2, pairs=5, disturbed=0, arms=arms, contrast=contrast)
    return RECORDED.model_copy(update={"loops": (result,)})


@pytest.mark.parametrize("look", [WIDE, PLAIN], ids=["wide", "ascii"])
def test_recorded_measurement_is_told_with_its_checks_and_what_it_does_not_say(look: Look) -> None:
    text = measurement_table(RECORDED, look)
    assert text.startswith("MEASURED")
    assert "2,198.0  2,198.0 to 2,198.0" in text
    assert "TSC 1,000,000 kHz" in text
    assert "saved by PMU off" not in text
    assert "steal" in text
    assert "sampling alone" in " ".join(text.split())
    assert look.unicode or text.isascii()
    assert max(map(len, text.splitlines())) <= look.columns


@pytest.mark.parametrize("look", [WIDE, PLAIN, Look(width=60)], ids=["wide", "ascii", "narrow"])
def test_each_arm_and_what_lies_between_them_has_a_line(look: Look) -> None:
    text = measurement_table(two_arms(cycles=False), look)
    assert "hypercall and HLT" in text
    assert " ".join(text.split()).count("mean of 2 exits") == 1
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "as created 2,459.7 2,458.7 to 2,460.7" in lines
    assert "PMU off 2,255.3 2,254.3 to 2,256.3" in lines
    assert "saved by PMU off 204.4 203.4 to 205.4" in lines
    assert "core cycles" not in text.partition("Machine")[0]


def test_core_cycles_stand_beside_their_ticks_where_they_are_known() -> None:
    text = measurement_table(two_arms(cycles=True), WIDE)
    (line,) = [line for line in text.splitlines() if "saved by PMU off" in line]
    assert line.split()[-5:] == ["204.4", "203.4", "to", "205.4", "306.6"]


def test_refusal_says_why_and_what_to_do_and_shows_no_figure() -> None:
    refused = Refused(reason="the cpuid loop made 100,000 exits, and 426 were counted", next_step="measure elsewhere")
    text = measurement_table(RECORDED.model_copy(update={"refused": refused, "loops": ()}), WIDE)
    assert text.startswith("REFUSED")
    assert "426 were counted" in text
    assert "measure elsewhere" in text
    assert "2,198" not in text
    assert "What this does not say" not in text


def test_hostile_processor_name_cannot_act() -> None:
    assert RECORDED.cpu.value is not None
    cpu = RECORDED.cpu.model_copy(update={"value": RECORDED.cpu.value.model_copy(update={"model_name": "a\x1b[31mb\u202ec"})})
    text = measurement_table(RECORDED.model_copy(update={"cpu": cpu}), WIDE)
    assert "\x1b" not in text
    assert "\u202e" not in text
