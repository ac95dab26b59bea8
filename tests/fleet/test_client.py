"""The host's side against a real hub: it lets itself in, sends what waits, and survives hubs that are gone, new, or say no."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from hub_process import RunningHub, free_port
from sqlalchemy import delete, update
from store_builders import finding, judge, minutes, observe

from exitguard.daemon.conditions import Conditions
from exitguard.daemon.metrics import Metrics
from exitguard.daemon.pushing import Pusher, Pushing
from exitguard.fleet.client import HubAccess, HubClient, PushError, held_key
from exitguard.model.documents import AuditReport, Observation
from exitguard.model.finding import Verdict
from exitguard.model.push import PushBatch
from exitguard.store.host import HostStore
from exitguard.store.hub_answers import read_facts, read_gaps, read_samples
from exitguard.store.hub_tables import document, host, standing
from exitguard.store.hub_tables import finding as finding_rows

MIB = 1 << 20


class Daemon:
    """A host's store and what pushes it, without libvirt: what is observed comes from builders."""

    def __init__(self, directory: Path, url: str, secret: str | None, *, limit_bytes: int = 64 * MIB) -> None:
        self.directory = directory
        self.conditions: dict[str, str] = {}
        self.store = HostStore.open(directory, now=minutes(0))
        self.now = 0.0
        secret_file = directory / "enrolment"
        if secret is not None:
            secret_file.write_text(f"{secret}\n")
        self.access = HubAccess(url, directory / "hub-key", secret_file if secret is not None else None)
        conditions = Conditions(begun=self.conditions.__setitem__, over=lambda name, _: self.conditions.pop(name, None))
        self.metrics = Metrics(jobs=("push",), rules=())
        self.pusher = Pusher(
            pushing=Pushing(self.access, limit_bytes),
            metrics=self.metrics,
            conditions=conditions,
            pulse=lambda: None,
            clock=lambda: self.now,
        )

    def audit(self, minute: int, verdict: Verdict = Verdict.FAIL, hostname: str = "compute-17") -> AuditReport:
        made = observe(minutes(minute), hostname=hostname)
        identity = made.facts.host.identity.model_copy(update={"id": self.store.host_id})
        facts = made.facts.model_copy(update={"host": made.facts.host.model_copy(update={"identity": identity})})
        told = (
            each.model_copy(
                update={"incarnation": each.incarnation and each.incarnation.model_copy(update={"host_id": self.store.host_id})}
            )
            for each in made.samples.domains
        )
        observation = Observation(facts=facts, samples=made.samples.model_copy(update={"domains": tuple(told)}))
        return self.store.record(observation, judge(observation, (finding(0, verdict, minutes(minute)),)))

    def push(self) -> None:
        self.pusher.push(self.store, "compute-17")

    def close(self) -> None:
        self.pusher.close()
        self.store.close()


@pytest.fixture
def daemon(hub: RunningHub, tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path, hub.url, hub.new_secret(f"daemon {uuid4()}"))
    yield made
    made.close()


def told(hub: RunningHub, daemon: Daemon) -> AuditReport | None:
    with hub.store() as store:
        return next((each.report() for each in store.reports(host_id=daemon.store.host_id)), None)


def test_a_host_lets_itself_in_and_pushes_what_it_has(hub: RunningHub, daemon: Daemon) -> None:
    report = daemon.audit(0)
    daemon.push()
    assert daemon.conditions == {}
    assert told(hub, daemon) == report
    assert (daemon.directory / "hub-key").stat().st_mode & 0o777 == 0o600
    for minute in range(10, 60, 10):
        report = daemon.audit(minute)
    daemon.push()
    assert told(hub, daemon) == report
    with hub.store() as store, store.reading() as connection:
        assert read_facts(connection, daemon.store.host_id) == daemon.store.facts()
        assert len(read_samples(connection, daemon.store.host_id, 100)) == 5
        assert read_gaps(connection, minutes(-999999), 100, daemon.store.host_id) == ()
    assert daemon.store.spool.state().records == 0
    assert "exitguard_pushed_records_total 17.0" in daemon.metrics.text()


def test_a_hub_that_is_gone_is_said_once_and_left_alone_for_a_while(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, f"http://127.0.0.1:{free_port()}", None)
    daemon.audit(0)
    daemon.push()
    assert "what waits is kept" in daemon.conditions["hub"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(daemon.access.url.rpartition(":")[2])))
        listener.listen()
        listener.settimeout(0.5)
        daemon.push()
        with pytest.raises(TimeoutError):  # nobody called
            listener.accept()
    assert daemon.store.spool.state().records == 2
    daemon.close()


