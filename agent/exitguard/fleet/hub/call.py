"""A request and its answer, as handlers see them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import BaseModel

from exitguard.model.hub import Refused
from exitguard.store.hub import HubStore
from exitguard.store.hub_access import Operator

JSON = "application/json"
#: One JSON document a line (https://github.com/ndjson/ndjson-spec).
LINES = "application/x-ndjson"


@dataclass(frozen=True)
class Host:
    """A host that proved its key."""

    host_id: str
    key_id: str


#: Who calls: a host, an operator, or nobody that is known.
Caller = Host | Operator | None


@dataclass(frozen=True)
class Call:
    """One request, its body whole."""

    store: HubStore
    now: datetime
    caller: Caller
    query: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)
    #: Lower case; "" where the body is as it is.
    encoding: str = ""
    body: bytes = b""

    @property
    def host(self) -> Host:
        if not isinstance(self.caller, Host):
            raise TypeError("the route lets in others than hosts")
        return self.caller

    @property
    def actor(self) -> str:
        """Whom the audit log names."""
        return actor_of(self.caller)


@dataclass(frozen=True)
class Answer:
    status: int
    #: All of it, or one piece after the other.
    body: bytes | Iterator[bytes]
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """A request that is not answered: `error` is a word for programs, `message` a sentence for people. It never holds a secret."""

    def __init__(self, status: int, error: str, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    def answer(self) -> Answer:
        headers = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        if self.status == 401:  # noqa: PLR2004 - RFC 9110 section 15.5.2 asks for the header with it
            headers["WWW-Authenticate"] = 'Bearer realm="exitguard"'
        return Answer(self.status, Refused(error=self.error, message=self.message).model_dump_json().encode(), headers=headers)


def told(record: BaseModel, status: int = 200) -> Answer:
    return Answer(status, record.model_dump_json().encode("utf-8"))


def actor_of(caller: Caller) -> str:
    match caller:
        case Host():
            return f"host {caller.host_id}"
        case Operator():
            return f"operator {caller.name}"
        case None:
            return "anonymous"
