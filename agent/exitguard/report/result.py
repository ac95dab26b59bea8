"""What a report tells of: the judged hosts, one after the other, each as it may be told now."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from exitguard.model.documents import AuditReport, DecidingCode
from exitguard.model.evidence import Evidence
from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN, Finding, Severity, SubjectKind, Verdict


@dataclass(frozen=True)
class HostResult:
    """One host. `report.findings` are those that were asked for; `report.summary` is of all."""

    report: AuditReport
    #: The audit is too old to speak for the host now: it is no pass any more.
    stale: bool
    #: A file, or the store.
    source: str
    #: Findings that were not asked for.
    hidden: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        """What is said of the host: a stale host is not compliant, it is unknown."""
        code = self.report.summary.exit_code
        return EXIT_UNKNOWN if self.stale and code == EXIT_COMPLIANT else code

    @property
    def name(self) -> str:
        """The host's name where it was seen, else its id."""
        return self.report.host.hostname or self.report.host.id

    def code_of(self, evidence: Iterable[Evidence]) -> DecidingCode | None:
        """The instructions that such evidence was read from; None where it is none of the machine code."""
        code = self.report.host.kernel.code
        return code if code is not None and any(each.source == code.path for each in evidence) else None

    @property
    def fails_high(self) -> bool:
        """Whether a rule of severity high fails, asked for or not."""
        return any(each.verdict is Verdict.FAIL and each.severity is Severity.HIGH for each in (*self.report.findings, *self.hidden))

    def only(self, verdicts: Collection[Verdict]) -> "HostResult":
        """The findings of these verdicts and the domains that they are about; the summary stays that of all. Of no verdict: all."""
        if not verdicts:
            return self
        findings = tuple(each for each in self.report.findings if each.verdict in verdicts)
        about = {each.subject.id for each in findings if each.subject.kind is SubjectKind.DOMAIN}
        domains = tuple(each for each in self.report.domains if each.uuid in about)
        return replace(
            self,
            report=self.report.model_copy(update={"findings": findings, "domains": domains}),
            hidden=tuple(each for each in self.report.findings if each.verdict not in verdicts),
        )
