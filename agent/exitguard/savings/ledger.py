"""How runs stand, and rows out of hours. Pure: what is stored already is given, and what is to be stored comes back.

Where it is not known how a run stands, its exits are counted and worth nothing that is known.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from exitguard.model.documents import AuditReport, DomainReport
from exitguard.model.kernel import KernelState
from exitguard.model.ledger import COUNTS, Baseline, GuardSaving, LedgerRow, RunStanding, Worth
from exitguard.model.measurement import Measurement
from exitguard.model.pmu import ChainState, LinkName, Tri
from exitguard.model.samples import Incarnation
from exitguard.policy.schema import Rulebook
from exitguard.savings.hours import Hour
from exitguard.savings.measured import Decided, exits_of, kind_of, levers_measured
from exitguard.savings.worth import NOTHING, Cell, Levers, available_in, better, change, levers_of_table, saved_in

#: What has to hold for the guard to save anything in a run, in this order.
_LINKS = (LinkName.RUNNING, LinkName.PROPAGATED, LinkName.KERNEL)
_NOTHING_TO_SAVE = (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED)
_GUARD = {KernelState.GUARDED: True, KernelState.AFFECTED: False}
#: What is not known is worth nothing that is known.
UNKNOWN = RunStanding(guard=GuardSaving.UNKNOWN)
#: Known to be another kernel's code than was judged before: this ends what was known, as UNKNOWN does not.
LIVE_PATCHED = RunStanding(guard=GuardSaving.UNKNOWN, attributable=NOTHING)


def levers_of(report: AuditReport, rulebook: Rulebook, measurements: Iterable[Measurement]) -> Levers:
    """What is known of the host of `report`: measured on it, then on hosts like it, then the cost matrix."""
    host = report.host
    cpu, release, mitigations = host.cpu.value, host.kernel.release, host.mitigations.value
    table = levers_of_table(rulebook.costs, host.kernel.body, cpu, None if mitigations is None else mitigations.classes)
    if cpu is None or mitigations is None or release is None or host.kernel.body is None:
        return table
    builds: dict[str, Decided] = {build.build_id: build.verdict for build in rulebook.kernels.builds}
    if host.kvm.build_id.value is not None:
        builds[host.kvm.build_id.value] = (host.kernel.state, host.kernel.body)
    exits = [each for measurement in measurements for each in exits_of(measurement, builds)]
    here, elsewhere = levers_measured(exits, host_id=host.id, kind=kind_of(cpu, mitigations, release, host.kernel.body))
    return better((here, elsewhere, table))


def first_seen(report: AuditReport) -> tuple[Baseline, ...]:
    """What is so of the host and of each domain that runs: their baselines, where this is the first sight of them."""
    guard = True if report.host.kernel.state in _NOTHING_TO_SAVE else _GUARD.get(report.host.kernel.state)
    return (
        Baseline(subject=report.host.id, first_seen_at=report.observed_at, held=guard),
        *(
            Baseline(subject=domain.uuid, first_seen_at=report.observed_at, held=_cleared(domain))
            for domain in report.domains
            if domain.active
        ),
    )


def standings_of(
    report: AuditReport, incarnations: Mapping[str, Incarnation | None], baselines: Mapping[str, Baseline], levers: Levers
) -> dict[str, tuple[str, RunStanding]]:
    """By incarnation key, the domain's name and how the run stands that `report` judged; `incarnations` has the runs by domain uuid."""
    found: dict[str, tuple[str, RunStanding]] = {}
    for domain in report.domains:
        incarnation = incarnations.get(domain.uuid)
        if incarnation is not None and domain.active:
            found[incarnation.key] = (domain.name, _standing(domain, report, baselines, levers))
    return found


