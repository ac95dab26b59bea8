"""From what the probe's virtual machine showed to figures that stand, or to the reason why they do not. Pure.

Every condition is a check that is told whatever its outcome; the first that failed is why a measurement is refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exitguard.model.host import Cpu
from exitguard.model.measurement import (
    Arm,
    ArmResult,
    Check,
    CheckOutcome,
    Contrast,
    LoopReading,
    LoopResult,
    ProbeReading,
    Refused,
    Round,
)
from exitguard.savings.estimate import Pick, abba_contrast, estimate, noise, spread

#: Fewer groups have no interval worth the name.
LEAST_GROUPS = 5
#: More than this, and the contrast of two arms, which is a few per cent, is not told from it.
MOST_NOISE = 0.02
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
    "enough rounds": "allow more --seconds, or fewer --iterations",
    "undisturbed": "measure when the host is quieter, or give --cpu one that is",
    "noise": "measure when the host is quieter (its SMT sibling too), or with more --iterations",
}


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
    undisturbed = [each for groups in kept.values() for group in groups for each in group]
    checks = [
        *reading.checks,
        _real_exits(rounds),
        _rate(reading, undisturbed),
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


def _groups(reading: LoopReading) -> list[tuple[Round, ...]]:
    """The rounds as they were made: A B B A, or two of the only arm."""
    size = 2 * len({each.arm for each in reading.rounds})
    return [reading.rounds[start : start + size] for start in range(0, len(reading.rounds) - size + 1, size)] if size else []


def _undisturbed(reading: LoopReading) -> list[tuple[Round, ...]]:
    return [group for group in _groups(reading) if not any(each.preemptions for each in group)]


def _result(reading: LoopReading, groups: Sequence[tuple[Round, ...]], pick: Pick) -> LoopResult:
    exits = reading.iterations * reading.exits_per_iteration
    arms = tuple(arm for arm in Arm if any(each.arm is arm for each in reading.rounds))
    return LoopResult(
        loop=reading.loop,
        iterations=reading.iterations,
        exits_per_iteration=reading.exits_per_iteration,
        disturbed=len(_groups(reading)) - len(groups),
        arms=tuple(_arm(arm, groups, exits, pick) for arm in arms),
        contrast=_contrast(groups, exits, pick) if len(arms) > 1 else None,
    )


def _arm(arm: Arm, groups: Sequence[tuple[Round, ...]], exits: int, pick: Pick) -> ArmResult:
    mine = [[each for each in group if each.arm is arm] for group in groups]
    ticks = [[_ticks(each) / exits for each in group] for group in mine]
    flat = [value for group in ticks for value in group]
    return ArmResult(
        arm=arm,
        rounds=len(flat),
        ticks_per_exit=estimate(ticks, pick),
        cycles_per_exit=estimate([[_cycles(each) / exits for each in group] for group in mine], pick) if _have_cycles(groups) else None,
        noise=noise(flat),
        ticks_per_exit_by_round=tuple(flat),
    )


def _contrast(groups: Sequence[tuple[Round, ...]], exits: int, pick: Pick) -> Contrast:
    ticks = [[abba_contrast(*(_ticks(each) / exits for each in group))] for group in groups]
    cycles = [[abba_contrast(*(_cycles(each) / exits for each in group))] for group in groups]
    return Contrast(
        groups=len(groups),
        ticks_per_exit=estimate(ticks, pick),
        cycles_per_exit=estimate(cycles, pick) if _have_cycles(groups) else None,
    )


def _ticks(each: Round) -> int:
    return each.tsc_end - each.tsc_begin


def _cycles(each: Round) -> float:
    return _ticks(each) * (each.cycles_per_tick or 0.0)


def _have_cycles(groups: Iterable[tuple[Round, ...]]) -> bool:
    return all(each.cycles_per_tick is not None for group in groups for each in group)


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


def _rate(reading: ProbeReading, rounds: Sequence[Round]) -> Check:
    """The TSC of the first arm against CLOCK_MONOTONIC_RAW: over each half, and against what KVM says of it."""
    ours = [each for each in rounds if each.arm is Arm.AS_CREATED]
    by_loop = [part for part in _same_guest(ours) if part[-1].begin_nanoseconds - part[0].begin_nanoseconds >= _LEAST_SPAN_NANOSECONDS]
    if not by_loop:
        return _check("TSC rate", "the rounds took too short a time to compare the TSC with the kernel's clock", held=None)
    longest = max(by_loop, key=lambda part: part[-1].begin_nanoseconds - part[0].begin_nanoseconds)
    middle = longest[len(longest) // 2]
    rates = [_kilohertz(longest[0], middle), _kilohertz(middle, longest[-1])]
    if reading.tsc_kilohertz is not None:
        rates.append(float(reading.tsc_kilohertz))
    apart = max(rates) / min(rates) - 1 if min(rates) > 0 else 1.0
    said = "" if reading.tsc_kilohertz is None else f", {reading.tsc_kilohertz:,} as KVM says"
    detail = f"against the kernel's clock the TSC counted {rates[0]:,.0f} kHz, later {rates[1]:,.0f}{said}"
    return _check("TSC rate", detail, held=apart <= MOST_RATE_DIFFERENCE)


def _same_guest(rounds: Sequence[Round]) -> list[list[Round]]:
    """Rounds split where the TSC began anew: each loop has guests of its own."""
    parts: list[list[Round]] = []
    for each in rounds:
        if not parts or each.tsc_begin <= parts[-1][-1].tsc_begin:
            parts.append([])
        parts[-1].append(each)
    return parts


def _kilohertz(first: Round, last: Round) -> float:
    nanoseconds = last.begin_nanoseconds - first.begin_nanoseconds
    return (last.tsc_begin - first.tsc_begin) / nanoseconds * 1e6 if nanoseconds > 0 else 0.0


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
    made = {reading.loop: len(_groups(reading)) for reading in readings}
    fewest = min(made, key=lambda loop: made[loop], default=None)
    least = made[fewest] if fewest is not None else 0
    groups = "1 whole group" if least == 1 else f"{least} whole groups"
    which = f"of the {fewest} loop" if fewest is not None else "of any loop"
    return _check(
        "enough rounds", f"{groups} of rounds {which} were made in the time, expected at least {LEAST_GROUPS}", held=least >= LEAST_GROUPS
    )


def _disturbance(readings: Sequence[LoopReading]) -> Check:
    worst = max(readings, key=_disturbed_share)
    made, left = len(_groups(worst)), len(_undisturbed(worst))
    detail = (
        f"another thread took the CPU in {made - left} of {made} groups of rounds of the {worst.loop} loop, which are left out; expected "
        f"at least {LEAST_GROUPS} that are left, and {1 - MOST_DISTURBED_SHARE:.0%} of them"
    )
    held = _disturbed_share(worst) <= MOST_DISTURBED_SHARE and left >= LEAST_GROUPS
    return _check("undisturbed", detail, held=held)


def _disturbed_share(reading: LoopReading) -> float:
    return 1 - len(_undisturbed(reading)) / len(_groups(reading))


def _noise(loops: Sequence[LoopResult]) -> Check:
    loop, arm = max(((loop, arm) for loop in loops for arm in loop.arms), key=lambda pair: pair[1].noise)
    detail = f"rounds lay {arm.noise:.2%} from their median in the noisiest arm ({loop.loop}), at most {MOST_NOISE:.0%} allowed"
    return _check("noise", detail, held=arm.noise <= MOST_NOISE)
