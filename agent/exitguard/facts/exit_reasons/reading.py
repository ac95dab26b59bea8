"""Exits counted by thread and reason for a short time, and why they are not where they are not.

In a trace instance of our own a hist trigger is set on kvm:kvm_exit, paused when the time is over, read, and removed with the instance,
whatever happens meanwhile. A process that is killed leaves its instance behind, counting; the next call removes it.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exitguard.facts.clock import boottime_nanoseconds
from exitguard.facts.exit_reasons.histogram import LIMIT_BYTES, PAUSE, TRIGGER, HistogramError, missing_fields, parse
from exitguard.facts.exit_reasons.instance import (
    BUFFER_KIB_PER_CPU,
    PLACES,
    InstanceError,
    find_tracefs,
    own_instance,
    remove_leftovers,
    write,
)
from exitguard.facts.traced_exits import why_never
from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.model.exit_reasons import ExitReasons
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import SampledExits, SkipReasons

SOURCE = "histogram of kvm:kvm_exit"
_EVENT = "events/kvm/kvm_exit"
_UNLOCK = "root, and a tracefs that this service may write to"
_MOUNT = "mount -t tracefs tracefs /sys/kernel/tracing"
#: A new instance takes BUFFER_KIB_PER_CPU of each CPU for a moment: no more than 176 MiB.
MOST_CPUS = 128
#: Longer, and the last look at a killed process is too far away.
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Obstacle:
    """Why exits are not counted here, and what would change that, if anything would."""

    reason: str
    unlock: str | None = None


def why_not(tree: HostTree) -> Obstacle | None:
    """What stands against a histogram on this host; None where nothing does. Writes nothing."""
    if not tree.is_this_machine:
        return Obstacle("exits can be counted only on the machine that this runs on")
    never = why_never(tree)
    if never is not None:
        return Obstacle(never)
    tracefs = find_tracefs(tree)
    if tracefs is None:
        return Obstacle(f"no tracefs at {' or '.join(PLACES)} that this user may look into", f"{_MOUNT}; {_UNLOCK}")
    if not tree.exists(f"{tracefs}/{_EVENT}"):
        return Obstacle("there is no tracepoint kvm:kvm_exit: KVM is not loaded")
    if not tree.exists(f"{tracefs}/{_EVENT}/hist"):
        return Obstacle("this kernel was built without histograms of events (CONFIG_HIST_TRIGGERS)")
    layout = tree.read_text(f"{tracefs}/{_EVENT}/format")
    if layout.value is None:
        return Obstacle(layout.reason or "unreadable", layout.unlock)
    missing = missing_fields(layout.value)
    if missing:
        return Obstacle(f"the tracepoint kvm:kvm_exit of this kernel lacks {', '.join(missing)}")
    if not os.access(f"{tracefs}/instances", os.W_OK | os.X_OK, effective_ids=True):
        return Obstacle(f"{tracefs}/instances may not be written to", _UNLOCK)
    cpus = os.cpu_count() or 1
    if cpus > MOST_CPUS:
        mebibytes = cpus * BUFFER_KIB_PER_CPU // 1024
        return Obstacle(f"a trace instance would take {mebibytes} MiB for a moment on {cpus} CPUs; up to {MOST_CPUS} are asked for")
    return None


def read_exit_reasons(tree: HostTree, seconds: float) -> Observed[ExitReasons]:
    """All exits of all guests in `seconds`, by thread and reason; or why they were not counted. Blocks for `seconds`.

    Raises ValueError for a time that is not above 0 and at most MOST_SECONDS.
    """
    if not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"exits are counted for more than 0 and at most {MOST_SECONDS:.0f} seconds, not for {seconds}")
    obstacle = why_not(tree)
    if obstacle is not None:
        return unseen(SOURCE, obstacle.reason, unlock=obstacle.unlock)
    leftovers = remove_leftovers(tree)
    if leftovers.value is None:
        # It counts on, and costs what it costs: another one beside it would not make that better.
        return unseen(SOURCE, f"{leftovers.source}: {leftovers.reason}", unlock=leftovers.unlock)
    tracefs = find_tracefs(tree) or PLACES[0]
    try:
        return seen(SOURCE, _count(tree, tracefs, seconds))
    except (InstanceError, HistogramError) as error:
        return unseen(SOURCE, str(error))
    except OSError as error:
        return unseen(SOURCE, f"{error.filename or tracefs}: {why(error)}", unlock=unlock_for(error))


def count_exits(
    tree: HostTree, runs: Mapping[str, Sequence[int]], reasons: SkipReasons, seconds: float
) -> Observed[dict[str, SampledExits]]:
    """By run, what its vCPU threads did in `seconds`: what `traced_exits.trace_exits` tells, of any number of threads."""
    counted = read_exit_reasons(tree, seconds)
    if counted.value is None:
        return Observed(source=counted.source, reason=counted.reason, unlock=counted.unlock)
    return seen(SOURCE, {run: counted.value.of(threads, reasons) for run, threads in runs.items()})


def _count(tree: HostTree, tracefs: str, seconds: float) -> ExitReasons:
    used = time.thread_time_ns()
    with own_instance(tree, tracefs) as instance:
        trigger = instance / _EVENT / "trigger"
        write(trigger, TRIGGER)
        try:
            begin = boottime_nanoseconds()
            time.sleep(seconds)
            write(trigger, PAUSE)
            milliseconds = (boottime_nanoseconds() - begin) // 1_000_000
            counts = parse(_read(instance / _EVENT / "hist"))
        finally:
            write(trigger, f"!{TRIGGER}")
    own = (time.thread_time_ns() - used) // 1000
    return ExitReasons(milliseconds=milliseconds, counts=counts, own_processor_microseconds=own)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise HistogramError(f"the histogram is larger than {LIMIT_BYTES} bytes, which {path.name} can rightly not be")
    return content.decode("ascii", "replace")
