"""A run as a page: what happened, why it stopped, what is changed and what is not, what to type next."""

import re
from typing import Any

import pytest
from plan_samples import UNDER_WAY, domain_step, fleet, folded, host, journal, pace, plan, stopped_run, three_hosts
from test_report_hostile_text import HOSTILE, LOOKS

from exitguard.model.plan import Plan, Wave
from exitguard.model.run import EventKind, HostCheck, RunEvent, StepOutcome
from exitguard.remedy.rollout_state import HostPhase, StepState
from exitguard.report.json_document import json_text
from exitguard.report.page import Look
from exitguard.report.run_table import RunStanding, RunStatus, status_of, status_page
from exitguard.report.words import label

RUN = "20261122-185403-f985"
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def flat(page: str) -> str:
    return " ".join(page.split())


def status(of: Plan, events: list[RunEvent], *, held: bool = False) -> RunStatus:
    return status_of(RUN, folded(of, events), events, held=held)


def told(shown: RunStatus) -> str:
    return flat(status_page(shown, Look(width=120)))


def stopped() -> RunStatus:
    return status(three_hosts(), stopped_run(three_hosts()))


def one_host(*lines: tuple[EventKind, dict[str, Any]], outcome: StepOutcome | None = None, **changes: Any) -> tuple[Plan, list[RunEvent]]:
    """One step on one host: checked, begun, ended with `outcome`; then `lines`."""
    step, only = domain_step(), host()
    of = plan((step,), hosts=(only,), **changes)
    begun: list[tuple[EventKind, dict[str, Any]]] = [
        (EventKind.BATCH_STARTED, {"wave": 0, "hosts": (only.id,)}),
        (EventKind.HOST_CHECKED, {"host": only.id, "check": HostCheck.READY, "due": (step.id,)}),
        (EventKind.STEPS_STARTED, {"steps": (step.id,)}),
    ]
    if outcome is not None:
        begun.append((EventKind.STEP_FINISHED, {"step": step.id, "outcome": outcome, "reason": "the reason"}))
    return of, journal(of, *begun, *lines)


def finished(outcome: StepOutcome = StepOutcome.DONE) -> tuple[Plan, list[RunEvent]]:
    verified = (EventKind.HOST_VERIFIED, {"host": host().id, "passed": True})
    return one_host(verified, (EventKind.WAVE_PASSED, {"wave": 0}), (EventKind.FINISHED, {}), outcome=outcome)


# What happened


def test_a_stopped_run_says_how_far_it_came_why_it_stopped_and_who_failed() -> None:
    page = status_page(stopped(), Look(width=120))
    assert page.startswith(f"STOPPED  run {RUN}: 2 of 3 hosts through, 1 failed.\n")
    assert "Why: 1 host failed, the plan allows 0" in page
    assert "node-2 domain_pmu_off of web-2 refused: the definition has two <pmu> elements" in flat(page)


def test_what_is_changed_and_what_is_not_is_told_apart() -> None:
    page = told(stopped())
    assert "changed 4 steps: web-1 on node-1, web-1 on node-2, web-1 on node-3, web-2 on node-3" in page
    assert "not changed 1 step, refused: web-2 on node-2 - the definition has two <pmu> elements" in page
    assert "not changed 1 step, already: web-2 on node-1" in page


def test_a_step_whose_end_nobody_saw_is_under_way_only_while_somebody_works_on_it() -> None:
    of, events = three_hosts(), stopped_run(three_hosts())[:UNDER_WAY]
    held, left_behind = told(status(of, events, held=True)), told(status(of, events))
    assert held.startswith(f"RUNNING run {RUN}: 1 of 3 hosts through, 2 in flight.")
    assert "under way 4 steps" in held
    assert left_behind.startswith(f"INTERRUPTED run {RUN}: 1 of 3 hosts through, 2 cut off in flight.")
    assert "end not seen 4 steps" in left_behind
    assert "under way 4 steps" not in left_behind


@pytest.mark.parametrize("outcome", [StepOutcome.FAILED, StepOutcome.TIMED_OUT, StepOutcome.UNREACHABLE])
def test_a_step_that_may_have_changed_something_is_said_to_be_not_known(outcome: StepOutcome) -> None:
    page = told(status(*one_host(outcome=outcome)))
    assert f"not known 1 step, {label(outcome)}: web-1 - the reason" in page
    assert " changed 1 step" not in page


def test_a_wave_that_waits_is_named_with_its_place() -> None:
    assert "wave 2 of 2: 100 % · begun 2026-11-22 18:54 UTC" in told(stopped())


def test_what_an_automatic_rollback_restored_is_told_as_restored() -> None:
    verified = (EventKind.HOST_VERIFIED, {"host": host().id, "passed": False, "reason": "the PMU is still on"})
    undo = (EventKind.UNDO_STARTED, {"steps": (domain_step().id,)})
    undone = (EventKind.STEP_UNDONE, {"step": domain_step().id, "outcome": StepOutcome.DONE})
    with_undo = pace(waves=(Wave(name="canary", hosts=(host().id,)),), automatic_rollback=True)
    of, events = one_host(verified, undo, undone, (EventKind.STOPPED, {"reason": "x"}), outcome=StepOutcome.DONE, pace=with_undo)
    page = told(status(of, events))
    assert "restored 1 step: web-1" in page
    assert "compute-1 (what it had changed is restored) verification: the PMU is still on" in page
    assert "changed 1 step" not in page