def added(
    hours: Mapping[tuple[str, datetime], Hour],
    runs: Mapping[str, tuple[str, RunStanding]],
    stored: Mapping[tuple[str, datetime], LedgerRow],
) -> tuple[LedgerRow, ...]:
    """The rows of these hours as they are with what the hours bring: each replaces the stored one."""
    found = []
    for (key, begin), hour in hours.items():
        if not hour.milliseconds:
            continue
        name, standing = runs.get(key, ("", UNKNOWN))
        before = stored.get((key, begin))
        row = LedgerRow(
            incarnation=hour.incarnation,
            hour=begin,
            revision=1,
            domain_name=name,
            accounted_milliseconds=hour.milliseconds,
            spread_milliseconds=hour.spread_milliseconds,
            exits=hour.skips.exits,
            skip_exits_low=hour.skips.low,
            skip_exits_high=hour.skips.high,
            sampled_exits=hour.sampled.exits,
            sampled_skip_exits_low=hour.sampled.low,
            sampled_skip_exits_high=hour.sampled.high,
            standing=standing,
        )
        found.append(row if before is None else _together(before, row))
    return tuple(found)


def _together(before: LedgerRow, row: LedgerRow) -> LedgerRow:
    counts = {name: getattr(before, name) + getattr(row, name) for name in COUNTS}
    return row.model_copy(update={"revision": before.revision + 1, **counts})


def _standing(domain: DomainReport, report: AuditReport, baselines: Mapping[str, Baseline], levers: Levers) -> RunStanding:
    state = report.host.kernel.state
    cleared = _cleared(domain)
    if report.host.kernel.live_patched and state is KernelState.UNKNOWN:
        return LIVE_PATCHED
    if state in _NOTHING_TO_SAVE:
        return RunStanding(guard=GuardSaving.NOTHING, enable_pmu_cleared=cleared, saved=NOTHING, attributable=NOTHING, available=NOTHING)
    guard = _GUARD.get(state)
    if guard is None or cleared is None or domain.chain.state is ChainState.NOT_APPLICABLE:
        return UNKNOWN
    cell = Cell(guard=guard, cleared=cleared)
    standing = RunStanding(
        guard=GuardSaving.SAVED,
        kernel_guard=guard,
        enable_pmu_cleared=cleared,
        saved=saved_in(cell, levers),
        attributable=_attributable(cell, baselines.get(report.host.id), baselines.get(domain.uuid), levers),
        available=available_in(cell, levers),
    )
    match domain.chain.state:
        case ChainState.OPT_OUT_VIOLATED:
            return standing.model_copy(update={"guard": GuardSaving.VIOLATED, "available": NOTHING})
        case ChainState.OPTED_OUT:
            # Its PMU is to stay on: what clearing it would save is not to be had.
            return standing.model_copy(update={"guard": GuardSaving.OPTED_OUT, "available": NOTHING})
        case _ if guard and cleared:
            return standing
        case ChainState.UNKNOWN:
            # It may have asked for its PMU.
            return standing.model_copy(update={"guard": GuardSaving.UNKNOWN, "available": None})
        case _:
            holds = {link.name: link.holds for link in domain.chain.links}
            held_back_by = next((name for name in _LINKS if holds.get(name) is Tri.NO), None)
            return standing.model_copy(update={"guard": GuardSaving.AVAILABLE, "held_back_by": held_back_by})


def _attributable(cell: Cell, host: Baseline | None, domain: Baseline | None, levers: Levers) -> Worth | None:
    """What changed since first sight is worth. What was not known then counts as having been so: it is not our doing."""
    guard = cell.guard if host is None or host.held is None else host.held
    cleared = cell.cleared if domain is None or domain.held is None else domain.held
    return change(Cell(guard=guard, cleared=cleared), cell, levers)


def _cleared(domain: DomainReport) -> bool | None:
    """Whether KVM has cleared enable_pmu for this run."""
    holds = next((link.holds for link in domain.chain.links if link.name is LinkName.PROPAGATED), Tri.UNKNOWN)
    return None if holds is Tri.UNKNOWN else holds is Tri.YES
