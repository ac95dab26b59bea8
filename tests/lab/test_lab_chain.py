"""The chain lab: what real guests on real kernels counted, beside what the product says of the same facts.

The recording that is kept (tests/lab/chain/recorded.json) is judged anew each time: a change of the judge, the ledger or the cost matrix
that no longer agrees with what was observed fails here. `make lab-chain` observes again.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The modules of the lab, which hold no tests.
sys.path.insert(0, str(Path(__file__).with_name("host")))
sys.path.insert(0, str(Path(__file__).with_name("chain")))

from chain_guests import GUESTS, VARIANTS, Guest
from chain_host import make_boot_sector
from chain_lab import README, RECORDED, RESULTS, observe
from chain_recording import Recording, read_recording
from chain_table import BEGIN, END, block_of, table_of
from chain_tree import ROUNDS, ticks_of
from chain_verdicts import TOLERANCE_TICKS, Cell, cells_of, missing_from
from emulated_host import Kernels, LabError
from marked_block import NoPlaceError, block_in, with_block

from exitguard.facts import domain_xml
from exitguard.facts.qemu_command_line import read_cpu_argument
from exitguard.model.kernel import KernelState
from exitguard.model.ledger import GuardSaving
from exitguard.model.pmu import ChainState
from exitguard.policy.load import load_rulebook

#: What the chain lab is there to show: nothing else saves.
SAVING = {(KernelState.GUARDED, True, cpu) for cpu in ("host,pmu=off", "EPYC", "EPYC,pmu=off")}


@pytest.fixture(scope="module", params=["recorded", "last run"])
def recording(request: pytest.FixtureRequest) -> Recording:
    path = {"recorded": RECORDED, "last run": RESULTS / "chain.json"}[request.param]
    if request.param == "last run" and not path.exists():
        pytest.skip("the chain lab has not run here: `make lab-chain` runs it")
    return read_recording(path)


@pytest.fixture(scope="module")
def cells(recording: Recording) -> tuple[Cell, ...]:
    return cells_of(recording, load_rulebook())


def place(cell: Cell) -> tuple[KernelState, bool | None, str]:
    return cell.kernel, cell.qemu_can_clear, cell.cpu


def test_every_cell_was_run_once(cells: tuple[Cell, ...]) -> None:
    assert len(cells) == 24
    assert len({place(cell) for cell in cells}) == 24
    assert missing_from(cells) == ()


def test_cell_that_was_not_run_is_named(cells: tuple[Cell, ...]) -> None:
    assert missing_from(cells[1:]) == ("affected kernel, a QEMU that never clears enable_pmu, -cpu host,pmu=on",)


def test_qemu_can_clear_enable_pmu_from_11_on(cells: tuple[Cell, ...]) -> None:
    assert {(int(cell.qemu.partition(".")[0]) >= 11, cell.qemu_can_clear) for cell in cells} == {(False, False), (True, True)}


def test_kvm_could_have_given_every_guest_a_pmu(recording: Recording) -> None:
    for host in recording.hosts:
        assert host.facts.host.kvm.enable_pmu.value is True


def test_product_agrees_with_what_was_counted_in_every_cell(cells: tuple[Cell, ...]) -> None:
    assert [(cell.kernel, cell.qemu, cell.cpu, cell.disagreements) for cell in cells if cell.disagreements] == []


def test_exactly_three_cells_save_and_they_alone_are_effective(cells: tuple[Cell, ...]) -> None:
    assert {place(cell) for cell in cells if cell.saves} == SAVING
    assert {place(cell) for cell in cells if cell.chain is ChainState.EFFECTIVE} == SAVING
    assert {place(cell) for cell in cells if cell.standing.guard is GuardSaving.SAVED} == SAVING


def test_rounds_of_a_guest_lie_close_together(recording: Recording) -> None:
    """Half of the rounds at least: the first warms up, and interrupts of the host fall into some."""
    for host in recording.hosts:
        for rounds in host.ticks.values():
            per_exit = sorted(each / recording.origin.exits_per_round for each in rounds)
            assert per_exit[len(per_exit) // 2] - per_exit[0] <= TOLERANCE_TICKS


def test_a_cell_that_saves_and_is_not_effective_is_told(recording: Recording) -> None:
    """The comparison itself can fail: the guarded host's counts laid under the stock host's facts."""
    stock, guarded = recording.hosts
    swapped = recording.model_copy(update={"hosts": (stock.model_copy(update={"ticks": guarded.ticks}), guarded)})
    wrong = {place(cell) for cell in cells_of(swapped, load_rulebook()) if cell.disagreements}
    assert wrong >= {(KernelState.AFFECTED, clears, cpu) for _, clears, cpu in SAVING}


def test_table_in_readme_is_that_of_the_recording() -> None:
    recording = read_recording(RECORDED)
    cells = cells_of(recording, load_rulebook())
    assert block_in(README.read_text(), BEGIN, END).strip() == block_of(recording, cells).strip()


def test_table_has_a_row_a_cell_and_marks_what_saves(cells: tuple[Cell, ...]) -> None:
    rows = table_of(cells).splitlines()[2:]
    assert len(rows) == 24
    assert sum("**" in row for row in rows) == 3
    assert all(row.endswith("| yes |") for row in rows)


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_definition_that_is_supplied_says_what_the_guest_is_started_with(guest: Guest) -> None:
    parsed = domain_xml.parse(guest.definition)
    assert (parsed.uuid, parsed.name) == (guest.uuid, guest.name)
    assert parsed.definition.pmu is read_cpu_argument(guest.cpu).pmu
    assert (parsed.definition.cpu_mode == "host-passthrough") == (read_cpu_argument(guest.cpu).model == "host")


@pytest.mark.integration
def test_boot_sector_counts_its_rounds_and_ends_qemu(tmp_path: Path) -> None:
    """Emulated, so that no exit is made: only that the guest of the lab does what its host waits for."""
    missing = [program for program in ("as", "ld", "qemu-system-x86_64") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")
    sector = make_boot_sector(tmp_path)
    assert sector.stat().st_size == 512
    words = ["qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-debugcon", f"file:{tmp_path}/ticks"]
    words += ["-drive", f"file={sector},format=raw,if=ide", "-device", "isa-debug-exit,iobase=0xf4"]
    ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr  # isa-debug-exit: twice the value that was written, plus one
    rounds = [int(line) for line in (tmp_path / "ticks").read_text().split()]
    assert len(rounds) == ROUNDS
    assert min(rounds) > 0


def test_guest_that_did_not_come_to_its_end_is_no_cell(tmp_path: Path) -> None:
    guest = GUESTS[0]
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / f"{guest.name}.ended").write_text("1\n")
    (tmp_path / "lab" / f"{guest.name}.ticks").write_text("12245000\n")
    (tmp_path / "lab" / f"{guest.name}.said").write_text("Could not access KVM kernel module")
    with pytest.raises(LabError, match=r"after 1 rounds, expected 1 after 9. It said: Could not access KVM"):
        ticks_of(tmp_path, guest)


def test_missing_kernels_are_named_with_the_command_that_builds_them(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"guarded-pmu.* scripts/lab_kernels.sh 6.1"):
        observe(tmp_path, Kernels(tmp_path / "6.1"), VARIANTS, load_rulebook())


def test_block_is_replaced_and_the_rest_of_the_readme_stays() -> None:
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_block(with_block(readme, "new\n", BEGIN, END), "newest\n", BEGIN, END) == f"before\n{BEGIN}\n\nnewest\n\n{END}\nafter\n"


def test_readme_without_a_place_for_the_table_is_refused_with_the_lines_to_add() -> None:
    with pytest.raises(NoPlaceError, match="chain lab: begin"):
        with_block("no place", "new", BEGIN, END)
