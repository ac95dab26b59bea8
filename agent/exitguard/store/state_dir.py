"""The state directory, and the host id in it: a UUIDv4 that is minted once and outlives the database."""

import os
import pwd
import re
import secrets
from pathlib import Path
from uuid import uuid4

from exitguard.store.errors import StoreError, StoreOfAnother, explain_os
from exitguard.store.private import open_regular

DATABASE_NAME = "host.sqlite"
HOST_ID_NAME = "host-id"
GAP_NOTE_NAME = "gap-note"

_DIRECTORY_MODE = 0o750
_FILE_MODE = 0o640
_EXPECTED = "a directory that this user may write to"
_LIMIT_BYTES = 256
#: RFC 9562 section 5.4: version 4, variant 10; lower case as section 4 asks of writers.
_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)


def prepare_directory(state_dir: Path) -> None:
    """Create `state_dir` with mode 0750 where it is missing; an existing one keeps its mode. Raises StoreError.

    Root does not write into a directory of another user: its files would lock that user out, and a link that this user put
    there could lead root's writing anywhere.
    """
    try:
        state_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            state_dir.mkdir(mode=_DIRECTORY_MODE)
        except FileExistsError:
            if not state_dir.is_dir():
                raise NotADirectoryError(20, "not a directory") from None
        else:
            state_dir.chmod(_DIRECTORY_MODE)  # whatever the umask
        owner = state_dir.stat().st_uid
    except OSError as error:
        raise explain_os(error, state_dir, _EXPECTED) from error
    if os.geteuid() == 0 and owner != 0:
        user = _name_of(owner)
        raise StoreOfAnother(
            f"{state_dir}: belongs to user {user}, and root does not write there. Expected that user's own process to keep it current, as "
            f"the service does: run this as that user (`runuser -u {user} -- exitguard ...`), or give a --state-dir of root's.",
            reason="the directory of another user",
        )


def _name_of(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def create_file(path: Path) -> None:
    """Create an empty `path` with mode 0640 where it is missing; an existing one stays as it is. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE)
    except FileExistsError:
        return
    try:
        os.fchmod(descriptor, _FILE_MODE)  # whatever the umask
    finally:
        os.close(descriptor)


def mint_host_id(state_dir: Path) -> str:
    """The host id of `state_dir`, minted where there is none. Of processes that race, all get the same. Raises StoreError."""
    path = state_dir / HOST_ID_NAME
    try:
        if not path.exists():
            _write_once(path, f"{uuid4()}\n".encode("ascii"))
    except OSError as error:
        raise explain_os(error, path, f"to create it in {state_dir}, {_EXPECTED}") from error
    return read_host_id(state_dir)


def read_host_id(state_dir: Path) -> str:
    """The host id of `state_dir`. Raises StoreError where there is none, or where the file holds anything else."""
    path = state_dir / HOST_ID_NAME
    try:
        with open_regular(path) as file:  # whoever owns the directory must not keep root waiting at a pipe
            content = file.read(_LIMIT_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: there is no such file. Expected the host id that the first audit mints: run "
            f"`exitguard audit --state-dir {state_dir}`.",
            reason="no host id",
        ) from error
    except OSError as error:
        raise explain_os(error, path, "a readable file that holds the host id") from error
    if _UUID4.fullmatch(content) is None:
        raise StoreError(
            f"{path}: holds {content[:60]!r}. Expected one UUIDv4 in lower case. Restore the file from a backup; or delete it, and the "
            "next audit mints a new id: this host then counts as another one.",
            reason="bad host-id file",
        )
    return content


def _write_once(path: Path, content: bytes) -> None:
    """Create `path` with `content`, whole and durable, or leave the one that another process created first. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    create_file(temporary)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails where `path` exists, unlike a rename
        except FileExistsError:
            return
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
