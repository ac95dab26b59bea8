"""What a batch's records hold, read and checked before the database is asked: pure."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from exitguard.model.canonical import record_json
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.history import Gap
from exitguard.model.ledger import LedgerRow
from exitguard.model.push import LARGEST, MOST_REASON_CHARACTERS, LedgerRows, PushKind, PushRecord, SavingsText, misfit_of_row, stamped
from exitguard.model.rates import HostSavings
from exitguard.model.samples import Samples

#: PostgreSQL indexes no text of more than some 2,700 bytes; these are far from it whatever they are written in.
_LIMIT_KEY_CHARACTERS = 255
_MOST_EXIT_CODE = 255
#: A clock may be ahead by so much; what is of later hours is refused, since no day of the hub's would ever forget it in time.
MOST_AHEAD = timedelta(days=2)

Read = FactsDocument | AuditReport | Samples | LedgerRows | HostSavings | Gap


@dataclass(frozen=True)
class Prepared:
    """A record with its payload read; of one that came as a hash both are None. `misfit` says why it will never be taken."""

    record: PushRecord
    body: bytes | None = None
    read: Read | None = None
    misfit: str | None = None


def prepare(record: PushRecord, host_id: str, received_at: datetime, ledger_kept: timedelta) -> Prepared:
    """The record with its payload read, or why it can never be taken from this host."""
    if record.payload is None:
        return Prepared(record)
    try:
        body = record_json(record.payload)
        if "sha256:" + hashlib.sha256(body).hexdigest() != record.sha256:
            return Prepared(record, misfit="its payload has another hash than it says")
        read = read_payload(record, body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        return Prepared(record, misfit=f"is no {record.kind} document: {where}: {first['msg']}"[:MOST_REASON_CHARACTERS])
    except ValueError as error:
        return Prepared(record, misfit=f"is no canonical JSON: {error}"[:MOST_REASON_CHARACTERS])
    misfit = _misfit(read, host_id, received_at, ledger_kept)
    return Prepared(record, body, read, None if misfit is None else misfit[:MOST_REASON_CHARACTERS])


def read_payload(record: PushRecord, body: bytes) -> Read:
    """The document that a payload is. Raises ValueError (pydantic's ValidationError) for what is none."""
    match record.kind:
        case PushKind.FACTS:
            return stamped(FactsDocument, body, record.observed_at)
        case PushKind.REPORT:
            return stamped(AuditReport, body, record.observed_at)
        case PushKind.SAMPLES:
            return Samples.model_validate_json(body)
        case PushKind.LEDGER:
            return LedgerRows.model_validate_json(body)
        case PushKind.SAVINGS:
            return SavingsText.model_validate_json(body).savings
        case PushKind.GAP:
            return Gap.model_validate_json(body)


def finding_rows(report: AuditReport) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The findings of a report by (rule, subject kind, subject id, ordinal): (subject name, severity, verdict, reason, since)."""
    ordinals: Counter[tuple[str, str, str]] = Counter()
    rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for finding in report.findings:
        about = (clean(finding.rule), str(finding.subject.kind), clean(finding.subject.id))
        told = (clean(finding.subject.name), str(finding.severity), str(finding.verdict), clean(finding.reason, MOST_REASON_CHARACTERS))
        rows[*about, ordinals[about]] = (*told, finding.since)
        ordinals[about] += 1
    return rows


def clean(text: str, limit_characters: int = _LIMIT_KEY_CHARACTERS) -> str:
    """`text` as PostgreSQL can hold it: without U+0000, and no longer than that."""
    return text[:limit_characters].replace("\0", "\ufffd")


def _misfit(read: Read, host_id: str, received_at: datetime, ledger_kept: timedelta) -> str | None:
    match read:
        case FactsDocument():
            return _of_another([read.host.identity.id], host_id)
        case AuditReport():
            return _of_another([read.host.id], host_id) or _misfit_of_report(read)
        case Samples():
            return _of_another((each.incarnation.host_id for each in read.domains if each.incarnation is not None), host_id)
        case LedgerRows():
            return _of_another((row.incarnation.host_id for row in read.rows), host_id) or next(
                (misfit for row in read.rows if (misfit := _misfit_of_row(row, received_at, ledger_kept)) is not None), None
            )
        case HostSavings():
            return None  # it names no host
        case Gap():
            long_id = len(read.id) > _LIMIT_KEY_CHARACTERS
            return "its id is too long" if long_id else None if 0 <= read.dropped <= LARGEST else "its count is out of range"


def _of_another(host_ids: Iterable[str], host_id: str) -> str | None:
    other = next((each for each in host_ids if each != host_id), None)
    return None if other is None else f"is of host {clean(other, 40)}, and host {host_id} writes only what is its own"


def _misfit_of_report(report: AuditReport) -> str | None:
    if not 0 <= report.summary.exit_code <= _MOST_EXIT_CODE:
        return "its exit code is out of range"
    texts = (text for finding in report.findings for text in (finding.rule, finding.subject.id))
    if any(len(text) > _LIMIT_KEY_CHARACTERS for text in texts):
        return f"a finding's rule or subject is longer than {_LIMIT_KEY_CHARACTERS} characters"
    return None


def _misfit_of_row(row: LedgerRow, received_at: datetime, ledger_kept: timedelta) -> str | None:
    misfit = misfit_of_row(row)
    if misfit is not None:
        return misfit
    if row.hour > received_at + MOST_AHEAD:
        return f"a row is of {row.hour:%Y-%m-%d %H}:00 UTC, which is yet to come: the host's clock is wrong"
    if row.hour < received_at - ledger_kept:
        return f"a row is of {row.hour:%Y-%m-%d %H}:00 UTC, which is no longer kept"
    if any(len(text) > _LIMIT_KEY_CHARACTERS for text in (row.incarnation.domain_uuid, row.incarnation.boot_id)):
        return "an incarnation's ids are too long"
    return None
