"""An image's code as one flat address space with names, whatever it came from: a module, a vmlinux, or memory.

A module is a relocatable file: its sections are laid out one after another and its relocations are applied to what is read, as the
kernel's own loader would do it (kernel/module/main.c, arch/x86/kernel/module.c). What reads the code then follows addresses, and
meets no relocation. Functions of other modules get addresses of their own, outside of everything, so that a call has a name.
"""

import io
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from exitguard.facts.elf_notes import parse_build_id
from exitguard.facts.machine_code.obstacle import Obstacle

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

#: Where a module's sections begin, and what it takes from elsewhere: both in the top 2 GiB, where the kernel's code lives.
_MODULE_AT, _EXTERNAL_AT = 0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_A000_0000
_EXTERNAL_STEP = 16
_EXTERNAL_MOST = (_MODULE_AT - _EXTERNAL_AT) // _EXTERNAL_STEP
_MOST_SECTIONS = 20_000
_MOST_SYMBOLS = 2_000_000
#: A function without a size ends where the next symbol begins, and no later than this.
_LARGEST_FUNCTION_BYTES = 1 << 16
_ADDRESS_MASK = (1 << 64) - 1
#: So many symbols before an address are looked at for the function that it is in.
_MOST_NEAR = 64

# <elf.h>
_ET_REL, _ET_EXEC, _ET_DYN = "ET_REL", "ET_EXEC", "ET_DYN"
_SHF_ALLOC, _SHF_EXECINSTR = 0x2, 0x4
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON, _SHN_LORESERVE, _SHN_XINDEX = 0, 0xFFF1, 0xFFF2, 0xFF00, 0xFFFF
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC = 0, 1, 2
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
#: Relocation type to (size in bytes, relative to its place): those that the kernel's own loader knows, and its no-op.
_RELOCATIONS = {1: (8, False), 2: (4, True), 4: (4, True), 10: (4, False), 11: (4, False), 24: (8, True)}
_R_X86_64_NONE = 0
_PATCHES = frozenset({"__jump_table", ".altinstructions", ".parainstructions"})

#: What compilers append to the name of a function that they changed or split.
_SUFFIX = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv|localalias|\d+))+$")
_JUMP_ENTRY = struct.Struct("<iiq")  # struct jump_entry with CONFIG_HAVE_ARCH_JUMP_LABEL_RELATIVE (include/linux/jump_label.h)


def base_name(name: str) -> str:
    """The name as its source has it: what compilers append is gone."""
    return _SUFFIX.sub("", name)


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str
    address: int
    #: In bytes; 0 where it is not known.
    size: int
    is_function: bool


class Memory(Protocol):
    """Where bytes come from. Raises Obstacle for what is not there."""

    def read(self, address: int, size: int) -> bytes: ...


