"""Laws of the chain, over every combination of what can be observed of a domain and its host (174,960 of them)."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from exitguard.audit import verdicts
from exitguard.audit.chain import ChainInput, Links, Run, judge_chain, judge_links, judge_next_action, judge_state
from exitguard.model.domain import OwnerKind
from exitguard.model.finding import Verdict
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import CHANGES_DOMAIN, ChainState, LinkName, NextAction, PmuSetting, Tri

YES, NO, UNKNOWN = Tri.YES, Tri.NO, Tri.UNKNOWN
OFF = (PmuSetting.OFF, PmuSetting.DEFAULT_OFF)
ON = (PmuSetting.ON, PmuSetting.DEFAULT_ON)
NOTHING_TO_SAVE = (KernelState.EQUIVALENT, KernelState.NOT_AFFECTED)

Judged = tuple[ChainInput, Links, ChainState]


@cache
def every_combination() -> tuple[Judged, ...]:
    judged = []
    for values in product(Tri, Tri, Run, PmuSetting, PmuSetting, Tri, Tri, KernelState, Tri):
        given = ChainInput(*values)
        links = judge_links(given)
        judged.append((given, links, judge_state(given, links)))
    return tuple(judged)


def those_in(*states: ChainState) -> list[Judged]:
    found = [judged for judged in every_combination() if judged[2] in states]
    assert found, f"no combination leads to {states}"
    return found


def test_every_state_is_reached() -> None:
    assert {state for _, _, state in every_combination()} == set(ChainState)


def test_effective_implies_a_run_with_pmu_off_that_reached_kvm_on_a_guarded_kernel() -> None:
    for given, links, _ in those_in(ChainState.EFFECTIVE):
        assert given.kernel is KernelState.GUARDED
        assert given.run in (Run.RUNNING, Run.SAVED)
        assert {holds for _, holds in links.items()} == {YES}
        assert given.live in OFF or given.host_clears is YES
        assert given.qemu_clears is YES or given.host_clears is YES


def test_every_guest_that_nobody_wants_otherwise_and_whose_links_all_hold_on_a_guarded_kernel_is_effective() -> None:
    for given, links, state in every_combination():
        if (
            given.applicable is YES
            and given.asked_on is NO
            and given.run in (Run.RUNNING, Run.SAVED)
            and given.kernel is KernelState.GUARDED
            and all(holds is YES for _, holds in links.items())
        ):
            assert state is ChainState.EFFECTIVE


def test_not_applicable_is_exactly_what_is_known_not_to_apply() -> None:
    for given, _, state in every_combination():
        assert (state is ChainState.NOT_APPLICABLE) == (given.applicable is NO)


def test_an_opt_out_is_violated_exactly_where_the_pmu_was_asked_for_and_is_cleared() -> None:
    for given, links, state in every_combination():
        certain = given.applicable is YES and given.run is not Run.UNKNOWN
        violated = certain and given.asked_on is YES and links.propagated is YES
        assert (state is ChainState.OPT_OUT_VIOLATED) == violated


def test_moot_is_exactly_a_kernel_without_the_work_where_no_opt_out_is_violated() -> None:
    for given, _, state in every_combination():
        outranked = state in (ChainState.NOT_APPLICABLE, ChainState.OPT_OUT_VIOLATED)
        assert (state is ChainState.MOOT) == (given.kernel in NOTHING_TO_SAVE and not outranked)


def test_a_stopped_domain_is_judged_as_stopped_and_only_such_a_one() -> None:
    for given, _, state in every_combination():
        if state is ChainState.NOT_RUNNING:
            assert given.run is Run.NONE
        if given.run is Run.NONE:
            assert state in (ChainState.NOT_APPLICABLE, ChainState.MOOT, ChainState.NOT_RUNNING)


def test_a_stopped_domain_has_no_running_and_no_propagated_link() -> None:
    for given, links, _ in every_combination():
        if given.run is Run.NONE:
            assert (links.running, links.propagated) == (UNKNOWN, UNKNOWN)


def test_opted_out_means_asked_for_and_had() -> None:
    for given, links, _ in those_in(ChainState.OPTED_OUT):
        assert given.asked_on is YES
        assert (links.running, links.propagated) == (NO, NO)


def test_pending_restart_means_off_by_definition_and_on_in_this_run() -> None:
    for given, links, _ in those_in(ChainState.PENDING_RESTART):
        assert (links.defined, links.running, given.asked_on) == (YES, NO, NO)


def test_on_means_on_by_definition_and_in_this_run_and_nobody_asked() -> None:
    for given, links, _ in those_in(ChainState.ON):
        assert (links.defined, links.running, given.asked_on) == (NO, NO, NO)


def test_not_propagated_means_that_enable_pmu_is_still_set() -> None:
    for given, links, _ in those_in(ChainState.NOT_PROPAGATED):
        assert links.propagated is NO
        assert given.host_clears is NO
        assert given.live in ON or given.qemu_clears is NO


def test_unguarded_means_an_affected_kernel_and_no_earlier_break() -> None:
    for given, links, _ in those_in(ChainState.UNGUARDED):
        assert given.kernel is KernelState.AFFECTED
        assert NO not in (links.running, links.propagated)


def test_reverts_means_off_now_and_not_for_long() -> None:
    for _, links, _ in those_in(ChainState.REVERTS):
        assert links.running is YES
        assert NO in (links.defined, links.kept)
        assert NO not in (links.propagated, links.kernel)


def test_unknown_names_something_that_is_not_known_and_hides_no_break_that_is() -> None:
    for given, links, _ in those_in(ChainState.UNKNOWN):
        gate = UNKNOWN in (given.applicable, given.asked_on) or given.run is Run.UNKNOWN
        assert gate or UNKNOWN in [holds for _, holds in links.items()]
        if not gate:
            # A definition with the PMU on is no headline while it is not known whether this run is off (reverts) or on.
            assert NO not in (links.running, links.propagated, links.kernel)


def test_the_host_parameter_makes_every_link_but_the_kernel_hold() -> None:
    for given, links, _ in every_combination():
        if given.host_clears is YES:
            assert (links.defined, links.kept) == (YES, YES)
            assert (links.running, links.propagated) == ((YES, YES) if given.run is not Run.NONE else (UNKNOWN, UNKNOWN))


def test_nothing_reaches_kvm_that_is_not_off_in_this_run() -> None:
    for _, links, _ in every_combination():
        if links.propagated is YES:
            assert links.running is YES
        if links.running is NO:
            assert links.propagated is NO


def test_an_unread_parameter_never_convicts_and_never_acquits() -> None:
    for given, links, _ in every_combination():
        if given.host_clears is UNKNOWN:
            assert NO not in (links.defined, links.running, links.propagated, links.kept)
            assert links.propagated is not YES or given.qemu_clears is YES


def test_the_kernel_link_is_the_kernel_state() -> None:
    expected = {KernelState.GUARDED: YES, KernelState.AFFECTED: NO, KernelState.UNKNOWN: UNKNOWN}
    for given, links, _ in every_combination():
        assert links.kernel is expected.get(given.kernel, YES)


def test_an_unknown_link_never_yields_a_pass() -> None:
    for given, links, state in every_combination():
        verdict = verdicts.pmu_effective(state, given.asked_on)
        if UNKNOWN in [holds for _, holds in links.items()]:
            assert verdict is not Verdict.PASS
        if state is ChainState.UNKNOWN:
            assert verdict is (Verdict.NOT_APPLICABLE if given.asked_on is YES else Verdict.UNKNOWN)
        assert (verdict is Verdict.PASS) == (state is ChainState.EFFECTIVE)


def known_values(value: object) -> tuple[object, ...]:
    """What an unknown may turn out to be."""
    kind = type(value)
    assert issubclass(kind, Tri | Run | PmuSetting | KernelState)
    return tuple(each for each in kind if each.value != "unknown" and each is not PmuSetting.NONE)


@pytest.mark.parametrize("name", ["applicable", "asked_on", "run", "persistent", "live", "host_clears", "qemu_clears", "kernel", "keeps"])
def test_what_is_concluded_without_knowing_stays_true_whatever_it_turns_out_to_be(name: str) -> None:
    """A pass stays a pass; a failure never becomes a pass, and becomes nothing only where the kernel turns out harmless."""
    for given, _, state in every_combination():
        if getattr(given, name).value != "unknown":
            continue
        before = verdicts.pmu_effective(state, given.asked_on)
        if before not in (Verdict.PASS, Verdict.FAIL):
            continue
        for value in known_values(getattr(given, name)):
            learned = replace(given, **{name: value})
            after_state = judge_state(learned, judge_links(learned))
            after = verdicts.pmu_effective(after_state, learned.asked_on)
            assert after is before or (before is Verdict.FAIL and after_state is ChainState.MOOT), (given, value)


@cache
def every_decision() -> tuple[tuple[ChainInput, Links, ChainState, NextAction], ...]:
    """Next actions over owner, lock, installed kernel and installed QEMU, for every distinct situation they can meet."""
    situations: dict[tuple[object, ...], Judged] = {}
    for given, links, state in every_combination():
        situations.setdefault((state, links, given.asked_on, given.run, given.applicable), (given, links, state))
    decided = []
    for given, links, state in situations.values():
        for owner, locked, cannot, next_clears, helpful in product(OwnerKind, (False, True), (False, True), Tri, (False, True)):
            each = replace(
                given,
                owner=owner,
                locked=locked,
                kvm_cannot_clear=cannot,
                next_qemu_clears=next_clears,
                helpful_kernel_installed=helpful,
            )
            decided.append((each, links, state, judge_next_action(each, links, state)))
    return tuple(decided)


def test_every_next_action_is_reached() -> None:
    assert {action for *_, action in every_decision()} == set(NextAction)


def test_who_asked_for_the_pmu_or_may_have_or_is_locked_never_gets_an_action_that_changes_the_domain() -> None:
    for given, _, _, action in every_decision():
        if given.asked_on is not NO or given.locked:
            assert action not in CHANGES_DOMAIN


def test_only_the_owner_is_told_to_change_a_definition() -> None:
    for given, _, _, action in every_decision():
        if action is NextAction.SET_PMU_OFF:
            assert given.owner is OwnerKind.LIBVIRT
        if action is NextAction.SET_PMU_OFF_IN_NOVA:
            assert given.owner is OwnerKind.NOVA


def test_nothing_is_to_do_where_nothing_is_broken_or_nothing_is_to_save() -> None:
    for _, _, state, action in every_decision():
        if state in (ChainState.EFFECTIVE, ChainState.MOOT, ChainState.NOT_APPLICABLE, ChainState.OPTED_OUT):
            assert action is NextAction.NONE


def test_a_violated_opt_out_is_a_matter_for_people() -> None:
    for _, _, state, action in every_decision():
        if state is ChainState.OPT_OUT_VIOLATED:
            assert action is NextAction.ASK_OWNER


def test_what_is_unknown_is_to_be_looked_at_before_anything_is_changed() -> None:
    for _, _, state, action in every_decision():
        if state is ChainState.UNKNOWN:
            assert action is NextAction.OBSERVE


def test_a_restart_is_advised_only_where_it_brings_pmu_off_into_force() -> None:
    for given, links, state, action in every_decision():
        if action is NextAction.RESTART_GUEST:
            assert links.defined is not NO
            assert state is ChainState.PENDING_RESTART or (given.next_qemu_clears is YES and not given.kvm_cannot_clear)


def test_a_kernel_is_installed_only_for_an_affected_one_and_booted_where_one_is_installed_already() -> None:
    for given, links, _, action in every_decision():
        if action in (NextAction.INSTALL_GUARDED_KERNEL, NextAction.BOOT_INSTALLED_KERNEL):
            assert links.kernel is NO or given.kvm_cannot_clear
            assert given.helpful_kernel_installed == (action is NextAction.BOOT_INSTALLED_KERNEL)


def test_qemu_is_upgraded_only_where_pmu_off_does_not_get_through() -> None:
    for given, _, state, action in every_decision():
        if action is NextAction.UPGRADE_QEMU:
            assert state is ChainState.NOT_PROPAGATED
            assert given.next_qemu_clears is NO
            assert not given.kvm_cannot_clear


@pytest.mark.parametrize(
    ("changes", "state", "action"),
    [
        ({}, ChainState.EFFECTIVE, NextAction.NONE),
        ({"live": PmuSetting.DEFAULT_ON}, ChainState.PENDING_RESTART, NextAction.RESTART_GUEST),
        ({"live": PmuSetting.DEFAULT_ON, "persistent": PmuSetting.DEFAULT_ON}, ChainState.ON, NextAction.SET_PMU_OFF),
        ({"live": PmuSetting.ON, "persistent": PmuSetting.ON, "asked_on": YES}, ChainState.OPTED_OUT, NextAction.NONE),
        (
            {"live": PmuSetting.ON, "persistent": PmuSetting.ON, "asked_on": YES, "host_clears": YES},
            ChainState.OPT_OUT_VIOLATED,
            NextAction.ASK_OWNER,
        ),
        ({"persistent": PmuSetting.DEFAULT_ON}, ChainState.REVERTS, NextAction.SET_PMU_OFF),
        ({"keeps": NO, "owner": OwnerKind.NOVA}, ChainState.REVERTS, NextAction.SET_PMU_OFF_IN_NOVA),
        ({"qemu_clears": NO, "next_qemu_clears": NO}, ChainState.NOT_PROPAGATED, NextAction.UPGRADE_QEMU),
        ({"qemu_clears": NO}, ChainState.NOT_PROPAGATED, NextAction.OBSERVE),
        ({"qemu_clears": NO, "next_qemu_clears": YES}, ChainState.NOT_PROPAGATED, NextAction.RESTART_GUEST),
        (
            {"qemu_clears": NO, "next_qemu_clears": YES, "kvm_cannot_clear": True},
            ChainState.NOT_PROPAGATED,
            NextAction.INSTALL_GUARDED_KERNEL,
        ),
        ({"qemu_clears": NO, "persistent": PmuSetting.DEFAULT_ON}, ChainState.NOT_PROPAGATED, NextAction.SET_PMU_OFF),
        ({"live": PmuSetting.DEFAULT_ON, "persistent": PmuSetting.NONE}, ChainState.NOT_PROPAGATED, NextAction.OBSERVE),
        ({"kernel": KernelState.AFFECTED}, ChainState.UNGUARDED, NextAction.INSTALL_GUARDED_KERNEL),
        ({"kernel": KernelState.AFFECTED, "helpful_kernel_installed": True}, ChainState.UNGUARDED, NextAction.BOOT_INSTALLED_KERNEL),
        ({"kernel": KernelState.EQUIVALENT}, ChainState.MOOT, NextAction.NONE),
        ({"qemu_clears": UNKNOWN}, ChainState.UNKNOWN, NextAction.OBSERVE),
        ({"applicable": NO}, ChainState.NOT_APPLICABLE, NextAction.NONE),
        ({"run": Run.NONE, "live": PmuSetting.NONE}, ChainState.NOT_RUNNING, NextAction.NONE),
        ({"run": Run.NONE, "live": PmuSetting.NONE, "persistent": PmuSetting.DEFAULT_ON}, ChainState.NOT_RUNNING, NextAction.SET_PMU_OFF),
        ({"run": Run.NONE, "live": PmuSetting.NONE, "persistent": PmuSetting.UNKNOWN}, ChainState.NOT_RUNNING, NextAction.OBSERVE),
        (
            {"run": Run.NONE, "live": PmuSetting.NONE, "kernel": KernelState.AFFECTED},
            ChainState.NOT_RUNNING,
            NextAction.INSTALL_GUARDED_KERNEL,
        ),
        ({"run": Run.SAVED, "live": PmuSetting.DEFAULT_ON}, ChainState.PENDING_RESTART, NextAction.RESTART_GUEST),
        ({"live": PmuSetting.DEFAULT_ON, "locked": True}, ChainState.PENDING_RESTART, NextAction.NONE),
        (
            {"live": PmuSetting.DEFAULT_ON, "persistent": PmuSetting.DEFAULT_ON, "owner": OwnerKind.OTHER},
            ChainState.ON,
            NextAction.ASK_OWNER,
        ),
        ({"asked_on": YES, "qemu_clears": NO}, ChainState.NOT_PROPAGATED, NextAction.ASK_OWNER),
        ({"run": Run.NONE, "live": PmuSetting.NONE, "persistent": PmuSetting.ON, "asked_on": YES}, ChainState.NOT_RUNNING, NextAction.NONE),
    ],
)
def test_one_break_at_a_time(changes: dict[str, object], state: ChainState, action: NextAction) -> None:
    whole = ChainInput(
        applicable=YES,
        asked_on=NO,
        run=Run.RUNNING,
        persistent=PmuSetting.OFF,
        live=PmuSetting.OFF,
        host_clears=NO,
        qemu_clears=YES,
        kernel=KernelState.GUARDED,
        keeps=YES,
    )
    chain = judge_chain(replace(whole, **changes))
    assert (chain.state, chain.next_action) == (state, action)


def test_broken_links_are_exactly_the_links_that_do_not_hold_in_chain_order() -> None:
    for given, links, state in every_combination()[::97]:
        chain = judge_chain(given)
        assert chain.state is state
        assert [link.name for link in chain.links] == list(LinkName)
        assert [link.holds for link in chain.links] == [holds for _, holds in links.items()]
        assert list(chain.broken_links) == [name for name, holds in links.items() if holds is NO]


def test_every_link_and_state_has_a_reason_and_an_obstacle_is_shown_with_the_link_it_hides() -> None:
    for given, _, _ in every_combination()[::211]:
        chain = judge_chain(replace(given, obstacles=((LinkName.PROPAGATED, "the binary is hidden"),)))
        assert chain.reason
        assert all(link.reason for link in chain.links)
        shown = [link.name for link in chain.links if "the binary is hidden" in link.reason]
        propagated = next(link for link in chain.links if link.name is LinkName.PROPAGATED)
        assert shown == ([LinkName.PROPAGATED] if propagated.holds is UNKNOWN else [])
