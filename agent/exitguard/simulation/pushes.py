"""What a simulated host pushes at each look: its facts, judged by the policy that ships, and the ledger of the hour before. Pure."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from exitguard.audit.judge import judge
from exitguard.model.canonical import record_json
from exitguard.model.ledger import Baseline, LedgerRow, LedgerSum, RunStanding
from exitguard.model.push import MOST_LEDGER_ROWS, LedgerRows, PushBatch, PushKind, PushRecord, SavingsText, SpoolGap, unstamped
from exitguard.model.rates import HostSavings, OwnUse
from exitguard.model.record import Record, seen
from exitguard.model.samples import DomainSample, Samples
from exitguard.policy.schema import Rulebook
from exitguard.savings.account import Sums, savings_now
from exitguard.savings.hours import hour_of
from exitguard.savings.ledger import first_seen, levers_of, standings_of
from exitguard.simulation.host import SimulatedHost

#: Numbers of each look's records, so that a look has the same ones whenever it is pushed: facts, report, samples, ledger, savings.
RECORDS_A_LOOK = 5
_SKIPS = (0.05, 0.6)
#: Of facts that are judged for what stays so.
_ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)
_OWN_CPU_SECONDS, _AN_HOUR_SECONDS, _HERTZ = 2.0, 3600.0, 2_400_000_000


@dataclass
class Look:
    """What one look of a host is worth telling."""

    batch: PushBatch
    #: The same with everything in full, for a hub that does not know what the hashes stand for.
    in_full: PushBatch


@dataclass
class Looks:
    """The looks of one host, one after the other."""

    host: SimulatedHost
    rulebook: Rulebook
    _baselines: dict[str, Baseline] = field(default_factory=dict)
    _standings: dict[str, tuple[str, RunStanding]] = field(default_factory=dict)
    #: Of the look before: bodies of facts and report.
    _bodies: dict[PushKind, bytes] = field(default_factory=dict)
    _said: dict[PushKind, str] = field(default_factory=dict)
    _follows_a_skipped_one: bool = False

    def at(self, observed_at: datetime, sent_at: datetime | None = None) -> Look:
        """The look that the host has come to, `observed_at` and sent by a right clock; the host then goes on to the next one."""
        host = self.host
        own = observed_at + host.skew
        sent = (sent_at or observed_at) + host.skew
        records = [*self._documents(own), self._record(3, PushKind.SAMPLES, self._samples(own), own)]
        rows = self._ledger(own)
        if rows:
            records.append(self._record(4, PushKind.LEDGER, LedgerRows(rows=rows[:MOST_LEDGER_ROWS]), own))
            records.append(self._record(5, PushKind.SAVINGS, SavingsText.of(_savings(rows, own)), own))
        gaps: tuple[SpoolGap, ...] = ()
        if host.lossy and host.look % 5 == 1:
            lost = records.pop(2)
            why = "the spool was full"
            gaps = (SpoolGap(first_seq=lost.seq, last_seq=lost.seq, dropped=1, first_at=own, last_at=own, reason=why),)
        in_full = PushBatch(host_id=host.host_id, spool_epoch=host.spool_epoch, sent_at=sent, records=tuple(records), gaps=gaps)
        short = tuple(self._shortened(each) for each in records)
        host.advance()
        return Look(in_full.model_copy(update={"records": short}), in_full)

    def skip(self) -> None:
        """Leave a look out that was pushed before: of the first one it counts how things stood."""
        if self.host.look == 0:
            self._baselines = {each.subject: each for each in first_seen(judge(self.host.facts(_ANY_TIME), self.rulebook))}
        self.host.advance()
        self._follows_a_skipped_one = True

    def _documents(self, at: datetime) -> Iterator[PushRecord]:
        """Facts and report; of a host that has not changed those of the look before, since no time is in them."""
        if self.host.changed or not self._bodies:
            facts = self.host.facts(at)
            report = judge(facts, self.rulebook)
            if self.host.look == 0:
                self._baselines = {each.subject: each for each in first_seen(report)}
            incarnations = {self.host.domain_uuid(each): self.host.incarnation(each) for each in self.host.domains if each.run is not None}
            self._standings = standings_of(report, incarnations, self._baselines, levers_of(report, self.rulebook, ()))
            self._bodies = {PushKind.FACTS: unstamped(facts), PushKind.REPORT: unstamped(report)}
            if self._follows_a_skipped_one and not self.host.changed:
                self._said = {kind: _hash(body) for kind, body in self._bodies.items()}
            self._follows_a_skipped_one = False
        for place, (kind, body) in enumerate(self._bodies.items(), 1):
            yield self._numbered(place, kind, body, at)

    def _samples(self, at: datetime) -> Samples:
        host = self.host
        running = [] if host.blind else [each for each in host.domains if each.run is not None]
        return Samples(
            observed_at=at,
            boottime_nanoseconds=10**15 + host.look * 3_600_000_000_000,
            boot_time=seen("/proc/stat", at - timedelta(days=20)),
            boot_id=host.boot_id,
            domains=tuple(
                DomainSample(
                    uuid=host.domain_uuid(each),
                    pid=4000 + each.number,
                    incarnation=host.incarnation(each),
                    counters={"exits": round(each.exits_per_second * 3600 * (host.look - each.started_at_look + 1)), "vcpus": 4},
                )
                for each in running
            ),
        )

    def _ledger(self, at: datetime) -> tuple[LedgerRow, ...]:
        host, hour = self.host, hour_of(at) - timedelta(hours=1)
        rows = []
        for domain in host.domains:
            incarnation = host.incarnation(domain)
            told = self._standings.get(incarnation.key)
            if told is None:
                continue
            exits = host.exits(domain, host.look)
            rows.append(
                LedgerRow(
                    incarnation=incarnation,
                    hour=hour,
                    revision=host.look + 1,
                    domain_name=told[0],
                    accounted_milliseconds=3_600_000,
                    exits=exits,
                    skip_exits_low=round(exits * _SKIPS[0]),
                    skip_exits_high=round(exits * _SKIPS[1]),
                    standing=told[1],
                )
            )
        return tuple(rows)

    def _record(self, place: int, kind: PushKind, document: Record, at: datetime) -> PushRecord:
        return self._numbered(place, kind, record_json(document.model_dump(mode="json")), at)

    def _numbered(self, place: int, kind: PushKind, body: bytes, at: datetime) -> PushRecord:
        return PushRecord(
            seq=self.host.look * RECORDS_A_LOOK + place,
            kind=kind,
            sha256=_hash(body),
            observed_at=at,
            payload=json.loads(body),
        )

    def _shortened(self, record: PushRecord) -> PushRecord:
        """What the host said before goes as a hash."""
        if record.kind not in (PushKind.FACTS, PushKind.REPORT):
            return record
        same = self._said.get(record.kind) == record.sha256
        self._said[record.kind] = record.sha256
        return record.model_copy(update={"payload": None}) if same else record


def _hash(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def _savings(rows: Sequence[LedgerRow], at: datetime) -> HostSavings:
    """What a daemon would tell of these rows, of its last hour."""
    runs = tuple(
        LedgerSum(
            run=row.incarnation.key,
            domain_name=row.domain_name,
            standing=row.standing,
            accounted_milliseconds=row.accounted_milliseconds,
            spread_milliseconds=0,
            exits=row.exits,
            skip_exits_low=row.skip_exits_low,
            skip_exits_high=row.skip_exits_high,
        )
        for row in rows
    )
    own = OwnUse(cpu_seconds=_OWN_CPU_SECONDS, running_seconds=_AN_HOUR_SECONDS)
    sums = Sums(at - timedelta(hours=1), at, runs, _AN_HOUR_SECONDS, own)
    return savings_now(at, sums, seen("simulated", _HERTZ), at)
