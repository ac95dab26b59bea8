"""A plan as a page: short first, each kind of step once, nothing converted, nothing passed over, however large the fleet."""

import re
from typing import Any

import pytest
from plan_samples import (
    CYCLES,
    INSTRUCTIONS,
    UNQUANTIFIED,
    domain_step,
    fleet,
    host,
    kernel_step,
    left,
    pace,
    plan,
    planned_plan,
)
from test_report_hostile_text import HOSTILE, LOOKS

from exitguard.model.plan import Approval, LeftAloneBecause, Mode, Plan, SavingPerExit, Wave
from exitguard.report.page import Look
from exitguard.report.plan_table import plan_page
from exitguard.report.words import label

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def flat(page: str) -> str:
    return " ".join(page.split())


def told(shown: Plan, **options: Any) -> str:
    return flat(plan_page(shown, Look(width=120), **options))


def section(page: str, title: str) -> str:
    """One section of a page, up to the next."""
    return page.partition(f"\n\n{title}  ")[2].split("\n\n")[0]


# The first lines


def test_first_sentence_has_the_hash_the_steps_the_hosts_and_what_is_left_alone() -> None:
    shown = fleet(3, 2)
    digits = shown.hash.removeprefix("sha256:")[:12]
    assert plan_page(shown, Look()).startswith(f"PLAN  {digits}: 6 steps on 3 hosts, 3 left alone.\n")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Next: `exitguard approve PLAN`, then `exitguard apply PLAN`."),
        ({"approval": Approval.NONE}, "Next: `exitguard apply PLAN`."),
        ({"mode": Mode.WINDOWED, "approval": Approval.NONE}, "`exitguard apply PLAN`. Steps begin only inside a window of the policy."),
        ({"mode": Mode.REPORT}, "Mode report: plans are shown, and none is carried out."),
    ],
)
def test_what_to_type_next_follows_mode_and_approval(changes: dict[str, Any], expected: str) -> None:
    page = told(plan((domain_step(),), **changes))
    assert expected in page
    assert ("exitguard apply" in page) is (changes.get("mode") is not Mode.REPORT)
    assert ("approval required" in page) is ("approval" not in changes)


def test_commands_name_the_file_as_a_shell_takes_it() -> None:
    assert "`exitguard apply 'my plan.json'`" in told(plan((domain_step(),)), named="my plan.json")


def test_an_undo_says_which_run_it_undoes() -> None:
    page = told(plan((domain_step(),), undoes="20261122-185403-abcd"))
    assert page.startswith("UNDO PLAN")
    assert "It undoes run 20261122-185403-abcd." in page


def test_an_empty_plan_says_why_there_is_nothing_to_do() -> None:
    assert told(plan()).startswith("NOTHING TO DO on 1 host: no step is planned, 0 left alone.")
    assert "No rule that names a remedy fails here." in told(plan())
    page = told(plan(left_alone=(left("web-9", LeftAloneBecause.LOCKED, "an operator's mark"),)))
    assert "Whatever fails is left alone; below is why" in page
    assert "locked 1 domain web-9 an operator's mark" in page
    assert "Next:" not in page


# Waves


def test_waves_are_told_in_order_with_hosts_and_steps_and_what_stops_them() -> None:
    page = plan_page(fleet(3, 2), Look(width=120))
    waves = section(page, "Waves")
    assert "1. canary  1 host, 2 steps: node-1" in waves
    assert "2. 100 %  2 hosts, 4 steps: node-2, node-3" in waves
    assert waves.index("canary") < waves.index("100 %")
    assert "The first host that fails stops everything that has not begun. Nothing is undone without your word." in waves


def test_pace_of_the_policy_is_told_as_it_is() -> None:
    waves = (Wave(name="canary", hosts=(host().id,)), Wave(name="100 %", hosts=()))
    page = told(plan((domain_step(),), pace=pace(waves=waves, failure_budget=2, pause_between_waves_seconds=60, automatic_rollback=True)))
    assert "Failure number 3 stops everything that has not begun. 60 seconds between waves." in page
    assert "What a failing host had changed is undone there" in page


