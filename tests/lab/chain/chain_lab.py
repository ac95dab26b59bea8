"""The chain lab: boots a KVM host with and without the guard, runs twelve guests in each, and compares what was counted with the product.

`chain_lab.py` observes and tells; `--readme` also keeps the recording for the tests and writes the table into README.md; `--table` observes
nothing, and tells of the recording that is kept. Ends with 1 where a cell does not agree, and with 3 where the lab could not run.
"""

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid5

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))  # what the labs share

from chain_guests import GUESTS, VARIANTS
from chain_host import make_chain_disk, run_chain_host, why_no_boot_sector
from chain_qemus import RELEASES, unpacked_qemu
from chain_recording import HostRun, Origin, Recording, read_recording, write_recording
from chain_table import BEGIN, END, block_of, table_of
from chain_tree import EXITS_PER_ROUND, complete, ticks_of
from chain_verdicts import Cell, cells_of, missing_from
from debian_packages import PackagesError, why_no_packages
from emulated_host import Kernels, LabError, emulator, why_no_host
from marked_block import NoPlaceError, with_block

from exitguard.facts.collect import collect, read_identity
from exitguard.facts.libvirt import Patience
from exitguard.facts.tree import HostTree
from exitguard.model.documents import FactsDocument
from exitguard.model.host import Target, TargetKind
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Rulebook

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / ".local/lab-kernels/6.1"
FOLDER = ROOT / ".local/lab-chain"
RESULTS = ROOT / ".local/lab-results"
RECORDED = Path(__file__).with_name("recorded.json")
README = ROOT / "README.md"
_NAMESPACE = UUID("c1a2f2d0-4d0e-4b5f-8a6e-5f8f3c1d7e20")
_DISAGREES, _CANNOT_RUN = 1, 3


def observe(folder: Path, kernels: Kernels, variants: tuple[str, ...], rulebook: Rulebook) -> Recording:
    """One boot of each variant. Raises LabError, PackagesError."""
    for missing in (kernels.why_not(variants), why_no_packages(), why_no_host(), why_no_boot_sector()):
        if missing is not None:
            raise LabError(missing)
    folder.mkdir(parents=True, exist_ok=True)
    qemus = {release.suite: unpacked_qemu(release, folder / "qemu") for release in RELEASES}
    disk = make_chain_disk(folder, kernels, variants, qemus, GUESTS)
    hosts = []
    for variant in variants:
        started = time.monotonic()
        here = folder / variant
        here.mkdir(exist_ok=True)
        tree = run_chain_host(here, disk, kernels, variant)
        ticks = {guest.uuid: ticks_of(tree, guest) for guest in GUESTS}
        complete(tree, kernels, variant, qemus, GUESTS)
        facts = _facts(tree, variant, rulebook)
        if facts.host.kvm.enable_pmu.value is not True:
            raise LabError(f"{variant}: KVM itself has cleared enable_pmu for every guest. Expected a variant that is told of a PMU.")
        hosts.append(HostRun(variant=variant, patches_sha256=kernels.patches_sha256(variant), facts=facts, ticks=ticks))
        _say(f"{variant}: {len(GUESTS)} guests in {time.monotonic() - started:.0f} s")
    disk.unlink()
    return Recording(origin=_origin(kernels), hosts=tuple(hosts))


def _facts(tree: Path, variant: str, rulebook: Rulebook) -> FactsDocument:
    """What the product observes of the host's file tree, as `exitguard facts --sysroot` does."""
    # Named by what it is: where this checkout lies is nobody's business.
    target = Target(kind=TargetKind.SYSROOT, sysroot=f"/chain-lab/{variant}")
    files = HostTree(tree)
    identity = read_identity(target, files, host_id=str(uuid5(_NAMESPACE, variant)), provisional=True)
    markers = rulebook.kernels.changelog_markers
    observation = collect(target, identity, files, changelog_markers=markers, patience=Patience(60), observed_at=_now())
    return observation.facts


def _origin(kernels: Kernels) -> Origin:
    return Origin(
        recorded_at=_now(),
        command="make lab-chain" if kernels.folder == KERNELS else "tests/lab/chain/chain_lab.py --kernels FOLDER",
        kernel=kernels.built_from,
        emulator=emulator(),
        exits_per_round=EXITS_PER_ROUND,
    )


def _now() -> datetime:
    return datetime.now(UTC)


def tell(cells: tuple[Cell, ...]) -> int:
    """Print the table and what does not agree; the exit code."""
    sys.stdout.write(table_of(cells))
    missing = missing_from(cells)
    for place in missing:
        _say(f"not observed: {place}")
    wrong = [cell for cell in cells if cell.disagreements]
    for cell in wrong:
        _say(f"{cell.kernel.value}, QEMU {cell.qemu}, {cell.cpu}: {'; '.join(cell.disagreements)}")
    _say(f"{len(cells) - len(wrong)} of {len(cells)} cells agree; {sum(cell.saves for cell in cells)} save")
    return _DISAGREES if wrong or missing else 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="keep the recording for the tests, and write the table into README.md")
    parser.add_argument("--table", action="store_true", help="observe nothing: tell of the recording that is kept")
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="a lineage that scripts/lab_kernels.sh has built")
    asked = parser.parse_args()
    rulebook = load_rulebook()
    if asked.table:
        recording = read_recording(RECORDED)
    else:
        try:
            recording = observe(FOLDER, Kernels(asked.kernels), VARIANTS, rulebook)
        except (LabError, PackagesError) as error:
            _say(f"The chain lab cannot run here: {error}")
            return _CANNOT_RUN
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_recording(recording, RESULTS / "chain.json")
    try:
        cells = cells_of(recording, rulebook)
    except ValueError as error:
        _say(f"What was observed cannot be compared: {error}")
        return _DISAGREES
    status = tell(cells)
    if asked.readme and status == 0:
        write_recording(recording, RECORDED)
        try:
            README.write_text(with_block(README.read_text(), block_of(recording, cells), BEGIN, END))
        except NoPlaceError as error:
            _say(f"README.md: {error}")
            return _DISAGREES
    return status


if __name__ == "__main__":
    sys.exit(main())
