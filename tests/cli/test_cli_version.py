"""`--version` is asked by inventories on every host: it imports nothing that it does not need."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import exitguard as package

Run = Callable[..., subprocess.CompletedProcess[str]]

HEAVY = {"typer", "click", "rich", "pydantic", "structlog", "sqlalchemy", "libvirt", "yaml", "alembic"}


def test_version_is_printed(exitguard: Run) -> None:
    result = exitguard("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"exitguard {package.__version__}\n", "")


def test_version_after_other_options_is_the_same(exitguard: Run) -> None:
    result = exitguard("-v", "--version")
    assert (result.returncode, result.stdout) == (0, f"exitguard {package.__version__}\n")


def imported_by(arguments: list[str]) -> set[str]:
    script = (
        "import sys, runpy\n"
        f"sys.argv = {['exitguard', *arguments]!r}\n"
        "try:\n    runpy.run_module('exitguard', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in result.stderr.split()}


def test_version_imports_no_library_at_all() -> None:
    assert imported_by(["--version"]) & HEAVY == set()


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["explain", "--help"]])
def test_help_imports_typer_and_what_typer_imports(arguments: list[str]) -> None:
    assert imported_by(arguments) & HEAVY <= {"typer", "click", "pydantic"}


def test_verbs_that_do_not_observe_import_neither_store_nor_logging() -> None:
    assert imported_by(["config", "check"]) & {"structlog", "sqlalchemy", "libvirt", "rich"} == set()


def test_full_disk_is_told_by_the_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([sys.executable, "-m", "exitguard", "--version"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (1, b"")
