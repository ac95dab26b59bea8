"""The nginx sample in front of two real hubs on one PostgreSQL: TLS, a hub that is killed, slow clients, and what does not pass."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
sys.path.insert(0, str(Path(__file__).parents[1] / "fleet"))

from hub_process import RunningHub, bearer, free_port
from postgresql_cluster import running_cluster
from push_builders import EPOCH, record
from store_builders import judge, observe

from exitguard.fleet.client import HubAccess, HubClient
from exitguard.model.push import MOST_COMPRESSED_BYTES, PushBatch

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).parents[2] / "deploy/nginx/exitguard-hub.conf"
_START_SECONDS = 30


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program: the one that is installed, else out of Debian's package, which is not installed: that would start a server."""
    if installed := shutil.which("nginx"):
        return installed
    folder = tmp_path_factory.mktemp("nginx")
    if shutil.which("apt-get") is None:
        pytest.skip("nginx cannot be had: there is no apt-get")
    fetched = subprocess.run(["apt-get", "-q", "download", "nginx"], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if fetched.returncode != 0:
        pytest.skip(f"nginx cannot be had: {fetched.stderr.strip()[-300:]}")
    subprocess.run(["dpkg-deb", "--extract", str(next(folder.glob("*.deb"))), str(folder)], check=True, timeout=300)
    return str(folder / "usr/sbin/nginx")


@dataclass
class Site:
    """Two hubs on one database, and nginx with the sample in front of them."""

    hubs: tuple[RunningHub, RunningHub]
    url: str
    authority: Path
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=ssl.create_default_context(cafile=self.authority), timeout=30, trust_env=False)


def sample(directory: Path, port: int, hubs: tuple[RunningHub, RunningHub]) -> str:
    """The sample with what is marked CHANGE changed, and paths below `directory`."""
    text = SAMPLE.read_text()
    servers = "\n".join(f"    server 127.0.0.1:{hub.port} max_fails=1 fail_timeout=5s;" for hub in hubs)
    changes = {
        "    server 127.0.0.1:8470 max_fails=1 fail_timeout=5s;": servers,
        "    listen 443 ssl http2;": f"    listen 127.0.0.1:{port} ssl http2;",
        "    listen [::]:443 ssl http2;\n": "",
        "/etc/ssl/certs/hub.example.org.pem": str(directory / "hub.pem"),
        "/etc/ssl/private/hub.example.org.key": str(directory / "hub.key"),
        "/var/log/nginx/exitguard-hub.log": str(directory / "access.log"),
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def site(nginx: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=hub", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, "-out", str(directory / "hub.pem"), "-keyout", str(directory / "hub.key")], check=True, capture_output=True)
    with running_cluster() as cluster:
        database = cluster.new_database()
        with RunningHub(database, directory / "one.log") as one, RunningHub(database, directory / "two.log") as two:
            port = free_port()
            (directory / "hub.conf").write_text(sample(directory, port, (one, two)))
            places = "".join(f"    {name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            main = f"daemon off;\npid {directory}/pid;\nerror_log {directory}/error.log;\nevents {{}}\n"
            main += f"http {{\n{places}    include {directory}/hub.conf;\n}}\n"
            if os.geteuid() == 0:
                main = "user root;\n" + main
            (directory / "nginx.conf").write_text(main)
            command = [nginx, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")]
            checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr
            warned = [line for line in checked.stderr.splitlines() if "[warn]" in line]
            assert all("http2" in line for line in warned), "what 1.22 wants, 1.25 and later say in another way"
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                _wait_for(port)
                yield Site((one, two), f"https://127.0.0.1:{port}", directory / "hub.pem", directory / "access.log")
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(_START_SECONDS)


def _wait_for(port: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def test_a_host_enrols_and_pushes_through_it_also_while_one_hub_is_dead(site: Site, tmp_path: Path) -> None:
    host_id = str(uuid4())
    (tmp_path / "enrolment").write_text(site.hubs[0].new_secret(f"nginx {host_id}"))
    access = HubAccess(site.url, tmp_path / "key", tmp_path / "enrolment", site.authority)
    with HubClient(access, host_id) as client:

        def push(seq: int) -> int:
            at = datetime.now(UTC)
            judged = judge(observe(at, domains=seq))
            report = judged.model_copy(update={"host": judged.host.model_copy(update={"id": host_id})})
            batch = PushBatch(host_id=host_id, spool_epoch=EPOCH, sent_at=at, records=(record(seq, report, at),))
            return client.push(batch).acknowledged_seq

        assert [push(seq) for seq in range(1, 5)] == [1, 2, 3, 4]
        site.hubs[0].end(signal.SIGKILL)
        try:
            assert [push(seq) for seq in range(5, 11)] == list(range(5, 11))
        finally:
            site.hubs[0].start()
    with site.client() as operator:
        told = operator.get("/v1/reports", params={"host": host_id}, headers=site.hubs[0].operator())
    (line,) = told.text.splitlines()
    assert f'"host_id": "{host_id}"' in line
    logged = site.log.read_text()
    assert "/v1/push" in logged
    assert "exg-" not in logged


def test_what_operators_ask_a_hub_itself_is_not_there(site: Site) -> None:
    with site.client() as anyone:
        assert [anyone.get(path).status_code for path in ("/healthz", "/metrics", "/readyz", "/openapi.json")] == [200, 404, 404, 200]


def test_a_body_that_no_hub_would_take_does_not_reach_one(site: Site) -> None:
    key = site.hubs[0].let_in(str(uuid4()))
    before = [len(hub.logged()) for hub in site.hubs]
    with site.client() as anyone:
        answer = anyone.post("/v1/push", content=b"x" * (MOST_COMPRESSED_BYTES + 1), headers=bearer(key.text))
    assert answer.status_code == 413
    assert [len(hub.logged()) for hub in site.hubs] == before


def test_slow_clients_hold_no_thread_of_a_hub(site: Site) -> None:
    context = ssl.create_default_context(cafile=site.authority)
    port = httpx.URL(site.url).port or 0
    slow = []
    for _ in range(40):  # five times as many as a hub has threads
        connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")
        connection.sendall(b"POST /v1/push HTTP/1.1\r\nHost: hub\r\nContent-Length: 1000\r\n\r\n{")
        slow.append(connection)
    try:
        with site.client() as anyone:
            assert anyone.get("/healthz").status_code == 200
            hosts = anyone.get("/v1/hosts", headers=site.hubs[1].operator())
            assert hosts.status_code == 200
    finally:
        for connection in slow:
            connection.close()


def test_one_address_may_hold_so_many_connections_and_no_more(site: Site) -> None:
    context = ssl.create_default_context(cafile=site.authority)
    port = httpx.URL(site.url).port or 0
    held = []
    try:
        for _ in range(70):
            connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")
            connection.sendall(b"POST /v1/push HTTP/1.1\r\nHost: hub\r\nContent-Length: 1000\r\n\r\n{")
            held.append(connection)
        with site.client() as anyone:
            assert anyone.get("/healthz").status_code == 429
    finally:
        for connection in held:
            connection.close()
    until = time.monotonic() + _START_SECONDS
    with site.client() as anyone:
        while anyone.get("/healthz").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.2)
