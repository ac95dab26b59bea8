"""Ledger rows out of hours and judgements. Pure: what is stored already is given, and what is to be stored comes back.

- Nothing of a row is added up from rows: each is made anew from samples, and replaces what stands there.
- A run that the last judgement did not see keeps the standing of its last row: enable_pmu is settled when a guest starts, and a kernel for
  as long as it is up.
- Where it is not known how a run stood, its exits are counted and worth nothing that is known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from exitguard.model.documents import AuditReport, DomainReport
from exitguard.model.kernel import KernelState
from exitguard.model.ledger import Baseline, GuardSaving, LedgerRow, RunStanding, Worth
from exitguard.model.measurement import Measurement
from exitguard.model.pmu import ChainState, LinkName, Tri
from exitguard.model.samples import Incarnation
from exitguard.policy.schema import Rulebook
from exitguard.savings.hours import Hour
from exitguard.savings.measured import Decided, exits_of, levers_measured
from exitguard.savings.worth import Cell, Levers, available_in, better, levers_of_table, saved_in

#: What has to hold for the guard to save anything in a run, in this order.
_LINKS = (LinkName.RUNNING, LinkName.PROPAGATED, LinkName.KERNEL)
_NOTHING_TO_SAVE = (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED)
_GUARD = {KernelState.GUARDED: True, KernelState.AFFECTED: False}
#: What is not known is worth nothing that is known.
UNKNOWN = RunStanding(guard=GuardSaving.UNKNOWN, held_back_by=None, attributable=False, saved=None, available=None)


@dataclass(frozen=True)
class Judged:
    """What the last judgement says of one run."""

    domain_name: str
    standing: RunStanding


def levers_of(report: AuditReport, rulebook: Rulebook, measurements: Iterable[Measurement]) -> Levers:
    """What is known of the host of `report`: measured on it, then on hosts like it, then the cost matrix."""
    host = report.host
    cpu, release = host.cpu.value, host.kernel.release
    mitigations = None if host.mitigations.value is None else host.mitigations.value.classes
    table = levers_of_table(rulebook.costs, host.kernel.body, cpu, mitigations)
    if cpu is None or mitigations is None or release is None or host.kernel.body is None:
        return table
    builds: dict[str, Decided] = {build.build_id: build.verdict for build in rulebook.kernels.builds}
    if host.kvm.build_id.value is not None:
        builds[host.kvm.build_id.value] = (host.kernel.state, host.kernel.body)
    exits = [each for measurement in measurements for each in exits_of(measurement, builds)]
    here, elsewhere = levers_measured(
        exits, host_id=host.id, cpu_model_name=cpu.model_name, mitigations=mitigations, release=release, body=host.kernel.body
    )
    return better((here, elsewhere, table))


def baselines(report: AuditReport, known: Mapping[str, Baseline]) -> tuple[Baseline, ...]:
    """The baselines of what `report` sees for the first time: the host, and each domain that runs."""
    guard = _GUARD.get(report.host.kernel.state)
    if report.host.kernel.state in _NOTHING_TO_SAVE:
        guard = True
    found = [Baseline(subject=report.host.id, first_seen_at=report.observed_at, held=guard)]
    found += [
        Baseline(subject=domain.uuid, first_seen_at=report.observed_at, held=_cleared(domain)) for domain in report.domains if domain.active
    ]
    return tuple(baseline for baseline in found if baseline.subject not in known)


def judged_runs(
    report: AuditReport, incarnations: Mapping[str, Incarnation | None], known: Mapping[str, Baseline], levers: Levers
) -> dict[str, Judged]:
    """By incarnation key, how the runs that `report` judged stand; `incarnations` has the run that it saw of each domain, by uuid."""
    found: dict[str, Judged] = {}
    for domain in report.domains:
        incarnation = incarnations.get(domain.uuid)
        if incarnation is not None and domain.active:
            found[incarnation.key] = Judged(domain.name, _standing(domain, report, known, levers))
    return found


def rows(
    hours: Mapping[tuple[str, datetime], Hour],
    judged: Mapping[str, Judged],
    stored: Iterable[LedgerRow],
    *,
    since: datetime,
) -> tuple[LedgerRow, ...]:
    """The rows of the hours from `since` on that differ from the stored ones, in order of hour and run.

    `stored` holds the rows from `since` on, and the last of each run before.
    """
    by_key: dict[tuple[str, datetime], LedgerRow] = {}
    last: dict[str, LedgerRow] = {}
    for row in stored:
        by_key[row.incarnation.key, row.hour] = row
        newest = last.get(row.incarnation.key)
        if newest is None or newest.hour <= row.hour:
            last[row.incarnation.key] = row
    found = []
    for (key, begin), hour in sorted(hours.items(), key=lambda item: (item[0][1], item[0][0])):
        if begin < since:
            continue
        before = by_key.get((key, begin))
        row = _row(hour, judged.get(key) or _as_before(last.get(key)), revision=1 if before is None else before.revision + 1)
        if before is None or _says_more(row, before):
            found.append(row)
    return tuple(found)


def _says_more(row: LedgerRow, before: LedgerRow) -> bool:
    """Whether `row` is another than `before`, and rests on no less: samples may have been forgotten since."""
    return row.accounted_milliseconds >= before.accounted_milliseconds and row != before.model_copy(update={"revision": row.revision})


def _as_before(row: LedgerRow | None) -> Judged:
    return Judged("", UNKNOWN) if row is None else Judged(row.domain_name, row.standing)


def _row(hour: Hour, judged: Judged, *, revision: int) -> LedgerRow:
    return LedgerRow(
        incarnation=hour.incarnation,
        hour=hour.begin,
        revision=revision,
        domain_name=judged.domain_name,
        accounted_milliseconds=hour.milliseconds,
        spread_milliseconds=hour.spread_milliseconds,
        exits=hour.skips.exits,
        skip_exits_low=hour.skips.low,
        skip_exits_high=hour.skips.high,
        standing=judged.standing,
        unaccounted=tuple(sorted(hour.reasons)),
    )


def _standing(domain: DomainReport, report: AuditReport, known: Mapping[str, Baseline], levers: Levers) -> RunStanding:
    state = report.host.kernel.state
    if state in _NOTHING_TO_SAVE:
        nothing = Worth(provenance="table", low=0, high=0, costs=())
        return RunStanding(guard=GuardSaving.NOTHING, held_back_by=None, attributable=False, saved=nothing, available=nothing)
    guard, cleared = _GUARD.get(state), _cleared(domain)
    if guard is None or cleared is None or domain.chain.state is ChainState.NOT_APPLICABLE:
        return UNKNOWN
    cell = Cell(guard=guard, cleared=cleared)
    saved, available = saved_in(cell, levers), available_in(cell, levers)
    if guard and cleared:
        attributable = _changed(known.get(report.host.id)) or _changed(known.get(domain.uuid))
        return RunStanding(guard=GuardSaving.SAVED, held_back_by=None, attributable=attributable, saved=saved, available=available)
    if domain.chain.state is ChainState.OPTED_OUT:
        # Its PMU is to stay on: what clearing it would save is not to be had.
        return RunStanding(guard=GuardSaving.OPTED_OUT, held_back_by=None, attributable=False, saved=saved, available=None)
    holds = {link.name: link.holds for link in domain.chain.links}
    held_back_by = next((name for name in _LINKS if holds.get(name) is Tri.NO), None)
    # On body B to clear enable_pmu saves by itself, before any guard.
    attributable = cleared and _changed(known.get(domain.uuid))
    return RunStanding(guard=GuardSaving.AVAILABLE, held_back_by=held_back_by, attributable=attributable, saved=saved, available=available)


def _changed(baseline: Baseline | None) -> bool:
    """Whether what holds now did not hold at first sight. What was not known then is not counted as our doing."""
    return baseline is not None and baseline.held is False


def _cleared(domain: DomainReport) -> bool | None:
    """Whether KVM has cleared enable_pmu for this run."""
    holds = next((link.holds for link in domain.chain.links if link.name is LinkName.PROPAGATED), Tri.UNKNOWN)
    return None if holds is Tri.UNKNOWN else holds is Tri.YES
