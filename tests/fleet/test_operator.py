"""The operator's side of the hub: what it asks a real hub, and what it refuses to take from anything else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from hub_process import RunningHub, free_port
from push_builders import EPOCH, record
from store_builders import judge, observe

from exitguard.fleet.keys import new_operator_token
from exitguard.fleet.operator import HubError, HubOperator, HubRefusal, HubToken
from exitguard.model.hub import FleetReport, HostPage, Revoked, Role
from exitguard.model.push import PushBatch

TOKEN = new_operator_token().text


def token_file(directory: Path, token: str = TOKEN) -> Path:
    file = directory / "token"
    file.write_text(f"{token}\n")
    return file


def of(hub: RunningHub, directory: Path, role: Role = Role.VIEWER) -> HubOperator:
    return HubOperator(HubToken(hub.url, token_file(directory, hub.operator(role)["Authorization"].removeprefix("Bearer "))))


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """The URL of something that answers every request with these bytes, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(content)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)


def test_an_operator_reads_pages_and_lines_and_acts(hub: RunningHub, tmp_path: Path) -> None:
    key, at = hub.let_in(str(uuid4())), datetime.now(UTC)
    judged = judge(observe(at))
    report = judged.model_copy(update={"host": judged.host.model_copy(update={"id": key.host_id})})
    pushed = PushBatch(host_id=key.host_id, spool_epoch=EPOCH, sent_at=at, records=(record(1, report, at),))
    assert hub.push(key, pushed).status_code == 200
    with of(hub, tmp_path, Role.OPERATOR) as operator:
        assert key.host_id in {each.host_id for each in operator.get("/v1/hosts", HostPage, {"limit": "1000"}).hosts}
        (line,) = operator.lines("/v1/reports", FleetReport, {"host": key.host_id})
        assert line.report["observed_at"] == report.model_dump(mode="json")["observed_at"]
        assert operator.post(f"/v1/hosts/{key.host_id}/revoke", Revoked) == Revoked(host_id=key.host_id, keys=1)


def test_what_a_token_may_not_is_refused_in_the_hubs_words(hub: RunningHub, tmp_path: Path) -> None:
    with of(hub, tmp_path) as viewer, pytest.raises(HubRefusal, match="operator") as refused:
        viewer.post(f"/v1/hosts/{uuid4()}/revoke", Revoked)
    assert refused.value.word == "forbidden"
    with HubOperator(HubToken(hub.url, token_file(tmp_path))) as nobody, pytest.raises(HubRefusal, match="hub_token_file does not count"):
        nobody.get("/v1/hosts", HostPage)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "disconnected"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "disconnected"),
        (plain(b"<html>hello</html>"), "else than a hub"),
        (plain(b'{"hosts": [], "after": 7}'), "after"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{", "incomplete|closed"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n<b>oops\n\n", "status 500"),
    ],
)
def test_what_is_no_hub_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    with answering(content) as url, HubOperator(HubToken(url, token_file(tmp_path))) as operator, pytest.raises(HubError) as told:
        operator.get("/v1/hosts", HostPage)
    assert str(told.value).startswith(url)
    assert any(word in str(told.value).lower() for word in said.split("|")), told.value
    assert TOKEN not in str(told.value)


def test_lines_that_are_cut_off_are_no_whole_answer(tmp_path: Path) -> None:
    line = b'{"host_id": "a", "received_at": "2026-03-01T12:00:00Z", "report": {}}\n'
    with answering(plain(line + line[:20])) as url, HubOperator(HubToken(url, token_file(tmp_path))) as operator:
        lines = operator.lines("/v1/reports", FleetReport)
        assert next(lines).host_id == "a"
        with pytest.raises(HubError, match="middle of a line"):
            next(lines)


def test_a_hub_that_is_gone_is_told(tmp_path: Path) -> None:
    with (
        HubOperator(HubToken(f"http://127.0.0.1:{free_port()}", token_file(tmp_path))) as operator,
        pytest.raises(HubError, match="Expected the hub to answer there"),
    ):
        operator.get("/v1/hosts", HostPage)


def test_a_file_without_a_token_is_told(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"no such file.*hub_token_file"):
        HubOperator(HubToken("http://127.0.0.1:1", tmp_path / "none"))
    (tmp_path / "token").write_text("exg-host.something")
    with pytest.raises(HubError, match="no operator's token"):
        HubOperator(HubToken("http://127.0.0.1:1", tmp_path / "token"))
    (tmp_path / "ca").write_text("no PEM")
    with pytest.raises(HubError, match="hub_ca_file"):
        HubOperator(HubToken("http://127.0.0.1:1", token_file(tmp_path), tmp_path / "ca"))


def test_more_pages_than_a_hub_takes_at_once_are_waited_for(hub: RunningHub, tmp_path: Path) -> None:
    with of(hub, tmp_path) as viewer:
        for _ in range(65):
            assert viewer.get("/v1/hosts", HostPage, {"limit": "1"}).hosts is not None
    assert "too_often" in {line.get("error") for line in hub.logged()}