def test_what_waited_goes_when_the_hub_is_back(hub: RunningHub, daemon: Daemon) -> None:
    daemon.audit(0)
    daemon.push()
    hub.end(signal.SIGKILL)
    try:
        for minute in (10, 20, 30):
            report = daemon.audit(minute, hostname=f"renamed-{minute}")
            daemon.now += 2000
            daemon.push()
        assert "hub" in daemon.conditions
        assert daemon.store.spool.state().records == 9
    finally:
        hub.start()
    daemon.now += 2000
    daemon.push()
    assert daemon.conditions == {}
    assert told(hub, daemon) == report


def test_a_hub_that_forgot_everything_is_told_in_full(hub: RunningHub, daemon: Daemon) -> None:
    daemon.audit(0)
    daemon.push()
    with hub.store() as store, store.writing() as connection:
        for table in (document, standing, finding_rows):
            connection.execute(delete(table).where(table.c.host_id == daemon.store.host_id))
        forgotten = {"report_sha256": None, "facts_sha256": None}
        connection.execute(update(host).where(host.c.host_id == daemon.store.host_id).values(forgotten))
    report = daemon.audit(10)
    daemon.push()
    assert daemon.conditions == {}
    assert told(hub, daemon) == report


def test_a_host_that_nobody_let_in_says_so_and_keeps_what_waits(hub: RunningHub, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, hub.url, None)
    daemon.audit(0)
    daemon.push()
    assert "does not let this host in" in daemon.conditions["hub"]
    assert daemon.store.spool.state().records == 2
    (tmp_path / "enrolment").write_text("exg-enrol." + "A" * 43)
    daemon.pusher.pushing = Pushing(HubAccess(hub.url, tmp_path / "hub-key", tmp_path / "enrolment"), MIB)
    daemon.pusher.close()
    daemon.now += 2000
    daemon.push()
    assert "Expected a secret that counts" in daemon.conditions["hub"]
    daemon.close()


def test_a_full_spool_is_a_gap_that_the_hub_shows(hub: RunningHub, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, hub.url, None, limit_bytes=8 << 10)
    daemon.audit(0)
    daemon.push()
    for minute in range(10, 200, 10):
        report = daemon.audit(minute, hostname=f"renamed-{minute}")
    daemon.push()
    assert "left the spool unsent" in daemon.conditions["spool"]
    kept = daemon.store.spool.state()
    (tmp_path / "enrolment").write_text(hub.new_secret(f"late {uuid4()}"))
    daemon.pusher.pushing = Pushing(HubAccess(hub.url, tmp_path / "hub-key", tmp_path / "enrolment"), 8 << 10)
    daemon.pusher.close()
    daemon.now += 2000
    daemon.push()
    assert daemon.conditions == {}
    assert told(hub, daemon) == report
    with hub.store() as store, store.reading() as connection:
        gaps = read_gaps(connection, minutes(-999999), 100, daemon.store.host_id)
    assert sum(gap.dropped for gap in gaps) == kept.dropped == 2 + 19 * 3 - kept.records
    daemon.close()


def test_a_record_that_no_hub_takes_is_given_up_and_the_rest_goes(hub: RunningHub, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.audit(0)
    daemon.push()
    for minute in (10, 20, 30):
        report = daemon.audit(minute, hostname=f"renamed-{minute}")
    whole = PushBatch.model_dump_json

    def broken(batch: PushBatch, **options: bool) -> str:
        text = whole(batch, **options)
        return text[:-1] if any(record.seq == 5 for record in batch.records) else text

    monkeypatch.setattr(PushBatch, "model_dump_json", broken)
    daemon.push()
    assert daemon.conditions == {}
    assert told(hub, daemon) == report
    with hub.store() as store, store.reading() as connection:
        gaps = read_gaps(connection, minutes(-999999), 100, daemon.store.host_id)
    assert [(gap.dropped, gap.gap_id.rpartition("/")[2]) for gap in gaps] == [(1, "5")]


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\nnot json", b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", b"x" * 100]
)
def test_something_else_at_the_address_is_no_hub(tmp_path: Path, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(5)
                        connection.recv(1 << 20)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        access = HubAccess(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path / "key")
        batch = PushBatch(host_id=str(uuid4()), spool_epoch=str(uuid4()), sent_at=datetime.now(UTC))
        try:
            with HubClient(access, batch.host_id) as client, pytest.raises(PushError):
                client.push(batch)
        finally:
            stop.set()
            with suppress(OSError), socket.create_connection(server.getsockname(), timeout=1):
                pass
            thread.join(30)


def test_a_key_of_another_host_is_not_used(tmp_path: Path) -> None:
    held_key(tmp_path / "key", str(uuid4()))
    with pytest.raises(PushError, match="holds no key of host"):
        held_key(tmp_path / "key", str(uuid4()))


def test_a_place_that_no_key_can_be_written_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(PushError, match="Expected a place for this host's key"):
        held_key(tmp_path / "missing" / "key", str(uuid4()))
