"""Approvals: a person's word that the plan with one hash may be carried out, once.

An approval is a file that root alone can lay down, `<64 hex digits of the plan's hash>.json`. It holds no command, and nothing in it is
ever carried out: the privileged process makes the plan anew from what it sees itself, and only compares the hash. The run that uses an
approval moves it to `used/`, before anything is done.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exitguard.model.time import UtcTime, format_rfc3339
from exitguard.store.errors import StoreError
from exitguard.store.private import explain_private, hand_of_others, make_private_directory, open_regular

_USED = "used"
_LIMIT_BYTES = 64 * 1024
_PLAN_HASH = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}", re.ASCII)
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPROVE = "Have it approved by `exitguard approve PLAN`."
_REMOVE = "See who put it there and remove it, then have the plan approved by `exitguard approve PLAN`."


class ApprovalError(Exception):
    """There is no approval that counts; the message says why, and what to do next."""


class Approval(BaseModel):
    """Who lets the plan with this hash be carried out, from when until when."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    plan: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    approver: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    approved_at: UtcTime
    expires: UtcTime
    comment: Annotated[str, Field(max_length=2000)] = ""


def write_approval(  # noqa: PLR0917 - in the order of the file
    directory: Path, plan_hash: str, approver: str, approved_at: datetime, expires: datetime, comment: str
) -> Path:
    """Lay down an approval; its file. The same one twice is one. Raises ApprovalError, also where another of this plan is there."""
    name = _name_of(plan_hash)
    path = directory / name
    try:
        approval = Approval(plan=plan_hash, approver=approver, approved_at=approved_at, expires=expires, comment=comment)
    except ValidationError as error:
        raise ApprovalError(f"no approval was written: {_first_problem(error)}.") from None
    if approval.expires <= approval.approved_at:
        raise ApprovalError(
            f"no approval was written: it would expire at {format_rfc3339(expires)}, and is given at {format_rfc3339(approved_at)}. "
            "Expected a later time."
        )
    try:
        make_private_directory(directory)
    except StoreError as error:
        raise ApprovalError(str(error)) from error
    with _opened(directory) as descriptor, _explained(path, "to create this approval"):
        if _lay_down(descriptor, name, approval.model_dump_json(indent=2).encode("utf-8") + b"\n"):
            return path
        there = _approval_in(descriptor, name, path)
        if there is None or there[0] != approval:
            raise ApprovalError(
                f"{path}: another approval of this plan is there{_by(there)}. Expected none: an approval is never written over. Use that "
                f"one, or take it back first (`rm {path}`)."
            )
    return path


def find_approval(directory: Path, plan_hash: str, now: datetime) -> Approval:
    """The approval of a plan that counts now. Raises ApprovalError, which says what to do next."""
    with _opened(directory) as descriptor:
        approval, _ = _counting(descriptor, directory, plan_hash, now)
        return approval


def spend_approval(directory: Path, plan_hash: str, run_id: str, now: datetime) -> Approval:
    """The approval of a plan, moved to `used/` for this one run. Call it before the run does anything; of two runs one gets it.

    A run that has it already gets it again, expired or not: one that was interrupted can be taken up. Raises ApprovalError.
    """
    name = _name_of(plan_hash)
    if _RUN_ID.fullmatch(run_id) is None:
        raise ApprovalError(f"{run_id!r} is not the id of a run. Expected letters, digits and dashes.")
    used_name = f"{name.removesuffix('.json')}-{run_id}.json"
    used_path = directory / _USED / used_name
    with _opened(directory) as descriptor:
        with _explained(used_path, "to create this directory"), suppress(FileExistsError):
            os.mkdir(_USED, mode=0o700, dir_fd=descriptor)
        with _opened(directory / _USED, _USED, descriptor) as used:
            spent = _approval_in(used, used_name, used_path)
            if spent is not None and spent[0].plan == plan_hash:
                return spent[0]
            approval, seen = _counting(descriptor, directory, plan_hash, now)
            with _explained(used_path, "to move the approval there"):
                try:
                    os.rename(name, used_name, src_dir_fd=descriptor, dst_dir_fd=used)
                except FileNotFoundError:
                    raise ApprovalError(f"{directory / name}: another run has just used this approval. {_APPROVE}") from None
                os.fsync(used)
                os.fsync(descriptor)
                moved = os.stat(used_name, dir_fd=used, follow_symlinks=False)
            if not os.path.samestat(seen, moved):
                raise ApprovalError(
                    f"{used_path}: is not the file that was read a moment ago: somebody exchanged it. Expected nobody to. {_REMOVE}"
                )
            return approval


