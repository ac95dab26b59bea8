"""The shipped files are found in a wheel and in a repository, and nowhere else."""

from pathlib import Path

import pytest

from exitguard import resources
from exitguard.resources import ResourcesError, playbooks_dir, policies_dir


def install(root: Path, *folders: str) -> Path:
    """A package directory agent/exitguard below `root`, and the given folders."""
    for folder in ("agent/exitguard", *folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return root / "agent/exitguard"


def test_this_installation_has_its_policy_and_its_playbooks() -> None:
    assert (policies_dir() / "pmu-off.yaml").is_file()
    assert playbooks_dir().is_dir()


def test_wheel_has_them_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exitguard/policies").mkdir(parents=True)
    (tmp_path / "exitguard/playbooks").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "exitguard")
    assert policies_dir() == tmp_path / "exitguard/policies"
    assert playbooks_dir() == tmp_path / "exitguard/playbooks"


def test_repository_has_them_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", install(tmp_path, "policies", "playbooks"))
    (tmp_path / "pyproject.toml").touch()
    assert policies_dir() == tmp_path / "policies"
    assert playbooks_dir() == tmp_path / "playbooks"


def test_package_comes_before_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(tmp_path, "policies", "agent/exitguard/policies")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert policies_dir() == package / "policies"


def test_folder_of_the_same_name_that_is_no_repository_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", install(tmp_path, "policies"))
    with pytest.raises(ResourcesError, match="the policies that ship with exitguard are missing: expected them in"):
        policies_dir()


def test_missing_files_are_told_with_every_place_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "playbooks").touch()  # a file is no directory of playbooks
    monkeypatch.setattr(resources, "_PACKAGE", package)
    with pytest.raises(ResourcesError) as caught:
        playbooks_dir()
    assert str(caught.value) == (
        f"the playbooks that ship with exitguard are missing: expected them in {package / 'playbooks'} or {tmp_path / 'playbooks'}; "
        "install exitguard again"
    )
