"""CSV for spreadsheets and scripts (RFC 4180): one row a finding, with what it takes to sort and filter.

UTF-8 without a byte order mark: programs read it as it is, and LibreOffice asks. What a spreadsheet would compute is a text
(report/cells.py). A host without findings of the verdicts that were asked for has one row that says so by empty cells.
"""

from collections.abc import Iterator, Mapping

from exitguard.model.documents import DomainReport
from exitguard.model.finding import Finding, SubjectKind
from exitguard.model.time import format_rfc3339
from exitguard.report.cells import csv_lines
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import Overview
from exitguard.report.result import HostResult
from exitguard.report.states import state_word

COLUMNS = (
    "observed_at",
    "host_id",
    "host",
    "host_state",
    "stale",
    "kernel_release",
    "kernel_state",
    "rule",
    "severity",
    "verdict",
    "subject_kind",
    "subject_id",
    "subject",
    "reason",
    "since",
    "remedy",
    "waiver",
    "pmu_persistent",
    "pmu_live",
    "chain_state",
    "next_action",
    "owner",
    "project",
    "evidence",
)
_OF_A_DOMAIN = 6


class CsvWriter:
    """Rows as the hosts come."""

    def __init__(self, setting: Setting) -> None:
        self._look = setting.look

    def begin(self) -> Iterator[str]:
        yield csv_lines([COLUMNS], self._look, end="\r\n")

    def host(self, result: HostResult) -> Iterator[str]:
        report = result.told
        head = (
            format_rfc3339(report.observed_at),
            report.host.id,
            result.name,
            state_word(result.exit_code),
            "yes" if result.stale else "no",
            report.host.kernel.release,
            report.host.kernel.state,
        )
        domains = {domain.uuid: domain for domain in report.domains}
        rows = [(*head, *_finding(finding), *_domain(_about(finding, domains)), _evidence(finding)) for finding in report.findings]
        nothing = (*head, *(None,) * (len(COLUMNS) - len(head)))
        yield csv_lines(rows or [nothing], self._look, end="\r\n")

    def end(self, overview: Overview) -> Iterator[str]:
        # A row is a finding: sums are the spreadsheet's. What could not be read is a row that says so.
        place = COLUMNS.index("reason")
        rows = [
            tuple("error" if column == "host_state" else sentence if number == place else None for number, column in enumerate(COLUMNS))
            for sentence in overview.unread
        ]
        yield csv_lines(rows, self._look, end="\r\n")


def _about(finding: Finding, domains: Mapping[str, DomainReport]) -> DomainReport | None:
    return domains.get(finding.subject.id) if finding.subject.kind is SubjectKind.DOMAIN else None


def _finding(finding: Finding) -> tuple[str | None, ...]:
    return (
        finding.rule,
        finding.severity,
        finding.verdict,
        finding.subject.kind,
        finding.subject.id,
        finding.subject.name,
        finding.reason,
        None if finding.since is None else format_rfc3339(finding.since),
        finding.remedy,
        finding.waiver,
    )


def _evidence(finding: Finding) -> str:
    return "; ".join(f"{each.source}: {each.value}" for each in finding.evidence)


def _domain(domain: DomainReport | None) -> tuple[str | None, ...]:
    if domain is None:
        return (None,) * _OF_A_DOMAIN
    pmu, chain = domain.pmu, domain.chain
    return (pmu.persistent, pmu.live, chain.state, chain.next_action, domain.owner.name, domain.project)
