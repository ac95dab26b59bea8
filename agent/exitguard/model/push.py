"""What a host pushes to its hub, and what the hub answers. docs/fleet.md tells the protocol; this is its form.

A record's payload is one JSON object; its hash is `sha256:` over that object's RFC 8785 form. Facts and reports are stated without the
time at which they were observed (`"observed_at":null` stands for the record's own), so that a host that has not changed pushes the same
hash again and again, and nothing but the hash. All text and every number is bounded here, before anything is looked up or stored.
"""

import json
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, JsonValue, model_validator

from exitguard.model.canonical import record_json
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.ledger import COUNTS, LedgerRow
from exitguard.model.rates import HostSavings
from exitguard.model.record import Record
from exitguard.model.time import UtcTime, format_rfc3339

#: One batch. A record that is larger than a whole batch may be is never sent: it becomes a gap on its host.
MOST_RECORDS = 500
MOST_GAPS = 100
MOST_BATCH_BYTES = 48 << 20
MOST_COMPRESSED_BYTES = 12 << 20
#: Of one ledger record; more become several.
MOST_LEDGER_ROWS = 1000
MOST_SAVINGS_CHARACTERS = 1 << 20
MOST_REASON_CHARACTERS = 500
MOST_NAME_CHARACTERS = 255
#: What both JSON (RFC 8785 by RFC 7493) and a 64-bit column hold.
LARGEST = 2**53 - 1

_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_HASH = r"^sha256:[0-9a-f]{64}$"
#: In JSON text a quote inside a string is escaped; so this is a whole key and its value, never a part of some text.
_UNSTAMPED = b'"observed_at":null'

Uuid = Annotated[str, Field(pattern=_UUID)]
Hash = Annotated[str, Field(pattern=_HASH)]
Seq = Annotated[int, Field(ge=1, le=LARGEST)]
Name = Annotated[str, Field(min_length=1, max_length=MOST_NAME_CHARACTERS)]
Reason = Annotated[str, Field(max_length=MOST_REASON_CHARACTERS)]
Document = TypeVar("Document", FactsDocument, AuditReport)


class PushKind(StrEnum):
    """What a record holds, and so what its payload is."""

    FACTS = "facts"  # FactsDocument, observed_at null
    REPORT = "report"  # AuditReport, observed_at null, without savings
    SAMPLES = "samples"  # Samples
    LEDGER = "ledger"  # LedgerRows
    SAVINGS = "savings"  # SavingsText
    GAP = "gap"  # history.Gap: what the host itself could not store


#: Kinds that may travel as a hash: what they say stays true until it changes.
STANDING_KINDS = frozenset({PushKind.FACTS, PushKind.REPORT})


class LedgerRows(Record):
    """Rows of the ledger, each a full replacement of the one with its key and a lower revision."""

    rows: Annotated[tuple[LedgerRow, ...], Field(min_length=1, max_length=MOST_LEDGER_ROWS)]


class SavingsText(Record):
    """What a host saves when it is pushed: the JSON of a rates.HostSavings, as text, since that has fractions and a payload none."""

    text: Annotated[str, Field(max_length=MOST_SAVINGS_CHARACTERS)]

    @classmethod
    def of(cls, savings: HostSavings) -> Self:
        return cls(text=savings.model_dump_json())

    @property
    def savings(self) -> HostSavings:
        """Raises ValueError (pydantic's ValidationError) for what is none, or has a number that JSON has not."""
        read = HostSavings.model_validate_json(self.text)
        return HostSavings.model_validate_json(read.model_dump_json())  # infinity and not-a-number become null there


class PushRecord(Record):
    """One observation, or part of one. `seq` numbers the records of one spool, and none is used twice."""

    seq: Seq
    kind: PushKind
    sha256: Hash
    observed_at: UtcTime
    #: None where the hub should have it already by its hash.
    payload: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _only_what_stands_travels_as_a_hash(self) -> Self:
        if self.payload is None and self.kind not in STANDING_KINDS:
            raise ValueError(f"a record of kind {self.kind} needs a payload: only facts and reports may travel as a hash")
        return self


