"""What the process that runs Ansible and its parent say to each other: a request, then one line of JSON a message.

Nothing heavier than json is imported here: the process is started for each playbook.
"""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

#: The environment variable that all processes of one run carry, and inherit; its value is the run's secret mark.
MARK_VARIABLE = "EXITGUARD_RUN"
#: A line is no longer than this: the largest collected dictionary, and what belongs to it.
LINE_LIMIT_BYTES = 9 << 20
COLLECTED_LIMIT_BYTES = 8 << 20
#: How long what is to end may take to do so by itself.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """What is to be run; everything else lies in the files of the run."""

    #: The directory of the run, as act/ansible_process/run_files.py lays it out.
    directory: str
    #: The whole command, ansible-playbook first.
    command: tuple[str, ...]
    playbook: str
    #: The hosts that may be worked on; any other ends the run.
    hosts: tuple[str, ...]
    #: Directory of the sockets that ssh connections of this run are shared through.
    sockets: str
    timeout_seconds: float

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        fields = json.loads(line)
        return cls(**fields | {"command": tuple(fields["command"]), "hosts": tuple(fields["hosts"])})


class Kind(StrEnum):
    TASK = "task"  # `task` came to `status` on `host`
    COLLECTED = "collected"  # a result of `task` held `value`
    DROPPED = "dropped"  # a result of `task` could not be kept: `text`
    FAILURE = "failure"  # `task` failed on `host` for `text`; `status` says how
    ITEM_FAILURE = "item_failure"  # one item of its loop did
    DIFF = "diff"  # what `task` changes on `host`: `text`
    TOTALS = "totals"  # Ansible's own account: `hosts` by what became of them
    ENDED = "ended"  # the last line; `status` says how, `text` why


class Status(StrEnum):
    """Of a task on a host, of a failure, and of the whole."""

    STARTED = "started"
    OK = "ok"
    CHANGED = "changed"
    SKIPPED = "skipped"
    IGNORED = "ignored"  # failed, and the playbook goes on all the same
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    COMPLETED = "completed"
    STOPPED = "stopped"  # its parent wanted it to end, or is gone
    BROKEN = "broken"


@dataclass(frozen=True)
class Message:
    """One line that the process says."""

    kind: Kind
    host: str = ""
    task: str = ""
    status: str = ""
    text: str = ""
    value: dict[str, Any] | None = None
    hosts: dict[str, list[str]] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Empty texts are left out."""
        return json.dumps({name: value for name, value in vars(self).items() if value not in ("", None)}, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Raises ValueError for what is no message."""
        try:
            fields = json.loads(line)
            message = cls(**fields | {"kind": Kind(fields["kind"])})
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"not a message: {type(error).__name__}") from None
        if not all(isinstance(text, str) for text in (message.host, message.task, message.status, message.text)):
            raise ValueError("not a message: expected text")
        return message
