"""What the machine code of one kernel says about the guard: observations only. audit/machine_code.py alone makes a state of them."""

from typing import Literal

from pydantic import Field

from exitguard.model.kernel import Body
from exitguard.model.record import Record

#: The two functions that tell the virtual PMU of a retired instruction: until 6.17, and the wrapper around it from 6.18 on.
Helper = Literal["kvm_pmu_trigger_event", "kvm_pmu_instruction_retired"]


class Instruction(Record):
    """One line of a listing. `address` is the distance in bytes from the beginning of its function."""

    function: str
    address: int
    text: str
    #: What it does here, in words; empty where it decides nothing.
    note: str = ""


class FieldOffset(Record):
    """Where a field lies, in bytes from the beginning of its structure, and which sources say so."""

    offset: int
    sources: tuple[Literal["BTF", "code"], ...] = Field(min_length=1)


class Callee(Record):
    """What the PMU function does before anything costly."""

    #: Where the function that was read begins, under its own name.
    name: str
    #: How it walks the counters; None where neither shape was recognised.
    body: Body | None = None
    #: Whether it returns at once (no call, no store but to the stack, no loop) where enable_pmu is cleared, and does not where it is set.
    returns_when_off: bool = False
    #: The bitmaps on whose emptiness alone it returns at once. `other`: a field that is none of the two.
    returns_when_empty: tuple[Literal["pmc_counting_instructions", "all_valid_pmc_idx", "other"], ...] = ()
    #: Other conditions on which it returns at once, as `u8[u64[vcpu+0x0]+0x18fc] == 0`.
    other_exits: tuple[str, ...] = ()
    #: Why it could not be followed to its end; then only what is said above of its head was seen.
    obstacle: str | None = None


class MachineCode(Record):
    """kvm_skip_emulated_instruction() as it was read from one image."""

    #: The file, or the memory, that was read.
    path: str
    #: Of the image, hex; and of the release that it says it was built for (vermagic).
    build_id: str | None = None
    release: str | None = None
    #: The offset of kvm->arch.enable_pmu; None where neither source shows it.
    enable_pmu: FieldOffset | None = None
    #: The PMU function that kvm_skip_emulated_instruction() calls; None where it calls neither.
    helper: Helper | None = None
    #: Which of the two are functions of this image.
    helpers_present: tuple[Helper, ...] = ()
    #: Whether the function has a loop: then something may be inlined in it. What was not read may have one.
    has_loop: bool = True
    #: Whether the call can be reached where enable_pmu is cleared, and where it is set; None where its offset is not known.
    called_when_off: bool | None = None
    called_when_on: bool | None = None
    #: Whether the call depends on the result of the vendor's skip_emulated_instruction being other than zero.
    decided_by_skip: bool = False
    #: Every other condition under which the call is reached, as `u8[u64[vcpu+0x0]+0x18fc] != 0`.
    conditions: tuple[str, ...] = ()
    callee: Callee | None = None
    #: Why no more could be read; the fields above then say what was.
    obstacle: str | None = None
    #: The instructions of the function, and of the callee's head where that decides, with notes on those that matter.
    listing: tuple[Instruction, ...] = ()