class SpoolGap(Record):
    """Records that had to leave the spool unsent: how many, from which to which, and why."""

    first_seq: Seq
    last_seq: Seq
    dropped: Seq
    first_at: UtcTime
    last_at: UtcTime
    reason: Reason

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 1 <= self.dropped <= self.last_seq - self.first_seq + 1:
            raise ValueError("a gap runs from first_seq to last_seq, and no more was dropped than lies between")
        return self


class PushBatch(Record):
    """The oldest records of one host's spool, in the order of their numbers."""

    schema_version: Literal[1] = 1
    host_id: Uuid
    spool_epoch: Uuid
    #: The host's clock when it sent this: the hub sees by it how far the clock is off.
    sent_at: UtcTime
    records: Annotated[tuple[PushRecord, ...], Field(max_length=MOST_RECORDS)] = ()
    gaps: Annotated[tuple[SpoolGap, ...], Field(max_length=MOST_GAPS)] = ()

    @model_validator(mode="after")
    def _rising(self) -> Self:
        seqs = [record.seq for record in self.records]
        if any(later <= earlier for earlier, later in pairwise(seqs)):
            raise ValueError("records stand in the order of their numbers, each once")
        return self


class RefusedRecord(Record):
    """A record that the hub will never take; its host may forget it, and the hub shows a gap."""

    seq: Seq
    reason: Reason


class PushAnswer(Record):
    """What the hub has committed. Records up to `acknowledged_seq` are stored, or refused for good, and may leave the spool."""

    schema_version: Literal[1] = 1
    spool_epoch: Uuid
    #: 0: none of this spool yet.
    acknowledged_seq: Annotated[int, Field(ge=0, le=LARGEST)]
    #: Records of which the hub does not know the hash: it took none from the first of them on.
    send_in_full: tuple[Seq, ...] = ()
    refused: tuple[RefusedRecord, ...] = ()


class Enrolment(Record):
    """A host asks for a key. It has made the key itself, and tells only what the hub is to compare it with; so it may ask twice."""

    schema_version: Literal[1] = 1
    #: Who lets hosts in: `exitguard hub enrolment` made it.
    secret: Annotated[str, Field(min_length=1, max_length=200)]
    host_id: Uuid
    hostname: Name | None = None
    key: "NewKey"


class NewKey(Record):
    """A key as the hub knows it."""

    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    #: Of the key's secret.
    secret_sha256: Hash


class Enrolled(Record):
    """The key counts from now on."""

    schema_version: Literal[1] = 1
    host_id: Uuid
    key_id: str


def unstamped(document: FactsDocument | AuditReport) -> bytes:
    """A payload's canonical JSON: the document without its time, and without what is computed anew for each reader."""
    exclude = {"savings"} if isinstance(document, AuditReport) else set()
    text = document.model_dump_json(exclude=exclude).encode("utf-8").replace(_stamp(document.observed_at), _UNSTAMPED)
    return record_json(json.loads(text))


def stamped(kind: type[Document], body: bytes, observed_at: datetime) -> Document:
    """The inverse of `unstamped`, as of `observed_at`. Raises ValueError (pydantic's ValidationError) for what is no such document."""
    return kind.model_validate_json(stamped_json(body, observed_at))


def stamped_json(body: bytes, observed_at: datetime) -> bytes:
    """The JSON of the document that `body` is, as of `observed_at`."""
    return body.replace(_UNSTAMPED, _stamp(observed_at))


def misfit_of_row(row: LedgerRow) -> str | None:
    """Why a row cannot be stored, or None."""
    numbers = {"revision": row.revision, "qemu_start_ticks": row.incarnation.qemu_start_ticks} | {
        name: getattr(row, name) for name in COUNTS
    }
    wrong = next((name for name, number in numbers.items() if not 0 <= number <= LARGEST), None)
    if wrong is not None:
        return f"{wrong} is not between 0 and 2^53-1"
    hour = row.hour
    return "its hour is no full hour" if (hour.minute, hour.second, hour.microsecond) != (0, 0, 0) else None


def _stamp(observed_at: datetime) -> bytes:
    return b'"observed_at":"%b"' % format_rfc3339(observed_at).encode("ascii")
