"""The code that this kernel runs now, out of its own memory: for an explicit request of root's, never part of an audit.

/proc/kcore is the whole memory as an ELF core file (fs/proc/kcore.c). Of it the program headers are read, and the bytes of a few
functions that /proc/kallsyms places; nothing is written, loaded or switched. The rest is files of sysfs, and one of tracefs where
something hooks a function. Memory is no file: what runs may be a live patch's copy, a tracer may sit at a function's entry, a kprobe
anywhere, and all of it may change between two reads. Each of these is told apart here, or is an Obstacle.
"""

import os
import struct
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from exitguard.facts.elf_notes import KERNEL_NOTES, read_build_id
from exitguard.facts.livepatch import read_live_patches
from exitguard.facts.machine_code.image import Image, Symbol, base_name
from exitguard.facts.machine_code.kernel_symbols import ANCHOR, HELPERS, AddressesHidden, LiveSymbols, parse_hooks, parse_listing
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.tree import HostTree, one_line, why
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed, seen, unseen

KCORE = "/proc/kcore"
_KALLSYMS = "/proc/kallsyms"
_KPTR_RESTRICT = "/proc/sys/kernel/kptr_restrict"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_RELEASE = "/proc/sys/kernel/osrelease"
#: Every function with a hook of ftrace's, what it is called for, and by whom (kernel/trace/ftrace.c, t_show). Not in debugfs.
_HOOKED = "/sys/kernel/tracing/enabled_functions"
_LIVE_PATCHES = "/sys/kernel/livepatch"
#: KVM is an object of its own as a module, and part of the kernel where it is built in.
_PATCHED_OBJECTS = ("kvm", "vmlinux")
_KVM_NOTES = "/sys/module/kvm/notes/.note.gnu.build-id"
_BTF = "/sys/kernel/btf"
_LISTING_LIMIT_BYTES = 32 << 20
_BTF_LIMIT_BYTES = 64 << 20
#: All functions that are read together have some 5 KB.
_MOST_BYTES = 64 << 10
_ATTEMPTS = 3
_ROOT_NEEDED = "run as root (CAP_SYS_RAWIO)"
_WITHOUT_LIVE = "leave out --live: the file that is tied to the running code by build-id is read instead"

# <elf.h>
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_ET_CORE, _EM_X86_64, _PT_LOAD = 4, 62, 1
_MOST_SEGMENTS = 4096

# What a function can begin with, behind an `endbr64` (arch/x86/kernel/ftrace.c, arch/x86/include/asm/text-patching.h).
_ENDBR64, _NOP5 = bytes.fromhex("f30f1efa"), bytes.fromhex("0f1f440000")
_CALL, _JUMP, _SHORT_JUMP, _BREAKPOINT = 0xE8, 0xE9, 0xEB, 0xCC
_NEAR_BYTES = 5
#: How far before a function the code that counts its calls begins, at most (arch/x86/kernel/callthunks.c).
_PADDING_BYTES = 16
_PAGE_BYTES = 4096

#: Reads that many bytes at an offset of a file, fewer at its end; raises OSError.
ReadAt = Callable[[int, int], bytes]


class _Closed(Obstacle):
    """An Obstacle that a privilege would remove."""

    def __init__(self, reason: str, unlock: str) -> None:
        super().__init__(reason)
        self.unlock = unlock


class _Changed(Obstacle):
    """The code was not the same twice."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of the kernel's address space, and where it begins in the core file."""

    address: int
    size: int
    offset: int


