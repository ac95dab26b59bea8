"""A listing shows address, instruction and note, fits the place, and lets no name of a file act."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_code_readings import DEBIAN_6_1, DEBIAN_6_18

from exitguard.audit.kernel import machine_code_statement
from exitguard.model.kernel import KernelState
from exitguard.model.machine_code import Callee, Instruction, MachineCode
from exitguard.report.listing import deciding_sentence, listing_text
from exitguard.report.page import Look

#: A line of the listing as a terminal without colour shows it.
OF_DEBIAN_6_18 = """\
  kvm_skip_emulated_instruction:
  > +0x1b   call __SCT__kvm_x86_skip_emulated_instruction
                                                skips the instruction; tells
                                                whether it could
    +0x20   mov ebp, eax
    +0x22   test eax, eax
  > +0x24   je +0x37                            no PMU call where nothing was
                                                skipped
    +0x26   mov rdi, rbx
  > +0x29   call kvm_pmu_instruction_retired    the PMU call

  kvm_pmu_instruction_retired:
    +0x0    endbr64
    +0x4    call __fentry__
    +0x9    mov rsi, qword ptr [rdi + 0xf38]
    +0x10   jmp kvm_pmu_trigger_event.isra.0

  kvm_pmu_trigger_event.isra.0:
    +0x0    call __fentry__
    +0x5    test rsi, rsi
  > +0x8    je +0x18d                           returns at once where
                                                u64[vcpu+0xf38] == 0
                                                (pmc_counting_instructions)
    +0x18d  jmp __x86_return_thunk
"""
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def instruction(text: str = "call x", note: str = "", function: str = "f", address: int = 4) -> Instruction:
    return Instruction(function=function, address=address, text=text, note=note)


def reading(*listing: Instruction) -> MachineCode:
    return MachineCode(path="/x/kvm.ko", has_loop=False, listing=listing)


def words(page: str) -> str:
    return "".join(page.split())


def test_real_listing_is_laid_out_for_80_columns_without_colour() -> None:
    assert listing_text(DEBIAN_6_18, Look()) == OF_DEBIAN_6_18


@pytest.mark.parametrize("width", [20, 32, 50, 72, 80, 100, 200])
@pytest.mark.parametrize("seen", [DEBIAN_6_1, DEBIAN_6_18], ids=["6.1", "6.18"])
def test_no_line_is_wider_than_the_place_and_nothing_is_lost(seen: MachineCode, width: int) -> None:
    look = Look(width=width)
    page = listing_text(seen, look)
    assert max(map(len, page.splitlines())) <= look.columns
    for each in seen.listing:
        assert words(each.text) in words(page)
        assert words(each.note) in words(page)
        assert f"+{each.address:#x}" in page


def test_deciding_instructions_are_marked_where_there_is_no_colour_too() -> None:
    marked = [line for line in listing_text(DEBIAN_6_1, Look()).splitlines() if line.startswith("  > ")]
    assert [line[4:].split()[0] for line in marked] == ["+0x17", "+0x20", "+0x2a", "+0xf"]


def test_colour_adds_nothing_but_style() -> None:
    assert _STYLE.sub("", listing_text(DEBIAN_6_1, Look(color=True))) == listing_text(DEBIAN_6_1, Look())
    assert "\x1b" in listing_text(DEBIAN_6_1, Look(color=True))


def test_no_instructions_make_no_page() -> None:
    assert listing_text(reading(), Look()) == ""


def test_a_listing_without_end_is_cut_and_says_so() -> None:
    page = listing_text(reading(*(instruction(address=place) for place in range(1234))), Look())
    assert page.count("call x") == 400
    assert page.endswith("  … and 834 more instructions\n")
    assert "... and 834 more" in listing_text(reading(*(instruction(address=place) for place in range(1234))), Look(unicode=False))


@pytest.mark.parametrize(
    "hostile", ["[red]x", "\x1b[2J\x1b]0;owned\x07", "a\n  COMPLIANT\r", "\u202egnp.exe", "a\u200bb", "漢字" * 40, "y" * 9000]
)
@pytest.mark.parametrize("width", [32, 80])
def test_no_name_in_a_file_acts_or_breaks_the_columns(hostile: str, width: int) -> None:
    page = listing_text(reading(instruction(hostile, hostile, hostile), instruction("", "", "g")), Look(width=width))
    assert all(character.isprintable() or character == "\n" for character in page)
    assert page.isascii()
    lines = page.splitlines()
    assert all(len(line) <= width for line in lines if not line.endswith(":"))
    assert not any(line.startswith("  COMPLIANT") for line in lines)


@given(st.lists(st.builds(Instruction, address=st.integers(0, 2**64)), max_size=6).map(tuple), st.integers(1, 200))
def test_any_reading_is_drawn(listing: tuple[Instruction, ...], width: int) -> None:
    page = listing_text(reading(*listing), Look(width=width))
    assert not any(unicodedata.category(character).startswith("C") for character in page if character != "\n")
    assert bool(page) is bool(listing)


GUARDED = DEBIAN_6_1.model_copy(update={"called_when_off": False})
SENTENCES = [
    (GUARDED, KernelState.GUARDED, "no way through these instructions reaches the PMU call"),
    (
        DEBIAN_6_1.model_copy(update={"callee": Callee(name="kvm_pmu_trigger_event", returns_when_off=True)}),
        KernelState.GUARDED,
        "what it calls asks for kvm->arch.enable_pmu first",
    ),
    (DEBIAN_6_18, KernelState.EQUIVALENT, "while none of the guest's counters counts instructions"),
    (reading(), KernelState.NOT_AFFECTED, "None of these instructions calls into the virtual PMU"),
    (DEBIAN_6_1, KernelState.AFFECTED, "returns early only where a guest has no counter at all"),
    (
        DEBIAN_6_1.model_copy(update={"callee": DEBIAN_6_1.callee and DEBIAN_6_1.callee.model_copy(update={"returns_when_empty": ()})}),
        KernelState.AFFECTED,
        "what is called goes to work",
    ),
    (
        DEBIAN_6_1.model_copy(update={"conditions": ("u8[rip+0x8] != 0",)}),
        KernelState.UNKNOWN,
        "prove no state: kvm_pmu_trigger_event is called only where u8[rip+0x8] != 0",
    ),
]


@pytest.mark.parametrize(("seen", "state", "told"), SENTENCES, ids=[f"{each[1]} {place}" for place, each in enumerate(SENTENCES)])
def test_one_sentence_says_why_the_instructions_decide(seen: MachineCode, state: KernelState, told: str) -> None:
    assert machine_code_statement(seen).state is state
    sentence = deciding_sentence(seen)
    assert told in sentence
    assert sentence.endswith(".")
