"""The hub's certificate is checked: by the site's own authority where one is named, and no other will do."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from hub_process import RunningHub

from exitguard.fleet.client import HubAccess, HubClient, HubUnreachable, PushError
from exitguard.model.push import PushBatch


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(words, check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def proxy(hub: RunningHub, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """What speaks TLS in front of the hub: its URL, and the authority of its certificate."""
    chain, key = certificate(tmp_path, "proxy")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", hub.port)
        try:
            await asyncio.gather(copy(reader, hub_writer), copy(hub_reader, writer))
        finally:
            hub_writer.close()
            writer.close()

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)  # what is closed is closed in the next turns

    server = loop.run_until_complete(asyncio.start_server(forward, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", chain
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def batch() -> PushBatch:
    return PushBatch(host_id=str(uuid4()), spool_epoch=str(uuid4()), sent_at=datetime.now(UTC))


def test_a_hub_of_the_sites_own_authority_is_pushed_to(hub: RunningHub, proxy: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "enrolment").write_text(hub.new_secret(f"tls {uuid4()}"))
    url, authority = proxy
    pushed = batch()
    with HubClient(HubAccess(url, tmp_path / "key", tmp_path / "enrolment", authority), pushed.host_id) as client:
        assert client.push(pushed).acknowledged_seq == 0


def test_a_hub_of_another_authority_hears_no_key(proxy: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = proxy
    other, _ = certificate(tmp_path, "other")
    for authority in (None, other):
        pushed = batch()
        with (
            HubClient(HubAccess(url, tmp_path / f"key-{pushed.host_id}", None, authority), pushed.host_id) as client,
            pytest.raises(HubUnreachable, match="certificate verify failed"),
        ):
            client.push(pushed)


def test_certificates_that_cannot_be_read_are_told(proxy: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = proxy
    (tmp_path / "broken").write_text("no certificate")
    for name in ("broken", "missing"):
        pushed = batch()
        with (
            HubClient(HubAccess(url, tmp_path / f"key-{name}", None, tmp_path / name), pushed.host_id) as client,
            pytest.raises(PushError, match="hub_ca_file"),
        ):
            client.push(pushed)
        (tmp_path / f"key-{name}").unlink()
