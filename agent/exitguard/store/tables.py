"""The tables of the host's own database. Times are integer microseconds since 1970; `seq` orders, the clock never does."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text, text

#: PRAGMA user_version of a database that this program reads and writes, and Alembic's name for the same.
SCHEMA_VERSION = 5
HEAD_REVISION = "0005"

#: Kinds of observation: an audit looks at everything, an update at some domains after a lifecycle event.
FULL = "full"
UPDATE = "update"
#: An audit of the whole host in which libvirt told nothing: it says nothing of any domain.
BLIND = "blind"

metadata = MetaData()

#: One row: which database this is. A database that was deleted and begun anew has another epoch.
spool = Table(
    "spool",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="spool_is_one_row"), primary_key=True),
    Column("epoch", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    #: The first observation that is kept, always a full one. What is before it is not there any more, swept already or not.
    Column("horizon_seq", Integer, nullable=False, server_default="0"),
)

#: The machine-ids that have been seen under a host id; two of them mean a cloned disk.
machine = Table(
    "machine",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("machine_id", Text, primary_key=True),
    Column("first_seen_at", BigInteger, nullable=False),
)

#: Facts by their hash; the body is the canonical JSON that was hashed. A host's body names the hashes of its domains.
facts_document = Table(
    "facts_document",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    #: The observation that no longer had these facts; null while the last one has them.
    Column("until_seq", Integer),
)
Index("facts_document_by_end", facts_document.c.until_seq)

#: One row an audit, and one an update: the heartbeat.
observation = Table(
    "observation",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("observed_at", BigInteger, nullable=False),
    Column("facts_hash", Text, ForeignKey("facts_document.hash"), nullable=False),
    Column("tool_version", Text, nullable=False),
    Column("kind", Text, nullable=False, server_default=FULL),
    sqlite_autoincrement=True,  # a sequence number is never used twice
)
Index("observation_by_time", observation.c.observed_at)
Index("observation_by_facts", observation.c.facts_hash)

#: The parts of the reports. Each holds from `since_seq` until before `until_seq`, or until now; only a changed part is a new row.
section = Table(
    "section",
    metadata,
    Column("id", Integer, primary_key=True),
    #: head, order, domain or finding.
    Column("kind", Text, nullable=False),
    #: Of a finding; empty for the others.
    Column("rule", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    #: A domain's uuid too.
    Column("subject_id", Text, nullable=False),
    #: 0, and more where a report says something of the same subject twice.
    Column("ordinal", Integer, nullable=False),
    #: What the order section calls this part; a changed part keeps it.
    Column("line", Integer, nullable=False),
    Column("since_seq", Integer, ForeignKey("observation.seq"), nullable=False),
    Column("until_seq", Integer, ForeignKey("observation.seq")),
    Column("subject_name", Text, nullable=False),
    #: Of a finding, and since when it has been this one.
    Column("verdict", Text),
    Column("verdict_since", BigInteger),
    #: SHA-256 of the body.
    Column("digest", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Index(
    "section_now",
    section.c.kind,
    section.c.rule,
    section.c.subject_kind,
    section.c.subject_id,
    section.c.ordinal,
    unique=True,
    sqlite_where=text("until_seq IS NULL"),
)
Index("section_now_by_subject", section.c.subject_id, sqlite_where=text("until_seq IS NULL"))
Index("section_by_begin", section.c.since_seq)
Index("section_by_end", section.c.until_seq)

#: Verdicts that changed; `before` or `now` is null where there was, or is, no such finding.
transition = Table(
    "transition",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("seq", Integer, ForeignKey("observation.seq"), nullable=False),
    Column("rule", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("subject_name", Text, nullable=False),
    Column("before", Text),
    Column("now", Text),
    Column("reason", Text, nullable=False),
)
Index("transition_by_seq", transition.c.seq)

#: What moves, one document a look, which need not be an audit: JSON, compressed by zlib.
samples = Table(
    "samples",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("observed_at", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
Index("samples_by_time", samples.c.observed_at)

#: Observations that could not be stored, once the note of them has been read in.
gap = Table(
    "gap",
    metadata,
    Column("id", Text, primary_key=True),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("dropped", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    #: The observation that could be stored again.
    Column("seq", Integer, ForeignKey("observation.seq"), nullable=False),
)
Index("gap_by_seq", gap.c.seq)

#: Runs of domains: how each stands, and the last look at its counters that was booked.
ledger_run = Table(
    "ledger_run",
    metadata,
    Column("id", Integer, primary_key=True),
    #: model.samples.Incarnation.key
    Column("incarnation", Text, nullable=False, unique=True),
    Column("domain_uuid", Text, nullable=False),
    Column("domain_name", Text, nullable=False),
    Column("standing_id", Integer, ForeignKey("ledger_standing.id"), nullable=False),
    #: Null before its first look.
    Column("look_boottime_nanoseconds", BigInteger),
    #: JSON.
    Column("look_counters", Text),
)

#: How runs stand, each way once: JSON of model.ledger.RunStanding.
ledger_standing = Table(
    "ledger_standing",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("body", Text, nullable=False, unique=True),
)

#: One run in one hour; the highest revision has replaced the others.
ledger_hour = Table(
    "ledger_hour",
    metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("run_id", Integer, ForeignKey("ledger_run.id"), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("standing_id", Integer, ForeignKey("ledger_standing.id"), nullable=False),
    Column("accounted_milliseconds", BigInteger, nullable=False),
    Column("spread_milliseconds", BigInteger, nullable=False),
    Column("exits", BigInteger, nullable=False),
    Column("skip_exits_low", BigInteger, nullable=False),
    Column("skip_exits_high", BigInteger, nullable=False),
    Column("sampled_exits", BigInteger, nullable=False, server_default="0"),
    Column("sampled_skip_exits_low", BigInteger, nullable=False, server_default="0"),
    Column("sampled_skip_exits_high", BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
Index("ledger_hour_by_run", ledger_hour.c.run_id, ledger_hour.c.hour)

#: The hours of a day (UTC) together, a run and way of standing each; made of the hours, and outlives them.
ledger_day = Table(
    "ledger_day",
    metadata,
    Column("day", BigInteger, primary_key=True),
    Column("run_id", Integer, ForeignKey("ledger_run.id"), primary_key=True),
    Column("standing_id", Integer, ForeignKey("ledger_standing.id"), primary_key=True),
    Column("hours", Integer, nullable=False),
    Column("accounted_milliseconds", BigInteger, nullable=False),
    Column("spread_milliseconds", BigInteger, nullable=False),
    Column("exits", BigInteger, nullable=False),
    Column("skip_exits_low", BigInteger, nullable=False),
    Column("skip_exits_high", BigInteger, nullable=False),
    Column("sampled_exits", BigInteger, nullable=False, server_default="0"),
    Column("sampled_skip_exits_low", BigInteger, nullable=False, server_default="0"),
    Column("sampled_skip_exits_high", BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

#: Why exits of a run in an hour are not accounted for.
ledger_unaccounted = Table(
    "ledger_unaccounted",
    metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("run_id", Integer, ForeignKey("ledger_run.id"), primary_key=True),
    Column("reason", Text, primary_key=True),
    sqlite_with_rowid=False,
)

#: How long the host was watched in an hour, with guests or without.
ledger_watched = Table(
    "ledger_watched",
    metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("milliseconds", BigInteger, nullable=False),
)

#: What was so at first sight of the host and of each domain; written once, never changed.
ledger_baseline = Table(
    "ledger_baseline",
    metadata,
    #: The host's id, or a domain's uuid.
    Column("subject", Text, primary_key=True),
    Column("first_seen_at", BigInteger, nullable=False),
    #: model.ledger.Baseline.held: 1, 0, or null.
    Column("held", Integer),
)

#: CPU time of the agent itself, by process and hour.
ledger_own_cost = Table(
    "ledger_own_cost",
    metadata,
    Column("hour", BigInteger, primary_key=True),
    #: model.ledger.OwnCost.process
    Column("process", Text, primary_key=True),
    Column("cpu_milliseconds", BigInteger, nullable=False),
    Column("running_milliseconds", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: One row: how far the samples are booked.
ledger_cursor = Table(
    "ledger_cursor",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="ledger_cursor_is_one_row"), primary_key=True),
    Column("samples_id", Integer, nullable=False),
    #: Of the last samples in which counters were told: null before there were any.
    Column("boot_id", Text),
    Column("boottime_nanoseconds", BigInteger),
    Column("observed_at", BigInteger),
    #: Hours before this are forgotten: their days are complete, and only added to.
    Column("hours_since", BigInteger, nullable=False),
)

#: One row, once this host pushes to a hub: how far the store is taken into the spool, and what the hub is known to have.
spool_cursor = Table(
    "spool_cursor",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="spool_cursor_is_one_row"), primary_key=True),
    Column("observation_seq", Integer, nullable=False),
    Column("samples_id", Integer, nullable=False),
    #: The number of the next record.
    Column("next_seq", Integer, nullable=False),
    #: The hash of the last facts, and of the last report, that were acknowledged.
    Column("known_facts", Text),
    Column("known_report", Text),
)

#: Records that wait to be pushed, the oldest first.
spool_record = Table(
    "spool_record",
    metadata,
    Column("seq", Integer, primary_key=True),
    #: model.push.PushKind
    Column("kind", Text, nullable=False),
    Column("sha256", Text, ForeignKey("spool_body.sha256"), nullable=False),
    Column("observed_at", BigInteger, nullable=False),
)
Index("spool_record_by_body", spool_record.c.sha256)

#: Their payloads by hash: canonical JSON, compressed by zlib.
spool_body = Table(
    "spool_body",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    #: Of the JSON.
    Column("size", Integer, nullable=False),
)

#: Records that left the spool unsent, until the hub knows of it.
spool_gap = Table(
    "spool_gap",
    metadata,
    Column("first_seq", Integer, primary_key=True),
    Column("last_seq", Integer, nullable=False),
    Column("dropped", Integer, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

#: Rows of the ledger that were written since they were last taken into the spool.
spool_ledger = Table(
    "spool_ledger",
    metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("run_id", Integer, primary_key=True),
    sqlite_with_rowid=False,
)
