"""The gap note: a small file, allocated in advance, that says what could not be stored while nothing can be written elsewhere.

Its bytes are on the disk before they are needed, and are overwritten in place; so noting a dropped observation needs no
free space (file systems that copy on write, such as btrfs and ZFS, may need some all the same). The note holds one gap,
which grows with each dropped observation, keeps its id, and is blank again once the database has it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import NAMESPACE_OID, uuid4, uuid5

from pydantic import ValidationError

from exitguard.model.history import Gap
from exitguard.model.time import from_microseconds
from exitguard.store.state_dir import create_file, sync_directory

#: One sector, so that a power cut leaves the old note or the new one.
NOTE_BYTES = 512
#: Leaves room for the other fields even where JSON needs two bytes for every character.
_REASON_CHARACTERS = 140


def prepare_note(path: Path) -> None:
    """Allocate the note where it is missing. Raises OSError, on a full disk too."""
    create_file(path)
    with _locked(path) as descriptor:
        if os.fstat(descriptor).st_size < NOTE_BYTES:
            _write(descriptor, b"")
            os.fsync(descriptor)
            sync_directory(path.parent)


def read_note(path: Path) -> Gap | None:
    """The gap that waits to be stored, or None. Raises OSError. A damaged note counts as one dropped observation, not as none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def note_dropped(path: Path, at: datetime, reason: str) -> None:
    """Add one observation of `at`, dropped for `reason`, to the note. Raises OSError."""
    with _locked(path) as descriptor:
        gap = _read(descriptor) or Gap(id=str(uuid4()), first_at=at, last_at=at, dropped=0, reason="")
        grown = gap.model_copy(update={"last_at": at, "dropped": gap.dropped + 1, "reason": _short(reason)})
        _write(descriptor, grown.model_dump_json().encode("utf-8"))


def clear_note(path: Path, stored: Gap) -> None:
    """Blank the note if it still says `stored`; one that has grown since stays. Raises OSError."""
    with _locked(path) as descriptor:
        if _read(descriptor) == stored:
            _write(descriptor, b"")


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The note, open, and for this process alone. An exclusive record lock needs write access, so no mere reader can hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)  # and with it the lock


def _read(descriptor: int) -> Gap | None:
    content = os.pread(descriptor, NOTE_BYTES, 0).strip(b" \n\0")
    if not content:
        return None
    try:
        return Gap.model_validate_json(content)
    except ValidationError:
        written = from_microseconds(os.fstat(descriptor).st_mtime_ns // 1000)
        same_each_time = str(uuid5(NAMESPACE_OID, content.hex()))
        return Gap(id=same_each_time, first_at=written, last_at=written, dropped=1, reason="the note of a gap is damaged")


def _short(reason: str) -> str:
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in reason[:_REASON_CHARACTERS])


def _write(descriptor: int, content: bytes) -> None:
    padded = content.ljust(NOTE_BYTES - 1) + b"\n"
    if os.pwrite(descriptor, padded, 0) != NOTE_BYTES:
        raise OSError(5, "the note of a gap was written in part")
    os.fdatasync(descriptor)
