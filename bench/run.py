"""How fast this is, as ratios to peers measured in the same run: `python bench/run.py [--pairs N] [--json] [NAME ...]`.

README.md says what is measured, and what each peer is.
"""

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import audit_500
import audit_5000
import event_500
import inspect_kernel
import ledger_1m
import nova_100000
import playbook_overhead
import report_1000
import sample_30
import scrape_30
import version
from measurement import Measurement, Result, SkippedError, measure

from exitguard import __version__

MEASUREMENTS = (
    audit_500.MEASUREMENT,
    audit_5000.MEASUREMENT,
    event_500.MEASUREMENT,
    version.MEASUREMENT,
    scrape_30.MEASUREMENT,
    sample_30.MEASUREMENT,
    ledger_1m.MEASUREMENT,
    *inspect_kernel.MEASUREMENTS,
    playbook_overhead.MEASUREMENT,
    nova_100000.MEASUREMENT,
    *report_1000.MEASUREMENTS,
)


@dataclass(frozen=True)
class NotMeasured:
    """`how` is skipped, where something is missing on this machine, or broke."""

    measurement: Measurement
    how: str
    reason: str


def main() -> int:
    """Run, print, and exit with 1 where a measurement broke. Goals are no gates: one that is not met exits with 0."""
    arguments = _parse_arguments()
    # So that what a measurement has set up is cleaned up too when it is ended from outside.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    chosen = [each for each in MEASUREMENTS if not arguments.names or each.name in arguments.names]
    machine = describe_machine()
    if not arguments.json:
        print(machine)
    outcomes: list[Result | NotMeasured] = []
    for measurement in chosen:
        outcome = _measure(measurement, arguments.pairs or measurement.pairs)
        outcomes.append(outcome)
        if not arguments.json:
            print("\n" + table(outcome), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine, "measurements": [document(each) for each in outcomes]}, indent=2))
    return 1 if any(isinstance(each, NotMeasured) and each.how == "broke" for each in outcomes) else 0


def _measure(measurement: Measurement, pairs: int) -> Result | NotMeasured:
    try:
        return measure(measurement, pairs)
    except SkippedError as error:
        return NotMeasured(measurement, "skipped", str(error))
    except Exception as error:  # noqa: BLE001 - the outer edge of one measurement: the others go on, and the exit code tells
        return NotMeasured(measurement, "broke", f"{type(error).__name__}: {error}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="exitguard's speed, as ratios to peers measured in the same run")
    names = [each.name for each in MEASUREMENTS]
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(names)}; all without one")
    parser.add_argument("--pairs", type=int, metavar="N", help="pairs of each, in place of its own number")
    parser.add_argument("--json", action="store_true", help="one JSON document, with every pair")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in names]
    if unknown:
        parser.error(f"no measurement is called {', '.join(unknown)}: expected some of {', '.join(names)}")
    if arguments.pairs is not None and arguments.pairs < 1:
        parser.error("--pairs: expected 1 or more")
    return arguments


def table(outcome: Result | NotMeasured) -> str:
    """One measurement for a reader."""
    measurement = outcome.measurement
    rows = [("what", measurement.what), ("peer", measurement.peer)]
    if isinstance(outcome, NotMeasured):
        rows.append((outcome.how, outcome.reason))
    else:
        ratios = [pair.ratio for pair in outcome.pairs]
        rows += [
            ("median", f"{_time(outcome.subject_seconds)}, peer {_time(outcome.peer_seconds)}, of {len(ratios)} interleaved pairs"),
            ("ratio", f"{outcome.ratio:.2f} (lowest {min(ratios):.2f}, highest {max(ratios):.2f})"),
            ("goal", f"at most {measurement.goal_ratio:g}: {'met' if outcome.met else 'not met'}"),
        ]
        if outcome.note:
            rows.append(("note", outcome.note))
    return "\n".join((measurement.name, *(f"  {label:<8} {text}" for label, text in rows)))


def document(outcome: Result | NotMeasured) -> dict[str, object]:
    """One measurement for a program; times in microseconds, per unit of work."""
    measurement = outcome.measurement
    common: dict[str, object] = {
        "name": measurement.name,
        "what": measurement.what,
        "peer": measurement.peer,
        "goal_ratio": measurement.goal_ratio,
    }
    if isinstance(outcome, NotMeasured):
        return common | {outcome.how: outcome.reason}
    return common | {
        "note": outcome.note,
        "median_microseconds": round(outcome.subject_seconds * 1e6, 1),
        "peer_median_microseconds": round(outcome.peer_seconds * 1e6, 1),
        "ratio": round(outcome.ratio, 3),
        "met": outcome.met,
        "pairs_microseconds": [[round(pair.subject_seconds * 1e6, 1), round(pair.peer_seconds * 1e6, 1)] for pair in outcome.pairs],
    }


def describe_machine() -> str:
    """One line: what the figures are of."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return (
        f"exitguard {__version__}, Python {platform.python_version()}, Linux {platform.release()}, "
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


if __name__ == "__main__":
    sys.exit(main())
