"""A measurement for a person: what an exit costs in each loop and arm, the contrast, and what was checked."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, CheckOutcome, LoopResult, Measurement
from exitguard.model.record import Observed
from exitguard.report.page import DOUBT, FAINT, GOOD, STRONG, Look, columns, counted, hanging, heading, labelled, render

_LIMIT_CHARACTERS = 600
_LOOPS = {
    Loop.CPUID: "CPUID",
    Loop.MSR: "RDMSR",
    Loop.IO: "OUT to a port",
    Loop.HYPERCALL: "hypercall",
    Loop.HLT: "hypercall and HLT",
}
_ARMS = {Arm.AS_CREATED: "as created", Arm.PMU_OFF: "PMU off"}
_OUTCOMES = {CheckOutcome.HELD: ("held", GOOD), CheckOutcome.FAILED: ("failed", DOUBT), CheckOutcome.NOT_VISIBLE: ("not visible", FAINT)}


def measurement_table(measurement: Measurement, look: Look) -> str:
    """The page: first whether it was measured, then the figures, then what they rest on."""
    return render(look, _parts(measurement, look))


def _parts(measurement: Measurement, look: Look) -> Iterator[RenderableType]:
    if measurement.refused is not None:
        yield Text.assemble(look.own("REFUSED", f"bold {DOUBT}"), look.own("  nothing that stands was measured."))
        yield look.own("exit 3", FAINT)
        yield Text()
        yield labelled(
            look,
            [
                ("why", look.foreign(measurement.refused.reason, DOUBT, limit_characters=_LIMIT_CHARACTERS)),
                ("next", look.foreign(measurement.refused.next_step, limit_characters=_LIMIT_CHARACTERS)),
            ],
        )
    else:
        yield Text.assemble(look.own("MEASURED", f"bold {GOOD}"), look.own("  what a VM exit costs here, in TSC ticks."))
        yield look.own(f"exit 0 · CPU {measurement.measured_on} · {measurement.seconds:.1f} s", FAINT)
        yield heading(look, "Ticks for each exit", _rate(measurement))
        yield _figures(measurement, look)
    yield heading(look, "Machine")
    yield labelled(look, _machine(measurement, look))
    if measurement.checks:
        yield heading(look, "Checked")
        yield labelled(look, [(check.name, _outcome(check.outcome, check.detail, look)) for check in measurement.checks])
    if measurement.refused is None:
        yield heading(look, "What this does not say")
        for caveat in measurement.caveats:
            yield hanging(look, "-", look.own(caveat))


def _rate(measurement: Measurement) -> str:
    return "" if measurement.tsc_kilohertz is None else f"TSC {measurement.tsc_kilohertz:,} kHz; 95 %: of sampling alone"


def _figures(measurement: Measurement, look: Look) -> RenderableType:
    """A line for each arm, and one for what lies between them; core cycles beside the ticks where they are known."""
    in_cycles = any(arm.cycles_per_exit is not None for result in measurement.loops for arm in result.arms)
    rows = []
    for result in measurement.loops:
        name = Text.assemble(look.own(_LOOPS[result.loop], STRONG), look.own(f"  {_detail(result)}", FAINT))
        rows.append((name, *(Text() for _ in range(3 if in_cycles else 2))))
        lines = [(_ARMS[arm.arm], arm.ticks_per_exit, arm.cycles_per_exit) for arm in result.arms]
        if result.contrast is not None:
            lines.append(("saved by PMU off", result.contrast.ticks_per_exit, result.contrast.cycles_per_exit))
        for word, ticks, cycles in lines:
            cells = [look.own(f"{ticks.median:,.1f}", STRONG), look.own(f"{ticks.low:,.1f} to {ticks.high:,.1f}", FAINT)]
            if in_cycles:
                cells.append(look.own(f"{cycles.median:,.1f}" if cycles is not None else "-"))
            rows.append((look.own(f"  {word}"), *cells))
    return columns(look, ("loop", "median", "95 %", *(["core cycles"] if in_cycles else [])), rows)


def _detail(result: LoopResult) -> str:
    rounds = min(arm.rounds for arm in result.arms)
    mean = f", mean of {result.exits_per_iteration} exits" if result.exits_per_iteration > 1 else ""
    return f"{counted(rounds, 'round')} of {result.iterations:,}{mean}"


def _machine(measurement: Measurement, look: Look) -> list[tuple[str, Text]]:
    cpu = measurement.cpu
    return [
        ("kernel", _observed(measurement.kernel_release, look)),
        ("KVM", _observed(measurement.kvm_build_id, look)),
        ("CPU", look.foreign(cpu.value.model_name) if cpu.value is not None else look.foreign(cpu.reason or "", DOUBT)),
        ("enable_pmu", _switch(measurement.enable_pmu, look)),
    ]


def _observed(observed: Observed[str], look: Look) -> Text:
    return look.foreign(observed.value) if observed.value is not None else look.foreign(observed.reason or "", DOUBT)


def _switch(observed: Observed[bool], look: Look) -> Text:
    if observed.value is None:
        return look.foreign(observed.reason or "", DOUBT)
    return look.own("Y" if observed.value else "N: cleared for every guest of this host")


def _outcome(outcome: CheckOutcome, detail: str, look: Look) -> Text:
    word, style = _OUTCOMES[outcome]
    return Text.assemble(look.own(word, style), look.own(": "), look.foreign(detail, limit_characters=_LIMIT_CHARACTERS))
