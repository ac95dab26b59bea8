"""The hub over HTTP, as a process, on both databases: who may do what, what is bounded, and that every refusal is logged and harmless."""

import json
import time
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
import zstandard
from hub_process import RunningHub, bearer
from push_builders import EPOCH, ledger_of, ledger_row, record
from store_builders import START, finding, judge, minutes, observe

from exitguard.fleet.keys import HostKey, new_enrolment_secret, new_host_key
from exitguard.model.documents import AuditReport
from exitguard.model.finding import Verdict
from exitguard.model.hub import Role
from exitguard.model.ledger import LedgerRow
from exitguard.model.push import MOST_BATCH_BYTES, MOST_COMPRESSED_BYTES, PushBatch, PushRecord


@pytest.fixture
def host(hub: RunningHub) -> HostKey:
    """A new host that was let in."""
    return hub.let_in(str(uuid4()))


def batch(key: HostKey, *records: PushRecord) -> PushBatch:
    return PushBatch(host_id=key.host_id, spool_epoch=EPOCH, sent_at=datetime.now(UTC), records=records)


def report(key: HostKey, seq: int = 1, at: datetime = START, verdict: Verdict = Verdict.FAIL) -> PushRecord:
    judged = judge(observe(at), (finding(0, verdict, at),))
    return record(seq, judged.model_copy(update={"host": judged.host.model_copy(update={"id": key.host_id})}), at)


def row(key: HostKey, exits: int) -> LedgerRow:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    made = ledger_row(1, 0, hour, exits=exits)
    return made.model_copy(update={"incarnation": made.incarnation.model_copy(update={"host_id": key.host_id})})


def test_a_host_pushes_and_operators_read(hub: RunningHub, host: HostKey) -> None:
    at = datetime.now(UTC)
    answer = hub.push(host, batch(host, report(host, at=at), record(2, ledger_of([row(host, 700)]), at)))
    assert (answer.status_code, answer.json()["acknowledged_seq"]) == (200, 2)
    viewer = hub.operator()
    (line,) = hub.client.get("/v1/reports", params={"host": host.host_id}, headers=viewer).text.splitlines()
    told = AuditReport.model_validate_json(json.dumps(json.loads(line)["report"]))
    assert (told.host.id, told.observed_at, len(told.domains)) == (host.host_id, at, 3)
    page = hub.client.get(f"/v1/hosts/{host.host_id}", headers=viewer).json()
    assert (page["hostname"], page["exit_code"], page["may_write"]) == ("compute-17", 2, True)
    findings = hub.client.get("/v1/findings", params={"verdict": "fail", "limit": "1000"}, headers=viewer).json()["findings"]
    assert [each["rule"] for each in findings if each["host_id"] == host.host_id] == ["DOM-PMU-LIVE"]
    events = hub.client.get("/v1/events", params={"host": host.host_id}, headers=viewer).json()["events"]
    assert [(each["before"], each["now"]) for each in events] == [(None, "fail")]
    totals = hub.client.get("/v1/ledger", params={"limit": "1000"}, headers=viewer).json()["totals"]
    assert [each["exits"] for each in totals if each["host_id"] == host.host_id] == [700]
    assert hub.client.get("/v1/gaps", params={"host": host.host_id}, headers=viewer).json() == {"gaps": [], "after": None}


def test_a_report_of_the_past_is_read(hub: RunningHub, host: HostKey) -> None:
    for seq, verdict in enumerate([Verdict.FAIL, Verdict.PASS]):
        assert hub.push(host, batch(host, report(host, seq + 1, minutes(120 * seq), verdict))).status_code == 200
    viewer = hub.operator()

    def told(at: str) -> list[str]:
        lines = hub.client.get("/v1/reports", params={"host": host.host_id, "at": at}, headers=viewer).text.splitlines()
        return [json.loads(line)["report"]["findings"][0]["verdict"] for line in lines]

    assert [told(at) for at in ("2026-03-01T11:00:00Z", "2026-03-01T13:00:00Z", "2026-03-01T15:00:00+01:00", "2026-03-01T14:01:00Z")] == [
        [],
        ["fail"],
        ["fail"],
        ["pass"],
    ]


