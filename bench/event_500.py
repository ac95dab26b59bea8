"""A lifecycle event on a host with 500 domains: looked at, judged and stored, against the same on a host with that domain alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from measurement import Contest, Measurement
from nova_domain import domain_xml
from private_libvirtd import PrivateLibvirtd, private_libvirtd

from exitguard.cycle import AuditRequest
from exitguard.daemon.auditor import Auditor, Retention
from exitguard.daemon.conditions import Conditions
from exitguard.daemon.log import configure_log
from exitguard.daemon.metrics import Metrics
from exitguard.policy.load import load_rulebook

_DOMAINS = 500


@contextmanager
def _prepare() -> Iterator[Contest]:
    with private_libvirtd() as crowded, private_libvirtd() as lonely, TemporaryDirectory() as folder:
        configure_log("error", {})
        kind = "kvm" if crowded.has_kvm() else "qemu"
        for number in range(_DOMAINS):
            crowded.define(domain_xml(number, type=kind))
        lonely.define(domain_xml(0, type=kind))
        yield Contest(
            subject=_event(crowded, Path(folder, "crowded")),
            peer=_event(lonely, Path(folder, "lonely")),
            note=f"{crowded.versions}, shut-off domains of type {kind}, a definition that changes each time; defining is part of both",
        )


def _event(daemon: PrivateLibvirtd, state_dir: Path) -> Callable[[], None]:
    """One change of a domain, and what the daemon does about it."""
    rulebook = load_rulebook()
    auditor = Auditor(
        request=AuditRequest(uri=daemon.uri, state_dir=state_dir),
        rulebook=rulebook,
        retention=Retention(timedelta(days=1), timedelta(days=1), 1 << 30),
        metrics=Metrics(jobs=("audit",), rules=[rule.id for rule in rulebook.policy.rules]),
        conditions=Conditions(begun=_fail, over=_fail),
        pulse=lambda: None,
        changed=lambda _uuid: None,
    )
    auditor.audit()
    uuid = daemon.connection.lookupByName(daemon.connection.listDefinedDomains()[0]).UUIDString()
    variants = [daemon.connection.lookupByUUIDString(uuid).XMLDesc(0)]
    variants.append(variants[0].replace("<vcpu", "<title>another</title><vcpu", 1))

    def work() -> None:
        variants.reverse()
        daemon.define(variants[0])
        if auditor.judge_again(frozenset({uuid})):
            raise AssertionError("an audit of everything would follow")

    return work


def _fail(name: str, reason: str) -> None:
    raise AssertionError(f"{name}: {reason}")


MEASUREMENT = Measurement(
    name="event-500",
    what=f"one domain of {_DOMAINS} judged anew after its definition changed, and stored",
    peer="the same where it is the only domain",
    goal_ratio=1.5,
    pairs=31,
    prepare=_prepare,
)
