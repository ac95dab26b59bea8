"""Rows of the ledger: each made anew, each replaced by nothing that says less, and attributable only by what was seen before."""

from datetime import UTC, datetime, timedelta

import pytest
from audit_builders import GUARD_ENTRY, QEMU_7, QEMU_11, affected_kernel, definition, domain, facts, process

from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport
from exitguard.model.kernel import KernelState
from exitguard.model.ledger import Baseline, GuardSaving, LedgerRow, Worth, cycles
from exitguard.model.pmu import LinkName, PmuElement
from exitguard.model.samples import Incarnation
from exitguard.policy.load import load_rulebook
from exitguard.savings.hours import HOUR, hours
from exitguard.savings.intervals import Interval
from exitguard.savings.ledger import Judged, baselines, judged_runs, rows
from exitguard.savings.worth import GUARD, Lever

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LEVERS = {GUARD: Worth(provenance="table", low=50, high=60, costs=("a-row",))}
BEFORE = NOON - timedelta(days=30)


def judged(*, guarded: bool = True, qemu_11: bool = True, pmu: PmuElement = PmuElement.OFF) -> AuditReport:
    written = definition("host-passthrough", pmu)
    cpu = "host" if pmu is PmuElement.ABSENT else f"host,pmu={pmu}"
    binary = QEMU_11 if qemu_11 else QEMU_7
    kernel = affected_kernel(changelog=(GUARD_ENTRY,)) if guarded else affected_kernel()
    return judge(facts(domain(defined=written, run=written, runs=process(cpu, binary)), kernel=kernel, binaries=(binary,)), load_rulebook())


def run_of(report: AuditReport, start_ticks: int = 1) -> Incarnation:
    uuid = report.domains[0].uuid
    return Incarnation(host_id=uuid, domain_uuid=uuid, boot_id=uuid, qemu_start_ticks=start_ticks)


def standing(report: AuditReport, *known: Baseline, levers: dict[Lever, Worth] | None = None) -> Judged:
    incarnation = run_of(report)
    found = judged_runs(
        report, {report.domains[0].uuid: incarnation}, {each.subject: each for each in known}, LEVERS if levers is None else levers
    )
    return found[incarnation.key]


def seen(report: AuditReport, *, host: bool | None, guest: bool | None) -> tuple[Baseline, Baseline]:
    return (
        Baseline(subject=report.host.id, first_seen_at=BEFORE, held=host),
        Baseline(subject=report.domains[0].uuid, first_seen_at=BEFORE, held=guest),
    )


def test_first_sight_of_host_and_guest_is_kept_and_never_seen_first_again() -> None:
    report = judged(guarded=False, pmu=PmuElement.ABSENT)
    found = baselines(report, {})
    assert {each.subject: each.held for each in found} == {report.host.id: False, report.domains[0].uuid: False}
    assert baselines(judged(), {each.subject: each for each in found}) == ()


@pytest.mark.parametrize(
    ("host", "guest", "attributable"),
    [
        pytest.param(True, True, False, id="both were so before"),
        pytest.param(False, True, True, id="the guard came"),
        pytest.param(True, False, True, id="the guest was switched off"),
        pytest.param(None, True, False, id="not known then"),
        pytest.param(None, False, True, id="the guest was switched off, the kernel not known then"),
    ],
)
def test_saving_is_attributable_only_to_what_was_seen_to_change(*, host: bool | None, guest: bool | None, attributable: bool) -> None:
    report = judged()
    found = standing(report, *seen(report, host=host, guest=guest)).standing
    assert (found.guard, found.attributable) == (GuardSaving.SAVED, attributable)


def test_saving_of_what_was_never_seen_before_is_observed_and_not_attributable() -> None:
    assert not standing(judged()).standing.attributable


def test_available_is_worth_the_lever_that_is_missing() -> None:
    found = standing(judged(guarded=False)).standing
    assert (found.guard, found.held_back_by) == (GuardSaving.AVAILABLE, LinkName.KERNEL)
    assert found.available == LEVERS[GUARD]
    assert found.saved is None  # what clearing enable_pmu saves by itself stands nowhere, in cycles


def test_guest_that_asked_for_its_pmu_has_nothing_available() -> None:
    found = standing(judged(pmu=PmuElement.ON)).standing
    assert (found.guard, found.available) == (GuardSaving.OPTED_OUT, None)


def test_kernel_without_dead_work_is_worth_zero_and_that_is_known() -> None:
    report = judged()
    kernel = report.host.kernel.model_copy(update={"state": KernelState.EQUIVALENT, "body": None})
    found = standing(report.model_copy(update={"host": report.host.model_copy(update={"kernel": kernel})})).standing
    assert found.guard is GuardSaving.NOTHING
    assert found.saved is not None
    assert found.available is not None
    assert (found.saved.high, found.available.high) == (0, 0)


def test_cycles_of_a_negative_lever_have_their_low_end_at_the_most_exits() -> None:
    assert cycles(Worth(provenance="table", low=-4, high=-4, costs=()), 10, 100) == (-400, -40)
    assert cycles(None, 10, 100) is None


def test_row_is_made_of_the_hour_and_of_how_the_run_stands() -> None:
    report = judged()
    (row,) = made(report, 1000)
    assert (row.hour, row.exits, row.revision, row.domain_name) == (NOON, 1000, 1, report.domains[0].name)
    assert row.standing.guard is GuardSaving.SAVED


def made(
    report: AuditReport, exits: int, *stored: LedgerRow, seconds: float = 600, known: bool = True, since: datetime = NOON
) -> tuple[LedgerRow, ...]:
    run = run_of(report)
    interval = Interval(run, NOON + timedelta(seconds=seconds), seconds, {"exits": exits})
    return rows(hours([interval]), {run.key: standing(report)} if known else {}, stored, since=since)


def test_same_samples_again_make_no_row() -> None:
    report = judged()
    assert made(report, 1000, *made(report, 1000)) == ()


def test_more_samples_of_the_hour_replace_its_row_by_a_higher_revision() -> None:
    report = judged()
    (row,) = made(report, 3000, *made(report, 1000), seconds=900)
    assert (row.exits, row.revision) == (3000, 2)


def test_row_is_never_replaced_by_one_that_rests_on_less() -> None:
    report = judged()
    assert made(report, 500, *made(report, 1000), seconds=300) == ()


def test_run_that_has_ended_keeps_the_standing_of_its_last_row() -> None:
    report = judged()
    (first,) = made(report, 1000)
    before = first.model_copy(update={"hour": NOON - HOUR})
    (row,) = made(report, 1000, before, known=False)
    assert (row.standing, row.domain_name) == (first.standing, first.domain_name)


def test_run_that_nothing_is_known_of_counts_exits_and_is_worth_nothing_known() -> None:
    (row,) = made(judged(), 1000, known=False)
    assert (row.exits, row.standing.guard, row.standing.saved, row.standing.available) == (1000, GuardSaving.UNKNOWN, None, None)


def test_hours_before_those_asked_for_are_left_alone() -> None:
    assert made(judged(), 1000, since=NOON + HOUR) == ()
