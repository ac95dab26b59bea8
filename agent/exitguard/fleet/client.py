"""The host's side of the protocol: its key, and batches over HTTPS (docs/fleet.md).

The key is made here and written to its file before the hub hears of it; so a kill, or an answer that is lost, leaves nothing that
cannot be done again.
"""

import json
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import ValidationError

from exitguard import __version__
from exitguard.fleet.compression import pack
from exitguard.fleet.keys import HostKey, new_host_key, parse_host_key
from exitguard.model.push import Enrolment, PushAnswer, PushBatch

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
#: Tries of one request, in its job; between jobs the daemon pauses on its own.
_TRIES = 2
_FIRST_WAIT_SECONDS, _MOST_WAIT_SECONDS = 0.2, 2.0
_LIMIT_ANSWER_BYTES = 1 << 20
_LIMIT_KEY_BYTES = 1024
_FILE_MODE = 0o600
_OK, _CREATED = 200, 201
_UNAUTHENTICATED, _FORBIDDEN, _TOO_OFTEN = 401, 403, 429
_TRANSIENT = frozenset({408, 425, _TOO_OFTEN, 500, 502, 503, 504})
#: The batch itself is at fault: a smaller one may be taken.
_UNFIT = frozenset({400, 413, 415, 422})


class PushError(Exception):
    """Nothing was acknowledged. A sentence for the operator: what, where, what was expected, what to do."""


