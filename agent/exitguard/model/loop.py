"""The loops of `exitguard measure`. Apart from their document, so that the command line knows them without loading pydantic."""

from enum import StrEnum


class Loop(StrEnum):
    """What the guest does over and over. KVM handles every one of them in the kernel, and each ends in a skipped instruction."""

    CPUID = "cpuid"
    MSR = "msr"  # RDMSR of IA32_APIC_BASE, which KVM always intercepts
    IO = "io"  # OUT to a port behind which KVM signals an eventfd
    HYPERCALL = "hypercall"  # KVM_HC_VAPIC_POLL_IRQ, which does nothing
    HLT = "hlt"  # a hypercall that wakes this very vCPU, then HLT: two exits
