r"""The running kernel's functions by address, from a kallsyms listing, named so that only what runs bears a name that decides.

A listing has a line for each symbol, `ffffffffc078b480 t kvm_skip_emulated_instruction\t[kvm]`, the module at its end; the kernel's
own symbols have none. Memory that the kernel makes code in bears names too: `kprobe_optinsn_page\t[__builtin__kprobes]`.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from exitguard.facts.machine_code.image import Symbol, base_name
from exitguard.facts.machine_code.obstacle import Obstacle

ANCHOR = "kvm_skip_emulated_instruction"
HELPERS = frozenset({"kvm_pmu_trigger_event", "kvm_pmu_instruction_retired"})
#: The functions whose code decides. Two modules may each have one of a name; only KVM's own counts.
RESERVED = HELPERS | {ANCHOR, "kvm_arch_init_vm"}
_DATA = "enable_pmu"
#: What the copy of a function is called in a live patch: by kpatch-build, and by SUSE's klp-ccp.
_COPIES = (ANCHOR, f"klpp_{ANCHOR}")
_VENDOR_SKIP = re.compile(r"(?!kvm_|__SC)\w*skip_emulated_instruction")  # not __SCT__kvm_x86_..., the place of a static call
_PROBE_PAGE = "kprobe_optinsn_page"  # kernel/kprobes.c, since Linux 5.9
_LINE = re.compile(rb"^([0-9a-f]{16}) ([A-Za-z]) (\S{1,511})(?:\t\[([^\]\n]{1,64})\])?$", re.MULTILINE)
_FUNCTION_TYPES = b"tTwW"
_MOST_SYMBOLS = 2_000_000
_LARGEST_FUNCTION_BYTES = 1 << 16  # as an Image has it
# As in: kvm_skip_emulated_instruction [kvm] (1) R I   <tab>tramp: 0xffffffffc05dd000 (kprobe_ftrace_handler+0x0/0x1b0) ->...
_HOOKED_LINE = re.compile(r"(?P<name>\S+)(?: \[(?P<module>\w+)\])? \(\d+\)(?P<flags>[ A-Z]*)(?P<rest>.*)")


class AddressesHidden(Obstacle):
    """The listing shows names only."""


@dataclass(frozen=True)
class LiveSymbols:
    """What a listing says, for an Image of what runs."""

    symbols: tuple[Symbol, ...]
    #: The module that KVM is; empty where it is built into the kernel.
    owner: str
    #: The symbols of RESERVED names that keep their name, with their module: what must not change while they are read.
    of_kvm: frozenset[tuple[Symbol, str]]
    #: Name and module of KVM's functions as the listing has them, by address.
    listed: Mapping[int, tuple[str, str]]
    #: The functions of HELPERS.
    helpers: tuple[Symbol, ...]
    #: Where optimised kprobes keep their code, sorted: one page each.
    probe_pages: tuple[int, ...]

    def function_at(self, address: int) -> Symbol | None:
        """The function whose code an address is in, with its size: up to the next one."""
        functions = self._functions
        index = bisect_right(functions, address, key=lambda each: each.address) - 1
        if index < 0:
            return None
        after = functions[index + 1].address if index + 1 < len(functions) else functions[index].address + _LARGEST_FUNCTION_BYTES
        size = min(after - functions[index].address, _LARGEST_FUNCTION_BYTES)
        return replace(functions[index], size=size) if address < functions[index].address + size else None

    @cached_property
    def _functions(self) -> list[Symbol]:
        """In order; of several at one address the one with a name that decides."""
        by_address: dict[int, Symbol] = {}
        for symbol in self.symbols:
            if symbol.is_function and (symbol.address not in by_address or base_name(symbol.name) in RESERVED):
                by_address[symbol.address] = symbol
        return [by_address[address] for address in sorted(by_address)]


def parse_listing(listing: bytes, *, patch: str | None = None) -> LiveSymbols:
    """The symbols to read KVM's code by; `patch` is the live patch whose copy of the anchor runs. Raises Obstacle.

    What bears a name that decides and does not run - the original of a replaced function, a copy in another module - is renamed.
    """
    if not listing.endswith(b"\n"):
        raise Obstacle("ends in the middle of a line")
    found = _functions(listing)
    if not found and _LINE.search(listing):
        raise AddressesHidden("hides every address")
    owner = _owner(found)
    owners = {owner} if patch is None else {owner, patch}
    symbols: list[Symbol] = []
    decisive: list[tuple[Symbol, str]] = []
    for symbol, module in found:
        name = base_name(symbol.name)
        if name == _DATA and not symbol.is_function:
            if module == owner:
                symbols.append(symbol)
        elif patch is not None and module == patch and name in _COPIES:
            copy = replace(symbol, name=symbol.name.removeprefix("klpp_"))
            symbols.append(copy)
            decisive.append((copy, module))
        elif name not in RESERVED:
            symbols.append(symbol)
        elif module in owners and (patch is None or name != ANCHOR):
            symbols.append(symbol)
            decisive.append((symbol, module))
        else:
            symbols.append(replace(symbol, name=f"{symbol.name} [{module}]"))
    if not any(base_name(symbol.name) == ANCHOR and ".cold" not in symbol.name for symbol, _ in decisive):
        raise Obstacle(f"shows no function {ANCHOR} of live patch {patch}: its copy cannot be found")
    if not any(_VENDOR_SKIP.fullmatch(symbol.name) for symbol in symbols):
        raise Obstacle(f"shows no vendor module of KVM: {ANCHOR} has gaps in place of calls until kvm_amd or kvm_intel is loaded")
    return LiveSymbols(
        symbols=tuple(symbols),
        owner=owner,
        of_kvm=frozenset(decisive),
        listed={symbol.address: (symbol.name, module) for symbol, module in found if module == patch or module.startswith("kvm")},
        helpers=tuple(symbol for symbol, _ in decisive if base_name(symbol.name) in HELPERS),
        probe_pages=tuple(sorted(symbol.address for symbol in symbols if symbol.name == _PROBE_PAGE)),
    )


def _functions(listing: bytes) -> list[tuple[Symbol, str]]:
    """Every function, and the one variable that is looked for, each with its module."""
    found: list[tuple[Symbol, str]] = []
    for match in _LINE.finditer(listing):
        is_function = match[2] in _FUNCTION_TYPES
        if not is_function and match[3] != _DATA.encode():
            continue
        address = int(match[1], 16)
        if address == 0:  # hidden, or no address
            continue
        if len(found) == _MOST_SYMBOLS:
            raise Obstacle(f"has more than {_MOST_SYMBOLS} functions, which is more than a kernel can rightly have")
        found.append((Symbol(match[3].decode("ascii", "replace"), address, 0, is_function), (match[4] or b"").decode("ascii", "replace")))
    return found


def _owner(found: list[tuple[Symbol, str]]) -> str:
    """KVM's module; empty where KVM is built in. Raises Obstacle where the kernel has no KVM now."""
    modules = {module for symbol, module in found if symbol.is_function and base_name(symbol.name) == ANCHOR}
    for owner in ("kvm", ""):
        if owner in modules:
            return owner
    raise Obstacle(f"shows no function {ANCHOR}: expected the module kvm to be loaded (kvm_amd or kvm_intel bring it along)")


def parse_hooks(listing: str, function: str, module: str) -> tuple[frozenset[str], str]:
    """How ftrace hooks a function, from `enabled_functions`: its flags, and the whole line. Raises Obstacle where it is not listed.

    R: registers are saved, as for kprobes; I: what runs next may be another function; D: called directly, as BPF trampolines are.
    """
    lines = listing.splitlines()
    for index, line in enumerate(lines):
        match = _HOOKED_LINE.fullmatch(line)
        if match is None or match["name"] != function or (match["module"] or "") != module:
            continue
        following = [more.strip() for more in lines[index + 1 : index + 2] if more.startswith("\t")]  # "direct-->bpf_trampoline_..."
        return frozenset(match["flags"].replace(" ", "")), " ".join([*line.split(), *following])
    raise Obstacle("ftrace does not list it, so that by whom could not be told; try again, it may just have changed")
