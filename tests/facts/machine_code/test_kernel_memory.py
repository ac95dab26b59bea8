"""The running kernel's own code, read from files that look as the kernel's do. The real ones: tests/system/test_live_kernel.py."""

import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from running_kernel import (
    BUILD_ID,
    ENABLE_PMU_AT,
    ENDBR64,
    INT3,
    KVM,
    MADE,
    MODULES,
    NOP5,
    PATCH,
    RETURN,
    SKIP,
    TEXT,
    TRIGGER,
    TRIGGER_CODE,
    VENDOR,
    Function,
    RunningKernel,
    To,
    call,
    jump,
    kvm_functions,
    skip_code,
)

from exitguard.facts.machine_code.kernel_memory import KernelMemory, parse_segments, read_live
from exitguard.facts.machine_code.kernel_symbols import AddressesHidden, parse_hooks, parse_listing
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.tree import HostTree
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed

# As a Debian 6.1 wrote them, for `function` as the tracer, for a kprobe, and for a live patch.
WATCHED = f"{SKIP} [kvm] (1)      \ttramp: 0xffffffffc05be000 (function_trace_call+0x0/0x120) ->function_trace_call+0x0/0x120"
WATCHED_TWICE = f"{SKIP} [kvm] (2)       ->arch_ftrace_ops_list_func+0x0/0x1d0"
PROBED = f"{SKIP} [kvm] (1) R    \ttramp: 0xffffffffc05dd000 (kprobe_ftrace_handler+0x0/0x1b0) ->kprobe_ftrace_handler+0x0/0x1b0"
REPLACED = f"{SKIP} [kvm] (1)   I  \ttramp: 0xffffffffc0505000 (klp_ftrace_handler+0x0/0x110) ->klp_ftrace_handler+0x0/0x110"
DIRECT = f"{SKIP} [kvm] (1)    D  \n\tdirect-->bpf_trampoline_6442508829+0x0/0x1000"
ENABLED = {"enabled": "1", "transition": "0"}
COPY = Function(f"klpp_{SKIP}", "guard", PATCH, skip_code(guarded=True, skip="svm_skip_emulated_instruction"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that others than its owner may enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def reading(observed: Observed[MachineCode]) -> MachineCode:
    assert observed.value is not None, observed
    assert observed.value.obstacle is None, observed.value.obstacle
    return observed.value


def patched(observed: Observed[MachineCode]) -> MachineCode:
    """The reading of a guard that a live patch brought: in force in its copy, and not known to be in force everywhere."""
    assert observed.value is not None, observed
    assert "live patch guard guards the function's own call" in str(observed.value.obstacle)
    return observed.value


def reason(observed: Observed[MachineCode]) -> str:
    assert observed.reason is not None, observed
    return observed.reason


def read_skip_of(folder: Path, *, guarded: bool = False, entry: bytes | To = NOP5, hooks: str | None = "") -> Observed[MachineCode]:
    kernel = RunningKernel(functions=kvm_functions(skip_code(guarded=guarded, entry=entry)), hooks=hooks)
    return read_live(kernel.write(folder))


# --- what runs ------------------------------------------------------------------------------------------------------------------


def test_unguarded_function_is_read_with_what_ties_it_to_its_build(folder: Path) -> None:
    found = reading(read_live(RunningKernel().write(folder)))
    assert (found.helper, found.called_when_off, found.called_when_on, found.decided_by_skip) == (TRIGGER, True, True, True)
    assert found.conditions == ()
    assert found.enable_pmu is not None
    assert (found.enable_pmu.offset, found.enable_pmu.sources) == (ENABLE_PMU_AT, ("code",))
    assert (found.build_id, found.release, found.path) == (BUILD_ID.hex(), "6.1.0-56-cloud-amd64", "/proc/kcore")


def test_guard_is_read(folder: Path) -> None:
    found = reading(read_skip_of(folder, guarded=True))
    assert (found.called_when_off, found.called_when_on) == (False, True)


def test_built_in_kvm_has_the_build_id_of_the_kernel(folder: Path) -> None:
    functions = [replace(each, module="") if each.module.startswith("kvm") else each for each in kvm_functions()]
    kernel = RunningKernel(functions=functions, others=[("enable_pmu", "", KVM + 0x8000, "d")])
    found = reading(read_live(kernel.write(folder)))
    assert (found.called_when_off, found.build_id) == (True, bytes(20).hex())


def test_functions_of_the_same_name_in_other_modules_do_not_count(folder: Path) -> None:
    others = [replace(COPY, name=name, address=PATCH + 0x100 * at) for at, name in enumerate((SKIP, f"klpp_{SKIP}", TRIGGER, "x"))]
    found = reading(read_live(RunningKernel(functions=[*kvm_functions(), *others]).write(folder)))
    assert found.called_when_off is True


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (RunningKernel(functions=[each for each in kvm_functions() if each.module == ""]), "expected the module kvm to be loaded"),
        (RunningKernel(functions=[each for each in kvm_functions() if each.module != "kvm_amd"]), "shows no vendor module of KVM"),
        (RunningKernel(hidden=True, kptr_restrict="2"), "from root too: kernel.kptr_restrict is 2"),
        (RunningKernel(patches={"other": {"enabled": "1"}}), "whether a live patch replaces"),
    ],
    ids=["no kvm", "no vendor", "kptr_restrict", "live patches unreadable"],
)
def test_what_is_missing_is_named(folder: Path, kernel: RunningKernel, expected: str) -> None:
    if "svm_skip_emulated_instruction" not in {each.name for each in kernel.functions}:
        functions = [replace(each, code=(NOP5, RETURN)) for each in kernel.functions]
        kernel = replace(kernel, functions=[*functions, Function("other", "other", PATCH, (RETURN,))])
        kernel.others.append(("__SCT__kvm_x86_skip_emulated_instruction", "kvm", KVM + 0x4000, "t"))
    assert expected in reason(read_live(kernel.write(folder)))