@dataclass(frozen=True)
class Image:
    """Code, its names, and what is known of its build."""

    path: str
    memory: Memory
    symbols: tuple[Symbol, ...]
    build_id: str | None = None
    release: str | None = None
    #: The raw .BTF section, where there is one.
    btf: bytes | None = None
    #: The raw .BTF.base section: what a module carries of the BTF that its own continues (Linux 6.11 and later, modules built apart).
    btf_base: bytes | None = None
    #: Sites that the running kernel may turn into a jump, with their target: jump labels.
    jump_labels: Mapping[int, int] = field(default_factory=dict)
    #: Sites whose instructions the running kernel may replace, with what does it: alternatives, paravirt calls.
    patch_sites: Mapping[int, str] = field(default_factory=dict)
    #: Whether this is a running kernel's memory, whose calls are patched already.
    live: bool = False

    def functions(self, name: str) -> tuple[Symbol, ...]:
        """The functions that bear this name, a compiler's suffix or not; split-off cold parts are none."""
        return tuple(symbol for symbol in self._functions.get(name, ()) if ".cold" not in symbol.name)

    def addresses_of(self, name: str) -> frozenset[int]:
        """Every address that bears exactly this name."""
        return frozenset(symbol.address for symbol in self.symbols if symbol.name == name)

    def name_at(self, address: int) -> str | None:
        """The name of what begins at an address; a function's before any other."""
        return self._names.get(address)

    def object_at(self, address: int) -> str | None:
        """The name of the data that an address is in, or is the end of what was not sized; None where it is in none."""
        for symbol in self.symbols:
            if not symbol.is_function and symbol.address <= address < symbol.address + max(symbol.size, 1):
                return symbol.name
        return None

    def function_at(self, address: int) -> Symbol | None:
        """The function whose code an address is in."""
        index = bisect_right(self._starts, address)
        # Several names may begin at one place, an alias may be the shorter one, and labels without a type may lie inside.
        near = self._ordered[max(index - _MOST_NEAR, 0) : index]
        holding = [each for each in near if each.address <= address < each.address + self.extent(each)]
        return max(holding, key=self.extent, default=None)

    def place(self, address: int) -> str:
        """An address in words, as its distance from a function's beginning: what a kernel's memory is laid out like stays there."""
        function = self.function_at(address)
        return f"{function.name}+{address - function.address:#x}" if function is not None else "an address outside of every function"

    def extent(self, function: Symbol) -> int:
        """How many bytes a function has: as its symbol says, else up to the next symbol."""
        if function.size:
            return min(function.size, _LARGEST_FUNCTION_BYTES)
        index = bisect_right(self._edges, function.address)
        after = self._edges[index] if index < len(self._edges) else function.address + _LARGEST_FUNCTION_BYTES
        return min(after - function.address, _LARGEST_FUNCTION_BYTES)

    @cached_property
    def _functions(self) -> dict[str, list[Symbol]]:
        by_name: dict[str, list[Symbol]] = {}
        for symbol in self.symbols:
            if symbol.is_function:
                by_name.setdefault(base_name(symbol.name), []).append(symbol)
        return by_name

    @cached_property
    def _names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for symbol in sorted(self.symbols, key=lambda each: each.is_function):  # the last one wins: functions
            names[symbol.address] = symbol.name
        return names

    @cached_property
    def _ordered(self) -> list[Symbol]:
        return sorted((symbol for symbol in self.symbols if symbol.is_function), key=lambda each: each.address)

    @cached_property
    def _starts(self) -> list[int]:
        return [symbol.address for symbol in self._ordered]

    @cached_property
    def _edges(self) -> list[int]:
        return sorted({symbol.address for symbol in self.symbols})


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: str
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int

    def holds(self, address: int) -> bool:
        return self.address <= address < self.address + self.size


def section_of(elf: bytes, name: str) -> bytes | None:
    """The content of one section of an ELF file; None where there is none of that name. Raises Obstacle for what is no ELF file."""
    _, sections = _open(elf)
    return next((elf[each.offset : each.offset + each.size] for each in sections if each.name == name and each.kind != "SHT_NOBITS"), None)


def load_image(elf: bytes, *, path: str, system_map: bytes | None = None) -> Image:
    """The image in an ELF file: a module or a vmlinux; the names of a stripped vmlinux come from `system_map`. Raises Obstacle."""
    file_type, sections = _open(elf)
    if file_type not in (_ET_REL, _ET_EXEC, _ET_DYN):
        raise Obstacle(f"an ELF file of type {file_type}: expected a kernel module or a vmlinux")
    relocatable = file_type == _ET_REL
    if relocatable:
        sections = _laid_out(sections)
    by_index, symbols = _symbols(elf, sections, relocatable=relocatable)
    if not relocatable and system_map is not None and not any(symbol.is_function for symbol in symbols):
        symbols = parse_system_map(system_map)
    if not any(symbol.is_function for symbol in symbols):
        raise Obstacle(_no_names(system_map))
    memory = _FileMemory(
        elf, tuple(each for each in sections if each.flags & _SHF_ALLOC), _relocations(sections, relocatable=relocatable), by_index
    )
    notes = [elf[each.offset : each.offset + each.size] for each in sections if each.kind == "SHT_NOTE"]
    modinfo = next((elf[each.offset : each.offset + each.size] for each in sections if each.name == ".modinfo"), b"")
    types = {each.name: elf[each.offset : each.offset + each.size] for each in sections if each.name in (".BTF", ".BTF.base")}
    labels, sites = _patched_places(sections, memory, symbols, relocatable=relocatable)
    return Image(
        path=path,
        memory=memory,
        symbols=symbols,
        build_id=next((found for found in map(parse_build_id, notes) if found is not None), None),
        release=_release(modinfo, elf, sections),
        btf=types.get(".BTF"),
        btf_base=types.get(".BTF.base"),
        jump_labels=labels,
        patch_sites=sites,
    )


