"""Batches as the daemons of hosts would push them, of what store_builders.py observes."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from store_builders import BOOT_ID, START, domain_name, domain_uuid, judge, observe

from exitguard.model.canonical import record_json
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.ledger import GuardSaving, LedgerRow, RunStanding
from exitguard.model.push import Enrolment, LedgerRows, NewKey, PushBatch, PushKind, PushRecord, SpoolGap, unstamped
from exitguard.model.record import Record
from exitguard.model.samples import Incarnation, Samples
from exitguard.store.hub import HubStore
from exitguard.store.hub_access import add_enrolment, enrol

EPOCH = "0d9c2f7e-98a5-4a83-9d0f-8a5b8f6c2d99"
OTHER_EPOCH = "1d9c2f7e-98a5-4a83-9d0f-8a5b8f6c2d99"


def host_id(number: int) -> str:
    return str(UUID(int=(0xA0 << 120) | (4 << 76) | (8 << 60) | number))


def facts_of(number: int, at: datetime, **observed: object) -> FactsDocument:
    facts = observe(at, **observed).facts
    identity = facts.host.identity.model_copy(update={"id": host_id(number)})
    return facts.model_copy(update={"host": facts.host.model_copy(update={"identity": identity})})


def report_of(number: int, at: datetime, findings: tuple[object, ...] | None = None, **observed: object) -> AuditReport:
    report = judge(observe(at, **observed), findings)
    return report.model_copy(update={"host": report.host.model_copy(update={"id": host_id(number)})})


def samples_of(number: int, at: datetime, domains: int = 3) -> Samples:
    samples = observe(at, domains=domains).samples
    told = (each.model_copy(update={"incarnation": incarnation(number, n)}) for n, each in enumerate(samples.domains))
    return samples.model_copy(update={"domains": tuple(told)})


def incarnation(number: int, domain: int) -> Incarnation:
    return Incarnation(host_id=host_id(number), domain_uuid=domain_uuid(domain), boot_id=BOOT_ID, qemu_start_ticks=100_000 + domain)


def ledger_row(number: int, domain: int, hour: datetime, revision: int = 1, exits: int = 1000) -> LedgerRow:
    return LedgerRow(
        incarnation=incarnation(number, domain),
        hour=hour,
        revision=revision,
        domain_name=domain_name(domain),
        accounted_milliseconds=3_600_000,
        exits=exits,
        skip_exits_low=exits // 10,
        skip_exits_high=exits // 5,
        standing=RunStanding(guard=GuardSaving.AVAILABLE),
    )


def ledger_of(rows: Iterable[LedgerRow]) -> LedgerRows:
    return LedgerRows(rows=tuple(rows))


def record(seq: int, document: Record, at: datetime, *, in_full: bool = True) -> PushRecord:
    """The record of any document."""
    match document:
        case FactsDocument():
            kind, body = PushKind.FACTS, unstamped(document)
        case AuditReport():
            kind, body = PushKind.REPORT, unstamped(document)
        case _:
            kind = {"Samples": PushKind.SAMPLES, "LedgerRows": PushKind.LEDGER, "SavingsText": PushKind.SAVINGS, "Gap": PushKind.GAP}[
                type(document).__name__
            ]
            body = record_json(document.model_dump(mode="json"))
    sha256 = "sha256:" + hashlib.sha256(body).hexdigest()
    return PushRecord(seq=seq, kind=kind, sha256=sha256, observed_at=at, payload=json.loads(body) if in_full else None)


def batch_of(
    number: int, records: Sequence[PushRecord], *, epoch: str = EPOCH, gaps: Sequence[SpoolGap] = (), sent_at: datetime = START
) -> PushBatch:
    return PushBatch(host_id=host_id(number), spool_epoch=epoch, sent_at=sent_at, records=tuple(records), gaps=tuple(gaps))


def audit_records(first_seq: int, number: int, at: datetime, **observed: object) -> list[PushRecord]:
    """What one audit pushes: facts and report."""
    facts = facts_of(number, at, **{name: value for name, value in observed.items() if name != "findings"})
    return [record(first_seq, facts, at), record(first_seq + 1, report_of(number, at, **observed), at)]


def as_hashes(records: Iterable[PushRecord]) -> list[PushRecord]:
    return [each.model_copy(update={"payload": None}) for each in records]


def let_in(store: HubStore, *numbers: int, now: datetime = START) -> None:
    """These hosts have a key, whose secret's hash is that of their number."""
    secret = "sha256:" + "e" * 64
    with store.writing() as connection:
        add_enrolment(
            connection, secret_sha256=secret, name=f"test-{numbers}", now=now, expires_at=now.replace(year=2099), hosts=len(numbers)
        )
        for number in numbers:
            key = NewKey(key_id=f"{number:016x}", secret_sha256="sha256:" + hashlib.sha256(str(number).encode()).hexdigest())
            asked = Enrolment(secret="e", host_id=host_id(number), hostname=f"host-{number}", key=key)  # noqa: S106 - no secret
            enrol(connection, asked, secret, now)
