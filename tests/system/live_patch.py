"""A live patch built for the test machine's kernel, with the headers that its release has in Debian's archive."""

import re
import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("live_patch.c")
_PROGRAMS = ("apt-get", "dpkg", "gcc-12", "make")
_LIMIT_SECONDS = 300


class NoHeadersError(Exception):
    """Why nothing can be built for that kernel here."""


def fetch_headers(folder: Path, release: str) -> Path:
    """The folder to build modules in for a Debian kernel, unpacked below `folder`. Raises NoHeadersError."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NoHeadersError(f"missing: {', '.join(missing)}")
    match = re.fullmatch(r"((\d+\.\d+)\.\S+-\d+)-(\S+)", release)
    if match is None:
        raise NoHeadersError(f"{release} is not a release of Debian's")
    packages = (f"linux-headers-{release}", f"linux-headers-{match[1]}-common", f"linux-kbuild-{match[2]}")
    fetched = _run(folder, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages)
    if fetched.returncode != 0:
        raise NoHeadersError(f"{packages[0]} cannot be downloaded: {fetched.stderr.strip()[-300:]}")
    root = folder / "root"
    for package in sorted(folder.glob("linux-*.deb")):
        unpacked = _run(folder, "dpkg", "-x", str(package), str(root))
        assert unpacked.returncode == 0, unpacked.stderr
    headers = root / "usr/src" / packages[0]
    makefile = headers / "Makefile"  # one line, which includes a file by the path that it has when it is installed
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
    return headers


def build_live_patch(folder: Path, headers: Path, name: str, *, guarded: bool) -> Path:
    """The module `name`.ko: a copy of kvm_skip_emulated_instruction() with or without the guard."""
    folder.mkdir()
    shutil.copyfile(_SOURCE, folder / f"{name}.c")
    (folder / "Kbuild").write_text(f"obj-m := {name}.o\nccflags-y := {'-DGUARDED' if guarded else ''}\n")
    built = _run(folder, "make", "-C", str(headers), f"M={folder}", "modules")
    assert built.returncode == 0, built.stderr
    return folder / f"{name}.ko"


def _run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
