"""The first form of the hub's database. A revision never changes once it is released, so it repeats what hub_tables.py says."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: An audit log that can be corrected is none: both databases refuse it themselves.
_APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER audit_log_keeps_rows BEFORE UPDATE ON audit_log BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END",
        "CREATE TRIGGER audit_log_loses_none BEFORE DELETE ON audit_log BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END",
    ),
    "postgresql": (
        (
            "CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'audit_log is append-only'; END $$"
        ),
        (
            "CREATE TRIGGER audit_log_keeps_rows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only()"
        ),
    ),
}


def upgrade() -> None:
    op.create_table(
        "host",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("hostname", sa.Text),
        sa.Column("enrolled_at", sa.BigInteger, nullable=False),
        sa.Column("spool_epoch", sa.Text),
        sa.Column("last_seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("position", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("received_at", sa.BigInteger),
        sa.Column("clock_ahead_microseconds", sa.BigInteger),
        sa.Column("observed_at", sa.BigInteger),
        sa.Column("report_sha256", sa.Text),
        sa.Column("facts_sha256", sa.Text),
        sa.Column("report_day", sa.Integer),
        sa.Column("report_position", sa.BigInteger),
        sa.Column("report_begun_at", sa.BigInteger),
        sa.Column("facts_day", sa.Integer),
        sa.Column("facts_position", sa.BigInteger),
        sa.Column("facts_begun_at", sa.BigInteger),
        sa.Column("policy", sa.Text),
        sa.Column("exit_code", sa.Integer),
        sa.Column("kernel_state", sa.Text),
        sa.Column("kernel_release", sa.Text),
        sa.Column("domains", sa.Integer),
        sa.Column("summary", sa.Text),
    )
    op.create_table(
        "spool",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("spool_epoch", sa.Text, primary_key=True),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "document",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("last_day", sa.Integer, nullable=False),
    )
    op.create_index("document_by_last_day", "document", ["last_day"])
    op.create_table(
        "standing",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("begun_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_table(
        "finding",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("rule", sa.Text, primary_key=True),
        sa.Column("subject_kind", sa.Text, primary_key=True),
        sa.Column("subject_id", sa.Text, primary_key=True),
        sa.Column("ordinal", sa.Integer, primary_key=True),
        sa.Column("subject_name", sa.Text, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since", sa.BigInteger),
    )
    op.create_index("finding_by_verdict", "finding", ["verdict", "rule", "host_id"])
    op.create_table(
        "finding_event",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True),
        sa.Column("line", sa.Integer, primary_key=True),
        sa.Column("observed_at", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("subject_kind", sa.Text, nullable=False),
        sa.Column("subject_id", sa.Text, nullable=False),
        sa.Column("subject_name", sa.Text, nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("now", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("finding_event_by_time", "finding_event", ["received_at"])
    op.create_table(
        "samples",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True),
        sa.Column("observed_at", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_table(
        "ledger",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("domain_uuid", sa.Text, primary_key=True),
        sa.Column("boot_id", sa.Text, primary_key=True),
        sa.Column("qemu_start_ticks", sa.BigInteger, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("domain_name", sa.Text, nullable=False),
        sa.Column("guard", sa.Text, nullable=False),
        sa.Column("standing", sa.Text, nullable=False),
        sa.Column("accounted_milliseconds", sa.BigInteger, nullable=False),
        sa.Column("spread_milliseconds", sa.BigInteger, nullable=False),
        sa.Column("exits", sa.BigInteger, nullable=False),
        sa.Column("skip_exits_low", sa.BigInteger, nullable=False),
        sa.Column("skip_exits_high", sa.BigInteger, nullable=False),
        sa.Column("sampled_exits", sa.BigInteger, nullable=False),
        sa.Column("sampled_skip_exits_low", sa.BigInteger, nullable=False),
        sa.Column("sampled_skip_exits_high", sa.BigInteger, nullable=False),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_table(
        "gap",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("gap_id", sa.Text, primary_key=True),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
    )
    op.create_index("gap_by_time", "gap", ["received_at"])
    op.create_table(
        "host_key",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "enrolment",
        sa.Column("secret_sha256", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("hosts_left", sa.Integer, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "operator_token",
        sa.Column("token_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("host_id", sa.Text),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("audit_log_by_host", "audit_log", ["host_id", "id"])
    for statement in _APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)
