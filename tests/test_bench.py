"""bench/run.py: it runs, and says what it measured. How fast anything is, is never asserted."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "bench"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "run.py"), *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)


def test_measurement_tells_its_pairs_and_whether_the_goal_is_met() -> None:
    result = bench("--json", "--pairs", "3", "version")
    assert result.returncode == 0, result.stderr
    [measured] = json.loads(result.stdout)["measurements"]
    assert measured["name"] == "version"
    assert len(measured["pairs_microseconds"]) == 3
    ratios = sorted(subject / peer for subject, peer in measured["pairs_microseconds"])
    assert abs(measured["ratio"] - ratios[1]) < 0.01
    assert measured["met"] == (measured["ratio"] <= measured["goal_ratio"])


def test_reader_gets_a_table_and_a_line_about_the_machine() -> None:
    result = bench("--pairs", "1", "version")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "Python" in lines[0]
    assert "cores" in lines[0]
    assert [line.split()[0] for line in lines[3:8]] == ["what", "peer", "median", "ratio", "goal"]


def test_unknown_measurement_is_refused_and_the_known_ones_are_named() -> None:
    result = bench("audit-501")
    assert result.returncode == 2
    assert "audit-501" in result.stderr
    assert "audit-500, audit-5000, event-500, version, scrape-30" in result.stderr


def test_what_writes_the_ledger_s_table_itself_knows_its_columns() -> None:
    result = bench("--pairs", "1", "ledger-1m")
    assert result.returncode == 0, result.stdout


def test_every_measurement_stands_in_the_readme() -> None:
    text = (BENCH / "README.md").read_text()
    names = bench("--help").stdout.partition("of ")[2].partition(";")[0].replace(",", " ").split()
    assert len(names) == 15
    assert all(f"`{name}`" in text for name in names)
