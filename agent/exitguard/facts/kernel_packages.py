"""What the packages of the running and the installed kernels say of the guard in their changelogs.

dpkg's documentation folders are read as files, rpm's database is asked by rpm(8). A changelog is evidence only for the build it
belongs to: Debian reuses a release name (6.1.0-56-amd64) for several versions, so for the running kernel only what stands at or
below the heading of the running version counts, and nothing does where the running kernel does not say its version. An rpm
kernel's release names its build.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from exitguard.facts.changelog import ChangelogSearch, GuardEntry, search_changelog, standing_guard, withdrawal
from exitguard.facts.rpm import RpmError, RpmTimeoutError, query_changelog, query_deadline, rpm_database
from exitguard.facts.tree import HostTree, unseen_like
from exitguard.model.host import Changelog
from exitguard.model.record import Observed, seen, unseen

#: Debian's signed, unsigned and (from 7.x) split packages, Ubuntu's signed, unsigned and modules packages.
_DEBIAN_PACKAGES = ("linux-image-{}", "linux-image-{}-unsigned", "linux-image-unsigned-{}", "linux-modules-{}", "linux-binary-{}")
#: Proxmox's kernels, the last name the one they had before Proxmox VE 8.1.
_PROXMOX_PACKAGES = ("proxmox-kernel-{}", "proxmox-kernel-{}-signed", "pve-kernel-{}")
_PROXMOX_GAP = "it lists what Proxmox changed, and not what the Ubuntu kernel below did"
_DPKG_FILES = ("changelog.Debian.gz", "changelog.gz")
#: EL 8 and later, EL 7 and Fedora's metapackage, OpenVZ and Virtuozzo.
_RPM_PACKAGES = ("kernel-core-{}", "kernel-{}", "vzkernel-core-{}", "vzkernel-{}")
_DOCUMENTATION = "/usr/share/doc"
#: How many kernels rpm is asked about: far more than a host keeps (dnf.conf(5): installonly_limit is 3).
_MAX_RPM_KERNELS = 16
_MAX_COMPRESSED_BYTES = 16 << 20
_MAX_PLAIN_BYTES = 64 << 20
_INPUT_BYTES = 64 << 10
_OUTPUT_BYTES = 1 << 20
_GZIP = 31  # zlib's window bits for the gzip format

# "Linux version 6.1.0-56-cloud-amd64 (...) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"
# "Linux version 6.8.12-11-pve (...) #1 SMP PREEMPT_DYNAMIC PMX 6.8.12-11 (2025-05-22T09:39Z)"
_DEBIAN_VERSION = re.compile(r"\b(?:Debian|PMX) ([0-9][A-Za-z0-9.+~-]{0,63}) \([0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9:]{5}Z)?\)")
# /proc/version_signature: "Ubuntu 6.8.0-45.45-generic 6.8.12"
_UBUNTU_VERSION = re.compile(r"^Ubuntu ([0-9][A-Za-z0-9.+~]{0,63}-[0-9][A-Za-z0-9.+~]{0,63})-[a-z]")


@dataclass(frozen=True)
class PackageChangelog:
    """One package's changelog, searched; `source` is its file, or the query."""

    source: str
    package: str
    search: ChangelogSearch
    #: Whether the kernel's release, by which the package was found, ties it to one build.
    release_names_build: bool


def read_changelogs(
    tree: HostTree, releases: Sequence[str], *, markers: Sequence[str], running_version: str | None
) -> dict[str, Observed[tuple[PackageChangelog, ...]]]:
    """For each release (checked by facts/boot.py's RELEASE) the changelogs of its packages, or why none could be read.

    rpm is asked in the order of the releases, about a few of them, and no more once it has not answered in time.
    """
    found = {release: _read_dpkg(tree, release, markers, running_version) for release in releases}
    missing = [release for release in releases if not found[release].known]
    if missing:
        with rpm_database(tree) as database:
            if database is not None:
                found.update(_read_rpm(database, missing, markers))
    return found


def read_running_version(tree: HostTree) -> str | None:
    """The package version that the running Debian, Ubuntu or Proxmox kernel says it was built from; None where it says none."""
    signature = tree.read_text("/proc/version_signature")
    version = tree.read_text("/proc/version")
    return parse_running_version(version.value or "", signature.value or "")


def parse_running_version(version: str, signature: str) -> str | None:
    """From /proc/version (Debian, Proxmox) and /proc/version_signature (Ubuntu)."""
    match = _UBUNTU_VERSION.search(signature) or _DEBIAN_VERSION.search(version)
    return match[1] if match is not None else None


def running_changelog(changelogs: Observed[tuple[PackageChangelog, ...]], running_version: str | None) -> Observed[Changelog]:
    """What the running build's changelog says of the guard, or why it does not say."""
    if changelogs.value is None:
        return unseen_like(changelogs)
    first = changelogs.value[0]
    tied = [changelog for changelog in changelogs.value if changelog.release_names_build or running_version is not None]
    if not tied:
        return unseen(
            first.source, "the running kernel does not say which package version it is: this may be the changelog of another build"
        )
    fitting = [changelog for changelog in tied if changelog.search.holds_version]
    if not fitting:
        return unseen(first.source, f"has no entry for the running version {running_version}: the package was changed since the boot")
    chosen = _telling([(changelog, changelog.search.entries) for changelog in fitting])
    if chosen.value is None:
        return unseen_like(chosen)
    changelog, guard_entries = chosen.value
    return seen(changelog.source, Changelog(package=changelog.package, guard_entries=guard_entries))


