"""A report over 1,000 hosts with 40 domains each, as a whole command, against reading the same files by the json module."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from measurement import Contest, Measurement

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/report/formats"))

from fleet_builder import fleet

_HOSTS, _DOMAINS = 1_000, 40
#: What people open, what is largest, and what is asked most often.
_FORMATS = ("html", "sarif", "table")


def _prepare(name: str) -> Callable[[], AbstractContextManager[Contest]]:
    @contextmanager
    def prepare() -> Iterator[Contest]:
        with tempfile.TemporaryDirectory() as folder:
            reports, output = Path(folder, "reports"), Path(folder, "output")
            reports.mkdir()
            for report in fleet(_HOSTS, _DOMAINS, 7, datetime.now(UTC)):
                (reports / f"{report.host.hostname}.json").write_text(report.model_dump_json())

            def subject() -> None:
                command = [sys.executable, "-m", "exitguard", "report", str(reports), "--format", f"{name}:{output}"]
                code = subprocess.run(command, check=False).returncode
                if code != 2 or not output.stat().st_size:
                    raise AssertionError(f"the report ended with {code}")

            subject()
            size = sum(path.stat().st_size for path in reports.iterdir()) / 2**20
            yield Contest(
                subject=subject,
                peer=lambda: [json.loads(path.read_bytes()) for path in reports.iterdir()],
                note=f"{size:.0f} MiB read, {output.stat().st_size / 2**20:.1f} MiB written, {_peak(reports, name):.0f} MiB at most; "
                "the goals are 5 s, 500 MiB and, of html, 5 MB",
            )

    return prepare


def _peak(reports: Path, name: str) -> float:
    """The largest resident set of the command, in MiB: in a process of its own, whose children are no others."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=False); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", script, sys.executable, "-m", "exitguard", "report", str(reports), "--format", f"{name}:{os.devnull}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


MEASUREMENTS = tuple(
    Measurement(
        name=f"report-{name}",
        what=f"a report over {_HOSTS:,} hosts with {_DOMAINS} domains each as {name}, the whole command",
        peer="the same files read by the json module, and nothing done with them",
        goal_ratio=goal,
        pairs=5,
        prepare=_prepare(name),
    )
    for name, goal in zip(_FORMATS, (5.0, 5.0, 3.0), strict=True)
)
