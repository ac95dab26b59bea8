"""A simulated fleet that speaks to a hub as daemons do: each host with a key of its own, hashes first, in full where the hub asks."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

from exitguard.fleet.client import Answered, HubConnection, HubUnreachable
from exitguard.fleet.compression import pack
from exitguard.fleet.keys import HostKey
from exitguard.model.push import Enrolment, PushAnswer, PushBatch
from exitguard.simulation.host import SimulatedHost
from exitguard.simulation.keys import Keys, SimulationError
from exitguard.simulation.pushes import Look, Looks

_OK, _CREATED = 200, 201
#: All who enrol are counted together, so that a thousand take some minutes.
_MOST_WAITS, _MOST_WAIT_SECONDS = 1000, 30.0


@dataclass
class HttpFleet:
    """Hosts and the hub that they push to. Several threads share the work; each has a connection of its own."""

    url: str
    keys: Keys
    secret: str | None
    threads: int = 4
    _local: threading.local = field(default_factory=threading.local)
    _opened: list[HubConnection] = field(default_factory=list)

    def enrol(self, hosts: Sequence[SimulatedHost]) -> None:
        """Let them in; one that was let in already stays so. Raises SimulationError, PushError."""
        if self.secret is None:
            raise SimulationError(
                "the hub lets hosts in by a secret. Expected --enrolment-file with what `exitguard hub enrolment` printed."
            )
        with self._pool() as pool:
            for _ in pool.map(self._enrol, hosts):
                pass

    def push(self, looks: Iterable[Looks], at: datetime, told: Callable[[int], None]) -> int:
        """One look of each host at `at`; how many records the hub acknowledged. Raises SimulationError, PushError."""
        with self._pool() as pool:
            taken = 0
            for count in pool.map(lambda each: self._push(each, at), looks):
                taken += count
                told(1)
            return taken

    def _enrol(self, host: SimulatedHost) -> None:
        key = self.keys.of(host)
        asked = Enrolment(secret=self.secret or "", host_id=host.host_id, hostname=host.hostname, key=key.public)
        answer = self._sent("/v1/enrol", asked.model_dump_json().encode("utf-8"), key, packed=False)
        if answer.status_code != _CREATED:
            raise SimulationError(
                f"{self.url}: does not let {host.hostname} in: {answer.told}. Expected a secret for as many hosts; hosts of an earlier "
                "run need its --keys."
            )

    def _push(self, looks: Looks, at: datetime) -> int:
        """A host that is silent has made its look all the same."""
        host, silent = looks.host, looks.host.silent and looks.host.look > 0
        look = looks.at(at, datetime.now(UTC))
        if silent:
            return 0
        answer = self._send(host, look.batch)
        if answer.send_in_full:
            answer = self._send(host, look.in_full)
        self._refuse_loss(host, look, answer)
        return sum(each.seq <= answer.acknowledged_seq for each in look.in_full.records)

    def _send(self, host: SimulatedHost, batch: PushBatch) -> PushAnswer:
        content = pack(batch.model_dump_json(exclude_none=True).encode("utf-8"))
        answer = self._sent("/v1/push", content, self.keys.of(host), packed=True)
        if answer.status_code != _OK:
            raise SimulationError(f"{self.url}: refused what {host.hostname} pushed: {answer.told}")
        try:
            return PushAnswer.model_validate_json(answer.content)
        except ValidationError as error:
            raise SimulationError(f"{self.url}: answered something else than a hub would.") from error

    def _sent(self, path: str, content: bytes, key: HostKey, *, packed: bool) -> Answered:
        """The answer; a hub that asks to be left alone for a while is asked again then. Raises PushError."""
        for _ in range(_MOST_WAITS):
            try:
                return self._connection().send(path, content, key, packed=packed)
            except HubUnreachable as error:
                if not error.retry_after_seconds:
                    raise
                time.sleep(min(error.retry_after_seconds, _MOST_WAIT_SECONDS))
        return self._connection().send(path, content, key, packed=packed)

    def _refuse_loss(self, host: SimulatedHost, look: Look, answer: PushAnswer) -> None:
        if answer.acknowledged_seq < look.in_full.records[-1].seq or answer.refused:
            refused = "; ".join(each.reason for each in answer.refused) or f"acknowledged {answer.acknowledged_seq}"
            raise SimulationError(f"{self.url}: did not take all that {host.hostname} pushed: {refused}")

    def _connection(self) -> HubConnection:
        connection: HubConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = HubConnection(self.url)
            self._opened.append(connection)
        return connection

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="simulated")
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for connection in self._opened:
                connection.close()
            self._opened.clear()
            self._local = threading.local()