def test_pages_go_on_where_the_one_before_ended(hub: RunningHub, host: HostKey) -> None:
    others = [hub.let_in(str(uuid4())) for _ in range(3)]
    for key in (host, *others):
        records = [record(1, judged_with(key, 3), START)]
        assert hub.push(key, batch(key, *records)).status_code == 200
    viewer = hub.operator()
    for path, name in (("/v1/hosts", "hosts"), ("/v1/findings", "findings")):
        found, after = [], None
        while True:
            page = hub.client.get(path, params={"limit": "2", **({"after": after} if after is not None else {})}, headers=viewer).json()
            found += [json.dumps(each) for each in page[name]]
            after = page["after"]
            if after is None:
                break
            time.sleep(0.2)  # within the rate
        assert len(found) == len(set(found))
        assert {key.host_id for key in (host, *others)} <= {json.loads(each)["host_id"] for each in found}
        if name == "findings":
            assert sum(json.loads(each)["host_id"] == host.host_id for each in found) == 3


def judged_with(key: HostKey, findings: int) -> AuditReport:
    judged = judge(observe(START), tuple(finding(n, Verdict.FAIL, START) for n in range(findings)))
    return judged.model_copy(update={"host": judged.host.model_copy(update={"id": key.host_id})})


# --- who may ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/push", "/v1/keys", "/v1/keys/retire", "/v1/hosts/x/revoke"])
@pytest.mark.parametrize("authorization", [None, "Bearer x", "Basic eDp5", "Bearer exg-op.0123456789abcdef." + "A" * 43, "Bearer \x00"])
def test_nobody_unknown_writes(hub: RunningHub, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    try:
        answer = hub.client.post(path, content=b"{}", headers=headers)
    except httpx.LocalProtocolError:
        return  # no such header leaves the client
    assert answer.status_code in (400, 401)
    assert answer.json()["error"] == "unauthenticated"


def test_a_host_writes_only_itself(hub: RunningHub, host: HostKey) -> None:
    other = hub.let_in(str(uuid4()))
    assert hub.push(other, batch(other, report(other))).status_code == 200
    foreign = batch(other, report(other, 2, minutes(9), Verdict.PASS))
    answer = hub.push(host, foreign)
    assert (answer.status_code, answer.json()["error"]) == (403, "another_host")
    smuggled = batch(host, report(other, 1, minutes(9), Verdict.PASS))
    (refused,) = hub.push(host, smuggled).json()["refused"]
    assert "writes only what is its own" in refused["reason"]
    mixed = HostKey(other.host_id, host.key_id, host.secret)
    assert hub.push(mixed, foreign).status_code == 401
    viewer = hub.operator(Role.OPERATOR)
    (line,) = hub.client.get("/v1/reports", params={"host": other.host_id}, headers=viewer).text.splitlines()
    assert json.loads(line)["report"]["findings"][0]["verdict"] == "fail"
    assert hub.client.get("/v1/reports", params={"host": host.host_id}, headers=viewer).text == ""
    log = hub.client.get("/v1/log", params={"host": host.host_id}, headers=viewer).json()["entries"]
    assert log[0]["action"] == "push.refused"
    assert other.host_id in log[0]["detail"]


def test_a_revoked_host_writes_nothing_and_may_be_let_in_again(hub: RunningHub, host: HostKey) -> None:
    assert hub.push(host, batch(host, report(host))).status_code == 200
    assert hub.client.post(f"/v1/hosts/{host.host_id}/revoke", headers=hub.operator(Role.VIEWER)).status_code == 403
    assert hub.client.post(f"/v1/hosts/{host.host_id}/revoke", headers=hub.operator(Role.OPERATOR)).json()["keys"] == 1
    answer = hub.push(host, batch(host, report(host, 2)))
    assert answer.status_code == 401
    assert hub.client.get(f"/v1/hosts/{host.host_id}", headers=hub.operator()).json()["may_write"] is False
    key = hub.let_in(host.host_id)
    assert hub.push(key, batch(key, report(key, 2))).json()["acknowledged_seq"] == 2
    assert hub.push(host, batch(host, report(host, 3))).status_code == 401


def test_an_enrolment_secret_lets_in_as_many_as_it_says_each_once(hub: RunningHub) -> None:
    secret = hub.new_secret(f"two {uuid4()}", hosts=2)
    first, second, third = (new_host_key(str(uuid4())) for _ in range(3))
    assert [hub.enrol(secret, key).status_code for key in (first, first, second, third)] == [201, 201, 201, 403]
    assert hub.enrol(secret, first).status_code == 201  # its answer may have been lost
    assert hub.enrol(hub.new_secret(f"more {uuid4()}", 5), new_host_key(first.host_id)).status_code == 403
    assert hub.enrol(hub.new_secret(f"late {uuid4()}", hours=-1), third).status_code == 403
    assert hub.enrol(new_enrolment_secret(), third).status_code == 403
    assert hub.push(third, batch(third, report(third))).status_code == 401


def test_a_host_changes_its_key(hub: RunningHub, host: HostKey) -> None:
    new = new_host_key(host.host_id)
    for _ in range(2):  # its answer may have been lost
        answer = hub.client.post("/v1/keys", content=new.public.model_dump_json(), headers=bearer(host.text))
        assert answer.status_code == 201
    assert hub.push(host, batch(host, report(host))).status_code == 200
    assert hub.client.post("/v1/keys/retire", headers=bearer(new.text)).json()["keys"] == 1
    assert hub.push(host, batch(host, report(host, 2))).status_code == 401
    assert hub.push(new, batch(new, report(new, 2))).status_code == 200


def test_a_host_has_no_more_than_a_few_keys(hub: RunningHub, host: HostKey) -> None:
    keys = [new_host_key(host.host_id) for _ in range(5)]
    statuses = [hub.client.post("/v1/keys", content=key.public.model_dump_json(), headers=bearer(host.text)).status_code for key in keys]
    assert statuses == [201, 201, 201, 409, 409]


def test_hosts_do_not_read_and_operators_do_not_push(hub: RunningHub, host: HostKey) -> None:
    assert hub.client.get("/v1/hosts", headers=bearer(host.text)).status_code == 403
    assert hub.client.get("/v1/reports", headers=bearer(host.text)).status_code == 403
    answer = hub.client.post("/v1/push", content=batch(host).model_dump_json(), headers=hub.operator(Role.APPROVER))
    assert answer.status_code == 403
    assert hub.client.get("/v1/log", headers=hub.operator(Role.VIEWER)).status_code == 403
    assert hub.client.get("/v1/hosts", headers=hub.operator(hours=-1)).status_code == 401


# --- what is bounded ----------------------------------------------------------------------------------------------------------------


def test_a_packed_batch_is_read(hub: RunningHub, host: HostKey) -> None:
    packed = zstandard.compress(batch(host, report(host)).model_dump_json().encode())
    answer = hub.client.post("/v1/push", content=packed, headers={"Content-Encoding": "zstd", **bearer(host.text)})
    assert answer.json()["acknowledged_seq"] == 1


def test_a_bomb_is_refused_without_being_unpacked(hub: RunningHub, host: HostKey) -> None:
    def pieces() -> bytes:
        packer, zeros = zstandard.ZstdCompressor(level=1).compressobj(), b"\0" * (1 << 24)
        return b"".join([*(packer.compress(zeros) for _ in range(128)), packer.flush()])  # 2 GiB

    bomb, nested = pieces(), zstandard.compress(zstandard.compress(b"\0" * (MOST_BATCH_BYTES * 2)))
    assert len(bomb) < MOST_COMPRESSED_BYTES
    before = hub.rss_bytes
    headers = {"Content-Encoding": "zstd", **bearer(host.text)}
    assert hub.client.post("/v1/push", content=bomb, headers=headers).status_code == 413
    assert hub.client.post("/v1/push", content=bomb * 20, headers=headers).status_code == 413
    assert hub.client.post("/v1/push", content=nested, headers=headers).status_code == 400
    assert hub.rss_bytes - before < 3 * MOST_BATCH_BYTES
    assert hub.push(host, batch(host, report(host))).status_code == 200


@pytest.mark.parametrize(
    ("content", "encoding", "status"),
    [
        (b"", "", 400),
        (b"not json", "", 400),
        (b"[" * 100_000, "", 400),
        (b'{"records":' + b"9" * 100_000 + b"}", "", 400),
        (b"\xff\xfe", "", 400),
        (b"x", "zstd", 400),
        (b"x", "gzip", 415),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "zstd", 400),
        (b"0" * (MOST_COMPRESSED_BYTES + 1), "", 413),
    ],
)
def test_what_is_malformed_or_too_large_is_refused(hub: RunningHub, host: HostKey, content: bytes, encoding: str, status: int) -> None:
    answer = hub.client.post("/v1/push", content=content, headers={"Content-Encoding": encoding, **bearer(host.text)})
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "message"}


