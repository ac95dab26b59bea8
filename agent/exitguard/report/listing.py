"""The instructions of a reading as a person checks them: address, instruction, and what the deciding ones decide.

Made for 80 columns and for terminals without colour: a deciding instruction has a mark, and its note stands in a column of its own.
"""

from collections.abc import Iterator
from itertools import groupby
from textwrap import wrap

from rich.text import Text

from exitguard.audit.machine_code import is_guarded_at_the_call, machine_code_statement
from exitguard.model.kernel import KernelState
from exitguard.model.machine_code import Instruction, MachineCode
from exitguard.report.page import FAINT, STRONG, Look, render
from exitguard.report.text import visible

_MARK = ">"
#: Indentation, mark and address.
_MARGIN_COLUMNS, _ADDRESS_COLUMNS = 4, 8
_CODE_COLUMNS = _MARGIN_COLUMNS + _ADDRESS_COLUMNS
_TEXT_COLUMNS = 34
#: Where the column for notes would be narrower, they stand below.
_NARROWEST_NOTE_COLUMNS = 24
#: A reading is bounded; this is for one that is not.
_MOST_LINES = 400
_LIMIT_CHARACTERS = 300


def listing_text(reading: MachineCode, look: Look) -> str:
    """The listing, one block a function, in its order; empty where there are no instructions."""
    return render(look, listing_lines(reading, look)) if reading.listing else ""


def listing_lines(reading: MachineCode, look: Look) -> Iterator[Text]:
    """The listing as lines of a page."""
    shown = reading.listing[:_MOST_LINES]
    for place, (function, instructions) in enumerate(groupby(shown, key=lambda instruction: instruction.function)):
        if place:
            yield Text()
        yield Text.assemble("  ", _foreign(f"{function}:", STRONG))
        for instruction in instructions:
            yield from _lines(instruction, look)
    if len(reading.listing) > _MOST_LINES:
        yield Text.assemble("  ", look.own(f"… and {len(reading.listing) - _MOST_LINES:,} more instructions", FAINT))


def deciding_sentence(reading: MachineCode) -> str:
    """Why the instructions decide what they decide, in plain words."""
    statement = machine_code_statement(reading)
    match statement.state:
        case KernelState.GUARDED if is_guarded_at_the_call(reading):
            return (
                "Where the guest's PMU is off (kvm->arch.enable_pmu is 0), no way through these instructions reaches the PMU call; where "
                "it is on, one does. So a PMU-off guest pays for one test, and for nothing else."
            )
        case KernelState.GUARDED:
            return (
                "The PMU call is made for every guest, and what it calls asks for kvm->arch.enable_pmu first: where that is 0 it returns "
                "at once, before any work. A PMU-off guest pays for the call and one test."
            )
        case KernelState.EQUIVALENT:
            return (
                "The PMU call is made, and what it calls returns at once, before any work, while none of the guest's counters counts "
                "instructions. A guest whose PMU is off has no such counter: there is nothing left to save."
            )
        case KernelState.NOT_AFFECTED:
            return (
                "None of these instructions calls into the virtual PMU, and neither function that they would have to call is in this "
                "kernel: there is nothing to guard."
            )
        case KernelState.AFFECTED:
            spared = reading.callee is not None and "all_valid_pmc_idx" in reading.callee.returns_when_empty
            ends = "what is called returns early only where a guest has no counter at all" if spared else "what is called goes to work"
            return (
                "All that is asked on the way to the PMU call is whether the instruction could be skipped, and nothing asks for "
                f"kvm->arch.enable_pmu. So the call is made for every guest, PMU on or off; {ends}."
            )
        case _:
            return f"These instructions prove no state: {statement.value}."


def _lines(instruction: Instruction, look: Look) -> Iterator[Text]:
    style = STRONG if instruction.note else ""
    margin = f"  {_MARK if instruction.note else ' '} "
    head = Text.assemble((margin, style), (f"{f'+{instruction.address:#x}':<{_ADDRESS_COLUMNS}}", FAINT))
    code = _wrapped(instruction.text, look.columns - _CODE_COLUMNS)
    note = _wrapped(instruction.note, look.columns - _CODE_COLUMNS - _TEXT_COLUMNS - 2)
    beside = look.columns - _CODE_COLUMNS - _TEXT_COLUMNS - 2 >= _NARROWEST_NOTE_COLUMNS
    indent = _CODE_COLUMNS + _TEXT_COLUMNS + 2 if beside else _CODE_COLUMNS + 2
    if not beside:
        note = _wrapped(instruction.note, look.columns - indent)
    first, *rest = code or [""]
    line = head.append_text(Text(first, style))
    if note and beside and not rest and len(first) <= _TEXT_COLUMNS:
        line.append(" " * (indent - line.cell_len)).append(note.pop(0))
    yield line
    for more in rest:
        yield Text.assemble(" " * _CODE_COLUMNS, (more, style))
    for more in note:
        yield Text.assemble(" " * indent, more)


def _wrapped(text: str, columns: int) -> list[str]:
    """ASCII only, so that a character is a column: what a file names itself may be anything."""
    return wrap(visible(text, limit_characters=_LIMIT_CHARACTERS, ascii_only=True), max(columns, 1))


def _foreign(text: str, style: str) -> Text:
    return Text.assemble((visible(text, limit_characters=_LIMIT_CHARACTERS, ascii_only=True), style))
