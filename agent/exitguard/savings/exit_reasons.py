"""Which exits skip an instruction, by their reason; and whether tracing them costs little enough of what it measures. Pure.

Read in arch/x86/kvm of Linux 6.12 (vmx/vmx.c, svm/svm.c): reasons of <asm/vmx.h> and <asm/svm.h>, as the tracepoint kvm:kvm_exit has them.
For guests of this host alone: exits that are reflected to a hypervisor inside a guest skip nothing here, and confidential guests
(SEV-ES, TDX) exit by other reasons.
"""

from collections.abc import Mapping
from math import ceil

from exitguard.model.rates import Rates
from exitguard.model.samples import SkipReasons

#: By the processor's virtualisation, as model.host.Cpu has it. What skips only where it succeeds, or is no string I/O, skips sometimes.
SKIP_REASONS: Mapping[str, SkipReasons] = {
    "vmx": SkipReasons(
        # CPUID HLT INVD VMCALL MWAIT MONITOR PAUSE WBINVD
        always=frozenset({10, 12, 13, 18, 36, 39, 40, 54}),
        # INVLPG, RDPMC, VMX instructions of a hypervisor inside, CR, DR, I/O, RDMSR, WRMSR, APIC access, EPT misconfiguration (fast MMIO),
        # INVEPT, INVVPID, XSETBV, INVPCID
        sometimes=frozenset({14, 15, *range(19, 28), 28, 29, 30, 31, 32, 44, 49, 50, 53, 55, 58}),
    ),
    "svm": SkipReasons(
        # CPUID INVD PAUSE HLT VMMCALL WBINVD MONITOR MWAIT
        always=frozenset({0x72, 0x76, 0x77, 0x78, 0x81, 0x89, 0x8A, 0x8B}),
        # CR and DR, selective CR0 write, RDPMC, INVLPG, INVLPGA, I/O, MSR, SVM instructions of a hypervisor inside, XSETBV, INVPCID
        sometimes=frozenset({*range(0x40), 0x65, 0x6F, 0x79, 0x7A, 0x7B, 0x7C, 0x80, 0x82, 0x83, 0x84, 0x85, 0x8D, 0xA2}),
    ),
}

#: Processor time of one traced exit. On emulated AMD hosts (Debian's 6.1 and 6.12) perf's counters took 703 to 765 instructions, and a
#: histogram 1,059 to 1,139; in cycles it is an assumption, and meant to be high.
TRACED_EXIT_CYCLES = 2000
#: What tracing may cost of the saving that it measures.
MOST_SHARE_OF_SAVING = 0.1
#: More rarely than this, a trace says nothing of its hour.
MOST_SAMPLES_APART = 12


def samples_apart(rates: Rates, seconds: float, interval_seconds: float) -> int | str:
    """Before every how many samples exits may be traced for `seconds`; or why not at all, a sentence without its end.

    The saving that is measured is what is saved and available together: by its high bound until something was traced, and by the low one of
    the estimate from then on.
    """
    exits = sum(each.exits_per_second for each in rates.standings)
    if not exits:
        return "no guest exits"
    if rates.sampled is None:
        known = [rate.high for rate in (rates.saved_cycles_per_second, rates.available_cycles_per_second) if rate is not None]
    else:
        both = (rates.sampled.saved_cycles_per_second, rates.sampled.available_cycles_per_second)
        known = [rate.low for rate in both if rate is not None]
    saving = sum(max(0.0, each) for each in known)
    if not saving:
        return "what it would measure is nothing, or not known in cycles for this kernel, processor and mitigations"
    cost = exits * TRACED_EXIT_CYCLES * seconds / interval_seconds
    if cost > saving * MOST_SHARE_OF_SAVING * MOST_SAMPLES_APART:
        return (
            f"it would take {cost / MOST_SAMPLES_APART:,.0f} cycles a second even before every {MOST_SAMPLES_APART}th sample, more than "
            f"{MOST_SHARE_OF_SAVING:.0%} of the {saving:,.0f} that it would measure"
        )
    return max(1, ceil(cost / (saving * MOST_SHARE_OF_SAVING)))
