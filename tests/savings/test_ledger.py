"""Rows of the ledger: each made anew, each replaced by nothing that says less, and attributable only by what was seen before."""

from datetime import UTC, datetime, timedelta

import pytest
from audit_builders import GUARD_ENTRY, QEMU_7, QEMU_11, affected_kernel, definition, domain, facts, process

from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport
from exitguard.model.kernel import KernelState
from exitguard.model.ledger import Baseline, GuardSaving, RunStanding, Worth, cycles
from exitguard.model.pmu import ChainState, LinkName, PmuElement, Tri
from exitguard.model.samples import Incarnation
from exitguard.policy.load import load_rulebook
from exitguard.savings.hours import Hour, hours
from exitguard.savings.intervals import Interval
from exitguard.savings.ledger import LIVE_PATCHED, UNKNOWN, added, first_seen, standings_of
from exitguard.savings.worth import BOTH, GUARD, GUARD_WITH_PMU_ON, PMU_OFF_GUARDED, PMU_OFF_UNGUARDED, Levers

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LEVERS = {GUARD: Worth(provenance="table", low=50, high=60, costs=("a-row",))}
BEFORE = NOON - timedelta(days=30)


def judged(*, guarded: bool = True, qemu_11: bool = True, pmu: PmuElement = PmuElement.OFF) -> AuditReport:
    written = definition("host-passthrough", pmu)
    cpu = "host" if pmu is PmuElement.ABSENT else f"host,pmu={pmu}"
    binary = QEMU_11 if qemu_11 else QEMU_7
    kernel = affected_kernel(changelog=(GUARD_ENTRY,)) if guarded else affected_kernel()
    return judge(facts(domain(defined=written, run=written, runs=process(cpu, binary)), kernel=kernel, binaries=(binary,)), load_rulebook())


def run_of(report: AuditReport) -> Incarnation:
    uuid = report.domains[0].uuid
    return Incarnation(host_id=uuid, domain_uuid=uuid, boot_id=uuid, qemu_start_ticks=1)


def standing(report: AuditReport, *known: Baseline, levers: Levers | None = None) -> RunStanding:
    incarnation = run_of(report)
    baselines = {each.subject: each for each in known}
    found = standings_of(report, {report.domains[0].uuid: incarnation}, baselines, LEVERS if levers is None else levers)
    return found[incarnation.key][1]


def seen(report: AuditReport, *, host: bool | None, guest: bool | None) -> tuple[Baseline, Baseline]:
    return (
        Baseline(subject=report.host.id, first_seen_at=BEFORE, held=host),
        Baseline(subject=report.domains[0].uuid, first_seen_at=BEFORE, held=guest),
    )


def test_first_sight_holds_the_host_and_each_guest_that_runs() -> None:
    report = judged(guarded=False, pmu=PmuElement.ABSENT)
    assert {each.subject: each.held for each in first_seen(report)} == {report.host.id: False, report.domains[0].uuid: False}


def test_live_patch_ends_what_was_known_of_a_run_and_what_is_merely_not_seen_does_not() -> None:
    report = judged()
    assert standing(report).guard is GuardSaving.SAVED
    unknown = report.host.kernel.model_copy(update={"state": KernelState.UNKNOWN})
    patched = unknown.model_copy(update={"live_patched": True})
    assert standing(report.model_copy(update={"host": report.host.model_copy(update={"kernel": unknown})})) == UNKNOWN
    found = standing(report.model_copy(update={"host": report.host.model_copy(update={"kernel": patched})}))
    assert found == LIVE_PATCHED != UNKNOWN
    assert (found.guard, found.saved) == (GuardSaving.UNKNOWN, None)


ALL = {
    GUARD: Worth(provenance="measured", low=29, high=29, costs=("m",)),
    BOTH: Worth(provenance="measured", low=226, high=226, costs=("m",)),
    PMU_OFF_UNGUARDED: Worth(provenance="measured", low=197, high=197, costs=("m",)),
    PMU_OFF_GUARDED: Worth(provenance="measured", low=230, high=230, costs=("m",)),
    GUARD_WITH_PMU_ON: Worth(provenance="measured", low=-4, high=-4, costs=("m",)),
}


@pytest.mark.parametrize(
    ("host", "guest", "attributable"),
    [
        pytest.param(True, True, 0, id="both were so before"),
        pytest.param(False, True, 29, id="the guard came"),
        pytest.param(True, False, 230, id="the guest was switched off"),
        pytest.param(False, False, 226, id="both came"),
        pytest.param(None, True, 0, id="not known then"),
        pytest.param(None, False, 230, id="the guest was switched off, the kernel not known then"),
    ],
)
def test_attributable_is_what_the_levers_that_changed_are_worth(*, host: bool | None, guest: bool | None, attributable: int) -> None:
    report = judged()
    found = standing(report, *seen(report, host=host, guest=guest), levers=ALL)
    assert found.guard is GuardSaving.SAVED
    assert found.saved is not None
    assert found.attributable is not None
    assert (found.saved.low, found.attributable.low) == (226, attributable)


