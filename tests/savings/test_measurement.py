"""A measurement stands, or is refused for the one reason that holds: readings that differ in one thing each."""

import random
from collections.abc import Iterable, Sequence

import pytest

from exitguard.model.host import Cpu
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, Check, CheckOutcome, LoopReading, ProbeReading, Refused, Round
from exitguard.savings.measurement import Measured, caveats, judge_reading

_ITERATIONS = 10_000
_ABBA = (Arm.AS_CREATED, Arm.PMU_OFF, Arm.PMU_OFF, Arm.AS_CREATED)
_ROUND_NANOSECONDS = 20_000_000
_KILOHERTZ = 2_000_000


def a_round(place: int, arm: Arm, pair: int, ticks_per_exit: float) -> Round:
    """One round of a guest whose TSC counts at 2 GHz from the time that the first round began."""
    begin = place * _ROUND_NANOSECONDS
    tsc = begin * _KILOHERTZ // 1_000_000 + 5000
    values = {
        "arm": arm,
        "pair": pair,
        "tsc_begin": tsc,
        "tsc_end": tsc + round(ticks_per_exit * _ITERATIONS),
        "begin_nanoseconds": begin,
        "end_nanoseconds": begin + _ROUND_NANOSECONDS,
        "exits_counted": 11_260,
        "exits_made": 11_251,
        "preemptions": 0,
    }
    return Round.model_validate(values)


