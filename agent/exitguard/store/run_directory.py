"""The directory of one run: made whole or not at all, and its plan read back only as it was then."""

import hashlib
import os
from pathlib import Path

from pydantic import ValidationError

from exitguard.model.plan import Plan
from exitguard.store import process_lock
from exitguard.store.errors import StoreError, StoreFull, StoreNewer
from exitguard.store.event_log import Header, header_line, set_aside
from exitguard.store.private import explain_private, open_regular
from exitguard.store.process_lock import ProcessLock
from exitguard.store.state_dir import sync_directory

#: The plan of a whole fleet is large; more than this is no plan.
MAX_PLAN_BYTES = 2**30

LOCK, PLAN, JOURNAL, ANSIBLE = "lock", "plan.json", "journal.jsonl", "ansible"


def make_run(coming: Path, directory: Path, plan: Plan) -> ProcessLock:
    """The lock on the new run, which is on the disk under its name when this returns. Raises OSError, StoreFull."""
    content = plan.model_dump_json().encode("utf-8") + b"\n"
    if len(content) > MAX_PLAN_BYTES:
        raise _too_large(directory / PLAN)
    coming.mkdir(mode=0o700)
    (coming / ANSIBLE).mkdir(mode=0o700)
    write_durably(coming / PLAN, content)
    write_durably(coming / JOURNAL, header_line(Header(run_id=directory.name, plan_file=hashlib.sha256(content).hexdigest())))
    lock = process_lock.take(coming / LOCK)
    if lock is None:
        raise BlockingIOError(11, "another process has locked it")
    try:
        lock.say(f"process {os.getpid()}")
        sync_directory(coming)
        coming.rename(directory)
        sync_directory(directory.parent)
    except OSError:
        lock.release()
        raise
    return lock


def write_durably(path: Path, content: bytes) -> None:
    """A new file with `content`, mode 0600. Raises OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def read_plan(directory: Path, header: Header) -> Plan:
    """The plan of the run in `directory`, whose journal begins with `header`. Raises StoreError where it is any other."""
    path = directory / PLAN
    if header.run_id != directory.name:
        raise _bad_plan(directory / JOURNAL, f"is the journal of run {header.run_id}")
    content = _read_file(path)
    if hashlib.sha256(content).hexdigest() != header.plan_file:
        raise _bad_plan(path, "is not the plan that this run's journal was begun with")
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        if any(detail["loc"] == ("schema_version",) for detail in details):
            raise StoreNewer(
                f"{path}: was written by a newer exitguard. Expected schema_version 1. It was left as it is: use the "
                "version that wrote it, or a later one.",
                reason="a newer plan",
            ) from None
        where = ".".join(map(str, details[0]["loc"])) or "all of it"
        raise _bad_plan(path, f"is no plan that this version knows ({where}: {details[0]['msg'].lower()})") from None


def _read_file(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise explain_private(error, path, "the plan of the run") from error
    if len(content) > MAX_PLAN_BYTES:
        raise _too_large(path)
    return content


def _bad_plan(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: {what}. Expected the plan as it was when the run was made. {set_aside(path.parent)}",
        reason="the plan of the run is damaged",
    )


def _too_large(path: Path) -> StoreFull:
    return StoreFull(
        f"{path}: more than {MAX_PLAN_BYTES} bytes. Expected less in one plan: `exitguard plan` over a part of the inventory.",
        reason="the plan is too large",
    )
