"""The account of a host out of the sums of its ledger. Pure.

Cycles are added up where they are known, and nothing else is: an unquantified share is told as skips a second, never as a zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from exitguard.model.documents import AuditReport
from exitguard.model.ledger import GuardSaving, LedgerSum, RunStanding, Worth, cycles
from exitguard.model.record import Observed
from exitguard.model.samples import Incarnation
from exitguard.model.savings import CostUsed, DomainSavings, OwnUse, Period, PerSecond, Savings, StandingSavings, Worthwhile
from exitguard.policy.schema import Costs
from exitguard.savings.matrix import percent_of_exit
from exitguard.savings.worth import instructions_of_table


@dataclass(frozen=True)
class Books:
    """What the ledger holds of one time, as store/ledger.py adds it up."""

    since: datetime
    until: datetime
    resolution: Literal["hour", "day"]
    by_run: tuple[LedgerSum, ...]
    #: The same hours or days by time, and those before that are worth a look beside them.
    by_time: tuple[LedgerSum, ...]
    own: OwnUse
    unaccounted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sums:
    """The host's rates, by standing and together; None where nothing of it is known in cycles."""

    observed_seconds: float
    standings: tuple[StandingSavings, ...]

    @property
    def saved(self) -> PerSecond | None:
        return _sum(each.saved_cycles_per_second for each in self.standings)

    @property
    def attributable(self) -> PerSecond | None:
        return _sum(each.saved_cycles_per_second for each in self.standings if each.standing.attributable)

    @property
    def available(self) -> PerSecond | None:
        return _sum(each.available_cycles_per_second for each in self.standings)

    @property
    def unquantified_skips(self) -> PerSecond:
        unknown = (each.skip_exits_per_second for each in self.standings if _is_unquantified(each.standing))
        return _sum(unknown) or PerSecond(low=0.0, high=0.0)


def sums_of(by_run: Iterable[LedgerSum], by_time: Iterable[LedgerSum], agent_seconds: float) -> Sums:
    """The rates of a time, from the same rows added up by run and by hour, and how long the agent ran in it.

    While the agent ran and no guest did, nothing was saved: that time counts. So does time that was accounted for afterwards.
    """
    seconds = max(_observed_seconds(by_time), agent_seconds)
    return Sums(seconds, _by_standing(by_run, seconds))


def account(report: AuditReport, books: Books, hertz: Observed[int], costs: Costs) -> Savings:
    """The account of the host that `report` is about; `hertz` is the frequency by which cycles become cores.

    `costs` are told in instructions only: what counts in cycles is in the ledger, as it was when its rows were made.
    """
    within = [each for each in books.by_time if each.begin is not None and each.begin >= books.since]
    sums = sums_of(books.by_run, within, books.own.running_seconds)
    saved, available = sums.saved, sums.available
    own = None if hertz.value is None or not books.own.running_seconds else books.own.cpu_seconds / books.own.running_seconds * hertz.value
    mitigations = None if report.host.mitigations.value is None else report.host.mitigations.value.classes
    worthwhile, reason = _worthwhile(sums.standings, available, own, unquantified=sums.unquantified_skips.high > 0)
    return Savings(
        host_id=report.host.id,
        hostname=report.host.hostname,
        kernel=report.host.kernel.state,
        body=report.host.kernel.body,
        judged_at=report.observed_at,
        since=books.since,
        until=books.until,
        resolution=books.resolution,
        observed_seconds=sums.observed_seconds,
        saved_cycles_per_second=saved,
        attributable_cycles_per_second=sums.attributable,
        available_cycles_per_second=available,
        unquantified_skip_exits_per_second=sums.unquantified_skips,
        own=books.own,
        hertz=hertz,
        own_cycles_per_second=own,
        net_saved_cycles_per_second=_less(saved, own),
        saved_cores=_cores(saved, hertz),
        available_cores=_cores(available, hertz),
        worthwhile=worthwhile,
        worthwhile_reason=reason,
        costs=_costs_used(sums.standings, costs),
        instructions_per_exit=instructions_of_table(costs, report.host.kernel.body, report.host.cpu.value, mitigations),
        standings=sums.standings,
        domains=tuple(_domain(each) for each in books.by_run),
        periods=_periods(books.by_time),
        unaccounted=books.unaccounted,
    )


def _costs_used(standings: Iterable[StandingSavings], costs: Costs) -> tuple[CostUsed, ...]:
    """The rows that any standing names, as they are now."""
    worths = (worth for each in standings for worth in (each.standing.saved, each.standing.available) if worth is not None)
    named = {cost for worth in worths for cost in worth.costs}
    return tuple(
        CostUsed(
            id=row.id,
            provenance=row.provenance.value,
            cycles_per_exit=row.cycles_per_exit,
            percent_of_exit=percent_of_exit(row),
            note=row.note,
        )
        for row in costs.costs
        if row.id in named and row.cycles_per_exit is not None
    )


def _observed_seconds(by_time: Iterable[LedgerSum]) -> float:
    """The longest that any run was accounted for in each period, added up."""
    longest: dict[datetime, int] = {}
    for each in by_time:
        if each.begin is not None:
            longest[each.begin] = max(longest.get(each.begin, 0), each.longest_milliseconds)
    return sum(longest.values()) / 1000


