"""What the agent and the process that reads kernel images say to each other: a request with open files, and one line of JSON in answer."""

from typing import Literal

from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Record

#: A request is one datagram: a path and a few words.
REQUEST_LIMIT_BYTES = 1 << 16

#: What every reading imports, and the packages that have it. What only some files need, the container says itself.
PACKAGES = {"capstone": "capstone", "elftools": "pyelftools"}

FileRole = Literal["code", "btf_base", "system_map"]


class Request(Record):
    """Read one image. Its files come open with the request, in the order of `roles`."""

    path: str
    roles: tuple[FileRole, ...]
    #: The build-id of the module that the base is for; None where it is for whatever is read.
    base_of_build: str | None = None
    #: Whether a base that cannot be read is an obstacle, and not only one source less.
    base_was_named: bool = False
    #: How much processor time it may take.
    seconds: int


class Answer(Record):
    """Exactly one of these is set; `exhausted` is the last answer of a process."""

    reading: MachineCode | None = None
    #: Why nothing could be read: it lies in the files.
    obstacle: str | None = None
    #: The package that is not installed.
    missing: str | None = None
    #: What went wrong in the reader itself.
    fault: str | None = None
    exhausted: bool = False
