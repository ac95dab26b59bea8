"""What the walk says of a program is what happens when the processor runs it: on random programs, registers and memory."""

import random
import shutil
import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from machine_programs import DATA_BYTES, FREE, Program, Programs, random_program

from exitguard.facts.machine_code.image import Image, load_image
from exitguard.facts.machine_code.state import State
from exitguard.facts.machine_code.values import (
    Argument,
    Both,
    Condition,
    Constant,
    Load,
    Lowest,
    Narrow,
    Sum,
    Truth,
    Unknown,
    Value,
    add,
)
from exitguard.facts.machine_code.walk import walk
from exitguard.facts.machine_code.ways import Walk

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: no program can be assembled")

_DATA = Argument("data")
_BITS = (1 << 64) - 1
_PROGRAMS = 200
_RUNS = 12


class Anything(Exception):  # noqa: N818 - the value is unknown: nothing is claimed
    pass


def evaluate(value: Value, registers: dict[str, int], data: bytes) -> int:
    """What a symbolic value is, given what the registers and the memory held."""
    match value:
        case Constant(constant):
            return constant
        case Argument(name):
            return registers[name]
        case Sum(base, offset):
            return (evaluate(base, registers, data) + offset) & _BITS
        case Load(address, size):
            at = address.offset if isinstance(address, Sum) else 0
            return int.from_bytes(data[at : at + size], "little")
        case Narrow(inner, size):
            return evaluate(inner, registers, data) & ((1 << 8 * size) - 1)
        case Truth(condition):
            return int(holds(condition, registers, data))
        case Both(operation, left, right):
            one, other = evaluate(left, registers, data), evaluate(right, registers, data)
            return {"and": one & other, "or": one | other, "xor": one ^ other, "sub": one - other, "add": one + other}[operation] & _BITS
        case _:
            raise Anything


def holds(condition: Condition, registers: dict[str, int], data: bytes) -> bool:
    sides = [Constant(evaluate(side, registers, data)) for side in (condition.left, condition.right)]
    settled = Condition(sides[0], condition.comparison, sides[1], condition.size).settled
    assert settled is not None
    return settled


def walk_program(image: Image, program: Program, assumed: dict[Load, int]) -> tuple[Walk, int]:
    symbol = image.functions(program.name)[0]
    registers: dict[str, Value] = {name: Argument(name) for name in FREE}
    state = State(registers | {"rdi": _DATA, "r15": Argument("r15"), "rsp": Argument("rsp")})
    seen = walk(image, symbol.address, state, assumed=assumed, stays=lambda address: image.function_at(address) == symbol)
    return seen, symbol.address


def marks_reached(seen: Walk) -> set[int]:
    """The blocks whose mark the walk comes by."""
    found = set()
    for store in seen.stores.values():
        if store.address == Argument("r15"):
            found.add(0)
        elif isinstance(store.address, Sum) and store.address.base == Argument("r15"):
            found.add(store.address.offset)
    return found


def random_input(rng: random.Random) -> tuple[dict[str, int], bytes]:
    small = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, _BITS]
    registers = {name: rng.choice((*small, rng.getrandbits(64))) for name in FREE}
    words = [rng.choice((0, 1, 0x0101010101010101, _BITS, rng.getrandbits(64))) for _ in range(DATA_BYTES // 8)]
    return registers, struct.pack(f"<{len(words)}Q", *words)


@pytest.fixture(scope="module", params=range(3))
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def programs(seed: int) -> list[Program]:
    rng = random.Random(seed)  # noqa: S311 - the same programs each time
    return [random_program(f"p{index}", rng) for index in range(_PROGRAMS)]


@pytest.fixture(scope="module")
def loaded(programs: list[Program], tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(programs, tmp_path_factory.mktemp("programs"))


def test_every_value_that_is_told_is_what_the_processor_has(seed: int, programs: list[Program], loaded: Programs) -> None:
    image = load_image(loaded.code, path="programs.o")
    rng = random.Random(seed + 1000)  # noqa: S311 - the same programs each time
    told = 0
    for program in programs:
        seen, _ = walk_program(image, program, {})
        returns = [address for address, edges in seen.edges.items() if edges == (edges[0],) and edges[0].to is None]
        assert len(returns) == 1
        state = seen.states[returns[0]]
        for _ in range(_RUNS):
            registers, data = random_input(rng)
            after, _ = loaded.run(program, registers, data)
            for name in FREE:
                value = state.register(name)
                bits = _BITS
                if isinstance(value, Lowest):
                    value, bits = value.value, (1 << 8 * value.size) - 1
                if isinstance(value, Unknown):
                    continue
                try:
                    expected = evaluate(value, registers, data)
                except Anything:
                    continue
                told += 1
                assert after[name] & bits == expected & bits, (program.lines, name, value)
    assert told > _PROGRAMS, "a walk that tells nothing is sound, and of no use"


def test_what_is_run_is_what_the_walk_reaches(seed: int, programs: list[Program], loaded: Programs) -> None:
    """Also where a byte of memory is taken for what it is: the ways that are left out are never gone."""
    image = load_image(loaded.code, path="programs.o")
    rng = random.Random(seed + 2000)  # noqa: S311 - the same programs each time
    left_out = 0
    for program in programs:
        whole = marks_reached(walk_program(image, program, {})[0])
        assumptions: dict[tuple[int, int, int], set[int]] = {}
        for _ in range(_RUNS):
            registers, data = random_input(rng)
            _, run = loaded.run(program, registers, data)
            assert run <= whole, program.lines
            for at, size in ((0, 1), (8, 1), (0, 8), (8, 4)):
                value = int.from_bytes(data[at : at + size], "little")
                key = (at, size, value)
                if key not in assumptions:
                    assumptions[key] = marks_reached(walk_program(image, program, {Load(add(_DATA, at), size): value})[0])
                left_out += len(whole) - len(assumptions[key])
                assert run <= assumptions[key], (program.lines, key)
    assert left_out > 10, "assumptions that decide nothing prove nothing"
