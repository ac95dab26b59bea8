"""Where fields lie, by BTF: what compilers and pahole make of C, compared with offsetof; and that changed and cut."""

import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from hand_made_btf import hand_made

from exitguard.facts.machine_code.btf import field_offset, needs_base
from exitguard.facts.machine_code.obstacle import Obstacle

#: In the base: what a vmlinux would have.
_BASE_SOURCE = """
struct inner { char tag; long value; struct { short low, high; } pair; unsigned narrow : 3; };
typedef const volatile struct inner quiet_inner;
union either { int number; struct inner inner; };
struct inner an_inner; quiet_inner a_quiet_inner; union either an_either;
"""
_SOURCE = (
    _BASE_SOURCE
    + """
typedef struct { int x; unsigned char y[3]; } point_type;
typedef point_type *pointer_type;
struct later;
struct zoo {
    char first;
    struct inner inner;
    quiet_inner quiet;
    point_type point;
    union { long in_union; struct { char deep_one; double deep_two; }; };
    struct { int in_struct; union { char deeper; void *pointer; }; };
    struct inner *elsewhere;
    struct later *never_told;
    struct inner many[3];
    union either either;
    unsigned bit_one : 1; unsigned bit_rest : 15;
    unsigned char bits_of_byte : 7;
    _Bool flag;
    enum { RED, GREEN } colour;
    int (*call)(int);
    struct { char before; long unaligned; } __attribute__((packed)) packed;
    pointer_type at_a_distance;
    struct { } empty;
    char rest[];
};
struct zoo a_zoo;
"""
)
_PATHS = """
    first inner inner.tag inner.value inner.pair inner.pair.low inner.pair.high quiet quiet.value quiet.pair.high point
    point.x point.y in_union deep_one deep_two in_struct deeper pointer elsewhere never_told many
    either either.number either.inner either.inner.value flag
    colour call packed packed.before packed.unaligned at_a_distance empty rest
""".split()  # noqa: SIM905 - one a line would be a page
_BIT_FIELDS = ("bit_one", "bit_rest", "bits_of_byte", "inner.narrow")
_NOT_INSIDE = ("nothing", "inner.nothing", "inner.value.tag", "elsewhere.value", "many.value", "at_a_distance.x", "pair", "zoo", "in")


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


@cache
def _offsets_by(compiler: str, folder: Path) -> dict[str, int]:
    """Every path's offset, as a compiled program prints it."""
    lines = "".join(f'printf("{path} %zu\\n", __builtin_offsetof(struct zoo, {path}));\n' for path in _PATHS)
    source, program = folder / f"offsets-{compiler}.c", folder / f"offsets-{compiler}"
    source.write_text(f"#include <stdio.h>\n{_SOURCE}\nint main(void) {{\n{lines}return 0; }}\n")
    _run(compiler, source, "-o", program)
    return {path: int(offset) for path, offset in map(str.split, _run(program).splitlines())}


def _section(file: Path, name: str = ".BTF") -> bytes:
    with file.open("rb") as opened:
        return ELFFile(opened).get_section_by_name(name).data()


