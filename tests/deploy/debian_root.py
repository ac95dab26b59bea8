"""Clean roots of this machine's own Debian release: file trees made by debootstrap, entered by chroot in namespaces of their own.

A root is made once and kept as a tar below .local/debian-root; a test gets a copy, which is removed after it. Mounts live in the
namespaces of the command that needs them, so none is left behind, however the command ends. No service runs in such a root.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_CACHE = REPOSITORY / ".local" / "debian-root"
#: Part of every key: a change in how a root is made makes all of them anew.
_FORMAT = 2
_DEBOOTSTRAP_LIMIT_SECONDS = 900
_COMMAND_LIMIT_SECONDS = 300
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

# $1 is the root, $2 how many of the following paths of this machine are shown in it, read-only; then the command.
_ENTER = """
root=$1; shows=$2; shift 2
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do : >"$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
while [ "$shows" -gt 0 ]; do
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}"; : >>"$root$1"; fi
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
    shows=$((shows - 1)); shift
done
exec chroot "$root" "$@"
"""


class DebianRootError(Exception):
    """A root could not be made, with what the tool that failed said."""


@dataclass(frozen=True)
class AptSource:
    """One line of sources: where this machine itself gets its Debian from."""

    uri: str
    suite: str
    component: str
    #: A keyring file, or empty for those that apt trusts anyway.
    signed_by: str

    def __str__(self) -> str:
        options = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {options}{self.uri} {self.suite} {self.component}"


@dataclass(frozen=True)
class DebianRoot:
    """The file tree of one root."""

    path: Path

    def run(
        self,
        *command: str | Path,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
        shows: Sequence[Path] = (),
        timeout_seconds: float = _COMMAND_LIMIT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """`command` in the root, as root or as its `user`, to its end; `shows` are paths of this machine that it sees, read-only."""
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups") if user else ()
        return subprocess.run(
            [*_NAMESPACES, "sh", "-ec", _ENTER, "sh", self.path, str(len(shows)), *shows, *as_user, *command],
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/nonexistent" if user else "/root",
                "LANG": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
                **{name: os.environ[name] for name in _PROXIES if name in os.environ},
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def must(self, *command: str | Path, user: str | None = None, environment: Mapping[str, str] | None = None) -> str:
        """Standard output of a command that has to succeed in the root. Raises DebianRootError with all that it said."""
        result = self.run(*command, user=user, environment=environment)
        if result.returncode != 0:
            raise DebianRootError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout

    def at(self, path: str | Path) -> Path:
        """Where an absolute path of the root is on this machine; links on the way are not followed into the root."""
        return self.path / str(path).lstrip("/")


def why_no_debian_root() -> str | None:
    """What is missing on this machine for a clean Debian root; None where one can be made."""
    if os.geteuid() != 0:
        return "a clean Debian root takes root (chroot, mount)"
    for program in ("debootstrap", "unshare", "chroot", "apt-get"):
        if shutil.which(program) is None:
            return f"a clean Debian root takes {program}: scripts/system_packages.sh test installs it on Debian"
    if subprocess.run([*_NAMESPACES, "true"], capture_output=True, check=False).returncode != 0:
        return "namespaces cannot be made here (unshare --mount --pid)"
    if _main_source(_sources()) is None:
        return f"apt of this machine names no archive of Debian {_codename()}"
    return None


@contextmanager
def clean_root(depends: str = "") -> Iterator[DebianRoot]:
    """A copy of a minimal Debian, with what satisfies `depends` (as in a control file) from the archive and nothing more.

    Only the first call for the same release, sources and `depends` needs the network. Raises DebianRootError.
    """
    archive = _archive(depends)
    place = Path(tempfile.mkdtemp(prefix="run-", dir=_CACHE))
    try:
        _must("tar", "--extract", "--same-owner", "--preserve-permissions", "--file", archive, "--directory", place)
        yield DebianRoot(place)
    finally:
        shutil.rmtree(place)


def _archive(depends: str) -> Path:
    """The tar of a root; made where it is not there. Of several processes that ask for it, one makes it."""
    sources = _sources()
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        minimal = _CACHE / f"minimal-{_key(sources)}.tar"
        if not minimal.exists():
            for older in _CACHE.glob("*.tar"):
                older.unlink()
            _keep(minimal, None, sources, "")
        if not depends:
            return minimal
        prepared = _CACHE / f"prepared-{_key(sources, depends)}.tar"
        if not prepared.exists():
            _keep(prepared, minimal, sources, depends)
        return prepared


def _keep(archive: Path, minimal: Path | None, sources: Sequence[AptSource], depends: str) -> None:
    place = Path(tempfile.mkdtemp(prefix="make-", dir=_CACHE))
    place.chmod(0o755)  # it becomes /, where everybody has to pass
    root = DebianRoot(place)
    try:
        if minimal is None:
            _bootstrap(root, sources)
        else:
            _must("tar", "--extract", "--same-owner", "--preserve-permissions", "--file", minimal, "--directory", place)
            root.must("apt-get", "-q", "-o", "Acquire::Retries=3", "update")
            root.must("apt-get", "-q", "-y", "-o", "Acquire::Retries=3", "satisfy", "--no-install-recommends", depends)
            root.must("apt-get", "clean")
        unfinished = archive.with_suffix(".unfinished")
        # Numeric: the root's users are not this machine's.
        _must("tar", "--create", "--numeric-owner", "--one-file-system", "--file", unfinished, "--directory", place, ".")
        unfinished.rename(archive)
    finally:
        shutil.rmtree(place)


def _bootstrap(root: DebianRoot, sources: Sequence[AptSource]) -> None:
    main = _main_source(sources)
    if main is None:
        raise DebianRootError(why_no_debian_root() or "no archive")
    keyring = [f"--keyring={main.signed_by}"] if main.signed_by else []
    # debootstrap mounts /proc in its target; in a namespace that goes with it.
    _must(*_NAMESPACES, "debootstrap", "--variant=minbase", *keyring, main.suite, root.path, main.uri)
    shutil.rmtree(root.at("/var/cache/apt/archives"))
    root.at("/etc/apt/sources.list").write_text("".join(f"{source}\n" for source in sources))
    # A root that does not outlive its test need not outlive a power failure.
    root.at("/etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    # How this machine reaches its archive: proxies, certificates, clocks that are off.
    acquire = _must("apt-config", "dump", "Acquire")
    root.at("/etc/apt/apt.conf.d/10-as-this-machine").write_text(acquire)
    for name in {*(source.signed_by for source in sources if source.signed_by), *_certificates(acquire), "/etc/resolv.conf", "/etc/hosts"}:
        if Path(name).is_file():
            root.at(name).parent.mkdir(parents=True, exist_ok=True)
            root.at(name).unlink(missing_ok=True)
            shutil.copyfile(name, root.at(name))


def _certificates(acquire: str) -> set[str]:
    named = {line.split('"')[1] for line in acquire.splitlines() if "::CaInfo " in line or "::CAInfo " in line}
    return {*named, "/etc/ssl/certs/ca-certificates.crt"}


def _sources() -> list[AptSource]:
    """The binary archives of this machine's release, as apt itself reads its sources, in whichever form they are written."""
    listed = _must("apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)", "Created-By: Packages")
    sources = []
    for line in listed.splitlines():
        uri, suite, component, signed_by = line.split("|", 3)
        if suite.partition("-")[0] == _codename():
            # Unset fields stay as they were asked for; a key may also stand in the source itself, and then the release's own must do.
            sources.append(AptSource(uri, suite, component, signed_by if signed_by.startswith("/") else ""))
    return sorted(set(sources), key=str)


def _main_source(sources: Sequence[AptSource]) -> AptSource | None:
    return next((source for source in sources if source.suite == _codename() and source.component == "main"), None)


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return ""


def _key(sources: Sequence[AptSource], depends: str = "") -> str:
    text = "\n".join([str(_FORMAT), *map(str, sources), depends])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _must(*command: str | Path) -> str:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DEBOOTSTRAP_LIMIT_SECONDS, check=False
    )
    if result.returncode != 0:
        raise DebianRootError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout[-4000:]}{result.stderr[-4000:]}")
    return result.stdout