def read_live(tree: HostTree) -> Observed[MachineCode]:
    """kvm_skip_emulated_instruction() as the running kernel has it in memory, or why it cannot be read there.

    Runs in this process: what is parsed comes from the kernel, and is bounded.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return seen(KCORE, _read_once(tree))
        except _Changed as changed:
            if attempt == _ATTEMPTS - 1:
                return unseen(KCORE, f"{changed}, {_ATTEMPTS} times: something is patching the kernel now; try again later")
        except _Closed as closed:
            return unseen(KCORE, str(closed), unlock=closed.unlock)
        except Obstacle as obstacle:
            return unseen(KCORE, str(obstacle))
    raise AssertionError  # the last attempt returns


def _read_once(tree: HostTree) -> MachineCode:
    from exitguard.facts.machine_code.skip import read_skip

    with _open(tree) as file:
        patch = _running_patch(tree)
        symbols = _read_symbols(tree, patch)
        descriptor = file.fileno()

        def read_at(offset: int, size: int) -> bytes:
            return os.pread(descriptor, size, offset)  # past the buffer of `file`, which would read more than is wanted

        memory = KernelMemory(read_at, parse_segments(read_at), symbols, lambda: _read_hooks(tree))
        image, btf_base = _image(tree, symbols, memory, patch)
        reading = read_skip(image, btf_base=btf_base)
        memory.expect_unchanged()
    if _running_patch(tree) != patch or _read_symbols(tree, patch).of_kvm != symbols.of_kvm:
        raise _Changed("live patches or modules of KVM came or went while they were read")
    if memory.refused is not None:  # the reading may have gone on without what it was refused
        raise memory.refused
    return _with_notes(reading if patch is None else _as_patched(reading, patch), memory)


def _as_patched(reading: MachineCode, patch: str) -> MachineCode:
    """A live patch replaces functions by name: copies of the old one that the compiler inlined elsewhere go on as they were.

    Debian's 6.1 has fifteen, among them those for HLT and hypercalls. A guard in the PMU function itself is in force for all of them.
    """
    if reading.called_when_off is not False:
        return reading
    why = (
        f"live patch {one_line(patch)} guards the function's own call; whether it also replaces every function that the compiler inlined "
        "the old one into (for HLT, hypercalls, port I/O ...) cannot be seen, and those make the call as before"
    )
    return reading.model_copy(update={"obstacle": why})


def _image(tree: HostTree, symbols: LiveSymbols, memory: "KernelMemory", patch: str | None) -> tuple[Image, bytes | None]:
    """The image to read, and the BTF that its own is based on."""
    release = tree.read_text(_RELEASE).value
    built_in = symbols.owner == ""
    base = tree.read_bytes(f"{_BTF}/vmlinux", limit_bytes=_BTF_LIMIT_BYTES).value
    image = Image(
        path=KCORE if patch is None else f"{KCORE}, the copy in live patch {patch}",
        memory=memory,
        symbols=symbols.symbols,
        # A live patch's copy is no part of KVM's build, and nothing that is said of it may be remembered by that build-id.
        build_id=None if patch is not None else read_build_id(tree, KERNEL_NOTES if built_in else _KVM_NOTES).value,
        release=one_line(release, limit_characters=128) if release else None,
        btf=base if built_in else tree.read_bytes(f"{_BTF}/kvm", limit_bytes=_BTF_LIMIT_BYTES).value,
        live=True,
    )
    return image, None if built_in else base


def _with_notes(reading: MachineCode, memory: "KernelMemory") -> MachineCode:
    """The listing, saying where a tracer's call is read as the NOP that it replaces."""
    hooks = {name: at for at, name in memory.traced.items()}
    listing = tuple(
        line.model_copy(update={"note": line.note or "a tracer is called here, which changes nothing"})
        if line.function in hooks and line.address in (0, len(_ENDBR64)) and line.text.startswith("nop")
        else line
        for line in reading.listing
    )
    return reading.model_copy(update={"listing": listing})


# --- what runs --------------------------------------------------------------------------------------------------------------------


def _running_patch(tree: HostTree) -> str | None:
    """The live patch whose copy of the function runs; None where the kernel's own does."""
    patches = read_live_patches(tree)
    if patches.value is None:
        raise Obstacle(f"whether a live patch replaces {ANCHOR} could not be told: {patches.source}: {patches.reason}")
    concerned = [patch for patch in patches.value if patch.replaces_skip]
    for patch in concerned:
        if patch.transition:
            raise Obstacle(f"live patch {patch.name} is in transition: tasks run the old code and the new; read again when it is done")
    running = [patch.name for patch in concerned if patch.enabled]
    if not running:
        return None
    if len(running) > 1:
        raise Obstacle(f"several live patches replace {ANCHOR} or its PMU call ({', '.join(running)}): which of them runs is not shown")
    replaced = {
        name.partition(",")[0].partition(".")[0]
        for patched in _PATCHED_OBJECTS
        for name in tree.names(f"{_LIVE_PATCHES}/{running[0]}/{patched}").value or ()
    }
    also = sorted(replaced.intersection(HELPERS))
    if also or ANCHOR not in replaced:
        raise Obstacle(f"live patch {running[0]} replaces {' and '.join(also) or 'KVM code'}: only its copy of {ANCHOR} could be followed")
    return running[0]


def _read_symbols(tree: HostTree, patch: str | None) -> LiveSymbols:
    listing = tree.read_bytes(_KALLSYMS, limit_bytes=_LISTING_LIMIT_BYTES)
    if listing.value is None:
        raise Obstacle(f"{_KALLSYMS}: {listing.reason}")
    try:
        return parse_listing(listing.value, patch=patch)
    except AddressesHidden:
        raise _no_addresses(tree) from None
    except Obstacle as obstacle:
        raise Obstacle(f"{_KALLSYMS} {obstacle}") from None


