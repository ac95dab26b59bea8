"""What many hosts come to: counts, groups, what is wrong most, what to do first, and what it is worth. Hosts are added one by one."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from exitguard.model.documents import DecidingCode, DomainReport
from exitguard.model.evidence import Evidence
from exitguard.model.finding import (
    EXIT_COMPLIANT,
    EXIT_ERROR,
    EXIT_NOT_COMPLIANT,
    EXIT_UNKNOWN,
    Finding,
    Severity,
    SubjectKind,
    Verdict,
)
from exitguard.model.kernel import Body, KernelState
from exitguard.model.pmu import ChainState
from exitguard.model.rates import PerSecond
from exitguard.report.history import Moment
from exitguard.report.result import HostResult
from exitguard.report.savings_total import SavingsTotal
from exitguard.report.steps import MOST_NAMES, Step, Steps, added
from exitguard.report.words import label

#: Error beats failure beats unknown.
WORST_FIRST = (EXIT_ERROR, EXIT_NOT_COMPLIANT, EXIT_UNKNOWN, EXIT_COMPLIANT)
_VERDICT_ORDER = (Verdict.ERROR, Verdict.FAIL, Verdict.UNKNOWN, Verdict.WAIVED, Verdict.NOT_APPLICABLE, Verdict.PASS)
_SEVERITY_ORDER = tuple(Severity)


class GroupKey(StrEnum):
    """By what hosts or domains are put together."""

    KERNEL = "kernel"
    QEMU = "qemu"
    CPU = "cpu"
    CHAIN = "chain"
    PROJECT = "project"
    RULE = "rule"


@dataclass(frozen=True, slots=True)
class HostLine:
    """What is kept of a host."""

    id: str
    name: str
    exit_code: int
    stale: bool
    observed_at: datetime
    kernel_release: str | None
    kernel_state: KernelState
    body: Body | None
    domains: int
    by_verdict: dict[str, int]
    by_chain: dict[str, int]
    saved: PerSecond | None
    available: PerSecond | None


@dataclass(slots=True)
class Problem:
    """Findings of one rule with one verdict, for one reason. What decides is kept of the first."""

    rule: str
    verdict: Verdict
    severity: Severity
    reason: str
    remedy: str | None
    waiver: str | None
    evidence: tuple[Evidence, ...]
    since: datetime | None
    count: int = 0
    #: Names of hosts, each once; the first few.
    hosts: list[str] = field(default_factory=list)
    #: `domain on host`, or a host alone; the first few.
    subjects: list[str] = field(default_factory=list)
    host_count: int = 0
    #: The id of the host that was counted last: hosts come one after the other.
    last_host: str = ""
    #: The instructions that the evidence is read from, of the first that has any.
    code: DecidingCode | None = None


@dataclass(slots=True)
class Group:
    """Hosts, or domains, that are alike in what was asked for."""

    name: str
    hosts: int = 0
    domains: int = 0
    #: Hosts by exit code; empty where the group is of domains.
    by_exit_code: Counter[int] = field(default_factory=Counter)
    by_verdict: Counter[str] = field(default_factory=Counter)
    available: PerSecond | None = None


@dataclass
class Overview:
    """Add hosts, then read."""

    group_by: GroupKey | None = None
    hosts: list[HostLine] = field(default_factory=list)
    by_exit_code: Counter[int] = field(default_factory=Counter)
    by_verdict: Counter[str] = field(default_factory=Counter)
    by_chain: Counter[str] = field(default_factory=Counter)
    by_kernel: Counter[KernelState] = field(default_factory=Counter)
    stale: int = 0
    domains: int = 0
    #: Of the hosts with a ledger that is not stale.
    savings: SavingsTotal = field(default_factory=SavingsTotal)
    #: A sentence for each report that could not be read: what it would say is missing here.
    unread: list[str] = field(default_factory=list)
    #: Whether a rule of severity high fails anywhere, whatever verdicts were asked for.
    fails_high: bool = False
    #: When how many hosts were how, oldest first; empty where there is no history.
    history: tuple[Moment, ...] = ()
    _steps: Steps = field(default_factory=Steps)
    _problems: dict[tuple[str | None, ...], Problem] = field(default_factory=dict)
    _groups: dict[str, Group] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """That of all hosts together; no host at all is unknown, and one that could not be read is an error."""
        if self.unread:
            return EXIT_ERROR
        return next((code for code in WORST_FIRST if self.by_exit_code[code]), EXIT_UNKNOWN)

    def add(self, result: HostResult) -> None:
        """Count one host."""
        report = result.report
        savings = report.savings
        rates = savings.now if savings is not None and not result.stale else None
        line = HostLine(
            id=report.host.id,
            name=result.name,
            exit_code=result.exit_code,
            stale=result.stale,
            observed_at=report.observed_at,
            kernel_release=report.host.kernel.release,
            kernel_state=report.host.kernel.state,
            body=report.host.kernel.body,
            domains=sum(report.summary.by_chain.values()),
            by_verdict=result.by_verdict,
            by_chain=result.by_chain,
            saved=rates.saved_cycles_per_second if rates else None,
            available=rates.available_cycles_per_second if rates else None,
        )
        self.hosts.append(line)
        self.by_exit_code[line.exit_code] += 1
        self.by_verdict.update(line.by_verdict)
        self.by_chain.update(line.by_chain)
        self.by_kernel[line.kernel_state] += 1
        self.stale += result.stale
        self.fails_high |= result.fails_high
        self.domains += line.domains
        if savings is not None and not result.stale:
            self.savings.add(savings)
        self._steps.add(result)
        for finding in result.told.findings:
            self._note(finding, result)
        self._put(result, line)

    @property
    def worst_hosts(self) -> list[HostLine]:
        """The hosts, those that fail most first."""
        return sorted(self.hosts, key=lambda each: (WORST_FIRST.index(each.exit_code), -each.by_verdict.get(Verdict.FAIL, 0), each.name))

    @property
    def problems(self) -> list[Problem]:
        """What does not pass, the worst and most frequent first."""
        found = [each for each in self._problems.values() if each.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE)]
        return sorted(
            found, key=lambda each: (_VERDICT_ORDER.index(each.verdict), _SEVERITY_ORDER.index(each.severity), -each.count, each.rule)
        )

    @property
    def steps(self) -> list[Step]:
        """What to do next, the first first."""
        return self._steps.ordered(len(self.unread))

    @property
    def groups(self) -> list[Group]:
        """The groups that were asked for, those with the most that fails first."""
        return sorted(self._groups.values(), key=lambda each: (-each.by_verdict[Verdict.FAIL], -each.hosts - each.domains, each.name))

    def _note(self, finding: Finding, result: HostResult) -> None:
        key = (finding.rule, finding.verdict, finding.reason, finding.severity, finding.remedy, finding.waiver)
        problem = self._problems.get(key)
        if problem is None:
            problem = self._problems[key] = Problem(
                finding.rule,
                finding.verdict,
                finding.severity,
                finding.reason,
                finding.remedy,
                finding.waiver,
                finding.evidence,
                finding.since,
                code=result.code_of(finding.evidence),
            )
        problem.count += 1
        if finding.since is not None:
            problem.since = min(problem.since or finding.since, finding.since)
        if problem.last_host != result.report.host.id:
            problem.last_host = result.report.host.id
            problem.host_count += 1
            if len(problem.hosts) < MOST_NAMES:
                problem.hosts.append(result.name)
        if len(problem.subjects) < MOST_NAMES:
            named = finding.subject.name or finding.subject.id
            problem.subjects.append(named if finding.subject.id == result.report.host.id else f"{named} on {result.name}")

    def _put(self, result: HostResult, line: HostLine) -> None:
        if self.group_by is None:
            return
        if self.group_by in (GroupKey.KERNEL, GroupKey.QEMU, GroupKey.CPU):
            group = self._group(_host_group(self.group_by, result))
            group.hosts += 1
            group.domains += line.domains
            group.by_exit_code[line.exit_code] += 1
            group.by_verdict.update(line.by_verdict)
            group.available = added(group.available, line.available)
        elif self.group_by is GroupKey.RULE:
            of_host: dict[str, set[str]] = {}
            for finding in result.report.findings:
                group = self._group(finding.rule)
                group.by_verdict[result.verdict_now(finding.verdict)] += 1
                about = of_host.setdefault(finding.rule, set())
                if finding.subject.kind is SubjectKind.DOMAIN:
                    about.add(finding.subject.id)
            for rule, domains in of_host.items():
                self._groups[rule].hosts += 1
                self._groups[rule].domains += len(domains)
        else:
            self._put_domains(result)

    def _put_domains(self, result: HostResult) -> None:
        verdicts: dict[str, Counter[str]] = {}
        for finding in result.report.findings:
            verdicts.setdefault(finding.subject.id, Counter())[result.verdict_now(finding.verdict)] += 1
        seen: set[str] = set()
        for domain in result.report.domains:
            name = _chain(domain, stale=result.stale) if self.group_by is GroupKey.CHAIN else _project(domain)
            group = self._group(name)
            group.domains += 1
            group.hosts += name not in seen
            seen.add(name)
            group.by_verdict.update(verdicts.get(domain.uuid, {}))

    def _group(self, name: str) -> Group:
        return self._groups.setdefault(name, Group(name))


def _host_group(key: GroupKey, result: HostResult) -> str:
    host = result.report.host
    if key is GroupKey.KERNEL:
        return f"{host.kernel.release or 'not known'} ({label(host.kernel.state)})"
    if key is GroupKey.CPU:
        return host.cpu.value.model_name if host.cpu.value is not None else "not known"
    versions = sorted(_qemu_versions(result))
    return ", ".join(versions) or "not known"


def _qemu_versions(result: HostResult) -> Iterator[str]:
    for binary in result.report.host.qemu.value or ():
        yield binary.version.value.version if binary.version.value is not None else "not known"


def _chain(domain: DomainReport, *, stale: bool) -> str:
    state = domain.chain.state
    return label(ChainState.UNKNOWN if stale and state is ChainState.EFFECTIVE else state)


def _project(domain: DomainReport) -> str:
    return domain.project or "no project"
