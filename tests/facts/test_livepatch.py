from pathlib import Path

import pytest

from exitguard.facts.livepatch import read_live_patches, replaces_skip
from exitguard.facts.tree import HostTree

FOLDER = "sys/kernel/livepatch"


def test_kernel_that_cannot_be_live_patched_has_no_patches(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/mm").mkdir(parents=True)
    assert read_live_patches(HostTree(tmp_path)).value == ()


def test_kernel_without_patches_has_none(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    assert read_live_patches(HostTree(tmp_path)).value == ()


def test_sysfs_that_is_not_there_has_a_reason(tmp_path: Path) -> None:
    assert read_live_patches(HostTree(tmp_path)).reason == "no such file or directory"
    (tmp_path / "sys/kernel").mkdir(parents=True)
    assert "not mounted" in (read_live_patches(HostTree(tmp_path)).reason or "")


@pytest.mark.parametrize(
    ("enabled", "transition", "source", "reason"),
    [
        ("1", None, "transition", "no such file or directory"),
        (None, "0", "enabled", "no such file or directory"),
        ("2", "0", "enabled", "says '2', expected 0 or 1"),
        ("", "0", "enabled", "says '', expected 0 or 1"),
    ],
)
def test_patch_whose_state_cannot_be_read_has_a_reason(
    tmp_path: Path, enabled: str | None, transition: str | None, source: str, reason: str
) -> None:
    patch = tmp_path / FOLDER / "p"
    patch.mkdir(parents=True)
    for name, text in (("enabled", enabled), ("transition", transition)):
        if text is not None:
            (patch / name).write_text(text)
    observed = read_live_patches(HostTree(tmp_path))
    assert (observed.source, observed.reason) == (f"/{FOLDER}/p/{source}", reason)


def test_patched_object_that_cannot_be_listed_has_a_reason(tmp_path: Path) -> None:
    patch = tmp_path / FOLDER / "p"
    patch.mkdir(parents=True)
    for name in ("enabled", "transition", "kvm"):
        (patch / name).write_text("1")
    observed = read_live_patches(HostTree(tmp_path))
    assert (observed.source, observed.reason) == (f"/{FOLDER}/p/kvm", "not a directory")


@pytest.mark.parametrize(
    "function",
    [
        "kvm_skip_emulated_instruction,2",
        "kvm_pmu_trigger_event,1",
        "kvm_pmu_trigger_event.isra.0,1",
        "kvm_pmu_instruction_retired,1",
    ],
)
def test_any_function_that_the_kernel_is_judged_by_counts(tmp_path: Path, function: str) -> None:
    patch = tmp_path / FOLDER / "p"
    (patch / "kvm" / function).mkdir(parents=True)
    (patch / "enabled").write_text("1")
    (patch / "transition").write_text("0")
    assert replaces_skip(["kvm_arch_init,1", function])
    assert [patch.replaces_skip for patch in read_live_patches(HostTree(tmp_path)).get()] == [True]


def test_functions_of_similar_names_do_not_count() -> None:
    assert not replaces_skip(["__pfx_kvm_skip_emulated_instruction,1", "kvm_skip_emulated_instructions,1", "kvm_pmu_trigger_events,1", ""])