def _no_addresses(tree: HostTree) -> Obstacle:
    restricted = tree.read_text(_KPTR_RESTRICT).value
    if restricted == "2":
        return Obstacle(f"{_KALLSYMS} hides every address, from root too: kernel.kptr_restrict is 2, expected 1 or 0; {_WITHOUT_LIVE}")
    return _Closed(f"{_KALLSYMS} hides every address (kernel.kptr_restrict is {restricted or 'not known'})", f"{_ROOT_NEEDED}, CAP_SYSLOG")


def _read_hooks(tree: HostTree) -> str:
    listing = tree.read_text(_HOOKED, limit_bytes=_LISTING_LIMIT_BYTES)
    if listing.value is None:
        raise Obstacle(f"by whom could not be told: {_HOOKED}: {listing.reason} (is tracefs mounted there?)")
    return listing.value


def _open(tree: HostTree) -> BinaryIO:
    try:
        return tree.open(KCORE)
    except FileNotFoundError:
        raise Obstacle(f"not there: this kernel has no CONFIG_PROC_KCORE; {_WITHOUT_LIVE}") from None
    except PermissionError:
        mode = tree.read_text(_LOCKDOWN).value or ""
        if "[confidentiality]" in mode:
            raise Obstacle(f"closed to root too: the kernel is locked down ({_LOCKDOWN}: confidentiality); {_WITHOUT_LIVE}") from None
        raise _Closed("permission denied: it shows all of the kernel's memory", _ROOT_NEEDED) from None
    except OSError as error:
        raise Obstacle(f"{why(error)}; {_WITHOUT_LIVE}") from None


# --- memory -----------------------------------------------------------------------------------------------------------------------


def parse_segments(read_at: ReadAt) -> tuple[Segment, ...]:
    """Where the kernel's addresses lie in its core file. Raises Obstacle."""
    raw = _exactly(read_at, 0, _ELF_HEADER.size, "its header")
    ident, kind, machine, _, _, table, _, _, _, entry, count, _, _, _ = _ELF_HEADER.unpack(raw)
    if ident[:6] != b"\x7fELF\x02\x01" or (kind, machine, entry) != (_ET_CORE, _EM_X86_64, _PROGRAM_HEADER.size):
        raise Obstacle(f"not the core file of an x86-64 kernel; {_WITHOUT_LIVE}")
    if count > _MOST_SEGMENTS:
        raise Obstacle(f"has {count} segments, expected at most {_MOST_SEGMENTS}")
    headers = _PROGRAM_HEADER.iter_unpack(_exactly(read_at, table, count * entry, "its program headers"))
    return tuple(Segment(address, size, offset) for what, _, offset, address, _, size, _, _ in headers if what == _PT_LOAD)


def _exactly(read_at: ReadAt, offset: int, size: int, what: str) -> bytes:
    try:
        content = read_at(offset, size)
    except (OSError, OverflowError) as error:
        reason = why(error) if isinstance(error, OSError) else "no such place"
        raise Obstacle(f"{what} could not be read: {reason}; {_WITHOUT_LIVE}") from None
    if len(content) != size:
        raise Obstacle(f"{what} could not be read: it ends early; {_WITHOUT_LIVE}")
    return content


