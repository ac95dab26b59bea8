"""Plans as files: what `exitguard plan` writes, an approver reads, and `exitguard apply` carries out."""

import os
import secrets
from pathlib import Path

from pydantic import ValidationError

from exitguard.model.plan import Plan
from exitguard.report.json_document import json_text
from exitguard.store.errors import explain_os

#: Larger than a plan for 10,000 hosts with 40 domains each.
_LIMIT_BYTES = 1024 * 1024 * 1024
_MODE = 0o600
_PLANS_KEPT = 50


class PlanFileError(Exception):
    """A file that holds no plan; the message says why."""


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises PlanFileError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise PlanFileError(
            f"{path}: {(error.strerror or str(error)).lower()}. Expected a plan: `exitguard plan --format json --output FILE`."
        ) from error
    if len(content) > _LIMIT_BYTES:
        raise PlanFileError(f"{path}: expected at most {_LIMIT_BYTES} bytes, found more.")
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise PlanFileError(f"{path}: no plan: {where}: {first['msg']}. Expected what `exitguard plan --format json` writes.") from error


def save_plan(plan: Plan, directory: Path) -> Path:
    """Keep a plan under its hash, for an approver to read; the file's path. Raises StoreError."""
    path = directory / f"{plan.hash.removeprefix('sha256:')}.json"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _MODE)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json_text(plan))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise explain_os(error, path, "a directory that this user may write to") from error
    _forget_old(directory)
    return path


def _forget_old(directory: Path) -> None:
    """Keep the newest: a host on which guests come and go makes another plan each time."""
    kept = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[_PLANS_KEPT:]:
        path.unlink(missing_ok=True)