def a_loop(groups: int = 10, *, on: float = 2455.0, off: float = 2255.0, order: Sequence[Arm] = _ABBA, **other: object) -> LoopReading:
    """Groups of rounds, each two of them in a pair of machines of their own."""
    cost = {Arm.AS_CREATED: on, Arm.PMU_OFF: off}
    size = len(order)
    rounds = tuple(a_round(place, order[place % size], place // (2 * size), cost[order[place % size]]) for place in range(groups * size))
    values = {"loop": Loop.CPUID, "iterations": _ITERATIONS, "exits_per_iteration": 1, "steal_ticks": 0, "rounds": rounds}
    return LoopReading.model_validate(values | other)


def with_rounds(loop: LoopReading, change: dict[int, dict[str, object]]) -> LoopReading:
    rounds = tuple(each.model_copy(update=change.get(place, {})) for place, each in enumerate(loop.rounds))
    return loop.model_copy(update={"rounds": rounds})


def every_round(loop: LoopReading, change: dict[str, object]) -> LoopReading:
    return with_rounds(loop, dict.fromkeys(range(len(loop.rounds)), change))


def judged(*loops: LoopReading, **other: object) -> Measured:
    values = {"measured_on": 1, "tsc_kilohertz": _KILOHERTZ, "both_arms": True, "loops": loops}
    return judge_reading(ProbeReading.model_validate(values | other), random.Random(1).randrange)  # noqa: S311 - statistics, no secret


def outcome(measured: Measured, name: str) -> CheckOutcome:
    return next(check.outcome for check in measured.checks if check.name == name)


def refusal(measured: Measured) -> str:
    assert measured.refused is not None
    assert measured.refused.next_step
    assert measured.loops == ()
    return measured.refused.reason


def test_quiet_rounds_of_two_arms_give_their_medians_and_contrast() -> None:
    (result,) = judged(a_loop()).loops
    assert [(arm.arm, arm.rounds, arm.ticks_per_exit.median) for arm in result.arms] == [
        (Arm.AS_CREATED, 20, 2455.0),
        (Arm.PMU_OFF, 20, 2255.0),
    ]
    assert result.contrast is not None
    assert (result.contrast.pairs, result.contrast.ticks_per_exit.median) == (5, 200.0)
    assert (result.pairs, result.disturbed) == (5, 0)


def test_one_arm_has_no_contrast() -> None:
    (result,) = judged(a_loop(order=(Arm.AS_CREATED, Arm.AS_CREATED)), both_arms=False).loops
    assert [arm.arm for arm in result.arms] == [Arm.AS_CREATED]
    assert result.contrast is None


def test_exits_of_an_iteration_share_its_ticks() -> None:
    (result,) = judged(a_loop(exits_per_iteration=2)).loops
    assert result.arms[0].ticks_per_exit.median == 2455.0 / 2


def test_core_cycles_are_told_only_where_every_round_has_its_ratio() -> None:
    known = every_round(a_loop(), {"cycles_per_tick": 1.25})
    (result,) = judged(known).loops
    assert result.arms[0].cycles_per_exit is not None
    assert result.arms[0].cycles_per_exit.median == 2455 * 1.25
    assert result.contrast is not None
    assert result.contrast.cycles_per_exit is not None
    assert result.contrast.cycles_per_exit.median == 250.0
    (result,) = judged(with_rounds(known, {3: {"cycles_per_tick": None}})).loops
    assert result.arms[0].cycles_per_exit is None
    assert result.contrast is not None
    assert result.contrast.cycles_per_exit is None


def test_refusal_of_the_probe_stands_with_its_checks() -> None:
    check = Check(name="real exits", outcome=CheckOutcome.FAILED, detail="426 of 100,000")
    measured = judged(a_loop(), refused=Refused(reason="software", next_step="elsewhere"), checks=(check,))
    assert refusal(measured) == "software"
    assert measured.checks == (check,)


@pytest.mark.parametrize("counted", [11_250, 426, 0, 11_251 * 2])
def test_exits_that_kvm_did_not_count_as_made_are_refused(counted: int) -> None:
    measured = judged(with_rounds(a_loop(), {7: {"exits_counted": counted}}))
    assert f"made 11,251 exits, and KVM's statistics of the vCPU counted {counted:,}, in 1 of 40 rounds" in refusal(measured)


@pytest.mark.parametrize("counted", [11_251, 11_251 + 500])
def test_interrupts_of_the_host_among_the_exits_are_allowed(counted: int) -> None:
    assert judged(every_round(a_loop(), {"exits_counted": counted})).refused is None


def test_time_that_a_hypervisor_below_took_is_refused() -> None:
    assert "steal of /proc/stat: 3" in refusal(judged(a_loop(steal_ticks=3)))


def test_steal_that_is_not_shown_is_said_to_be_not_visible() -> None:
    measured = judged(a_loop(steal_ticks=None))
    assert measured.refused is None
    assert outcome(measured, "steal") is CheckOutcome.NOT_VISIBLE


@pytest.mark.parametrize("clock", [{"cycles_per_tick": 1.0}, {"kilohertz": 2_000_000}])
def test_frequency_that_stepped_is_refused_and_one_that_held_is_not(clock: dict[str, float]) -> None:
    still = every_round(a_loop(), dict(clock))
    assert outcome(judged(still), "frequency") is CheckOutcome.HELD
    faster = {name: type(value)(value * 1.1) for name, value in clock.items()}
    stepped = with_rounds(still, {place: dict(faster) for place in range(20, 40)})
    measured = judged(stepped)
    assert "within 9.5%" in refusal(measured) or "within 10.0%" in refusal(measured)
    assert measured.refused is not None
    assert "governor" in measured.refused.next_step


def test_frequency_that_nothing_shows_is_not_visible() -> None:
    measured = judged(a_loop())
    assert measured.refused is None
    assert outcome(measured, "frequency") is CheckOutcome.NOT_VISIBLE


def test_tsc_that_changes_its_rate_is_refused() -> None:
    loop = a_loop()
    later = {
        place: {"begin_nanoseconds": each.begin_nanoseconds * 2 - loop.rounds[20].begin_nanoseconds}
        for place, each in enumerate(loop.rounds)
    }
    slowed = with_rounds(loop, {place: change for place, change in later.items() if place >= 20})
    assert "against the kernel's clock" in refusal(judged(slowed))


def test_tsc_that_is_not_what_kvm_says_is_refused() -> None:
    assert "2,100,000 as KVM says" in refusal(judged(a_loop(), tsc_kilohertz=2_100_000))


def test_time_too_short_to_compare_rates_is_not_visible() -> None:
    squeezed = tuple(each.model_copy(update={"begin_nanoseconds": place * 1000}) for place, each in enumerate(a_loop().rounds))
    measured = judged(a_loop(rounds=squeezed))
    assert outcome(measured, "TSC rate") is CheckOutcome.NOT_VISIBLE


def test_rates_are_compared_within_one_guest_alone() -> None:
    # Each pair of guests began later, with a TSC that began at zero again.
    moved = {
        place: {"begin_nanoseconds": each.begin_nanoseconds + each.pair * 10**10, "tsc_begin": each.tsc_begin - each.pair * 3 * 10**8}
        for place, each in enumerate(a_loop().rounds)
    }
    assert outcome(judged(with_rounds(a_loop(), dict(moved))), "TSC rate") is CheckOutcome.HELD


def test_contrast_is_the_difference_of_the_arms_whatever_each_pair_does_to_both() -> None:
    loop = a_loop(groups=12)
    moved = {place: {"tsc_end": each.tsc_end + each.pair * 8 * _ITERATIONS} for place, each in enumerate(loop.rounds)}
    (result,) = judged(with_rounds(loop, dict(moved))).loops
    contrast = result.contrast
    assert contrast is not None
    assert (contrast.ticks_per_exit.low, contrast.ticks_per_exit.median, contrast.ticks_per_exit.high) == (200.0, 200.0, 200.0)
    created, off = (arm.ticks_per_exit for arm in result.arms)
    assert (created.median - off.median, created.low, created.high) == (200.0, 2459.0, 2491.0)


def test_too_few_pairs_are_refused() -> None:
    assert "4 pairs of virtual machines ran the cpuid loop in the time, expected at least 5" in refusal(judged(a_loop(groups=8)))
    assert "1 pair of virtual machines ran the msr loop" in refusal(judged(a_loop(), a_loop(groups=1, loop=Loop.MSR)))


def test_no_round_at_all_is_told_so() -> None:
    measured = judged(a_loop(groups=0))
    assert "not one group of rounds of the cpuid loop came to its end in the time" in refusal(measured)
    assert measured.refused is not None
    assert "fewer --iterations" in measured.refused.next_step
    assert "not one group of rounds of any loop" in refusal(judged())


def test_groups_in_which_another_thread_ran_are_left_out_and_told() -> None:
    disturbed = with_rounds(a_loop(), {5: {"preemptions": 1, "tsc_end": 10**12}})
    (result,) = judged(disturbed).loops
    assert (result.pairs, result.disturbed) == (5, 1)
    assert [arm.rounds for arm in result.arms] == [18, 18]
    assert result.arms[1].ticks_per_exit.high == 2255.0


def test_hardly_any_quiet_group_is_refused() -> None:
    disturbed = with_rounds(a_loop(groups=48), {place * 4: {"preemptions": 1} for place in range(48) if place % 8})
    assert "in 42 of 48 groups of rounds of the cpuid loop" in refusal(judged(disturbed))
    pair_gone = with_rounds(a_loop(), {0: {"preemptions": 1}, 4: {"preemptions": 2}})
    assert "in 2 of 10 groups" in refusal(judged(pair_gone))
    # The loop with too few pairs is told, not the one with more that is disturbed.
    busier = with_rounds(a_loop(groups=20, loop=Loop.MSR), {place * 4: {"preemptions": 1} for place in range(1, 20, 2)})
    assert "in 2 of 10 groups of rounds of the cpuid loop" in refusal(judged(pair_gone, busier))


def slower(loop: LoopReading, places: Iterable[int], share: float) -> LoopReading:
    return with_rounds(loop, {place: {"tsc_end": loop.rounds[place].tsc_end + round(share * 2455 * _ITERATIONS)} for place in places})


def test_rounds_that_scatter_are_refused() -> None:
    draw = random.Random(5)  # noqa: S311 - statistics, no secret
    loop = a_loop(groups=20)
    noisy = {place: {"tsc_end": each.tsc_end + round(draw.gauss(0, 0.04) * 2455 * _ITERATIONS)} for place, each in enumerate(loop.rounds)}
    assert "% allowed" in refusal(judged(with_rounds(loop, dict(noisy))))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_a_part_of_the_rounds_that_took_another_way_is_refused(share: float) -> None:
    """As beside a hyperthread that is busy at times: the median absolute deviation of it is nothing."""
    loop = a_loop(groups=50)
    places = random.Random(3).sample(range(200), round(200 * share))  # noqa: S311 - statistics, no secret
    assert "% allowed" in refusal(judged(slower(loop, places, 0.15)))


def test_single_rounds_that_an_interrupt_prolonged_are_allowed() -> None:
    assert judged(slower(a_loop(groups=50), range(0, 200, 50), 0.5)).refused is None


def test_second_half_that_cost_more_than_the_first_is_refused() -> None:
    loop = a_loop(groups=20)
    assert "first half against the second" in refusal(judged(slower(loop, range(40, 80), 0.025)))
    assert judged(slower(loop, range(40, 80), 0.015)).refused is None


def test_what_the_figures_do_not_say_depends_on_the_machine() -> None:
    reading = ProbeReading(both_arms=True)
    cpu = Cpu.model_construct(hypervisor=True)
    assert any("body A on AMD" in sentence and "sets no verdict" in sentence for sentence in caveats(reading, None, enable_pmu=True))
    assert any("itself a virtual machine" in sentence for sentence in caveats(reading, cpu, enable_pmu=True))
    one_arm = ProbeReading(both_arms=False)
    assert any("kvm.enable_pmu is N" in sentence for sentence in caveats(one_arm, None, enable_pmu=False))
    assert any("since Linux 5.18" in sentence for sentence in caveats(one_arm, None, enable_pmu=True))
    assert all("sampling alone" in caveats(each, None, enable_pmu=None)[0] for each in (reading, one_arm))
