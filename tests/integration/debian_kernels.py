"""Kernels that Debian ships, fetched from its archive and kept for the next run: kvm.ko and vmlinuz of cloud images.

What the archive holds changes: the newest package of a series is taken. The checksum is that of the suite's index, fetched over the
same way: it tells a broken download, and is no proof of origin; the files are only ever read.
"""

import hashlib
import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_MIRROR = "http://deb.debian.org"
_TIMEOUT_SECONDS = 60
_MOST_BYTES = 200 << 20


class Unavailable(Exception):  # noqa: N818 - a reason to skip
    """The archive does not answer, or no longer has such a kernel."""


@dataclass(frozen=True)
class Series:
    """A series of kernels and where Debian has it: a regular expression of the release, the archive, the suite."""

    release: str
    archive: str
    suite: str


SERIES = {
    "5.10": Series(r"5\.10\.0-\d+-cloud-amd64", "debian-security", "bullseye-security"),
    "6.1": Series(r"6\.1\.0-\d+-cloud-amd64", "debian-security", "bookworm-security"),
    "6.12": Series(r"6\.12\.\d+\+deb12-cloud-amd64", "debian-security", "bookworm-security"),
    "6.16": Series(r"6\.16\.\d+\+deb13-cloud-amd64", "debian", "trixie-backports"),
    "6.18": Series(r"6\.18\.\d+\+deb13-cloud-amd64", "debian", "trixie-backports"),
    "7.x": Series(r"7\.\d+\.\d+\+deb14-cloud-amd64", "debian", "sid"),
}


@dataclass(frozen=True)
class Kernel:
    release: str
    #: A tree as an unpacked package has it: boot/ or lib/modules/R/ with the image, lib/modules/R/kernel/arch/x86/kvm with KVM.
    tree: Path
    module: Path
    image: Path


@dataclass(frozen=True)
class _Package:
    name: str
    path: str
    sha256: str


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exitguard-tests" / "kernels"


def fetch(name: str) -> Kernel:
    """The newest kernel of a series. Raises Unavailable."""
    series = SERIES[name]
    kept = _kept(series)
    if kept is not None:
        return kept
    packages = _packages(series)
    cache_folder().mkdir(parents=True, exist_ok=True)
    failures = []
    for release in sorted({_release(package.name) for package in packages}, key=_version, reverse=True):
        ours = [package for package in packages if _release(package.name) == release]
        # Signed and unsigned images hold the same; a file of the index may be gone from the pool already.
        for wanted in _alternatives(ours):
            try:
                return _unpack(release, [_download(series, package) for package in wanted])
            except (OSError, Unavailable) as error:
                failures.append(f"{wanted[0].path}: {error}")
    raise Unavailable(f"{_MIRROR} has no kernel {name} that could be fetched from {series.suite}: {'; '.join(failures[:3])}")


def _alternatives(packages: list[_Package]) -> Iterator[list[_Package]]:
    split = [package for package in packages if package.name.startswith(("linux-modules-", "linux-binary-"))]
    if split:  # from Linux 7 on, modules and image are packages of their own
        modules = [package for package in split if package.name.startswith("linux-modules-")]
        images = [package for package in split if package.name.startswith("linux-binary-")]
        if modules and images:
            yield [modules[0], images[0]]
        return
    for package in packages:
        yield [package]


def _kept(series: Series) -> Kernel | None:
    folders = [path for path in cache_folder().glob("*") if re.fullmatch(series.release, path.name)]
    return _kernel(max(folders, key=lambda path: _version(path.name))) if folders else None


def _kernel(tree: Path) -> Kernel:
    module = next(tree.rglob("kvm.ko*"))
    image = next(path for path in tree.rglob("vmlinuz*") if path.is_file())
    return Kernel(release=tree.name, tree=tree, module=module, image=image)


def _release(package: str) -> str:
    return re.sub(r"^linux-(?:image|modules|binary)-|-unsigned$", "", package)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:4])


@cache
def _index(archive: str, suite: str) -> str:
    return lzma.decompress(_get(f"{_MIRROR}/{archive}/dists/{suite}/main/binary-amd64/Packages.xz")).decode()


def _packages(series: Series) -> list[_Package]:
    pattern = re.compile(rf"linux-(?:image|modules|binary)-{series.release}(?:-unsigned)?")
    found = []
    for paragraph in _index(series.archive, series.suite).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Filename|SHA256): (.+)$", paragraph, re.MULTILINE))
        if pattern.fullmatch(fields.get("Package", "")):
            found.append(_Package(fields["Package"], fields["Filename"], fields["SHA256"]))
    # A meta-package that only depends on the split ones has nothing in it.
    names = {package.name for package in found}
    return [
        package for package in found if package.name.replace("linux-image-", "linux-modules-") not in names or "-image-" not in package.name
    ]


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - the scheme is in _MIRROR
            content: bytes = answer.read(_MOST_BYTES + 1)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise Unavailable(f"{url}: {error}") from None
    if len(content) > _MOST_BYTES:
        raise Unavailable(f"{url}: larger than {_MOST_BYTES} bytes")
    return content


def _download(series: Series, package: _Package) -> bytes:
    content = _get(f"{_MIRROR}/{series.archive}/{package.path}")
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise Unavailable("is not what the index says it is")
    return content


def _unpack(release: str, packages: list[bytes]) -> Kernel:
    """Keep what is needed of the packages: in a folder of its own that is renamed when it is whole."""
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".new-") as temporary:
        tree = Path(temporary) / release
        for package in packages:
            with tarfile.open(fileobj=io.BytesIO(_data_of(package)), mode="r:xz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if member.isfile() and (name.startswith(("kvm.ko", "vmlinuz", "System.map"))):
                        archive.extract(member, tree, filter="data")
        _kernel(tree)
        target = cache_folder() / release
        shutil.rmtree(target, ignore_errors=True)
        tree.rename(target)
    return _kernel(target)


def _data_of(package: bytes) -> bytes:
    """data.tar.xz of a .deb, which is an ar(5) archive."""
    at = 8
    while at + 60 <= len(package):
        name, size = package[at : at + 16].decode().strip().rstrip("/"), int(package[at + 48 : at + 58])
        if name == "data.tar.xz":
            return package[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise Unavailable("a package without a data.tar.xz")
