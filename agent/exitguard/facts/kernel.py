"""The running kernel: what it says of itself, and which of the symbols that tell it has."""

import os
import re
from collections.abc import Callable, Mapping

from exitguard.facts.boot import RELEASE, read_boots_next, read_installed
from exitguard.facts.elf_notes import KERNEL_NOTES, read_build_id
from exitguard.facts.kernel_code import InstalledCode, KernelCode
from exitguard.facts.kernel_packages import (
    PackageChangelog,
    installed_guard_entries,
    read_changelogs,
    read_running_version,
    running_changelog,
)
from exitguard.facts.kvm import read_kvm
from exitguard.facts.livepatch import read_live_patches
from exitguard.facts.tree import HostTree, one_line, unseen_like
from exitguard.model.host import Distribution, InstalledKernel, KernelFacts, KvmFacts
from exitguard.model.record import Observed, seen, unseen

_RELEASE = "/proc/sys/kernel/osrelease"
_ARCHITECTURE = "/proc/sys/kernel/arch"  # since Linux 6.1
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
_KALLSYMS = "/proc/kallsyms"
#: A kernel with every symbol and many modules has some 10 MB.
_KALLSYMS_LIMIT_BYTES = 32 << 20
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ARCHITECTURE_NAME = re.compile(r"[a-z0-9_]{1,32}")
_ASSIGNMENT = re.compile(r"""([A-Z][A-Z0-9_]*)=(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|([^\s'"]*))\s*""")

#: The names that tell a kernel's state: the function itself, the call that costs, and what replaced the call in Linux 6.18.
TELLING_SYMBOLS = ("kvm_pmu_instruction_retired", "kvm_pmu_trigger_event", "kvm_skip_emulated_instruction")
_KVM_MODULES = ("kvm", "kvm_intel", "kvm_amd")
# "ffffffff812cd620 t kvm_pmu_trigger_event.isra.0\t[kvm]". The leading blank keeps out __pfx_ padding, and lets the regex engine
# look for a fixed text instead of trying every line: some 3 ms for 120,000 lines.
_SYMBOL = re.compile(
    rb" ("
    + b"|".join(name.encode() for name in TELLING_SYMBOLS)
    + rb")(?:\.(?:isra|constprop|part|cold|llvm|lto_priv)(?:\.[0-9a-f]+)?)*(?:\t\[([A-Za-z0-9_]+)\])?$",
    re.MULTILINE,
)
_KVM_CODE = frozenset({b"", *(module.encode() for module in _KVM_MODULES)})
_LINE_START = re.compile(rb"[0-9a-f]{1,16} [tTwW]")
#: The symbols between which the kernel's own text lies (kernel/kallsyms.c): a whole listing has both.
_FIRST_TEXT, _LAST_TEXT = re.compile(rb" [tT] _stext$", re.MULTILINE), re.compile(rb" [tT] _etext$", re.MULTILINE)


def _nothing() -> None:
    return None


def read_kernel(
    tree: HostTree, *, changelog_markers: tuple[str, ...], kvm: KvmFacts | None = None, pulse: Callable[[], None] = _nothing
) -> KernelFacts:
    """Every stable fact of the running kernel, and of those that are installed beside it.

    `kvm`: what is known of KVM already, read here if not. `pulse` is called while machine code is waited for, and may raise to end it.
    """
    release, architecture, installed = read_release(tree), read_architecture(tree), read_installed(tree)
    code = KernelCode(tree, release, architecture, kvm or read_kvm(tree), installed.value or (), pulse)
    with code:  # another process reads it, while all the rest is read here
        running_version = read_running_version(tree)
        # The running kernel's first, then the newest: asking rpm is bounded.
        wanted = tuple(dict.fromkeys((*((release.value,) if release.value is not None else ()), *reversed(installed.value or ()))))
        changelogs = read_changelogs(tree, wanted, markers=changelog_markers, running_version=running_version)
        boots_next, live_patches, symbols = read_boots_next(tree), read_live_patches(tree), read_symbols(tree)
        running_code, installed_code = code.finish()
    return KernelFacts(
        release=release,
        architecture=architecture,
        distribution=read_distribution(tree),
        build_id=read_build_id(tree, KERNEL_NOTES),
        boot_id=read_boot_id(tree),
        installed=_installed_kernels(installed, changelogs, installed_code),
        boots_next=boots_next,
        live_patches=live_patches,
        symbols=symbols,
        changelog=unseen_like(release) if release.value is None else running_changelog(changelogs[release.value], running_version),
        machine_code=running_code,
    )


def _installed_kernels(
    installed: Observed[tuple[str, ...]],
    changelogs: Mapping[str, Observed[tuple[PackageChangelog, ...]]],
    code: Mapping[str, InstalledCode],
) -> Observed[tuple[InstalledKernel, ...]]:
    if installed.value is None:
        return unseen_like(installed)
    found = (
        InstalledKernel(
            release=release,
            guard_entries=installed_guard_entries(changelogs[release]),
            machine_code=code[release].reading,
            machine_code_reason=code[release].reason,
        )
        for release in installed.value
    )
    return seen(installed.source, tuple(found))


