"""`exitguard hub serve` as a process of its own, and who speaks to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from exitguard.fleet.keys import HostKey, enrolment_sha256, new_enrolment_secret, new_host_key, new_operator_token, sha256_of
from exitguard.model.hub import Role
from exitguard.model.push import PushBatch
from exitguard.store.hub import HubStore
from exitguard.store.hub_access import Operator, add_enrolment, add_token

_START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port


class RunningHub:
    """The process may be killed and started again; the port stays."""

    def __init__(self, database: str, log: Path, port: int | None = None) -> None:
        self.database = database
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.client.close()
        self.end(signal.SIGTERM)

    def start(self) -> None:
        words = [sys.executable, "-m", "exitguard", "--verbose", "--log-format", "json", "hub", "serve"]
        words += ["--listen", f"127.0.0.1:{self.port}"]
        environment = {**os.environ, "EXITGUARD_HUB_DATABASE": self.database}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the hub did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def end(self, number: int = signal.SIGKILL) -> int:
        """Its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(_START_SECONDS)

    @property
    def rss_bytes(self) -> int:
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    # --- who speaks to it -------------------------------------------------------------------------------------------------------

    def store(self) -> HubStore:
        return HubStore.open(self.database, connections=2)

    def new_secret(self, name: str, hosts: int = 1, *, hours: float = 1) -> str:
        secret, now = new_enrolment_secret(), datetime.now(UTC)
        with self.store() as store, store.writing() as connection:
            expires_at = now + timedelta(hours=hours)
            add_enrolment(connection, secret_sha256=str(enrolment_sha256(secret)), name=name, now=now, expires_at=expires_at, hosts=hosts)
        return secret

    def operator(self, role: Role = Role.VIEWER, *, hours: float = 1) -> dict[str, str]:
        """The header of a new operator."""
        made, now = new_operator_token(), datetime.now(UTC)
        with self.store() as store, store.writing() as connection:
            operator = Operator(made.token_id, f"{role} {made.token_id}", role)
            add_token(connection, operator, sha256_of(made.secret), now, now + timedelta(hours=hours))
        return bearer(made.text)

    def let_in(self, host_id: str) -> HostKey:
        """A new host, by a secret of its own."""
        key = new_host_key(host_id)
        answer = self.enrol(self.new_secret(f"for {host_id} {key.key_id}"), key)
        assert answer.status_code == 201, answer.text
        return key

    def enrol(self, secret: str, key: HostKey) -> httpx.Response:
        asked = {"secret": secret, "host_id": key.host_id, "hostname": "compute-1", "key": key.public.model_dump(mode="json")}
        return self.client.post("/v1/enrol", json=asked)

    def push(self, key: HostKey, batch: PushBatch) -> httpx.Response:
        return self.client.post("/v1/push", content=batch.model_dump_json(), headers=bearer(key.text))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
