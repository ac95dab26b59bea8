"""The operator's side of the hub: questions by a token, records as answers. All that comes back is checked and bounded."""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import ValidationError

from exitguard import __version__
from exitguard.fleet.keys import parse_operator_token
from exitguard.model.record import Record

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 120.0
_LIMIT_TOKEN_BYTES = 1024
_LIMIT_ANSWER_BYTES = 64 << 20
#: A report of a host with 5,000 guests takes some 30 MB.
_LIMIT_LINE_BYTES = 256 << 20
_OK, _CREATED = 200, 201
_UNAUTHENTICATED, _TOO_OFTEN = 401, 429
_MOST_WAITS, _MOST_WAIT_SECONDS = 20, 30

Answer = TypeVar("Answer", bound=Record)


class HubError(Exception):
    """The hub does not answer what was asked. A sentence for the operator: what, where, what was expected, what to do."""


class HubRefusal(HubError):  # noqa: N818 - as the hub says
    """The hub refuses what was asked; `word` is its own for that."""

    def __init__(self, sentence: str, *, word: str) -> None:
        super().__init__(sentence)
        self.word = word


@dataclass(frozen=True)
class HubToken:
    """Which hub, and by which token it is asked."""

    url: str
    token_file: Path
    #: Certificates that the hub's is checked by; None: the system's.
    ca_file: Path | None = None


class HubOperator:
    """A connection to a hub that is kept while it is used: a context manager, for one thread. Raises HubError where it is opened."""

    def __init__(self, access: HubToken) -> None:
        import httpx

        self.url = access.url
        token = _token(access.token_file)
        try:
            trust: Any = ssl.create_default_context(cafile=access.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise HubError(f"{access.ca_file}: {error}. Expected certificates in PEM in hub_ca_file.") from error
        self._http = httpx.Client(
            base_url=access.url,
            verify=trust,
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            headers={"User-Agent": f"exitguard/{__version__}", "Authorization": f"Bearer {token}"},
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str, answer: type[Answer], query: Mapping[str, str] | None = None) -> Answer:
        """What the hub answers. Raises HubError."""
        return self._record("GET", path, answer, query=query)

    def post(self, path: str, answer: type[Answer], body: Record | None = None) -> Answer:
        """What the hub answers to something to be done. Raises HubError."""
        return self._record("POST", path, answer, body=body)

    def lines(self, path: str, answer: type[Answer], query: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """An answer of one record a line, as they come. Raises HubError, also in the middle."""
        for line in self.raw_lines(path, query):
            yield self._parsed(answer, line, path)

    def raw_lines(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[bytes]:
        """The same as bytes, for who goes on where one line is none of what was expected. Raises HubError."""
        with self._asked("GET", path, query, None) as response:
            yield from self._split(response, path)

    def _record(
        self, method: str, path: str, answer: type[Answer], *, query: Mapping[str, str] | None = None, body: Record | None = None
    ) -> Answer:
        with self._asked(method, path, query, body) as response:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > _LIMIT_ANSWER_BYTES:
                    raise HubError(f"{self.url}{path}: answers more than {_LIMIT_ANSWER_BYTES >> 20} MiB. Expected a hub at hub_url.")
        return self._parsed(answer, bytes(content), path)

    @contextmanager
    def _asked(self, method: str, path: str, query: Mapping[str, str] | None, body: Record | None) -> "Iterator[httpx.Response]":
        import httpx

        content = None if body is None else body.model_dump_json(exclude_none=True).encode("utf-8")
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            for waited in range(_MOST_WAITS + 1):
                with self._http.stream(method, path, params=dict(query or {}), content=content, headers=headers) as response:
                    again = response.headers.get("retry-after", "")
                    if response.status_code != _TOO_OFTEN or waited == _MOST_WAITS or not again.isdecimal():
                        if response.status_code not in (_OK, _CREATED):
                            self._refuse(response, path)
                        yield response
                        return
                # Many pages in a row are more than a hub takes from one token at once: it says how long to wait.
                time.sleep(min(int(again[:4]), _MOST_WAIT_SECONDS))
        except (httpx.TransportError, httpx.DecodingError, ssl.SSLError) as error:
            what = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            raise HubError(f"{self.url}: {what}. Expected the hub to answer there: see hub_url, and hub_ca_file.") from error

    def _refuse(self, response: "httpx.Response", path: str) -> None:
        content = b""
        for piece in response.iter_bytes():
            content += piece
            if len(content) > _LIMIT_ANSWER_BYTES:
                break
        word, message = _told(content, response.status_code)
        if response.status_code == _UNAUTHENTICATED:
            raise HubRefusal(
                f"{self.url}: the token in hub_token_file does not count (any more): `exitguard hub token` makes another.", word=word
            )
        raise HubRefusal(f"{self.url}{path}: {message}", word=word)

    def _split(self, response: "httpx.Response", path: str) -> Iterator[bytes]:
        """Its lines, none longer than one may be; the last ends with a newline too, else the answer was cut off."""
        held = bytearray()
        for piece in response.iter_bytes():
            begin = len(held)
            held += piece
            if held.find(b"\n", begin) >= 0:
                *lines, rest = bytes(held).split(b"\n")
                held = bytearray(rest)
                yield from lines
            if len(held) > _LIMIT_LINE_BYTES:
                raise HubError(f"{self.url}{path}: a line of more than {_LIMIT_LINE_BYTES >> 20} MiB. Expected a hub at hub_url.")
        if held:
            raise HubError(f"{self.url}{path}: the answer ended in the middle of a line. Ask again; the hub's log says why.")

    def _parsed(self, answer: type[Answer], content: bytes, path: str) -> Answer:
        try:
            return answer.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise HubError(
                f"{self.url}{path}: answers something else than a hub of this version: {where}: {first['msg'][:200]}. Expected a hub at "
                "hub_url that is as new as this exitguard."
            ) from error


def _token(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            text = opened.read(_LIMIT_TOKEN_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HubError(
            f"{file}: {reason}. Expected the file that hub_token_file names, with what `exitguard hub token` printed."
        ) from error
    if parse_operator_token(text) is None:
        raise HubError(f"{file}: holds no operator's token. Expected the line `exg-op....` that `exitguard hub token` printed.")
    return text


def _told(content: bytes, status: int) -> tuple[str, str]:
    """The word and the sentence of a refusal."""
    try:
        read = json.loads(content)
        word, message = str(read["error"]), str(read["message"])
    except (ValueError, KeyError, TypeError):
        return "", f"status {status}"
    return word[:100], " ".join(message.split())[:500]
