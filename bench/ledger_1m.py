"""1,000,000 hours of domains in SQLite: rolled up into days, against the same sums by the sqlite3 module without storing any."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from measurement import Contest, Measurement

from exitguard.model.ledger import LedgerRow
from exitguard.model.samples import Incarnation
from exitguard.savings.ledger import UNKNOWN
from exitguard.store.host import HostStore
from exitguard.store.ledger_writing import Run
from exitguard.store.tables import ledger_hour

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_DOMAINS, _DAYS = 1_000, 42
_HOURS = 1_000_000
_DAY = 86_400_000_000
#: Exits first.
_SUMMED = ("exits", "skip_exits_low", "skip_exits_high", "sampled_exits", "sampled_skip_exits_low", "sampled_skip_exits_high")
_SUMS = ", ".join(f"sum({name})" for name in _SUMMED)
_ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"


@contextmanager
def _prepare() -> Iterator[Contest]:
    with tempfile.TemporaryDirectory() as folder, HostStore.open(Path(folder), now=_BEGIN) as store:
        rows = [_row(number) for number in range(_DOMAINS)]
        with store.ledger.writing() as writer:
            writer.set_runs({row.incarnation.key: Run(row.domain_name, row.standing) for row in rows})
            writer.book(rows, {}, ())
        path = Path(folder) / "host.sqlite"
        _fill(path)

        def subject() -> None:
            store.ledger.roll_up(_BEGIN, _BEGIN + timedelta(days=_DAYS))
            days = store.ledger.days_by_run(_BEGIN, _BEGIN + timedelta(days=_DAYS))
            if sum(each.exits for each in days) != _HOURS * 1000:
                raise AssertionError("the days do not hold what the hours do")

        yield Contest(
            subject=subject,
            peer=lambda: _sums(path),
            note=f"{_DOMAINS} runs, {path.stat().st_size / 2**20:.0f} MiB; in seconds the goal is 10",
        )


def _row(number: int) -> LedgerRow:
    return LedgerRow(
        incarnation=Incarnation(host_id=_ID, domain_uuid=_ID, boot_id=_ID, qemu_start_ticks=number),
        hour=_BEGIN,
        revision=1,
        domain_name=f"instance-{number:08x}",
        accounted_milliseconds=3_600_000,
        exits=1000,
        skip_exits_low=100,
        skip_exits_high=900,
        standing=UNKNOWN,
    )


def _fill(path: Path) -> None:
    """More hours of the same runs, as many as are wanted."""
    same = ", ".join(column.name for column in ledger_hour.columns if column is not ledger_hour.c.hour)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "WITH RECURSIVE later(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM later WHERE n < ?) "  # noqa: S608 - names of our own
            f"INSERT INTO ledger_hour (hour, {same}) SELECT hour + n * 3600000000, {same} FROM ledger_hour, later",
            (_HOURS // _DOMAINS - 1,),
        )


def _sums(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            f"SELECT hour - hour % ?, run_id, standing_id, count(*), {_SUMS} FROM ledger_hour GROUP BY 1, 2, 3",  # noqa: S608 - names of our own
            (_DAY,),
        ).fetchall()
    if sum(row[4] for row in rows) != _HOURS * 1000:
        raise AssertionError("the hours are not those that were written")


MEASUREMENT = Measurement(
    name="ledger-1m",
    what=f"{_HOURS:,} hours of domains rolled up into days, stored and read back",
    peer="the same sums by the sqlite3 module, stored nowhere",
    goal_ratio=3.0,
    pairs=5,
    prepare=_prepare,
)
