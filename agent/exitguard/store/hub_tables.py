"""The tables of the hub's database, the same on SQLite and PostgreSQL. Times are integer microseconds since 1970, days those since 1970.

Every key begins with host_id, so that the tables distribute by host. Where rows come without end (`PARTITIONED`), PostgreSQL keeps a
partition a day, and forgets by dropping it; SQLite, which has none, deletes.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

#: Alembic's name for the schema that this program reads and writes.
HEAD_REVISION = "0002"

metadata = MetaData()

#: One row a host that was let in. What of it is current is what its newest records said.
host = Table(
    "host",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("hostname", Text),
    Column("enrolled_at", BigInteger, nullable=False),
    #: The spool that its newest records came from, how far that is taken, and how many records of all its spools were.
    Column("spool_epoch", Text),
    Column("last_seq", BigInteger, nullable=False, server_default="0"),
    Column("position", BigInteger, nullable=False, server_default="0"),
    #: When the hub last heard of it, by the hub's clock, and what the host's clock was ahead of that.
    Column("received_at", BigInteger),
    Column("clock_ahead_microseconds", BigInteger),
    #: Of its newest report.
    Column("observed_at", BigInteger),
    Column("report_sha256", Text),
    Column("facts_sha256", Text),
    #: The rows of `standing` that these hold by now.
    Column("report_day", Integer),
    Column("report_position", BigInteger),
    Column("report_begun_at", BigInteger),
    Column("facts_day", Integer),
    Column("facts_position", BigInteger),
    Column("facts_begun_at", BigInteger),
    Column("policy", Text),
    Column("exit_code", Integer),
    Column("kernel_state", Text),
    Column("kernel_release", Text),
    Column("domains", Integer),
    #: JSON of model.documents.Summary.
    Column("summary", Text),
)

#: How far each spool of a host but its newest is taken; with last_seq of the host, what makes a replay harmless.
spool = Table(
    "spool",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("spool_epoch", Text, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
)

#: Facts and reports by the hash of their payload; the body is that payload, compressed by zlib.
document = Table(
    "document",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    #: The last day on which the host said the same again, or first said it.
    Column("last_day", Integer, nullable=False),
)
Index("document_by_last_day", document.c.last_day)

#: From when to when a host said the same, by its own clock, in the order of `position`. No row lasts longer than an hour or past a day.
standing = Table(
    "standing",
    metadata,
    Column("host_id", Text, primary_key=True),
    #: Of the hub's clock, as all days of partitions but the ledger's.
    Column("day", Integer, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    postgresql_partition_by="RANGE (day)",
)

#: The findings of each host's newest report.
finding = Table(
    "finding",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("rule", Text, primary_key=True),
    Column("subject_kind", Text, primary_key=True),
    Column("subject_id", Text, primary_key=True),
    #: 0, and more where a report says something of the same subject twice.
    Column("ordinal", Integer, primary_key=True),
    Column("subject_name", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    #: By the host's clock: since when the verdict has been this one.
    Column("since", BigInteger),
)
Index("finding_by_verdict", finding.c.verdict, finding.c.rule, finding.c.host_id)

#: Verdicts that changed, each once; `before` or `now` is null where there was, or is, no such finding.
finding_event = Table(
    "finding_event",
    metadata,
    Column("host_id", Text, primary_key=True),
    #: Of the report that showed it, and its place among what that report changed.
    Column("position", BigInteger, primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("observed_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("rule", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("subject_name", Text, nullable=False),
    Column("before", Text),
    Column("now", Text),
    Column("reason", Text, nullable=False),
)
Index("finding_event_by_time", finding_event.c.received_at)

#: What moves: model.samples.Samples as JSON, compressed by zlib.
samples = Table(
    "samples",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("observed_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    postgresql_partition_by="RANGE (day)",
)

#: What a host saves, as it said about once an hour: model.rates.HostSavings as JSON, compressed by zlib.
savings = Table(
    "savings",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("observed_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    postgresql_partition_by="RANGE (day)",
)

#: One run of a domain in one hour; the highest revision has replaced the others.
ledger = Table(
    "ledger",
    metadata,
    Column("host_id", Text, primary_key=True),
    #: Of `hour`, so by the host's clock.
    Column("day", Integer, primary_key=True),
    Column("hour", BigInteger, primary_key=True),
    Column("domain_uuid", Text, primary_key=True),
    Column("boot_id", Text, primary_key=True),
    Column("qemu_start_ticks", BigInteger, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("domain_name", Text, nullable=False),
    #: model.ledger.GuardSaving, and the whole model.ledger.RunStanding as JSON.
    Column("guard", Text, nullable=False),
    Column("standing", Text, nullable=False),
    Column("accounted_milliseconds", BigInteger, nullable=False),
    Column("spread_milliseconds", BigInteger, nullable=False),
    Column("exits", BigInteger, nullable=False),
    Column("skip_exits_low", BigInteger, nullable=False),
    Column("skip_exits_high", BigInteger, nullable=False),
    Column("sampled_exits", BigInteger, nullable=False),
    Column("sampled_skip_exits_low", BigInteger, nullable=False),
    Column("sampled_skip_exits_high", BigInteger, nullable=False),
    postgresql_partition_by="RANGE (day)",
)

#: What did not arrive: observations that a host could not store, records that left its spool unsent, were missing or were refused.
gap = Table(
    "gap",
    metadata,
    Column("host_id", Text, primary_key=True),
    #: model.hub.GapKind.
    Column("kind", Text, primary_key=True),
    #: What makes it one and the same: a gap's own id, or `epoch/first seq`.
    Column("gap_id", Text, primary_key=True),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
)
Index("gap_by_time", gap.c.received_at)

#: The keys by which hosts write; only what a key is compared with is kept.
host_key = Table(
    "host_key",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("secret_sha256", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

#: Secrets that let hosts in.
enrolment = Table(
    "enrolment",
    metadata,
    Column("secret_sha256", Text, primary_key=True),
    #: By which an operator revokes it.
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("hosts_left", Integer, nullable=False),
    Column("revoked_at", BigInteger),
)

#: Tokens of people and programs that read, operate or approve.
operator_token = Table(
    "operator_token",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    #: model.hub.Role
    Column("role", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

#: Who was let in, refused or shut out, and when. Rows are added and never changed: the database itself refuses anything else.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    #: `host <id>`, `operator <name>`, `console` or `anonymous`.
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("host_id", Text),
    Column("detail", Text, nullable=False),
)
Index("audit_log_by_host", audit_log.c.host_id, audit_log.c.id)

#: Partitioned by day.
PARTITIONED = (standing, samples, savings, ledger)
