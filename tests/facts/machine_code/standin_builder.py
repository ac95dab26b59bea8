"""The variants of the stand-in of KVM's function, what is expected of each, and how one is compiled: see standin/README.md.

A build is a variant (what stands in front of the PMU call), a shape (the PMU function it calls) and a configuration (compiler and
options). What is expected follows from the variant and the shape alone; options never change it.
"""

import os
import shutil
import subprocess
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from exitguard.model.kernel import Body, KernelState

SOURCES = Path(__file__).with_name("standin")
_LIMIT_SECONDS = 60
_WORKERS = 2


class Claim(StrEnum):
    """What a variant does with the PMU call."""

    GUARD = "never called, or left at once, where kvm->arch.enable_pmu is 0; called where it is 1"
    HARD_GUARD = "a guard in a form that nobody writes, or in a function of its own"
    OPEN = "called whenever the skip succeeded"
    CONDITION = "called on a condition that is not the guard"
    NO_GUARD = "called with the guest's PMU off, in a form that need not be understood"
    NOT_AT_ONCE = "the callee does something before it returns"
    NO_CALL = "no call to a PMU function can be seen, yet nothing says that the work is not done"


class Shape(StrEnum):
    """The PMU function, and how it is called."""

    A = "a"  # kvm_pmu_trigger_event(vcpu, event number): walks every counter (5.17 - 6.8)
    B = "b"  # kvm_pmu_trigger_event(vcpu, event selector): a bitmap on the stack (6.9 - 6.17)
    B_CONSTANT = "b_constant"  # a partial backport: body B, called as body A is
    RETIRED = "retired"  # kvm_pmu_instruction_retired(vcpu): returns at once on an empty bitmap (6.18)
    RETIRED_LATE = "retired_late"  # the same, but only after it took a lock
    RETIRED_NO_EXIT = "retired_no_exit"  # the same without that return
    RETIRED_BRANCHES = "retired_branches"  # returns at once on the other bitmap, that of branches
    NONE = "none"  # no such function (5.15)


CALLED_WITH_EVENT = (Shape.A, Shape.B, Shape.B_CONSTANT)
_BODIES = {Shape.A: Body.A, Shape.B: Body.B, Shape.B_CONSTANT: Body.B}


class Sources(StrEnum):
    """Which of the two sources of the offset of enable_pmu a build has."""

    BOTH = "both"
    PROTECTED = "protected"  # both, and the copy is and-ed with another field, as since 6.18
    CODE = "code"  # no BTF
    BTF = "btf"  # kvm_arch_init_vm() does not copy it
    NEITHER = "neither"
    MERGED = "merged"  # kvm_arch_init_vm() stores a neighbour beside it, which gcc makes one store of


WITHOUT_BTF = (Sources.CODE, Sources.NEITHER)


@dataclass(frozen=True, slots=True)
class Variant:
    """What stands in front of the PMU call. The name is that of its macro: VARIANT_<NAME>, or CALLEE_<..> for the callee's head."""

    name: str
    claim: Claim
    shapes: tuple[Shape, ...] = tuple(Shape)


