"""What the guest runs: a few instructions of real mode around each kind of exit. Bytes only; nothing here runs anything.

Every loop has the same shape. The host sets ESI to the iterations that warm up and EDI to those that are timed:

    warm:   BODY; dec esi; jnz warm
            lfence; rdtsc; mov [0x500], eax; mov [0x504], edx
    timed:  BODY; dec edi; jnz timed
            lfence; rdtsc; mov [0x508], eax; mov [0x50c], edx
            out 0xf4, al                                          ; the one exit that returns to the host's program

So what is timed is the exits and three to seven instructions of the guest, and nothing of the program that started it.
"""

import struct
from dataclasses import dataclass

from exitguard.model.loop import Loop

CODE_ADDRESS = 0x1000
TIMES_ADDRESS = 0x500
#: Two readings of the TSC, begin and end.
TIMES = struct.Struct("<QQ")
STOP_PORT = 0xF4
#: Behind this port KVM signals an eventfd. No device of any machine is behind it here: the machine has none.
EVENT_PORT = 0xF8

_CPUID = b"\x66\x31\xc0\x0f\xa2"  # xor eax, eax; cpuid
_RDMSR = b"\x66\xb9\x1b\x00\x00\x00\x0f\x32"  # mov ecx, IA32_APIC_BASE; rdmsr
_OUT = b"\xe6" + bytes([EVENT_PORT])  # out EVENT_PORT, al
#: Each vendor's own instruction; KVM would emulate the other's, which is another path.
_VMCALL, _VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
_POLL_IRQ = b"\x66\xb8\x01\x00\x00\x00"  # mov eax, KVM_HC_VAPIC_POLL_IRQ
#: mov eax, KVM_HC_KICK_CPU; xor ebx, ebx; xor ecx, ecx: flags 0, and the vCPU with APIC id 0, which is this one.
_KICK_SELF = b"\x66\xb8\x05\x00\x00\x00\x66\x31\xdb\x66\x31\xc9"
_HLT = b"\xf4"
_STOP = b"\xe6" + bytes([STOP_PORT])


@dataclass(frozen=True)
class GuestProgram:
    """The code of one loop, what it makes of each iteration, and what it needs of the machine."""

    loop: Loop
    code: bytes
    exits_per_iteration: int
    #: An APIC in the kernel: without it HLT would return to the host's program, and there would be nobody to wake.
    needs_irqchip: bool = False
    needs_event_port: bool = False


def guest_program(loop: Loop, *, intel: bool) -> GuestProgram:
    """The program for `loop`; `intel` chooses VMCALL instead of VMMCALL."""
    hypercall = _VMCALL if intel else _VMMCALL
    match loop:
        case Loop.CPUID:
            return GuestProgram(loop, _around(_CPUID), exits_per_iteration=1)
        case Loop.MSR:
            return GuestProgram(loop, _around(_RDMSR), exits_per_iteration=1)
        case Loop.IO:
            return GuestProgram(loop, _around(_OUT), exits_per_iteration=1, needs_event_port=True)
        case Loop.HYPERCALL:
            return GuestProgram(loop, _around(_POLL_IRQ + hypercall), exits_per_iteration=1)
        case Loop.HLT:
            return GuestProgram(loop, _around(_KICK_SELF + hypercall + _HLT), exits_per_iteration=2, needs_irqchip=True)


def _around(body: bytes) -> bytes:
    warm = body + b"\x66\x4e"  # dec esi
    timed = body + b"\x66\x4f"  # dec edi
    return _repeated(warm) + _store_time(TIMES_ADDRESS) + _repeated(timed) + _store_time(TIMES_ADDRESS + 8) + _STOP


def _repeated(body: bytes) -> bytes:
    """`body`, then back to its beginning while it leaves the zero flag clear (jnz with a displacement of one byte)."""
    return body + b"\x75" + struct.pack("<b", -len(body) - 2)


def _store_time(address: int) -> bytes:
    low, high = struct.pack("<H", address), struct.pack("<H", address + 4)
    store_eax, store_edx = b"\x66\xa3" + low, b"\x66\x89\x16" + high
    return b"\x0f\xae\xe8" + b"\x0f\x31" + store_eax + store_edx  # lfence; rdtsc; mov [low], eax; mov [high], edx
