"""The ledger: what runs did in each hour and day, what was so at first sight, what the agent itself cost."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ledger_standing",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("body", sa.Text, nullable=False, unique=True),
    )
    op.create_table(
        "ledger_run",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("incarnation", sa.Text, nullable=False, unique=True),
        sa.Column("domain_uuid", sa.Text, nullable=False),
        sa.Column("domain_name", sa.Text, nullable=False),
        sa.Column("standing_id", sa.Integer, sa.ForeignKey("ledger_standing.id"), nullable=False),
        sa.Column("look_boottime_nanoseconds", sa.BigInteger),
        sa.Column("look_counters", sa.Text),
    )
    _hours_and_days()
    op.create_table(
        "ledger_watched",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("milliseconds", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ledger_baseline",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("first_seen_at", sa.BigInteger, nullable=False),
        sa.Column("held", sa.Integer),
    )
    op.create_table(
        "ledger_own_cost",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("process", sa.Text, primary_key=True),
        sa.Column("cpu_milliseconds", sa.BigInteger, nullable=False),
        sa.Column("running_milliseconds", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_cursor",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", name="ledger_cursor_is_one_row"), primary_key=True),
        sa.Column("samples_id", sa.Integer, nullable=False),
        sa.Column("boot_id", sa.Text),
        sa.Column("boottime_nanoseconds", sa.BigInteger),
        sa.Column("observed_at", sa.BigInteger),
        sa.Column("hours_since", sa.BigInteger, nullable=False),
    )


def _hours_and_days() -> None:
    op.create_table(
        "ledger_hour",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("ledger_run.id"), primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("standing_id", sa.Integer, sa.ForeignKey("ledger_standing.id"), nullable=False),
        *_counts(),
        sqlite_with_rowid=False,
    )
    op.create_index("ledger_hour_by_run", "ledger_hour", ["run_id", "hour"])
    op.create_table(
        "ledger_day",
        sa.Column("day", sa.BigInteger, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("ledger_run.id"), primary_key=True),
        sa.Column("standing_id", sa.Integer, sa.ForeignKey("ledger_standing.id"), primary_key=True),
        sa.Column("hours", sa.Integer, nullable=False),
        *_counts(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_unaccounted",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("ledger_run.id"), primary_key=True),
        sa.Column("reason", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )


def _counts() -> tuple[sa.Column[int], ...]:
    names = ("accounted_milliseconds", "spread_milliseconds", "exits", "skip_exits_low", "skip_exits_high")
    return tuple(sa.Column(name, sa.BigInteger, nullable=False) for name in names)


def downgrade() -> None:
    raise NotImplementedError("the store goes forward only: restore a backup instead")
