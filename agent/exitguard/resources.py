"""Where the shipped policy and playbooks are: inside the package in a wheel, at the top of the repository in an editable install."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


class ResourcesError(Exception):
    """Files that ship with exitguard are not where they should be."""


def policies_dir() -> Path:
    """The directory of the shipped policy, lineages, costs and their JSON Schemas. Raises ResourcesError."""
    return _find("policies", _PACKAGE)


def playbooks_dir() -> Path:
    """The directory of the shipped playbooks, one a remedy. Raises ResourcesError."""
    return _find("playbooks", _PACKAGE)


def _find(name: str, package: Path) -> Path:
    # agent/exitguard/ of a repository is told from site-packages/exitguard/ by the file that builds the wheel.
    repository = package.parent.parent
    candidates = [package / name]
    if (repository / "pyproject.toml").is_file() and package.parent.name == "agent":
        candidates.append(repository / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    places = " or ".join(str(candidate) for candidate in candidates)
    raise ResourcesError(f"the {name} that ship with exitguard are missing: expected them in {places}; install exitguard again")
