"""Exits of guests by their reason, counted by the kernel for a short time."""

from collections.abc import Iterable

from exitguard.model.record import Record
from exitguard.model.samples import SampledExits, SkipReasons

#: The field isa of the tracepoint kvm:kvm_exit (KVM_ISA_VMX, KVM_ISA_SVM in arch/x86/kvm/trace.h).
VMX, SVM = 1, 2


class ExitCount(Record):
    """How often one thread's guest exited for one reason."""

    thread: int
    isa: int
    #: VMX: the basic reason, without the bits above it.
    reason: int
    exits: int


class ExitReasons(Record):
    """All exits of all guests of a host while they were counted, in the order of thread, isa and reason.

    Exits that are reflected to a hypervisor inside a guest are among them and skip nothing here. Confidential guests exit by other reasons.
    """

    milliseconds: int
    counts: tuple[ExitCount, ...]
    #: What setting it up, reading and undoing it took of this process; what each exit took longer is not in it.
    own_processor_microseconds: int

    def total(self) -> int:
        return sum(each.exits for each in self.counts)

    def of(self, threads: Iterable[int], reasons: SkipReasons) -> SampledExits:
        """What these threads did: exits skipped whose reason always skips, and at most those more whose reason may."""
        chosen = frozenset(threads)
        counts = [each for each in self.counts if each.thread in chosen]
        low = sum(each.exits for each in counts if each.reason in reasons.always)
        may = sum(each.exits for each in counts if each.reason in reasons.sometimes)
        exits = sum(each.exits for each in counts)
        return SampledExits(exits=exits, skip_exits_low=low, skip_exits_high=low + may, milliseconds=self.milliseconds)