class KernelMemory:
    """The bytes of functions, and of nothing else: a function is read as a whole when its first byte is asked for.

    A tracer's call at a function's entry is read as the NOP that it replaces, where the tracer is one that cannot change the way that
    the function goes. What else may run instead of what is read is an Obstacle.
    """

    def __init__(self, read_at: ReadAt, segments: tuple[Segment, ...], symbols: LiveSymbols, read_hooks: Callable[[], str]) -> None:
        self._read_at = read_at
        self._segments = segments
        self._symbols = symbols
        self._read_hooks = read_hooks
        #: By address: what was read, and what is shown of it, or why nothing is.
        self._raw: dict[int, bytes] = {}
        self._shown: dict[int, bytes | Obstacle] = {}
        #: The functions that a tracer is called at the entry of, by address.
        self.traced: dict[int, str] = {}
        #: The first Obstacle in one of KVM's functions that decide.
        self.refused: Obstacle | None = None

    def read(self, address: int, size: int) -> bytes:
        function = self._symbols.function_at(address)
        if function is None:
            raise Obstacle(f"no function is known at {address:#x}")
        if function.address not in self._shown:
            self._shown[function.address] = self._take_or_refuse(function)
        shown = self._shown[function.address]
        if isinstance(shown, Obstacle):
            raise shown
        start = address - function.address
        content = shown[start : start + size]
        if len(content) != size:
            raise Obstacle(f"{size} bytes at {address:#x} are not in {function.name}")
        return content

    def expect_unchanged(self) -> None:
        """Read everything again. Raises Obstacle where it is not what it was."""
        for address, before in self._raw.items():
            if self._bytes(address, len(before), "code") != before:
                function = self._symbols.function_at(address)
                raise _Changed(f"{function.name if function is not None else hex(address)} changed while it was read")

    def _take_or_refuse(self, function: Symbol) -> bytes | Obstacle:
        try:
            return self._take(function)
        except Obstacle as obstacle:
            if self.refused is None and base_name(function.name) in HELPERS | {ANCHOR}:
                self.refused = obstacle
            return obstacle

    def _take(self, function: Symbol) -> bytes:
        size = function.size
        if sum(map(len, self._raw.values())) + size > _MOST_BYTES:
            raise Obstacle(f"{function.name} and what was read before have more than {_MOST_BYTES} bytes, expected some 5,000")
        raw = self._bytes(function.address, size, function.name)
        if not any(raw):
            raise Obstacle(f"{function.name} reads as zeros: it is not mapped any more, or is closed to readers; {_WITHOUT_LIVE}")
        self._raw[function.address] = raw
        self._expect_no_probe(function, raw)
        return self._without_hook(function, raw)

    def _bytes(self, address: int, size: int, what: str) -> bytes:
        for segment in self._segments:
            if segment.address <= address and address + size <= segment.address + segment.size:
                return _exactly(self._read_at, segment.offset + address - segment.address, size, what)
        raise Obstacle(f"has no segment for {what} at {address:#x}; {_WITHOUT_LIVE}")

    def _without_hook(self, function: Symbol, raw: bytes) -> bytes:
        """The code with the NOP at its entry, where a tracer is called there."""
        at = len(_ENDBR64) if raw.startswith(_ENDBR64) else 0
        first = raw[at] if at < len(raw) else None
        if first == _BREAKPOINT:
            raise Obstacle(f"a breakpoint at the entry of {function.name}: a kprobe is set there; take it off, or {_WITHOUT_LIVE}")
        if first in (_JUMP, _SHORT_JUMP):
            raise Obstacle(f"{function.name} begins with a jump: something else runs in its place (a kprobe, or a patch); {_WITHOUT_LIVE}")
        if first != _CALL or at + _NEAR_BYTES > len(raw):
            return raw
        target = _target(raw, at, function.address)
        callee = self._symbols.function_at(target)
        name = callee.name if callee is not None and callee.address == target else None
        if name is not None and not name.startswith(("ftrace_", "bpf_trampoline_")):
            return raw  # its first own instruction
        self._expect_passive(function)
        self.traced[function.address] = function.name
        return raw[:at] + _NOP5 + raw[at + _NEAR_BYTES :]

    def _expect_passive(self, function: Symbol) -> None:
        """Raises Obstacle unless what is called at the entry can only watch."""
        hook = f"something is called at the entry of {function.name}"
        try:
            name, module = self._symbols.listed.get(function.address, (function.name, ""))
            flags, says = parse_hooks(self._read_hooks(), name, module)
        except Obstacle as obstacle:
            raise Obstacle(f"{hook}: {obstacle}") from None
        if "kprobe" in says:
            raise Obstacle(f"a kprobe is set at the entry of {function.name}, and may change what runs; take it off, or {_WITHOUT_LIVE}")
        if "I" in flags:
            raise Obstacle(f"{hook} that makes another function run instead, and no live patch of it is listed in {_LIVE_PATCHES}: {says}")
        if flags & {"R", "D"}:
            raise Obstacle(f"{hook} that may change what runs (a kprobe, or a BPF program): {says}; take it off, or {_WITHOUT_LIVE}")

    def _expect_no_probe(self, function: Symbol, raw: bytes) -> None:
        """Raises Obstacle where code jumps into a kprobe, or calls are counted.

        Looks at every byte, since it knows no instructions: that a stray one seems to lead to those few places is next to impossible.
        """
        counted = [(symbol.address - _PADDING_BYTES, symbol.address, symbol.name) for symbol in self._symbols.helpers]
        for at in range(len(raw) - _NEAR_BYTES + 1):
            if raw[at] not in (_CALL, _JUMP):
                continue
            target = _target(raw, at, function.address)
            index = bisect_left(self._symbols.probe_pages, target - _PAGE_BYTES + 1)
            if raw[at] == _JUMP and index < len(self._symbols.probe_pages) and self._symbols.probe_pages[index] <= target:
                raise Obstacle(f"{function.name} jumps into an optimised kprobe at +{at:#x}: take the kprobe off, or {_WITHOUT_LIVE}")
            for begin, end, name in counted:
                if begin <= target < end:
                    raise Obstacle(
                        f"calls of {name} go through call depth tracking (retbleed=stuff), which is not followed; {_WITHOUT_LIVE}"
                    )


def _target(code: bytes, at: int, address: int) -> int:
    """Where a near call or jump at an offset leads."""
    distance: int = struct.unpack_from("<i", code, at + 1)[0]
    return (address + at + _NEAR_BYTES + distance) % (1 << 64)
