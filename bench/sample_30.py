"""30 running domains: one sample of KVM's counters, against the raw bulk call with the same groups of statistics."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measurement import Contest, Measurement
from nova_domain import domain_xml
from private_libvirtd import PrivateLibvirtd, private_libvirtd

from exitguard.facts.libvirt.counters import read_counters
from exitguard.facts.libvirt.patience import Patience

_DOMAINS = 30
#: A processor that also KVM in software can run.
_PLAIN_CPU = "<cpu mode='custom' check='none'><model>kvm64</model></cpu>"


@contextmanager
def _prepare() -> Iterator[Contest]:
    with private_libvirtd() as daemon:
        kind = "kvm" if Path("/dev/kvm").exists() else "qemu"
        for number in range(_DOMAINS):
            text = re.sub(r"<cpu\b.*?</cpu>", "", domain_xml(number, type=kind, startable=True), flags=re.DOTALL)
            daemon.define(text.replace("</os>", f"</os>{_PLAIN_CPU}")).createWithFlags(daemon.libvirt.VIR_DOMAIN_START_PAUSED)
        yield Contest(
            subject=lambda: _sample(daemon.uri),
            peer=lambda: _raw(daemon),
            note=f"{daemon.versions}, {_DOMAINS} paused domains of type {kind}",
        )


def _sample(uri: str) -> None:
    counters = read_counters(uri, Patience(30.0))
    if counters.value is None or len(counters.value) != _DOMAINS:
        raise AssertionError(f"expected the counters of {_DOMAINS} domains, found {counters.reason or len(counters.value or ())}")


def _raw(daemon: PrivateLibvirtd) -> None:
    """What anybody would write: connect, one call, close."""
    libvirt = daemon.libvirt
    connection = libvirt.openReadOnly(daemon.uri)
    try:
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        found = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_VCPU, flags)
    finally:
        connection.close()
    if len(found) != _DOMAINS:
        raise AssertionError(f"libvirt tells of {len(found)} domains, expected {_DOMAINS}")


MEASUREMENT = Measurement(
    name="sample-30",
    what=f"one sample of KVM's counters, {_DOMAINS} running domains",
    peer="libvirt-python: connect, getAllDomainStats of the same group, close",
    goal_ratio=1.2,
    pairs=31,
    prepare=_prepare,
)
