"""The file of a run's events: append only, one JSON line an event, each on the disk before `append` returns.

    {"chain":"<64 hex digits>","event":{"seq":0,"at":"...","kind":"started",...}}

`chain` is the SHA-256 of the chain of the line before and the bytes of this line's event. A checksum of the line alone would show damage
within it; the chain also shows a line that is missing, doubled, moved, or from another run, since it begins with a header that names the
run and the hash of its plan's file. It is no signature: whoever may write the file can make a good one.

Only one line can be unacknowledged at a time, so what a kill or a power cut may leave is a last line without its end, with or without
zeros where blocks never reached the disk. That is cut off when the file is opened for writing, and passed over by readers. Everything
else that does not fit is damage: it is refused with its line, and left as it is.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ValidationError

from exitguard.model.record import Record
from exitguard.model.run import RunEvent
from exitguard.store.errors import StoreError, StoreFull, StoreNewer
from exitguard.store.private import explain_private, open_regular

MAX_FILE_BYTES = 256 * 2**20
MAX_LINE_BYTES = 2**20

_EXPECTED = "the journal of a run, which its process may write to"
_DIGITS = 64
_BEGIN, _HEADER, _EVENT, _END = b'{"chain":"', b'","header":', b'","event":', b"}\n"


class Header(Record):
    """The first line: whose events these are."""

    schema_version: Literal[1] = 1
    run_id: str
    #: sha256 of the bytes of the run's plan.json.
    plan_file: str


@dataclass(frozen=True, slots=True)
class LogContent:
    """The events of a whole file, its header, where they end, and the chain there."""

    header: Header
    events: list[RunEvent]
    good_bytes: int
    chain: str


def set_aside(run_directory: Path) -> str:
    """What to do about a run that cannot be read."""
    return (
        f"It was left as it is, and no run goes on from it or beside it: make sure that nothing works on it, move {run_directory} out of "
        "its directory and keep it for a look. `exitguard plan` then looks at the hosts afresh."
    )


def header_line(header: Header) -> bytes:
    """The first line of a new file."""
    body = header.model_dump_json().encode("utf-8")
    return _line(_HEADER, body, _next_chain("", body))


def read_log(path: Path) -> LogContent:
    """What the file at `path` holds. Raises StoreError where it is damaged, newer or too large; StoreNewer is one of those."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise StoreError(
                    f"{path}: has {size} bytes. Expected at most {MAX_FILE_BYTES}. {set_aside(path.parent)}",
                    reason="the journal is too large",
                )
            return _read(file, path)
    except OSError as error:
        raise explain_private(error, path, _EXPECTED) from error


class EventLog:
    """The file, open for appending by the one process that holds the run's lock."""

    def __init__(self, path: Path, descriptor: int, content: LogContent) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size = content.good_bytes
        self._chain = content.chain
        self._unsure = False
        self.header = content.header
        self.events = content.events

    @classmethod
    def open(cls, path: Path) -> "EventLog":
        """The file at `path`, an unacknowledged last line cut off. Raises StoreError as `read_log` does."""
        content = read_log(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != content.good_bytes:
                    os.ftruncate(descriptor, content.good_bytes)
                os.fsync(descriptor)  # a line that was read may never have reached the disk
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            raise explain_private(error, path, _EXPECTED) from error
        return cls(path, descriptor, content)

    def append(self, event: RunEvent) -> None:
        """Write `event`; it is on the disk when this returns. Raises StoreError, and then the file is as it was before."""
        if self._unsure:
            raise StoreError(
                f"{self._path}: an earlier event could neither be written nor taken back, so nothing more is written behind it. Expected "
                "the disk to be in order: look at the kernel log, then `exitguard rollout resume`, which begins by cutting it off.",
                reason="the journal's end is not known",
            )
        body = event.model_dump_json(exclude_defaults=True).encode("utf-8")
        chain = _next_chain(self._chain, body)
        line = _line(_EVENT, body, chain)
        if len(line) > MAX_LINE_BYTES or self._size + len(line) > MAX_FILE_BYTES:
            raise StoreFull(
                f"{self._path}: an event of {len(line)} bytes does not fit behind {self._size}. Expected events of at most "
                f"{MAX_LINE_BYTES} bytes, {MAX_FILE_BYTES} in all. Plan fewer hosts at a time: `exitguard plan` over a part of "
                "the inventory.",
                reason="the journal is too large",
            )
        try:
            self._write(line)
        except OSError as error:
            raise explain_private(error, self._path, _EXPECTED) from error
        self._size += len(line)
        self._chain = chain
        self.events.append(event)

    def close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1  # the number may be another file's from now on

    def _write(self, line: bytes) -> None:
        """All of `line` at the end of the file, and on the disk; or nothing of it. Raises OSError."""
        written = 0
        self._unsure = True
        try:
            while written < len(line):
                written += os.pwrite(self._descriptor, line[written:], self._size + written)
        except OSError:
            self._take_back()
            self._unsure = False
            raise
        # A failed fsync says nothing about what is on the disk, and a second one may not repeat it (fsync(2), EIO): so it stays unsure.
        try:
            os.fsync(self._descriptor)
        except OSError:
            self._take_back()
            raise
        self._unsure = False

    def _take_back(self) -> None:
        os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)


