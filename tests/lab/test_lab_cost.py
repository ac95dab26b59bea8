"""The cost lab: what `exitguard measure` says an exit takes on real kernels, beside a loop in C and the cost matrix.

The recording that is kept (tests/lab/cost/recorded.json) is compared anew each time: a change of the cost matrix or of what is concluded
from machine code that no longer agrees with what was counted fails here. `make lab` observes again.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The modules of the lab, which hold no tests.
sys.path.insert(0, str(Path(__file__).with_name("host")))
sys.path.insert(0, str(Path(__file__).with_name("cost")))

from cost_figures import Accounting, Figure, Place, Saving, accounting_of, figures_of, place_of, rows_without_counterpart, savings_of
from cost_host import make_exit_loop
from cost_lab import LINEAGES, README, RECORDED, RESULTS, VARIANTS, Effort, observe
from cost_recording import (
    COUNTED_LOOP,
    MEASUREMENT,
    ExitLoop,
    Recording,
    loop_name,
    read_counted,
    read_exits_made,
    read_loop,
    read_measurement,
    read_recording,
)
from cost_table import BEGIN, END, block_of, disagreements
from emulated_host import Kernels, LabError
from marked_block import block_in

from exitguard.model.kernel import Body
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, CheckOutcome, Refused
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Costs

EVERY_PLACE = {
    Place(body=body, guard=guard, mitigations=mitigations)
    for body in (Body.A, Body.B)
    for guard in (False, True)
    for mitigations in ("off", "auto")
}
_HISTOGRAM = """# event histogram
{ isa:          2, exit_reason:         96 } hitcount:          1
{ isa:          2, exit_reason:        114 } hitcount:      12000

Totals:
    Hits: 12001
    Entries: 2
    Dropped: 0
