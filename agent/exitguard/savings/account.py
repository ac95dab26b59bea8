"""The account of one host: its report, its samples and the cost matrix together.

Which links hold is the last judgement's word. It speaks of the runs that it saw: whether enable_pmu is cleared is settled when a guest
starts, so a run that has ended since is not told of.
"""

from collections.abc import Iterable
from datetime import datetime

from exitguard.model.documents import AuditReport, DomainReport
from exitguard.model.kernel import KernelState
from exitguard.model.plan import SavingPerExit
from exitguard.model.pmu import ChainState, LinkName, Tri
from exitguard.model.samples import Samples
from exitguard.model.savings import DomainSavings, GuardSaving, PerSecond, Savings
from exitguard.policy.schema import Costs
from exitguard.savings.intervals import Interval, intervals
from exitguard.savings.matrix import saving_per_exit, unquantified
from exitguard.savings.skip_exits import bound

#: What has to hold for the guard to save anything in a run, in this order.
_LINKS = (LinkName.RUNNING, LinkName.PROPAGATED, LinkName.KERNEL)


def account(report: AuditReport, samples: Iterable[Samples], costs: Costs, *, since: datetime) -> Savings:
    """What the guard saves on this host, and what it would; `samples` in the order in which they were taken."""
    runs = _newest_runs(samples)
    per_exit = _per_exit(report, costs)
    domains = tuple(
        _domain(domain, runs[domain.uuid], report.host.kernel.state, per_exit[0])
        for domain in report.domains
        if domain.active and domain.uuid in runs
    )
    return Savings(
        host_id=report.host.id,
        hostname=report.host.hostname,
        since=since,
        judged_at=report.observed_at,
        per_exit=per_exit,
        saved_cycles_per_second=_sum(domains, GuardSaving.SAVED),
        available_cycles_per_second=_sum(domains, GuardSaving.AVAILABLE),
        domains=domains,
    )


def _newest_runs(samples: Iterable[Samples]) -> dict[str, list[Interval]]:
    """By domain, the intervals of its newest run that was sampled twice."""
    runs: dict[str, list[Interval]] = {}
    for interval in intervals(samples):
        uuid = interval.incarnation.domain_uuid
        known = runs.get(uuid)
        if known is None or known[-1].incarnation != interval.incarnation:
            runs[uuid] = [interval]
        else:
            known.append(interval)
    return runs


def _per_exit(report: AuditReport, costs: Costs) -> tuple[SavingPerExit, ...]:
    kernel = report.host.kernel
    if kernel.state is KernelState.UNKNOWN:
        return (unquantified("whether the running kernel has the guard is not known"),)
    if kernel.state in (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED):
        return (unquantified(f"the kernel is {kernel.state.value}: there is nothing to save on it"),)
    mitigations = report.host.mitigations.value
    classes = None if mitigations is None else mitigations.classes
    return saving_per_exit(costs, kernel.body, report.host.cpu.value, classes, saved_by="guard", guard=None)


def _domain(domain: DomainReport, run: list[Interval], kernel: KernelState, per_exit: SavingPerExit) -> DomainSavings:
    guard = _guard(domain, kernel)
    counted = [(interval, bound(interval.counts)) for interval in run if interval.counts is not None]
    seconds = sum(interval.seconds for interval, _ in counted)
    low, high = (sum(getattr(skips, end) for _, skips in counted) for end in ("low", "high"))
    rate = PerSecond(low=low / seconds, high=high / seconds) if seconds else PerSecond(low=0.0, high=0.0)
    worth = guard in (GuardSaving.SAVED, GuardSaving.AVAILABLE) and seconds > 0
    links = {link.name: link.holds for link in domain.chain.links}
    return DomainSavings(
        uuid=domain.uuid,
        name=domain.name,
        chain=domain.chain.state,
        held_back_by=next((name for name in _LINKS if links.get(name) is Tri.NO), None) if guard is GuardSaving.AVAILABLE else None,
        guard=guard,
        seconds=seconds,
        exits_per_second=sum(skips.exits for _, skips in counted) / seconds if seconds else 0.0,
        skip_exits_per_second=rate,
        cycles_per_second=_cycles(rate, per_exit) if worth else None,
        unaccounted=tuple(sorted({interval.reason for interval in run if interval.reason is not None})),
    )


def _guard(domain: DomainReport, kernel: KernelState) -> GuardSaving:
    chain = domain.chain
    if kernel in (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED):
        return GuardSaving.NOTHING
    if chain.state is ChainState.OPTED_OUT:
        return GuardSaving.OPTED_OUT
    holds = {link.name: link.holds for link in chain.links}
    needed = [holds.get(name, Tri.UNKNOWN) for name in _LINKS]
    if all(each is Tri.YES for each in needed):
        return GuardSaving.SAVED
    if Tri.NO in needed and chain.state is not ChainState.NOT_APPLICABLE:
        return GuardSaving.AVAILABLE
    return GuardSaving.UNKNOWN


def _cycles(rate: PerSecond, per_exit: SavingPerExit) -> PerSecond | None:
    if per_exit.unit != "cycles" or per_exit.low is None or per_exit.high is None:
        return None
    ends = [rate.low * per_exit.low, rate.low * per_exit.high, rate.high * per_exit.low, rate.high * per_exit.high]
    return PerSecond(low=min(ends), high=max(ends))


def _sum(domains: Iterable[DomainSavings], guard: GuardSaving) -> PerSecond | None:
    """Over the domains of which it is known in cycles; None where there is none such."""
    known = [each.cycles_per_second for each in domains if each.guard is guard and each.cycles_per_second is not None]
    return PerSecond(low=sum(each.low for each in known), high=sum(each.high for each in known)) if known else None
