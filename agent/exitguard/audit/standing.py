"""How a host stands between two audits: what the last one found, in counts, kept current domain by domain. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exitguard.audit.domain import HostJudgement
from exitguard.audit.judge import judge_again, judge_host, summarize
from exitguard.model.documents import AuditReport, FactsDocument, ReportUpdate, Summary
from exitguard.model.finding import Finding, SubjectKind, Verdict
from exitguard.model.pmu import ChainState
from exitguard.policy.schema import Rulebook

#: Rule and verdict of one finding.
Tally = tuple[str, Verdict]


@dataclass(frozen=True)
class Standing:
    """The last audit without its details, and what was judged anew since. A few words a domain, however long its evidence is."""

    #: The report's head: no domains, no findings; its summary is today's.
    head: AuditReport
    #: Findings about the host and the policy, which only an audit judges.
    about_host: tuple[Tally, ...]
    about_domains: Mapping[str, tuple[Tally, ...]]
    chains: Mapping[str, ChainState]
    #: What every domain was judged with.
    judgement: HostJudgement

    @property
    def summary(self) -> Summary:
        return self.head.summary

    @property
    def findings(self) -> Counter[Tally]:
        """How many findings there are, by rule and verdict."""
        counts = Counter(self.about_host)
        for tallies in self.about_domains.values():
            counts.update(tallies)
        return counts


def standing_of(report: AuditReport, facts: FactsDocument, rulebook: Rulebook) -> Standing:
    """How the host stands by `report`, which judged `facts`."""
    by_domain: dict[str, list[Tally]] = {domain.uuid: [] for domain in report.domains}
    about_host: list[Tally] = []
    for finding in report.findings:
        about_domain = finding.subject.kind is SubjectKind.DOMAIN and finding.subject.id in by_domain
        (by_domain[finding.subject.id] if about_domain else about_host).append(_tally(finding))
    judgement, _ = judge_host(facts, rulebook)
    return Standing(
        head=report.model_copy(update={"domains": (), "findings": ()}),
        about_host=tuple(about_host),
        about_domains={uuid: tuple(tallies) for uuid, tallies in by_domain.items()},
        chains={domain.uuid: domain.chain.state for domain in report.domains},
        judgement=judgement,
    )


def judge_update(standing: Standing, facts: FactsDocument, rulebook: Rulebook, uuids: frozenset[str]) -> tuple[ReportUpdate, Standing]:
    """The domains in `uuids` judged by `facts`, which are as of now, and how the host stands with them."""
    updates = judge_again(facts, rulebook, uuids)
    about_domains = {uuid: tallies for uuid, tallies in standing.about_domains.items() if uuid not in uuids}
    chains = {uuid: state for uuid, state in standing.chains.items() if uuid not in uuids}
    for update in updates:
        if update.report is not None:
            about_domains[update.uuid] = tuple(map(_tally, update.findings))
            chains[update.uuid] = update.report.chain.state
    summary = summarize(_verdicts(standing.about_host, about_domains.values()), chains.values())
    head = standing.head.model_copy(update={"observed_at": facts.observed_at, "summary": summary})
    judgement, _ = judge_host(facts, rulebook)
    now = Standing(head, standing.about_host, about_domains, chains, judgement)
    return ReportUpdate(observed_at=facts.observed_at, head=head, domains=updates), now


def concerns_others(before: Standing, now: Standing) -> bool:
    """Whether what was judged anew changes how *other* domains are judged: then only an audit tells how the host stands."""
    old, new = before.judgement, now.judgement
    return (old.clears_on_disk, old.nova_default.holds) != (new.clears_on_disk, new.nova_default.holds)


def _tally(finding: Finding) -> Tally:
    return finding.rule, finding.verdict


def _verdicts(about_host: Iterable[Tally], about_domains: Iterable[tuple[Tally, ...]]) -> Iterable[Verdict]:
    yield from (verdict for _, verdict in about_host)
    for tallies in about_domains:
        yield from (verdict for _, verdict in tallies)