def _variants() -> dict[str, Variant]:
    guards = """plain unlikely likely early_return goto read_before read_first kvm_before compared_with_one at_least_one lowest_bit switch
        positive static_inline double and and_after_another bitwise_and with_result bitwise_with_result cold cold_around
        callee_guard callee_guard_likely"""
    hard_guards = "called_test wrapper wide_own_byte wide_upper_byte"
    conditions = """wrong_neighbour wrong_neighbour_after wrong_structure wrong_number same_offset_of_vcpu pmu_version inverted or
        or_after_another bitwise_or exclusive_or second_bit more_than_one wide global global_unlikely other_vm other_vcpu_told
        replaced_kvm escaped_vcpu escaped_flag one_path jump_label jump_label_or callee_wrong_field callee_global
        negative wide_neighbour_bit wide_lower_byte computed_goto hidden_otherwise hidden_deeper alternative alternative_or
        escaped_by_stack escaped_by_index escaped_by_choice read_twice compared_and_swapped callee_other_bit callee_other_word
        callee_half_guard callee_traps"""
    no_guards = """overwritten overwritten_locked overwritten_exchanged overwritten_by_string second_turn twice before_the_result
        failed_skip wrapper_without_guard jump_label_beside callee_inverted"""
    found = [Variant(name, Claim.GUARD) for name in guards.split()]
    found += [Variant(name, Claim.HARD_GUARD) for name in hard_guards.split()]
    found += [Variant(name, Claim.OPEN) for name in ("none", "test_after", "test_before_something_else")]
    found += [Variant(name, Claim.CONDITION) for name in conditions.split()]
    found += [Variant(name, Claim.NO_GUARD) for name in no_guards.split()]
    found += [Variant(name, Claim.NOT_AT_ONCE) for name in ("callee_late", "callee_stores_first")]
    found += [
        Variant("argument_only", Claim.OPEN, CALLED_WITH_EVENT),
        Variant("removed", Claim.NO_CALL),
        Variant("indirect", Claim.NO_CALL, CALLED_WITH_EVENT),
        Variant("indirect_otherwise", Claim.CONDITION, CALLED_WITH_EVENT),
        Variant("inlined", Claim.NO_CALL, CALLED_WITH_EVENT),
        Variant("inlined_everywhere", Claim.NO_CALL, CALLED_WITH_EVENT),
    ]
    return {variant.name: variant for variant in found}


VARIANTS = _variants()


@dataclass(frozen=True, slots=True)
class Configuration:
    """A compiler with the options of one kernel build."""

    compiler: str
    optimisation: str
    #: Retpolines, return thunks, calls to __fentry__ and ENDBR, as distributions build; or none of them.
    hardened: bool
    #: More options; those that the compiler does not know are left out.
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = "".join(f"-{option.removeprefix('-').removeprefix('f').replace('=', '_')}" for option in self.options)
        return f"{self.compiler}{self.optimisation}-{'hardened' if self.hardened else 'bare'}{more}"


# Ordered so that one and the fourth after it differ in everything.
CONFIGURATIONS = (
    Configuration("gcc", "-O2", hardened=True),
    Configuration("gcc", "-Os", hardened=False),
    Configuration("gcc", "-O2", hardened=False),
    Configuration("gcc", "-Os", hardened=True),
    Configuration("clang", "-Os", hardened=False),
    Configuration("clang", "-O2", hardened=True),
    Configuration("clang", "-Os", hardened=True),
    Configuration("clang", "-O2", hardened=False),
)


@dataclass(frozen=True, slots=True)
class Build:
    """One module to compile, and what is expected of it."""

    variant: Variant
    shape: Shape
    configuration: Configuration
    sources: Sources = Sources.BOTH

    @property
    def name(self) -> str:
        sources = "" if self.sources is Sources.BOTH else f"-{self.sources.value}"
        return f"{self.variant.name}-{self.shape.value}-{self.configuration}{sources}"

    @property
    def body(self) -> Body | None:
        """The body that `affected` has to name; None where any will do."""
        return _BODIES.get(self.shape)

    @property
    def states(self) -> frozenset[KernelState]:
        """The states that are true of it. Where there are two, the second is the honest one for who cannot follow."""
        affected, unknown, equivalent = KernelState.AFFECTED, KernelState.UNKNOWN, KernelState.EQUIVALENT
        if self.shape is Shape.NONE:
            return frozenset({KernelState.NOT_AFFECTED})
        # Without BTF the bitmaps have no names, and which of the two counts instructions cannot be told.
        without_btf = self.sources in WITHOUT_BTF
        returns = self.shape is Shape.RETIRED or (self.shape is Shape.RETIRED_BRANCHES and without_btf)
        returns_at_once = returns and self.variant.claim is not Claim.NOT_AT_ONCE
        match self.variant.claim:
            case Claim.NO_CALL:
                return frozenset({unknown})
            case Claim.GUARD | Claim.HARD_GUARD if self.sources is Sources.NEITHER:
                states = {unknown}
            case Claim.GUARD:
                states = {KernelState.GUARDED}
            case Claim.HARD_GUARD:
                states = {KernelState.GUARDED, unknown}
            case Claim.OPEN if self.shape in _BODIES:
                states = {affected}
            case Claim.OPEN | Claim.NO_GUARD if returns_at_once and without_btf:
                states = {unknown}
            case Claim.OPEN if returns_at_once:
                return frozenset({equivalent})
            case Claim.OPEN | Claim.NOT_AT_ONCE:
                states = {affected, unknown}
            case Claim.NO_GUARD:
                states = {unknown} if returns_at_once else {affected, unknown}
            case Claim.CONDITION:
                states = {unknown}
        return frozenset(states | ({equivalent} if returns_at_once else set()))