class HubUnreachable(PushError):  # noqa: N818 - nobody's error: the same is sent again
    """The hub does not answer, or not now. `retry_after_seconds` is how long it asked to be left alone, at least."""

    def __init__(self, sentence: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(sentence)
        self.retry_after_seconds = retry_after_seconds


class NotAdmitted(PushError):  # noqa: N818 - an operator decides
    """The hub does not let this host in."""


class BatchRefused(PushError):  # noqa: N818 - as the hub says
    """The hub will never take this batch as it is."""


@dataclass(frozen=True)
class HubAccess:
    """Which hub, and how this host is let in there."""

    url: str
    key_file: Path
    #: Holds the secret that lets hosts in; None: the key was let in already.
    enrolment_file: Path | None = None
    #: Certificates that the hub's is checked by; None: the system's.
    ca_file: Path | None = None


class Answered(NamedTuple):
    """What a hub answers, read whole."""

    status_code: int
    content: bytes
    retry_after: str

    @property
    def told(self) -> str:
        """What a refusal says, in a line."""
        try:
            message = str(json.loads(self.content)["message"])
        except (ValueError, KeyError, TypeError):
            message = f"status {self.status_code}"
        return " ".join(message.split())[:300]


class HubConnection:
    """HTTP to one hub, kept while it is used: for one thread."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        self.url = url
        self._ca_file = ca_file
        self._http: httpx.Client | None = None

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def send(self, path: str, content: bytes, key: HostKey, *, packed: bool) -> Answered:
        """The answer, whatever it says but that it would be another one later. Raises HubUnreachable, PushError."""
        import stamina
        from stamina.instrumentation import set_on_retry_hooks

        set_on_retry_hooks([])  # the caller says what is wrong, once
        for attempt in stamina.retry_context(
            on=HubUnreachable,
            attempts=_TRIES,
            wait_initial=_FIRST_WAIT_SECONDS,
            wait_max=_MOST_WAIT_SECONDS,
            wait_jitter=_MOST_WAIT_SECONDS,
        ):
            with attempt:
                return self._send_once(path, content, key, packed=packed)
        raise AssertionError("stamina ends with an answer or an error")

    def _send_once(self, path: str, content: bytes, key: HostKey, *, packed: bool) -> Answered:
        import httpx

        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key.text}"}
        if packed:
            headers["Content-Encoding"] = "zstd"
        try:
            with self._connection().stream("POST", path, content=content, headers=headers) as answer:
                told = Answered(answer.status_code, _read_bounded(answer), answer.headers.get("retry-after", ""))
        except (httpx.TransportError, httpx.DecodingError, ssl.SSLError) as error:
            self.close()
            what = " ".join(str(error).split())[:200] or type(error).__name__
            raise HubUnreachable(f"{self.url}: {what}. Expected the hub to answer there; what waits is kept.") from error
        if told.status_code in _TRANSIENT:
            again = told.retry_after
            seconds = float(again) if again.isdecimal() and len(again) < len("100000") else 0.0
            sentence = f"{self.url}: answered {told.status_code}: {told.told}. What waits is kept."
            raise HubUnreachable(sentence, retry_after_seconds=seconds)
        return told

    def _connection(self) -> "httpx.Client":
        import httpx

        if self._http is None:
            try:
                trust: Any = ssl.create_default_context(cafile=self._ca_file)
            except (OSError, ssl.SSLError) as error:
                raise PushError(f"{self._ca_file}: {error}. Expected certificates in PEM in hub_ca_file.") from error
            self._http = httpx.Client(
                base_url=self.url,
                verify=trust,
                timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
                headers={"User-Agent": f"exitguard/{__version__}"},
                trust_env=False,
            )
        return self._http


class HubClient:
    """What one host says to its hub: a context manager, for one thread."""

    def __init__(self, access: HubAccess, host_id: str) -> None:
        self._access = access
        self._host_id = host_id
        self._key: HostKey | None = None
        self._connection = HubConnection(access.url, access.ca_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def push(self, batch: PushBatch, hostname: str | None = None) -> PushAnswer:
        """What the hub has committed. A host that has not been let in asks for that first. Raises PushError."""
        content = pack(batch.model_dump_json(exclude_none=True).encode("utf-8"))
        answer = self._send("/v1/push", content, packed=True)
        if answer.status_code == _UNAUTHENTICATED and self._access.enrolment_file is not None:
            self._enrol(self._access.enrolment_file, hostname)
            answer = self._send("/v1/push", content, packed=True)
        if answer.status_code in _UNFIT:
            raise BatchRefused(f"{self._access.url}: refused what was pushed: {answer.told}")
        if answer.status_code != _OK:
            raise NotAdmitted(
                f"{self._access.url}: does not let this host in: {answer.told}. Expected a key that counts in "
                f"{self._access.key_file}: have `exitguard hub enrolment` make a secret there, and name its file in hub_enrolment_file."
            )
        try:
            return PushAnswer.model_validate_json(answer.content)
        except ValidationError as error:
            raise HubUnreachable(f"{self._access.url}: answered something else than a hub would. Expected a hub at hub_url.") from error

    def _enrol(self, file: Path, hostname: str | None) -> None:
        secret = _read_line(file, "hub_enrolment_file")
        key = self._held_key()
        asked = Enrolment(secret=secret, host_id=key.host_id, hostname=hostname or None, key=key.public)
        answer = self._send("/v1/enrol", asked.model_dump_json(exclude_none=True).encode("utf-8"), packed=False)
        if answer.status_code != _CREATED:
            raise NotAdmitted(f"{self._access.url}: does not let this host in: {answer.told}. Expected a secret that counts in {file}.")

    def _send(self, path: str, content: bytes, *, packed: bool) -> Answered:
        return self._connection.send(path, content, self._held_key(), packed=packed)

    def _held_key(self) -> HostKey:
        if self._key is None:
            self._key = held_key(self._access.key_file, self._host_id)
        return self._key


def held_key(path: Path, host_id: str) -> HostKey:
    """The key of this host in `path`, made and written there where there is none. Raises PushError."""
    if not path.exists():
        _write_once(path, new_host_key(host_id).text)
    key = parse_host_key(_read_line(path, "hub_key_file"))
    if key is None or key.host_id != host_id:
        raise PushError(
            f"{path}: holds no key of host {host_id}. Expected the file that this host wrote: delete it, and an enrolment secret lets the "
            "host in with a new one, once an operator has revoked the old."
        )
    return key


def _write_once(path: Path, line: str) -> None:
    """The whole file, on the disk, for its owner alone; or the one that another process wrote first. Raises PushError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE), "w") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise PushError(f"{path}: {(error.strerror or str(error)).lower()}. Expected a place for this host's key.") from error


def _read_line(path: Path, setting: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT_KEY_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise PushError(f"{path}: {(error.strerror or str(error)).lower()}. Expected the file that {setting} names.") from error


def _read_bounded(answer: "httpx.Response") -> bytes:
    """The answer, or as much of it as one may be; the rest is no hub's."""
    content = b""
    for piece in answer.iter_bytes():
        content += piece
        if len(content) > _LIMIT_ANSWER_BYTES:
            break
    return content
