"""What a report tells of: the judged hosts, one after the other, each as it may be told now."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from exitguard.model.documents import AuditReport, DecidingCode
from exitguard.model.evidence import Evidence
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN, Severity, SubjectKind, Verdict
from exitguard.model.pmu import ChainState

#: A host is looked at far more often than this; an older report does not speak for it any more.
STALE_AFTER = timedelta(days=1)


@dataclass(frozen=True)
class HostResult:
    """One host. Sums, states and steps are of `report`; lists are of `told`."""

    report: AuditReport
    #: The audit is too old to speak for the host now: it is no pass any more.
    stale: bool
    #: A file, or the store.
    source: str
    #: The verdicts that were asked for; none: all.
    asked: frozenset[Verdict] = frozenset()

    @property
    def exit_code(self) -> int:
        """What is said of the host: a stale host is not compliant, it is unknown."""
        code = self.report.summary.exit_code
        return EXIT_UNKNOWN if self.stale and code == EXIT_COMPLIANT else code

    @property
    def name(self) -> str:
        """The host's name where it was seen, else its id."""
        return (self.report.host.hostname or "").strip() or self.report.host.id

    @property
    def told(self) -> AuditReport:
        """The report with the findings that were asked for and the domains that they are about; the summary stays that of all."""
        if not self.asked:
            return self.report
        findings = tuple(each for each in self.report.findings if each.verdict in self.asked)
        about = {each.subject.id for each in findings if each.subject.kind is SubjectKind.DOMAIN}
        domains = tuple(each for each in self.report.domains if each.uuid in about)
        return self.report.model_copy(update={"findings": findings, "domains": domains})

    @property
    def by_verdict(self) -> dict[str, int]:
        """Of all findings as they may be told now: what a stale host passed is not known any more."""
        return _without(self.report.summary.by_verdict, Verdict.PASS, Verdict.UNKNOWN) if self.stale else self.report.summary.by_verdict

    @property
    def by_chain(self) -> dict[str, int]:
        """Of all domains as they may be told now: what was effective on a stale host is not known to be so any more."""
        chains = self.report.summary.by_chain
        return _without(chains, ChainState.EFFECTIVE, ChainState.UNKNOWN) if self.stale else chains

    @property
    def fails_high(self) -> bool:
        """Whether a rule of severity high fails."""
        return any(each.verdict is Verdict.FAIL and each.severity is Severity.HIGH for each in self.report.findings)

    def only(self, verdicts: Collection[Verdict]) -> "HostResult":
        """The same where no findings but those of these verdicts are listed. Of no verdict: all."""
        return replace(self, asked=frozenset(verdicts))

    def verdict_now(self, verdict: Verdict) -> Verdict:
        """Of a finding, as it may be told now."""
        return Verdict.UNKNOWN if self.stale and verdict is Verdict.PASS else verdict

    def code_of(self, evidence: Iterable[Evidence]) -> DecidingCode | None:
        """The instructions that such evidence was read from; None where it is none of the machine code."""
        code = self.report.host.kernel.code
        return code if code is not None and any(each.source == code.path for each in evidence) else None


def _without(counts: Mapping[str, int], gone: str, instead: str) -> dict[str, int]:
    return {**counts, gone: 0, instead: counts.get(instead, 0) + counts.get(gone, 0)}
