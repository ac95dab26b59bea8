"""Readings of real modules, as the reader gave them: Debian's kvm.ko of linux-image-6.1.0-56-cloud-amd64 and 6.18.15+deb13-cloud-amd64."""

from exitguard.model.kernel import Body
from exitguard.model.machine_code import Callee, FieldOffset, Instruction, MachineCode

_SKIP, _TRIGGER, _RETIRED = "kvm_skip_emulated_instruction", "kvm_pmu_trigger_event", "kvm_pmu_instruction_retired"
_SKIPPED = "skips the instruction; tells whether it could"
_NOT_SKIPPED = "no PMU call where nothing was skipped"

_Line = tuple[int, str, str]
_END: tuple[tuple[int, str], ...] = ((0, "mov rdi, rbx"), (3, "pop rbx"), (4, "pop rbp"), (5, "pop r12"), (7, "jmp kvm_vcpu_do_singlestep"))


def _function(name: str, *lines: _Line) -> tuple[Instruction, ...]:
    return tuple(Instruction(function=name, address=address, text=text, note=note) for address, text, note in lines)


DEBIAN_6_1 = MachineCode(
    path="/lib/modules/6.1.0-56-cloud-amd64/kernel/arch/x86/kvm/kvm.ko",
    build_id="adc52894baba874167c85a83e488aa5227aed415",
    release="6.1.0-56-cloud-amd64",
    enable_pmu=FieldOffset(offset=0x98F8, sources=("code",)),
    helper="kvm_pmu_trigger_event",
    helpers_present=("kvm_pmu_trigger_event",),
    has_loop=False,
    called_when_off=True,
    called_when_on=True,
    decided_by_skip=True,
    callee=Callee(name=_TRIGGER, body=Body.A, returns_when_empty=("all_valid_pmc_idx",)),
    listing=(
        *_function(
            _SKIP,
            (0x0, "call __fentry__", ""),
            (0x5, "push r12", ""),
            (0x7, "push rbp", ""),
            (0x8, "push rbx", ""),
            (0x9, "mov rbx, rdi", ""),
            (0xC, "call __SCT__kvm_x86_get_rflags", ""),
            (0x11, "mov rdi, rbx", ""),
            (0x14, "mov r12, rax", ""),
            (0x17, "call __SCT__kvm_x86_skip_emulated_instruction", _SKIPPED),
            (0x1C, "mov ebp, eax", ""),
            (0x1E, "test eax, eax", ""),
            (0x20, "je +0x38", _NOT_SKIPPED),
            (0x22, "mov esi, 1", ""),
            (0x27, "mov rdi, rbx", ""),
            (0x2A, "call kvm_pmu_trigger_event", "the PMU call"),
            (0x2F, "test r12d, 0x100", ""),
            (0x36, "jne +0x43", ""),
            (0x38, "mov eax, ebp", ""),
            (0x3A, "pop rbx", ""),
            (0x3B, "pop rbp", ""),
            (0x3C, "pop r12", ""),
            (0x3E, "jmp __x86_return_thunk", ""),
            *((0x43 + offset, text, "") for offset, text in _END),
        ),
        *_function(
            _TRIGGER,
            (0x0, "call __fentry__", ""),
            (0x5, "mov rax, qword ptr [rdi + 0xf58]", ""),
            (0xC, "test rax, rax", ""),
            (0xF, "je +0xcd", "returns at once where u64[vcpu+0xf58] == 0 (all_valid_pmc_idx)"),
            (0xCD, "jmp __x86_return_thunk", ""),
        ),
    ),
)

DEBIAN_6_18 = MachineCode(
    path="/usr/lib/modules/6.18.15+deb13-cloud-amd64/kernel/arch/x86/kvm/kvm.ko.xz",
    build_id="5b6b86bc99de3027f86bc5bb18afed9a9b49c534",
    release="6.18.15+deb13-cloud-amd64",
    enable_pmu=FieldOffset(offset=0x18FD, sources=("code",)),
    helper="kvm_pmu_instruction_retired",
    helpers_present=("kvm_pmu_trigger_event", "kvm_pmu_instruction_retired"),
    has_loop=False,
    called_when_off=True,
    called_when_on=True,
    decided_by_skip=True,
    callee=Callee(name=_RETIRED, returns_when_empty=("pmc_counting_instructions",)),
    listing=(
        *_function(
            _SKIP,
            (0x1B, "call __SCT__kvm_x86_skip_emulated_instruction", _SKIPPED),
            (0x20, "mov ebp, eax", ""),
            (0x22, "test eax, eax", ""),
            (0x24, "je +0x37", _NOT_SKIPPED),
            (0x26, "mov rdi, rbx", ""),
            (0x29, "call kvm_pmu_instruction_retired", "the PMU call"),
        ),
        *_function(
            _RETIRED,
            (0x0, "endbr64", ""),
            (0x4, "call __fentry__", ""),
            (0x9, "mov rsi, qword ptr [rdi + 0xf38]", ""),
            (0x10, "jmp kvm_pmu_trigger_event.isra.0", ""),
        ),
        *_function(
            "kvm_pmu_trigger_event.isra.0",
            (0x0, "call __fentry__", ""),
            (0x5, "test rsi, rsi", ""),
            (0x8, "je +0x18d", "returns at once where u64[vcpu+0xf38] == 0 (pmc_counting_instructions)"),
            (0x18D, "jmp __x86_return_thunk", ""),
        ),
    ),
)