def _no_names(system_map: bytes | None) -> str:
    if system_map is not None:
        return "its symbols are stripped, and its System.map names no function (Debian's is a stub): expected one with symbols"
    return "its symbols are stripped: expected a module, or a vmlinux with symbols or a System.map beside it"


def _open(elf: bytes) -> tuple[str, list[_Section]]:
    """The type of an ELF file and its sections. pyelftools is not made for hostile input: whatever it raises means a broken file."""
    from elftools.elf.elffile import ELFFile

    if elf[:4] != b"\x7fELF":
        raise Obstacle("not an ELF file")
    if elf[4:6] != b"\x02\x01" or elf[18:20] != b"\x3e\x00":
        raise Obstacle("an ELF file for another machine: expected 64-bit little-endian x86")
    try:
        opened: ELFFile = ELFFile(io.BytesIO(elf))
        count = opened.num_sections()
        kind, sections = str(opened["e_type"]), [_section(opened, index) for index in range(min(count, _MOST_SECTIONS))]
    except Exception as error:  # noqa: BLE001 - see above
        raise Obstacle(f"a broken ELF file: {type(error).__name__}: {str(error)[:100]}") from None
    if count > _MOST_SECTIONS:
        raise Obstacle(f"a broken ELF file: it says it has {count} sections, expected at most {_MOST_SECTIONS}")
    beyond = next((each for each in sections if each.kind not in ("SHT_NOBITS", "SHT_NULL") and each.offset + each.size > len(elf)), None)
    if beyond is not None:
        raise Obstacle(f"a truncated ELF file: section {beyond.name[:40]!r} reaches beyond its end")
    return kind, sections


def _section(opened: "ELFFile", index: int) -> _Section:
    header = opened._get_section_header(index)  # noqa: SLF001 - the public way parses and checks far more than is needed
    name = opened._get_section_name(header)  # noqa: SLF001
    kind = str(header["sh_type"])
    size, offset = int(header["sh_size"]), int(header["sh_offset"])
    flags, address = int(header["sh_flags"]), int(header["sh_addr"])
    return _Section(name, kind, flags, address, offset, size, int(header["sh_link"]), int(header["sh_info"]))


def _laid_out(sections: list[_Section]) -> list[_Section]:
    """A module's sections one after another, as a loader places them."""
    placed, at = [], _MODULE_AT
    for each in sections:
        if not each.flags & _SHF_ALLOC:
            placed.append(each)
            continue
        at = (at + 63) & ~63
        if at + each.size > _ADDRESS_MASK:
            raise Obstacle(f"a broken ELF file: section {each.name[:40]!r} says it has {each.size} bytes")
        placed.append(_Section(each.name, each.kind, each.flags, at, each.offset, each.size, each.link, each.info))
        at += each.size
    return placed


