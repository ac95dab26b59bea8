"""The reports that `exitguard report` is given as files: what `exitguard audit --format json` wrote on one host or on many."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from exitguard.model.documents import AuditReport
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN, exit_code
from exitguard.model.time import UtcTime

#: A host with 5,000 guests makes some 30 MB.
_LIMIT_BYTES = 256 << 20
_MOST_FILES = 100_000
#: Of exit codes, the best first. A report with some of its findings left out may say worse than these, and never better.
_BADNESS = (EXIT_COMPLIANT, EXIT_UNKNOWN, EXIT_NOT_COMPLIANT, EXIT_ERROR)
_EXPECTED = "a file that `exitguard audit --format json --output FILE` wrote"


class _Host(BaseModel):
    id: str


class _Summary(BaseModel):
    exit_code: int = Field(ge=EXIT_COMPLIANT, le=EXIT_UNKNOWN)


class _Head(BaseModel):
    """What of a report decides whether it is the one that counts; the rest is skipped unparsed."""

    observed_at: UtcTime
    host: _Host
    summary: _Summary


class _Many(BaseModel):
    """What tells the document of many hosts from that of one."""

    generated_at: UtcTime
    reports: list[dict[str, object]]


@dataclass
class ReportFiles:
    """The newest file of each host, and what could not be used. `read` gives the reports one by one."""

    newest: list[Path] = field(default_factory=list)
    #: Of all files: host, when, exit code.
    history: list[tuple[str, datetime, int]] = field(default_factory=list)
    #: A sentence each.
    unread: list[str] = field(default_factory=list)
    #: A sentence for each file that is left out with reason.
    left_out: list[str] = field(default_factory=list)

    def read(self) -> Iterator[tuple[Path, AuditReport]]:
        """What cannot be read after all goes to `unread`."""
        for path in self.newest:
            try:
                report = AuditReport.model_validate_json(_content(path))
            except OSError as error:
                self.unread.append(_unreadable(path, error))
            except ValidationError as error:
                self.unread.append(_misfit(path, error))
            else:
                said, found = report.summary.exit_code, exit_code({finding.verdict for finding in report.findings})
                if _BADNESS.index(found) > _BADNESS.index(said):
                    self.unread.append(f"{path}: its summary says exit code {said}, and its findings make {found}. Expected {_EXPECTED}.")
                else:
                    yield path, report


def look_through(paths: Iterable[Path], at: datetime | None) -> ReportFiles:
    """The files, and those in the folders, named `*.json`; of several of one host the newest counts, by its own time, up to `at`."""
    found = ReportFiles()
    chosen: dict[str, tuple[datetime, Path]] = {}
    for path in _files(paths, found.unread):
        try:
            head = _Head.model_validate_json(_content(path))
        except OSError as error:
            found.unread.append(_unreadable(path, error))
            continue
        except ValidationError as error:
            if _is_of_many(path):
                found.left_out.append(f"{path}: is a report of many hosts, as this command writes it, and is left out")
            else:
                found.unread.append(_misfit(path, error))
            continue
        if at is not None and head.observed_at > at:
            continue
        found.history.append((head.host.id, head.observed_at, head.summary.exit_code))
        before = chosen.get(head.host.id)
        if before is None or before[0] < head.observed_at:
            chosen[head.host.id] = (head.observed_at, path)
    found.newest = [path for _, path in chosen.values()]
    return found


def _is_of_many(path: Path) -> bool:
    try:
        _Many.model_validate_json(_content(path))
    except (OSError, ValidationError):
        return False
    return True


def _files(paths: Iterable[Path], unread: list[str]) -> list[Path]:
    files: dict[Path, Path] = {}
    for path in paths:
        try:
            within = sorted(path.glob("*.json")) if path.is_dir() else [path]
        except OSError as error:
            unread.append(_unreadable(path, error))
            continue
        if not within:
            unread.append(f"{path}: no file in it is named *.json. Expected {_EXPECTED}.")
        for file in within:
            files.setdefault(file.resolve(), file)  # named twice, it is one file all the same
    if len(files) > _MOST_FILES:
        unread.append(f"{len(files):,} files: only the first {_MOST_FILES:,} were read. Report on fewer at once.")
    return list(files.values())[:_MOST_FILES]


def _content(path: Path) -> bytes:
    """All of a regular file. Raises OSError, also for one that is too large or is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer would hold us up
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "is no regular file")
        content = file.read(_LIMIT_BYTES + 1)
    if len(content) > _LIMIT_BYTES:
        raise OSError(0, f"is larger than {_LIMIT_BYTES >> 20} MiB")
    return content


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: {(error.strerror or str(error)).lower()}. Expected {_EXPECTED}, which this user may read."


def _misfit(path: Path, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{path}: {where}: {first['msg']}. Expected {_EXPECTED}, of this version or an older one."
