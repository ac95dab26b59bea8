"""Every route of the hub: what it is for, whom it lets in, how large a body may be, and what goes in and out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from exitguard.fleet.hub import handlers
from exitguard.fleet.hub.admission import Access
from exitguard.fleet.hub.call import JSON, LINES, Answer, Call, Host
from exitguard.model.hub import (
    EventPage,
    FindingPage,
    FleetFacts,
    FleetHost,
    FleetReport,
    FleetSavingsLine,
    GapPage,
    Health,
    HostPage,
    LedgerPage,
    LogPage,
    Revoked,
    Role,
)
from exitguard.model.push import MOST_COMPRESSED_BYTES, Enrolled, Enrolment, NewKey, PushAnswer, PushBatch
from exitguard.model.record import Record

_SMALL_BYTES = 4096
_AFTER = "Where to go on: the `after` of the page before."
_LIMIT = "How many at most: 1 to 1000; 100 where it is not given."
_HOST = "Of this host alone, by its id."
_SINCE = "RFC 3339 with an offset; a day ago where it is not given."


@dataclass(frozen=True)
class Route:
    method: Literal["GET", "POST"]
    path: str
    handler: Callable[[Call], Answer]
    access: Access
    answer: type[Record] | None
    summary: str
    body: type[Record] | None = None
    most_body_bytes: int = 0
    #: Query parameters, with what they say.
    query: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    media_type: str = JSON


ROUTES = (
    Route(
        "POST",
        "/v1/enrol",
        handlers.enrol_host,
        None,
        Enrolled,
        "Let a host in by an enrolment secret.",
        Enrolment,
        _SMALL_BYTES,
        status=201,
    ),
    Route("POST", "/v1/push", handlers.push, Host, PushAnswer, "Take a host's oldest records.", PushBatch, MOST_COMPRESSED_BYTES),
    Route("POST", "/v1/keys", handlers.add_another_key, Host, Enrolled, "Add another key of the host.", NewKey, _SMALL_BYTES, status=201),
    Route("POST", "/v1/keys/retire", handlers.retire_keys, Host, Revoked, "Let the host's other keys no longer count."),
    Route("GET", "/v1/hosts", handlers.hosts, Role.VIEWER, HostPage, "Hosts by their ids.", query={"after": _AFTER, "limit": _LIMIT}),
    Route("GET", "/v1/hosts/{host_id}", handlers.host, Role.VIEWER, FleetHost, "One host."),
    Route("POST", "/v1/hosts/{host_id}/revoke", handlers.revoke, Role.OPERATOR, Revoked, "Shut a host out. What it said stays."),
    Route(
        "GET",
        "/v1/reports",
        handlers.reports,
        Role.VIEWER,
        FleetReport,
        "Every host's report, one JSON document a line.",
        query={"at": "The reports in force then: RFC 3339 with an offset; now where it is not given.", "host": _HOST},
        media_type=LINES,
    ),
    Route(
        "GET",
        "/v1/facts",
        handlers.facts,
        Role.VIEWER,
        FleetFacts,
        "Every host's newest facts, one JSON document a line.",
        media_type=LINES,
    ),
    Route(
        "GET",
        "/v1/savings",
        handlers.savings,
        Role.VIEWER,
        FleetSavingsLine,
        "What every host saves, as it said itself, one JSON document a line.",
        query={"at": "What was said in the two hours before: RFC 3339 with an offset; now where it is not given."},
        media_type=LINES,
    ),
    Route(
        "GET",
        "/v1/findings",
        handlers.findings,
        Role.VIEWER,
        FindingPage,
        "Findings of the newest reports.",
        query={"verdict": "With this verdict alone.", "rule": "Of this rule alone.", "after": _AFTER, "limit": _LIMIT},
    ),
    Route(
        "GET",
        "/v1/events",
        handlers.events,
        Role.VIEWER,
        EventPage,
        "Verdicts that became others, by when the hub heard of it.",
        query={"since": _SINCE, "host": _HOST, "after": _AFTER, "limit": _LIMIT},
    ),
    Route(
        "GET",
        "/v1/gaps",
        handlers.gaps,
        Role.VIEWER,
        GapPage,
        "Observations that did not arrive, by when the hub heard of it.",
        query={"since": _SINCE, "host": _HOST, "after": _AFTER, "limit": _LIMIT},
    ),
    Route(
        "GET",
        "/v1/ledger",
        handlers.ledger,
        Role.VIEWER,
        LedgerPage,
        "The ledger of a time, added up by host and way of standing.",
        query={"since": _SINCE, "until": "RFC 3339 with an offset; now where it is not given.", "after": _AFTER, "limit": _LIMIT},
    ),
    Route(
        "GET", "/v1/log", handlers.log, Role.OPERATOR, LogPage, "The audit log, the newest first.", query={"host": _HOST, "limit": _LIMIT}
    ),
    Route("GET", "/healthz", handlers.health, None, Health, "Whether the process answers."),
    Route("GET", "/readyz", handlers.readiness, None, Health, "Whether the database answers too."),
)
