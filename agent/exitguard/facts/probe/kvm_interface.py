"""The part of KVM's interface that the probe speaks: <linux/kvm.h>, <asm/kvm.h>, Documentation/virt/kvm/api.rst.

Numbers are those of x86-64; _IO, _IOR, _IOW and _IOWR are from <asm-generic/ioctl.h>.
"""

import struct

_KVMIO = 0xAE
_WRITE, _READ = 1 << 30, 2 << 30

#: struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr.
MEMORY_REGION = struct.Struct("=IIQQQ")
#: struct kvm_enable_cap: cap, flags, args[4], pad[64].
ENABLE_CAPABILITY = struct.Struct("=II4Q64x")
#: struct kvm_ioeventfd: datamatch, addr, len, fd, flags, pad[36].
IO_EVENT = struct.Struct("=QQIiI36x")
#: struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags.
REGISTERS = struct.Struct("=18Q")
SEGMENT = struct.Struct("=QIHBBBBBBBBxx")
#: struct kvm_sregs: six segments, tr, ldt; gdt, idt; cr0 cr2 cr3 cr4 cr8 efer apic_base; interrupt_bitmap[4].
SPECIAL_REGISTERS_BYTES = 8 * SEGMENT.size + 2 * 16 + 7 * 8 + 4 * 8
#: struct kvm_cpuid2: nent, padding, then entries of struct kvm_cpuid_entry2.
CPUID_HEADER = struct.Struct("=II")
CPUID_ENTRY_BYTES = 40
LAPIC_STATE_BYTES = 0x400
#: Of struct kvm_run: exit_reason; of its union for KVM_EXIT_IO direction, size, port, count, data_offset.
RUN_EXIT_REASON_OFFSET = 8
RUN_IO = struct.Struct("=BBHIQ")
RUN_IO_OFFSET = 32


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return _WRITE | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return _READ | size << 16 | _io(number)


GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
CHECK_EXTENSION = _io(0x03)
GET_VCPU_MMAP_SIZE = _io(0x04)
GET_SUPPORTED_CPUID = _READ | _iow(0x05, CPUID_HEADER.size)
CREATE_VCPU = _io(0x41)
SET_USER_MEMORY_REGION = _iow(0x46, MEMORY_REGION.size)
SET_TSS_ADDRESS = _io(0x47)
CREATE_IRQCHIP = _io(0x60)
IO_EVENT_FD = _iow(0x79, IO_EVENT.size)
RUN = _io(0x80)
SET_REGISTERS = _iow(0x82, REGISTERS.size)
GET_SPECIAL_REGISTERS = _ior(0x83, SPECIAL_REGISTERS_BYTES)
SET_SPECIAL_REGISTERS = _iow(0x84, SPECIAL_REGISTERS_BYTES)
GET_LAPIC = _ior(0x8E, LAPIC_STATE_BYTES)
SET_LAPIC = _iow(0x8F, LAPIC_STATE_BYTES)
SET_CPUID2 = _iow(0x90, CPUID_HEADER.size)
ENABLE_CAP = _iow(0xA3, ENABLE_CAPABILITY.size)
GET_TSC_KHZ = _io(0xA3)
GET_STATS_FD = _io(0xCE)

API_VERSION = 12
CAP_BINARY_STATS_FD = 203
CAP_PMU_CAPABILITY = 212
PMU_CAP_DISABLE = 1
IO_EVENT_FLAG_PIO = 2

EXIT_IO = 2
EXIT_NAMES = {
    0: "unknown",
    1: "exception",
    2: "port I/O",
    3: "hypercall",
    4: "debug",
    5: "HLT",
    6: "MMIO",
    7: "interrupt window",
    8: "shutdown",
    9: "failed entry",
    10: "interrupted",
    17: "internal error",
}
