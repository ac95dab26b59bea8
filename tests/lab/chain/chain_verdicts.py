"""What the product says of each cell of a recording, beside what was counted there. Pure.

The product is asked as everywhere: `judge` makes the chain of the recorded facts, and the ledger says how the run stands and what an exit
is worth in it by the shipped cost matrix. Only the unit is another: the matrix has body A in instructions alone, which are never turned
into cycles; here instructions are what is counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from statistics import median

from chain_guests import GUESTS, MITIGATIONS
from chain_recording import HostRun, Recording

from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport
from exitguard.model.domain import CpuArgument, DomainFacts
from exitguard.model.host import QemuBinary
from exitguard.model.kernel import KernelState
from exitguard.model.ledger import GuardSaving, RunStanding, Worth
from exitguard.model.pmu import ChainState, PmuElement
from exitguard.model.samples import Incarnation
from exitguard.policy.schema import Costs, Rulebook
from exitguard.savings.ledger import standings_of
from exitguard.savings.worth import Lever, Levers, instructions_of_table

#: How far what is counted may be from what is predicted: half a percent of an exit, a sixteenth of what the guard is worth. Interrupts of
#: the host fall into a round; a whole QEMU is not the bare loop that the matrix was made with; and all exits of some guests are six
#: instructions shorter than those of others. Which guests changes with the order in which they are started, not with their settings; why
#: is not known.
TOLERANCE_TICKS = 12


CPUS = tuple(dict.fromkeys(guest.cpu for guest in GUESTS))


@dataclass(frozen=True)
class Cell:
    """One kernel, one QEMU, one -cpu argument."""

    kernel: KernelState
    #: Version, and whether the program can clear kvm->arch.enable_pmu at all; None where its file did not show it.
    qemu: str
    qemu_can_clear: bool | None
    cpu: str
    #: The median of the rounds.
    ticks_per_exit: float
    #: Less than where no lever is pulled: the median of the cells without the guard, with a QEMU that clears nothing.
    saved: float
    chain: ChainState
    standing: RunStanding

    @property
    def saves(self) -> bool:
        """Whether it was counted to save anything."""
        return self.saved > TOLERANCE_TICKS

    @property
    def predicted(self) -> tuple[int, int] | None:
        """What the ledger says an exit costs less here; None where it says nothing."""
        worth = self.standing.saved
        return None if worth is None else (worth.low, worth.high)

    @property
    def disagreements(self) -> tuple[str, ...]:
        """In what product and observation differ; nothing where they agree."""
        found = []
        if (self.chain is ChainState.EFFECTIVE) != self.saves:
            found.append(f"the chain is {self.chain.value}, and {self.saved:.0f} ticks of an exit are saved")
        if (self.standing.guard is GuardSaving.SAVED) != self.saves:
            found.append(f"the ledger takes the guard for {self.standing.guard.value}, and {self.saved:.0f} ticks of an exit are saved")
        if self.predicted is None:
            found.append("the cost matrix has nothing for it")
        elif not self.predicted[0] - TOLERANCE_TICKS <= self.saved <= self.predicted[1] + TOLERANCE_TICKS:
            found.append(f"{self.saved:.0f} ticks of an exit are saved, predicted are {self.predicted[0]} to {self.predicted[1]}")
        return tuple(found)


def cells_of(recording: Recording, rulebook: Rulebook) -> tuple[Cell, ...]:
    """Every cell of the recording: by kernel, by QEMU, then the processors that have a PMU by themselves, and PMU on before off."""
    per_exit = {
        (host.variant, uuid): median(rounds) / recording.origin.exits_per_round
        for host in recording.hosts
        for uuid, rounds in host.ticks.items()
    }
    judged = [(host, judge(host.facts, rulebook)) for host in recording.hosts]
    baseline = _baseline(judged, per_exit)
    cells = (
        _cell(facts, report, _standing(host, facts.uuid, report, rulebook.costs), per_exit[host.variant, facts.uuid], baseline)
        for host, report in judged
        for facts in host.facts.domains
    )
    return tuple(sorted(cells, key=_order))


def missing_from(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Which of the 24 were not observed: another kernel or QEMU may have been run than was meant to be."""
    observed = {(cell.kernel, cell.qemu_can_clear, cell.cpu) for cell in cells}
    return tuple(
        f"{kernel.value} kernel, a QEMU that {'clears' if can_clear else 'never clears'} enable_pmu, -cpu {cpu}"
        for kernel, can_clear, cpu in product((KernelState.AFFECTED, KernelState.GUARDED), (False, True), CPUS)
        if (kernel, can_clear, cpu) not in observed
    )


