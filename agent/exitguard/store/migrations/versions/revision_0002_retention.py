"""Samples of their own, updates between audits, and what it takes to forget."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("spool", sa.Column("horizon_seq", sa.Integer, nullable=False, server_default="0"))
    op.add_column("observation", sa.Column("kind", sa.Text, nullable=False, server_default="full"))
    op.create_index("observation_by_facts", "observation", ["facts_hash"])
    op.create_index("section_now_by_subject", "section", ["subject_id"], sqlite_where=sa.text("until_seq IS NULL"))
    op.create_index("section_by_begin", "section", ["since_seq"])
    op.create_index("gap_by_seq", "gap", ["seq"])
    _separate_samples()
    _end_facts()


def _separate_samples() -> None:
    op.rename_table("samples", "samples_of_observations")
    op.create_table(
        "samples",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("observed_at", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO samples (id, observed_at, body) SELECT seq, observed_at, body "
        "FROM samples_of_observations JOIN observation USING (seq) ORDER BY seq"
    )
    op.drop_table("samples_of_observations")
    op.create_index("samples_by_time", "samples", ["observed_at"])


def _end_facts() -> None:
    """Say of each document with which observation it ended: the one after the last that had it."""
    op.add_column("facts_document", sa.Column("until_seq", sa.Integer))
    op.create_index("facts_document_by_end", "facts_document", ["until_seq"])
    connection = op.get_bind()
    last_seqs = connection.exec_driver_sql("SELECT facts_hash, max(seq) FROM observation GROUP BY facts_hash").all()
    last_with: dict[str, int] = {}
    for host_hash, seq in last_seqs:
        (body,) = connection.exec_driver_sql("SELECT body FROM facts_document WHERE hash = ?", (host_hash,)).scalars()
        for key in (host_hash, *json.loads(body)["domains"]):
            last_with[key] = max(seq, last_with.get(key, 0))
    for key, seq in last_with.items():
        # Null for the last observation, which has none after it.
        connection.exec_driver_sql(
            "UPDATE facts_document SET until_seq = (SELECT min(seq) FROM observation WHERE seq > ?) WHERE hash = ?", (seq, key)
        )


def downgrade() -> None:
    raise NotImplementedError("the store goes forward only: restore a backup instead")
