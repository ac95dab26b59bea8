"""What a chain tells an operator: the state in a sentence, each link in words, and the obstacle behind what is unknown."""

from dataclasses import replace

import pytest

from exitguard.audit.chain import ChainInput, Run, judge_chain
from exitguard.model.domain import OwnerKind
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import LinkName, PmuSetting, Tri

YES, NO, UNKNOWN = Tri.YES, Tri.NO, Tri.UNKNOWN

WHOLE = ChainInput(
    applicable=YES,
    asked_on=NO,
    run=Run.RUNNING,
    persistent=PmuSetting.OFF,
    live=PmuSetting.DEFAULT_OFF,
    host_clears=NO,
    qemu_clears=YES,
    kernel=KernelState.GUARDED,
    keeps=YES,
)
BY_PARAMETER = "kvm.enable_pmu=N clears the PMU of every guest of this host"
UNSEEN_PARAMETER = "; whether kvm.enable_pmu=N overrides that cannot be seen"
ON = {"live": PmuSetting.DEFAULT_ON}
STOPPED = {"run": Run.NONE, "live": PmuSetting.NONE}


def reasons(**changes: object) -> dict[LinkName, str]:
    return {link.name: link.reason for link in judge_chain(replace(WHOLE, **changes)).links}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "every link holds: exits of this guest do no PMU work"),
        ({"kernel": KernelState.EQUIVALENT}, "nothing to save: the running kernel is equivalent"),
        (STOPPED, "shut off, no managed save; its definition is judged for the next start"),
        (ON, "defined with PMU off, but this run still has it on: off from the next cold start"),
        (
            ON | {"persistent": PmuSetting.NONE},
            "this run has its PMU on; what the next start would have cannot be told",
        ),
        (
            {"qemu_clears": NO},
            "PMU off, but this QEMU does not clear kvm->arch.enable_pmu, so the kernel works for the PMU all the same",
        ),
        (
            {"qemu_clears": NO, "kvm_cannot_clear": True},
            "PMU off, but this KVM cannot clear kvm->arch.enable_pmu for one guest, so the kernel works for the PMU all the same",
        ),
        ({"persistent": PmuSetting.DEFAULT_ON}, "off now, but the next start has it on by definition"),
        ({"keeps": NO}, "off now, but the owner will undo it"),
        ({"qemu_clears": UNKNOWN}, "cannot be told: propagated"),
        ({"qemu_clears": UNKNOWN, "keeps": UNKNOWN}, "cannot be told: propagated, kept"),
        ({"applicable": UNKNOWN}, "cannot be told: whether this is a KVM guest"),
        ({"applicable": UNKNOWN, "run": Run.UNKNOWN}, "cannot be told: whether this is a KVM guest"),
        ({"run": Run.UNKNOWN}, "cannot be told: whether it runs"),
        ({"asked_on": UNKNOWN}, "cannot be told: whether somebody asked for the PMU"),
        (
            {
                "qemu_clears": UNKNOWN,
                "obstacles": ((LinkName.KEPT, "of no matter"), (LinkName.PROPAGATED, "/proc/<pid>/exe: permission denied")),
            },
            "cannot be told: propagated (/proc/<pid>/exe: permission denied)",
        ),
    ],
)
def test_the_state_is_told_in_a_sentence(changes: dict[str, object], reason: str) -> None:
    assert judge_chain(replace(WHOLE, **changes)).reason == reason


def test_links_that_hold_say_what_was_seen() -> None:
    assert reasons() == {
        LinkName.DEFINED: "the next start has pmu off",
        LinkName.RUNNING: "this run has pmu default_off",
        LinkName.PROPAGATED: "this run's QEMU clears kvm->arch.enable_pmu: yes",
        LinkName.KERNEL: "the running kernel is guarded",
        LinkName.KEPT: "libvirt owns the definition and keeps it: yes",
    }


def test_links_that_do_not_hold_say_what_was_seen() -> None:
    assert reasons(persistent=PmuSetting.DEFAULT_ON, live=PmuSetting.ON, kernel=KernelState.AFFECTED, keeps=NO, owner=OwnerKind.NOVA) == {
        LinkName.DEFINED: "the next start has pmu default_on",
        LinkName.RUNNING: "this run has pmu on",
        LinkName.PROPAGATED: "this run has its PMU on",
        LinkName.KERNEL: "the running kernel is affected",
        LinkName.KEPT: "nova owns the definition and keeps it: no",
    }


def test_a_kvm_without_the_capability_is_named_instead_of_qemu() -> None:
    assert reasons(qemu_clears=NO, kvm_cannot_clear=True)[LinkName.PROPAGATED] == "this KVM has no KVM_PMU_CAP_DISABLE"


def test_the_host_parameter_is_the_reason_of_every_link_that_it_makes_hold() -> None:
    told = reasons(host_clears=YES, persistent=PmuSetting.ON, kernel=KernelState.UNKNOWN)
    assert [name for name, reason in told.items() if reason == BY_PARAMETER] == [
        LinkName.DEFINED,
        LinkName.RUNNING,
        LinkName.PROPAGATED,
        LinkName.KEPT,
    ]
    assert told[LinkName.KERNEL] == "the running kernel is unknown"


def test_a_parameter_that_cannot_be_seen_is_named_where_it_leaves_a_link_open_and_nowhere_else() -> None:
    told = reasons(host_clears=UNKNOWN, persistent=PmuSetting.ON, live=PmuSetting.OFF)
    assert told[LinkName.DEFINED] == "the next start has pmu on" + UNSEEN_PARAMETER
    assert told[LinkName.RUNNING] == "this run has pmu off"
    assert reasons(persistent=PmuSetting.UNKNOWN)[LinkName.DEFINED] == "the next start has pmu unknown"


def test_a_stopped_domain_has_no_run_to_speak_of() -> None:
    told = reasons(**STOPPED)
    assert (told[LinkName.RUNNING], told[LinkName.PROPAGATED]) == ("there is no run", "there is no run")
    assert reasons(**STOPPED, host_clears=YES)[LinkName.RUNNING] == "there is no run"


def test_an_obstacle_is_told_with_the_link_it_hides_and_not_with_one_that_is_known() -> None:
    obstacles = tuple((name, f"hidden {name}") for name in LinkName)
    assert reasons(obstacles=obstacles) == reasons()
    hidden = reasons(obstacles=obstacles, persistent=PmuSetting.UNKNOWN, live=PmuSetting.UNKNOWN, kernel=KernelState.UNKNOWN, keeps=UNKNOWN)
    assert hidden == {name: f"hidden {name}" for name in LinkName}