def _order(cell: Cell) -> tuple[str, tuple[int, ...], int]:
    return cell.kernel.value, tuple(int(part) for part in cell.qemu.split(".")), CPUS.index(cell.cpu)


def _baseline(judged: list[tuple[HostRun, AuditReport]], per_exit: dict[tuple[str, str], float]) -> float:
    """An exit where no lever is pulled: there is no guard, and the QEMU cannot clear enable_pmu whatever it is told."""
    found = [
        per_exit[host.variant, facts.uuid]
        for host, report in judged
        if report.host.kernel.state is KernelState.AFFECTED
        for facts in host.facts.domains
        if _executable(facts).capability_string.value is False
    ]
    if not found:
        raise ValueError("no cell has an affected kernel and a QEMU that clears nothing: there is nothing to compare with")
    return median(found)


def _cell(facts: DomainFacts, report: AuditReport, standing: RunStanding, ticks: float, baseline: float) -> Cell:
    version = _executable(facts).version.value
    cpu = _cpu(facts)
    return Cell(
        kernel=report.host.kernel.state,
        qemu="unknown" if version is None else version.version,
        qemu_can_clear=_executable(facts).capability_string.value,
        cpu=cpu.model if cpu.pmu is PmuElement.ABSENT else f"{cpu.model},pmu={cpu.pmu.value}",
        ticks_per_exit=ticks,
        saved=baseline - ticks,
        chain=next(domain.chain.state for domain in report.domains if domain.uuid == facts.uuid),
        standing=standing,
    )


def _standing(host: HostRun, uuid: str, report: AuditReport, costs: Costs) -> RunStanding:
    """How the ledger has the run stand, with the cost matrix in instructions in the place of the one in cycles."""
    boot_id = host.facts.host.kernel.boot_id.value
    if boot_id is None:
        raise ValueError(f"the host of {host.variant} has no boot id: its runs cannot be named")
    run = Incarnation(host_id=report.host.id, domain_uuid=uuid, boot_id=boot_id, qemu_start_ticks=0)
    _name, standing = standings_of(report, {uuid: run}, {}, levers_in_instructions(report, costs))[run.key]
    return standing


def levers_in_instructions(report: AuditReport, costs: Costs) -> Levers:
    """The levers that the cost matrix has for the host of `report` in instructions.

    A host's mitigations lie somewhere between the matrix's two ends; this one is at the one of them that chain_host.py starts it with.
    """
    costs = costs.model_copy(update={"costs": tuple(row for row in costs.costs if row.mitigations == MITIGATIONS)})
    mitigations = report.host.mitigations.value
    table = instructions_of_table(
        costs, report.host.kernel.body, report.host.cpu.value, None if mitigations is None else mitigations.classes
    )
    return {Lever(row.saved_by, row.guard): Worth(provenance="table", low=row.low, high=row.high, costs=row.costs) for row in table}


def _executable(facts: DomainFacts) -> QemuBinary:
    binary = facts.process.value.executable.value if facts.process is not None and facts.process.value is not None else None
    if binary is None:
        raise ValueError(f"{facts.name}: its process was not seen")
    return binary


def _cpu(facts: DomainFacts) -> CpuArgument:
    cpu = facts.process.value.cpu.value if facts.process is not None and facts.process.value is not None else None
    if cpu is None:
        raise ValueError(f"{facts.name}: its -cpu argument was not seen")
    return cpu
