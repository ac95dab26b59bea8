"""A running kernel's files, made by hand: /proc/kcore with a few functions in it, /proc/kallsyms that places them, what hooks them.

The functions are assembled here after the shapes that a Debian 6.1 has in its memory with kvm and kvm_amd loaded.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path

from exitguard.facts.tree import HostTree

MODULES, MODULES_BYTES = 0xFFFFFFFFC0000000, 0x3F000000
TEXT, MADE, KVM, PATCH, VENDOR = 0xFFFFFFFF92A00000, MODULES + 0x5000, MODULES + 0x10000, MODULES + 0x1C000, MODULES + 0x1E000
ENABLE_PMU_AT = 0x98F8
NOP5, ENDBR64, INT3, RETURN = bytes.fromhex("0f1f440000"), bytes.fromhex("f30f1efa"), b"\xcc", b"\xc3"
SKIP, TRIGGER, INITIALIZER = "kvm_skip_emulated_instruction", "kvm_pmu_trigger_event", "kvm_arch_init_vm"
BUILD_ID = bytes(range(20))


@dataclass(frozen=True)
class To:
    """A near call (0xe8), jump (0xe9) or other instruction whose last four bytes are the distance to a name or an address."""

    opcode: bytes
    target: str | int


def call(target: str | int) -> To:
    return To(b"\xe8", target)


def jump(target: str | int) -> To:
    return To(b"\xe9", target)


Code = tuple[bytes | To, ...]


def skip_code(*, guarded: bool = False, entry: bytes | To = NOP5, skip: str = "svm_skip_emulated_instruction") -> Code:
    """push rbx; mov rbx, rdi; call skip; test eax, eax; je out; [the guard]; mov esi, 1; mov rdi, rbx; call PMU; out: pop rbx; ret."""
    pmu = (bytes.fromhex("be010000004889df"), call(TRIGGER))
    guard = bytes.fromhex("488b1380ba") + struct.pack("<iB", ENABLE_PMU_AT, 0) + bytes.fromhex("740d") if guarded else b""
    out = bytes([13 + len(guard)])
    return (entry, bytes.fromhex("534889fb"), call(skip), bytes.fromhex("85c074") + out + guard, *pmu, bytes.fromhex("5b") + RETURN)


def initializer_code() -> Code:
    """movzx eax, byte [rip + enable_pmu]; mov [rdi + offset], al; xor eax, eax; ret."""
    return (NOP5, To(bytes.fromhex("0fb605"), "enable_pmu"), bytes.fromhex("8887") + struct.pack("<i", ENABLE_PMU_AT), b"\x31\xc0" + RETURN)


#: mov rax, [rdi + 0xf58]; test rax, rax; je out; mov qword [rdi + 0xf60], 1; out: ret
TRIGGER_CODE: Code = (NOP5, bytes.fromhex("488b87580f00004885c0740b48c787600f000001000000") + RETURN)


@dataclass(frozen=True)
class Function:
    name: str
    module: str
    address: int
    code: Code


def kvm_functions(skip: Code | None = None, trigger: Code = TRIGGER_CODE) -> list[Function]:
    return [
        Function("ftrace_caller", "", TEXT + 0x40, (RETURN,)),
        Function(SKIP, "kvm", KVM, skip_code() if skip is None else skip),
        Function(INITIALIZER, "kvm", KVM + 0x100, initializer_code()),
        Function(TRIGGER, "kvm", KVM + 0x200, trigger),
        Function("kvm_pmu_init", "kvm", KVM + 0x300, (NOP5, RETURN)),
        Function("svm_skip_emulated_instruction", "kvm_amd", VENDOR, (NOP5, b"\xb8\x01\0\0\0" + RETURN)),
        Function("svm_get_rflags", "kvm_amd", VENDOR + 0x40, (NOP5, RETURN)),
        Function("ftrace_trampoline", "__builtin__ftrace", MADE, (RETURN,)),
    ]


@dataclass
class RunningKernel:
    """What `write` puts below a folder."""

    functions: list[Function] = field(default_factory=kvm_functions)
    #: Name, module, address, type: what has no code in the core file.
    others: list[tuple[str, str, int, str]] = field(default_factory=lambda: [("enable_pmu", "kvm", KVM + 0x8000, "d")])
    #: The content of enabled_functions; None where no tracefs is mounted.
    hooks: str | None = ""
    #: Name of a patch to the files below it.
    patches: dict[str, dict[str, str]] = field(default_factory=dict)
    kptr_restrict: str = "0"
    hidden: bool = False
    lockdown: str = "[none] integrity confidentiality"

    def listing(self) -> bytes:
        lines = [(each.address, "t", each.name, each.module) for each in self.functions]
        lines += [(address, kind, name, module) for name, module, address, kind in self.others]
        return b"".join(_line(0 if self.hidden else address, *rest) for address, *rest in sorted(lines))

    def core(self) -> bytes:
        """A core file with the two ranges of code, as fs/proc/kcore.c lays it out: sparse, so offsets are far apart."""
        addresses = {each.name: each.address for each in reversed(self.functions)} | {name: at for name, _, at, _ in self.others}
        header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
        note = struct.pack("<IIQQQQQQ", 4, 0, 0x200, 0, 0, 0, 0, 0)
        text = struct.pack("<IIQQQQQQ", 1, 7, 0x1000, TEXT, 0, 0x1000, 0x1000, 4096)
        modules = struct.pack("<IIQQQQQQ", 1, 7, 0x2000, MODULES, 0, MODULES_BYTES, MODULES_BYTES, 4096)
        content = bytearray((header + note + text + modules).ljust(0x2000, b"\0"))
        content.extend(bytes(max(each.address for each in self.functions if each.address >= MODULES) - MODULES + 0x1000))
        for each in self.functions:
            at = each.address - MODULES + 0x2000 if each.address >= MODULES else each.address - TEXT + 0x1000
            code = assemble(each, addresses)
            content[at : at + len(code)] = code
        return bytes(content)

    def write(self, folder: Path) -> HostTree:
        files = {
            "proc/kallsyms": self.listing(),
            "proc/kcore": self.core(),
            "proc/sys/kernel/kptr_restrict": f"{self.kptr_restrict}\n".encode(),
            "proc/sys/kernel/osrelease": b"6.1.0-56-cloud-amd64\n",
            "sys/kernel/security/lockdown": f"{self.lockdown}\n".encode(),
            "sys/kernel/notes": struct.pack("<III4s20s", 4, 20, 3, b"GNU\0", bytes(20)),
            "sys/module/kvm/notes/.note.gnu.build-id": struct.pack("<III4s20s", 4, 20, 3, b"GNU\0", BUILD_ID),
        }
        if self.hooks is not None:
            files["sys/kernel/tracing/enabled_functions"] = self.hooks.encode()
        for patch, below in self.patches.items():
            files |= {f"sys/kernel/livepatch/{patch}/{name}": f"{content}\n".encode() for name, content in below.items()}
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return HostTree(folder)


def assemble(function: Function, addresses: dict[str, int]) -> bytes:
    code = b""
    for piece in function.code:
        if isinstance(piece, To):
            target = piece.target if isinstance(piece.target, int) else addresses[piece.target]
            code += piece.opcode
            code += struct.pack("<i", target - (function.address + len(code) + 4))
        else:
            code += piece
    return code


def _line(address: int, kind: str, name: str, module: str) -> bytes:
    return f"{address:016x} {kind} {name}{f'{chr(9)}[{module}]' if module else ''}\n".encode()
