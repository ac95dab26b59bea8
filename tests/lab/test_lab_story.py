"""The story lab: what its last run wrote down, and how its machine finds out what GRUB would boot.

`make lab-story` tells the story; each claim here is of the documents that exitguard printed in that run.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

# The modules of the lab and of its machine, which hold no tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
sys.path.insert(0, str(Path(__file__).with_name("story")))

from machine import MachineError
from story_machine import environment_block, environment_of, kernel_of

RESULTS = Path(__file__).parents[2] / ".local/lab-results/story"
#: As update-grub 2.06 writes it for two kernels, without what is not read.
GRUB_CFG = """set default="${saved_entry}"
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-/dev/nvme0n1' {
	linux	/boot/vmlinuz-6.12.117+deb12-cloud-amd64 root=/dev/nvme0n1 ro
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-/dev/nvme0n1' {
	menuentry 'Debian GNU/Linux, with Linux 6.12' --class os $menuentry_id_option 'gnulinux-6.12-advanced-/dev/nvme0n1' {
		linux	/boot/vmlinuz-6.12.117+deb12-cloud-amd64 root=/dev/nvme0n1 ro
	}
	menuentry 'Debian GNU/Linux, with Linux 6.1' --class os $menuentry_id_option 'gnulinux-6.1-advanced-/dev/nvme0n1' {
		linux	/boot/vmlinuz-6.1.0-56-cloud-amd64 root=/dev/nvme0n1 ro
	}
}
"""
ADVANCED = "gnulinux-advanced-/dev/nvme0n1"


# --- what GRUB would boot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "kernel"),
    [
        ("", "6.12.117+deb12-cloud-amd64"),
        (f"{ADVANCED}>gnulinux-6.12-advanced-/dev/nvme0n1", "6.12.117+deb12-cloud-amd64"),
        (f"{ADVANCED}>gnulinux-6.1-advanced-/dev/nvme0n1", "6.1.0-56-cloud-amd64"),
        ("Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1", "6.1.0-56-cloud-amd64"),
    ],
)
def test_kernel_is_that_of_the_chosen_entry(entry: str, kernel: str) -> None:
    assert kernel_of(GRUB_CFG, entry) == f"/boot/vmlinuz-{kernel}"


def test_entry_that_is_not_in_the_menu_boots_nothing() -> None:
    with pytest.raises(MachineError, match="has no entry 'gnulinux-5"):
        kernel_of(GRUB_CFG, "gnulinux-5.10")


def test_environment_block_is_of_grub_s_size_and_reads_back_what_is_set() -> None:
    block = environment_block({"saved_entry": f"{ADVANCED}>one", "next_entry": ""})
    assert len(block) == 1024
    assert environment_of(block) == {"saved_entry": f"{ADVANCED}>one"}


# --- what the last run says -------------------------------------------------------------------------------------------------------


def said(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    if not (RESULTS / "finished").exists():
        pytest.skip("the story lab has not run here to its end: `make lab-story` runs it")
    return json.loads(path.read_text())


def chains(report: Any) -> dict[str, str]:
    return {domain["name"]: domain["chain"]["state"] for domain in report["domains"]}


def test_last_run_begins_affected_and_ends_effective_for_both_guests() -> None:
    before, after = said("1-before"), said("7-after")
    assert (before["host"]["kernel"]["state"], after["host"]["kernel"]["state"]) == ("affected", "guarded")
    assert chains(before) == {"web": "on", "batch": "not_propagated"}
    assert set(chains(after).values()) == {"effective"}


def test_last_run_s_ledger_has_nothing_saved_before_and_exits_saved_after() -> None:
    before, after = said("1-before-ledger")["now"], said("7-after-ledger")["now"]
    assert {each["standing"]["guard"] for each in before["standings"]} == {"available"}
    saved = [each for each in after["standings"] if each["standing"]["guard"] == "saved"]
    assert sum(each["runs"] for each in saved) == 2
    assert sum(each["skip_exits_per_second"]["high"] for each in saved) > 0


def test_last_run_measured_what_the_lever_saves_and_at_the_end_that_it_is_saved() -> None:
    (before,), (after,) = (said(f"{place}-reboot-measured")["loops"] for place in ("3-first", "6-second"))
    off = next(arm for arm in before["arms"] if arm["arm"] == "pmu_off")
    assert before["contrast"]["ticks_per_exit"]["low"] > 100
    (created,) = after["arms"]
    assert created["ticks_per_exit"]["median"] == pytest.approx(off["ticks_per_exit"]["median"], abs=3)


def test_last_run_s_guarded_kernel_was_installed_by_one_plan_and_promoted_by_the_next() -> None:
    stages = []
    for name in ("2-first-plan-plan", "5-second-plan-plan"):
        stages += [step["change"]["stage"] for step in said(name)["steps"] if step["change"]["remedy"] == "kernel_guard"]
    assert stages == ["install", "promote"]
