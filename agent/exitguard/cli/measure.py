"""`exitguard measure`: what a VM exit costs on this machine, in a throw-away virtual machine. Runs because a person called it."""

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, Format, FormatOption, OutputOption, StateDirOption
from exitguard.cli.output import look_for, write_result
from exitguard.cli.target import Asked, state_dir_for
from exitguard.model.loop import Loop

if TYPE_CHECKING:
    from exitguard.facts.probe.probe import ProbeRequest
    from exitguard.facts.tree import HostTree
    from exitguard.model.measurement import Measurement

#: Which rounds a resampled median is made of; the same reading then gives the same interval.
_SEED = 7
_MOST_SECONDS = 60.0


def measure(
    context: typer.Context,
    *,
    loops: Annotated[
        list[Loop] | None,
        typer.Option("--loop", help="What the guest does over and over. May be repeated. Default: cpuid, msr, io and hlt."),
    ] = None,
    iterations: Annotated[int, typer.Option("--iterations", min=100, max=10_000_000, help="Of the loop, in each round.")] = 4000,
    rounds: Annotated[int, typer.Option("--rounds", min=10, max=10_000, help="For each loop and arm; fewer where the time is over.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=_MOST_SECONDS, help="At most, for all loops together.")] = 10.0,
    cpu: Annotated[
        int | None, typer.Option("--cpu", min=0, help="Measure on this CPU. Default: the least busy; never one that is dedicated.")
    ] = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Measure what a VM exit costs here, in TSC ticks, with the guest PMU as created and off. Uses one CPU for a few seconds.

    Makes a throw-away virtual machine on /dev/kvm; other guests are not touched, and nothing is left behind. Exit code 0: measured;
    3: refused, and the reason says what is missing.
    """
    configure_logging(context.obj, os.environ)

    from exitguard.facts.probe.probe import DEFAULT_LOOPS, ProbeRequest
    from exitguard.facts.tree import HostTree
    from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN
    from exitguard.report.json_document import json_text
    from exitguard.report.measurement_table import measurement_table

    request = ProbeRequest(
        loops=tuple(dict.fromkeys(loops or DEFAULT_LOOPS)), iterations=iterations, rounds=rounds, seconds=seconds, cpu=cpu
    )
    found = _measure(HostTree(), request, Asked(config=config, state_dir=state_dir))
    text = json_text(found) if output_format is Format.JSON else measurement_table(found, look_for(output, os.environ))
    write_result(text, output)
    raise typer.Exit(EXIT_COMPLIANT if found.refused is None else EXIT_UNKNOWN)


def _measure(tree: "HostTree", request: "ProbeRequest", asked: Asked) -> "Measurement":
    """The document: what the machine is, read before, and what its exits cost."""
    import random
    import time
    from datetime import UTC, datetime

    from exitguard.facts.cpu import read_cpu
    from exitguard.facts.kernel import read_boot_id, read_release
    from exitguard.facts.kvm import read_kvm
    from exitguard.facts.livepatch import read_live_patches
    from exitguard.facts.mitigations import read_mitigations
    from exitguard.facts.probe.probe import probe
    from exitguard.model.measurement import Measurement
    from exitguard.savings.measurement import caveats, judge_reading

    host_id, provisional = _host_id(tree, asked)
    kvm = read_kvm(tree)
    cpu = read_cpu(tree)
    observed_at = datetime.now(UTC)
    begun = time.monotonic()
    reading = probe(tree, request)
    seconds = time.monotonic() - begun
    judged = judge_reading(reading, random.Random(_SEED).randrange)  # noqa: S311 - statistics, no secret
    return Measurement(
        observed_at=observed_at,
        host_id=host_id,
        host_id_provisional=provisional,
        kernel_release=read_release(tree),
        kvm_build_id=kvm.build_id,
        boot_id=read_boot_id(tree),
        cpu=cpu,
        mitigations=read_mitigations(tree),
        enable_pmu=kvm.enable_pmu,
        live_patches=read_live_patches(tree),
        measured_on=reading.measured_on,
        tsc_kilohertz=reading.tsc_kilohertz,
        seconds=round(seconds, 3),
        loops=judged.loops,
        checks=judged.checks,
        caveats=caveats(reading, cpu.value, enable_pmu=kvm.enable_pmu.value),
        refused=judged.refused,
    )


def _host_id(tree: "HostTree", asked: Asked) -> tuple[str, bool]:
    """The id that the first audit minted, where there is one; else one that is derived, and whether it is."""
    from exitguard.facts.identity import provisional_host_id, read_hostname, read_machine_id

    directory = state_dir_for(asked, os.environ)
    if directory.exists():
        from exitguard.store.errors import StoreError
        from exitguard.store.state_dir import read_host_id

        with suppress(StoreError):
            return read_host_id(directory), False
    return provisional_host_id(read_machine_id(tree).value, read_hostname(tree).value), True
