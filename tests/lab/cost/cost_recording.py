"""What one run of the cost lab observed, nothing of it judged: per host its KVM's code, what exitguard measured, and what was counted."""

import re
from pathlib import Path
from typing import Literal

from emulated_host import LabError

from exitguard.model.finding import EXIT_UNKNOWN
from exitguard.model.machine_code import MachineCode
from exitguard.model.measurement import Arm, Measurement
from exitguard.model.record import Record
from exitguard.model.time import UtcTime

#: What the loop in C makes its guest do; `bare` is cpuid in a guest that was given no CPUID.
Program = Literal["cpuid", "msr", "bare"]
PROGRAMS: tuple[Program, ...] = ("cpuid", "msr", "bare")
MEASUREMENT, COUNTED_MEASUREMENT, COUNTED_LOOP = "measure", "counted-measure", "counted-loop"
_WORDS = {Arm.AS_CREATED: "on", Arm.PMU_OFF: "off"}
_TICKS = re.compile(r"^ticks ([0-9]+) ([0-9]+)$", re.MULTILINE)
_EXITS = re.compile(r"^exits ([0-9]+)$", re.MULTILINE)
#: A line of a hist trigger (Documentation/trace/histogram.rst).
_HITS = re.compile(r"^\{ isa: +([0-9]+), exit_reason: +([0-9]+) \} hitcount: +([0-9]+)$", re.MULTILINE)
_DROPPED = re.compile(r"^ +Dropped: ([0-9]+)$", re.MULTILINE)


class Origin(Record):
    """Where a recording is from, so that somebody else can make it again."""

    recorded_at: UtcTime
    command: str
    #: By lineage, the lines of scripts/lab_kernels.sh's `built-from`.
    kernels: dict[str, dict[str, str]]
    emulator: str


class ExitLoop(Record):
    """One run of exit_loop.c."""

    program: Program
    arm: Arm
    iterations: int
    #: By round, the ticks of a guest that does `iterations`, and of one that does twice as many.
    rounds: tuple[tuple[int, int], ...]

    @property
    def ticks_per_exit(self) -> float:
        """Of the rounds in which nothing else happened: the least, since nothing makes an instruction fewer."""
        return (min(twice for _, twice in self.rounds) - min(once for once, _ in self.rounds)) / self.iterations


class ReasonCount(Record):
    """How many exits with one reason the kernel counted; `isa` is 1 for VMX and 2 for SVM (arch/x86/kvm/trace.h)."""

    isa: int
    exit_reason: int
    hits: int


class Counted(Record):
    """What a hist trigger on kvm:kvm_exit counted while something ran."""

    reasons: tuple[ReasonCount, ...]
    #: Exits for which the histogram had no place.
    dropped: int


class HostRun(Record):
    """One boot of the lab's host."""

    lineage: str
    variant: str
    #: mitigations= of its kernel's command line.
    mitigations: Literal["off", "auto"]
    patches_sha256: str
    #: kvm.ko of the variant as exitguard reads it.
    code: MachineCode
    measurement: Measurement
    loops: tuple[ExitLoop, ...]
    #: Exits that the loop in C made, and all that were counted meanwhile; then the same of a measurement, by its document.
    counted_loop_exits: int
    counted_loop: Counted
    counted_measurement: Measurement
    counted_during_measurement: Counted


class Recording(Record):
    schema_version: Literal[1] = 1
    origin: Origin
    hosts: tuple[HostRun, ...]


def loop_name(program: Program, arm: Arm) -> str:
    """Of a run of the loop in C, in the plan of the host and among what it told."""
    return f"loop-{program}-{_WORDS[arm]}"


def loop_words(program: Program, arm: Arm, iterations: int, rounds: int) -> str:
    """The arguments of exit_loop.c."""
    return f"{program} {_WORDS[arm]} {iterations} {rounds}"


def read_measurement(told: Path, name: str) -> Measurement:
    """The document of `exitguard measure`. Raises LabError where it was none, or was refused."""
    found = Measurement.model_validate_json(_told(told, name, ended_with=("0", str(EXIT_UNKNOWN))))
    if found.refused is not None:
        raise LabError(f"{name}: exitguard refused: {found.refused.reason}; {found.refused.next_step}")
    return found


def read_loop(told: Path, program: Program, arm: Arm, iterations: int) -> ExitLoop:
    """What the loop in C printed. Raises LabError."""
    rounds = tuple((int(once), int(twice)) for once, twice in _TICKS.findall(_told(told, loop_name(program, arm))))
    if not rounds:
        raise LabError(f"{loop_name(program, arm)}: expected lines of ticks, found none")
    return ExitLoop(program=program, arm=arm, iterations=iterations, rounds=rounds)


def read_exits_made(told: Path, name: str) -> int:
    """How many exits the loop in C says that it made. Raises LabError."""
    match = _EXITS.search(_told(told, name))
    if match is None:
        raise LabError(f"{name}: expected a line of exits at its end")
    return int(match[1])


def read_counted(told: Path, name: str) -> Counted:
    """The histogram of what happened while `name` ran. Raises LabError."""
    text = (told / f"{name}.hist").read_text()
    dropped = _DROPPED.search(text)
    if dropped is None:
        raise LabError(f"{name}: the kernel's histogram of exits has no end: found\n{text[-500:]}")
    reasons = tuple(ReasonCount(isa=int(isa), exit_reason=int(reason), hits=int(hits)) for isa, reason, hits in _HITS.findall(text))
    return Counted(reasons=reasons, dropped=int(dropped[1]))


def read_recording(path: Path) -> Recording:
    """The recording in `path`. Raises pydantic's ValidationError for anything else."""
    return Recording.model_validate_json(path.read_bytes())


def write_recording(recording: Recording, path: Path) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(recording.model_dump_json(indent=1) + "\n")
    part.replace(path)


def _told(told: Path, name: str, *, ended_with: tuple[str, ...] = ("0",)) -> str:
    ended = (told / f"{name}.ended").read_text().strip()
    if ended not in ended_with:
        said = (told / f"{name}.said").read_text(errors="replace")[-1000:] or "nothing"
        raise LabError(f"{name} ended with {ended}, expected {' or '.join(ended_with)}. It said: {said}")
    return (told / name).read_text()
