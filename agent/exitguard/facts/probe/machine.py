"""The throw-away virtual machine: one vCPU, 64 KiB of memory, no device. Closing its descriptors is all that its end takes.

Of CPUID it has the leaves that decide its counters, as KVM supports them, and no others: without leaf 0xA an Intel vCPU would have none,
and an AMD one four instead of six; and with more leaves an exit for CPUID would cost more on a kernel that knows more. Both arms get the
same, so that nothing differs but kvm->arch.enable_pmu.
"""

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from exitguard.facts.probe import kvm_interface as kvm
from exitguard.facts.probe.errors import CannotMeasureError, refused_by_device, refused_by_kvm
from exitguard.facts.probe.guest_code import CODE_ADDRESS, EVENT_PORT, STOP_PORT, TIMES, TIMES_ADDRESS, GuestProgram
from exitguard.facts.probe.statistics import ExitCounter, StatisticsError, exit_counter
from exitguard.facts.tree import HostTree
from exitguard.model.measurement import Arm

_DEVICE = "/dev/kvm"
#: A driver that is registered has this; to open the node of one that is not would load the module (devname:kvm).
_REGISTERED = "/sys/class/misc/kvm"
_MEMORY_BYTES = 1 << 16
#: KVM has fewer than 100 entries to offer.
_CPUID_ENTRIES = 256
#: Architectural performance monitoring on Intel; PERFCTR_CORE and performance monitoring version 2 on AMD (arch/x86/kvm/*/pmu*.c).
_PMU_LEAVES = frozenset({0xA, 0x80000001, 0x80000022})
#: Where KVM may put a task state segment for real mode on Intel: any three pages that are no memory of the guest. Below
#: 2 GiB, since fcntl.ioctl hands on a C int.
_TSS_ADDRESS = 0x7FFBD000
_FLAGS_RESERVED = 0x2


@dataclass(frozen=True)
class Entry:
    """What one entry of the guest showed."""

    tsc_begin: int
    tsc_end: int
    exits: int
    #: How often a signal sent it out of its loop; it went on where it was.
    interruptions: int


@dataclass(frozen=True)
class KvmHandle:
    """/dev/kvm, open."""

    descriptor: int

    def extension(self, capability: int) -> int:
        """What KVM_CHECK_EXTENSION answers."""
        return fcntl.ioctl(self.descriptor, kvm.CHECK_EXTENSION, capability)

    @property
    def both_arms(self) -> bool:
        """Whether a virtual machine can be made with its PMU off. Not where kvm.enable_pmu is N: all are made so then."""
        return bool(self.extension(kvm.CAP_PMU_CAPABILITY) & kvm.PMU_CAP_DISABLE)


@contextmanager
def open_kvm(tree: HostTree) -> Iterator[KvmHandle]:
    """KVM's device, of which the interface and the statistics are as expected. Raises CannotMeasureError."""
    if not tree.exists(_REGISTERED):
        raise refused_by_device(FileNotFoundError(2, "no KVM driver is registered"))
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise refused_by_device(error) from error
    try:
        handle = KvmHandle(descriptor)
        try:
            version = fcntl.ioctl(descriptor, kvm.GET_API_VERSION, 0)
            statistics = handle.extension(kvm.CAP_BINARY_STATS_FD)
        except OSError as error:
            raise refused_by_kvm("asking for its version", error) from error
        if version != kvm.API_VERSION:
            raise CannotMeasureError(
                f"{_DEVICE} speaks version {version} of KVM's interface, expected {kvm.API_VERSION}", "measure elsewhere"
            )
        if not statistics:
            raise CannotMeasureError(
                "this kernel does not count exits in a statistics file (KVM_CAP_BINARY_STATS_FD, since Linux 5.14), "
                "so it cannot be told whether what is timed are exits",
                "measure on a newer kernel",
            )
        yield handle
    finally:
        os.close(descriptor)


