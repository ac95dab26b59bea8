"""The guest's bytes, read back by a disassembler: they are what they are said to be, and nothing else."""

import capstone
import pytest

from exitguard.facts.probe.guest_code import CODE_ADDRESS, EVENT_PORT, STOP_PORT, TIMES_ADDRESS, GuestProgram, guest_program
from exitguard.model.loop import Loop

#: What makes a real-mode guest exit here.
_EXITING = {"cpuid", "rdmsr", "out", "vmcall", "vmmcall", "hlt"}
_BODIES = {
    Loop.CPUID: ["xor eax, eax", "cpuid"],
    Loop.MSR: ["mov ecx, 0x1b", "rdmsr"],
    Loop.IO: [f"out {EVENT_PORT:#x}, al"],
    Loop.HYPERCALL: ["mov eax, 1", "vmmcall"],
    Loop.HLT: ["mov eax, 5", "xor ebx, ebx", "xor ecx, ecx", "vmmcall", "hlt"],
}


def instructions(program: GuestProgram) -> list[tuple[int, str]]:
    """Address and text of each instruction; all bytes have to be one."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16)
    decoded = [(each.address, f"{each.mnemonic} {each.op_str}".strip(), each.size) for each in decoder.disasm(program.code, CODE_ADDRESS)]
    assert sum(size for _, _, size in decoded) == len(program.code)
    return [(address, text) for address, text, _ in decoded]


def repeated(body: list[str], counter: str) -> list[str]:
    return [*body, f"dec {counter}", "jne"]


def stored(address: int) -> list[str]:
    return ["lfence", "rdtsc", f"mov dword ptr [{address:#x}], eax", f"mov dword ptr [{address + 4:#x}], edx"]


@pytest.mark.parametrize("loop", Loop)
def test_code_warms_up_then_times_its_loop_and_stops(loop: Loop) -> None:
    decoded = instructions(guest_program(loop, intel=False))
    texts = [text.split(" 0x1")[0] if text.startswith("j") else text for _, text in decoded]
    body = _BODIES[loop]
    expected = [
        *repeated(body, "esi"),
        *stored(TIMES_ADDRESS),
        *repeated(body, "edi"),
        *stored(TIMES_ADDRESS + 8),
        f"out {STOP_PORT:#x}, al",
    ]
    assert texts == expected


@pytest.mark.parametrize("loop", Loop)
def test_each_jump_leads_back_to_the_beginning_of_its_own_loop(loop: Loop) -> None:
    decoded = instructions(guest_program(loop, intel=False))
    size = len(repeated(_BODIES[loop], "esi"))
    jumps = [int(text.split()[1], 16) for _, text in decoded if text.startswith("jne")]
    assert jumps == [decoded[0][0], decoded[size + len(stored(0))][0]]


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("loop", Loop)
def test_exits_of_an_iteration_are_those_that_its_code_makes(loop: Loop, intel: bool) -> None:  # noqa: FBT001 - a parameter of the test
    program = guest_program(loop, intel=intel)
    texts = [text for _, text in instructions(program)]
    end = texts.index("dec esi")
    assert sum(text.split()[0] in _EXITING for text in texts[:end]) == program.exits_per_iteration


@pytest.mark.parametrize("loop", [Loop.HYPERCALL, Loop.HLT])
def test_each_vendor_gets_its_own_hypercall(loop: Loop) -> None:
    on_intel = [text for _, text in instructions(guest_program(loop, intel=True))]
    on_amd = [text for _, text in instructions(guest_program(loop, intel=False))]
    assert "vmcall" in on_intel
    assert "vmmcall" not in on_intel
    assert "vmmcall" in on_amd
    assert "vmcall" not in on_amd
