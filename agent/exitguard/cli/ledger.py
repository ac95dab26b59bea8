"""What the ledger of this host says, for the verbs that tell of it."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from exitguard.model.documents import AuditReport
    from exitguard.savings.account import Sums
    from exitguard.store.host import HostStore
    from exitguard.store.ledger import LedgerPart


def with_savings(report: "AuditReport", state_dir: Path, now: "datetime") -> "AuditReport":
    """The report with what its host saves now; as it was where there is no ledger of that host, or none that can be read."""
    if not state_dir.exists():
        return report

    from exitguard.store.errors import StoreError
    from exitguard.store.host import HostStore

    with suppress(StoreError), HostStore.open(state_dir, now=now, read_only=True) as store:
        return with_savings_of(report, store, now)
    return report


def with_savings_of(report: "AuditReport", store: "HostStore", now: "datetime") -> "AuditReport":
    """The same of an open store. Raises StoreError."""
    from exitguard.facts.frequency import read_frequency
    from exitguard.facts.tree import HostTree
    from exitguard.savings.account import savings_now

    if store.host_id != report.host.id:
        return report
    booked_until, present = store.ledger.read_now(now)
    if booked_until is None:
        return report
    return report.model_copy(update={"savings": savings_now(booked_until, sums_of(present), read_frequency(HostTree()), now)})


def sums_of(part: "LedgerPart") -> "Sums":
    """What the account adds up, out of what the store holds."""
    from exitguard.model.rates import OwnUse
    from exitguard.savings.account import Sums

    own = OwnUse(cpu_seconds=part.own_cpu_seconds, running_seconds=part.own_running_seconds)
    return Sums(part.since, part.until, part.by_run, part.watched_seconds, own, part.unaccounted_runs)
