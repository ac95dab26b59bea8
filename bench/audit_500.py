"""500 persistent domains on a real libvirtd: the audit, against the bare loop that fetches the same XML."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from measurement import Contest, Measurement
from nova_domain import domain_xml
from private_libvirtd import private_libvirtd

from exitguard.cycle import AuditRequest, run_audit

_DOMAINS = 500


@contextmanager
def _prepare() -> Iterator[Contest]:
    with private_libvirtd() as daemon:
        kind = "kvm" if daemon.has_kvm() else "qemu"
        for number in range(_DOMAINS):
            daemon.define(domain_xml(number, type=kind))
        yield Contest(
            subject=lambda: audit_everything(daemon.uri, _DOMAINS),
            peer=lambda: fetch_everything(daemon.libvirt, daemon.uri, _DOMAINS),
            note=f"{daemon.versions}, {_DOMAINS} shut-off domains of type {kind}",
        )


def audit_everything(uri: str, domains: int) -> None:
    outcome = run_audit(AuditRequest(uri=uri))
    readable = sum(domain.definition is not None and domain.definition.known for domain in outcome.observation.facts.domains)
    if readable != domains or len(outcome.report.domains) != domains:
        raise AssertionError(f"{readable} definitions were read, expected {domains}")


def fetch_everything(libvirt: Any, uri: str, domains: int) -> None:
    """What anybody would write first: connect, list, and ask for each XML."""
    connection = libvirt.openReadOnly(uri)
    texts = [domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) for domain in connection.listAllDomains(0)]
    connection.close()
    if len(texts) != domains:
        raise AssertionError(f"{len(texts)} definitions were fetched, expected {domains}")


MEASUREMENT = Measurement(
    name="audit-500",
    what=f"audit as a library call, {_DOMAINS} domains on libvirtd",
    peer="libvirt-python: list, XMLDesc each",
    goal_ratio=1.5,
    pairs=15,
    prepare=_prepare,
)