def _symbols(elf: bytes, sections: list[_Section], *, relocatable: bool) -> tuple[list[int], tuple[Symbol, ...]]:
    """The address of every symbol by its index, which relocations name; and those with a name."""
    table = next((each for each in sections if each.kind == "SHT_SYMTAB"), None)
    if table is None or not table.link < len(sections):
        return [], ()
    names = elf[sections[table.link].offset : sections[table.link].offset + sections[table.link].size]
    if table.size // _SYMBOL.size > _MOST_SYMBOLS:
        raise Obstacle(f"more than {_MOST_SYMBOLS} symbols, which is more than a kernel can rightly have")
    by_index: list[int] = []
    named: list[Symbol] = []
    external = 0
    for name_at, info, _, place, value, size in _SYMBOL.iter_unpack(elf[table.offset : table.offset + table.size // 24 * 24]):
        kind = info & 0xF
        address = value
        if place in (_SHN_UNDEF, _SHN_COMMON):
            if external >= _EXTERNAL_MOST:
                raise Obstacle("a broken ELF file: more undefined symbols than a module can rightly have")
            address = _EXTERNAL_AT + _EXTERNAL_STEP * external
            external += 1
        elif relocatable and place < _SHN_LORESERVE:
            if place >= len(sections):
                raise Obstacle("a broken ELF file: a symbol in a section that does not exist")
            address = sections[place].address + value
        by_index.append(address & _ADDRESS_MASK)
        if name_at and kind <= _STT_FUNC:
            end = names.find(b"\0", name_at, name_at + 512)
            name = names[name_at : end if end >= 0 else name_at].decode("ascii", "replace")
            if name and not name.startswith(".L"):
                here = kind == _STT_FUNC or (kind == _STT_NOTYPE and _is_code(sections, place))
                named.append(Symbol(name, address & _ADDRESS_MASK, size, here and place != _SHN_UNDEF))
    return by_index, tuple(named)


def _is_code(sections: list[_Section], index: int) -> bool:
    return 0 < index < len(sections) and bool(sections[index].flags & _SHF_EXECINSTR)


def parse_system_map(text: bytes) -> tuple[Symbol, ...]:
    """The symbols of a System.map, or of a kallsyms listing of the kernel itself: `ffffffff81000000 T _text`."""
    found: list[Symbol] = []
    for match in re.finditer(rb"^([0-9a-f]{16}) ([A-Za-z]) (\S{1,511})$", text, re.MULTILINE):
        if len(found) == _MOST_SYMBOLS:
            break
        found.append(Symbol(match[3].decode("ascii", "replace"), int(match[1], 16), 0, match[2] in b"tTwW"))
    return tuple(found)


def _release(modinfo: bytes, elf: bytes, sections: list[_Section]) -> str | None:
    """A module's vermagic begins with the release; a vmlinux says `Linux version RELEASE (` in its read-only data."""
    match = re.search(rb"(?:^|\0)vermagic=([!-~]{1,128})", modinfo)
    if match is None:
        rodata = next((each for each in sections if each.name == ".rodata"), None)
        if rodata is not None:
            match = re.compile(rb"Linux version ([!-~]{1,128}) \(").search(elf, rodata.offset, rodata.offset + rodata.size)
    return match[1].decode("ascii") if match is not None else None


@dataclass(frozen=True, slots=True)
class _Relocation:
    place: int
    kind: int
    symbol: int
    addend: int


def _relocations(sections: list[_Section], *, relocatable: bool) -> dict[int, _Section]:
    """The section of relocations of each section of a module, by that section's address."""
    if not relocatable:
        return {}
    found: dict[int, _Section] = {}
    for each in sections:
        if each.kind == "SHT_RELA" and each.info < len(sections) and sections[each.info].flags & _SHF_ALLOC:
            if sections[each.info].address in found:
                raise Obstacle("a broken ELF file: two sections of relocations for one section")
            found[sections[each.info].address] = each
    return found


class _FileMemory:
    """The bytes of a file's sections at their addresses, relocated when they are read."""

    def __init__(self, elf: bytes, sections: tuple[_Section, ...], relocations: dict[int, _Section], symbols: list[int]) -> None:
        self._elf = elf
        self._sections = sorted(sections, key=lambda each: each.address)
        self._relocation_sections = relocations
        self._symbols = symbols
        self._parsed: dict[int, list[_Relocation]] = {}

    def read(self, address: int, size: int) -> bytes:
        section = next((each for each in self._sections if each.holds(address)), None)
        if section is None or address + size > section.address + section.size or section.kind == "SHT_NOBITS":
            raise Obstacle("code that is not in the image")
        start = section.offset + address - section.address
        content = self._elf[start : start + size]
        relocations = self._relocations_of(section)
        if not relocations:
            return content
        changed = bytearray(content)
        for index in range(bisect_left(relocations, address - 7, key=lambda each: each.place), len(relocations)):
            relocation = relocations[index]
            if relocation.place >= address + size:
                break
            self._apply(relocation, changed, address)
        return bytes(changed)

    def targets(self, section: _Section) -> Iterable[int]:
        """What the relocations of a section point at."""
        return (self._target(relocation) for relocation in self._relocations_of(section) if relocation.kind != _R_X86_64_NONE)

    def _relocations_of(self, section: _Section) -> list[_Relocation]:
        if section.address not in self._parsed:
            table = self._relocation_sections.get(section.address)
            raw = b"" if table is None else self._elf[table.offset : table.offset + table.size // 24 * 24]
            entries = _RELOCATION.iter_unpack(raw)
            parsed = [_Relocation(section.address + at, info & 0xFFFFFFFF, info >> 32, addend) for at, info, addend in entries]
            self._parsed[section.address] = sorted(parsed, key=lambda each: each.place)
        return self._parsed[section.address]

    def _target(self, relocation: _Relocation) -> int:
        if relocation.symbol >= len(self._symbols):
            raise Obstacle("a broken ELF file: a relocation for a symbol that does not exist")
        return self._symbols[relocation.symbol] + relocation.addend

    def _apply(self, relocation: _Relocation, content: bytearray, address: int) -> None:
        if relocation.kind == _R_X86_64_NONE:
            return
        if relocation.kind not in _RELOCATIONS:
            raise Obstacle(f"relocation type {relocation.kind}, which the kernel's own loader does not know")
        size, relative = _RELOCATIONS[relocation.kind]
        value = self._target(relocation) - (relocation.place if relative else 0)
        for index, byte in enumerate((value & _ADDRESS_MASK).to_bytes(8, "little")[:size]):
            at = relocation.place - address + index
            if 0 <= at < len(content):
                content[at] = byte


def _patched_places(
    sections: list[_Section], memory: _FileMemory, symbols: tuple[Symbol, ...], *, relocatable: bool
) -> tuple[dict[int, int], dict[int, str]]:
    """Jump labels with their targets, and sites of alternatives and paravirt calls: what the running kernel changes in the code."""
    allocated = [each for each in sections if each.flags & _SHF_ALLOC]
    by_name = {each.name: each for each in allocated}
    if len([each for each in allocated if each.name in _PATCHES]) > len(_PATCHES & by_name.keys()):
        raise Obstacle("a section of what the kernel changes is there twice: expected a module that was linked as the kernel links its own")
    wanted = ("__start___jump_table", "__stop___jump_table", "__alt_instructions", "__alt_instructions_end")
    marks = {symbol.name: symbol.address for symbol in symbols if symbol.name in wanted}
    labels: dict[int, int] = {}
    table = by_name.get("__jump_table")
    if table is not None:
        labels = _jump_labels(memory, table.address, table.size)
    elif table is None and not relocatable and "__start___jump_table" not in marks:
        raise Obstacle("its jump labels cannot be found: which instructions the kernel turns into jumps is not known")
    elif "__start___jump_table" in marks and "__stop___jump_table" in marks:
        labels = _jump_labels(memory, marks["__start___jump_table"], marks["__stop___jump_table"] - marks["__start___jump_table"])
    sites: dict[int, str] = {}
    code = [each for each in sections if each.flags & _SHF_EXECINSTR and not each.name.startswith(".altinstr")]
    for name, what in ((".altinstructions", "an alternative"), (".parainstructions", "a paravirt call")):
        section = by_name.get(name)
        if section is not None:
            sites |= dict.fromkeys(_sites(section, memory, code), what)
    return labels, sites


def _jump_labels(memory: _FileMemory, address: int, size: int) -> dict[int, int]:
    labels: dict[int, int] = {}
    if not 0 < size <= 1 << 24:
        return labels
    for index, (code, target, _) in enumerate(_JUMP_ENTRY.iter_unpack(memory.read(address, size // 16 * 16))):
        entry = address + 16 * index
        labels[(entry + code) & _ADDRESS_MASK] = (entry + 4 + target) & _ADDRESS_MASK
    return labels


def _sites(section: _Section, memory: _FileMemory, code: list[_Section]) -> set[int]:
    """Where a table of patches points into code.

    Its entries differ in size between versions of Linux: in a module the relocations tell; in a linked image every size is tried, and
    only one makes every entry point into code.
    """
    relocated = {target for target in memory.targets(section) if any(each.holds(target) for each in code)}
    if relocated or section.size == 0:
        return relocated
    content = memory.read(section.address, section.size)
    relative = section.name == ".altinstructions"  # struct alt_instr; struct paravirt_patch_site begins with an absolute address
    for entry in (12, 13, 14) if relative else (16,):
        if section.size % entry:
            continue
        places = range(0, section.size, entry)
        if not relative:
            found = {struct.unpack_from("<Q", content, at)[0] for at in places}
        else:
            found = {(section.address + at + struct.unpack_from("<i", content, at)[0]) & _ADDRESS_MASK for at in places}
        if all(any(each.holds(target) for each in code) for target in found):
            return found
    raise Obstacle(f"the entries of {section.name} could not be told apart, so it is not known which instructions the kernel replaces")
