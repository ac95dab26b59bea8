"""30 running domains: the audit, against one scrape of Debian's prometheus-libvirt-exporter at the same daemon."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from audit_500 import audit_everything
from measurement import Contest, Measurement, SkippedError
from nova_domain import PREFIX, domain_xml
from private_libvirtd import PrivateLibvirtd, private_libvirtd

_DOMAINS = 30
_EXPORTER = "prometheus-libvirt-exporter"
_START_SECONDS = 20
# Loopback only: a proxy of the environment has no part in it.
_open = build_opener(ProxyHandler({})).open


@contextmanager
def _prepare() -> Iterator[Contest]:
    exporter = shutil.which(_EXPORTER)
    if exporter is None:
        raise SkippedError(f"needs {_EXPORTER} on the PATH: apt-get install {_EXPORTER}")
    with private_libvirtd() as daemon:
        _start_domains(daemon)
        with _exporter(exporter, daemon.uri) as address:
            yield Contest(
                subject=lambda: audit_everything(daemon.uri, _DOMAINS),
                peer=lambda: _scrape(address),
                note=f"{daemon.versions}, {_DOMAINS} paused TCG domains",
            )


def _start_domains(daemon: PrivateLibvirtd) -> None:
    for number in range(_DOMAINS):
        daemon.define(domain_xml(number, type="qemu", startable=True)).createWithFlags(daemon.libvirt.VIR_DOMAIN_START_PAUSED)


@contextmanager
def _exporter(program: str, uri: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, f"--web.listen-address=127.0.0.1:{port}", f"--libvirt.uri={uri}"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{port}/metrics"
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                _scrape(address)
                break
            except (URLError, ConnectionError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SkippedError(f"{_EXPORTER} does not answer: {error}") from None
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def _scrape(address: str) -> None:
    with _open(address, timeout=30) as answer:
        text = answer.read().decode()
    domains = {line.split('domain="', 1)[1].split('"', 1)[0] for line in text.splitlines() if f'domain="{PREFIX}' in line}
    if len(domains) != _DOMAINS:
        raise AssertionError(f"the exporter tells of {len(domains)} domains, expected {_DOMAINS}")


MEASUREMENT = Measurement(
    name="scrape-30",
    what=f"audit as a library call, {_DOMAINS} running domains",
    peer=f"one scrape of {_EXPORTER}",
    goal_ratio=1.0,
    pairs=15,
    prepare=_prepare,
)
