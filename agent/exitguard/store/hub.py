"""The memory of a fleet, in PostgreSQL or SQLite: what hosts pushed, who may push, and what was lost on the way.

The face of the `hub_*` modules. Any number of threads and processes may use one database; a store holds nothing but connections.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from sqlalchemy import Connection

from exitguard.model.push import PushAnswer, PushBatch
from exitguard.store.hub_answers import StoredFacts, StoredReport, read_all_facts, read_reports, read_savings
from exitguard.store.hub_database import HubDatabase, open_hub_database
from exitguard.store.hub_days import forget_all, provide_days
from exitguard.store.hub_ingest import needed_days, take_batch
from exitguard.store.hub_records import prepare


@dataclass(frozen=True)
class HubRetention:
    """For how many days the hub keeps what."""

    #: Reports as they were, transitions, gaps.
    history_days: int = 400
    samples_days: int = 7
    ledger_days: int = 400


class HubStore:
    """An open store: a context manager. Raises StoreError (HubUnavailable where the same may be tried again)."""

    def __init__(self, database: HubDatabase, retention: HubRetention) -> None:
        self._database = database
        self._retention = retention

    @classmethod
    def open(cls, where: str, retention: HubRetention | None = None, *, connections: int = 8) -> Self:
        """The store at a `postgresql://` URL or in a SQLite file, created or migrated where needed. Raises StoreError."""
        return cls(open_hub_database(where, connections=connections), retention or HubRetention())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    @property
    def name(self) -> str:
        """What operators know the database by."""
        return self._database.name

    def check(self) -> None:
        """Whether the database answers and has this program's schema. Raises StoreError."""
        self._database.check()

    def take(self, batch: PushBatch, *, received_at: datetime) -> PushAnswer:
        """Take what of the batch was not taken before: on return it is committed. Raises StoreError (UnknownHost); then nothing is."""
        kept = timedelta(days=self._retention.ledger_days)
        prepared = [prepare(record, batch.host_id, received_at, kept) for record in batch.records]
        provide_days(self._database, needed_days(prepared, received_at))
        with self._database.transaction(write=True) as connection:
            return take_batch(self._database, connection, batch, prepared, received_at)

    def reports(self, at: datetime | None = None, host_id: str | None = None) -> Iterator[StoredReport]:
        """Every host's newest report, or the one that was in force at `at`, one at a time, in the order of host ids."""
        return read_reports(self._database, at, host_id)

    def facts(self) -> Iterator[StoredFacts]:
        """Every host's newest facts, one at a time, in the order of host ids."""
        return read_all_facts(self._database)

    def savings(self, at: datetime) -> Iterator[tuple[str, str | None, bytes | None]]:
        """Every host that was let in by `at`: id, name, and the packed JSON of its HostSavings of then, one at a time."""
        return read_savings(self._database, at)

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction for the functions of hub_answers and hub_access that read."""
        return self._database.transaction()

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction for the functions of hub_access that write."""
        return self._database.transaction(write=True)

    def prune(self, now: datetime) -> int:
        """Forget what is older than it is to be kept: how many partitions and rows."""
        kept = self._retention
        return forget_all(self._database, now, history_days=kept.history_days, samples_days=kept.samples_days, ledger_days=kept.ledger_days)