def installed_guard_entries(changelogs: Observed[tuple[PackageChangelog, ...]]) -> tuple[str, ...] | None:
    """What the changelogs of an installed kernel say of the guard; None where none could be read, or none settles it."""
    if changelogs.value is None:
        return None
    # For the installed build all of its changelog counts: what is newer than the running version too, and before the rest.
    chosen = _telling([(changelog, changelog.search.newer or changelog.search.entries) for changelog in changelogs.value])
    return None if chosen.value is None else chosen.value[1]


def _telling(candidates: Sequence[tuple[PackageChangelog, tuple[GuardEntry, ...]]]) -> Observed[tuple[PackageChangelog, tuple[str, ...]]]:
    """Of one kernel's changelogs the first that names the guard, else the first whose silence counts, and the entries that stand."""
    for changelog, entries in candidates:
        doubtful = withdrawal(entries)
        if doubtful is not None:
            reason = f"the newest version that names the guard may withdraw it, or not have it yet: {doubtful.line}"
            return unseen(changelog.source, reason)
    for changelog, entries in candidates:
        if entries:
            return seen(changelog.source, (changelog, standing_guard(entries)))
    for changelog, _ in candidates:
        if changelog.search.gap is None:
            return seen(changelog.source, (changelog, ()))
    silent, _ = candidates[0]
    return unseen(silent.source, f"does not name the guard, which says nothing: {silent.search.gap}")


def _read_dpkg(tree: HostTree, release: str, markers: Sequence[str], running_version: str | None) -> Observed[tuple[PackageChangelog, ...]]:
    found: list[PackageChangelog] = []
    failures: list[Observed[bytes]] = []
    for pattern in (*_DEBIAN_PACKAGES, *_PROXMOX_PACKAGES):
        package = pattern.format(release)
        for file in _DPKG_FILES:
            path = f"{_DOCUMENTATION}/{package}/{file}"
            compressed = tree.read_bytes(path, limit_bytes=_MAX_COMPRESSED_BYTES)
            if compressed.value is None:
                if compressed.unlock is not None or tree.exists(path):
                    failures.append(compressed)
                continue
            try:
                search = search_changelog(gunzip(compressed.value), markers, version=running_version)
            except ValueError as error:
                failures.append(unseen(path, str(error)))
                continue
            if pattern in _PROXMOX_PACKAGES:
                search = replace(search, gap=search.gap or _PROXMOX_GAP)
            found.append(PackageChangelog(source=path, package=package, search=search, release_names_build=False))
    if found:
        return seen(found[0].source, tuple(found))
    if failures:
        return unseen_like(failures[0])
    reason = f"no package of kernel {release} has a changelog here, nor is there an rpm database"
    return unseen(f"{_DOCUMENTATION}/linux-image-{release}", reason)


def gunzip(compressed: bytes) -> Iterator[bytes]:
    """The plain text in chunks. Raises ValueError where it is no gzip, ends early, or is larger than a changelog can rightly be."""
    decompressor = zlib.decompressobj(_GZIP)
    total_bytes = 0
    for at in range(0, len(compressed), _INPUT_BYTES):
        pending = compressed[at : at + _INPUT_BYTES]
        while pending and not decompressor.eof:
            try:
                plain = decompressor.decompress(pending, _OUTPUT_BYTES)
            except zlib.error as error:
                raise ValueError(f"not a whole gzip file: {error}") from error
            pending = decompressor.unconsumed_tail
            total_bytes += len(plain)
            if total_bytes > _MAX_PLAIN_BYTES:
                raise ValueError(f"unpacks to more than {_MAX_PLAIN_BYTES} bytes, which is more than a changelog can rightly hold")
            yield plain
    if not decompressor.eof:
        raise ValueError("not a whole gzip file: it ends early")


def _read_rpm(
    database: Observed[str], releases: Sequence[str], markers: Sequence[str]
) -> dict[str, Observed[tuple[PackageChangelog, ...]]]:
    if database.value is None:
        return {release: unseen_like(database) for release in releases}
    found: dict[str, Observed[tuple[PackageChangelog, ...]]] = {}
    deadline = query_deadline()
    not_asked = f"rpm was asked about {_MAX_RPM_KERNELS} other kernels, and about no more"
    for release in releases[:_MAX_RPM_KERNELS]:
        try:
            found[release] = _query_rpm(database.source, database.value, release, markers, deadline)
        except RpmTimeoutError as error:
            not_asked = str(error)
            break
    return {release: found.get(release, unseen(database.source, not_asked)) for release in releases}


def _query_rpm(source: str, database: str, release: str, markers: Sequence[str], deadline: float) -> Observed[tuple[PackageChangelog, ...]]:
    """Raises RpmTimeoutError."""
    reason = ""
    for package in (pattern.format(release) for pattern in _RPM_PACKAGES):
        try:
            search = search_changelog(query_changelog(database, package, deadline=deadline), markers)
        except RpmTimeoutError:
            raise
        except RpmError as error:
            reason = reason or str(error)
            continue
        query = f"rpm -q --changelog {package}"
        return seen(query, (PackageChangelog(source=query, package=package, search=search, release_names_build=True),))
    return unseen(source, reason)
