"""The ledger kept: samples become rows, and judgements become the standing of runs.

Samples are booked once, in the order in which they were stored, from where the ledger's cursor stands: the wall clock decides into which
hour exits are put, and never whether they are. Each step is one transaction, so a kill anywhere loses nothing and counts nothing twice.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from exitguard.facts.frequency import read_frequency
from exitguard.facts.tree import HostTree
from exitguard.model.documents import AuditReport
from exitguard.model.ledger import OwnCost
from exitguard.model.rates import HostSavings, OwnUse
from exitguard.model.samples import Incarnation, Samples
from exitguard.savings.account import Sums, savings_now
from exitguard.savings.hours import hours, milliseconds_of, split
from exitguard.savings.intervals import intervals
from exitguard.savings.ledger import UNKNOWN, added, first_seen, standings_of
from exitguard.savings.worth import Levers

if TYPE_CHECKING:
    from exitguard.store.host import HostStore
    from exitguard.store.ledger import LedgerPart
    from exitguard.store.ledger_writing import Cursor, LedgerWriter

#: Samples in one transaction: well under a second of work on a host with a thousand guests.
_BATCH = 8
_NANOSECONDS = 1_000_000_000


def keep_books(store: "HostStore", own_costs: Iterable[OwnCost] = (), *, pulse: Callable[[], None] = lambda: None) -> int:
    """Book all samples of `store` that are not booked yet; how many. Raises StoreError: what was booked until then stays booked.

    `pulse` is called between transactions, and may raise to end it there.
    """
    with store.ledger.writing() as writer:
        writer.add_own_costs(own_costs)
    booked = 0
    while True:
        pulse()
        with store.ledger.writing() as writer:
            documents = writer.unbooked(_BATCH)
            if not documents:
                return booked
            _book(writer, documents)
        booked += len(documents)


def sums_of(part: "LedgerPart") -> Sums:
    """What the account adds up, out of what the store holds."""
    own = OwnUse(cpu_seconds=part.own_cpu_seconds, running_seconds=part.own_running_seconds)
    return Sums(part.since, part.until, part.by_run, part.watched_seconds, own, part.unaccounted_runs)


def savings_of(store: "HostStore", now: datetime) -> HostSavings | None:
    """What the host saves now; None where its ledger is empty. Raises StoreError."""
    booked_until, present = store.ledger.read_now(now)
    return None if booked_until is None else savings_now(booked_until, sums_of(present), read_frequency(HostTree()), now)


def note_judgement(store: "HostStore", report: AuditReport, incarnations: Mapping[str, Incarnation | None], levers: Levers) -> None:
    """How the runs that `report` judged stand from now on; `incarnations` has the run that it saw of each domain, by uuid.

    What was not known is kept in mind: a run that has been known once is not unknown again, and hours that were booked while nothing was
    known of a run get its standing once it is.
    """
    from exitguard.store.ledger_writing import Run  # noqa: PLC0415 - SQLAlchemy comes with it, which a host without a store does without

    with store.ledger.writing() as writer:
        writer.add_baselines(first_seen(report))
        baselines = writer.baselines({report.host.id, *(domain.uuid for domain in report.domains)})
        found = standings_of(report, incarnations, baselines, levers)
        known = writer.runs(found)
        changed: dict[str, Run] = {}
        for key, (name, standing) in found.items():
            before = known.get(key)
            if standing == UNKNOWN and before is not None:
                standing = before.standing  # noqa: PLW2901 - the better known of the two
            run = Run(name, standing)
            if run != before:
                changed[key] = run
        writer.set_runs(changed)
        learnt = {key for key, run in changed.items() if run.standing != UNKNOWN and key in known and known[key].standing == UNKNOWN}
        writer.restate(learnt, UNKNOWN)


def _book(writer: "LedgerWriter", documents: list[tuple[int, Samples]]) -> None:
    from exitguard.store.ledger_writing import Run  # noqa: PLC0415 - as above

    keys = {sample.incarnation.key for _, document in documents for sample in document.domains if sample.incarnation is not None}
    looks = writer.looks(keys)
    found = hours(intervals((document for _, document in documents), looks))
    runs = writer.runs(keys)
    unheard = {key: Run("", UNKNOWN) for key in keys - runs.keys() if key in looks}
    writer.set_runs(unheard)
    runs |= unheard
    rows = added(found, {key: (run.domain_name, run.standing) for key, run in runs.items()}, writer.rows(found))
    unaccounted = [(key, begin, reason) for (key, begin), hour in found.items() for reason in sorted(hour.reasons)]
    writer.book(rows, looks, unaccounted)
    cursor, watched = _watched(writer.cursor(), (document for _, document in documents))
    writer.watch(watched)
    writer.move(replace(cursor, samples_id=documents[-1][0]))


def _watched(cursor: "Cursor", documents: Iterable[Samples]) -> tuple["Cursor", dict[datetime, int]]:
    """In which hours the host was watched, in milliseconds: between two samples of one boot in which counters were told."""
    found: dict[datetime, int] = {}
    for document in documents:
        if document.boot_id is None:
            continue
        at = document.boottime_nanoseconds
        same_boot = cursor.boot_id == document.boot_id and cursor.boottime_nanoseconds is not None
        if same_boot and at <= (cursor.boottime_nanoseconds or 0):
            continue
        if same_boot:
            whole = milliseconds_of((at - (cursor.boottime_nanoseconds or 0)) / _NANOSECONDS)
            for begin, first, last in split(document.observed_at, whole):
                found[begin] = found.get(begin, 0) + last - first
        cursor = replace(cursor, boot_id=document.boot_id, boottime_nanoseconds=at, observed_at=document.observed_at)
    return cursor, found
