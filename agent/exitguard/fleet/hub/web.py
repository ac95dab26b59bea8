"""HTTP for the hub, by Starlette and uvicorn: bodies within bounds, handlers in threads, refusals logged. Nothing else knows of them.

Whom a route does not let in is refused before its body is read. TLS, slow clients and addresses are the business of the proxy in front.
"""

import asyncio
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as WebRoute

from exitguard.fleet.hub.admission import admit
from exitguard.fleet.hub.call import JSON, Answer, Call, Caller, Host, RefusedError, actor_of
from exitguard.fleet.hub.metrics import TEXT_TYPE, HubMetrics
from exitguard.fleet.hub.openapi import openapi
from exitguard.fleet.hub.rates import Rates
from exitguard.fleet.hub.routes import ROUTES, Route
from exitguard.store.errors import StoreError
from exitguard.store.hub import HubStore
from exitguard.store.hub_database import HubUnavailable
from exitguard.store.hub_ingest import UnknownHost

_BODY_SECONDS = 60
_RETRY_SECONDS = 10
_PRUNE_SECONDS = 3600
_MOST_HEADERS_BYTES = 16 << 10
_MOST_CONNECTIONS = 500
_END_SECONDS = 20
_WORDS = {404: "unknown_path", 405: "unknown_method"}

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class HubLimits:
    """What one process of the hub does at once, and for one key in a time."""

    threads: int = 8
    calls_per_second: float = 5.0
    calls_burst: int = 60


@dataclass
class _Hub:
    store: HubStore
    limits: HubLimits
    clock: Callable[[], datetime]
    metrics: HubMetrics = field(default_factory=HubMetrics)

    def __post_init__(self) -> None:
        self.threads = CapacityLimiter(self.limits.threads)
        self.rates = Rates(self.limits.calls_per_second, self.limits.calls_burst)