def test_hidden_addresses_name_the_privilege_that_shows_them(folder: Path) -> None:
    observed = read_live(RunningKernel(hidden=True, kptr_restrict="1").write(folder))
    assert "kernel.kptr_restrict is 1" in reason(observed)
    assert observed.unlock == "run as root (CAP_SYS_RAWIO), CAP_SYSLOG"


def test_kernel_without_kcore_says_what_to_do_instead(folder: Path) -> None:
    tree = RunningKernel().write(folder)
    (folder / "proc/kcore").unlink()
    assert "CONFIG_PROC_KCORE; leave out --live: the file that is tied" in reason(read_live(tree))


@pytest.mark.parametrize(
    ("lockdown", "expected", "unlock"),
    [
        ("[none] integrity confidentiality", "permission denied", "run as root (CAP_SYS_RAWIO)"),
        ("none integrity [confidentiality]", "the kernel is locked down", None),
    ],
)
def test_closed_memory_says_whether_a_privilege_would_open_it(folder: Path, lockdown: str, expected: str, unlock: str | None) -> None:
    tree = RunningKernel(lockdown=lockdown).write(folder)
    (folder / "proc/kcore").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        observed = read_live(tree)
    finally:
        os.seteuid(user)
    assert expected in reason(observed)
    assert observed.unlock == unlock


# --- live patches ---------------------------------------------------------------------------------------------------------------


def test_copy_of_a_live_patch_is_what_is_read(folder: Path) -> None:
    patches = {"guard": {**ENABLED, f"kvm/{SKIP},1/x": ""}}
    kernel = RunningKernel(functions=[*kvm_functions(skip_code(entry=call(MADE))), COPY], patches=patches, hooks=REPLACED)
    found = patched(read_live(kernel.write(folder)))
    assert (found.called_when_off, found.called_when_on) == (False, True)
    assert found.path == "/proc/kcore, the copy in live patch guard"
    assert found.build_id is None, "what is said of a patch must not be remembered of KVM's build"


def test_disabled_live_patch_leaves_the_original(folder: Path) -> None:
    patches = {"guard": {"enabled": "0", "transition": "0", f"kvm/{SKIP},1/x": ""}}
    found = reading(read_live(RunningKernel(functions=[*kvm_functions(), COPY], patches=patches).write(folder)))
    assert (found.called_when_off, found.path) == (True, "/proc/kcore")


