"""The cost lab: `exitguard measure` on kernels with and without the guard, beside a loop in C and the cost matrix.

`cost_lab.py` observes and tells; `--readme` also keeps the recording for the tests and writes the tables into tests/lab/README.md;
`--table` observes nothing, and tells of the recording that is kept. Ends with 1 where something does not agree, and with 3 where the lab
could not run.
"""

import argparse
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))  # what the labs share

from cost_figures import accounting_of, figures_of, rows_without_counterpart, savings_of
from cost_host import make_root, why_no_agent
from cost_recording import (
    COUNTED_LOOP,
    COUNTED_MEASUREMENT,
    MEASUREMENT,
    PROGRAMS,
    HostRun,
    Origin,
    Recording,
    loop_name,
    loop_words,
    read_counted,
    read_exits_made,
    read_loop,
    read_measurement,
    read_recording,
    write_recording,
)
from cost_table import BEGIN, END, block_of, disagreements
from debian_packages import PackagesError, why_no_packages
from emulated_host import Kernels, LabError, boot, emulator, make_disk, why_no_host
from marked_block import NoPlaceError, with_block

from exitguard.facts.machine_code.container import read_elf
from exitguard.facts.machine_code.image import load_image
from exitguard.facts.machine_code.skip import read_skip
from exitguard.model.loop import Loop
from exitguard.model.machine_code import MachineCode
from exitguard.model.measurement import Arm
from exitguard.policy.load import load_rulebook

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / ".local/lab-kernels"
FOLDER = ROOT / ".local/lab-cost"
RESULTS = ROOT / ".local/lab-results"
RECORDED = Path(__file__).with_name("recorded.json")
README = ROOT / "tests/lab/README.md"
LINEAGES = ("6.1", "6.12")
VARIANTS = ("stock-pmu", "guarded-pmu")
MITIGATIONS: tuple[Literal["off", "auto"], ...] = ("off", "auto")
_DISAGREES, _CANNOT_RUN = 1, 3


@dataclass(frozen=True)
class Effort:
    """How much is run in one host. A round is to be shorter than the time between two timer interrupts: four million instructions."""

    loops: tuple[Loop, ...] = tuple(Loop)
    arms: tuple[Arm, ...] = tuple(Arm)
    iterations: int = 400
    rounds: int = 40
    counted_rounds: int = 10

    @property
    def plan(self) -> tuple[str, ...]:
        """Lines for the host's init: how, name, program, words."""
        words = f"--format json --iterations {self.iterations} --seconds 60"
        loops = " ".join(f"--loop {loop}" for loop in self.loops)
        counted = loop_words("cpuid", Arm.AS_CREATED, self.iterations, self.counted_rounds)
        return (
            f"tell {MEASUREMENT} exitguard measure {words} {loops} --rounds {self.rounds}",
            *(
                f"tell {loop_name(program, arm)} exit_loop {loop_words(program, arm, self.iterations, self.rounds)}"
                for program in PROGRAMS
                for arm in self.arms
            ),
            f"counted {COUNTED_LOOP} exit_loop {counted}",
            f"counted {COUNTED_MEASUREMENT} exitguard measure {words} --loop cpuid --rounds {self.counted_rounds}",
        )


def observe(folder: Path, kernels: tuple[Kernels, ...], effort: Effort) -> Recording:
    """One boot for each lineage, variant and mitigations. Raises LabError, PackagesError."""
    missing = [*(each.why_not(VARIANTS) for each in kernels), why_no_packages(), why_no_host(), why_no_agent()]
    for reason in missing:
        if reason is not None:
            raise LabError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "disk-root"
    make_root(root, folder)
    (root / "lab/plan").write_text("\n".join(effort.plan) + "\n")
    hosts = []
    for lineage in kernels:
        shutil.rmtree(root / "lab/modules")
        (root / "lab/modules").mkdir()
        lineage.put_modules(VARIANTS, root / "lab/modules")
        disk = make_disk(root, folder / "disk")
        hosts += [_host(disk, lineage, variant, mitigations, effort) for mitigations in MITIGATIONS for variant in VARIANTS]
        disk.unlink()
    shutil.rmtree(root)
    origin = Origin(
        recorded_at=datetime.now(UTC),
        command="make lab",
        kernels={each.folder.name: each.built_from for each in kernels},
        emulator=emulator(),
    )
    return Recording(origin=origin, hosts=tuple(hosts))


def _host(disk: Path, kernels: Kernels, variant: str, mitigations: Literal["off", "auto"], effort: Effort) -> HostRun:
    started = time.monotonic()
    folder = disk.parent
    here = folder / f"{kernels.folder.name}-{variant}-{mitigations}"
    here.mkdir(exist_ok=True)
    told = boot(here, disk, kernels.image, f"mitigations={mitigations} lab.variant={variant}")
    run = HostRun(
        lineage=kernels.folder.name,
        variant=variant,
        mitigations=mitigations,
        patches_sha256=kernels.patches_sha256(variant),
        code=_code(kernels, variant),
        measurement=read_measurement(told, MEASUREMENT),
        loops=tuple(read_loop(told, program, arm, effort.iterations) for program in PROGRAMS for arm in effort.arms),
        counted_loop_exits=read_exits_made(told, COUNTED_LOOP),
        counted_loop=read_counted(told, COUNTED_LOOP),
        counted_measurement=read_measurement(told, COUNTED_MEASUREMENT),
        counted_during_measurement=read_counted(told, COUNTED_MEASUREMENT),
    )
    _say(f"{kernels.folder.name}, {variant}, mitigations={mitigations}: {time.monotonic() - started:.0f} s")
    return run


def _code(kernels: Kernels, variant: str) -> MachineCode:
    """What the instructions of the variant's kvm.ko show. Where this checkout lies is nobody's business."""
    with kernels.module(variant, "kvm.ko").open("rb") as file:
        image = load_image(read_elf(file, name="kvm.ko"), path=f"{kernels.release}/{variant}/kvm.ko")
    return read_skip(image)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--readme", action="store_true", help="keep the recording for the tests, and write the tables into tests/lab/README.md"
    )
    parser.add_argument("--table", action="store_true", help="observe nothing: tell of the recording that is kept")
    asked = parser.parse_args()
    if asked.table:
        recording = read_recording(RECORDED)
    else:
        try:
            recording = observe(FOLDER, tuple(Kernels(KERNELS / lineage) for lineage in LINEAGES), Effort())
        except (LabError, PackagesError) as error:
            _say(f"The cost lab cannot run here: {error}")
            return _CANNOT_RUN
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_recording(recording, RESULTS / "cost.json")
    costs = load_rulebook().costs
    try:
        figures, savings, accounting = figures_of(recording), savings_of(recording, costs), accounting_of(recording)
    except ValueError as error:
        _say(f"What was observed cannot be compared: {error}")
        return _DISAGREES
    block = block_of(recording, figures, savings, accounting)
    sys.stdout.write(block)
    wrong = disagreements(figures, savings, accounting)
    wrong += tuple(
        f"{row}: the cost matrix says that this lab counted it, and it did not" for row in rows_without_counterpart(savings, costs)
    )
    for sentence in wrong:
        _say(sentence)
    if wrong:
        return _DISAGREES
    if asked.readme:
        try:
            README.write_text(with_block(README.read_text(), block, BEGIN, END))
        except NoPlaceError as error:
            _say(f"tests/lab/README.md: {error}")
            return _DISAGREES
        if not asked.table:
            write_recording(recording, RECORDED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