def test_a_body_that_only_grows_is_cut_off(hub: RunningHub, host: HostKey) -> None:
    def endless() -> object:
        for _ in range(1000):
            yield b"0" * (1 << 16)

    try:
        status = hub.client.post("/v1/push", content=endless(), headers=bearer(host.text)).status_code
    except httpx.TransportError:  # it is closed while we still send
        status = 413
    assert status == 413
    assert hub.push(host, batch(host, report(host))).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "/v1/hosts?limit=0",
        "/v1/hosts?limit=1001",
        "/v1/hosts?limit=1e3",
        "/v1/hosts?limit=%D9%A3",
        "/v1/hosts?after=%00",
        "/v1/findings?verdict=bad",
        "/v1/findings?after=[1]",
        "/v1/findings?after=%7B",
        "/v1/findings?after=[%22a%22,%22b%22,%22c%22,%22d%22,%22e%22]",
        "/v1/reports?at=yesterday",
        "/v1/reports?at=2026-01-01",
        "/v1/events?since=9999-99-99T00:00:00Z",
        "/v1/ledger?until=x",
    ],
)
def test_a_query_that_says_something_else_is_refused(hub: RunningHub, query: str) -> None:
    assert hub.client.get(query, headers=hub.operator()).json()["error"] == "bad_query"