def matrix() -> tuple[Build, ...]:
    """Every variant with every body in a few configurations, the plain cases in all of them."""
    everywhere = ("none", "unlikely", "callee_guard", "inverted", "or", "wrong_neighbour", "global", "test_after")
    builds: dict[str, Build] = {}

    def add(variant: str, shape: Shape, configuration: Configuration, sources: Sources = Sources.BOTH) -> None:
        build = Build(VARIANTS[variant], shape, configuration, sources)
        if shape in build.variant.shapes:
            builds[build.name] = build

    for index, name in enumerate(VARIANTS):
        for turn, shape in enumerate((Shape.A, Shape.B, Shape.RETIRED)):
            if name in everywhere:
                chosen = list(CONFIGURATIONS) if shape is not Shape.RETIRED else [CONFIGURATIONS[0], CONFIGURATIONS[5]]
            else:
                first = (index + 3 * turn) % 8
                chosen = [CONFIGURATIONS[first], CONFIGURATIONS[(first + 4) % 8]] if shape is Shape.A else [CONFIGURATIONS[first]]
            for configuration in chosen:
                add(name, shape, configuration)
    for turn, shape in enumerate((Shape.B_CONSTANT, Shape.RETIRED_LATE, Shape.RETIRED_NO_EXIT, Shape.RETIRED_BRANCHES)):
        for index, name in enumerate(("none", "plain", "callee_guard", "wrong_neighbour")):
            add(name, shape, CONFIGURATIONS[(turn + index) % 4])
            add(name, shape, CONFIGURATIONS[4 + (turn + index) % 4])
    for configuration in CONFIGURATIONS:
        add("none", Shape.NONE, configuration)
    for sources in (Sources.PROTECTED, Sources.CODE, Sources.BTF, Sources.NEITHER, Sources.MERGED):
        for name in ("plain", "none", "wrong_neighbour"):
            add(name, Shape.A, CONFIGURATIONS[2], sources)
            add(name, Shape.RETIRED, CONFIGURATIONS[5], sources)
    return tuple(builds.values())


# ---- Compiling ----

_COMMON = """-c -std=gnu11 -Wall -Werror -mcmodel=kernel -mno-red-zone -fno-strict-aliasing -fno-common -fno-pic -ffreestanding -mno-sse
    -mno-mmx -mno-80387 -fno-jump-tables -fno-asynchronous-unwind-tables -fno-stack-protector"""
_HARDENED = {
    "gcc": """-pg -mfentry -mrecord-mcount -fcf-protection=branch -mindirect-branch=thunk-extern -mindirect-branch-register
        -mfunction-return=thunk-extern""",
    "clang": "-pg -mfentry -fcf-protection=branch -mretpoline-external-thunk -mfunction-return=thunk-extern",
}
_BARE = "-fcf-protection=none"
_INITIALISERS = {
    Sources.BTF: "INIT_WITHOUT_COPY",
    Sources.NEITHER: "INIT_WITHOUT_COPY",
    Sources.MERGED: "INIT_WITH_NEIGHBOUR",
    Sources.PROTECTED: "INIT_PROTECTED",
}