class VirtualMachine:
    """One guest, ready to be entered. Made by `virtual_machine`, which also ends it."""

    def __init__(self, memory: mmap.mmap, run: mmap.mmap, vcpu: int, counter: ExitCounter) -> None:
        self._memory = memory
        self._run = run
        self._vcpu = vcpu
        self._counter = counter

    @property
    def tsc_kilohertz(self) -> int | None:
        """The rate of the guest's TSC; it is the host's, since nobody set another."""
        try:
            return fcntl.ioctl(self._vcpu, kvm.GET_TSC_KHZ, 0) or None
        except OSError:
            return None

    def enter(self, *, warm_up: int, iterations: int) -> Entry:
        """Run the guest from its beginning to its end once. Raises CannotMeasureError; a signal's handler may raise through it."""
        registers = kvm.REGISTERS.pack(0, 0, 0, 0, warm_up, iterations, *(0,) * 10, CODE_ADDRESS, _FLAGS_RESERVED)
        try:
            fcntl.ioctl(self._vcpu, kvm.SET_REGISTERS, registers)
            before = self._counter.read()
            interruptions = self._run_to_its_end()
            after = self._counter.read()
        except OSError as error:
            raise refused_by_kvm("running the guest", error) from error
        except StatisticsError as error:
            raise _refused_by_statistics(error) from error
        self._expect_stop()
        begin, end = TIMES.unpack_from(self._memory, TIMES_ADDRESS)
        return Entry(tsc_begin=begin, tsc_end=end, exits=after - before, interruptions=interruptions)

    def _run_to_its_end(self) -> int:
        """A signal without a handler of ours, as SIGSTOP and SIGCONT are, ends KVM_RUN with EINTR; the guest can go on."""
        interruptions = 0
        while True:
            try:
                fcntl.ioctl(self._vcpu, kvm.RUN, 0)
            except InterruptedError:
                interruptions += 1
            else:
                return interruptions

    def _expect_stop(self) -> None:
        (reason,) = struct.unpack_from("=I", self._run, kvm.RUN_EXIT_REASON_OFFSET)
        if reason == kvm.EXIT_IO and kvm.RUN_IO.unpack_from(self._run, kvm.RUN_IO_OFFSET)[2] == STOP_PORT:
            return
        name = kvm.EXIT_NAMES.get(reason, "another reason")
        raise CannotMeasureError(
            f"the guest did not come to its end: it returned with exit reason {reason} ({name}), expected port I/O to {STOP_PORT:#x}",
            "this KVM cannot run the loop in the kernel: leave this --loop out, or measure elsewhere",
        )


