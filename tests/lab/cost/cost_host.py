"""The host of the cost lab: Debian's Python with the agent of this checkout, and a loop in C that shares nothing with it."""

import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

from debian_packages import BOOKWORM, unpacked
from emulated_host import LabError, run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
_FOLDERS = ("dev", "proc", "sys", "told", "run", "lab/modules")
#: Python as Debian 12 has it, and a shell with what a shell needs in one program.
_PACKAGES = ("python3.11", "busybox-static")
_PYTHON = "usr/bin/python3.11"
_PYTHON_VERSION = "3.11"
_WHEELS = "x86_64-manylinux_2_28"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
#: Runs a program of another root with that root's own libraries.
_LOADER = "lib64/ld-linux-x86-64.so.2"


def why_no_agent() -> str | None:
    """What this machine lacks to make the host's programs; None where nothing is missing."""
    missing = [program for program in ("gcc", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        return f"missing: {', '.join(missing)}; apt-get install gcc libc6-dev"
    return None if _uv().exists() else f"{_uv()} is missing: `make setup-dev` installs it"


def make_root(root: Path, downloads: Path) -> None:
    """Everything on the host's disk but KVM's modules and the plan, at `root`, made anew. Raises LabError, PackagesError.

    What is fetched stays below `downloads`, on the same file system.
    """
    shutil.rmtree(root, ignore_errors=True)
    debian = unpacked(BOOKWORM, _PACKAGES, downloads / "debian")
    _compile_modules(debian, debian / "usr/lib/python3.11")
    # The same files, not copies of them.
    shutil.copytree(debian, root, symlinks=True, copy_function=os.link)
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(_dependencies(downloads), root / "lab/agent", copy_function=os.link)
    _unpack_agent(downloads, root / "lab/agent")
    _compile_modules(debian, root / "lab/agent")
    make_exit_loop(root / "lab/exit_loop")
    shutil.copy(HERE / "init", root / "init")
    (root / "init").chmod(0o755)


def make_exit_loop(program: Path) -> Path:
    """The loop in C, which needs no library of the host. Raises LabError."""
    run("gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(HERE / "exit_loop.c"))
    return program


def _uv() -> Path:
    return Path(sys.executable).with_name("uv")


def _dependencies(folder: Path) -> Path:
    """What uv.lock names for the agent, as wheels for the host's Python; fetched anew where it names others."""
    wanted = run(str(_uv()), "export", "--project", str(ROOT), "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-header")
    dependencies = folder / "dependencies" / sha256(wanted.encode()).hexdigest()[:12]
    if dependencies.is_dir():
        return dependencies
    shutil.rmtree(folder / "dependencies", ignore_errors=True)
    part = folder / "dependencies/part"
    part.mkdir(parents=True)
    (folder / "dependencies/requirements").write_text(wanted)
    words = [str(_uv()), "pip", "install", "--quiet", "--target", str(part), "--only-binary", ":all:", "--no-deps"]
    words += [
        "--python-version",
        _PYTHON_VERSION,
        "--python-platform",
        _WHEELS,
        "--requirements",
        str(folder / "dependencies/requirements"),
    ]
    run(*words, limit_seconds=600)
    part.rename(dependencies)
    return dependencies


def _unpack_agent(folder: Path, target: Path) -> None:
    """The wheel of this checkout, as it is to be installed."""
    built = folder / "wheel"
    shutil.rmtree(built, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(built), str(ROOT), limit_seconds=300)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)


def _compile_modules(debian: Path, folder: Path) -> None:
    """Compile `folder`'s modules by the host's own Python: an emulated processor would take a minute for it at each start.

    The host believes the result unseen, since a file's time on its disk is another.
    """
    libraries = ":".join(str(debian / name) for name in _LIBRARIES)
    words = [str(debian / _LOADER), "--library-path", libraries, str(debian / _PYTHON), "-m", "compileall", "-q", "-j", "0"]
    words += ["--invalidation-mode", "unchecked-hash", str(folder)]
    environment = {"PATH": os.defpath, "PYTHONHOME": str(debian / "usr")}
    result = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    # compileall ends with 1 where one of many files is no Python 3.11: templates and tests of others are among them.
    if result.returncode not in {0, 1}:
        raise LabError(f"the modules in {folder} could not be compiled: {result.stdout[-500:]}{result.stderr[-2000:]}")