def _next_chain(chain: str, body: bytes) -> str:
    return hashlib.sha256(chain.encode("ascii") + body).hexdigest()


def _line(kind: bytes, body: bytes, chain: str) -> bytes:
    return b"".join((_BEGIN, chain.encode("ascii"), kind, body, _END))


def _read(file: BinaryIO, path: Path) -> LogContent:
    header: Header | None = None
    events: list[RunEvent] = []
    chain, good_bytes = "", 0
    for number, line in enumerate(_lines(file), start=1):
        if header is None:
            chain, body = _verified(line, _HEADER, chain, path, number)
            header = _parsed_header(body, path)
        elif line.endswith(b"\n"):
            chain, body = _verified(line, _EVENT, chain, path, number)
            events.append(_parsed_event(body, len(events), path, number))
        else:
            _check_torn(line, chain, path, number)
            break
        good_bytes += len(line)
    if header is None:
        raise _damaged(path, 1, "the file is empty")
    return LogContent(header, events, good_bytes, chain)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends, and of one that is too long no more than shows that."""
    left = MAX_FILE_BYTES  # it may grow while it is read
    while left > 0 and (line := file.readline(min(left, MAX_LINE_BYTES + 1))):
        left -= len(line)
        yield line


def _verified(line: bytes, kind: bytes, chain: str, path: Path, number: int) -> tuple[str, bytes]:
    """The chain and the bytes of what one whole line says."""
    where = len(_BEGIN) + _DIGITS
    said, body = line[len(_BEGIN) : where], line[where + len(kind) : -len(_END)]
    if len(line) > MAX_LINE_BYTES or line != b"".join((_BEGIN, said, kind, body, _END)):
        raise _damaged(path, number, "is not a line of a journal")
    expected = _next_chain(chain, body)
    if said != expected.encode("ascii"):
        raise _damaged(path, number, "its checksum does not fit it and the lines before it")
    return expected, body


def _parsed_header(body: bytes, path: Path) -> Header:
    try:
        return Header.model_validate_json(body)
    except ValidationError as error:
        if any(detail["loc"] == ("schema_version",) for detail in error.errors(include_url=False)):
            raise StoreNewer(
                f"{path}: was written by a newer exitguard. Expected schema_version 1. It was left as it is: use the "
                "version that wrote it, or a later one.",
                reason="a newer journal",
            ) from None
        raise _damaged(path, 1, "is not the header of a journal") from None


def _parsed_event(body: bytes, seq: int, path: Path, number: int) -> RunEvent:
    try:
        event = RunEvent.model_validate_json(body)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, detail["loc"])) or "all of it" for detail in error.errors(include_url=False))
        raise _damaged(path, number, f"is in order, but no event that this version knows ({fields})") from None
    if event.seq != seq:
        raise _damaged(path, number, f"says that it is event {event.seq}, and event {seq} comes here")
    return event


def _check_torn(line: bytes, chain: str, path: Path, number: int) -> None:
    """Raises StoreError where the last line cannot have been left by a write that was cut short."""
    if len(line) > MAX_LINE_BYTES:
        raise _damaged(path, number, f"is longer than {MAX_LINE_BYTES} bytes")
    whole = line[:-1] + b"\n"
    try:
        _verified(whole, _EVENT, chain, path, number)
    except StoreError:
        return
    raise _damaged(path, number, f"is whole, but ends in the byte {line[-1]:#04x} instead of a line end")


def _damaged(path: Path, number: int, what: str) -> StoreError:
    return StoreError(
        f"{path}:{number}: {what}. Expected the line as exitguard wrote it. {set_aside(path.parent)}", reason="the journal is damaged"
    )
