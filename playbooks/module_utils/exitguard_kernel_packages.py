# SPDX-License-Identifier: Apache-2.0
"""Kernel packages in exactly the versions that were pinned: looked for, brought, unpacked, tried and installed, by apt or dnf.

`Apt` and `Dnf` answer the same questions. What a tool says is parsed by functions of their own, which are pure. A package is installed
from the very file that was looked into, so that nothing can be exchanged between the look and the installation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

_LOCK_WAIT_SECONDS = 120
#: How long a tool may take before it counts as hung; dpkg builds initramfs images and DKMS modules meanwhile.
_QUESTION_SECONDS = 120
_DOWNLOAD_SECONDS = 1800
_INSTALL_SECONDS = 3600
#: needrestart must not restart a hypervisor's services because a kernel was installed; apt-listchanges must not ask.
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "C",
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",
    "APT_LISTCHANGES_FRONTEND": "none",
}


if TYPE_CHECKING:  # Python 3.8 cannot evaluate it
    from collections.abc import Callable

    #: `run(argv, seconds, environment, folder)` gives (exit code, stdout, stderr).
    Run = Callable[[list[str], int, dict[str, str], "str | None"], tuple[int, str, str]]


class PackageError(Exception):
    """A package tool failed, or would do something that nobody asked for; the message says what, and what to do."""


@dataclass(frozen=True)
class Pin:
    """A package in exactly one version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Changes:
    """What an installation would do: names with versions."""

    installs: tuple[Pin, ...] = ()
    #: With the version before.
    upgrades: tuple[tuple[Pin, str], ...] = ()
    removals: tuple[Pin, ...] = ()


def parse_madison(text: str) -> tuple[str, ...]:
    """The versions that `apt-cache madison` lists: those that an archive can give, not merely those that are installed."""
    return tuple(match.group(1) for match in re.finditer(r"^\s*\S+ \| *(\S+) *\|", text, re.MULTILINE))


def parse_simulation(text: str) -> Changes:
    """What `apt-get --simulate install` says it would do (lines Inst and Remv; Conf follows each Inst)."""
    installs, upgrades, removals = [], [], []
    for line in text.splitlines():
        match = re.match(r"^(Inst|Remv|Purg) (\S+)(?: \[([^\]]*)\])?(?: \((\S+))?", line)
        if match is None:
            continue
        verb, name, before, version = match.groups()
        name = name.split(":", 1)[0]
        if verb != "Inst":
            removals.append(Pin(name, before or ""))
        elif before is not None:
            upgrades.append((Pin(name, version or ""), before))
        else:
            installs.append(Pin(name, version or ""))
    return Changes(tuple(installs), tuple(upgrades), tuple(removals))


