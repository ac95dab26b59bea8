"""The first form of the host's database. A revision never changes once it is released, so it repeats what tables.py says."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spool",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", name="spool_is_one_row"), primary_key=True),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "machine",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("machine_id", sa.Text, primary_key=True),
        sa.Column("first_seen_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "facts_document",
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "observation",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("observed_at", sa.BigInteger, nullable=False),
        sa.Column("facts_hash", sa.Text, sa.ForeignKey("facts_document.hash"), nullable=False),
        sa.Column("tool_version", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("observation_by_time", "observation", ["observed_at"])
    _create_report_tables()
    op.create_table(
        "samples",
        sa.Column("seq", sa.Integer, sa.ForeignKey("observation.seq"), primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "gap",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("seq", sa.Integer, sa.ForeignKey("observation.seq"), nullable=False),
    )


def _create_report_tables() -> None:
    op.create_table(
        "section",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("subject_kind", sa.Text, nullable=False),
        sa.Column("subject_id", sa.Text, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("since_seq", sa.Integer, sa.ForeignKey("observation.seq"), nullable=False),
        sa.Column("until_seq", sa.Integer, sa.ForeignKey("observation.seq")),
        sa.Column("subject_name", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text),
        sa.Column("verdict_since", sa.BigInteger),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index(
        "section_now",
        "section",
        ["kind", "rule", "subject_kind", "subject_id", "ordinal"],
        unique=True,
        sqlite_where=sa.text("until_seq IS NULL"),
    )
    op.create_index("section_by_end", "section", ["until_seq"])
    op.create_table(
        "transition",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("seq", sa.Integer, sa.ForeignKey("observation.seq"), nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("subject_kind", sa.Text, nullable=False),
        sa.Column("subject_id", sa.Text, nullable=False),
        sa.Column("subject_name", sa.Text, nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("now", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("transition_by_seq", "transition", ["seq"])


def downgrade() -> None:
    raise NotImplementedError("the store goes forward only: restore a backup instead")
