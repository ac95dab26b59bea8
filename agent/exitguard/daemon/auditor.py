"""The audits of one host in a process that stays: what is observed, judged, remembered and told, and what is kept in between.

Between two audits it keeps the facts, how the host stands in counts, the open store, and the calls that libvirt has not answered.
A store that cannot be used, or libvirt that is gone, is a condition: said once, tried again with every job.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from exitguard.audit.standing import Standing, concerns_others, judge_update, standing_of
from exitguard.cycle import AuditRequest, audit_into, observe_again, open_store
from exitguard.daemon.books import Books
from exitguard.daemon.conditions import Conditions
from exitguard.daemon.log import bound, get_logger
from exitguard.daemon.metrics import Metrics
from exitguard.daemon.proposal import PROPOSAL_NAME, Proposals
from exitguard.daemon.tracing import Tracing
from exitguard.facts.clock import boottime_nanoseconds, read_boot_time
from exitguard.facts.exit_reasons.instance import remove_leftovers
from exitguard.facts.libvirt.counters import read_counters
from exitguard.facts.libvirt.patience import NOT_ASKED, BlockedCalls, Patience
from exitguard.facts.measurements import read_measurements
from exitguard.facts.processes import read_start_ticks
from exitguard.facts.tree import HostTree
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.finding import Finding, Verdict
from exitguard.model.host import TargetKind
from exitguard.model.samples import DomainSample, Incarnation, SampledExits, Samples
from exitguard.policy.schema import Rulebook
from exitguard.store.errors import StoreError, StoreOutdated

if TYPE_CHECKING:
    from exitguard.daemon.pushing import Pusher
    from exitguard.store.host import HostStore

_log = get_logger()

#: A log of an audit names at most this many changes; all of them are in the store.
_MOST_CHANGES = 50
#: Of more lost observations than this it is known that there were many.
_MOST_LOST = 10_000
_WORTH_A_LINE = (Verdict.FAIL, Verdict.ERROR)


@dataclass(frozen=True)
class Retention:
    """How long and how large the memory may be."""

    history: timedelta
    samples: timedelta
    #: Of the ledger's hours; its days are kept as long as the history.
    ledger_hours: timedelta
    limit_bytes: int


@dataclass
class Auditor:
    """One host's audits. For one thread; `pulse` is called all the while, and may raise to end what is under way."""

    request: AuditRequest
    rulebook: Rulebook
    retention: Retention
    metrics: Metrics
    conditions: Conditions
    pulse: Callable[[], None]
    #: Called with the uuid of a domain whose process is another one than the last look at it showed.
    changed: Callable[[str], None]
    tracing: Tracing = field(default_factory=Tracing)
    #: None: this host pushes to no hub.
    pusher: "Pusher | None" = None
    facts: FactsDocument | None = None
    standing: Standing | None = None
    _store: "HostStore | None" = None
    #: By domain, the last sample of its run, without counters.
    _runs: dict[str, DomainSample] = field(default_factory=dict)
    _blocked: BlockedCalls = field(default_factory=BlockedCalls)
    #: Whether calls were blocked when the last audit ended.
    _was_blocked: bool = False
    #: Observations that could neither be stored nor noted: when, and why.
    _lost: list[tuple[datetime, str]] = field(default_factory=list)
    #: When the last audit of the whole host was made.
    audited_at: datetime | None = None
    #: The bulk call for counters blocks behind any one domain: it must not keep audits from being made.
    _blocked_counters: BlockedCalls = field(default_factory=BlockedCalls)
    _proposals: Proposals = field(default_factory=Proposals)
    _books: Books = field(default_factory=Books)

    def audit(self) -> None:
        """One audit of the whole host."""
        store = self._usable_store()
        outcome = audit_into(store, self.request, self.rulebook, self._patience(self._blocked))
        report = outcome.report
        if store is not None:
            self._tell_storing(outcome.unstored)
        before, self.facts = self.standing, outcome.observation.facts
        self.standing = standing_of(report, self.facts, self.rulebook)
        self._was_blocked, self.audited_at = len(self._blocked) > 0, report.observed_at
        self._runs = {sample.uuid: sample for sample in outcome.observation.samples.domains}
        self._note_for_books(report, {uuid: run.incarnation for uuid, run in self._runs.items()})
        listing = self.facts.host.libvirt.listing
        self._tell_unanswered("libvirt", listing.reason)
        self._tell_metrics()
        self._tell_changes(report.findings, report.observed_at, first=before is None)
        _log.info(
            "audit.finished",
            domains=len(report.domains),
            exit_code=report.summary.exit_code,
            stored=store is not None and outcome.unstored is None,
            **{verdict: count for verdict, count in report.summary.by_verdict.items() if count},
        )
        self._propose(self.facts, report.observed_at)

    def judge_again(self, uuids: frozenset[str]) -> bool:
        """Look at these domains alone. Whether more is needed: an audit of the whole host.

        Raises facts.collect.DomainsUnseen where libvirt does not tell of them now.
        """
        if self.facts is None or self.standing is None or self.facts.host.libvirt.listing.reason is not None:
            return True
        now = datetime.now(UTC)
        observation = observe_again(self.facts, uuids, self._patience(self._blocked), observed_at=now)
        self.conditions.holds("libvirt", None)
        if observation.facts.host != self.facts.host:  # a switch of KVM's, a live patch, another QEMU: every domain is judged by it
            return True
        update, standing = judge_update(self.standing, observation.facts, self.rulebook, uuids)
        needs_audit = concerns_others(self.standing, standing)
        store = self._usable_store()
        if store is not None:
            try:
                update = store.record_update(observation.facts, update)
            except StoreOutdated:  # another audit came between, or none was stored: one of everything mends both
                needs_audit = True
            except StoreError as error:
                self._tell_storing(error)
                needs_audit = True
            else:
                self._tell_storing(None)
        self.facts, self.standing = observation.facts, standing
        self._runs = {uuid: run for uuid, run in self._runs.items() if uuid not in uuids}
        looked_at = {sample.uuid: sample for sample in observation.samples.domains}
        self._runs |= looked_at
        judged = tuple(domain.report for domain in update.domains if domain.report is not None)
        report = standing.head.model_copy(update={"domains": judged, "observed_at": update.observed_at})
        self._note_for_books(report, {uuid: run.incarnation for uuid, run in looked_at.items()})
        self._tell_metrics()
        for domain in update.domains:
            with bound(domain=domain.uuid):
                if domain.report is None:
                    _log.info("domain.gone")
                    continue
                failing = sorted({finding.rule for finding in domain.findings if finding.verdict in _WORTH_A_LINE})
                _log.info("domain.judged", name=domain.report.name, chain=domain.report.chain.state, failing=failing)
        return needs_audit

    def sample(self) -> None:
        """KVM's counters of every run that is known, beside the time. A run that is another one now is reported as changed."""
        if self.facts is None or self.facts.host.target.kind is not TargetKind.LOCAL:
            return
        tree = HostTree()
        traced = self._traced(tree)
        counters = read_counters(self.facts.host.target.uri or "", self._patience(self._blocked_counters))
        self._tell_unanswered("counters", counters.reason if self._runs else None)
        domains = []
        for uuid, run in self._runs.items():
            if run.incarnation is None or read_start_ticks(tree, run.pid) != run.incarnation.qemu_start_ticks:
                self.changed(uuid)
                continue
            told = None if counters.value is None else counters.value.get(uuid)
            domains.append(run.model_copy(update={"counters": told, "sampled": traced.get(uuid)}))
        if counters.value is None and not domains:
            return
        store = self._usable_store()
        if store is None:
            return
        samples = Samples(
            boot_id=self.facts.host.kernel.boot_id.value if counters.value is not None else None,
            observed_at=datetime.now(UTC),
            boottime_nanoseconds=boottime_nanoseconds(),
            boot_time=read_boot_time(tree),
            domains=tuple(sorted(domains, key=lambda sample: sample.uuid)),
        )
        try:
            store.record_samples(samples)
        except StoreError as error:
            self._tell_storing(error)

    def _traced(self, tree: HostTree) -> Mapping[str, SampledExits]:
        """What was traced of each domain just now; empty where nothing was."""
        if self.facts is None:
            return {}
        traced = self.tracing.trace(tree, self.facts.host.cpu.value, self._runs.values())
        if traced is None:
            return {}
        unlock = f" (unlock: {traced.unlock})" if traced.unlock is not None else ""
        self.conditions.holds("exit_trace", None if traced.reason is None else f"{traced.source}: {traced.reason}{unlock}")
        return traced.value or {}

    def keep_books(self) -> None:
        """Bring the ledger up to the last sample."""
        store = self._usable_store()
        if store is None:
            return
        try:
            self._books.keep(store, datetime.now(UTC), self.pulse)
            rates = self._books.last_hours(store, datetime.now(UTC))
        except StoreError as error:
            self.conditions.holds("ledger", str(error))
        else:
            self.conditions.holds("ledger", None)
            if rates is None:
                self.metrics.booked(None, None, None)
                return
            self.tracing.weigh(rates)
            if not self.tracing.wanted:
                self.conditions.holds("exit_trace", None)
            self.metrics.booked(
                rates.saved_cycles_per_second, rates.available_cycles_per_second, rates.unquantified_available_skip_exits_per_second
            )

    def remove_trace_leftovers(self) -> None:
        """Of a daemon that was killed while it counted exits by the kernel's histogram: each exit costs more until they are gone."""
        removed = remove_leftovers(HostTree())
        self.conditions.holds("trace_leftover", None if removed.reason is None else f"{removed.source}: {removed.reason}")

    def read_measurements(self, files: tuple[Path, ...]) -> None:
        """Take the measurements in these files into account from the next judgement on; those before are forgotten."""
        self._books.measurements, problems = read_measurements(files)
        self.conditions.holds("measurements", " ".join(problems) or None)

    def _note_for_books(self, report: AuditReport, incarnations: Mapping[str, Incarnation | None]) -> None:
        if self._store is None or report.host.target.kind is not TargetKind.LOCAL:
            return
        try:
            self._books.judged(self._store, report, incarnations, self.rulebook)
        except StoreError as error:
            self.conditions.holds("ledger", str(error))

    def push(self) -> None:
        """Push to the hub what is new, where there is one."""
        if self.pusher is None:
            return
        store = self._usable_store()
        if store is None:
            return
        try:
            self.pusher.push(store, self.standing.head.host.hostname if self.standing is not None else None)
        except StoreError as error:
            self.conditions.holds("push", str(error))
        else:
            self.conditions.holds("push", None)

    def push_to(self, pusher: "Pusher | None") -> None:
        """Another hub from now on, or none. What waits is kept for it."""
        if self.pusher is not None:
            self.pusher.close()
        self.pusher = pusher
        for condition in ("hub", "spool", "push"):
            self.conditions.holds(condition, None)

    def prune(self) -> None:
        """Forget what is older or larger than the settings allow."""
        if self._store is None:
            return
        kept = self.retention
        try:
            self._books.keep(self._store, datetime.now(UTC), self.pulse)  # what is forgotten unbooked is lost to the ledger
            pruned = self._store.prune(
                datetime.now(UTC), history=kept.history, samples=kept.samples, limit_bytes=kept.limit_bytes, pulse=self.pulse
            )
            self._store.ledger.prune(hours_before=datetime.now(UTC) - kept.ledger_hours, days_before=datetime.now(UTC) - kept.history)
        except StoreError as error:
            self.conditions.holds("retention", str(error))
            return
        self.conditions.holds("retention", None)
        if pruned.observations or pruned.samples or pruned.documents:
            _log.info("store.pruned", observations=pruned.observations, samples=pruned.samples, documents=pruned.documents)

    @property
    def may_know_more(self) -> bool:
        """Whether libvirt left something unanswered in the last audit, and nothing that was asked then blocks any more."""
        if self.facts is None:
            return False
        unanswered = self._was_blocked or self.facts.host.libvirt.listing.reason is not None
        return unanswered and len(self._blocked) == 0

    def judge_by(self, request: AuditRequest, rulebook: Rulebook, retention: Retention) -> None:
        """Other settings or another policy from now on: the next judgement is an audit of everything."""
        if request.target != self.request.target:
            self.close()  # a store keeps one host's history: whether it is this one's is looked at again
            # What the old libvirt does not answer says nothing of the new one.
            self._runs, self._blocked, self._blocked_counters = {}, BlockedCalls(), BlockedCalls()
        self.request, self.rulebook, self.retention = request, rulebook, retention
        self._proposals = Proposals()  # what the policy allows may be another thing now
        self.standing = None

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _propose(self, facts: FactsDocument, now: datetime) -> None:
        """Say that there is something to do, to whoever watches for it; where nothing is remembered, nobody does."""
        if self._store is None or self.request.state_dir is None or facts.host.target.kind is not TargetKind.LOCAL:
            return
        try:
            steps = self._proposals.consider(facts, self.rulebook, self.request.state_dir, now)
        except OSError as error:
            self.conditions.holds("proposal", f"{self.request.state_dir / PROPOSAL_NAME}: {(error.strerror or str(error)).lower()}")
            return
        self.conditions.holds("proposal", None)
        if steps is not None:
            _log.info("plan.proposed", steps=steps)

    def _patience(self, blocked: BlockedCalls) -> Patience:
        return Patience(self.request.call_timeout_seconds, self.pulse, blocked)

    def _usable_store(self) -> "HostStore | None":
        """The store, opened anew where it was not there, or is another file now."""
        if self._store is not None and not self._store.still_there():
            _log.warning("store.replaced", state_dir=str(self.request.state_dir))
            self.close()
        if self._store is None:
            self._store, obstacle = open_store(self.request)
            if self._store is None:
                self._tell_storing(obstacle)
        if self._store is not None:
            self._note_what_was_lost(self._store)
        return self._store

    def _tell_storing(self, error: StoreError | None) -> None:
        """What was to be stored was (None), or was not; then the store is opened anew: its file may be another one by then."""
        self.conditions.holds("store", str(error).partition(" The observation of ")[0] if error is not None else None)
        if error is not None:
            self.close()
            self.metrics.observation_dropped()
            if not error.noted and len(self._lost) < _MOST_LOST:
                self._lost.append((datetime.now(UTC), error.reason))

    def _note_what_was_lost(self, store: "HostStore") -> None:
        """Observations that could not even be noted become a gap as soon as there is something to note them in."""
        while self._lost:
            at, reason = self._lost[0]
            try:
                store.note_dropped(at, reason)
            except StoreError:
                return
            del self._lost[0]

    def _tell_unanswered(self, name: str, reason: str | None) -> None:
        """What libvirt does not tell; that it is not even asked again is the same fault, and no news."""
        if reason is None or not reason.startswith(NOT_ASKED) or not self.conditions.hold(name):
            self.conditions.holds(name, reason)

    def _tell_metrics(self) -> None:
        if self.standing is None or self.audited_at is None:
            return
        # The time of the last look at everything: a single domain that is looked at makes the rest no newer.
        self.metrics.observed(self.standing.summary, self.standing.head.host.kernel, self.standing.findings, self.audited_at)
        self.metrics.blocked_calls(len(self._blocked) + len(self._blocked_counters))
        if self._store is not None:
            self.metrics.store_size(self._store.size_bytes())

    def _tell_changes(self, findings: tuple[Finding, ...], observed_at: datetime, *, first: bool) -> None:
        """What has become of the verdicts since the last audit; of the first audit of this process, what fails."""
        if first:
            told = [finding for finding in findings if finding.verdict in _WORTH_A_LINE]
        else:
            told = [finding for finding in findings if finding.since == observed_at and finding.verdict is not Verdict.NOT_APPLICABLE]
        for finding in told[:_MOST_CHANGES]:
            subject = finding.subject
            log = _log.warning if finding.verdict in _WORTH_A_LINE else _log.info
            log("finding", rule=finding.rule, verdict=finding.verdict, subject=subject.name, subject_id=subject.id, reason=finding.reason)
        if len(told) > _MOST_CHANGES:
            _log.info("finding.more", count=len(told) - _MOST_CHANGES)