def _by_standing(by_run: Iterable[LedgerSum], seconds: float) -> tuple[StandingSavings, ...]:
    """What saves most, or would, first."""
    sums: dict[RunStanding, list[LedgerSum]] = {}
    for each in by_run:
        sums.setdefault(each.standing, []).append(each)
    found = [
        StandingSavings(
            standing=standing,
            runs=len(runs),
            exits_per_second=_rate(sum(run.exits for run in runs), seconds),
            skip_exits_per_second=PerSecond(
                low=_rate(sum(run.skip_exits_low for run in runs), seconds), high=_rate(sum(run.skip_exits_high for run in runs), seconds)
            ),
            saved_cycles_per_second=_worth_per_second(standing.saved, runs, seconds),
            available_cycles_per_second=_worth_per_second(standing.available, runs, seconds),
        )
        for standing, runs in sums.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.skip_exits_per_second.high))


def _domain(each: LedgerSum) -> DomainSavings:
    seconds = each.accounted_milliseconds / 1000
    return DomainSavings(
        uuid=Incarnation.from_key(each.run).domain_uuid,
        name=each.domain_name,
        run=each.run,
        standing=each.standing,
        accounted_seconds=seconds,
        spread_seconds=each.spread_milliseconds / 1000,
        exits=each.exits,
        skip_exits_low=each.skip_exits_low,
        skip_exits_high=each.skip_exits_high,
        exits_per_second=_rate(each.exits, seconds),
        skip_exits_per_second=PerSecond(low=_rate(each.skip_exits_low, seconds), high=_rate(each.skip_exits_high, seconds)),
        saved_cycles_per_second=_worth_per_second(each.standing.saved, [each], seconds),
        available_cycles_per_second=_worth_per_second(each.standing.available, [each], seconds),
    )


def _periods(by_time: Iterable[LedgerSum]) -> tuple[Period, ...]:
    by_begin: dict[datetime, list[LedgerSum]] = {}
    for each in by_time:
        if each.begin is not None:
            by_begin.setdefault(each.begin, []).append(each)
    periods = []
    for begin, sums in sorted(by_begin.items()):
        saved = _added(cycles(each.standing.saved, each.skip_exits_low, each.skip_exits_high) for each in sums)
        available = _added(cycles(each.standing.available, each.skip_exits_low, each.skip_exits_high) for each in sums)
        periods.append(
            Period(
                begin=begin,
                exits=sum(each.exits for each in sums),
                saved_cycles_low=None if saved is None else saved[0],
                saved_cycles_high=None if saved is None else saved[1],
                available_cycles_low=None if available is None else available[0],
                available_cycles_high=None if available is None else available[1],
            )
        )
    return tuple(periods)


def _worthwhile(
    standings: Iterable[StandingSavings], available: PerSecond | None, own: float | None, *, unquantified: bool
) -> tuple[Worthwhile, str]:
    open_ones = [each for each in standings if each.standing.guard is GuardSaving.AVAILABLE]
    if not open_ones and not any(each.standing.guard is GuardSaving.UNKNOWN for each in standings):
        return Worthwhile.NOTHING_LEFT, "no run that was accounted for could save more"
    if available is None:
        return Worthwhile.UNKNOWN, "what a change would save is not known in cycles for this kernel, processor and mitigations"
    if own is None:
        return Worthwhile.UNKNOWN, "what the agent itself costs is not known in cycles"
    net = available.low - own
    if net > 0:
        return Worthwhile.YES, f"at least {net:,.0f} cycles a second more than the agent uses"
    if unquantified or available.at_least:
        return Worthwhile.UNKNOWN, "what is known of it does not exceed what the agent uses, and a part of it is not known in cycles"
    return Worthwhile.NO, f"the low bound of what a change would save is {-net:,.0f} cycles a second less than the agent uses"


def _is_unquantified(standing: RunStanding) -> bool:
    match standing.guard:
        case GuardSaving.SAVED:
            return standing.saved is None
        case GuardSaving.AVAILABLE:
            return standing.available is None
        case GuardSaving.UNKNOWN:
            return True
        case _:
            return False


def _worth_per_second(worth: Worth | None, runs: Iterable[LedgerSum], seconds: float) -> PerSecond | None:
    found = _added(cycles(worth, run.skip_exits_low, run.skip_exits_high) for run in runs)
    if worth is None or found is None:
        return None
    return PerSecond(low=_rate(found[0], seconds), high=_rate(found[1], seconds), at_least=worth.at_least)


def _added(parts: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The sum of those that are known; None where none is."""
    known = [part for part in parts if part is not None]
    return (sum(low for low, _ in known), sum(high for _, high in known)) if known else None


def _sum(parts: Iterable[PerSecond | None]) -> PerSecond | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return PerSecond(
        low=sum(part.low for part in known), high=sum(part.high for part in known), at_least=any(part.at_least for part in known)
    )


def _less(rate: PerSecond | None, less: float | None) -> PerSecond | None:
    return None if rate is None or less is None else rate.model_copy(update={"low": rate.low - less, "high": rate.high - less})


def _cores(rate: PerSecond | None, hertz: Observed[int]) -> PerSecond | None:
    if rate is None or hertz.value is None:
        return None
    return rate.model_copy(update={"low": rate.low / hertz.value, "high": rate.high / hertz.value})


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0
