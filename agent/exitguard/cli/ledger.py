"""What the ledger of this host says, for the verbs that tell of it."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from exitguard.model.documents import AuditReport
    from exitguard.store.host import HostStore


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
    from exitguard.bookkeeping import savings_of

    savings = savings_of(store, now) if store.host_id == report.host.id else None
    return report if savings is None else report.model_copy(update={"savings": savings})
