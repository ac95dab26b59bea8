"""x86-64 instructions in the terms that the walk needs. The only place that knows capstone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from exitguard.facts.machine_code.obstacle import Obstacle

_LONGEST_BYTES = 15


@dataclass(frozen=True, slots=True)
class Register:
    #: The whole register's name (`rax`), and how many of its lowest bytes are meant.
    name: str
    size: int
    #: True for ah, bh, ch and dh: the second byte.
    high: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    size: int
    base: Register | None
    index: Register | None
    scale: int
    displacement: int
    #: An address that is relative to the next instruction is given as it is.
    absolute: int | None = None
    #: Whether a segment's base is added: per-CPU data, which is never a field of a structure.
    segment: bool = False


@dataclass(frozen=True, slots=True)
class Immediate:
    value: int
    size: int


Operand = Register | Memory | Immediate


@dataclass(frozen=True, slots=True)
class Decoded:
    """One instruction; `writes` are the whole registers that it changes."""

    address: int
    size: int
    mnemonic: str
    text: str
    operands: tuple[Operand, ...]
    writes: frozenset[str]
    writes_memory: bool
    writes_flags: bool

    @property
    def after(self) -> int:
        return self.address + self.size


_WHOLE: Mapping[str, tuple[str, int, bool]] = {
    **{name: (name, 8, False) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip")},
    **{f"r{n}": (f"r{n}", 8, False) for n in range(8, 16)},
    **{f"r{n}{letter}": (f"r{n}", size, False) for n in range(8, 16) for letter, size in (("d", 4), ("w", 2), ("b", 1))},
    **{f"e{name}": (f"r{name}", 4, False) for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip")},
    **{name: (f"r{name}", 2, False) for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip")},
    **{f"{name}l": (f"r{name}x", 1, False) for name in "abcd"},
    **{f"{name}h": (f"r{name}x", 1, True) for name in "abcd"},
    **{f"{name}l": (f"r{name}", 1, False) for name in ("si", "di", "bp", "sp")},
}


def decode(code: bytes, address: int) -> Decoded:
    """The instruction at the beginning of `code`. Raises Obstacle for what is none."""
    disassembler, constants = _capstone()
    found = next(disassembler.disasm(code[:_LONGEST_BYTES], address, 1), None)
    if found is None:
        raise Obstacle(f"no instruction that is known: bytes {code[:_LONGEST_BYTES].hex(' ')}")
    _, written = found.regs_access()
    names = [found.reg_name(register) for register in written]
    operands = tuple(_operand(found, operand, constants) for operand in found.operands)
    writes_memory = any(operand.type == constants.X86_OP_MEM and operand.access & 2 for operand in found.operands)  # CS_AC_WRITE
    mnemonic = str(found.mnemonic)
    return Decoded(
        address=address,
        size=int(found.size),
        mnemonic=mnemonic,
        text=f"{mnemonic} {found.op_str}".strip(),
        operands=operands,
        writes=frozenset(_WHOLE[name][0] for name in names if name in _WHOLE),
        # String instructions store through rdi without an operand that says so in every version of capstone.
        writes_memory=writes_memory or (mnemonic.rpartition(" ")[2].startswith(("stos", "movs")) and "rdi" in str(found.op_str)),
        writes_flags="rflags" in names,
    )


def _operand(found: Any, operand: Any, constants: Any) -> Operand:
    if operand.type == constants.X86_OP_REG:
        return _register(found.reg_name(operand.reg))
    if operand.type == constants.X86_OP_IMM:
        return Immediate(int(operand.imm), int(operand.size))
    memory = operand.mem
    base = _register(found.reg_name(memory.base)) if memory.base else None
    index = _register(found.reg_name(memory.index)) if memory.index else None
    segment = bool(memory.segment) and found.reg_name(memory.segment) in ("fs", "gs")
    displacement = int(memory.disp)
    if base is not None and base.name == "rip":
        return Memory(
            int(operand.size), None, None, 1, 0, absolute=(int(found.address) + int(found.size) + displacement) % (1 << 64), segment=segment
        )
    if base is None and index is None:
        return Memory(int(operand.size), None, None, 1, 0, absolute=displacement % (1 << 64), segment=segment)
    return Memory(int(operand.size), base, index, int(memory.scale), displacement, segment=segment)


def _register(name: str) -> Register:
    whole, size, high = _WHOLE.get(name, (name, 8, False))
    return Register(whole, size, high)


@cache
def _capstone() -> tuple[Any, Any]:
    try:
        import capstone
        import capstone.x86_const
    except ImportError as error:
        raise Obstacle(f"reading machine code needs the extra exitguard[kernel]: {error.name} is not installed") from None
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    return disassembler, capstone.x86_const