@contextmanager
def virtual_machine(handle: KvmHandle, program: GuestProgram, arm: Arm, *, intel: bool) -> Iterator[VirtualMachine]:
    """A guest with `program` in its memory. Raises CannotMeasureError."""
    with ExitStack() as stack:
        step = "creating a virtual machine"
        try:
            machine = _own(stack, fcntl.ioctl(handle.descriptor, kvm.CREATE_VM, 0))
            if arm is Arm.PMU_OFF:
                step = "clearing enable_pmu of a virtual machine"
                capability = kvm.ENABLE_CAPABILITY.pack(kvm.CAP_PMU_CAPABILITY, 0, kvm.PMU_CAP_DISABLE, 0, 0, 0)
                fcntl.ioctl(machine, kvm.ENABLE_CAP, capability)
            if intel:
                step = "placing its task state segment"
                fcntl.ioctl(machine, kvm.SET_TSS_ADDRESS, _TSS_ADDRESS)
            if program.needs_irqchip:
                step = "making its interrupt controllers"
                fcntl.ioctl(machine, kvm.CREATE_IRQCHIP, 0)
            step = "giving it memory"
            memory = _give_memory(stack, machine)
            memory[CODE_ADDRESS : CODE_ADDRESS + len(program.code)] = program.code
            if program.needs_event_port:
                step = "putting an eventfd behind its port"
                event = _own(stack, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                fcntl.ioctl(machine, kvm.IO_EVENT_FD, kvm.IO_EVENT.pack(0, EVENT_PORT, 1, event, kvm.IO_EVENT_FLAG_PIO))
            step = "creating its vCPU"
            vcpu = _own(stack, fcntl.ioctl(machine, kvm.CREATE_VCPU, 0))
            run = mmap.mmap(vcpu, fcntl.ioctl(handle.descriptor, kvm.GET_VCPU_MMAP_SIZE, 0))
            stack.callback(run.close)
            step = "giving its vCPU a CPUID"
            fcntl.ioctl(vcpu, kvm.SET_CPUID2, _pmu_cpuid(handle))
            if program.needs_irqchip:
                step = "setting its APIC"
                _announce_apic(vcpu)
            step = "placing its code segment"
            _begin_at_zero(vcpu)
            step = "opening the statistics of its vCPU"
            counter = exit_counter(_own(stack, fcntl.ioctl(vcpu, kvm.GET_STATS_FD, 0)))
        except OSError as error:
            raise refused_by_kvm(step, error) from error
        except StatisticsError as error:
            raise _refused_by_statistics(error) from error
        yield VirtualMachine(memory, run, vcpu, counter)


def _own(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _give_memory(stack: ExitStack, machine: int) -> mmap.mmap:
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    stack.callback(memory.close)
    # The view is gone again at once: a mapping with one cannot be closed.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, kvm.SET_USER_MEMORY_REGION, kvm.MEMORY_REGION.pack(0, 0, 0, _MEMORY_BYTES, address))
    return memory


def _pmu_cpuid(handle: KvmHandle) -> bytes:
    """A struct kvm_cpuid2 with the leaves that decide a guest's counters, as KVM supports them here."""
    # Mutable, since fcntl.ioctl takes no more than 1024 bytes otherwise.
    table = bytearray(kvm.CPUID_HEADER.size + _CPUID_ENTRIES * kvm.CPUID_ENTRY_BYTES)
    kvm.CPUID_HEADER.pack_into(table, 0, _CPUID_ENTRIES, 0)
    fcntl.ioctl(handle.descriptor, kvm.GET_SUPPORTED_CPUID, table)
    count, _ = kvm.CPUID_HEADER.unpack_from(table)
    starts = range(kvm.CPUID_HEADER.size, kvm.CPUID_HEADER.size + count * kvm.CPUID_ENTRY_BYTES, kvm.CPUID_ENTRY_BYTES)
    entries = [bytes(table[start : start + kvm.CPUID_ENTRY_BYTES]) for start in starts]
    wanted = [entry for entry in entries if int.from_bytes(entry[:4], "little") in _PMU_LEAVES]  # its first field is the leaf
    return kvm.CPUID_HEADER.pack(len(wanted), 0) + b"".join(wanted)


def _announce_apic(vcpu: int) -> None:
    """Set the APIC's state to what it is: only then KVM finds the vCPU by its APIC id. When it was created it was in no list yet."""
    state = bytearray(kvm.LAPIC_STATE_BYTES)
    fcntl.ioctl(vcpu, kvm.GET_LAPIC, state)
    fcntl.ioctl(vcpu, kvm.SET_LAPIC, state)


def _begin_at_zero(vcpu: int) -> None:
    """The code segment, which a reset puts below 4 GiB, at address zero; the others are there already."""
    registers = bytearray(kvm.SPECIAL_REGISTERS_BYTES)
    fcntl.ioctl(vcpu, kvm.GET_SPECIAL_REGISTERS, registers)
    _base, limit, _selector, *attributes = kvm.SEGMENT.unpack_from(registers)
    kvm.SEGMENT.pack_into(registers, 0, 0, limit, 0, *attributes)
    fcntl.ioctl(vcpu, kvm.SET_SPECIAL_REGISTERS, bytes(registers))


def _refused_by_statistics(error: StatisticsError) -> CannotMeasureError:
    return CannotMeasureError(f"the statistics of the vCPU cannot be read: {error}", "measure on another kernel, and report this one")