@pytest.mark.parametrize(
    ("patches", "expected"),
    [
        ({"guard": {"enabled": "1", "transition": "1", f"kvm/{SKIP},1/x": ""}}, "guard is in transition"),
        ({"elsewhere": {**ENABLED, f"kvm/{SKIP},1/x": ""}}, "of live patch elsewhere: its copy cannot be found"),
        ({name: {**ENABLED, f"kvm/{SKIP},{at}/x": ""} for at, name in enumerate(("guard", "more"))}, "several live patches replace"),
        ({"guard": {**ENABLED, f"kvm/{SKIP},1/x": "", f"kvm/{TRIGGER},1/x": ""}}, f"guard replaces {TRIGGER}"),
        ({"guard": {**ENABLED, f"vmlinux/{TRIGGER}.isra.0,1/x": ""}}, f"guard replaces {TRIGGER}"),
    ],
    ids=["transition", "no copy", "several", "the callee too", "the callee alone"],
)
def test_live_patch_that_cannot_be_followed_is_never_judged_by_the_original(
    folder: Path, patches: dict[str, dict[str, str]], expected: str
) -> None:
    assert expected in reason(read_live(RunningKernel(functions=[*kvm_functions(), COPY], patches=patches).write(folder)))


# --- tracers and probes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [MADE, TEXT + 0x40], ids=["trampoline", "ftrace_caller"])
@pytest.mark.parametrize("hooks", [WATCHED, f"other (1)\n{WATCHED_TWICE}"], ids=["one", "two"])
def test_traced_function_reads_as_it_does_without_the_tracer(folder: Path, entry: int, hooks: str) -> None:
    untraced = reading(read_skip_of(folder))
    traced = reading(read_skip_of(folder, entry=call(entry), hooks=hooks))
    assert traced.model_copy(update={"listing": ()}) == untraced.model_copy(update={"listing": ()})
    assert [line.text for line in traced.listing] == [line.text for line in untraced.listing]
    assert traced.listing[0].note == "a tracer is called here, which changes nothing"


@pytest.mark.parametrize("name", ["svm_skip_emulated_instruction", f"klpp_{SKIP}"], ids=["vendor's function", "live patch's copy"])
def test_tracer_of_another_module_s_function_is_told_by_that_module(folder: Path, name: str) -> None:
    functions = [*kvm_functions(skip_code(guarded=True)), COPY]
    traced = [replace(each, code=(call(MADE), *each.code[1:])) if each.name == name else each for each in functions]
    module = next(each.module for each in functions if each.name == name)
    hooks = WATCHED.replace(f"{SKIP} [kvm]", f"{name} [{module}]")
    patches = {"guard": {**ENABLED, f"kvm/{SKIP},1/x": ""}}
    found = patched(read_live(RunningKernel(functions=traced, patches=patches, hooks=hooks).write(folder)))
    assert (found.called_when_off, found.called_when_on) == (False, True)


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        (PROBED, f"a kprobe is set at the entry of {SKIP}"),
        (WATCHED.replace("     \t", " R   \t"), "that may change what runs (a kprobe, or a BPF program)"),
        (DIRECT, "direct-->bpf_trampoline_6442508829"),
        (REPLACED, "makes another function run instead, and no live patch of it is listed"),
        (WATCHED.replace("[kvm]", "[other]"), "ftrace does not list it"),
        ("", "ftrace does not list it"),
        (None, "is tracefs mounted there?"),
    ],
    ids=["kprobe", "registers", "direct", "replaced", "other module", "not listed", "no tracefs"],
)
def test_hook_that_could_change_what_runs_is_named(folder: Path, hooks: str | None, expected: str) -> None:
    assert expected in reason(read_skip_of(folder, entry=call(MADE), hooks=hooks))


