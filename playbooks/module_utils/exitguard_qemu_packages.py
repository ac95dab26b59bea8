# SPDX-License-Identifier: Apache-2.0
"""Packages of QEMU in exactly the versions that were pinned: looked for, tried, brought, unpacked and installed, by apt or dnf.

`Apt` and `Dnf` answer the same questions. What is installed are the very files that were looked into. Everything raises PackageError.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.exitguard_host_step import ProgramFailedError, last_words, must, run

_LOCK_WAIT_SECONDS = 120
_QUESTION_SECONDS = 300
_DOWNLOAD_SECONDS = 1800
_MOST_NAMES = 40
#: A package manager that is killed half-way leaves more behind than one that hangs: whoever started the playbook has a limit of their own.
_INSTALL_SECONDS = 7200
#: needrestart must not restart libvirtd because a QEMU was installed; nothing may ask.
_ENVIRONMENT = {
    "LANGUAGE": "C",
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",
    "NEEDRESTART_MODE": "l",
    "APT_LISTCHANGES_FRONTEND": "none",
}


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
    """What an installation would do."""

    #: What would be there afterwards that is not there now.
    arrivals: tuple[Pin, ...] = ()
    removals: tuple[Pin, ...] = ()
    downgrades: tuple[Pin, ...] = ()


def refuse_more_than_pinned(changes: Changes, due: Sequence[Pin]) -> None:
    """Nothing, where exactly the packages that are `due` would arrive and nothing else happens. Raises PackageError."""
    if changes.removals:
        raise PackageError(
            f"it would remove {_listed(changes.removals)}. Nothing is ever removed for a QEMU: pin versions of these that fit, "
            "or settle it by hand"
        )
    if changes.downgrades:
        raise PackageError(f"it would go back to {_listed(changes.downgrades)}. Pin versions that are not older than what is installed")
    others = [pin for pin in changes.arrivals if pin not in due]
    if others:
        raise PackageError(
            f"it would also install {_listed(others)}, which nobody pinned. Pin these versions too, or install them by themselves "
            "beforehand"
        )
    absent = [pin for pin in due if pin not in changes.arrivals]
    if absent:
        raise PackageError(f"it would not install {_listed(absent)}: something on this host keeps it back")


def _listed(pins: Sequence[Pin]) -> str:
    names = sorted(str(pin) for pin in pins)
    return ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else "")


def package_manager() -> Apt | Dnf:
    """The one of this host. Raises PackageError."""
    if shutil.which("apt-get") and shutil.which("dpkg-query"):
        return Apt()
    if shutil.which("dnf") and shutil.which("rpm"):
        return Dnf()
    raise PackageError("neither apt-get with dpkg nor dnf with rpm is on this host")


class Apt:
    """Packages of Debian and its family."""

    def installed(self, pins: Sequence[Pin]) -> tuple[Pin, ...]:
        """What is installed completely of the packages with these names."""
        form = "${db:Status-Status} ${Package} ${Version}\n"
        code, out, err = run(["dpkg-query", "--show", f"--showformat={form}", *[pin.name for pin in pins]], _QUESTION_SECONDS)
        if code not in (0, 1):  # 1: one of them is not known at all
            raise PackageError(f"dpkg-query failed with exit code {code}: {last_words(err)}")
        lines = [line.split() for line in out.splitlines()]
        return tuple(Pin(words[1], words[2]) for words in lines if words[:1] == ["installed"])

    def refuse_unfinished(self) -> None:
        """Nothing, unless dpkg left packages half-way: apt would finish these along with QEMU, and restart what they restart."""
        out = _must("dpkg", "--audit")
        names = sorted(set(re.findall(r"^ (\S+)", out, re.MULTILINE)))
        if names:
            raise PackageError(
                f"dpkg has left packages half-way: {', '.join(names)}. Finish them first (dpkg --audit, dpkg --configure -a)"
            )

    def refresh(self) -> None:
        """Fetch the lists of packages anew."""
        _must("apt-get", "--quiet", "update", seconds=_DOWNLOAD_SECONDS)

    def available(self, name: str) -> tuple[str, ...]:
        """The versions that the archives can give: not merely those that are installed."""
        return parse_madison(_must("apt-cache", "madison", name))

    def changes(self, pins: Sequence[Pin]) -> Changes:
        """What installing them would do."""
        code, out, err = run(["apt-get", "--simulate", *self._options(), *self._specifications(pins)], _QUESTION_SECONDS, _ENVIRONMENT)
        held = re.search(r"^The following held packages will be changed:\n((?: .*\n)+)", out, re.MULTILINE)
        older = re.search(r"^The following packages will be DOWNGRADED:\n((?: .*\n)+)", out, re.MULTILINE)
        if code != 0 and held:
            raise PackageError(
                f"somebody holds {', '.join(held.group(1).split())} as it is (apt-mark hold): ask them, or pin what is there"
            )
        if code != 0 and older:
            return Changes(downgrades=tuple(pin for pin in pins if pin.name in older.group(1).split()))
        if code != 0:
            raise PackageError(f"apt would not install them: {last_words(err or out)}")
        return parse_simulation(out)

    def bring(self, pins: Sequence[Pin], folder: Path) -> tuple[Path, ...]:
        """The files of the packages, in `folder`, as the archive's signature vouches for them."""
        # The folder is root's alone, where apt's own user may not write.
        command = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download", *self._specifications(pins)]
        code, out, err = run(command, _DOWNLOAD_SECONDS, _ENVIRONMENT, str(folder))
        if code != 0:
            raise PackageError(f"the packages could not be downloaded: {last_words(err or out)}")
        files = tuple(sorted(folder.iterdir()))
        found = [_must("dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(path)).split() for path in files]
        _expect([Pin(*words) for words in found], pins)
        return files

    def unpack(self, path: Path, tree: Path) -> None:
        """Put what a package would install below `tree`; none of its scripts runs."""
        _must("dpkg-deb", "--extract", str(path), str(tree), seconds=_DOWNLOAD_SECONDS)

    def install(self, files: Sequence[Path], pins: Sequence[Pin]) -> None:
        """Install exactly these files. What was installed automatically before still counts as that."""
        automatic = [name for name in _must("apt-mark", "showauto").split() if name.partition(":")[0] in {pin.name for pin in pins}]
        _must("apt-get", "--no-remove", *self._options(), *[str(path) for path in files], seconds=_INSTALL_SECONDS)
        if automatic:
            _must("apt-mark", "auto", *automatic)

    @staticmethod
    def _specifications(pins: Sequence[Pin]) -> list[str]:
        return [f"{pin.name}={pin.version}" for pin in pins]

    @staticmethod
    def _options() -> list[str]:
        # None of apt's --allow options: it refuses by itself to go back, to change what is held, and to take what nobody signed.
        options = ["Dpkg::Options::=--force-confold", "Dpkg::Options::=--force-confdef", "Dpkg::Use-Pty=0"]
        options += [f"DPkg::Lock::Timeout={_LOCK_WAIT_SECONDS}", "APT::Sandbox::User=root"]
        return ["--quiet", "--yes", "--no-install-recommends", *[word for option in options for word in ("-o", option)], "install"]


class Dnf:
    """Packages of EL 9. A version is VERSION-RELEASE, with EPOCH: before it where it has one."""

    def installed(self, pins: Sequence[Pin]) -> tuple[Pin, ...]:
        """What is installed of the packages with these names, each version as its pin writes it where they are the same."""
        _, out, _ = run(["rpm", "--query", "--queryformat", _RPM_FORM, *[pin.name for pin in pins]], _QUESTION_SECONDS)
        return _as_pinned(parse_lines(out), pins)

    def refuse_unfinished(self) -> None:
        """Nothing: rpm has no packages half-way."""

    def refresh(self) -> None:
        """Nothing: dnf refreshes its lists by itself, by their age."""

    def available(self, name: str) -> tuple[str, ...]:
        """The versions that the enabled repositories can give."""
        out = _must("dnf", "--quiet", "repoquery", "--available", "--queryformat", "%{name} %{epoch}:%{version}-%{release}", name)
        return tuple(_without_zero(pin.version) for pin in parse_lines(out))

    def changes(self, pins: Sequence[Pin]) -> Changes:
        """What installing them would do."""
        code, out, err = run(["dnf", "--assumeno", *self._options(), *self._specifications(pins)], _DOWNLOAD_SECONDS, _ENVIRONMENT)
        if code != 0 and "Operation aborted" not in out + err:
            raise PackageError(f"dnf would not install them: {last_words(err or out)}")
        changes = parse_transaction(out)
        return Changes(_as_pinned(changes.arrivals, pins), changes.removals, _as_pinned(changes.downgrades, pins))

    def bring(self, pins: Sequence[Pin], folder: Path) -> tuple[Path, ...]:
        """The files of the packages, in `folder`, signed with a key that rpm trusts."""
        # The plug-in, and not `install --downloadonly`, which leaves out what is installed already.
        _must("dnf", "--quiet", "download", "--destdir", str(folder), *self._specifications(pins), seconds=_DOWNLOAD_SECONDS)
        files = tuple(sorted(folder.iterdir()))
        for path in files:
            if "signatures OK" not in _must("rpmkeys", "--checksig", str(path)):
                raise PackageError(
                    f"{path.name} has no signature of a key that rpm trusts: import the vendor's key, or take a signed package"
                )
        out = _must("rpm", "--query", "--package", "--queryformat", _RPM_FORM, *[str(path) for path in files])
        _expect(_as_pinned(parse_lines(out), pins), pins)
        return files

    def unpack(self, path: Path, tree: Path) -> None:
        """Put what a package would install below `tree`; none of its scripts runs."""
        script = 'set -o pipefail; rpm2cpio "$1" | cpio --quiet --extract --make-directories --no-absolute-filenames --directory "$2"'
        _must("bash", "-c", script, "unpack", str(path), str(tree), seconds=_DOWNLOAD_SECONDS)

    def install(self, files: Sequence[Path], pins: Sequence[Pin]) -> None:  # noqa: ARG002 - apt needs to know them
        """Install exactly these files."""
        options = ["--assumeyes", "--setopt=localpkg_gpgcheck=1"]
        _must("dnf", "--quiet", *options, *self._options(), *[str(path) for path in files], seconds=_INSTALL_SECONDS)

    @staticmethod
    def _specifications(pins: Sequence[Pin]) -> list[str]:
        return [f"{pin.name}-{pin.version}" for pin in pins]

    @staticmethod
    def _options() -> list[str]:
        return ["--setopt=install_weak_deps=False", "install"]


_RPM_FORM = "%{NAME} %{EPOCHNUM}:%{VERSION}-%{RELEASE}\n"


def parse_madison(text: str) -> tuple[str, ...]:
    """The versions that `apt-cache madison` lists, without those of source packages."""
    lines = [[part.strip() for part in line.split("|")] for line in text.splitlines()]
    return tuple(dict.fromkeys(fields[1] for fields in lines if fields[2:] and not fields[2].endswith(" Sources")))


def parse_simulation(text: str) -> Changes:
    """What `apt-get --simulate install` says it would do (lines Inst and Remv; Conf follows each Inst)."""
    arrivals, removals = [], []
    for verb, name, before, version in re.findall(r"^(Inst|Remv|Purg) (\S+)(?: \[([^\]]*)\])?(?: \((\S+))?", text, re.MULTILINE):
        plain = name.partition(":")[0]
        if verb == "Inst":
            arrivals.append(Pin(plain, version))
        else:
            removals.append(Pin(plain, before))
    return Changes(tuple(arrivals), tuple(removals))


def parse_transaction(text: str) -> Changes:
    """What the table of `dnf --assumeno install` says it would do. Raises PackageError where the table is not understood to its end."""
    found: dict[str, list[Pin]] = {}
    kind = ""
    # A long name has a line of its own.
    for line in re.sub(r"^( \S+)\n +", r"\1 ", text, flags=re.MULTILINE).splitlines():
        heading = re.match(r"^(Installing|Upgrading|Reinstalling|Removing|Downgrading)\b.*:$", line)
        row = re.match(r"^ (\S+)\s+(?:x86_64|i686|noarch)\s+(\S+)\s+\S+\s+\S+(?: \S+)?\s*$", line)
        replaced = re.match(r"^\s+replacing\s+(\S+)\.\S+ (\S+)$", line)
        if heading:
            kind = heading.group(1)
        elif row:
            found.setdefault(kind, []).append(Pin(*row.groups()))
        elif replaced:
            found.setdefault("replaced", []).append(Pin(*replaced.groups()))
    verbs = {"Installing": "Install", "Upgrading": "Upgrade", "Reinstalling": "Reinstall", "Removing": "Remove", "Downgrading": "Downgrade"}
    for heading_word, verb in verbs.items():
        count = sum(int(number) for number in re.findall(rf"^{verb}\s+([0-9]+)\s+Package", text, re.MULTILINE))
        if count != len(found.get(heading_word, [])):
            raise PackageError(
                f"what dnf would do cannot be told: of {count} packages to {verb.lower()}, {len(found.get(heading_word, []))} were read"
            )
    arrivals = (*found.get("Installing", []), *found.get("Upgrading", []), *found.get("Reinstalling", []))
    removals = (*found.get("Removing", []), *found.get("replaced", []))
    return Changes(arrivals, removals, tuple(found.get("Downgrading", [])))


def parse_lines(text: str) -> tuple[Pin, ...]:
    """The packages of lines `name version`."""
    return tuple(Pin(*match) for match in re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE))


def _as_pinned(found: Sequence[Pin], pins: Sequence[Pin]) -> tuple[Pin, ...]:
    """The same packages, with versions in the words of the pins: an epoch of 0 may be written or left out."""
    pinned = {(pin.name, _without_zero(pin.version)): pin for pin in pins}
    return tuple(pinned.get((pin.name, _without_zero(pin.version)), Pin(pin.name, _without_zero(pin.version))) for pin in found)


def _without_zero(version: str) -> str:
    return re.sub(r"^0:", "", version)


def _must(*argv: str, seconds: int = _QUESTION_SECONDS) -> str:
    try:
        return must(argv, seconds, _ENVIRONMENT)
    except ProgramFailedError as error:
        raise PackageError(str(error)) from None


def _expect(found: Sequence[Pin], pins: Sequence[Pin]) -> None:
    if sorted(map(str, found)) != sorted(map(str, pins)):
        raise PackageError(f"the archive gave {_listed(found) or 'nothing'}, expected {_listed(pins)}")
