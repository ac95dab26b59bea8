"""What is built is what runs: the wheel and the source distribution carry the policy, and the command finds it without a checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from exitguard import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED_FOLDERS = ("policies", "playbooks")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EXITGUARD_", "PYTHON", "COV"))}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def shipped_files() -> set[str]:
    files = (path for folder in SHIPPED_FOLDERS for path in (REPOSITORY / folder).rglob("*") if path.is_file())
    return {path.relative_to(REPOSITORY).as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution, the wheel built from it, and the wheel built from the checkout. Needs no network."""
    built = tmp_path_factory.mktemp("built")
    for options in (["--outdir", str(built / "release")], ["--outdir", str(built / "checkout"), "--wheel"]):
        result = run(sys.executable, "-m", "build", "--no-isolation", *options, REPOSITORY, cwd=built)
        assert result.returncode == 0, result.stdout + result.stderr
    (sdist,) = (built / "release").glob("*.tar.gz")
    (wheel_of_sdist,) = (built / "release").glob("*.whl")
    (wheel_of_checkout,) = (built / "checkout").glob("*.whl")
    return {"sdist": sdist, "wheel of the sdist": wheel_of_sdist, "wheel of the checkout": wheel_of_checkout}


def install(wheel: Path, into: Path) -> Path:
    """The bin folder of a fresh environment that holds the wheel; its dependencies are those of the environment of the tests."""
    venv.create(into, with_pip=False, symlinks=True)
    python = into / "bin" / "python"
    result = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=into)
    assert result.returncode == 0, result.stdout + result.stderr
    # A path that a .pth names is searched, but its own .pth files are not: the editable checkout stays out.
    site_packages = next(into.glob("lib/python*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_there_is_something_to_ship() -> None:
    folders = {name.split("/")[0] for name in shipped_files()}
    assert folders == set(SHIPPED_FOLDERS)
    assert any(name.startswith("policies/schemas/") and name.endswith(".json") for name in shipped_files())


def test_source_distribution_holds_everything_shipped(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert shipped_files() <= names
    assert {"Makefile", "uv.lock", "scripts/set_up.sh", "LICENSE", "README.md"} <= names


@pytest.mark.parametrize("origin", ["wheel of the checkout", "wheel of the sdist"])
def test_wheel_holds_everything_shipped_and_nothing_else_of_the_checkout(distributions: dict[str, Path], origin: str) -> None:
    with zipfile.ZipFile(distributions[origin]) as archive:
        names = set(archive.namelist())
    assert {f"exitguard/{name}" for name in shipped_files()} <= names
    assert "exitguard/py.typed" in names
    assert {"exitguard/deploy/prometheus/exitguard.rules.yaml", "exitguard/deploy/grafana/exitguard.json"} <= names
    assert {name.split("/")[0] for name in names} == {"exitguard", f"exitguard-{__version__}.dist-info"}


@pytest.mark.parametrize("origin", ["wheel of the checkout", "wheel of the sdist"])
def test_installed_wheel_finds_its_policy_outside_the_checkout(distributions: dict[str, Path], origin: str, tmp_path: Path) -> None:
    bin_folder = install(distributions[origin], tmp_path / "environment")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    where = run(bin_folder / "python", "-c", "import exitguard; print(exitguard.__file__)", cwd=elsewhere)
    assert where.stdout.startswith(str(tmp_path)), where.stdout + where.stderr
    version = run(bin_folder / "exitguard", "--version", cwd=elsewhere)
    assert (version.returncode, version.stdout.split()) == (0, ["exitguard", __version__]), version.stderr
    check = run(bin_folder / "exitguard", "policy", "check", cwd=elsewhere)
    assert check.returncode == 0, check.stdout + check.stderr
