"""What is pushed through faults is in the hub, once: told by counting each row that hosts made, whatever was killed or sent twice."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from hub_process import RunningHub
from postgresql_cluster import Cluster, running_cluster
from push_builders import as_hashes, ledger_of, ledger_row, record
from sqlalchemy import func, select
from store_builders import finding, judge, observe

from exitguard.fleet.keys import HostKey
from exitguard.model.documents import AuditReport
from exitguard.model.finding import Verdict
from exitguard.model.ledger import LedgerRow
from exitguard.model.push import PushBatch, PushRecord
from exitguard.store.hub_answers import read_events, read_gaps, read_ledger, read_samples
from exitguard.store.hub_tables import finding_event, ledger, samples

HOSTS = 4
AUDITS = 30
#: `make soak` may ask for more.
KILLS = int(os.environ.get("EXITGUARD_TEST_HUB_KILLS", "6"))
_END_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
VERDICTS = (Verdict.FAIL, Verdict.PASS, Verdict.UNKNOWN)


@dataclass
class Host:
    """A host, all that it will ever push, and how far the hub has acknowledged that."""

    key: HostKey
    begun_at: datetime
    records: list[PushRecord] = field(default_factory=list)
    reports: list[AuditReport] = field(default_factory=list)
    ledger: dict[tuple[str, datetime], LedgerRow] = field(default_factory=dict)
    epoch: str = field(default_factory=lambda: str(uuid4()))
    acknowledged: int = 0

    def __post_init__(self) -> None:
        """An audit every ten minutes, of which every third found another verdict, samples with each, the ledger with every fifth."""
        for number in range(AUDITS):
            at = self.begun_at + timedelta(minutes=10 * number)
            made = judge(observe(at), (finding(0, VERDICTS[number // 3 % 3], at), finding(1, Verdict.FAIL, at)))
            report = made.model_copy(update={"host": made.host.model_copy(update={"id": self.key.host_id})})
            self.reports.append(report)
            told = observe(at).samples
            domains = tuple(each.model_copy(update={"incarnation": None}) for each in told.domains)
            for document in (report, told.model_copy(update={"domains": domains})):
                self.records.append(record(len(self.records) + 1, document, at))
            if number % 5 == 4:
                self._book(at, revision=number)

    def _book(self, at: datetime, revision: int) -> None:
        hour = at.replace(minute=0, second=0, microsecond=0)
        rows = []
        for domain in range(3):
            made = ledger_row(1, domain, hour, revision, exits=revision * 100 + domain)
            rows.append(made.model_copy(update={"incarnation": made.incarnation.model_copy(update={"host_id": self.key.host_id})}))
            self.ledger[rows[-1].incarnation.key, hour] = rows[-1]
        self.records.append(record(len(self.records) + 1, ledger_of(rows), at))

    def batch(self, first: int, count: int, *, hashes: bool = False) -> PushBatch:
        """Records from number `first` on; with `hashes`, reports without their payloads."""
        chosen = self.records[first - 1 : first - 1 + count]
        if hashes:
            chosen = [as_hashes([each])[0] if each.kind == "report" else each for each in chosen]
        return PushBatch(host_id=self.key.host_id, spool_epoch=self.epoch, sent_at=datetime.now(UTC), records=tuple(chosen))

    def push_all(self, hubs: Sequence[RunningHub], chance: random.Random, deadline: float) -> None:
        """Until all is acknowledged; some batches come twice, some once more from the beginning, some to another hub."""
        with httpx.Client(timeout=10, trust_env=False) as client:
            while self.acknowledged < len(self.records):
                assert time.monotonic() < deadline, "the hub never acknowledged all"
                hub = chance.choice(hubs)
                first = 1 if chance.random() < 0.1 else self.acknowledged + 1
                batch = self.batch(first, chance.randint(1, 12), hashes=chance.random() < 0.3)
                for _ in range(2 if chance.random() < 0.5 else 1):
                    self._push_once(client, hub, batch)

    def _push_once(self, client: httpx.Client, hub: RunningHub, batch: PushBatch) -> None:
        headers = {"Authorization": f"Bearer {self.key.text}"}
        before = self.acknowledged  # of a host that pushes twice at once another answer may come meanwhile
        try:
            answer = client.post(f"{hub.url}/v1/push", content=batch.model_dump_json(), headers=headers)
        except httpx.TransportError:
            time.sleep(0.05)
            return
        if answer.status_code in (429, 503):
            time.sleep(0.2)
            return
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["refused"] == []
        if told["send_in_full"]:
            self._push_once(client, hub, self.batch(told["send_in_full"][0], 2))
            return
        assert told["acknowledged_seq"] >= before, "what was acknowledged is not taken back"
        self.acknowledged = max(self.acknowledged, told["acknowledged_seq"])


def hosts_of(hub: RunningHub) -> list[Host]:
    # Within what a hub keeps, and of two days.
    begun_at = (datetime.now(UTC) - timedelta(days=1)).replace(hour=21, minute=0, second=0, microsecond=0)
    return [Host(hub.let_in(str(uuid4())), begun_at) for _ in range(HOSTS)]


def run(hosts: Sequence[Host], hubs: Sequence[RunningHub], seed: int) -> list[threading.Thread]:
    deadline = time.monotonic() + 200
    chances = [random.Random(seed * 100 + number) for number in range(len(hosts))]  # noqa: S311 - the same in every run
    threads = [threading.Thread(target=host.push_all, args=(hubs, chance, deadline)) for host, chance in zip(hosts, chances, strict=True)]
    for thread in threads:
        thread.start()
    return threads


def require_everything_once(hub: RunningHub, hosts: Sequence[Host]) -> None:
    """Nothing lost, nothing doubled: row by row, and in numbers."""
    with hub.store() as store:
        for host in hosts:
            assert host.acknowledged == len(host.records)
            host_id = host.key.host_id
            newest = next(store.reports(host_id=host_id)).report()
            assert newest == host.reports[-1]
            with store.reading() as connection:
                assert read_gaps(connection, host.begun_at - timedelta(days=9), 100, host_id) == ()
                held = read_samples(connection, host_id, 1000)
                assert [each.observed_at for _, each in held] == [report.observed_at for report in host.reports]
                rows = read_ledger(connection, host_id, host.begun_at - timedelta(days=1), host.begun_at + timedelta(days=3))
                assert {(row.incarnation.key, row.hour): row for row in rows} == host.ledger
                events = read_events(connection, host.begun_at - timedelta(days=9), 1000, host_id)
            expected = [None, *(VERDICTS[number // 3 % 3] for number in range(0, AUDITS, 3))]
            changing = [(event.before, event.now) for event in events if event.subject_id == host.reports[0].findings[0].subject.id]
            assert changing == list(pairwise(expected))
        with store.reading() as connection:
            ids = [host.key.host_id for host in hosts]
            for table, count in ((samples, AUDITS), (ledger, len(hosts[0].ledger)), (finding_event, AUDITS // 3 + 1)):
                found = connection.execute(select(func.count()).select_from(table).where(table.c.host_id.in_(ids))).scalar_one()
                assert found == count * len(hosts)


@pytest.fixture(params=["sqlite", "postgresql"])
def own_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningHub]:
    database = str(tmp_path / "hub.sqlite") if request.param == "sqlite" else request.getfixturevalue("postgresql").new_database()
    with RunningHub(database, tmp_path / "log") as running:
        yield running


def test_a_hub_that_is_killed_again_and_again_loses_and_doubles_nothing(own_hub: RunningHub) -> None:
    hosts, chance = hosts_of(own_hub), random.Random(1)  # noqa: S311 - as above
    threads = run(hosts, [own_hub], seed=1)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.5))
        own_hub.end(signal.SIGKILL)
        own_hub.start()
    for thread in threads:
        thread.join()
    require_everything_once(own_hub, hosts)
    for host in hosts:  # and everything again
        for first in range(1, len(host.records) + 1, 25):
            time.sleep(0.05)
            answer = own_hub.push(host.key, host.batch(first, 25))
            assert answer.status_code in (200, 429)
    require_everything_once(own_hub, hosts)


def test_two_hubs_on_one_postgresql_lose_and_double_nothing(postgresql: Cluster, tmp_path: Path) -> None:
    database = postgresql.new_database()
    with RunningHub(database, tmp_path / "one") as one, RunningHub(database, tmp_path / "two") as other:
        hosts = hosts_of(one)
        # Each host twice at the same time, by another way through both hubs.
        threads = [*run(hosts, [one, other], seed=2), *run(hosts, [other, one], seed=3)]
        for _ in range(3):
            time.sleep(0.3)
            other.end(signal.SIGKILL)
            other.start()
        for thread in threads:
            thread.join()
        require_everything_once(one, hosts)


def test_hubs_that_start_at_once_make_one_schema(postgresql: Cluster, tmp_path: Path) -> None:
    database = postgresql.new_database()
    hubs = [RunningHub(database, tmp_path / str(number)) for number in range(3)]
    threads = [threading.Thread(target=hub.start) for hub in hubs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert [hub.client.get("/readyz").status_code for hub in hubs] == [200] * 3
    finally:
        for hub in hubs:
            hub.__exit__(None, None, None)


def test_a_database_that_ends_its_connections_is_found_again(postgresql: Cluster, tmp_path: Path) -> None:
    database = postgresql.new_database()
    with RunningHub(database, tmp_path / "log") as hub:
        hosts = hosts_of(hub)
        threads = run(hosts, [hub], seed=4)
        with hub.store() as store:
            for _ in range(10):
                time.sleep(0.1)
                with store.reading() as connection:
                    connection.exec_driver_sql(_END_OTHERS)
        for thread in threads:
            thread.join()
        require_everything_once(hub, hosts)


def test_a_postgresql_that_is_killed_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with running_cluster() as cluster, RunningHub(cluster.new_database(), tmp_path / "log") as hub:
        hosts, chance = hosts_of(hub), random.Random(5)  # noqa: S311 - the same in every run
        threads = run(hosts, [hub], seed=5)
        for _ in range(3):
            time.sleep(chance.uniform(0.1, 0.5))
            cluster.end()
            time.sleep(chance.uniform(0, 0.5))
            cluster.start()
        for thread in threads:
            thread.join()
        assert hub.client.get("/readyz").status_code == 200
        require_everything_once(hub, hosts)
