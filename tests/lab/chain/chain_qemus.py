"""Real QEMU programs of two Debian releases, each unpacked with the libraries it needs below a folder of its own."""

from pathlib import Path

from debian_packages import BOOKWORM, Release, unpacked

#: The emulator; and a kernel's module loader, a shell and what a shell needs, in one program without libraries.
_PACKAGES = ("qemu-system-x86", "busybox-static")

#: The last QEMU that only hides the PMU from a guest which Debian 12 has, and one that also switches it off in KVM (11.0 and later).
RELEASES = (
    BOOKWORM,
    Release("trixie-backports", (("debian", "trixie"), ("debian", "trixie-backports"), ("debian-security", "trixie-security"))),
)


def unpacked_qemu(release: Release, folder: Path) -> Path:
    """The root folder of the QEMU of `release` below `folder`, fetched there unless it has been before. Raises PackagesError."""
    return unpacked(release, _PACKAGES, folder / release.suite)
