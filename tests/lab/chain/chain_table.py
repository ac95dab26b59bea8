"""The cells of the chain lab as a Markdown table, and the lines of README.md between which it stands. Pure."""

import textwrap
from collections.abc import Iterable

from chain_recording import Recording
from chain_verdicts import TOLERANCE_TICKS, Cell

BEGIN = "<!-- chain lab: begin; scripts/lab_chain.sh --readme writes what stands between these two lines -->"
END = "<!-- chain lab: end -->"
#: Of the lines of README.md.
_WIDTH = 130
_HEAD = """| KVM | QEMU | -cpu | ticks an exit | saved: counted | predicted | the chain, as judged | agrees |
| --- | --- | --- | ---: | ---: | ---: | --- | --- |
"""


def table_of(cells: Iterable[Cell]) -> str:
    """A row a cell, with all that is compared. What saves is bold."""
    return _HEAD + "".join(_row(cell) for cell in cells)


def block_of(recording: Recording, cells: tuple[Cell, ...]) -> str:
    """For README.md: a row a -cpu argument, a column a kernel and a QEMU, and what it rests on."""
    origin = recording.origin
    columns = tuple(dict.fromkeys((cell.kernel, cell.qemu) for cell in cells))
    rows = tuple(dict.fromkeys(cell.cpu for cell in cells))
    by_place = {(cell.kernel, cell.qemu, cell.cpu): cell for cell in cells}
    lines = [
        f"| `-cpu` | {' | '.join(f'{kernel.value} kernel, QEMU {qemu}' for kernel, qemu in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *(f"| `{cpu}` | {' | '.join(_place(by_place[kernel, qemu, cpu]) for kernel, qemu in columns)} |" for cpu in rows),
    ]
    saving = [cell for cell in cells if cell.saves]
    agreeing = sum(not cell.disagreements for cell in cells)
    counted = sorted(round(cell.saved) for cell in saving)
    predicted = sorted({_predicted(cell.predicted) for cell in saving})
    told = (
        "Instructions per CPUID exit, and the chain as exitguard judges it. Bold is what was counted to save: "
        f"{len(saving)} of {len(cells)} cells, {_from_to(counted)} instructions, where the cost matrix says {' or '.join(predicted)}. "
        f"In {agreeing} of {len(cells)} cells judge, ledger and cost matrix agree with what was counted, within {TOLERANCE_TICKS} "
        f"instructions. Counted by `{origin.command}` on {origin.recorded_at:%Y-%m-%d}: Linux {origin.kernel.get('release', 'unknown')} "
        "on an emulated AMD processor, KVM with and without the guard and told of a PMU, real QEMU programs, a boot sector as the guest; "
        "kernel, QEMU and -cpu are read from that host, and libvirt definitions that say the same are supplied."
    )
    return "\n".join(lines) + "\n\n" + textwrap.fill(told, width=_WIDTH, break_on_hyphens=False) + "\n"


def _place(cell: Cell) -> str:
    text = f"{cell.ticks_per_exit:.0f} {cell.chain.value.replace('_', ' ')}"
    if cell.saves:
        text = f"**{text}**"
    return f"{text} (disagrees)" if cell.disagreements else text


def _from_to(counted: list[int]) -> str:
    if not counted:
        return "0"
    return str(counted[0]) if counted[0] == counted[-1] else f"{counted[0]} to {counted[-1]}"


def _row(cell: Cell) -> str:
    counted = _saved(cell.saved)
    if cell.saves:
        counted = f"**{counted}**"
    agrees = "yes" if not cell.disagreements else f"**no**: {'; '.join(cell.disagreements)}"
    return (
        f"| {cell.kernel.value} | {cell.qemu} | `{cell.cpu}` | {cell.ticks_per_exit:.0f} | {counted} | {_predicted(cell.predicted)} "
        f"| {cell.chain.value.replace('_', ' ')} | {agrees} |\n"
    )


def _predicted(predicted: tuple[int, int] | None) -> str:
    if predicted is None:
        return "nothing"
    low, high = predicted
    return _saved(low) if low == high else f"{_saved(low)} to {_saved(high)}"


def _saved(ticks: float) -> str:
    """Whole instructions, and no minus zero."""
    return str(round(ticks) + 0)
