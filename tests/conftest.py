"""In CI, a test that is skipped for a reason nobody wrote down fails the run: a silent skip is a test that cannot fail.

`expected_skips.txt` holds one `node-id glob | reason regular expression | why` a line. Elsewhere (no CI=true) skips are only reported.
"""

import os
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")


class ExpectedSkip(NamedTuple):
    node_glob: str
    reason: re.Pattern[str]
    why: str

    def covers(self, node_id: str, reason: str) -> bool:
        return fnmatchcase(node_id, self.node_glob) and self.reason.search(reason) is not None


def parse_expected_skips(text: str) -> list[ExpectedSkip]:
    """The expected skips of a file's text. Raises ValueError naming the line that has not three filled fields or no valid pattern."""
    expected = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        # " | " with spaces: a regular expression may hold a bare "|".
        fields = [field.strip() for field in line.split(" | ")]
        if len(fields) != 3 or not all(fields):
            raise ValueError(f"line {number}: expected `node-id glob | reason regular expression | why`, got {line!r}")
        try:
            reason = re.compile(fields[1])
        except re.error as error:
            raise ValueError(f"line {number}: {fields[1]!r} is not a regular expression: {error}") from None
        expected.append(ExpectedSkip(fields[0], reason, fields[2]))
    return expected


class UnexpectedSkips:
    """Collects the skips that no line covers, and fails the session over them."""

    def __init__(self, expected: list[ExpectedSkip]) -> None:
        self.expected = expected
        self.found: list[tuple[str, str]] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):  # an expected failure is reported as a skip too
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(line.covers(report.nodeid, reason) for line in self.expected):
            self.found.append((report.nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.found:
            return
        terminalreporter.section("skips that nobody expected", red=True)
        for node_id, reason in self.found:
            terminalreporter.line(f"{node_id}: {reason}")
        terminalreporter.line("CI=true: make these run here, or say in tests/expected_skips.txt why they cannot.")


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prometheus's own checker: the one that is installed, else out of Debian's package, of which nothing is run or installed."""
    if installed := shutil.which("promtool"):
        return installed
    folder = tmp_path_factory.mktemp("prometheus")
    if shutil.which("apt-get") is None:
        pytest.skip("promtool cannot be had: there is no apt-get")
    fetched = subprocess.run(
        ["apt-get", "-q", "download", "prometheus"], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    if fetched.returncode != 0:
        pytest.skip(f"promtool cannot be had: {fetched.stderr.strip()[-300:]}")
    subprocess.run(["dpkg-deb", "--extract", str(next(folder.glob("*.deb"))), str(folder)], check=True, timeout=300)
    return str(folder / "usr/bin/promtool")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") != "true":
        return
    try:
        expected = parse_expected_skips(EXPECTED_SKIPS.read_text())
    except ValueError as error:
        raise pytest.UsageError(f"{EXPECTED_SKIPS}: {error}") from None
    config.pluginmanager.register(UnexpectedSkips(expected), "unexpected-skips")
