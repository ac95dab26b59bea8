"""The gate of tests/conftest.py, run for real: a pytest of its own over a tree of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

ONE_SKIP = """
import pytest

def test_runs():
    assert sum([1, 1]) == 2

@pytest.mark.skipif(True, reason="no /dev/kvm on this machine")
def test_needs_kvm():
    raise AssertionError
"""


def run_pytest(tree: Path, expected_skips: str, *, ci: str = "true", test: str = ONE_SKIP) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, tree)
    (tree / "expected_skips.txt").write_text(expected_skips)
    (tree / "test_sample.py").write_text(test)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))} | {
        "CI": ci,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tree), str(tree)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_skip_that_no_line_names_fails_the_run_in_ci(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "# nothing is expected\n")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_sample.py::test_needs_kvm: no /dev/kvm on this machine" in result.stdout
    assert "expected_skips.txt" in result.stdout


def test_skip_that_a_line_names_passes(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "test_sample.py::* | no /dev/kvm | the machines of CI have none\n")
    assert result.returncode == pytest.ExitCode.OK, result.stdout


def test_known_test_skipped_for_another_reason_fails_the_run(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "test_sample.py::* | no virtlogd | the machines of CI have none\n")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED


def test_outside_ci_a_skip_is_only_reported(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "", ci="false")
    assert result.returncode == pytest.ExitCode.OK, result.stdout
    assert "1 passed, 1 skipped" in result.stdout


def test_module_skipped_as_a_whole_counts_too(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "", test="import pytest\npytest.importorskip('a_module_that_nobody_wrote')\n")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_sample.py: could not import 'a_module_that_nobody_wrote'" in result.stdout


def test_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "", test="import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert 1 == 2\n")
    assert result.returncode == pytest.ExitCode.OK, result.stdout


def test_failed_run_stays_failed_whatever_was_skipped(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "", test=f"{ONE_SKIP}\ndef test_breaks():\n    assert 1 == 2\n")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed" in result.stdout


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("test_sample.py::* | no /dev/kvm", "line 2: expected"),
        ("test_sample.py::* |  | nobody knows", "line 2: expected"),
        ("test_sample.py::* | no ( | half a pattern", "line 2: 'no (' is not a regular expression"),
    ],
)
def test_malformed_line_is_named_and_nothing_runs(tmp_path: Path, line: str, complaint: str) -> None:
    result = run_pytest(tmp_path, f"# the expected skips\n{line}\n")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert complaint in result.stderr
    assert "passed" not in result.stdout


def test_expected_skips_of_this_repository_can_be_read(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, CONFTEST.with_name("expected_skips.txt").read_text(), test="def test_runs():\n    pass\n")
    assert result.returncode == pytest.ExitCode.OK, result.stderr
