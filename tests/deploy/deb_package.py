"""The Debian package as a file: built as its makers build it, and taken apart."""

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from debian_root import REPOSITORY, DebianRoot

#: Every system has this user, and it owns nothing.
ORDINARY_USER = "nobody"
# What any installation writes: dpkg's own records, logs, caches, and the users, which stay when their package goes.
_USERS = [f"/etc/{name}{backup}" for name in ("passwd", "group", "shadow", "gshadow") for backup in ("", "-")]
RECORDS = ["/proc", "/dev", "/sys", "/var/lib/dpkg", "/var/log", "/var/cache", "/etc/.pwd.lock", *_USERS]
_LIMIT_SECONDS = 500
_KEPT_VARIABLES = ("UV_", "SSL_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_NOBODY_IN_PARTICULAR = ("-c", "user.name=test", "-c", "user.email=test@exitguard.invalid")


@dataclass(frozen=True)
class Entry:
    """One file, directory or link of a tree, without its times."""

    kind: str
    mode: int
    user_id: int
    group_id: int
    #: A link's target, the SHA-256 of a file, empty for anything else.
    content: str


def build_deb(tree: Path, *options: str | Path, home: Path, user: str | None = None) -> subprocess.CompletedProcess[str]:
    """`scripts/build_deb.sh OPTIONS...` of `tree`, as this process's user or as another, in a plain environment."""
    as_user: tuple[str, ...] = ()
    if user is not None:
        account = pwd.getpwnam(user)
        as_user = ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
    return subprocess.run(
        [*as_user, "scripts/build_deb.sh", *options],
        cwd=tree,
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            **{name: value for name, value in os.environ.items() if name.startswith(_KEPT_VARIABLES)},
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )


def copy_of_the_checkout(into: Path, *, owner: str) -> None:
    """The files of the checkout as a repository of `owner`'s, with a uv and its downloads: what building takes, and no more."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    for name in names:
        if (REPOSITORY / name).exists():  # a file that was deleted and not yet committed is listed too
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, into / name, follow_symlinks=False)
    (into / ".venv/bin").mkdir(parents=True)
    shutil.copy2(REPOSITORY / ".venv/bin/uv", into / ".venv/bin/uv")
    for downloads in (REPOSITORY / ".local/deb").glob("uv-*"):
        shutil.copytree(downloads, into / ".local/deb" / downloads.name, symlinks=True)
    account = pwd.getpwnam(owner)
    for path in (into, *into.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    as_owner = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    for arguments in (["init", "--quiet"], [*_NOBODY_IN_PARTICULAR, "commit", "--quiet", "--allow-empty", "--message", "copy"]):
        subprocess.run([*as_owner, "git", *arguments], cwd=into, env={**os.environ, "HOME": str(into)}, check=True, capture_output=True)


def unpack(deb: Path, into: Path) -> Path:
    """`into` with the files of the package, and its control files in DEBIAN."""
    subprocess.run(["dpkg-deb", "--raw-extract", deb, into], check=True, capture_output=True)
    return into


def install(root: DebianRoot, deb: Path) -> str:
    """What dpkg says while it installs the package in `root`, or upgrades to it. Raises DebianRootError."""
    brought = root.at(f"/root/{deb.name}")
    shutil.copyfile(deb, brought)
    try:
        return root.must("dpkg", "--install", f"/root/{deb.name}")
    finally:
        brought.unlink()


def field(deb: Path, name: str) -> str:
    """One field of the package's control file."""
    return subprocess.run(["dpkg-deb", "--field", deb, name], check=True, capture_output=True, text=True).stdout.strip()


def entries(tree: Path, *, without: Iterable[str] = ()) -> dict[str, Entry]:
    """Everything below `tree` by its absolute path there; not what lies in one of `without`."""
    excluded = tuple(without)
    found: dict[str, Entry] = {}
    for folder, folders, files in os.walk(tree):
        inside = "/" + os.path.relpath(folder, tree).removeprefix(".")
        prefix = inside.rstrip("/")
        folders[:] = [name for name in folders if f"{prefix}/{name}" not in excluded]
        for name in (*folders, *files):
            if f"{prefix}/{name}" not in excluded:
                found[f"{prefix}/{name}"] = _entry(Path(folder, name))
    return found


def _entry(path: Path) -> Entry:
    status = path.lstat()
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFLNK:
            kind, content = "link", str(path.readlink())
        case stat.S_IFREG:
            kind, content = "file", hashlib.sha256(path.read_bytes()).hexdigest()
        case stat.S_IFDIR:
            kind, content = "directory", ""
        case _:
            kind, content = "special", ""
    return Entry(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, content)
