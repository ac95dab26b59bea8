"""Exits whose reason was traced, beside those that were counted."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("ledger_hour", "ledger_day"):
        for name in ("sampled_exits", "sampled_skip_exits_low", "sampled_skip_exits_high"):
            op.add_column(table, sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
