"""The 24 cells that were measured in the chain lab: {stock, guarded} x {QEMU 7.2, 11.1} x six -cpu arguments.

A guarded kernel saved about 204 instructions per CPUID exit in exactly three of them; a Debian 6.1 host (body A), real QEMU
binaries, a boot sector as the guest. Definition = run, the owner is libvirt. Whatever the chain calls effective must be one of
the three.
"""

import pytest
from audit_builders import GUARD_ENTRY, QEMU_7, QEMU_11, affected_kernel, definition, domain, facts, process

from exitguard.audit.judge import judge
from exitguard.model.host import QemuBinary
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import ChainState, NextAction, PmuElement
from exitguard.policy.load import load_rulebook

STOCK = affected_kernel()
GUARDED = affected_kernel(changelog=(GUARD_ENTRY,))

#: -cpu argument, and the libvirt definition that makes libvirt write it.
CPUS = {
    "host,pmu=on": definition("host-passthrough", PmuElement.ON),
    "host,pmu=off": definition("host-passthrough", PmuElement.OFF),
    "host": definition("host-passthrough"),
    "EPYC": definition("custom"),
    "EPYC,pmu=off": definition("custom", PmuElement.OFF),
    "EPYC,pmu=on": definition("custom", PmuElement.ON),
}

#: Instructions per CPUID exit, as measured.
MEASURED = {
    ("stock", "7.2"): (2521, 2523, 2523, 2523, 2523, 2523),
    ("stock", "11.1"): (2522, 2521, 2521, 2520, 2522, 2522),
    ("guarded", "7.2"): (2527, 2527, 2527, 2527, 2527, 2527),
    ("guarded", "11.1"): (2525, 2321, 2526, 2321, 2321, 2525),
}

CELLS = [
    pytest.param(kernel, qemu, cpu, instructions, id=f"{kernel}-{qemu}-{cpu}")
    for (kernel, qemu), row in MEASURED.items()
    for cpu, instructions in zip(CPUS, row, strict=True)
]


def judge_cell(kernel: str, qemu: str, cpu: str) -> tuple[KernelState, ChainState, NextAction]:
    binary: QemuBinary = {"7.2": QEMU_7, "11.1": QEMU_11}[qemu]
    guest = domain(defined=CPUS[cpu], run=CPUS[cpu], runs=process(cpu, binary))
    report = judge(facts(guest, kernel={"stock": STOCK, "guarded": GUARDED}[kernel], binaries=(binary,)), load_rulebook())
    return report.host.kernel.state, report.domains[0].chain.state, report.domains[0].chain.next_action


def test_all_24_cells_are_here() -> None:
    assert len(CELLS) == 24


@pytest.mark.parametrize(("kernel", "qemu", "cpu", "instructions"), CELLS)
def test_effective_is_exactly_what_was_measured_to_save(kernel: str, qemu: str, cpu: str, instructions: int) -> None:
    saved = instructions < 2400
    _, state, _ = judge_cell(kernel, qemu, cpu)
    assert (state is ChainState.EFFECTIVE) == saved


@pytest.mark.parametrize(
    ("kernel", "qemu", "states"),
    [
        ("stock", "7.2", ("opted_out", "not_propagated", "on", "not_propagated", "not_propagated", "opted_out")),
        ("stock", "11.1", ("opted_out", "unguarded", "on", "unguarded", "unguarded", "opted_out")),
        ("guarded", "7.2", ("opted_out", "not_propagated", "on", "not_propagated", "not_propagated", "opted_out")),
        ("guarded", "11.1", ("opted_out", "effective", "on", "effective", "effective", "opted_out")),
    ],
)
def test_every_cell_that_saves_nothing_names_the_link_that_holds_it_back(kernel: str, qemu: str, states: tuple[str, ...]) -> None:
    assert tuple(judge_cell(kernel, qemu, cpu)[1].value for cpu in CPUS) == states


def test_the_stock_kernel_is_affected_and_the_other_guarded() -> None:
    assert judge_cell("stock", "7.2", "host")[0] is KernelState.AFFECTED
    assert judge_cell("guarded", "7.2", "host")[0] is KernelState.GUARDED
