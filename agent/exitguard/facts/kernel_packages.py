"""What the packages of the running and the installed kernels say of the guard in their changelogs.

dpkg's documentation folders are read as files, rpm's database is asked by rpm(8). A changelog is evidence only for the build it
belongs to: Debian reuses a release name (6.1.0-56-amd64) for several versions, so for the running kernel only what stands at or
below the heading of the running version counts. An rpm kernel's release names its build.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exitguard.facts.changelog import ChangelogSearch, search_changelog, standing_guard
from exitguard.facts.rpm import RpmError, query_changelog, rpm_database
from exitguard.facts.tree import HostTree, unseen_like
from exitguard.model.host import Changelog
from exitguard.model.record import Observed, seen, unseen

#: Debian's signed, unsigned and (from 7.x) split packages, Ubuntu's signed, unsigned and modules packages.
_DPKG_PACKAGES = ("linux-image-{}", "linux-image-{}-unsigned", "linux-image-unsigned-{}", "linux-modules-{}", "linux-binary-{}")
_DPKG_FILES = ("changelog.Debian.gz", "changelog.gz")
#: EL 8 and later, EL 7 and Fedora's metapackage, OpenVZ and Virtuozzo.
_RPM_PACKAGES = ("kernel-core-{}", "kernel-{}", "vzkernel-core-{}", "vzkernel-{}")
_DOCUMENTATION = "/usr/share/doc"
_MAX_COMPRESSED_BYTES = 16 << 20
_MAX_PLAIN_BYTES = 64 << 20
_INPUT_BYTES = 64 << 10
_OUTPUT_BYTES = 1 << 20
_GZIP = 31  # zlib's window bits for the gzip format

# "Linux version 6.1.0-56-cloud-amd64 (...) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"
_DEBIAN_VERSION = re.compile(r"\bDebian ([0-9][A-Za-z0-9.+~-]{0,63}) \([0-9]{4}-[0-9]{2}-[0-9]{2}\)")
# /proc/version_signature: "Ubuntu 6.8.0-45.45-generic 6.8.12"
_UBUNTU_VERSION = re.compile(r"^Ubuntu ([0-9][A-Za-z0-9.+~]{0,63}-[0-9][A-Za-z0-9.+~]{0,63})-[a-z]")


@dataclass(frozen=True)
class PackageChangelog:
    """One package's changelog, searched; `source` is its file, or the query."""

    source: str
    package: str
    search: ChangelogSearch


def read_changelogs(
    tree: HostTree, releases: Sequence[str], *, markers: Sequence[str], running_version: str | None
) -> dict[str, Observed[tuple[PackageChangelog, ...]]]:
    """For each release (checked by facts/boot.py's RELEASE) the changelogs of its packages, or why none could be read."""
    found = {release: _read_dpkg(tree, release, markers, running_version) for release in releases}
    missing = [release for release in releases if not found[release].known]
    if missing:
        with rpm_database(tree) as database:
            if database is not None:
                found.update((release, _read_rpm(database, release, markers)) for release in missing)
    return found


def read_running_version(tree: HostTree) -> str | None:
    """The package version that the running Debian or Ubuntu kernel says it was built from; None where it says none."""
    signature = tree.read_text("/proc/version_signature")
    version = tree.read_text("/proc/version")
    return parse_running_version(version.value or "", signature.value or "")


def parse_running_version(version: str, signature: str) -> str | None:
    """From /proc/version (Debian) and /proc/version_signature (Ubuntu)."""
    match = _UBUNTU_VERSION.search(signature) or _DEBIAN_VERSION.search(version)
    return match[1] if match is not None else None


def running_changelog(changelogs: Observed[tuple[PackageChangelog, ...]], running_version: str | None) -> Observed[Changelog]:
    """What the running build's changelog says of the guard: of several packages the first that names it, else the first."""
    if changelogs.value is None:
        return unseen_like(changelogs)
    fitting = [changelog for changelog in changelogs.value if changelog.search.holds_version]
    if not fitting:
        first = changelogs.value[0]
        return unseen(first.source, f"has no entry for the running version {running_version}: the package was changed since the boot")
    chosen = next((changelog for changelog in fitting if changelog.search.entries), fitting[0])
    if chosen.search.entries and chosen.search.entries[0].withdraws:
        return unseen(chosen.source, f"the newest entry that names the guard withdraws it: {chosen.search.entries[0].line}")
    return seen(chosen.source, Changelog(package=chosen.package, guard_entries=standing_guard(chosen.search.entries)))


def installed_guard_entries(changelogs: Observed[tuple[PackageChangelog, ...]]) -> tuple[str, ...]:
    """What the changelogs of an installed kernel say of the guard; empty where they say nothing or could not be read."""
    for changelog in changelogs.value or ():
        entries = (*changelog.search.newer, *changelog.search.entries)
        if entries:
            return standing_guard(entries)
    return ()


def _read_dpkg(tree: HostTree, release: str, markers: Sequence[str], running_version: str | None) -> Observed[tuple[PackageChangelog, ...]]:
    found: list[PackageChangelog] = []
    failures: list[Observed[bytes]] = []
    for package in (pattern.format(release) for pattern in _DPKG_PACKAGES):
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
            found.append(PackageChangelog(source=path, package=package, search=search))
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


def _read_rpm(database: Observed[str], release: str, markers: Sequence[str]) -> Observed[tuple[PackageChangelog, ...]]:
    if database.value is None:
        return unseen_like(database)
    reason = ""
    for package in (pattern.format(release) for pattern in _RPM_PACKAGES):
        try:
            search = search_changelog(query_changelog(database.value, package), markers)
        except RpmError as error:
            reason = reason or str(error)
            continue
        source = f"rpm -q --changelog {package}"
        return seen(source, (PackageChangelog(source=source, package=package, search=search),))
    return unseen(database.source, reason)