def parse_versions(text: str) -> dict[str, tuple[str, ...]]:
    """Name -> versions, of lines `name version` (several of one name: EL keeps several kernels)."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return {name: tuple(versions) for name, versions in found.items()}


def check_changes(changes: Changes, pins: Sequence[Pin]) -> None:
    """Nothing, where exactly pinned packages would be installed and nothing else happens. Raises PackageError."""
    if changes.removals:
        raise PackageError(
            f"it would remove {_listed(changes.removals)}. Nothing is ever removed for a kernel: settle the conflict by hand, "
            "or pin other versions"
        )
    others = [pin for pin in changes.installs if pin not in pins] + [pin for pin, _ in changes.upgrades if pin not in pins]
    if others:
        raise PackageError(
            f"it would also install {_listed(others)}, which nobody pinned. Pin these versions too, or install them "
            "by themselves beforehand"
        )


def _listed(pins: Iterable[Pin]) -> str:
    return ", ".join(sorted(str(pin) for pin in pins))


class Apt:
    """Packages of Debian and its family."""

    headers_prefix = "linux-headers-"

    def __init__(self, run: Run) -> None:
        self._run = run

    def installed(self, pins: Sequence[Pin]) -> dict[str, tuple[str, ...]]:
        """Name -> version, of those that are installed completely."""
        code, out, _ = self._ask(
            "dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package} ${Version}\n", *[pin.name for pin in pins]
        )
        if code not in (0, 1):  # 1: one of them is not known at all
            raise PackageError("dpkg-query failed: is this a Debian with a working dpkg database?")
        lines = [line.split(" ", 1)[1] for line in out.splitlines() if line.startswith("installed ")]
        return parse_versions("\n".join(lines))

    def unfinished(self) -> tuple[str, ...]:
        """Packages that dpkg left half-way; apt would finish them along with the kernel."""
        _, out, _ = self._ask("dpkg", "--audit")
        return tuple(sorted(set(re.findall(r"^ (\S+)", out, re.MULTILINE))))

    def available(self, pin: Pin) -> tuple[str, ...]:
        """The versions that the archives can give."""
        return parse_madison(self._ask("apt-cache", "madison", pin.name)[1])

    def refresh(self) -> None:
        """Fetch the lists of packages anew."""
        self._must(_DOWNLOAD_SECONDS, "apt-get", "--quiet", "update")

    def bring(self, pins: Sequence[Pin], folder: Path) -> list[str]:
        """The files of the packages, in `folder`, signed by the archive and of the names and versions that were pinned."""
        # The folder is root's alone, where apt's own user may not write.
        for pin in pins:
            self._must(
                _DOWNLOAD_SECONDS,
                "apt-get",
                "--quiet",
                "-o",
                "APT::Sandbox::User=root",
                "download",
                f"{pin.name}={pin.version}",
                folder=folder,
            )
        files = []
        found = []
        for path in sorted(str(path) for path in folder.iterdir()):
            fields = self._must(_QUESTION_SECONDS, "dpkg-deb", "--show", "--showformat=${Package} ${Version}", path).split()
            files.append(path)
            found.append(Pin(*fields))
        _expect_pins(found, pins)
        return files

    def unpack(self, path: str, tree: Path) -> None:
        """Put what a package would install below `tree`; none of its scripts runs."""
        self._must(_DOWNLOAD_SECONDS, "dpkg-deb", "--extract", path, str(tree))

    def changes(self, files: Sequence[str]) -> Changes:
        """What installing the files would do. Raises PackageError where apt would not."""
        code, out, err = self._ask("apt-get", "--simulate", *self._install_options(), *files)
        if code != 0:
            raise PackageError(f"apt would not install them: {_last_words(out, err)}")
        return parse_simulation(out)

    def install(self, files: Sequence[str]) -> None:
        """Install exactly these files. Raises PackageError."""
        # --no-remove: apt itself refuses what the simulation would have shown.
        self._must(_INSTALL_SECONDS, "apt-get", "--no-remove", *self._install_options(), *files)

    def _install_options(self) -> list[str]:
        options = ["Dpkg::Options::=--force-confold", f"DPkg::Lock::Timeout={_LOCK_WAIT_SECONDS}"]
        options += ["APT::Sandbox::User=root"]
        return [
            "--quiet",
            "--yes",
            "--no-install-recommends",
            *[word for option in options for word in ("-o", option)],
            "install",
        ]

    def _ask(self, *argv: str) -> tuple[int, str, str]:
        return self._run(list(argv), _QUESTION_SECONDS, _ENVIRONMENT, None)

    def _must(self, seconds: int, *argv: str, folder: Path | None = None) -> str:
        return _must(self._run, seconds, list(argv), folder)


class Dnf:
    """Packages of EL 9. A version is VERSION-RELEASE, as `rpm -q --qf '%{version}-%{release}'` has it."""

    headers_prefix = "kernel-devel-"

    def __init__(self, run: Run) -> None:
        self._run = run

    def installed(self, pins: Sequence[Pin]) -> dict[str, tuple[str, ...]]:
        """Name -> versions; EL keeps several of a kernel."""
        _, out, _ = self._ask("rpm", "--query", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}\n", *[pin.name for pin in pins])
        return parse_versions(out)

    def unfinished(self) -> tuple[str, ...]:
        """Nothing: rpm has no packages half-way."""
        return ()

    def available(self, pin: Pin) -> tuple[str, ...]:
        """The versions that the enabled repositories can give."""
        out = self._ask("dnf", "--quiet", "repoquery", "--available", "--queryformat", "%{name} %{version}-%{release}\n", pin.name)[1]
        return parse_versions(out).get(pin.name, ())

    def refresh(self) -> None:
        """Fetch the lists of packages anew."""
        self._must(_DOWNLOAD_SECONDS, "dnf", "--quiet", "makecache")

    def bring(self, pins: Sequence[Pin], folder: Path) -> list[str]:
        """The files of the packages, in `folder`, signed with a key that rpm trusts, and of the names and versions that were pinned."""
        architecture = os.uname().machine
        wanted = [f"{pin.name}-{pin.version}.{architecture}" for pin in pins]
        self._must(_DOWNLOAD_SECONDS, "dnf", "--quiet", "download", "--destdir", str(folder), *wanted)
        files = sorted(str(path) for path in folder.iterdir())
        for path in files:
            # `dnf download` checks no signature, and the file is about to be read.
            if "signatures" not in self._must(_QUESTION_SECONDS, "rpmkeys", "--checksig", path):
                raise PackageError(
                    f"{Path(path).name} has no signature of a key that rpm trusts. Import the vendor's key, or take a signed package"
                )
        out = self._must(_QUESTION_SECONDS, "rpm", "--query", "--package", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}\n", *files)
        _expect_pins([Pin(name, version) for name, versions in parse_versions(out).items() for version in versions], pins)
        return files

    def unpack(self, path: str, tree: Path) -> None:
        """Put what a package would install below `tree`; none of its scripts runs."""
        script = 'set -o pipefail; rpm2cpio "$1" | cpio --quiet --extract --make-directories --no-absolute-filenames --directory "$2"'
        self._must(_DOWNLOAD_SECONDS, "bash", "-c", script, "unpack", path, str(tree))

    def changes(self, files: Sequence[str]) -> Changes:
        """What installing the files would do: these alone, where rpm accepts them beside all that is installed. Raises PackageError."""
        code, out, err = self._ask("rpm", "--install", "--test", *files)
        if code != 0:
            raise PackageError(f"rpm would not install them beside what is there: {_last_words(out, err)}")
        named = self._must(_QUESTION_SECONDS, "rpm", "--query", "--package", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}\n", *files)
        return Changes(tuple(Pin(name, version) for name, versions in parse_versions(named).items() for version in versions))

    def install(self, files: Sequence[str]) -> None:
        """Install exactly these files, and keep every kernel that is there (dnf would remove the oldest). Raises PackageError."""
        options = ["--setopt=installonly_limit=0", "--setopt=localpkg_gpgcheck=1", "--setopt=install_weak_deps=False"]
        self._must(_INSTALL_SECONDS, "dnf", "--quiet", "--assumeyes", *options, "install", *files)

    def _ask(self, *argv: str) -> tuple[int, str, str]:
        return self._run(list(argv), _QUESTION_SECONDS, _ENVIRONMENT, None)

    def _must(self, seconds: int, *argv: str, folder: Path | None = None) -> str:
        return _must(self._run, seconds, list(argv), folder)


def _must(run: Run, seconds: int, argv: list[str], folder: Path | None) -> str:
    code, out, err = run(argv, seconds, _ENVIRONMENT, str(folder) if folder is not None else None)
    if code != 0:
        said = f"it was stopped after {seconds} seconds" if code in (124, 137) else _last_words(out, err)
        raise PackageError(f"{' '.join(argv[:2])} failed with exit code {code}: {said}")
    return out


def _expect_pins(found: Sequence[Pin], pins: Sequence[Pin]) -> None:
    if sorted(map(str, found)) != sorted(map(str, pins)):
        raise PackageError(f"the archive gave {_listed(found) or 'nothing'}, expected {_listed(pins)}")


def _last_words(out: str, err: str) -> str:
    """What a tool says went wrong, as one line of bounded length: the lines that name an error, else the last ones."""
    errors = [line.strip() for line in (out + "\n" + err).splitlines() if re.match(r"^\s*(E:|dpkg:|error|Error)", line)]
    return " / ".join(errors or [line.strip() for line in (err or out).strip().splitlines()[-4:]])[:600] or "it said nothing"