def test_kprobe_at_the_entry_of_the_pmu_function_is_named(folder: Path) -> None:
    kernel = RunningKernel(functions=kvm_functions(trigger=(call(MADE), *TRIGGER_CODE[1:])), hooks=PROBED.replace(SKIP, TRIGGER))
    assert f"a kprobe is set at the entry of {TRIGGER}" in reason(read_live(kernel.write(folder)))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (INT3 + NOP5[1:], "a breakpoint at the entry"),
        (jump("kvm_pmu_init"), "begins with a jump"),
        (b"\xeb\x03" + NOP5[2:], "begins with a jump"),
    ],
    ids=["breakpoint", "jump", "short jump"],
)
@pytest.mark.parametrize("landing", [b"", ENDBR64], ids=["", "endbr64"])
def test_replaced_entry_is_named(folder: Path, entry: bytes, expected: str, landing: bytes) -> None:
    code = (landing, entry, *skip_code()[1:])
    assert expected in reason(read_live(RunningKernel(functions=kvm_functions(code)).write(folder)))


def test_breakpoint_inside_the_function_is_an_obstacle_that_names_kprobes(folder: Path) -> None:
    code = skip_code()
    observed = read_live(RunningKernel(functions=kvm_functions((code[0], INT3 + code[1][1:], *code[2:]))).write(folder))  # type: ignore[index]
    found = observed.get()
    assert found.obstacle is not None
    assert "kprobe" in found.obstacle
    assert (found.helper, found.called_when_off) == (None, None)


@pytest.mark.parametrize("at", [0, 0x123, 0xFFB])
def test_jump_into_an_optimised_kprobe_is_named(folder: Path, at: int) -> None:
    kernel = RunningKernel(functions=kvm_functions((NOP5, b"\x90", jump(MADE + 0x3000 + at), RETURN)))
    kernel.others.append(("kprobe_optinsn_page", "__builtin__kprobes", MADE + 0x3000, "t"))
    assert f"{SKIP} jumps into an optimised kprobe at +0x6" in reason(read_live(kernel.write(folder)))


def test_counted_calls_are_named(folder: Path) -> None:
    code = (NOP5, b"\x53", call(KVM + 0x200 - 10), RETURN)
    kernel = RunningKernel(functions=kvm_functions(code))
    kernel.others.append((f"__pfx_{TRIGGER}", "kvm", KVM + 0x1F0, "t"))
    assert f"calls of {TRIGGER} go through call depth tracking" in reason(read_live(kernel.write(folder)))


# --- memory ---------------------------------------------------------------------------------------------------------------------