"""


@pytest.fixture(scope="module", params=["recorded", "last run"])
def recording(request: pytest.FixtureRequest) -> Recording:
    path = {"recorded": RECORDED, "last run": RESULTS / "cost.json"}[request.param]
    if request.param == "last run" and not path.exists():
        pytest.skip("the cost lab has not run here: `make lab` runs it")
    return read_recording(path)


@pytest.fixture(scope="module")
def costs() -> Costs:
    return load_rulebook().costs


@pytest.fixture(scope="module")
def figures(recording: Recording) -> tuple[Figure, ...]:
    return figures_of(recording)


@pytest.fixture(scope="module")
def savings(recording: Recording, costs: Costs) -> tuple[Saving, ...]:
    return savings_of(recording, costs)


@pytest.fixture(scope="module")
def accounting(recording: Recording) -> tuple[Accounting, ...]:
    return accounting_of(recording)


def test_every_kernel_was_run_under_both_mitigations(recording: Recording) -> None:
    assert len(recording.hosts) == len(EVERY_PLACE)
    assert {place_of(host) for host in recording.hosts} == EVERY_PLACE


def test_kvm_that_was_measured_is_the_one_whose_code_was_read(recording: Recording) -> None:
    for host in recording.hosts:
        assert host.measurement.kvm_build_id.value == host.code.build_id
        assert host.measurement.kernel_release.value == host.code.release


def test_mitigations_were_what_the_command_line_says(recording: Recording) -> None:
    for host in recording.hosts:
        assert host.measurement.mitigations.value is not None
        vulnerable = host.measurement.mitigations.value.lines["spectre_v2"].startswith("Vulnerable")
        assert vulnerable is (host.mitigations == "off")


def test_no_check_of_a_measurement_failed_and_its_exits_were_real(recording: Recording) -> None:
    for host in recording.hosts:
        outcomes = {check.name: check.outcome for check in host.measurement.checks}
        assert CheckOutcome.FAILED not in outcomes.values()
        assert outcomes["real exits"] is CheckOutcome.HELD
        assert outcomes["TSC rate"] is CheckOutcome.HELD


def test_every_loop_has_both_arms(figures: tuple[Figure, ...]) -> None:
    assert {(each.place, each.loop, each.arm) for each in figures} == {
        (place, loop, arm) for place in EVERY_PLACE for loop in Loop for arm in Arm
    }


def test_exitguard_says_what_the_loop_in_c_says(figures: tuple[Figure, ...]) -> None:
    compared = [each for each in figures if each.counted is not None]
    assert {each.loop for each in compared} == {Loop.CPUID, Loop.MSR}
    assert [each for each in compared if not each.agrees] == []


def test_cost_matrix_says_what_was_counted_of_each_change(savings: tuple[Saving, ...]) -> None:
    assert [each for each in savings if not each.agrees] == []


def test_every_row_of_the_lab_was_counted(savings: tuple[Saving, ...], costs: Costs) -> None:
    assert rows_without_counterpart(savings, costs) == ()


def test_pmu_off_saves_on_body_a_only_with_the_guard(figures: tuple[Figure, ...]) -> None:
    by = {(each.place, each.arm): each.measured for each in figures if each.loop is Loop.CPUID}
    for place in EVERY_PLACE:
        saved = by[place, Arm.AS_CREATED] - by[place, Arm.PMU_OFF]
        assert (saved > 100) is (place.guard or place.body is Body.B), place


def test_kernel_counted_exactly_the_exits_that_were_made(accounting: tuple[Accounting, ...]) -> None:
    assert len(accounting) == 2 * len(EVERY_PLACE)
    assert [each for each in accounting if not each.agrees] == []
    assert all(each.made > 0 for each in accounting)


def test_table_in_readme_is_that_of_the_recording(costs: Costs) -> None:
    kept = read_recording(RECORDED)
    block = block_of(kept, figures_of(kept), savings_of(kept, costs), accounting_of(kept))
    assert block_in(README.read_text(), BEGIN, END).strip() == block.strip()


def test_row_that_is_off_by_four_is_told(recording: Recording, costs: Costs) -> None:
    wrong = costs.model_copy(
        update={
            "costs": tuple(row.model_copy(update={"instructions_per_exit": 204}) if row.id == "lab-a-guard" else row for row in costs.costs)
        }
    )
    (said,) = disagreements((), savings_of(recording, wrong), ())
    assert re.search(r"body A, guarded, mitigations=off, saved by guard: exitguard \S+, the loop in C \S+, the cost matrix 204", said)


def test_loop_that_counted_otherwise_is_told(recording: Recording) -> None:
    """The comparison itself can fail: what body A takes is laid beside what body B was measured to take."""
    first, *others = recording.hosts
    last = others[-1]
    assert place_of(first).body is not place_of(last).body
    swapped = recording.model_copy(update={"hosts": (first.model_copy(update={"loops": last.loops}),)})
    assert disagreements(figures_of(swapped), (), ())


def test_exits_that_were_not_counted_are_told(recording: Recording) -> None:
    first = recording.hosts[0]
    fewer = recording.model_copy(update={"hosts": (first.model_copy(update={"counted_loop_exits": first.counted_loop_exits + 1}),)})
    (said,) = disagreements((), (), accounting_of(fewer))
    assert f"{first.counted_loop_exits + 1} exits for CPUID made, {first.counted_loop_exits} counted" in said


def test_loop_that_was_interrupted_in_some_rounds_is_read_by_the_others() -> None:
    loop = ExitLoop(program="cpuid", arm=Arm.PMU_OFF, iterations=400, rounds=((942593, 1761111), (881911, 1770182), (881911, 1761111)))
    assert loop.ticks_per_exit == 2198.0


def test_what_the_host_told_is_read(tmp_path: Path) -> None:
    name = loop_name("cpuid", Arm.AS_CREATED)
    (tmp_path / name).write_text("ticks 1024193 1924311\nticks 963511 1924311\nexits 2400\n")
    (tmp_path / f"{name}.ended").write_text("0\n")
    (tmp_path / f"{COUNTED_LOOP}.hist").write_text(_HISTOGRAM)
    assert read_loop(tmp_path, "cpuid", Arm.AS_CREATED, 400).ticks_per_exit == 2402.0
    assert read_exits_made(tmp_path, name) == 2400
    counted = read_counted(tmp_path, COUNTED_LOOP)
    assert [(each.isa, each.exit_reason, each.hits) for each in counted.reasons] == [(2, 96, 1), (2, 114, 12000)]


def test_program_that_failed_in_the_host_is_told_with_what_it_said(tmp_path: Path) -> None:
    for ending, text in (("", ""), (".ended", "1\n"), (".said", "no /dev/kvm\n")):
        (tmp_path / f"{MEASUREMENT}{ending}").write_text(text)
    with pytest.raises(LabError, match=r"measure ended with 1, expected 0 or 3\. It said: no /dev/kvm"):
        read_measurement(tmp_path, MEASUREMENT)


def test_measurement_that_exitguard_refused_is_none(recording: Recording, tmp_path: Path) -> None:
    refused = recording.hosts[0].measurement.model_copy(update={"loops": (), "refused": Refused(reason="too loud", next_step="wait")})
    (tmp_path / MEASUREMENT).write_text(refused.model_dump_json())
    (tmp_path / f"{MEASUREMENT}.ended").write_text("3\n")
    with pytest.raises(LabError, match="measure: exitguard refused: too loud; wait"):
        read_measurement(tmp_path, MEASUREMENT)


def test_missing_kernels_are_named_with_the_command_that_builds_them(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"stock-pmu, guarded-pmu not built: run scripts/lab_kernels\.sh 6\.12"):
        observe(tmp_path, (Kernels(tmp_path / "6.12"),), Effort())
    assert LINEAGES == ("6.1", "6.12")
    assert VARIANTS == ("stock-pmu", "guarded-pmu")


@pytest.mark.integration
def test_loop_in_c_is_built_without_a_warning_and_names_its_use(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("missing: gcc")
    program = make_exit_loop(tmp_path / "exit_loop")
    used = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert (used.returncode, used.stdout) == (64, "")
    assert "usage: exit_loop cpuid|msr|bare on|off ITERATIONS ROUNDS" in used.stderr
