"""The cost lab's figures as Markdown tables, and the lines of tests/lab/README.md between which they stand. Pure."""

import textwrap
from collections.abc import Iterable, Sequence

from cost_figures import MOST_APART, TOLERANCE_INSTRUCTIONS, Accounting, Figure, Place, Saving
from cost_recording import HostRun, Recording

from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm

BEGIN = "<!-- cost lab: begin; scripts/lab.sh --readme writes what stands between these two lines -->"
END = "<!-- cost lab: end -->"
_WIDTH = 130
_LOOPS = {
    Loop.CPUID: "CPUID",
    Loop.MSR: "RDMSR",
    Loop.IO: "OUT, eventfd",
    Loop.HYPERCALL: "hypercall",
    Loop.HLT: "hypercall that wakes, and HLT; of each",
}


def block_of(recording: Recording, figures: Sequence[Figure], savings: Sequence[Saving], accounting: Sequence[Accounting]) -> str:
    """All tables with what they rest on."""
    parts = (
        _wrapped(_intro(recording)),
        _cost_table(figures, recording.hosts),
        _wrapped(
            f"Figures agree where exitguard is within {MOST_APART:.0%} of the loop in C. What that makes of each change, beside the cost "
            f"matrix (`policies/costs.yaml`), which is to be within {TOLERANCE_INSTRUCTIONS} instructions of both:"
        ),
        _saving_table(savings),
        _wrapped("The same change for other exits, by exitguard: PMU on and off, and what PMU off saves."),
        _loop_table(figures),
        _wrapped(_accounted(accounting)),
    )
    return "\n".join(parts)


def disagreements(figures: Iterable[Figure], savings: Iterable[Saving], accounting: Iterable[Accounting]) -> tuple[str, ...]:
    """What does not agree, a sentence each."""
    wrong = [
        f"{_place(each.place)}, {each.loop}, {each.arm}: exitguard {each.measured:.1f}, the loop in C {each.counted:.1f}"
        for each in figures
        if not each.agrees
    ]
    for saving in savings:
        if not saving.agrees:
            counts = f"exitguard {saving.measured:.1f}, the loop in C {saving.counted:.1f}, the cost matrix {saving.predicted}"
            wrong.append(f"{_place(saving.place)}, saved by {saving.saved_by}: {counts}")
    for each in accounting:
        if not each.agrees:
            counts = f"{each.made} exits for CPUID made, {each.counted} counted, {each.dropped} without a place"
            wrong.append(f"{_place(each.place)}, {each.by}: {counts}")
    return tuple(wrong)


def _intro(recording: Recording) -> str:
    origin = recording.origin
    releases = " and ".join(built.get("release", "unknown") for built in origin.kernels.values())
    emulated = f"on an emulated AMD processor ({origin.emulator})"
    return (
        f"Instructions per CPUID exit. Counted by `{origin.command}` on {origin.recorded_at:%Y-%m-%d}: Linux {releases}, told of a PMU, "
        f"{emulated}. `exitguard measure` ran in there; the loop in C shares no code with it. *Bare* is a guest that was given no CPUID, "
        "by the loop in C: what an exit takes depends on such things, what is saved of it does not. The totals in the notes of the cost "
        "matrix are of yet another loop, but for four of body A under mitigations=auto, which this loop in C counted."
    )


def _cost_table(figures: Sequence[Figure], hosts: Sequence[HostRun]) -> str:
    by_place = {(each.place, each.arm): each for each in figures if each.loop is Loop.CPUID}
    lines = [
        "| kernel | mitigations | PMU on: exitguard | loop in C | bare | PMU off: exitguard | loop in C | bare | agree |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for place, host in zip(dict.fromkeys(place for place, _ in by_place), hosts, strict=True):
        bare = {each.arm: each.ticks_per_exit for each in host.loops if each.program == "bare"}
        arms = [by_place[place, arm] for arm in Arm]
        cells = [f"{each.measured:.1f} | {each.counted or 0:.1f} | {bare[each.arm]:.1f}" for each in arms]
        agree = "yes" if all(each.agrees for each in arms) else "**no**"
        lines.append(f"| {_kernel(host.lineage, place)} | {place.mitigations} | {' | '.join(cells)} | {agree} |")
    return "\n".join(lines) + "\n"


def _saving_table(savings: Iterable[Saving]) -> str:
    lines = [
        "| saved by | body | mitigations | exitguard | loop in C | cost matrix | row | agree |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for each in savings:
        what = _change(each)
        predicted, row = ("-", "none") if each.row is None else (str(each.predicted), f"`{each.row.id}`")
        figures = f"{_whole(each.measured)} | {_whole(each.counted)} | {predicted}"
        place = f"{each.place.body.value} | {each.place.mitigations}"
        lines.append(f"| {what} | {place} | {figures} | {row} | {'yes' if each.agrees else '**no**'} |")
    return "\n".join(lines) + "\n"


def _loop_table(figures: Sequence[Figure]) -> str:
    lines = [f"| kernel | mitigations | {' | '.join(_LOOPS.values())} |", f"| --- | --- |{' --- |' * len(_LOOPS)}"]
    by_all = {(each.lineage, each.place, each.loop, each.arm): each for each in figures}
    for lineage, place in dict.fromkeys((each.lineage, each.place) for each in figures):
        cells = []
        for loop in _LOOPS:
            on, off = (by_all[lineage, place, loop, arm].measured for arm in Arm)
            cells.append(f"{on:.0f} / {off:.0f} / {_whole(on - off)}")
        lines.append(f"| {_kernel(lineage, place)} | {place.mitigations} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _accounted(accounting: Sequence[Accounting]) -> str:
    exact = sum(each.agrees for each in accounting)
    made = sum(each.made for each in accounting)
    return (
        f"While the loop in C and `exitguard measure` ran, a hist trigger on `kvm:kvm_exit` counted exits by their reason: in {exact} of "
        f"{len(accounting)} runs exactly the exits for CPUID that were made, {made:,} together."
    )


def _kernel(lineage: str, place: Place) -> str:
    return f"{lineage}, body {place.body.value}, {'guarded' if place.guard else 'stock'}"


def _place(place: Place) -> str:
    return f"body {place.body.value}, {'guarded' if place.guard else 'stock'}, mitigations={place.mitigations}"


def _change(saving: Saving) -> str:
    match saving.saved_by:
        case "pmu_off":
            return f"PMU off, {'guarded' if saving.place.guard else 'stock'}"
        case "guard":
            return "the guard, PMU off"
        case "guard_pmu_on":
            return "the guard, PMU on"
        case _:
            return "both"


def _whole(instructions: float) -> str:
    """Whole instructions, and no minus zero."""
    return str(round(instructions) + 0)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=_WIDTH, break_on_hyphens=False, break_long_words=False) + "\n"