def _needed(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed" + (" (Debian: dwarves)" if program == "pahole" else ""))


def _made_by_gcc(folder: Path) -> bytes:
    _needed("gcc")
    if int(_run("gcc", "-dumpversion").split(".", maxsplit=1)[0]) < 12:
        pytest.skip("gcc is older than 12: it makes no BTF")
    (folder / "own.c").write_text(_SOURCE)
    _run("gcc", "-gbtf", "-c", folder / "own.c", "-o", folder / "own.o")
    return _section(folder / "own.o")


def _made_by_pahole(compiler: str, source: str, name: str, folder: Path, *options: str | Path) -> bytes:
    _needed(compiler, "pahole")
    (folder / f"{name}.c").write_text(source)
    unit = folder / f"{name}.o"
    _run(compiler, "-gdwarf-4", "-fno-eliminate-unused-debug-types", "-c", folder / f"{name}.c", "-o", unit)
    _run("pahole", "-J", *options, unit)
    return _section(unit)


@dataclass(frozen=True)
class Made:
    btf: bytes
    base: bytes | None
    offsets: dict[str, int]


_ALONE = ["gcc -gbtf", "gcc + pahole", "clang + pahole"]
_SPLIT = ["gcc + pahole, split", "clang + pahole, split"]


@pytest.fixture(scope="module", params=[*_ALONE, *_SPLIT])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("btf")
    compiler, _, by = str(request.param).partition(" ")
    if by == "-gbtf":
        return Made(_made_by_gcc(folder), None, _offsets_by(compiler, folder))
    if "split" not in by:
        return Made(_made_by_pahole(compiler, _SOURCE, "own", folder), None, _offsets_by(compiler, folder))
    base = _made_by_pahole(compiler, _BASE_SOURCE, "base", folder)
    own = _made_by_pahole(compiler, _SOURCE, "own", folder, f"--btf_base={folder / 'base.o'}")
    return Made(own, base, _offsets_by(compiler, folder))


@pytest.mark.parametrize("path", _PATHS)
def test_every_field_lies_where_the_compiler_puts_it(made: Made, path: str) -> None:
    assert field_offset(made.btf, "zoo", tuple(path.split(".")), base=made.base) == made.offsets[path]


@pytest.mark.parametrize("path", _BIT_FIELDS)
def test_bit_fields_are_refused(made: Made, path: str) -> None:
    with pytest.raises(Obstacle, match=f"{path} is a bit-field"):
        field_offset(made.btf, "zoo", tuple(path.split(".")), base=made.base)


@pytest.mark.parametrize("path", _NOT_INSIDE)
def test_what_is_not_inside_the_structure_is_none(made: Made, path: str) -> None:
    assert field_offset(made.btf, "zoo", tuple(path.split(".")), base=made.base) is None


@pytest.mark.parametrize("structure", ["zo", "zoos", "oo", "either", "point_type", "later"])
def test_what_is_no_structure_of_that_name_is_none(made: Made, structure: str) -> None:
    assert field_offset(made.btf, structure, ("x",), base=made.base) is None


def test_structures_of_the_base_are_found_too(made: Made) -> None:
    assert field_offset(made.btf, "inner", ("value",), base=made.base) == 8


@pytest.mark.parametrize("made", _ALONE, indirect=True)
def test_btf_that_stands_alone_needs_no_base_and_has_no_use_for_one(made: Made) -> None:
    unrelated = hand_made()
    unrelated.structure("zoo", 8, [("first", unrelated.integer(), 32)])
    assert not needs_base(made.btf)
    assert field_offset(made.btf, "zoo", ("inner", "value"), base=unrelated.encoded()) == made.offsets["inner.value"]


@pytest.mark.parametrize("made", _SPLIT, indirect=True)
def test_split_btf_says_that_it_continues_a_base_and_its_base_that_it_stands_alone(made: Made) -> None:
    assert made.base is not None
    assert needs_base(made.btf)
    assert not needs_base(made.base)


@pytest.mark.parametrize("made", _SPLIT, indirect=True)
def test_split_btf_without_its_base_is_refused(made: Made) -> None:
    with pytest.raises(Obstacle, match="continues that of the kernel"):
        field_offset(made.btf, "zoo", ("first",))


@pytest.mark.parametrize("made", _SPLIT, indirect=True)
def test_split_btf_is_no_base_itself(made: Made) -> None:
    with pytest.raises(Obstacle, match="is a module's itself"):
        field_offset(made.btf, "zoo", ("first",), base=made.btf)


@pytest.mark.parametrize("made", _SPLIT, indirect=True)
def test_another_kernels_btf_is_no_base(made: Made) -> None:
    another = hand_made()
    for name in ("int", "char", "something_else", "and_one_more"):
        another.structure(name, 8, [("first", 1, 0)] * 100)
    with pytest.raises(Obstacle, match="does not fit"):
        field_offset(made.btf, "zoo", ("first",), base=another.encoded())


#: One (place, byte) for each change: places beyond the end count from its beginning again.
_CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=12)
_SOME_PATHS = st.lists(st.sampled_from([*_PATHS, *_BIT_FIELDS, *_NOT_INSIDE]), min_size=4, max_size=8)


def _changed(whole: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(whole)
    for place, byte in changes:
        changed[place % len(changed)] = byte
    return bytes(changed[: len(changed) - cut % len(changed)])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(own=_CHANGES, base=st.one_of(st.just([]), _CHANGES), cut=st.one_of(st.just(0), st.integers(0, 1 << 16)), paths=_SOME_PATHS)
def test_whatever_is_changed_in_real_btf_it_is_an_answer_or_an_obstacle(
    made: Made, own: list[tuple[int, int]], base: list[tuple[int, int]], cut: int, paths: list[str]
) -> None:
    btf = _changed(made.btf, own, cut)
    below = None if made.base is None else _changed(made.base, base, 0)
    for path in paths:
        with suppress(Obstacle):
            needs_base(btf)
            found = field_offset(btf, "zoo", tuple(path.split(".")), base=below)
            assert found is None or 0 <= found < 1 << 32
