"""What the store remembers between audits: verdicts that changed, times at which nothing could be stored, what was forgotten."""

from dataclasses import dataclass

from pydantic import Field

from exitguard.model.finding import Subject, Verdict
from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class Transition(Record):
    """One rule's verdict on one subject became another at `at`, the observed_at of the audit or update that saw it."""

    rule: str
    subject: Subject
    #: None where the finding is new, or was gone before.
    before: Verdict | None
    #: None where the finding is gone: the subject, or the rule, is no longer judged.
    now: Verdict | None
    reason: str
    at: UtcTime
    #: The run of a plan that had changed the subject or its host since the verdict before; told, never stored.
    after_run: str | None = Field(default=None, exclude_if=lambda run: run is None)


class Gap(Record):
    """Observations (audits, updates, samples) that were made and could not be stored, from the first that was dropped to the last."""

    #: A UUID: the same gap keeps it while it grows, so that it is never counted twice.
    id: str
    first_at: UtcTime
    last_at: UtcTime
    #: How many observations, at least.
    dropped: int
    #: Why the last of them could not be stored.
    reason: str


@dataclass(frozen=True)
class Pruned:
    """What one pruning of a store deleted, and how much is left."""

    #: Audits and updates.
    observations: int
    #: Facts that no observation left has.
    documents: int
    samples: int
    #: What the database uses after it; its file stays as large as it was, and is filled again.
    size_bytes: int
