"""Debian packages unpacked with all that they need, each set below a folder of its own, for programs that run there or in a lab host.

Fetched by an apt of its own from the mirror that this machine uses for Debian, else from deb.debian.org, and checked against Debian's
signatures: the machine's lists, sources, pins and packages stay as they are. Takes no root. What was fetched once stays.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FETCH_LIMIT_SECONDS = 600
_DEFAULT_MIRROR = "http://deb.debian.org"
#: Debian's programs lie below /usr, and the other names lead there: without its package base-files, somebody has to say so.
_MERGED = ("bin", "sbin", "lib", "lib64")
_CONFIGURATION = """#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {{
    MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
    flatMetaKey "Packages";
    ShortDescription "Packages";
    Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
}};
Acquire::Languages "none";
Acquire::Retries "3";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{folder}/state";
Dir::State::Lists "{folder}/state/lists";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "{folder}/cache/archives";
"""


class PackagesError(Exception):
    """A package could not be fetched or unpacked; the message holds what apt or dpkg said."""


@dataclass(frozen=True)
class Release:
    """A Debian release; `suite` is the one that packages are taken from."""

    suite: str
    #: (archive, suite) of everything they may need.
    suites: tuple[tuple[str, str], ...]


BOOKWORM = Release("bookworm", (("debian", "bookworm"), ("debian", "bookworm-updates"), ("debian-security", "bookworm-security")))


def why_no_packages() -> str | None:
    """What this machine lacks to fetch them; None where nothing is missing."""
    missing = [program for program in ("apt-get", "dpkg-deb", "tar") if shutil.which(program) is None]
    if missing:
        return f"missing: {', '.join(missing)}; the lab takes Debian on amd64"
    return None if KEYRING.exists() else f"{KEYRING} is missing: Debian's signatures could not be checked; install debian-archive-keyring"


def unpacked(release: Release, packages: tuple[str, ...], folder: Path) -> Path:
    """The root folder of `packages` below `folder`, which is theirs alone; fetched unless they have been before. Raises PackagesError."""
    return _kept(folder) or _unpacked(folder, lambda: _fetched(release, packages, folder))


def unpacked_newest(release: Release, package: str, folder: Path) -> Path:
    """The same of the one package that `package`, which is empty itself, stands for; without what that needs. Raises PackagesError."""
    return _kept(folder) or _unpacked(folder, lambda: _fetched_newest(release, package, folder))


def _kept(folder: Path) -> Path | None:
    return folder / "root" if (folder / "root").is_dir() else None


def _unpacked(folder: Path, fetch: Callable[[], list[Path]]) -> Path:
    part = folder / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in _MERGED:
        (part / "usr" / name).mkdir(parents=True)
        (part / name).symlink_to(f"usr/{name}")
    for package in fetch():
        _unpack(package, part)
    part.rename(folder / "root")
    shutil.rmtree(folder / "cache")
    return folder / "root"


def _fetched(release: Release, packages: tuple[str, ...], folder: Path) -> list[Path]:
    _read_archive(release, folder)
    words = ("-q", "-y", "--download-only", "--target-release", release.suite, "install", *packages)
    _run("apt-get", *_ours(folder), *words)
    return sorted((folder / "cache/archives").glob("*.deb"))


def _fetched_newest(release: Release, package: str, folder: Path) -> list[Path]:
    _read_archive(release, folder)
    shown = _run("apt-cache", *_ours(folder), "show", "--no-all-versions", package)
    match = re.search(r"^Depends: ([a-z0-9.+-]+)", shown, re.MULTILINE)
    if match is None:
        raise PackagesError(f"{package} of {release.suite} stands for no other package: found\n{shown[:1000]}")
    _run("apt-get", *_ours(folder), "-q", "download", match[1], below=folder / "cache/archives")
    return sorted((folder / "cache/archives").glob("*.deb"))


def _ours(folder: Path) -> tuple[str, str]:
    return ("-c", str(folder.absolute() / "apt.conf"))


def _read_archive(release: Release, folder: Path) -> None:
    """Make an apt of its own below `folder`, and have it read what the archive holds."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    lines = [f"deb [arch=amd64 signed-by={KEYRING}] {_mirror_of(archive)} {suite} main" for archive, suite in release.suites]
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    (folder / "apt.conf").write_text(_CONFIGURATION.format(folder=folder.absolute()))
    # "any": apt would go on with the lists of yesterday, and say so only in a warning.
    _run("apt-get", *_ours(folder), "-q", "-o", "APT::Update::Error-Mode=any", "update")


def _mirror_of(archive: str) -> str:
    """Where this machine gets Debian's archive of that name from."""
    used = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").splitlines()
    return next((uri.rstrip("/") for uri in used if uri.rstrip("/").endswith(f"/{archive}")), f"{_DEFAULT_MIRROR}/{archive}")


def _unpack(package: Path, root: Path) -> None:
    """Only files: nothing of the package is run."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as reading:
        options = ("--extract", "--keep-directory-symlink", "--no-same-owner", "--directory", str(root))
        unpacking = subprocess.run(["tar", *options], stdin=reading.stdout, capture_output=True, text=True, check=False)
    if reading.returncode != 0 or unpacking.returncode != 0:
        raise PackagesError(f"{package.name} could not be unpacked into {root}: {unpacking.stderr.strip() or 'dpkg-deb failed'}")


def _run(*command: str, below: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        result = subprocess.run(
            command,
            cwd=below,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FETCH_LIMIT_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PackagesError(f"{' '.join(command)} took longer than {_FETCH_LIMIT_SECONDS} seconds") from None
    if result.returncode != 0:
        raise PackagesError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}")
    return result.stdout
