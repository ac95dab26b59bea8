"""One endpoint of a cloud: GET alone, at a bounded pace, each answer within bounded time and memory."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from exitguard.facts.openstack.errors import BadRequestError, ForbiddenError, TooLargeError, UnseenError
from exitguard.facts.openstack.parse import forbidden_policy, load_json
from exitguard.facts.openstack.request import CloudRequest

if TYPE_CHECKING:
    from keystoneauth1.adapter import Adapter

T = TypeVar("T")
LIMIT_BYTES = 64 * 1024 * 1024  # 1,000 servers, with the largest user data and metadata that Nova takes for many of them
_CHUNK_BYTES = 256 * 1024
_RETRIES = 3
#: How long one question may be put off in all, by what the server asks for in Retry-After and by our own pauses.
_MOST_PATIENCE_SECONDS = 30.0
_AGAIN = frozenset({429, 500, 502, 503, 504})
_OK, _BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN = 200, 400, 401, 403
#: After so many questions without an answer nothing more is asked: each costs the whole time that an answer may take.
_MOST_UNANSWERED = 2


class BrokenOffError(Exception):
    """There was no whole answer: refused, reset, cut off. It may be there the next time."""


class Service:
    """One endpoint; it remembers when it was last asked, and whether it has left questions unanswered."""

    def __init__(self, adapter: "Adapter", request: CloudRequest, until: float, microversion: str | None = None) -> None:
        """Nothing is asked after `until`, of time.monotonic()."""
        self._adapter = adapter
        self._request = request
        self._until = until
        self._microversion = microversion
        self._next_at = 0.0
        self._unanswered = 0

    def get(self, path: str, parameters: Mapping[str, str], *, microversion: str | None = None) -> dict[str, Any]:
        """The JSON object at `path`. Raises UnseenError, of which ForbiddenError, BadRequestError and TooLargeError are kinds."""
        patience = _MOST_PATIENCE_SECONDS
        for attempt in range(_RETRIES + 1):
            wait = self._request.retry_pause_seconds * 2.0**attempt
            try:
                status, headers, body = self._answer(path, parameters, microversion or self._microversion)
                if status == _OK:
                    return load_json(body, path)
                if status not in _AGAIN:
                    raise _refusal(status, body, path)
                reason = f"{path}: expected 200, found {status}"
                asked_for = _retry_after(headers)
                wait = wait if asked_for is None else asked_for
            except BrokenOffError as error:
                reason = f"{path}: {error}"
            patience -= wait
            if patience < 0:
                raise UnseenError(f"{reason}, and to be asked again in {wait:g} seconds, which is too long to wait")
            if attempt < _RETRIES:
                time.sleep(wait)
        raise UnseenError(f"{reason}, {_RETRIES + 1} times in a row")

    def _answer(self, path: str, parameters: Mapping[str, str], microversion: str | None) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and the whole body of one answer, in time. Raises UnseenError, BrokenOffError."""
        if self._unanswered >= _MOST_UNANSWERED:
            raise UnseenError(f"{path}: not asked: this service has left {self._unanswered} questions unanswered")
        now = time.monotonic()
        time.sleep(max(0.0, self._next_at - now))
        self._next_at = max(now, self._next_at) + 1 / self._request.requests_per_second
        seconds = min(self._request.timeout_seconds, self._until - time.monotonic())
        if seconds <= 0:
            raise UnseenError(f"{path}: not asked: the whole look has already taken {self._request.limit_seconds:g} seconds")
        try:
            return within(seconds, lambda: self._ask(path, parameters, microversion, seconds))
        except TimeoutError as error:
            self._unanswered += 1
            raise UnseenError(f"{path}: no whole answer within {seconds:g} seconds") from error

    def _ask(
        self, path: str, parameters: Mapping[str, str], microversion: str | None, seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One question, put a second time with a new token where the old one is refused."""
        import requests
        import urllib3
        from keystoneauth1 import exceptions

        deadline = time.monotonic() + seconds
        try:
            answer = self._send(path, parameters, microversion, seconds)
            if answer.status_code == _UNAUTHORIZED and self._adapter.invalidate():
                answer.close()
                answer = self._send(path, parameters, microversion, seconds)
            with contextlib.closing(answer):
                return answer.status_code, answer.headers, b"".join(_chunks(answer, deadline, path))
        except (exceptions.ConnectTimeout, requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError) as error:
            raise TimeoutError from error
        except exceptions.RetriableConnectionFailure as error:
            raise BrokenOffError(first_line(error)) from error
        except exceptions.ClientException as error:
            raise UnseenError(f"{path}: {first_line(error)}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise BrokenOffError(f"the answer broke off: {first_line(error)}") from error

    def _send(self, path: str, parameters: Mapping[str, str], microversion: str | None, seconds: float) -> Any:
        return self._adapter.get(
            path,
            params=dict(parameters),
            microversion=microversion,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},  # what is not packed cannot unfold
            timeout=seconds,
            raise_exc=False,
            allow_reauth=False,  # keystoneauth would leave the refused answer open
            log=False,
            stream=True,
            redirect=False,
            connect_retries=0,
        )


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises; TimeoutError where it does neither in time.

    A server that sends a byte now and then is past every time-out of a socket. Who waits for it is a thread, which is left alone then.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=run, name="openstack", daemon=True).start()
    return outcome.result(seconds)


def first_line(error: BaseException) -> str:
    """The first line of what a library says of an error, to be set into a sentence."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    system = _system_words(error)
    if system is not None:  # what urllib3 says around them names objects of its own
        line = f"{line.partition(': HTTP')[0]}: {system}"
    return line[:300].rstrip(".")


def _system_words(error: BaseException) -> str | None:
    """What the operating system said of a connection that failed, beneath whatever the libraries made of it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror.lower()
        inner = getattr(found, "reason", None)
        found = inner if isinstance(inner, BaseException) else found.__cause__ or found.__context__
    return None


def _refusal(status: int, body: bytes, path: str) -> UnseenError:
    if status == _FORBIDDEN:
        return ForbiddenError(f"{path}: 403: this role may not see it", unlock=forbidden_policy(body))
    if status == _UNAUTHORIZED:
        return UnseenError(f"{path}: 401: the token ended, and a new one was refused too", unlock="credentials that are valid")
    if status == _BAD_REQUEST:
        return BadRequestError(f"{path}: expected 200, found 400")
    return UnseenError(f"{path}: expected 200, found {status}")


def _chunks(answer: Any, deadline: float, path: str) -> Iterator[bytes]:
    size = 0
    for chunk in answer.raw.stream(_CHUNK_BYTES, decode_content=False):
        size += len(chunk)
        if size > LIMIT_BYTES:
            raise TooLargeError(f"{path}: expected an answer of at most {LIMIT_BYTES} bytes, found more")
        if time.monotonic() > deadline:
            raise TimeoutError
        yield chunk


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