def application(store: HubStore, limits: HubLimits | None = None, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Starlette:
    """The hub as an ASGI application."""
    hub = _Hub(store, limits or HubLimits(), clock)
    document = json.dumps(openapi()).encode()

    async def described(_request: Request) -> Response:
        return Response(document, media_type=JSON)

    async def counted(_request: Request) -> Response:
        return Response(hub.metrics.text(), media_type=TEXT_TYPE)

    async def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        refusal = RefusedError(status, _WORDS.get(status, "refused"), "There is no such route: see /openapi.json.")
        return _response(_refused(hub, request, "other", None, refusal))

    routes = [WebRoute(route.path, _endpoint(hub, route), methods=[route.method]) for route in ROUTES]
    routes += [WebRoute("/openapi.json", described), WebRoute("/metrics", counted)]
    return Starlette(routes=routes, exception_handlers={HTTPException: unknown})


def serve(store: HubStore, host: str, port: int, limits: HubLimits | None = None) -> None:
    """Serve until SIGTERM or SIGINT, and forget once an hour what is no longer kept."""
    config = uvicorn.Config(
        application(store, limits),
        host=host,
        port=port,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=_MOST_HEADERS_BYTES,
        timeout_graceful_shutdown=_END_SECONDS,
    )
    ended = threading.Event()
    keeper = threading.Thread(target=_keep_pruned, args=(store, ended), name="retention", daemon=True)
    keeper.start()
    _log.info("hub.started", database=store.name, listen=f"{host}:{port}")
    try:
        uvicorn.Server(config).run()
    finally:
        ended.set()
        _log.info("hub.ended")


def _keep_pruned(store: HubStore, ended: threading.Event) -> None:
    """Replicas do not all begin at once; that two do the same does no harm."""
    while not ended.wait(_PRUNE_SECONDS * random.uniform(0.9, 1.1)):  # noqa: S311 - no secret
        try:
            forgotten = store.prune(datetime.now(UTC))
        except StoreError as error:
            _log.warning("hub.not_pruned", reason=str(error))
        else:
            _log.info("hub.pruned", forgotten=forgotten)


def _endpoint(hub: _Hub, route: Route) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        began, caller, received = time.monotonic(), None, 0
        try:
            caller = await _in_thread(hub, lambda: _admitted(hub, route, request))
            body = await _bounded_body(request, route.most_body_bytes)
            received = len(body)
            call = Call(
                store=hub.store,
                now=hub.clock(),
                caller=caller,
                query=dict(request.query_params),
                path=request.path_params,
                encoding=request.headers.get("content-encoding", "").lower(),
                body=body,
            )
            answer = await _in_thread(hub, lambda: route.handler(call))
        except RefusedError as refusal:
            answer = _refused(hub, request, route.path, caller, refusal)
        except UnknownHost as error:
            answer = _refused(hub, request, route.path, caller, RefusedError(403, "unknown_host", str(error)))
        except StoreError as error:
            _log.error("request.failed", route=route.path, reason=str(error))
            status, word = (503, "unavailable") if isinstance(error, HubUnavailable) else (500, "store")
            sentence = "The hub's database cannot do this now." if status == 503 else "The hub's database refused this: see the hub's log."  # noqa: PLR2004
            answer = _refused(hub, request, route.path, caller, RefusedError(status, word, sentence, retry_after_seconds=_RETRY_SECONDS))
        except Exception as error:  # noqa: BLE001 - the outer edge of a request
            _log.exception("request.broken", route=route.path, error=type(error).__name__)
            answer = _refused(hub, request, route.path, caller, RefusedError(500, "defect", "This is a defect of the hub: see its log."))
        hub.metrics.answered(route.path, answer.status, time.monotonic() - began, received)
        return _response(answer)

    return endpoint


def _admitted(hub: _Hub, route: Route, request: Request) -> Caller:
    caller = admit(hub.store, request.headers.get("authorization"), route.access, hub.clock())
    who = _rate_key(caller, route)
    if who is not None:
        wait_seconds = hub.rates.wait_seconds(who)
        if wait_seconds > 0:
            raise RefusedError(429, "too_often", "Too many requests with this key.", retry_after_seconds=math.ceil(wait_seconds))
    return caller


def _rate_key(caller: Caller, route: Route) -> str | None:
    """By whom calls are counted; all who enrol together, since anybody may try."""
    match caller:
        case Host():
            return f"host {caller.host_id}"
        case None:
            return route.path if route.body is not None else None
        case _:
            return f"operator {caller.token_id}"


async def _bounded_body(request: Request, limit_bytes: int) -> bytes:
    """Raises RefusedError for more than that, having read no more, and for one that takes too long."""
    too_large = RefusedError(413, "too_large", f"The body is larger than {limit_bytes} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise too_large
    pieces, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size > limit_bytes:
                    raise too_large
                pieces.append(piece)
    except TimeoutError:
        raise RefusedError(408, "too_slow", f"The body took longer than {_BODY_SECONDS} seconds.") from None
    except ClientDisconnect:
        raise RefusedError(400, "cut_off", "The body ended before its end.") from None
    return b"".join(pieces)


async def _in_thread(hub: _Hub, work: Callable[[], Any]) -> Any:
    return await to_thread.run_sync(work, limiter=hub.threads)


def _refused(hub: _Hub, request: Request, route: str, caller: Caller, refusal: RefusedError) -> Answer:
    client = request.client.host if request.client is not None else None
    hub.metrics.refused(refusal.error)
    _log.warning(
        "request.refused",
        route=route,
        status=refusal.status,
        error=refusal.error,
        reason=refusal.message,
        actor=actor_of(caller),
        client=client,
    )
    return refusal.answer()


def _response(answer: Answer) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **answer.headers}
    if isinstance(answer.body, bytes):
        return Response(answer.body, answer.status, headers, answer.media_type)
    return StreamingResponse(_told(answer.body), answer.status, headers, answer.media_type)


def _told(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """An answer that cannot be told to its end is cut off, which its reader sees: HTTP marks the end of what is whole."""
    try:
        yield from pieces
    except StoreError as error:
        _log.error("answer.cut_off", reason=str(error))
        raise
