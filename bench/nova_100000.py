"""A cloud of 100,000 instances: the pages of its API and the facts of its 2,000 compute hosts read, joined and judged.

Both works are processes of their own, so that their memory can be told; the subject is this file, run with a folder of
nova_cloud.write_cloud. Nothing goes over a network: how fast a cloud answers is not this program's doing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measurement import Contest, Measurement
from nova_cloud import Sizes, pages, write_cloud

from exitguard.act.facts_file import read_facts
from exitguard.audit.cloud import host_side, judge_cloud
from exitguard.cycle import without_collector
from exitguard.facts.openstack import parse
from exitguard.facts.openstack.pages import read_pages
from exitguard.model.cloud import CloudFacts, CloudIdentity
from exitguard.model.record import Observed, Record, seen
from exitguard.policy.load import load_rulebook

_SIZES = Sizes()
_IDENTITY = CloudIdentity(
    id="0f4a8c52-6a5e-5c49-9d0b-3e4f52a1c7d8", name="bench", region=None, microversion="2.92", microversion_offered="2.92"
)
_PARSERS: dict[str, Callable[[Mapping[str, Any]], Record]] = {
    "flavors": parse.parse_flavor,
    "images": parse.parse_image,
    "servers": parse.parse_server,
    "services": parse.parse_service,
    "hypervisors": parse.parse_hypervisor,
    "aggregates": parse.parse_aggregate,
}
_LOAD = "import json, pathlib, sys\nfor file in sorted(pathlib.Path(sys.argv[1]).rglob('*.json')):\n    json.loads(file.read_bytes())"


class _Files:
    """A listing's pages from files, in order: what a connection to the API would answer."""

    def __init__(self, folder: Path, listing: str) -> None:
        self._left = iter(pages(folder, listing))

    def get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        del parameters
        return parse.load_json(next(self._left).read_bytes(), path)


@without_collector()
def judge_everything(folder: Path) -> dict[str, object]:
    """What `exitguard nova audit` does between the answers of the API and the telling, and how long each part of it took."""
    began = time.perf_counter()
    rulebook = load_rulebook()
    listings: dict[str, Any] = {name: _listing(folder, name) for name in _PARSERS}
    cloud = CloudFacts(observed_at=datetime.now(UTC), cloud=_IDENTITY, **listings)
    listed = time.perf_counter()
    hosts = [host_side(read_facts(file), rulebook) for file in sorted((folder / "hosts").iterdir())]
    joined = time.perf_counter()
    report = judge_cloud(cloud, hosts, rulebook)
    ended = time.perf_counter()
    if (len(report.instances), report.hosts_joined) != (_SIZES.instances, _SIZES.hosts):
        raise RuntimeError(f"{len(report.instances)} instances of {report.hosts_joined} hosts were judged")
    return {
        "seconds": {"pages": round(listed - began, 1), "hosts": round(joined - listed, 1), "judging": round(ended - joined, 1)},
        "findings": len(report.findings),
        "by_origin": report.summary.by_origin,
        "by_verdict": report.summary.by_verdict,
    }


def _listing(folder: Path, name: str) -> Observed[tuple[Record, ...]]:
    return seen(f"nova: {name}", read_pages(_Files(folder, name), f"/{name}", name, _PARSERS[name], parameters={}))


def _run(*arguments: str) -> tuple[int, str]:
    """One process of this interpreter: the MiB that it had at most, and what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{arguments[0]} ended with {process.returncode}")
        output.seek(0)
        return usage.ru_maxrss >> 10, output.read()


@contextmanager
def _prepare() -> Iterator[Contest]:
    with tempfile.TemporaryDirectory(prefix="exitguard-bench-") as folder:
        write_cloud(Path(folder), _SIZES)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.json")) >> 20
        largest, told = _run(__file__, folder)
        parts = ", ".join(f"{part} {seconds} s" for part, seconds in json.loads(told)["seconds"].items())
        yield Contest(
            subject=lambda: _run(__file__, folder),
            peer=lambda: _run("-c", _LOAD, folder),
            note=f"{size} MiB of JSON; {largest} MiB of memory at most; {parts}",
        )


MEASUREMENT = Measurement(
    name="nova-100000",
    what=f"{_SIZES.instances:,} Nova instances, {_SIZES.flavors} flavors, {_SIZES.hosts:,} hosts: read, joined, judged (goal: 60 s, 1 GiB)",
    peer="json.loads of the same files, one after another",
    goal_ratio=10.0,
    pairs=1,
    prepare=_prepare,
)

if __name__ == "__main__":
    print(json.dumps(judge_everything(Path(sys.argv[1]))))
