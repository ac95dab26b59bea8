"""The account of a host out of the sums of its ledger. Pure.

Cycles are added up where they are known, and nothing else is: an unquantified share is told as skips a second, never as a zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from exitguard.model.documents import AuditReport
from exitguard.model.ledger import GuardSaving, LedgerSum, RunStanding, Unaccounted, Worth, cycles
from exitguard.model.rates import HostSavings, OwnUse, PerSecond, Rates, SampledRates, StandingSavings, Worthwhile
from exitguard.model.record import Observed
from exitguard.model.samples import Incarnation
from exitguard.model.savings import CostUsed, DomainSavings, Period, Savings
from exitguard.policy.schema import Costs
from exitguard.savings.exit_reasons import TRACED_EXIT_CYCLES
from exitguard.savings.matrix import percent_of_exit
from exitguard.savings.worth import instructions_of_table

#: What a guest saves that did not ask for it is nobody's gain.
_COUNTED = (GuardSaving.SAVED, GuardSaving.AVAILABLE, GuardSaving.OPTED_OUT, GuardSaving.UNKNOWN)


#: Fewer traced exits say too little of the others: a share of one half is known to some 3 % by a thousand.
LEAST_TRACED = 1000
#: A ledger that ends longer ago says nothing of now: the daemon brings it up to date every quarter of an hour.
OUTDATED_AFTER = timedelta(hours=2)


@dataclass(frozen=True)
class Sums:
    """What the ledger holds of one time, added up by run."""

    since: datetime
    until: datetime
    by_run: tuple[LedgerSum, ...]
    watched_seconds: float
    own: OwnUse
    #: Runs that run, may save more or are not judged yet, and are accounted for nowhere in this time.
    unaccounted_runs: int = 0


@dataclass(frozen=True)
class Books:
    """What the ledger holds, as store/ledger.py reads it."""

    booked_until: datetime | None
    present: Sums
    asked: Sums
    resolution: Literal["hour", "day"]
    by_time: tuple[LedgerSum, ...] = ()
    unaccounted: tuple[Unaccounted, ...] = ()


def account(report: AuditReport, books: Books, hertz: Observed[int], costs: Costs) -> Savings:
    """The account of the host that `report` is about; `hertz` is the frequency by which cycles become cores.

    `costs` are told beside the sums: what counts in cycles is in the ledger, as it was when its rows were made.
    """
    now, asked = (rates_of(sums, hertz) for sums in (books.present, books.asked))
    worthwhile, reason = _worthwhile(now, books.booked_until, books.asked.until, books.present.unaccounted_runs)
    mitigations = None if report.host.mitigations.value is None else report.host.mitigations.value.classes
    return Savings(
        host_id=report.host.id,
        hostname=report.host.hostname,
        kernel=report.host.kernel.state,
        body=report.host.kernel.body,
        judged_at=report.observed_at,
        booked_until=books.booked_until,
        hertz=hertz,
        now=now,
        worthwhile=worthwhile,
        worthwhile_reason=reason,
        asked=asked,
        domains=tuple(_domain(each) for each in books.asked.by_run),
        resolution=books.resolution,
        periods=_periods(books.by_time),
        costs=_costs_used((*now.standings, *asked.standings), costs),
        instructions_per_exit=instructions_of_table(costs, report.host.kernel.body, report.host.cpu.value, mitigations),
        unaccounted=books.unaccounted,
    )


def savings_now(booked_until: datetime | None, present: Sums, hertz: Observed[int], at: datetime) -> HostSavings:
    """What a host saves at `at`, and whether a change pays; `present` is of the runs that run, as they stand now."""
    now = rates_of(present, hertz)
    worthwhile, reason = _worthwhile(now, booked_until, at, present.unaccounted_runs)
    return HostSavings(booked_until=booked_until, hertz=hertz, now=now, worthwhile=worthwhile, worthwhile_reason=reason)


def rates_of(sums: Sums, hertz: Observed[int]) -> Rates:
    """The host over a time, by standing and together."""
    standings = _by_standing(sums.by_run, sums.watched_seconds)
    counted = [each for each in standings if each.standing.guard in _COUNTED and each.skip_exits_per_second.high > 0]
    unknown_saved = _skips(each for each in counted if each.standing.saved is None)
    unknown_available = _skips(each for each in counted if each.standing.available is None)
    saved = _known(_sum(each.saved_cycles_per_second for each in counted), unknown_saved)
    available = _known(_sum(each.available_cycles_per_second for each in counted), unknown_available)
    own = None
    if hertz.value is not None and sums.own.running_seconds:
        own = sums.own.cpu_seconds / sums.own.running_seconds * hertz.value
        # What tracing takes, it takes in the threads of guests.
        own += _rate(sum(run.sampled_exits for run in sums.by_run) * TRACED_EXIT_CYCLES, sums.watched_seconds)
    return Rates(
        since=sums.since,
        until=sums.until,
        watched_seconds=sums.watched_seconds,
        saved_cycles_per_second=saved,
        attributable_cycles_per_second=_sum(_attributable(each, sums.by_run, sums.watched_seconds) for each in counted),
        available_cycles_per_second=available,
        unquantified_saved_skip_exits_per_second=unknown_saved,
        unquantified_available_skip_exits_per_second=unknown_available,
        own=sums.own,
        own_cycles_per_second=own,
        net_saved_cycles_per_second=_less(saved, own),
        saved_cores=_cores(saved, hertz),
        available_cores=_cores(available, hertz),
        standings=standings,
        sampled=_sampled(sums.by_run, sums.watched_seconds),
    )


def _sampled(by_run: tuple[LedgerSum, ...], seconds: float) -> SampledRates | None:
    """All runs with their skips as traced, where enough were; the others with their bounds."""
    if not any(_traced_enough(run) for run in by_run):
        return None
    standings = _by_standing((as_traced(run) for run in by_run), seconds)
    counted = [each for each in standings if each.standing.guard in _COUNTED and each.skip_exits_per_second.high > 0]
    traced, whole = sum(run.exits for run in by_run if _traced_enough(run)), sum(run.exits for run in by_run)
    return SampledRates(
        traced_exits=sum(run.sampled_exits for run in by_run),
        share_of_exits=traced / whole if whole else 0.0,
        skip_exits_per_second=_skips(standings),
        saved_cycles_per_second=_known(
            _sum(each.saved_cycles_per_second for each in counted), _skips(each for each in counted if each.standing.saved is None)
        ),
        available_cycles_per_second=_known(
            _sum(each.available_cycles_per_second for each in counted), _skips(each for each in counted if each.standing.available is None)
        ),
    )


def as_traced(run: LedgerSum) -> LedgerSum:
    """The run with its skips by the share that was traced, within the bounds that its counters give; as it is where too few were."""
    if not _traced_enough(run):
        return run
    low, high = (
        min(run.skip_exits_high, max(run.skip_exits_low, run.exits * traced // run.sampled_exits))
        for traced in (run.sampled_skip_exits_low, run.sampled_skip_exits_high)
    )
    return run.model_copy(update={"skip_exits_low": low, "skip_exits_high": high})


def _traced_enough(run: LedgerSum) -> bool:
    return run.sampled_exits >= LEAST_TRACED


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


def _by_standing(by_run: Iterable[LedgerSum], seconds: float) -> tuple[StandingSavings, ...]:
    """The busiest first."""
    sums: dict[RunStanding, list[LedgerSum]] = {}
    for each in by_run:
        sums.setdefault(each.standing, []).append(each)
    found = [
        StandingSavings(
            standing=standing,
            runs=len({run.run for run in runs}),
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


def _attributable(each: StandingSavings, by_run: Iterable[LedgerSum], seconds: float) -> PerSecond | None:
    return _worth_per_second(each.standing.attributable, [run for run in by_run if run.standing == each.standing], seconds)


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
        sampled_exits=each.sampled_exits,
        sampled_skip_exits_low=each.sampled_skip_exits_low,
        sampled_skip_exits_high=each.sampled_skip_exits_high,
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
        counted = [each for each in sums if each.standing.guard in _COUNTED]
        saved = _added(cycles(each.standing.saved, each.skip_exits_low, each.skip_exits_high) for each in counted)
        available = _added(cycles(each.standing.available, each.skip_exits_low, each.skip_exits_high) for each in counted)
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


def is_outdated(booked_until: datetime | None, at: datetime) -> bool:
    """Whether the ledger ends so long before that it says nothing of `at`."""
    return booked_until is None or at - booked_until > OUTDATED_AFTER


def _worthwhile(now: Rates, booked_until: datetime | None, at: datetime, unaccounted_runs: int) -> tuple[Worthwhile, str]:
    """By the runs that run and skip at all: a guest without exits has nothing to say, and one that is not accounted for leaves it open."""
    if is_outdated(booked_until, at) or not now.watched_seconds:
        return Worthwhile.UNKNOWN, "the host was not watched in the last two hours: is `exitguard daemon` running?"
    busy = [each.standing.guard for each in now.standings if each.skip_exits_per_second.high > 0]
    nothing_left = GuardSaving.AVAILABLE not in busy and GuardSaving.UNKNOWN not in busy
    if nothing_left and unaccounted_runs:
        return Worthwhile.UNKNOWN, f"runs that may save more and whose exits are not accounted for: {unaccounted_runs}"
    if nothing_left and not now.standings:
        return Worthwhile.UNKNOWN, "no guest that runs now is in the ledger"
    if nothing_left:
        return Worthwhile.NOTHING_LEFT, "no guest that runs now could save more"
    available, own = now.available_cycles_per_second, now.own_cycles_per_second
    if available is None:
        return Worthwhile.UNKNOWN, "what a change would save is not known in cycles for this kernel, processor and mitigations"
    if own is None:
        return Worthwhile.UNKNOWN, "what the agent itself costs is not known in cycles"
    net = available.low - own
    if net > 0:
        return Worthwhile.YES, f"at least {net:,.0f} cycles a second more than the agent uses"
    if unaccounted_runs or available.at_least or now.unquantified_available_skip_exits_per_second.high > 0:
        return Worthwhile.UNKNOWN, "what is known of it does not exceed what the agent uses, and a part of it is not known in cycles"
    return Worthwhile.NO, f"the low bound of what a change would save is {-net:,.0f} cycles a second less than the agent uses"


def _skips(standings: Iterable[StandingSavings]) -> PerSecond:
    return _sum(each.skip_exits_per_second for each in standings) or PerSecond(low=0.0, high=0.0)


def _known(rate: PerSecond | None, unquantified: PerSecond) -> PerSecond | None:
    """A zero beside which something is unquantified is no zero: nothing of it is known."""
    return None if rate is not None and rate.low == rate.high == 0 and unquantified.high > 0 else rate


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