class Recorded:
    """A core file that remembers what was read of it, and may change."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.reads: list[tuple[int, int]] = []

    def __call__(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return bytes(self.content[offset : offset + size])


def memory_of(kernel: RunningKernel) -> tuple[KernelMemory, Recorded]:
    file = Recorded(kernel.core())
    memory = KernelMemory(file, parse_segments(file), parse_listing(kernel.listing()), lambda: "")
    file.reads.clear()
    return memory, file


def test_nothing_is_read_but_the_functions_that_are_asked_for() -> None:
    memory, file = memory_of(RunningKernel())
    assert memory.read(KVM, 5) == memory.read(KVM, 5) == NOP5
    assert file.reads == [(KVM - MODULES + 0x2000, 0x100)], "one function, once"
    for outside in (MODULES + 0x100000, MODULES, 0x1000):
        with pytest.raises(Obstacle, match="no function is known"):
            memory.read(outside, 1)
    with pytest.raises(Obstacle, match="are not in"):
        memory.read(KVM + 0xFC, 8)
    assert len(file.reads) == 1


def test_reading_stays_within_64_kib() -> None:
    kernel = RunningKernel()
    kernel.functions.append(Function("kvm_large", "kvm", KVM + 0x10000, (NOP5,)))
    memory, _ = memory_of(kernel)
    assert len(memory.read(KVM, 8)) == 8
    with pytest.raises(Obstacle, match="more than 65536 bytes"):
        memory.read(KVM + 0x10000, 8)


def test_code_that_changes_is_noticed() -> None:
    memory, file = memory_of(RunningKernel())
    memory.read(KVM, 5)
    memory.expect_unchanged()
    file.content[KVM - MODULES + 0x2000 + 7] ^= 0xFF
    with pytest.raises(Obstacle, match=f"{SKIP} changed while it was read"):
        memory.expect_unchanged()


def test_code_that_is_not_mapped_reads_as_zeros_and_is_refused() -> None:
    kernel = RunningKernel(functions=kvm_functions((bytes(5),)))
    memory, _ = memory_of(kernel)
    with pytest.raises(Obstacle, match="reads as zeros"):
        memory.read(KVM, 5)
    assert memory.refused is not None


def test_address_without_a_segment_is_refused() -> None:
    kernel = RunningKernel()
    file = Recorded(kernel.core())
    memory = KernelMemory(file, parse_segments(file)[:1], parse_listing(kernel.listing()), lambda: "")
    with pytest.raises(Obstacle, match="has no segment for"):
        memory.read(VENDOR, 5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "ends early"),
        (b"\x7fELF" + bytes(60), "not the core file"),
        (RunningKernel().core()[:100], "its program headers could not be read"),
        (RunningKernel().core()[:56] + struct.pack("<H", 60000), "its header could not be read"),
        (RunningKernel().core()[:56] + struct.pack("<H", 60000) + bytes(6), "has 60000 segments"),
    ],
)
def test_core_file_that_is_none_is_refused(content: bytes, expected: str) -> None:
    with pytest.raises(Obstacle, match=expected):
        parse_segments(Recorded(content))


# --- parsers --------------------------------------------------------------------------------------------------------------------


def test_hooks_are_found_by_name_and_module() -> None:
    listing = "\n".join((WATCHED.replace("[kvm]", "[kvm_amd]"), f"{SKIP} (1)", DIRECT))
    assert parse_hooks(listing, SKIP, "kvm")[0] == {"D"}
    assert parse_hooks(listing, SKIP, "")[0] == set()
    assert parse_hooks(REPLACED.replace("  I  ", "RI M"), SKIP, "kvm")[0] == {"R", "I", "M"}


def test_listing_that_hides_addresses_is_told_from_one_that_is_none() -> None:
    with pytest.raises(AddressesHidden):
        parse_listing(RunningKernel(hidden=True).listing())
    with pytest.raises(Obstacle, match="ends in the middle"):
        parse_listing(RunningKernel().listing()[:-1])


@given(st.binary(max_size=400) | st.text(alphabet="0123456789abcdef tTkvm_skip\n\t[]", max_size=400).map(str.encode))
def test_any_listing_is_parsed_or_refused(noise: bytes) -> None:
    for listing in (noise + b"\n", RunningKernel().listing() + noise + b"\n"):
        try:
            found = parse_listing(listing)
        except Obstacle:
            continue
        for symbol in found.symbols[:20]:
            assert not symbol.is_function or found.function_at(symbol.address) is not None


@given(at=st.integers(0, 300), noise=st.binary(min_size=1, max_size=16))
def test_any_core_file_is_parsed_or_refused(at: int, noise: bytes) -> None:
    content = _CORE[:at] + noise + _CORE[at + len(noise) :]
    try:
        segments = parse_segments(Recorded(content))
        memory = KernelMemory(Recorded(content), segments, parse_listing(RunningKernel().listing()), lambda: "")
        assert len(memory.read(KVM, 5)) == 5
    except Obstacle:
        pass


_CORE = RunningKernel().core()[:0x3000]


# --- what changes meanwhile -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatchedMeanwhile(HostTree):
    """A kernel whose memory is patched each time that its symbols were listed, up to a number of times."""

    times: list[None] = field(default_factory=list)

    def read_bytes(self, path: str, *, limit_bytes: int = 1 << 20) -> Observed[bytes]:
        content = super().read_bytes(path, limit_bytes=limit_bytes)
        if path == "/proc/kallsyms" and self.times:
            self.times.pop()
            moved = RunningKernel()
            if len(self.times) % 2:
                moved.functions.append(Function(f"{SKIP}.cold", "kvm", KVM + 0x400, (RETURN,)))
            moved.write(self.root)
        return content


def test_reading_begins_again_when_the_kernel_was_patched_meanwhile(folder: Path) -> None:
    RunningKernel().write(folder)
    assert reading(read_live(PatchedMeanwhile(folder, [None, None]))).called_when_off is True


def test_kernel_that_is_patched_all_the_time_is_not_judged(folder: Path) -> None:
    RunningKernel().write(folder)
    assert "3 times: something is patching the kernel now" in reason(read_live(PatchedMeanwhile(folder, [None] * 20)))
