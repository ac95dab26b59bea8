"""Random programs of the instructions that compilers use for C, run for real: what the walk says of them can be checked."""

import ctypes
import random
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Registers that a program may use freely; rdi points at the data, r15 at the marks, both untouched.
FREE = ("rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "rbx", "rbp", "r12", "r13")
DATA_BYTES = 24
_PARTS = {
    "rax": ("eax", "ax", "al"), "rcx": ("ecx", "cx", "cl"), "rdx": ("edx", "dx", "dl"), "rbx": ("ebx", "bx", "bl"),
    "rsi": ("esi", "si", "sil"), "rbp": ("ebp", "bp", "bpl"),
    **{f"r{n}": (f"r{n}d", f"r{n}w", f"r{n}b") for n in range(8, 16)},
}  # fmt: skip
_PREDICATES = ("e", "ne", "b", "ae", "be", "a", "l", "ge", "le", "g", "s", "ns")
_WORDS = {8: "qword", 4: "dword", 2: "word", 1: "byte"}


def part(register: str, size: int) -> str:
    return register if size == 8 else _PARTS[register][{4: 0, 2: 1, 1: 2}[size]]


@dataclass(frozen=True)
class Program:
    """Lines of assembly; mark n is set where block n was run."""

    name: str
    lines: tuple[str, ...]
    blocks: int


def random_program(name: str, rng: random.Random) -> Program:
    """Blocks that only jump forwards, with balanced pushes."""
    blocks = rng.randint(2, 6)
    lines: list[str] = []
    for block in range(blocks):
        lines += [f".L{name}_{block}:", f"mov byte ptr [r15 + {block}], 1"]
        pushed: list[str] = []
        for _ in range(rng.randint(1, 7)):
            lines += _instruction(rng, pushed)
        lines += [f"pop {rng.choice(FREE)}" for _ in pushed]
        if block + 1 < blocks and rng.random() < 0.8:
            lines += _comparison(rng)
            jump = f"j{rng.choice(_PREDICATES)}" if rng.random() < 0.9 else "jmp"
            lines.append(f"{jump} .L{name}_{rng.randint(block + 1, blocks - 1)}")
    return Program(name, (*lines, "ret"), blocks)


def _memory(rng: random.Random, size: int) -> str:
    return f"{_WORDS[size]} ptr [rdi + {rng.choice((0, 0, 8, 8, 12))}]"


def _operand(rng: random.Random, size: int) -> str:
    if rng.random() < 0.35:
        return _memory(rng, size)
    return part(rng.choice(FREE), size)


def _size(rng: random.Random) -> int:
    return rng.choice((8, 8, 4, 4, 4, 1, 1, 2))


def _constant(rng: random.Random, size: int) -> int:
    return rng.choice((0, 1, 2, 0x7F, -1, rng.randint(-128, 127), rng.randint(-30000, 30000) if size > 1 else 5))


def _comparison(rng: random.Random) -> list[str]:
    """What sets the flags; sometimes nothing, so that those of whatever came before count."""
    if rng.random() < 0.3:
        return []
    size = _size(rng)
    word = rng.choice(("cmp", "test", "cmp"))
    left = _memory(rng, size) if rng.random() < 0.5 else part(rng.choice(FREE), size)
    if rng.random() < 0.6:
        return [f"{word} {left}, {_constant(rng, size)}"]
    return [f"{word} {left}, {part(rng.choice(FREE), size)}"]


def _instruction(rng: random.Random, pushed: list[str]) -> list[str]:  # noqa: PLR0912 - one case a kind
    size = _size(rng)
    register = rng.choice(FREE)
    to = part(register, size)
    match rng.randint(0, 13):
        case 0:
            return [f"mov {to}, {_operand(rng, size)}"]
        case 1:
            return [f"mov {to}, {_constant(rng, size)}"]
        case 2:
            return [f"movzx {part(register, rng.choice((4, 8)))}, {_operand(rng, rng.choice((1, 2)))}"]
        case 3 | 4:
            word = rng.choice(("and", "or", "xor", "add", "sub"))
            return [f"{word} {to}, {_operand(rng, size) if rng.random() < 0.6 else _constant(rng, size)}"]
        case 5:
            return [f"xor {part(register, 4)}, {part(register, 4)}"]
        case 6:
            return [*_comparison(rng), f"set{rng.choice(_PREDICATES)} {part(register, 1)}"]
        case 7:
            wide = rng.choice((4, 8))
            return [*_comparison(rng), f"cmov{rng.choice(_PREDICATES)} {part(register, wide)}, {_operand(rng, wide)}"]
        case 8:
            return [f"lea {part(register, 8)}, [{rng.choice(FREE)} + {rng.randint(-200, 200)}]"]
        case 9:
            pushed.append(register)
            return [f"push {register}"]
        case 10:
            return [f"{rng.choice(('inc', 'dec', 'not', 'neg'))} {to}"]
        case 11:
            return [f"{rng.choice(('shl', 'shr', 'sar', 'ror'))} {to}, {rng.randint(1, 7)}"]
        case 12:
            return [
                rng.choice(
                    (
                        f"movsx {part(register, 4)}, {_operand(rng, 1)}",
                        "cdqe",
                        "nop",
                        f"xchg {to}, {part(rng.choice(FREE), size)}",
                        f"bt {part(register, 8)}, 3",
                    )
                )
            ]
        case _:
            return [f"test {to}, {to}", f"set{rng.choice(('e', 'ne'))} {part(rng.choice(FREE), 1)}"]


#: Loads the registers from the second argument, runs the program on the first, and stores them back.
_RUNNER = """
.globl run_{name}
.type run_{name}, @function
run_{name}:
    push rbx; push rbp; push r12; push r13; push r14; push r15
    mov r14, rsi
    mov r15, rdx
    {load}
    call {name}
    {store}
    pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx
    ret
.size run_{name}, .-run_{name}
.globl {name}
.type {name}, @function
{name}:
    {body}
.size {name}, .-{name}
"""


class Programs:
    """Assembled and loaded; `code` is the same as a relocatable file."""

    def __init__(self, programs: list[Program], folder: Path) -> None:
        source = folder / "programs.s"
        load = "\n    ".join(f"mov {register}, [r14 + {8 * index}]" for index, register in enumerate(FREE))
        store = "\n    ".join(f"mov [r14 + {8 * index}], {register}" for index, register in enumerate(FREE))
        texts = [_RUNNER.format(name=each.name, load=load, store=store, body="\n    ".join(each.lines)) for each in programs]
        source.write_text('.intel_syntax noprefix\n.text\n.section .note.GNU-stack,"",@progbits\n.text\n' + "\n".join(texts))
        subprocess.run(["gcc", "-c", source, "-o", folder / "programs.o"], check=True, timeout=60)
        subprocess.run(["gcc", "-shared", "-nostdlib", folder / "programs.o", "-o", folder / "programs.so"], check=True, timeout=60)
        self.code = (folder / "programs.o").read_bytes()
        self._library = ctypes.CDLL(str(folder / "programs.so"))

    def run(self, program: Program, registers: dict[str, int], data: bytes) -> tuple[dict[str, int], frozenset[int]]:
        """The registers afterwards, and the blocks that were run."""
        memory = ctypes.create_string_buffer(data, DATA_BYTES)
        bank = ctypes.create_string_buffer(struct.pack(f"<{len(FREE)}Q", *(registers[name] for name in FREE)), 8 * len(FREE))
        marks = ctypes.create_string_buffer(16)
        getattr(self._library, f"run_{program.name}")(memory, bank, marks)
        after = dict(zip(FREE, struct.unpack(f"<{len(FREE)}Q", bank.raw), strict=True))
        return after, frozenset(index for index, mark in enumerate(marks.raw) if mark)