def test_saving_of_what_was_never_seen_before_is_observed_and_not_attributable() -> None:
    found = standing(judged(), levers=ALL)
    assert found.attributable is not None
    assert found.attributable.high == 0


def test_available_is_worth_the_lever_that_is_missing() -> None:
    found = standing(judged(guarded=False))
    assert (found.guard, found.held_back_by) == (GuardSaving.AVAILABLE, LinkName.KERNEL)
    assert found.available == LEVERS[GUARD]
    assert found.saved is None  # what clearing enable_pmu saves by itself stands nowhere, in cycles


def test_guest_that_asked_for_its_pmu_has_nothing_available() -> None:
    found = standing(judged(pmu=PmuElement.ON))
    assert found.guard is GuardSaving.OPTED_OUT
    assert found.available is not None
    assert found.available.high == 0


def test_guest_that_asked_for_its_pmu_and_does_not_get_it_is_no_gain() -> None:
    report = judged(pmu=PmuElement.ON)
    chain = report.domains[0].chain
    links = tuple(link.model_copy(update={"holds": Tri.YES}) if link.name is LinkName.PROPAGATED else link for link in chain.links)
    chain = chain.model_copy(update={"state": ChainState.OPT_OUT_VIOLATED, "links": links})
    report = report.model_copy(update={"domains": (report.domains[0].model_copy(update={"chain": chain}),)})
    assert standing(report, levers=ALL).guard is GuardSaving.VIOLATED


def test_guest_whose_wish_is_not_known_is_not_offered_a_saving() -> None:
    report = judged(guarded=False, pmu=PmuElement.ABSENT)
    chain = report.domains[0].chain.model_copy(update={"state": ChainState.UNKNOWN})
    report = report.model_copy(update={"domains": (report.domains[0].model_copy(update={"chain": chain}),)})
    found = standing(report, levers=ALL)
    assert (found.guard, found.available) == (GuardSaving.UNKNOWN, None)


@pytest.mark.parametrize("cpu", ["host,pmu=on", "host,pmu=off", "host"])
@pytest.mark.parametrize("qemu_11", [False, True])
@pytest.mark.parametrize("guarded", [False, True])
def test_of_the_measured_cells_exactly_one_of_host_passthrough_saves(*, guarded: bool, qemu_11: bool, cpu: str) -> None:
    element = {"": PmuElement.ABSENT, "on": PmuElement.ON, "off": PmuElement.OFF}[cpu.partition("=")[2]]
    saves = guarded and qemu_11 and element is PmuElement.OFF
    expected = GuardSaving.SAVED if saves else GuardSaving.OPTED_OUT if element is PmuElement.ON else GuardSaving.AVAILABLE
    assert standing(judged(guarded=guarded, qemu_11=qemu_11, pmu=element)).guard is expected


def test_kernel_without_dead_work_is_worth_zero_and_that_is_known() -> None:
    report = judged()
    kernel = report.host.kernel.model_copy(update={"state": KernelState.EQUIVALENT, "body": None})
    found = standing(report.model_copy(update={"host": report.host.model_copy(update={"kernel": kernel})}))
    assert found.guard is GuardSaving.NOTHING
    assert found.saved is not None
    assert found.available is not None
    assert (found.saved.high, found.available.high) == (0, 0)


def test_cycles_of_a_negative_lever_have_their_low_end_at_the_most_exits() -> None:
    assert cycles(Worth(provenance="table", low=-4, high=-4, costs=()), 10, 100) == (-400, -40)
    assert cycles(None, 10, 100) is None


def hour_with(exits: int, seconds: float = 600) -> dict[tuple[str, datetime], Hour]:
    return hours([Interval(run_of(judged()), NOON + timedelta(seconds=seconds), seconds, {"exits": exits})])


def test_row_is_what_was_there_with_what_the_hour_brings() -> None:
    saved = RunStanding(guard=GuardSaving.SAVED)
    runs = {run_of(judged()).key: ("web-1", saved)}
    (first,) = added(hour_with(1000), runs, {})
    assert (first.hour, first.exits, first.revision, first.domain_name, first.standing) == (NOON, 1000, 1, "web-1", saved)
    (second,) = added(hour_with(500), runs, {(first.incarnation.key, NOON): first})
    assert (second.exits, second.revision, second.accounted_milliseconds) == (1500, 2, 1_200_000)


def test_run_that_nothing_is_known_of_counts_exits_and_is_worth_nothing_known() -> None:
    (row,) = added(hour_with(1000), {}, {})
    assert (row.exits, row.standing) == (1000, UNKNOWN)
