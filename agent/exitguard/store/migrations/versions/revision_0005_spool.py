"""The spool: what waits to be pushed to a hub."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spool_cursor",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", name="spool_cursor_is_one_row"), primary_key=True),
        sa.Column("observation_seq", sa.Integer, nullable=False),
        sa.Column("samples_id", sa.Integer, nullable=False),
        sa.Column("next_seq", sa.Integer, nullable=False),
        sa.Column("known_facts", sa.Text),
        sa.Column("known_report", sa.Text),
    )
    op.create_table(
        "spool_body",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
    )
    op.create_table(
        "spool_record",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, sa.ForeignKey("spool_body.sha256"), nullable=False),
        sa.Column("observed_at", sa.BigInteger, nullable=False),
    )
    op.create_index("spool_record_by_body", "spool_record", ["sha256"])
    op.create_table(
        "spool_gap",
        sa.Column("first_seq", sa.Integer, primary_key=True),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("dropped", sa.Integer, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "spool_ledger",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("run_id", sa.Integer, primary_key=True),
        sqlite_with_rowid=False,
    )