def test_the_last_events_are_told_in_words_with_names() -> None:
    shown = stopped()
    page = status_page(shown, Look(width=120))
    assert "18:54:16 step finished  web-2 on node-2: refused: the definition has two <pmu> elements" in page
    assert "18:54:20 host verified  node-3: as it should be" in page
    assert len(shown.last_events) == 10


@pytest.mark.parametrize("kind", list(EventKind))
def test_every_kind_of_event_has_its_line(kind: EventKind) -> None:
    of, events = finished()
    shown = status(of, events).model_copy(update={"last_events": (RunEvent(seq=0, at=of.made_at, kind=kind, reason="said so"),)})
    assert f"18:54:03 {label(kind)}: said so" in told(shown)


# What to type next


@pytest.mark.parametrize(
    ("lines", "held", "standing", "commands"),
    [
        ([], True, RunStanding.RUNNING, ["rollout pause", "rollout abort"]),
        ([], False, RunStanding.INTERRUPTED, ["rollout resume", "rollout abort"]),
        ([(EventKind.PAUSED, {"reason": "asked"})], False, RunStanding.PAUSED, ["rollout resume", "rollout abort"]),
        ([(EventKind.ABORTED, {"reason": "asked"})], False, RunStanding.ABORTED, ["rollback", "plan"]),
    ],
)
def test_next_commands_follow_how_the_run_stands(lines: list[Any], held: bool, standing: RunStanding, commands: list[str]) -> None:  # noqa: FBT001 - a parameter of the test
    shown = status(*one_host(*lines, outcome=StepOutcome.DONE), held=held)
    assert shown.standing is standing
    assert next_commands(shown) == [command if command == "plan" else f"{command} {RUN}" for command in commands]


def next_commands(shown: RunStatus) -> list[str]:
    return re.findall(r"^  - exitguard (.*?)  ", status_page(shown, Look(width=120)), re.MULTILINE)


def test_a_stopped_run_may_go_on_or_end_and_the_way_back_is_named() -> None:
    assert next_commands(stopped()) == [f"rollout resume {RUN}", f"rollout abort {RUN}"]
    assert "until you undo it with `exitguard rollback`" in told(stopped())


def test_a_finished_run_can_be_undone_where_it_changed_anything() -> None:
    assert next_commands(status(*finished())) == [f"rollback {RUN}"]
    page = told(status(*finished(StepOutcome.CHANGED_SINCE)))
    assert page.startswith("FINISHED")
    assert "Nothing was changed, and nothing is left to do." in page
    assert "exitguard rollback" not in page


def test_a_finished_run_with_failures_says_so_first() -> None:
    lenient = pace(waves=(Wave(name="canary", hosts=(host().id,)),), failure_budget=1)
    of, events = one_host(
        (EventKind.HOST_VERIFIED, {"host": host().id, "passed": True}),
        (EventKind.WAVE_PASSED, {"wave": 0}),
        (EventKind.FINISHED, {}),
        outcome=StepOutcome.REFUSED,
        pace=lenient,
    )
    assert told(status(of, events)).startswith("FINISHED, WITH FAILURES")


# Where it is shown


def test_status_as_json_has_every_step_and_reads_back() -> None:
    shown = stopped()
    assert RunStatus.model_validate_json(json_text(shown)) == shown
    assert [step.state for step in shown.steps].count(StepState.DONE) == 4
    assert [each.phase for each in shown.hosts] == [HostPhase.DONE, HostPhase.FAILED, HostPhase.DONE]


def test_a_run_over_2000_hosts_stays_readable() -> None:
    of = fleet(2000, 4)
    page = status_page(status(of, journal(of), held=True), Look())
    assert "0 of 2,000 hosts through, 2,000 not begun." in flat(page)
    assert len(page.splitlines()) < 40


@pytest.mark.parametrize("width", [32, 50, 80, 120, 300])
def test_no_line_is_wider_than_the_place(width: int) -> None:
    look = Look(width=width)
    assert max(map(len, status_page(stopped(), look).splitlines())) <= look.columns


def test_colour_adds_nothing_but_style() -> None:
    bare = _STYLE.sub("", status_page(stopped(), Look(color=True)))
    # White space that carries a style ends a line here and there.
    assert [line.rstrip() for line in bare.splitlines()] == status_page(stopped(), Look()).splitlines()
    assert "\x1b" in status_page(stopped(), Look(color=True))


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_no_name_that_others_chose_acts_on_the_page(name: str, look: Look) -> None:
    shown = stopped()
    hosts = tuple(each.model_copy(update={"name": name, "reason": name}) for each in shown.hosts)
    steps = tuple(each.model_copy(update={"subject": name, "reason": name}) for each in shown.steps)
    events = tuple(each.model_copy(update={"reason": name}) for each in shown.last_events)
    waves = tuple(each.model_copy(update={"name": name}) for each in shown.waves)
    hostile = {"hosts": hosts, "steps": steps, "last_events": events, "waves": waves, "why": name, "run": name, "undoes": name}
    page = status_page(shown.model_copy(update=hostile), look)
    bare = _STYLE.sub("", page) if look.color else page
    assert all(character == "\n" or character.isprintable() for character in bare)
    assert look.unicode or bare.isascii()
    assert len(page) < 60_000
