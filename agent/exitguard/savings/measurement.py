"""From what the probe's virtual machine showed to figures that stand, or to the reason why they do not. Pure.

Every condition is a check that is told whatever its outcome; the first that failed is why a measurement is refused.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from exitguard.model.host import Cpu
from exitguard.model.measurement import (
    Arm,
    ArmResult,
    Check,
    CheckOutcome,
    Contrast,
    Estimate,
    LoopReading,
    LoopResult,
    ProbeReading,
    Refused,
    Round,
)
from exitguard.savings.estimate import Pick, drift, estimate, estimate_difference, noise, spread

#: Fewer pairs have no interval worth the name.
LEAST_PAIRS = 5
#: More than these, and the contrast of two arms, which is a few per cent, is not told from it. The first sees rounds that scatter, the
#: second a few that took another way, as beside a hyperthread that was busy at times, the third a state that changed on the way.
#: Pairs of machines whose pages lie otherwise may differ by a per cent: that is in the interval, and no reason to refuse.
MOST_NOISE = 0.02
MOST_SPREAD = 0.05
MOST_DRIFT = 0.02
#: A core that changed its frequency by more than this did not run the rounds alike.
MOST_FREQUENCY_SPREAD = 0.02
#: The TSC against the kernel's clock; a stepping TSC is off by far more.
MOST_RATE_DIFFERENCE = 0.01
#: Of the groups, those in which another thread ran. What is left out is told.
MOST_DISTURBED_SHARE = 0.75
#: Below this, reading the clock in a program says nothing about a rate.
_LEAST_SPAN_NANOSECONDS = 50_000_000

_NEXT = {
    "real exits": "measure on a host with hardware virtualisation, on a CPU that serves few interrupts",
    "constant TSC": "measure on a processor with an invariant TSC",
    "TSC rate": "measure on a processor with an invariant TSC",
    "steal": "measure when the hypervisor below this machine has a CPU to spare, or on a machine of its own",
    "frequency": "hold the frequency still for the time of the measurement (governor performance, boost off), and measure again",
    "enough rounds": "allow more --seconds, more --rounds or fewer --iterations",
    "undisturbed": "measure when the host is quieter, or give --cpu one that is",
    "noise": "measure when the host is quieter (its SMT sibling too), or with more --iterations",
}

_ARM_WORDS = {Arm.AS_CREATED: "as created", Arm.PMU_OFF: "PMU off"}


@dataclass(frozen=True)
class Measured:
    """What a reading comes to. Where it is refused there are no loops."""

    loops: tuple[LoopResult, ...]
    checks: tuple[Check, ...]
    refused: Refused | None


def judge_reading(reading: ProbeReading, pick: Pick) -> Measured:
    """The figures of a reading with all its checks."""
    if reading.refused is not None:
        return Measured(loops=(), checks=reading.checks, refused=reading.refused)
    enough = _enough(reading.loops)
    if enough.outcome is CheckOutcome.FAILED:
        return Measured(loops=(), checks=(*reading.checks, enough), refused=_first_failed([enough]))
    rounds = [each for loop in reading.loops for each in loop.rounds]
    kept = {loop.loop: _undisturbed(loop) for loop in reading.loops}
    undisturbed = [each for pairs in kept.values() for groups in pairs for group in groups for each in group]
    checks = [
        *reading.checks,
        _real_exits(rounds),
        _rate(reading),
        _steal(reading.loops),
        _frequency(undisturbed),
        enough,
        _disturbance(reading.loops),
    ]
    failed = _first_failed(checks)
    if failed is not None:
        return Measured(loops=(), checks=tuple(checks), refused=failed)
    loops = tuple(_result(loop, kept[loop.loop], pick) for loop in reading.loops)
    checks.append(_noise(loops))
    failed = _first_failed(checks)
    return Measured(loops=() if failed else loops, checks=tuple(checks), refused=failed)


def caveats(reading: ProbeReading, cpu: Cpu | None, *, enable_pmu: bool | None) -> tuple[str, ...]:
    """What the figures do not say, in sentences."""
    found = [
        "A tight loop is the best case for caches and branch predictors; an interval covers sampling alone.",
        "Times are ticks of the TSC, which counts at its own rate. They are core cycles only where those are given beside them.",
    ]
    if any(each.cycles_per_tick is None for loop in reading.loops for each in loop.rounds):
        found.append(
            "Core cycles are not known: /dev/cpu/N/msr could not be read. The ledger counts in cycles and cannot use this measurement; "
            "load the msr module (modprobe msr) and measure as root."
        )
    if reading.both_arms:
        found.append(
            "The contrast is a cost: as created less PMU off. It is evidence on the guard only for body A on AMD; elsewhere machine code "
            "decides. This measurement sets no verdict."
        )
    elif enable_pmu is False:
        found.append("kvm.enable_pmu is N here: every virtual machine is made with its PMU off, so there is one arm and no contrast.")
    else:
        found.append("KVM_CAP_PMU_CAPABILITY is not offered here (since Linux 5.18), so there is one arm and no contrast.")
    if cpu is not None and cpu.hypervisor:
        found.append("This machine is itself a virtual machine: each exit includes what the hypervisor below it does.")
    return tuple(found)


#: Of one pair of machines, its groups of rounds as they were made: A B B A, B A A B, or two of the only arm.
_Pair = list[tuple[Round, ...]]


def _pairs(reading: LoopReading) -> list[_Pair]:
    size = 2 * len({each.arm for each in reading.rounds})
    pairs = [tuple(rounds) for _, rounds in groupby(reading.rounds, key=lambda each: each.pair)]
    return [[rounds[start : start + size] for start in range(0, len(rounds) - size + 1, size)] for rounds in pairs]


def _undisturbed(reading: LoopReading) -> list[_Pair]:
    """The pairs that have groups in which nothing else ran, and those groups."""
    kept = [[group for group in groups if not any(each.preemptions for each in group)] for groups in _pairs(reading)]
    return [groups for groups in kept if groups]


def _result(reading: LoopReading, kept: Sequence[_Pair], pick: Pick) -> LoopResult:
    exits = reading.iterations * reading.exits_per_iteration
    arms = tuple(arm for arm in Arm if any(each.arm is arm for each in reading.rounds))
    return LoopResult(
        loop=reading.loop,
        iterations=reading.iterations,
        exits_per_iteration=reading.exits_per_iteration,
        pairs=len(_pairs(reading)),
        disturbed=_count(_pairs(reading)) - _count(kept),
        arms=tuple(_arm(arm, kept, exits, pick) for arm in arms),
        contrast=_contrast(kept, exits, pick) if len(arms) > 1 else None,
    )


def _arm(arm: Arm, kept: Sequence[_Pair], exits: int, pick: Pick) -> ArmResult:
    ticks = _by_pair(kept, arm, exits, _ticks)
    flat = [value for values in ticks for value in values]
    return ArmResult(
        arm=arm,
        rounds=len(flat),
        ticks_per_exit=estimate(ticks, pick),
        cycles_per_exit=estimate(_by_pair(kept, arm, exits, _cycles), pick) if _have_cycles(kept) else None,
        noise=noise(flat),
        spread=spread(flat),
        drift=drift(flat),
        ticks_per_exit_by_round=tuple(flat),
    )


def _contrast(kept: Sequence[_Pair], exits: int, pick: Pick) -> Contrast:
    def difference(of: Callable[[Round], float]) -> Estimate:
        created, off = (_by_pair(kept, arm, exits, of) for arm in (Arm.AS_CREATED, Arm.PMU_OFF))
        return estimate_difference(created, off, pick)

    return Contrast(pairs=len(kept), ticks_per_exit=difference(_ticks), cycles_per_exit=difference(_cycles) if _have_cycles(kept) else None)


def _by_pair(kept: Sequence[_Pair], arm: Arm, exits: int, of: Callable[[Round], float]) -> list[list[float]]:
    return [[of(each) / exits for group in groups for each in group if each.arm is arm] for groups in kept]


def _count(pairs: Iterable[_Pair]) -> int:
    return sum(len(groups) for groups in pairs)


def _ticks(each: Round) -> int:
    return each.tsc_end - each.tsc_begin


def _cycles(each: Round) -> float:
    return _ticks(each) * (each.cycles_per_tick or 0.0)


def _have_cycles(pairs: Iterable[_Pair]) -> bool:
    return all(each.cycles_per_tick is not None for groups in pairs for group in groups for each in group)


def _first_failed(checks: Iterable[Check]) -> Refused | None:
    failed = next((check for check in checks if check.outcome is CheckOutcome.FAILED), None)
    return None if failed is None else Refused(reason=failed.detail, next_step=_NEXT[failed.name])


def _check(name: str, detail: str, *, held: bool | None) -> Check:
    outcome = {True: CheckOutcome.HELD, False: CheckOutcome.FAILED, None: CheckOutcome.NOT_VISIBLE}[held]
    return Check(name=name, outcome=outcome, detail=detail)


def _real_exits(rounds: Sequence[Round]) -> Check:
    wrong = [each for each in rounds if not each.exits_are_real]
    if wrong:
        detail = f"a round made {wrong[0].exits_made:,} exits, and KVM's statistics of the vCPU counted {wrong[0].exits_counted:,}"
        return _check("real exits", f"{detail}, in {len(wrong)} of {len(rounds)} rounds", held=False)
    made, counted = sum(each.exits_made for each in rounds), sum(each.exits_counted for each in rounds)
    return _check("real exits", f"the guests made {made:,} exits, and KVM's statistics counted {counted:,}", held=True)


def _rate(reading: ProbeReading) -> Check:
    """The TSC against CLOCK_MONOTONIC_RAW: in each half of the guests, since each guest's begins anew, and against what KVM says of it."""
    guests: dict[tuple[str, int], list[Round]] = {}
    for loop in reading.loops:
        for each in loop.rounds:
            if each.arm is Arm.AS_CREATED and not each.preemptions:
                guests.setdefault((loop.loop, each.pair), []).append(each)
    spans = [(rounds[0], rounds[-1]) for rounds in guests.values()]
    halves = [spans[: len(spans) // 2], spans[len(spans) // 2 :]]
    if any(sum(last.begin_nanoseconds - first.begin_nanoseconds for first, last in half) < _LEAST_SPAN_NANOSECONDS for half in halves):
        return _check("TSC rate", "the rounds took too short a time to compare the TSC with the kernel's clock", held=None)
    rates = [_kilohertz(half) for half in halves]
    if reading.tsc_kilohertz is not None:
        rates.append(float(reading.tsc_kilohertz))
    apart = max(rates) / min(rates) - 1 if min(rates) > 0 else 1.0
    said = "" if reading.tsc_kilohertz is None else f", {reading.tsc_kilohertz:,} as KVM says"
    detail = f"against the kernel's clock the TSC counted {rates[0]:,.0f} kHz, later {rates[1]:,.0f}{said}"
    return _check("TSC rate", detail, held=apart <= MOST_RATE_DIFFERENCE)


def _kilohertz(spans: Iterable[tuple[Round, Round]]) -> float:
    """Of some guests, each from its first round to its last."""
    ticks = nanoseconds = 0
    for first, last in spans:
        ticks += last.tsc_begin - first.tsc_begin
        nanoseconds += last.begin_nanoseconds - first.begin_nanoseconds
    return ticks / nanoseconds * 1e6


def _steal(readings: Sequence[LoopReading]) -> Check:
    known = [reading.steal_ticks for reading in readings if reading.steal_ticks is not None]
    if len(known) < len(readings):
        return _check("steal", "/proc/stat does not show the time that a hypervisor below takes", held=None)
    stolen = sum(known)
    detail = "no time went to a hypervisor below this machine" if not stolen else "the hypervisor below took the CPU while it was measured"
    return _check("steal", f"{detail} (steal of /proc/stat: {stolen})", held=stolen == 0)


def _frequency(rounds: Sequence[Round]) -> Check:
    ratios = [each.cycles_per_tick for each in rounds if each.cycles_per_tick is not None]
    if ratios and len(ratios) == len(rounds):
        apart = spread(ratios)
        detail = f"core cycles for each tick of the TSC (APERF/MPERF) lay within {apart:.1%}, at most {MOST_FREQUENCY_SPREAD:.0%} allowed"
        return _check("frequency", detail, held=apart <= MOST_FREQUENCY_SPREAD)
    kilohertz = [each.kilohertz for each in rounds if each.kilohertz is not None]
    if kilohertz and len(kilohertz) == len(rounds):
        apart = spread(kilohertz)
        detail = f"the CPU's frequency (scaling_cur_freq) lay within {apart:.1%}, at most {MOST_FREQUENCY_SPREAD:.0%} allowed"
        return _check("frequency", detail, held=apart <= MOST_FREQUENCY_SPREAD)
    return _check("frequency", "neither APERF/MPERF (/dev/cpu/N/msr) nor scaling_cur_freq can be read here", held=None)


def _enough(readings: Sequence[LoopReading]) -> Check:
    made = {reading.loop: len([groups for groups in _pairs(reading) if groups]) for reading in readings}
    fewest = min(made, key=lambda loop: made[loop], default=None)
    least = made[fewest] if fewest is not None else 0
    if least == 0:
        detail = f"not one group of rounds of {'any' if fewest is None else f'the {fewest}'} loop came to its end in the time"
    else:
        detail = f"{'1 pair' if least == 1 else f'{least} pairs'} of virtual machines ran the {fewest} loop in the time"
    return _check("enough rounds", f"{detail}, expected at least {LEAST_PAIRS}", held=least >= LEAST_PAIRS)


def _disturbance(readings: Sequence[LoopReading]) -> Check:
    worst = max(readings, key=lambda reading: (len(_undisturbed(reading)) < LEAST_PAIRS, _disturbed_share(reading)))
    made, left = _count(_pairs(worst)), _count(_undisturbed(worst))
    detail = (
        f"another thread took the CPU, or a signal came, in {made - left} of {made} groups of rounds of the {worst.loop} loop, which are "
        f"left out; expected {1 - MOST_DISTURBED_SHARE:.0%} of them that are left, in at least {LEAST_PAIRS} pairs of virtual machines"
    )
    held = _disturbed_share(worst) <= MOST_DISTURBED_SHARE and len(_undisturbed(worst)) >= LEAST_PAIRS
    return _check("undisturbed", detail, held=held)


def _disturbed_share(reading: LoopReading) -> float:
    return 1 - _count(_undisturbed(reading)) / _count(_pairs(reading))


def _noise(loops: Sequence[LoopResult]) -> Check:
    """Of the arm that exceeds what is allowed the most, or comes closest to it."""
    of_arms = [
        (f"rounds of the {loop.loop} loop, {_ARM_WORDS[arm.arm]}: {words}", share, most)
        for loop in loops
        for arm in loop.arms
        for words, share, most in (
            ("typical distance from their median", arm.noise, MOST_NOISE),
            ("from the 5th to the 95th of a hundred", arm.spread, MOST_SPREAD),
            ("first half against the second", arm.drift, MOST_DRIFT),
        )
    ]
    words, share, most = max(of_arms, key=lambda each: each[1] / each[2])
    return _check("noise", f"{words} {share:.2%}, at most {most:.0%} allowed", held=share <= most)
