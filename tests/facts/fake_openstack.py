"""A loopback HTTP server that answers as Keystone, Nova and Glance do, for the real SDK to talk to.

    with fake_openstack() as cloud:
        cloud.environment            # OS_ variables that lead there
        cloud.answers["/v2.1/servers/detail"] = page
        cloud.log                    # (method, path with its query) of every request

An answer is a status with a JSON document, bytes that are sent as they are, or a function of the request's path and query that gives one
of these; a list is given one after another, the last one for ever. Nothing here knows what Nova would do: the answers are recorded, or
are the faults that a test is about.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

Query = dict[str, list[str]]


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. `body` is JSON, or bytes as they are; `cut` ends it after so many bytes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    #: Waits for this event before anything is sent.
    after: threading.Event | None = None
    #: Sends so many bytes at a time, with this pause after each.
    drip: tuple[int, float] | None = None


Given = Answer | dict[str, Any] | bytes | list[Any] | Callable[[str, Query], Any]


@dataclass
class FakeOpenStack:
    """A cloud of one answer a path."""

    port: int
    answers: dict[str, Given] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    #: Tokens that were given; one that is not in here is refused.
    tokens: set[str] = field(default_factory=set)
    max_microversion: str = "2.93"
    #: Where the catalogue says that each service is: a path of this server, or an address elsewhere.
    endpoints: dict[str, str] = field(default_factory=lambda: {"compute": "/v2.1", "image": "/image", "identity": "/identity/v3"})
    #: The microversions that each path was asked in.
    spoken: dict[str, set[str | None]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "OS_AUTH_URL": f"{self.address}/identity/v3",
            "OS_USERNAME": "admin",
            "OS_PASSWORD": "not-a-secret",
            "OS_PROJECT_NAME": "admin",
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": "RegionOne",
        }

    def expire_tokens(self) -> None:
        self.tokens.clear()

    def asked(self, path: str) -> list[str]:
        """The requests that were made of one path, with their queries."""
        return [each for _, each in self.log if urlsplit(each).path == path]

    def answer(self, path: str, query: Query) -> Answer:
        given: Any = self.answers.get(path)
        if isinstance(given, list):
            given = given.pop(0) if len(given) > 1 else given[0]
        if callable(given):
            given = given(path, query)
        if given is None:
            return Answer({"itemNotFound": {"code": 404, "message": "no such thing"}}, 404)
        return given if isinstance(given, Answer) else Answer(given)

    def version(self) -> dict[str, Any]:
        links = [{"rel": "self", "href": f"{self.address}/v2.1/"}]
        return {"id": "v2.1", "status": "CURRENT", "version": self.max_microversion, "min_version": "2.1", "links": links}

    def token(self) -> tuple[str, dict[str, Any]]:
        name = f"token-{len(self.log)}"
        self.tokens.add(name)
        catalogue = [
            {
                "type": kind,
                "name": kind,
                "id": kind,
                "endpoints": [
                    {
                        "id": kind,
                        "interface": "public",
                        "region": "RegionOne",
                        "region_id": "RegionOne",
                        "url": urljoin(self.address, place),
                    }
                ],
            }
            for kind, place in self.endpoints.items()
        ]
        project = {"id": "a" * 32, "name": "admin", "domain": {"id": "default", "name": "Default"}}
        user = {"id": "b" * 32, "name": "admin", "domain": {"id": "default", "name": "Default"}}
        times = {"issued_at": "2026-11-23T00:00:00.000000Z", "expires_at": "2099-01-01T00:00:00.000000Z"}
        return name, {"token": {"methods": ["password"], "user": user, "project": project, "catalog": catalogue, **times}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes, and the second would wait for the first to be acknowledged
    cloud: FakeOpenStack

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    def do_GET(self) -> None:
        self._log()
        parts = urlsplit(self.path)
        path = parts.path.rstrip("/")
        if path in ("/v2.1", "/image", "/image/v2", "/identity/v3", "", "/identity"):
            self._send(self._discovery(path))
        elif self.headers.get("X-Auth-Token") not in self.cloud.tokens:
            self._send(Answer({"error": {"code": 401, "message": "The request you have made requires authentication."}}, 401))
        else:
            self._send(self.cloud.answer(path, parse_qs(parts.query)))

    def do_DELETE(self) -> None:
        self._log()
        self._change(b"")

    def _change(self, body: bytes) -> None:
        """Whatever changes something is answered by a function of the request's body, under `VERB path`; else it is refused."""
        change: Any = self.cloud.answers.get(f"{self.command} {self.path}")
        self._send(Answer({"error": "this server only reads"}, 405) if change is None else Answer(change(body)))

    def do_POST(self) -> None:
        self._log()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/identity/v3/auth/tokens":
            self._change(body)
            return
        given = self.cloud.answers.get("/identity/v3/auth/tokens")
        if isinstance(given, Answer):
            self._send(given)
            return
        name, document = self.cloud.token()
        self._send(Answer(document, 201, {"X-Subject-Token": name}))

    def _discovery(self, path: str) -> Answer:
        if path == "/v2.1":
            return Answer({"version": self.cloud.version()})
        if path.startswith("/image"):
            links = [{"rel": "self", "href": f"{self.cloud.address}/image/v2/"}]
            return Answer({"versions": [{"id": "v2.15", "status": "CURRENT", "links": links}]})
        links = [{"rel": "self", "href": f"{self.cloud.address}/identity/v3/"}]
        return Answer({"version": {"id": "v3.14", "status": "stable", "links": links}})

    def _log(self) -> None:
        self.cloud.log.append((self.command, self.path))
        microversion = (self.headers.get("OpenStack-API-Version") or "").removeprefix("compute ") or None
        self.cloud.spoken.setdefault(urlsplit(self.path).path, set()).add(microversion)

    def _send(self, answer: Answer) -> None:
        if answer.after is not None:
            answer.after.wait(60)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if answer.drip is not None:
            size, pause_seconds = answer.drip
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                time.sleep(pause_seconds)
            return
        self.wfile.write(body if answer.cut is None else body[: answer.cut])
        if answer.cut is not None:
            self.wfile.flush()
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a client that no longer waits: that is what some tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def fake_openstack() -> Iterator[FakeOpenStack]:
    """A server of its own, on a free port of the loopback."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.cloud = FakeOpenStack(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield handler.cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