# Steps


def test_every_particular_of_a_step_is_told() -> None:
    page = told(plan((domain_step(),)))
    for words in (
        "why no <pmu> element: QEMU's default is on",
        "- (no <pmu> element) + <pmu state='off'/>",
        "safe - libvirt owns the definition - the running guest is not touched",
        "disturbs nothing that runs",
        "in force at the guest's next cold start",
        "guest loses - hardware performance events",
        "undo exact: what was there before comes back",
    ):
        assert words in page


def test_what_no_rollback_undoes_is_said_to_be_so() -> None:
    page = told(plan((kernel_step(),)))
    assert "undo by hand: not undone by `exitguard rollback`" in page
    assert "guest loses" not in page


@pytest.mark.parametrize(
    ("saving", "expected"),
    [
        (CYCLES, "26 to 57 cycles an exit (table cost-a, cost-b): of a CPUID exit"),
        (INSTRUCTIONS, "44 instructions an exit (measured): counted on this host"),
        (UNQUANTIFIED, "unquantified: the processor cannot be seen"),
        (SavingPerExit(provenance="table", unit="cycles", low=-3, high=0, reason="a loss at worst"), "-3 to 0 cycles an exit (table):"),
    ],
)
def test_savings_have_their_unit_and_provenance_and_are_never_converted(saving: SavingPerExit, expected: str) -> None:
    page = told(plan((domain_step(savings=(saving,)),)))
    assert f"saves {expected}" in page
    told_units = {unit for unit in ("cycles an exit", "instructions an exit") if unit in page}
    assert told_units == ({f"{saving.unit} an exit"} if saving.unit else set())


def test_unquantified_is_said_and_never_a_zero() -> None:
    page = told(plan((domain_step(savings=(UNQUANTIFIED,)),)))
    assert not re.search(r"\b0 (cycles|instructions)", page)
    assert "unquantified: nothing was said about it" in told(plan((domain_step(savings=()),)))


def test_steps_with_the_same_words_are_told_once_with_all_their_domains() -> None:
    page = told(plan(tuple(domain_step(f"web-{number}", number=number) for number in range(1, 4))))
    assert "for web-1, web-2, web-3" in page
    assert page.count("libvirt owns the definition") == 1


def test_what_differs_is_told_for_each_kind_and_the_rest_once() -> None:
    steps = (domain_step("a", number=1), domain_step("b", number=2, takes_effect="at the next start"), domain_step("c", number=3))
    page = told(plan(steps))
    assert "2 steps for a, c in force at the guest's next cold start" in page
    assert "1 step for b in force at the next start" in page
    assert page.count("libvirt owns the definition") == 1


def test_each_remedy_has_a_section_of_its_own() -> None:
    page = plan_page(plan((kernel_step(), domain_step())), Look())
    assert "\n\nkernel_guard  1 step on 1 host\n" in page
    assert "\n\ndomain_pmu_off  1 step on 1 host\n" in page


def test_kinds_beyond_those_shown_are_counted_and_all_are_told_where_that_is_asked_for() -> None:
    shown = plan(tuple(domain_step(f"web-{number}", number=number, why=f"reason {number}") for number in range(1, 13)))
    page = told(shown, steps_shown=5)
    assert page.count("why reason") == 5
    assert "and 7 steps of 7 other kinds: --format json shows all" in page
    whole = told(shown, steps_shown=None)
    assert whole.count("why reason") == 12
    assert "shows all" not in whole


def test_long_diff_is_cut_and_says_so() -> None:
    page = told(plan((domain_step(diff="\n".join(f"+line {number}" for number in range(100))),)))
    assert "+line 39" in page
    assert "+line 40" not in page
    assert "60 more lines: --format json shows all" in page


# What is left alone


