"""What a VM exit costs on one machine, measured there: the document of `exitguard measure`, and the reading that it is made of.

Times are TSC ticks and never cycles: the TSC counts at a rate of its own, whatever the core runs at.
"""

from enum import StrEnum
from typing import Literal

from exitguard.model.documents import Tool
from exitguard.model.host import Cpu, LivePatch, Mitigations
from exitguard.model.loop import Loop as Loop  # noqa: PLC0414 - part of this vocabulary; apart, so that it is known without pydantic
from exitguard.model.record import Observed, Record
from exitguard.model.time import UtcTime

#: Exits that the guest's code does not make, interrupts of the host above all: 1,000 a second and CPU, of some million; with room.
_MOST_UNASKED_SHARE = 0.05
_MOST_UNASKED = 100


class Arm(StrEnum):
    """How the virtual machine is made."""

    AS_CREATED = "as_created"  # what kvm.enable_pmu gives every virtual machine
    PMU_OFF = "pmu_off"  # KVM_PMU_CAP_DISABLE before the first vCPU, as QEMU 11 does for pmu=off


class Round(Record):
    """One entry of a guest's loop, with what else happened to its thread meanwhile."""

    arm: Arm
    #: Which pair of virtual machines, one for each arm, from 0: a loop is run in several, made anew.
    pair: int
    #: Of the timed iterations alone; the guest read its TSC before and after them.
    tsc_begin: int
    tsc_end: int
    #: CLOCK_MONOTONIC_RAW around the whole entry.
    begin_nanoseconds: int
    end_nanoseconds: int
    #: `exits` of the vCPU's statistics during the entry, and how many the guest's code makes, warm-up included.
    exits_counted: int
    exits_made: int
    #: How often another thread took the CPU (ru_nivcsw of getrusage(2)), or a signal sent the guest out of its loop.
    preemptions: int
    #: By IA32_APERF and IA32_MPERF where /dev/cpu/N/msr can be read: core cycles for each tick of the TSC.
    cycles_per_tick: float | None = None
    #: scaling_cur_freq, where there is one.
    kilohertz: int | None = None

    @property
    def exits_are_real(self) -> bool:
        """Whether KVM counted the exits that the guest's code makes. KVM in software handles most of them without one."""
        return self.exits_made <= self.exits_counted <= self.exits_made * (1 + _MOST_UNASKED_SHARE) + _MOST_UNASKED


class LoopReading(Record):
    """The rounds of one loop in the order in which they ran.

    In groups of four, A B B A in one pair and B A A B in the next, whose machines are made in the other order; one arm, in groups of two,
    where KVM offers no other.
    """

    loop: Loop
    iterations: int
    exits_per_iteration: int
    #: Time that the hypervisor below this machine took (steal of /proc/stat, in USER_HZ) while the rounds ran; None where it is not shown.
    steal_ticks: int | None
    rounds: tuple[Round, ...]


class CheckOutcome(StrEnum):
    HELD = "held"
    FAILED = "failed"
    NOT_VISIBLE = "not_visible"


class Check(Record):
    """One condition of a measurement: whether it held, or why it could not be seen."""

    name: str
    outcome: CheckOutcome
    detail: str


class Refused(Record):
    """Why nothing was measured, or why what was measured does not stand; and what would mend it."""

    reason: str
    next_step: str


class ProbeReading(Record):
    """What the virtual machine showed, before any statistics. `refused`: nothing further was run."""

    measured_on: int | None = None
    tsc_kilohertz: int | None = None
    #: KVM_CAP_PMU_CAPABILITY has KVM_PMU_CAP_DISABLE: both arms can be made.
    both_arms: bool = False
    loops: tuple[LoopReading, ...] = ()
    checks: tuple[Check, ...] = ()
    refused: Refused | None = None


class Estimate(Record):
    """The median of all rounds, and its bootstrap interval of 95 % over pairs of machines, which covers sampling alone."""

    median: float
    low: float
    high: float


class ArmResult(Record):
    arm: Arm
    rounds: int
    ticks_per_exit: Estimate
    #: The same by core cycles, where each round's ratio was read; never computed from a frequency.
    cycles_per_exit: Estimate | None = None
    #: How far rounds lie from their median: 1.4826 x the median absolute deviation, as a share of the median.
    noise: float
    #: Between the quantiles of 5 and 95 % of the rounds, as a share of their median.
    spread: float
    #: Between the medians of the first and the second half of the rounds, as a share of the first.
    drift: float
    #: By round, in the order in which they ran, those that were disturbed left out.
    ticks_per_exit_by_round: tuple[float, ...]


class Contrast(Record):
    """As created, less PMU off: what clearing enable_pmu saves of one exit. The difference of the two arms, pair by pair resampled."""

    pairs: int
    ticks_per_exit: Estimate
    cycles_per_exit: Estimate | None = None


class LoopResult(Record):
    loop: Loop
    iterations: int
    exits_per_iteration: int
    #: Pairs of virtual machines that were made, one machine for each arm.
    pairs: int
    #: Groups of rounds that were left out since another thread ran in between, or a signal came.
    disturbed: int
    arms: tuple[ArmResult, ...]
    #: None where there is one arm alone.
    contrast: Contrast | None


class Measurement(Record):
    """One measurement of one machine. Where it is refused, no loop is in it."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    observed_at: UtcTime
    host_id: str
    host_id_provisional: bool
    kernel_release: Observed[str]
    #: Of the file whose code KVM is.
    kvm_build_id: Observed[str]
    boot_id: Observed[str]
    cpu: Observed[Cpu]
    mitigations: Observed[Mitigations]
    #: kvm.enable_pmu, which is what a virtual machine has as created.
    enable_pmu: Observed[bool]
    live_patches: Observed[tuple[LivePatch, ...]]
    measured_on: int | None
    tsc_kilohertz: int | None
    #: How long all rounds together took, by the machine's clock.
    seconds: float
    loops: tuple[LoopResult, ...]
    checks: tuple[Check, ...]
    #: What the figures do not say.
    caveats: tuple[str, ...]
    refused: Refused | None