def read_release(tree: HostTree) -> Observed[str]:
    """`uname -r` of the running kernel."""
    text = tree.read_text(_RELEASE)
    if text.value is None:
        return unseen_like(text)
    if not RELEASE.fullmatch(text.value):
        return unseen(_RELEASE, f"{one_line(text.value, limit_characters=80)!r} is not a kernel release")
    return seen(_RELEASE, text.value)


def read_architecture(tree: HostTree) -> Observed[str]:
    """`uname -m`."""
    if tree.is_this_machine:
        return seen("uname -m", os.uname().machine)
    text = tree.read_text(_ARCHITECTURE)
    if text.value is None:
        return unseen_like(text)
    if not _ARCHITECTURE_NAME.fullmatch(text.value):
        return unseen(_ARCHITECTURE, "not the name of an architecture")
    return seen(_ARCHITECTURE, text.value)


def read_distribution(tree: HostTree) -> Observed[Distribution]:
    """From os-release(5); /etc's goes before /usr/lib's."""
    first = tree.read_text(_OS_RELEASE[0])
    text = first if first.known else tree.read_text(_OS_RELEASE[1])
    return parse_os_release(text.source, text.value) if text.value is not None else unseen_like(first)


def parse_os_release(source: str, text: str) -> Observed[Distribution]:
    """The distribution; a key that is missing has the default of os-release(5)."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match is not None:
            key, single, double, bare = match.groups()
            values[key] = one_line(single or re.sub(r"\\(.)", r"\1", double or "") or bare or "")
    if not values:
        return unseen(source, "holds no NAME=value line")
    name = values.get("PRETTY_NAME") or values.get("NAME") or "Linux"
    return seen(source, Distribution(id=values.get("ID") or "linux", version_id=values.get("VERSION_ID", ""), name=name))


def read_boot_id(tree: HostTree) -> Observed[str]:
    """The UUID of this boot."""
    text = tree.read_text(_BOOT_ID)
    if text.value is None:
        return unseen_like(text)
    return seen(_BOOT_ID, text.value) if _UUID.fullmatch(text.value) else unseen(_BOOT_ID, "malformed: expected a UUID")


#: The symbols of the code that ran when they were last listed: writing the listing costs the kernel 40 ms, too much for every cycle.
_remembered: dict[tuple[bytes, ...], Observed[tuple[str, ...]]] = {}


def read_symbols(tree: HostTree) -> Observed[tuple[str, ...]]:
    """Those of TELLING_SYMBOLS that the running kernel or its KVM modules have."""
    code = _running_code(tree)
    if code is not None and code in _remembered:
        return _remembered[code]
    symbols = _list_symbols(tree)
    # A module that comes or goes meanwhile may be in the listing or not: then it is not known what was listed.
    if code is not None and symbols.known and code == _running_code(tree):
        _remembered.clear()
        _remembered[code] = symbols
    return symbols


def _running_code(tree: HostTree) -> tuple[bytes, ...] | None:
    """What identifies the code of this boot's kernel and of the KVM modules it has loaded; None where that cannot be told."""
    boot_id = read_boot_id(tree)
    if not tree.is_this_machine or boot_id.value is None:
        return None
    code = [boot_id.value.encode()]
    for module in _KVM_MODULES:
        if tree.exists(f"/sys/module/{module}/initstate"):  # built-in code has none, and is this boot's
            notes = tree.read_bytes(f"/sys/module/{module}/notes/.note.gnu.build-id")
            if notes.value is None:
                return None
            code += [module.encode(), notes.value]
    return tuple(code)


def _list_symbols(tree: HostTree) -> Observed[tuple[str, ...]]:
    listing = tree.read_bytes(_KALLSYMS, limit_bytes=_KALLSYMS_LIMIT_BYTES)
    if listing.value is None:
        return unseen_like(listing)
    return parse_symbols(listing.value, kvm_is_loaded_module=tree.exists("/sys/module/kvm/initstate"))


def parse_symbols(listing: bytes, *, kvm_is_loaded_module: bool = False) -> Observed[tuple[str, ...]]:
    """The telling symbols in a kallsyms listing, compilers' suffixes removed; the reason where the listing is not whole.

    A copy that another module brings, such as a live patch, does not count: it is not the code of this kernel's build.
    """
    if not listing:
        return unseen(_KALLSYMS, "empty")
    if not listing.endswith(b"\n"):
        return unseen(_KALLSYMS, "ends in the middle of a line")
    if _FIRST_TEXT.search(listing) is None or _LAST_TEXT.search(listing) is None:
        return unseen(_KALLSYMS, "truncated: expected the symbols _stext and _etext")
    if kvm_is_loaded_module and b"\t[kvm]\n" not in listing:
        return unseen(_KALLSYMS, "truncated: the module kvm is loaded, and none of its symbols is listed")
    found: set[str] = set()
    for match in _SYMBOL.finditer(listing):
        line_start = listing.rfind(b"\n", 0, match.start()) + 1
        if (match[2] or b"") in _KVM_CODE and _LINE_START.fullmatch(listing, line_start, match.start()):
            found.add(match[1].decode())
    return seen(_KALLSYMS, tuple(sorted(found)))
