"""Instructions as a person reads them: names instead of addresses, and a note where one decides."""

import re
from collections.abc import Mapping

from exitguard.facts.machine_code.image import Image, Symbol
from exitguard.facts.machine_code.instructions import Immediate, Memory
from exitguard.facts.machine_code.ways import Walk
from exitguard.model.machine_code import Instruction

#: More than this is no listing that convinces anybody.
MOST_LINES = 80
_HEXADECIMAL = re.compile(r"0x[0-9a-f]+")


def list_instructions(image: Image, function: Symbol, seen: Walk, notes: Mapping[int, str]) -> tuple[Instruction, ...]:
    """What was walked of a function and of what it goes on in, in order; those that decide are kept where the listing must be cut."""
    addresses = _in_order(image, seen)
    if len(addresses) > MOST_LINES:
        near = {at for index, at in enumerate(addresses) if any(addresses[max(index - 8, 0) : index + 4].count(noted) for noted in notes)}
        addresses = [at for at in addresses if at in near][:MOST_LINES]
    return tuple(_line(image, function, seen, address, notes.get(address, "")) for address in addresses)


def _in_order(image: Image, seen: Walk) -> list[int]:
    """By address within a function; the functions in the order in which they are come to."""
    addresses = sorted(seen.instructions)
    owners = {at: own.address if (own := image.function_at(at)) is not None else at for at in addresses}
    ranks: dict[int, int] = {}
    pending = [seen.entry]
    passed: set[int] = set()
    while pending:
        at = pending.pop()
        if at in passed or at not in owners:
            continue
        passed.add(at)
        ranks.setdefault(owners[at], len(ranks))
        pending.extend(sorted((edge.to for edge in seen.edges.get(at, ()) if edge.to is not None), reverse=True))
    return sorted(addresses, key=lambda at: (ranks.get(owners[at], len(ranks)), at))


def _line(image: Image, function: Symbol, seen: Walk, address: int, note: str) -> Instruction:
    own = image.function_at(address) or function
    return Instruction(function=own.name, address=address - own.address, text=_text(image, own, seen, address), note=note)


def _text(image: Image, own: Symbol, seen: Walk, address: int) -> str:
    instruction = seen.instructions[address]
    text = instruction.text
    for operand in instruction.operands:
        if isinstance(operand, Immediate) and (instruction.mnemonic.startswith("j") or instruction.mnemonic == "call"):
            return f"{instruction.mnemonic} {_place(image, own, operand.value % (1 << 64))}"
        if isinstance(operand, Memory) and operand.absolute is not None:
            name = image.name_at(operand.absolute)
            text = re.sub(r"\[rip[^\]]*\]", f"[{name or hex(operand.absolute)}]", text)
    return text


def _place(image: Image, own: Symbol, target: int) -> str:
    name = image.name_at(target)
    if name is not None and target != own.address:
        return name
    inside = image.function_at(target)
    if inside is None:
        return f"{target:#x}"
    return f"+{target - inside.address:#x}" if inside == own else f"{inside.name}+{target - inside.address:#x}"
