"""Real QEMU programs of two Debian releases, each unpacked with the libraries it needs below a folder of its own.

Fetched by an apt of its own from the mirror that this machine uses for Debian, else from deb.debian.org, and checked against Debian's
signatures: the machine's lists, sources, pins and packages stay as they are. Takes no root. What was fetched once stays.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FETCH_LIMIT_SECONDS = 600
_DEFAULT_MIRROR = "http://deb.debian.org"
#: A kernel's module loader, a shell and what a shell needs, in one program without libraries.
_SHELL = "busybox-static"
_EMULATOR = "qemu-system-x86"
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
    """A Debian release that has a QEMU of its own; `suite` is the one that QEMU is taken from."""

    suite: str
    #: (archive, suite) of everything it may need.
    suites: tuple[tuple[str, str], ...]


#: The last QEMU that only hides the PMU from a guest which Debian 12 has, and one that also switches it off in KVM (11.0 and later).
RELEASES = (
    Release("bookworm", (("debian", "bookworm"), ("debian", "bookworm-updates"), ("debian-security", "bookworm-security"))),
    Release("trixie-backports", (("debian", "trixie"), ("debian", "trixie-backports"), ("debian-security", "trixie-security"))),
)


def why_no_packages() -> str | None:
    """What this machine lacks to fetch them; None where nothing is missing."""
    missing = [program for program in ("apt-get", "dpkg-deb", "tar") if shutil.which(program) is None]
    if missing:
        return f"missing: {', '.join(missing)}; the chain lab takes Debian on amd64"
    return None if KEYRING.exists() else f"{KEYRING} is missing: Debian's signatures could not be checked; install debian-archive-keyring"


def unpacked(release: Release, folder: Path) -> Path:
    """The root folder of the QEMU of `release` below `folder`, fetched there unless it has been before. Raises PackagesError."""
    root = folder / release.suite / "root"
    if root.is_dir():
        return root
    part = folder / release.suite / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in _MERGED:
        (part / "usr" / name).mkdir(parents=True)
        (part / name).symlink_to(f"usr/{name}")
    for package in _fetched(release, folder / release.suite):
        _unpack(package, part)
    part.rename(root)
    shutil.rmtree(folder / release.suite / "cache")
    return root


def _fetched(release: Release, folder: Path) -> list[Path]:
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    lines = [f"deb [arch=amd64 signed-by={KEYRING}] {_mirror_of(archive)} {suite} main" for archive, suite in release.suites]
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    (folder / "apt.conf").write_text(_CONFIGURATION.format(folder=folder.absolute()))
    apt = ("apt-get", "-q", "-y", "-c", str(folder / "apt.conf"))
    # "any": apt would go on with the lists of yesterday, and say so only in a warning.
    _run(*apt, "-o", "APT::Update::Error-Mode=any", "update")
    _run(*apt, "--download-only", "--target-release", release.suite, "install", _EMULATOR, _SHELL)
    return sorted((folder / "cache/archives").glob("*.deb"))


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


def _run(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        result = subprocess.run(
            command,
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
