"""Planning 10,000 hosts with 40 domains each, from files of facts to a plan: time, peak memory, and the ratio to only parsing the JSON.

    python bench/plan_10000.py [--hosts N]

Goals: 10 s and 1 GiB. Of a host's domains 28 are Nova's, 6 are off already and 6 are to be switched off. The files are written first, and
are not part of the time; each side is a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

sys.path[:0] = [str(Path(__file__).parents[1] / "tests/audit")]

_HOSTS = 10_000
_DOMAINS = 40
_CONTENT = "sha256:" + "0" * 64


def main() -> int:
    """Write the facts, then time both sides."""
    parser = argparse.ArgumentParser(description="planning a fleet")
    parser.add_argument("--hosts", type=int, default=_HOSTS)
    parser.add_argument("--side", choices=("plan", "json"))
    parser.add_argument("folder", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.side is not None:
        return _side(arguments.side, arguments.folder)
    with tempfile.TemporaryDirectory(prefix="exitguard-bench-") as folder:
        _write_facts(Path(folder), arguments.hosts)
        sides = {side: _run(side, Path(folder)) for side in ("json", "plan")}
    plan, peer = sides["plan"], sides["json"]
    counts = f"{plan['steps']:,} steps, {plan['left_alone']:,} left alone"
    print(f"{arguments.hosts:,} hosts x {_DOMAINS} domains: {counts}, {os.cpu_count()} cores")
    print(f"  plan  {plan['seconds']:.1f} s, {plan['peak_mib']:.0f} MiB (goals for 10,000 hosts: 10 s, 1024 MiB)")
    print(f"  peer  {peer['seconds']:.1f} s: json.loads of each file, nothing else; ratio {plan['seconds'] / peer['seconds']:.1f}")
    return 0


def _run(side: str, folder: Path) -> dict[str, float]:
    result = subprocess.run([sys.executable, __file__, "--side", side, str(folder)], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def _side(side: str, folder: Path) -> int:
    files = sorted(folder.glob("*.json"))
    counts = {"steps": 0, "left_alone": 0}
    began = time.perf_counter()
    if side == "json":
        for file in files:
            json.loads(file.read_bytes())
    else:
        from exitguard.act.plan_files import plan_files  # noqa: PLC0415 - the other side must not pay for it
        from exitguard.policy.load import load_rulebook  # noqa: PLC0415 - as above
        from exitguard.remedy.plan import Origins  # noqa: PLC0415 - as above

        plan = plan_files(files, load_rulebook(), Origins(_CONTENT, _CONTENT), made_at=datetime.now(UTC))
        counts = {"steps": len(plan.steps), "left_alone": len(plan.left_alone)}
    seconds = time.perf_counter() - began
    own, children = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "peak_mib": own + children, **counts}))
    return 0


def _write_facts(folder: Path, hosts: int) -> None:
    """One file a host; hosts and domains differ in their ids and names."""
    import audit_builders as build  # noqa: PLC0415 - as above

    from exitguard.model.pmu import PmuElement  # noqa: PLC0415 - as above

    domains = [build.domain(number=number, defined=build.definition(), run=build.definition(), nova=build.nova()) for number in range(28)]
    domains += [build.domain(number=number, defined=build.definition(pmu=PmuElement.OFF)) for number in range(28, 34)]
    domains += [build.domain(number=number, defined=build.definition(), run=build.definition()) for number in range(34, 40)]
    text = build.facts(*domains).model_dump_json()
    for number in range(hosts):
        name = f"compute-{number:05}"
        host = text.replace(build.HOST_ID, f"00000000-0000-4000-8000-{number:012}").replace("compute-7", name)
        for each in range(_DOMAINS):
            host = host.replace(str(UUID(int=each)), str(UUID(int=number * 100 + each)))
        (folder / f"{name}.json").write_text(host)


if __name__ == "__main__":
    sys.exit(main())