@contextmanager
def _opened(directory: Path, name: str | None = None, within: int | None = None) -> Iterator[int]:
    """The directory, open, and checked to be one that nobody else has a hand in."""
    with _explained(directory, "a directory of root's with mode 0700, and no link to one"):
        try:
            descriptor = os.open(directory if name is None else name, _OPEN_DIRECTORY, dir_fd=within)
        except FileNotFoundError:
            raise ApprovalError(f"{directory}: there is no such directory, so no plan is approved. {_APPROVE}") from None
    try:
        problem = hand_of_others(os.fstat(descriptor))
        if problem is not None:
            raise ApprovalError(
                f"{directory}: {problem}, so no approval in it counts. Expected a directory of root's with mode 0700: see who has been "
                f"there, then `chown root: {directory}; chmod 700 {directory}`."
            )
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path, expected: str) -> Iterator[None]:
    """What the system refuses, in words."""
    try:
        yield
    except OSError as error:
        raise ApprovalError(str(explain_private(error, path, expected))) from error


def _counting(descriptor: int, directory: Path, plan_hash: str, now: datetime) -> tuple[Approval, os.stat_result]:
    """The approval of the plan, if it counts now, and the file that said so."""
    name = _name_of(plan_hash)
    path = directory / name
    found = _approval_in(descriptor, name, path)
    if found is None:
        raise ApprovalError(f"{path}: there is no such file: plan {plan_hash} is not approved{_used_by(directory, name)}. {_APPROVE}")
    approval, status = found
    if approval.plan != plan_hash:
        raise ApprovalError(f"{path}: approves another plan, {approval.plan}. Expected the hash in its name. {_REMOVE}")
    if approval.approved_at > now:
        raise ApprovalError(
            f"{path}: was given at {format_rfc3339(approval.approved_at)}, and now is {format_rfc3339(now)}. Expected a time that is past: "
            "look at this machine's clock, and at who wrote the file."
        )
    if approval.expires <= now:
        raise ApprovalError(
            f"{path}: expired at {format_rfc3339(approval.expires)}. Expected one that counts now: remove it (`rm {path}`), make the plan "
            "again and have it approved by `exitguard approve PLAN`."
        )
    return approval, status


def _approval_in(descriptor: int, name: str, path: Path) -> tuple[Approval, os.stat_result] | None:
    """What one file of an open directory says, checked to be one that nobody else has a hand in; None where there is none."""
    with _explained(path, "an approval: a regular file of root's, and no link to one"):
        try:
            opened = open_regular(name, within=descriptor)
        except FileNotFoundError:
            return None
        with opened as file:
            status = os.fstat(file.fileno())
            problem = hand_of_others(status)
            if problem is not None:
                raise ApprovalError(f"{path}: {problem}, so it does not count. Expected a regular file of root's with mode 0600. {_REMOVE}")
            content = file.read(_LIMIT_BYTES + 1)
    if len(content) > _LIMIT_BYTES:
        raise ApprovalError(f"{path}: has more than {_LIMIT_BYTES} bytes. Expected an approval. {_REMOVE}")
    try:
        return Approval.model_validate_json(content), status
    except ValidationError as error:
        raise ApprovalError(f"{path}: is no approval: {_first_problem(error)}. {_REMOVE}") from None


def _lay_down(descriptor: int, name: str, content: bytes) -> bool:
    """Whether the file was created, whole and durable; False where there is one of this name. Raises OSError."""
    temporary = f".{name}.{secrets.token_hex(4)}"
    file_descriptor = os.open(temporary, _CREATE_FILE, 0o600, dir_fd=descriptor)
    try:
        with os.fdopen(file_descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file_descriptor)
        try:  # a link fails where the name is taken, unlike a rename
            os.link(temporary, name, src_dir_fd=descriptor, dst_dir_fd=descriptor, follow_symlinks=False)
        except FileExistsError:
            return False
    finally:
        os.unlink(temporary, dir_fd=descriptor)
    os.fsync(descriptor)
    return True


def _name_of(plan_hash: str) -> str:
    if _PLAN_HASH.fullmatch(plan_hash) is None:
        raise ApprovalError(f"{plan_hash!r} is not the hash of a plan. Expected sha256: and 64 hex digits, as `exitguard plan` shows it.")
    return f"{plan_hash.removeprefix('sha256:')}.json"


def _by(there: tuple[Approval, os.stat_result] | None) -> str:
    return "" if there is None else f", given by {there[0].approver!r} until {format_rfc3339(there[0].expires)}"


def _used_by(directory: Path, name: str) -> str:
    """Which run has used it up, where one has."""
    digits = name.removesuffix(".json")
    used = sorted((directory / _USED).glob(f"{digits}-*.json"))
    return f" any more: run {used[-1].stem.removeprefix(digits + '-')} has used its approval, and one is good for one run" if used else ""


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
