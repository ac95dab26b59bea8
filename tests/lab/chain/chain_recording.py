"""What one run of the chain lab observed, nothing of it judged: per host the facts, and what each guest counted."""

from pathlib import Path
from typing import Literal

from exitguard.model.documents import FactsDocument
from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class Origin(Record):
    """Where a recording is from, so that somebody else can make it again."""

    recorded_at: UtcTime
    #: What was run.
    command: str
    #: Debian's kernel, whose KVM was built in each variant: a line of scripts/lab_kernels.sh's `built-from` each.
    kernel: dict[str, str]
    #: What emulated the host's processor.
    emulator: str
    #: Exits between two readings of the TSC.
    exits_per_round: int


class HostRun(Record):
    """One boot of the lab's host with one variant of KVM."""

    variant: str
    #: Of the patches that made the variant, one after the other, as scripts/lab_kernels.sh writes it beside the modules.
    patches_sha256: str
    facts: FactsDocument
    #: By a guest's uuid, the TSC ticks of each round. By -icount that is the number of instructions.
    ticks: dict[str, tuple[int, ...]]


class Recording(Record):
    schema_version: Literal[1] = 1
    origin: Origin
    hosts: tuple[HostRun, ...]


def read_recording(path: Path) -> Recording:
    """The recording in `path`. Raises pydantic's ValidationError for anything else."""
    return Recording.model_validate_json(path.read_bytes())


def write_recording(recording: Recording, path: Path) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(recording.model_dump_json(indent=1) + "\n")
    part.replace(path)