def test_sql_and_markup_in_a_query_find_nothing(hub: RunningHub) -> None:
    text = "x' OR '1'='1'; DROP TABLE host; --<script>"
    viewer = hub.operator()
    assert hub.client.get("/v1/findings", params={"rule": text}, headers=viewer).json()["findings"] == []
    assert hub.client.get("/v1/reports", params={"host": text}, headers=viewer).text == ""
    assert hub.client.get(f"/v1/hosts/{text}", headers=viewer).status_code == 404
    assert hub.client.get("/v1/hosts", headers=viewer).status_code == 200


def test_a_key_that_calls_too_often_waits_and_others_do_not(hub: RunningHub, host: HostKey) -> None:
    other = hub.let_in(str(uuid4()))
    answers = [hub.push(host, batch(host)) for _ in range(90)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 429}
    assert hub.push(other, batch(other)).status_code == 200


def test_every_refusal_is_logged_and_no_secret_is(hub: RunningHub, host: HostKey) -> None:
    wrong = HostKey(host.host_id, host.key_id, "B" * 43)
    marker = f"/v1/{uuid4()}"
    hub.push(wrong, batch(host))
    hub.client.get(marker)
    hub.client.post("/v1/push", content=b"{", headers=bearer(host.text))
    hub.enrol(new_enrolment_secret(), new_host_key(host.host_id))
    logged = [event for event in hub.logged() if event["event"] == "request.refused"]
    assert [event["error"] for event in logged[-4:]] == ["unauthenticated", "unknown_path", "malformed", "not_admitted"]
    assert logged[-2]["actor"] == f"host {host.host_id}"
    text = json.dumps(hub.logged())
    assert host.secret not in text
    assert "B" * 43 not in text


# --- how it is ----------------------------------------------------------------------------------------------------------------------


def test_it_says_how_it_is(hub: RunningHub) -> None:
    assert hub.client.get("/healthz").json() == {"status": "ok"}
    assert hub.client.get("/readyz").json() == {"status": "ready"}
    metrics = hub.client.get("/metrics").text
    assert 'exitguard_hub_requests_total{route="/healthz",status="200"}' in metrics
    assert "exitguard_hub_build_info" in metrics
    assert hub.client.get("/nothing").json()["error"] == "unknown_path"
    assert hub.client.delete("/v1/hosts").json()["error"] == "unknown_method"


def test_openapi_describes_every_route(hub: RunningHub) -> None:
    document = hub.client.get("/openapi.json").json()
    assert {"/v1/enrol", "/v1/push", "/v1/hosts", "/v1/reports", "/v1/findings", "/v1/ledger", "/healthz", "/readyz"} <= set(
        document["paths"]
    )
    text = json.dumps(document)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(document["components"]["schemas"])
