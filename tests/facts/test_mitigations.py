from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.mitigations import parse_classes, read_mitigations
from exitguard.facts.tree import HostTree
from exitguard.model.host import MitigationClass

HEAVY, INTEL, CALL, LOW = MitigationClass
FOLDER = "sys/devices/system/cpu/vulnerabilities"
HARDWARE_IBRS = "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; RSB filling; PBRSB-eIBRS: SW sequence; BHI: BHI_DIS_S"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ({"spec_rstack_overflow": "Mitigation: Safe RET"}, (HEAVY,)),
        ({"spec_rstack_overflow": "Vulnerable: Safe RET, no microcode"}, (HEAVY,)),
        ({"spec_rstack_overflow": "Mitigation: safe RET, no microcode"}, (HEAVY,)),
        ({"spec_rstack_overflow": "Vulnerable: No microcode"}, ()),
        ({"retbleed": "Mitigation: untrained return thunk; SMT enabled with STIBP protection"}, (HEAVY,)),
        ({"retbleed": "Mitigation: Stuffing"}, (INTEL,)),
        ({"retbleed": "Mitigation: Enhanced IBRS"}, ()),
        ({"indirect_target_selection": "Mitigation: Aligned branch/return thunks"}, (INTEL,)),
        ({"spectre_v2": "Mitigation: Retpolines; IBPB: conditional"}, (CALL,)),
        ({"spectre_v2": HARDWARE_IBRS}, (LOW,)),
        ({"spectre_v2": "Mitigation: Enhanced IBRS, IBPB: conditional"}, (LOW,)),
        ({"spectre_v2": "Mitigation: Automatic IBRS; RSB filling"}, (LOW,)),
        ({"spectre_v2": "Mitigation: Enhanced / Automatic IBRS + Retpolines; RSB filling"}, (CALL,)),
        ({"spectre_v2": HARDWARE_IBRS, "spec_rstack_overflow": "Mitigation: Safe RET"}, (HEAVY,)),
        ({"spectre_v2": HARDWARE_IBRS, "indirect_target_selection": "Mitigation: Aligned branch/return thunks"}, (INTEL,)),
        ({"spectre_v2": "Mitigation: Retpolines", "retbleed": "Mitigation: untrained return thunk"}, (HEAVY, CALL)),
        ({"spectre_v2": "Vulnerable"}, ()),
        ({"spectre_v2": "Mitigation: CSV2, BHB"}, ()),
        ({}, ()),
    ],
)
def test_classes_follow_from_the_beginnings_of_lines(lines: dict[str, str], expected: tuple[MitigationClass, ...]) -> None:
    assert parse_classes(lines) == expected


def test_unreadable_line_leaves_no_class_to_be_too_low(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    (folder / "spectre_v2").write_text(HARDWARE_IBRS)
    assert read_mitigations(HostTree(tmp_path)).get().classes == (LOW,)
    (folder / "spec_rstack_overflow").mkdir()
    observed = read_mitigations(HostTree(tmp_path))
    assert (observed.source, observed.reason) == (f"/{FOLDER}/spec_rstack_overflow", "not a regular file")


def test_folder_without_spectre_v2_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    assert "no spectre_v2" in (read_mitigations(HostTree(tmp_path)).reason or "")


@given(st.dictionaries(st.sampled_from(["spectre_v2", "retbleed", "spec_rstack_overflow", "other"]), st.text()))
def test_low_stands_alone(lines: dict[str, str]) -> None:
    classes = parse_classes(lines)
    assert LOW not in classes or classes == (LOW,)