def test_left_alone_is_grouped_by_reason_with_counts_and_a_few_names() -> None:
    mine = tuple(left(f"nova-{number}") for number in range(41))
    locked = left("mine", LeftAloneBecause.LOCKED, "an operator's mark")
    page = told(plan((domain_step(),), (*mine, locked)))
    assert "Nova owns it 41 domains nova-0, nova-1, nova-2, nova-3 and 37 more: --format json shows all" in page
    assert "locked 1 domain mine an operator's mark domain_pmu_off" in page
    assert "nova-40" not in page
    assert "nova-40" in told(plan((domain_step(),), mine), steps_shown=None)


@pytest.mark.parametrize("because", list(LeftAloneBecause))
def test_every_reason_is_told_in_the_words_that_explain_knows(because: LeftAloneBecause) -> None:
    assert f"{label(because)} 1 domain web-9 for this reason" in told(plan(left_alone=(left("web-9", because, "for this reason"),)))


def test_reasons_beyond_a_few_are_counted() -> None:
    unknown = tuple(left(f"web-{number}", LeftAloneBecause.UNKNOWN, f"reason {number}") for number in range(10))
    assert "and 7 more, for 7 other reasons: --format json shows all" in told(plan(left_alone=unknown))


# Where it is shown


def test_plan_of_the_planner_itself_tells_every_step_and_every_refusal() -> None:
    shown = planned_plan()
    assert (len(shown.steps), len(shown.left_alone)) > (1, 1)
    page = told(shown)
    assert all(step.subject.name in page and flat(step.takes_effect) in page for step in shown.steps)
    assert all(each.subject.name in page and flat(each.reason)[:60] in page for each in shown.left_alone)
    assert shown.hash in page


def test_plan_over_2000_hosts_stays_readable() -> None:
    page = plan_page(fleet(2000, 4), Look())
    assert "8,000 steps on 2,000 hosts, 2,000 left alone." in page
    assert len(page.splitlines()) < 60
    assert "and 1,996 more hosts with 7,984 steps: --format json shows all" in flat(page)


def test_hosts_with_the_same_name_are_told_apart() -> None:
    hosts = (host(1, "twin"), host(2, "twin"))
    page = told(plan((domain_step(on=hosts[0]), domain_step(on=hosts[1], number=2)), hosts=hosts))
    assert "twin (00000000): web-1" in page


@pytest.mark.parametrize("width", [32, 50, 80, 120, 300])
def test_no_line_is_wider_than_the_place(width: int) -> None:
    look = Look(width=width)
    for shown in (fleet(30, 3), planned_plan(), plan()):
        assert max(map(len, plan_page(shown, look).splitlines())) <= look.columns


def test_colour_adds_nothing_but_style() -> None:
    shown = planned_plan()
    bare = _STYLE.sub("", plan_page(shown, Look(color=True)))
    # White space that carries a style ends a line here and there.
    assert [line.rstrip() for line in bare.splitlines()] == plan_page(shown, Look()).splitlines()
    assert "\x1b" in plan_page(shown, Look(color=True))


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_no_name_that_others_chose_acts_on_the_page(name: str, look: Look) -> None:
    where = host(1, name, inventory_name=name or None)
    saving = CYCLES.model_copy(update={"reason": name, "costs": (name,)})
    steps = (
        domain_step(name, on=where, why=name, safe=(name,), takes_effect=name, guest_loses=(name,), diff=f"+{name}", savings=(saving,)),
        kernel_step(where, diff=name, why=name),
    )
    waves = (Wave(name=name, hosts=(where.id,)),)
    shown = plan(steps, (left(name, LeftAloneBecause.OTHER_OWNER, name, on=where),), (where,), pace=pace(waves=waves), undoes=name)
    page = plan_page(shown, look, named=name)
    bare = _STYLE.sub("", page) if look.color else page
    assert all(character == "\n" or character.isprintable() for character in bare)
    assert look.unicode or bare.isascii()
    assert len(page) < 60_000


def test_a_name_cannot_forge_a_line_of_the_page() -> None:
    page = plan_page(plan((domain_step("web\nNOTHING TO DO  on 1 host"),)), Look(width=120))
    assert not any(line.startswith("NOTHING TO DO") for line in page.split("\n"))