@cache
def knows(compiler: str, option: str) -> bool:
    """Whether this compiler takes an option."""
    command = [compiler, "-Werror", "-mcmodel=kernel", "-fno-pic", option, "-x", "c", "-c", "-", "-o", os.devnull]
    tried = subprocess.run(command, input="int f(int n) { return n; }", capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
    return tried.returncode == 0


@cache
def _found(program: str) -> bool:
    return shutil.which(program) is not None


def why_not(build: Build) -> str | None:
    """The program that is missing here to compile this one; None where none is."""
    compiler = build.configuration.compiler
    if not _found(compiler):
        return f"{compiler} is not installed"
    if not _found("ld"):
        return "ld is not installed"
    if build.sources not in WITHOUT_BTF and not knows(compiler, "-gbtf") and not _found("pahole"):
        return f"pahole is not installed (Debian: dwarves), and {compiler} makes no BTF of its own"
    return None


class StandinBuilder:
    """Compiles builds into a folder, a few at a time, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._executor = ThreadPoolExecutor(_WORKERS)
        self._modules: dict[str, Future[Path]] = {}
        self._locks: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()

    def begin(self, build: Build) -> None:
        """Compile it when there is time."""
        if build.name not in self._modules:
            self._modules[build.name] = self._executor.submit(self._compile, build)

    def module(self, build: Build) -> Path:
        """The file of a build, compiled by then."""
        self.begin(build)
        return self._modules[build.name].result()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _compile(self, build: Build) -> Path:
        configuration = build.configuration
        # The callee's unit is the same for many builds: structures must lie alike in it.
        padding = zlib.crc32(f"{build.shape} {configuration}".encode()) % 200
        macros = [f"-DBODY_{build.shape.upper()}", f"-DPADDING={padding}"]
        callee = build.variant.name if build.variant.name.startswith("callee_") else ""
        own = [] if callee else [f"-DVARIANT_{build.variant.name.upper()}"]
        own += [f"-D{_INITIALISERS[build.sources]}"] if build.sources in _INITIALISERS else []
        unit = self._folder / f"{build.name}.o"
        with_btf = build.sources not in WITHOUT_BTF
        own_btf = with_btf and knows(configuration.compiler, "-gbtf")
        types = ["-gbtf"] if own_btf else ["-gdwarf-4"] if with_btf else []
        compile_unit(configuration, SOURCES / "standin.c", unit, [*macros, *own, *types])
        if with_btf and not own_btf:
            _run(["pahole", "-J", str(unit)])
        units = [unit]
        if build.shape is not Shape.NONE and build.variant.name != "inlined_everywhere":
            units.append(self._callee_unit(configuration, build.shape, callee, macros))
        module = self._folder / f"{build.name}.ko"
        _run(["ld", "-r", "-S", "--build-id=sha1", "-o", str(module), *map(str, units)])
        return module

    def _callee_unit(self, configuration: Configuration, shape: Shape, callee: str, macros: list[str]) -> Path:
        unit = self._folder / f"pmu-{callee}-{shape.value}-{configuration}.o"
        with self._lock:
            lock = self._locks.setdefault(unit, threading.Lock())
        with lock:
            if not unit.exists():
                compile_unit(configuration, SOURCES / "standin_pmu.c", unit, [*macros, *([f"-D{callee.upper()}"] if callee else [])])
        return unit


def compile_unit(configuration: Configuration, source: Path, unit: Path, options: list[str]) -> None:
    """Compile one source file as a kernel's would be. Raises RuntimeError with what the compiler said."""
    compiler = configuration.compiler
    wanted = [*(_HARDENED[compiler] if configuration.hardened else _BARE).split(), *configuration.options]
    known = [option for option in wanted if option == "-mfentry" or knows(compiler, option)]  # -mfentry alone does nothing without -pg
    _run([compiler, *_COMMON.split(), configuration.optimisation, *known, *options, str(source), "-o", str(unit)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
