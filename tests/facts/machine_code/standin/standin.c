/*
 * A stand-in of the part of KVM that the reading of machine code looks at: kvm_skip_emulated_instruction() with every guard, and
 * everything that only looks like one; kvm_arch_init_vm(), which copies the module's enable_pmu to the VM's. Written for these
 * tests; nothing here is Linux's. README.md says what each VARIANT is, standin_builder.py what is expected of it.
 */
#include "standin.h"

bool enable_pmu = 1;
EXPORT(enable_pmu);
bool enable_apicv = 1;
struct kvm_pmu_eventsel kvm_pmu_eventsel;
static u32 max_tsc_khz;
static u64 boot_offset;
u32 tsc_khz;

/* Where the field lies in this build, for the tests alone: a third source beside BTF and code. */
const u64 standin_offset_of_enable_pmu __attribute__((used)) = __builtin_offsetof(struct kvm, arch.enable_pmu);

static const char vermagic[] __attribute__((used, section(".modinfo"))) = "vermagic=6.1.0-standin SMP preempt mod_unload ";
static const char module_name[] __attribute__((used, section(".modinfo"))) = "name=kvm";

/* Trampolines as a module file has them: a jump that the running kernel turns to the vendor's function, or a return. */
#define TRAMPOLINE(name, instructions)                                                                                            \
	__asm__(".pushsection .static_call.text, \"ax\"\n.balign 8\n.globl __SCT__" #name "\n__SCT__" #name ":\n" instructions      \
		"\n.byte 0x0f, 0xb9, 0xcc\n.type __SCT__" #name ", @function\n.size __SCT__" #name ", . - __SCT__" #name "\n.popsection\n")
#define RETURNS "ret\nint3\nnop\nnop\nnop"
TRAMPOLINE(kvm_x86_get_rflags, RETURNS);
TRAMPOLINE(kvm_x86_skip_emulated_instruction, RETURNS);
TRAMPOLINE(kvm_x86_get_cpl, RETURNS);
TRAMPOLINE(kvm_x86_vm_init, RETURNS);
TRAMPOLINE(kvm_x86_pmu_pmc_idx_to_pmc, RETURNS);
TRAMPOLINE(kvm_x86_pmu_pmc_is_enabled, ".byte 0xe9\n.long kvm_pmc_is_enabled - . - 4");

bool kvm_pmc_is_enabled(struct kvm_pmc *pmc)
{
	return !pmc->is_paused;
}

/* ---- The PMU call of each body ---- */

#if defined(BODY_A) || defined(BODY_B_CONSTANT)
#define EVENT_OF_INSTRUCTIONS PERF_COUNT_HW_INSTRUCTIONS
#else
#define EVENT_OF_INSTRUCTIONS kvm_pmu_eventsel.INSTRUCTIONS_RETIRED
#endif

#if defined(BODY_NONE)
#define TELL(vcpu) do { } while (0)
#elif defined(HAS_RETIRED)
#define TELL(vcpu) kvm_pmu_instruction_retired(vcpu)
#elif defined(VARIANT_INLINED) || defined(VARIANT_INLINED_EVERYWHERE)
#define TRIGGER inlined_trigger_event
#define LINKAGE static always_inline
#include "standin_pmu.c"
#define TELL(vcpu) inlined_trigger_event(vcpu, EVENT_OF_INSTRUCTIONS)
#elif defined(VARIANT_ARGUMENT_ONLY)
#define TELL(vcpu) kvm_pmu_trigger_event(vcpu, (vcpu)->kvm->arch.enable_pmu ? EVENT_OF_INSTRUCTIONS : 7)
#elif defined(VARIANT_INDIRECT)
#define TELL(vcpu) (vcpu)->tell_pmu(vcpu, EVENT_OF_INSTRUCTIONS)
#else
#define TELL(vcpu) kvm_pmu_trigger_event(vcpu, EVENT_OF_INSTRUCTIONS)
#endif

#if defined(VARIANT_INLINED_EVERYWHERE) || defined(BODY_NONE)
#define TELL_OF_EMULATOR(vcpu) do { } while (0)
#elif defined(HAS_RETIRED)
#define TELL_OF_EMULATOR(vcpu) do { kvm_pmu_branch_retired(vcpu); kvm_pmu_instruction_retired(vcpu); } while (0)
#else
#define TELL_OF_EMULATOR(vcpu) kvm_pmu_trigger_event(vcpu, EVENT_OF_INSTRUCTIONS)
#endif

/* ---- What stands in front of the call ---- */

#define PMU_ON(vcpu) ((vcpu)->kvm->arch.enable_pmu)
#define PMU_BYTE(vcpu) (*(const u8 *)&(vcpu)->kvm->arch.enable_pmu)
#define NEIGHBOUR(vcpu) ((vcpu)->kvm->arch.bus_lock_detection_enabled)

#ifdef VARIANT_STATIC_INLINE
static always_inline bool has_pmu(const struct kvm_vcpu *vcpu)
{
	return vcpu->kvm->arch.enable_pmu;
}
#endif
#ifdef VARIANT_CALLED_TEST
static noinline bool is_pmu_on(struct kvm_vcpu *vcpu)
{
	barrier();
	return vcpu->kvm->arch.enable_pmu;
}
#endif
#ifdef VARIANT_WRAPPER
static noinline void tell_if_on(struct kvm_vcpu *vcpu)
{
	if (PMU_ON(vcpu))
		TELL(vcpu);
}
#endif
#if defined(VARIANT_WRAPPER_WITHOUT_GUARD) || defined(VARIANT_HIDDEN_OTHERWISE) || defined(VARIANT_HIDDEN_DEEPER)
static noinline void tell_always(struct kvm_vcpu *vcpu)
{
	barrier();
	TELL(vcpu);
	barrier();
}
#endif
#ifdef VARIANT_HIDDEN_DEEPER
static noinline void tell_deeper(struct kvm_vcpu *vcpu)
{
	vcpu->requests |= 16;
	tell_always(vcpu);
	barrier();
}
#endif

/* A feature of the processor: a jump in the file, which the kernel takes away as it starts where the processor has it. */
#if defined(VARIANT_ALTERNATIVE) || defined(VARIANT_ALTERNATIVE_OR)
static always_inline bool has_feature(void)
{
	__asm__ goto("1: .byte 0xe9\n.long %l[no] - 2f\n2:\n.pushsection .altinstructions, \"a\"\n.long 1b - ., 3f - .\n.word 100\n"
		     ".byte 5, 0\n.popsection\n.pushsection .altinstr_replacement, \"ax\"\n3:\n.popsection\n" : : : : no);
	return 1;
no:
	return 0;
}
#endif

/* A jump label: a no-op that the running kernel may turn into a jump. */
struct static_key {
	int enabled;
};
struct static_key pmu_key;

#if defined(VARIANT_JUMP_LABEL) || defined(VARIANT_JUMP_LABEL_BESIDE) || defined(VARIANT_JUMP_LABEL_OR)
static always_inline bool is_switched_on(void)
{
	__asm__ goto("1: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n.pushsection __jump_table, \"aw\"\n.balign 8\n"
		     ".long 1b - ., %l[yes] - .\n.quad pmu_key - .\n.popsection\n" : : : : yes);
	return 0;
yes:
	return 1;
}
#endif

#if defined(VARIANT_PLAIN)
#define STEP if (PMU_ON(vcpu)) TELL(vcpu);
#elif defined(VARIANT_UNLIKELY)
#define STEP if (unlikely(PMU_ON(vcpu))) TELL(vcpu);
#elif defined(VARIANT_LIKELY)
#define STEP if (likely(PMU_ON(vcpu))) TELL(vcpu);
#elif defined(VARIANT_EARLY_RETURN)
#define STEP if (!PMU_ON(vcpu)) return rflags & X86_EFLAGS_TF ? kvm_vcpu_do_singlestep(vcpu) : r; TELL(vcpu);
#elif defined(VARIANT_GOTO)
#define STEP if (likely(!PMU_ON(vcpu))) goto told; TELL(vcpu); told:
#elif defined(VARIANT_READ_BEFORE)
#define BEFORE bool is_on = PMU_ON(vcpu);
#define STEP if (is_on) TELL(vcpu);
#elif defined(VARIANT_READ_FIRST)
#define FIRST bool is_off = !PMU_ON(vcpu);
#define STEP if (!is_off) TELL(vcpu);
#elif defined(VARIANT_KVM_BEFORE)
#define BEFORE struct kvm *kvm = vcpu->kvm;
#define STEP if (kvm->arch.enable_pmu) TELL(vcpu);
#elif defined(VARIANT_COMPARED_WITH_ONE)
#define STEP if (PMU_BYTE(vcpu) == 1) TELL(vcpu);
#elif defined(VARIANT_AT_LEAST_ONE)
#define STEP if (PMU_BYTE(vcpu) >= 1) TELL(vcpu);
#elif defined(VARIANT_LOWEST_BIT)
#define STEP if (PMU_BYTE(vcpu) & 1) TELL(vcpu);
#elif defined(VARIANT_POSITIVE)
#define STEP if (*(const volatile signed char *)&PMU_BYTE(vcpu) > 0) TELL(vcpu);
#elif defined(VARIANT_WIDE_OWN_BYTE)
#define STEP if (*(const volatile u32 *)&PMU_BYTE(vcpu) & 0xff) TELL(vcpu);
#elif defined(VARIANT_WIDE_UPPER_BYTE)
#define STEP if (*(const volatile unsigned short *)(&PMU_BYTE(vcpu) - 1) >> 8) TELL(vcpu);
#elif defined(VARIANT_SWITCH)
#define STEP switch (PMU_BYTE(vcpu)) { case 0: break; default: TELL(vcpu); }
#elif defined(VARIANT_STATIC_INLINE)
#define STEP if (has_pmu(vcpu)) TELL(vcpu);
#elif defined(VARIANT_CALLED_TEST)
#define STEP if (is_pmu_on(vcpu)) TELL(vcpu);
#elif defined(VARIANT_DOUBLE)
#define STEP if (PMU_ON(vcpu)) { barrier(); if (READ_ONCE(PMU_ON(vcpu))) TELL(vcpu); }
#elif defined(VARIANT_AND)
#define STEP if (PMU_ON(vcpu) && NEIGHBOUR(vcpu)) TELL(vcpu);
#elif defined(VARIANT_AND_AFTER_ANOTHER)
#define STEP if (vcpu->preempted && PMU_ON(vcpu)) TELL(vcpu);
#elif defined(VARIANT_BITWISE_AND)
#define STEP if (PMU_ON(vcpu) & NEIGHBOUR(vcpu)) TELL(vcpu);
#elif defined(VARIANT_WITH_RESULT)
#define STEP_WITH_RESULT if (r && PMU_ON(vcpu)) TELL(vcpu);
#elif defined(VARIANT_BITWISE_WITH_RESULT)
#define STEP_WITH_RESULT if ((r != 0) & PMU_ON(vcpu)) TELL(vcpu);
#elif defined(VARIANT_COLD)
#define STEP if (PMU_ON(vcpu)) { trace_note(vcpu); TELL(vcpu); }
#elif defined(VARIANT_COLD_AROUND)
#define STEP if (!PMU_ON(vcpu)) { trace_note(vcpu); goto told; } TELL(vcpu); told:
#elif defined(VARIANT_WRAPPER)
#define STEP tell_if_on(vcpu);
#elif defined(VARIANT_WRONG_NEIGHBOUR)
#define STEP if (NEIGHBOUR(vcpu)) TELL(vcpu);
#elif defined(VARIANT_WRONG_NEIGHBOUR_AFTER)
#define STEP if (unlikely(vcpu->kvm->arch.exit_on_emulation_error)) TELL(vcpu);
#elif defined(VARIANT_WRONG_STRUCTURE)
#define STEP if (vcpu->preempted) TELL(vcpu);
#elif defined(VARIANT_WRONG_NUMBER)
#define STEP if (vcpu->kvm->arch.notify_window) TELL(vcpu);
#elif defined(VARIANT_SAME_OFFSET_OF_VCPU) /* the offset is right, the structure is not */
#define STEP if (((const u8 *)vcpu)[__builtin_offsetof(struct kvm, arch.enable_pmu)]) TELL(vcpu);
#elif defined(VARIANT_PMU_VERSION)
#define STEP if (vcpu->arch.pmu.version) TELL(vcpu);
#elif defined(VARIANT_INVERTED)
#define STEP if (!PMU_ON(vcpu)) TELL(vcpu);
#elif defined(VARIANT_OR)
#define STEP if (PMU_ON(vcpu) || NEIGHBOUR(vcpu)) TELL(vcpu);
#elif defined(VARIANT_OR_AFTER_ANOTHER)
#define STEP if (vcpu->preempted || PMU_ON(vcpu)) TELL(vcpu);
#elif defined(VARIANT_BITWISE_OR)
#define STEP if (PMU_ON(vcpu) | NEIGHBOUR(vcpu)) TELL(vcpu);
#elif defined(VARIANT_EXCLUSIVE_OR)
#define STEP if (PMU_ON(vcpu) ^ NEIGHBOUR(vcpu)) TELL(vcpu);
#elif defined(VARIANT_SECOND_BIT)
#define STEP if (*(const volatile u8 *)&PMU_BYTE(vcpu) & 2) TELL(vcpu);
#elif defined(VARIANT_MORE_THAN_ONE)
#define STEP if (*(const volatile u8 *)&PMU_BYTE(vcpu) > 1) TELL(vcpu);
#elif defined(VARIANT_NEGATIVE)
#define STEP if (*(const volatile signed char *)&PMU_BYTE(vcpu) < 0) TELL(vcpu);
#elif defined(VARIANT_WIDE_NEIGHBOUR_BIT)
#define STEP if (*(const volatile u32 *)&PMU_BYTE(vcpu) & 0x100) TELL(vcpu);
#elif defined(VARIANT_WIDE_LOWER_BYTE)
#define STEP if (*(const volatile unsigned short *)(&PMU_BYTE(vcpu) - 1) & 0xff) TELL(vcpu);
#elif defined(VARIANT_WIDE)
#define STEP if (*(const unsigned short *)&PMU_BYTE(vcpu)) TELL(vcpu);
#elif defined(VARIANT_GLOBAL)
#define STEP if (enable_pmu) TELL(vcpu);
#elif defined(VARIANT_GLOBAL_UNLIKELY)
#define STEP if (unlikely(enable_pmu)) TELL(vcpu);
#elif defined(VARIANT_OTHER_VM)
#define STEP if (vcpu->other->kvm->arch.enable_pmu) TELL(vcpu);
#elif defined(VARIANT_OTHER_VCPU_TOLD)
#define STEP if (vcpu->other->kvm->arch.enable_pmu) { vcpu = vcpu->other; TELL(vcpu); }
#elif defined(VARIANT_REPLACED_KVM)
#define STEP WRITE_ONCE(vcpu->kvm, vcpu->other->kvm); if (READ_ONCE(vcpu->kvm)->arch.enable_pmu) TELL(vcpu);
#elif defined(VARIANT_OVERWRITTEN)
#define STEP WRITE_ONCE(PMU_ON(vcpu), 1); if (READ_ONCE(PMU_ON(vcpu))) TELL(vcpu);
#elif defined(VARIANT_OVERWRITTEN_LOCKED)
#define STEP __atomic_fetch_or((u8 *)&PMU_ON(vcpu), 1, __ATOMIC_SEQ_CST); if (READ_ONCE(PMU_ON(vcpu))) TELL(vcpu);
#elif defined(VARIANT_OVERWRITTEN_EXCHANGED)
#define STEP __atomic_exchange_n((u8 *)&PMU_ON(vcpu), 1, __ATOMIC_SEQ_CST); if (READ_ONCE(PMU_ON(vcpu))) TELL(vcpu);
#elif defined(VARIANT_OVERWRITTEN_BY_STRING)
#define STEP                                                                                                                      \
	{                                                                                                                          \
		u8 *to = (u8 *)&PMU_ON(vcpu) - 3;                                                                                  \
		u64 count = 4;                                                                                                     \
		__asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(1) : "memory");                                         \
		if (PMU_ON(vcpu))                                                                                                  \
			TELL(vcpu);                                                                                                \
	}
#elif defined(VARIANT_ESCAPED_BY_STACK)
#define STEP { bool seen = PMU_ON(vcpu); look_at_last(1, 2, 3, 4, 5, 6, &seen); if (seen) TELL(vcpu); }
#elif defined(VARIANT_SECOND_TURN)
#define STEP for (int turn = 0; turn < 2; turn++) { barrier(); if (turn || PMU_ON(vcpu)) TELL(vcpu); }
#elif defined(VARIANT_INDIRECT_OTHERWISE)
#define STEP if (PMU_ON(vcpu)) TELL(vcpu); else vcpu->tell_pmu(vcpu, EVENT_OF_INSTRUCTIONS);
#elif defined(VARIANT_COMPUTED_GOTO)
#define STEP                                                                                                                      \
	static const void *const ways[] = { &&tell, &&told };                                                                      \
	if (!PMU_ON(vcpu))                                                                                                         \
		goto *ways[vcpu->cpu & 1];                                                                                         \
tell:                                                                                                                             \
	TELL(vcpu);                                                                                                                \
told:
#elif defined(VARIANT_ESCAPED_BY_INDEX)
#define STEP { bool seen[2] = { PMU_ON(vcpu), PMU_ON(vcpu) }; look_at_flag(&seen[vcpu->cpu & 1]); if (seen[0]) TELL(vcpu); }
#elif defined(VARIANT_ESCAPED_BY_CHOICE)
#define STEP { bool seen = PMU_ON(vcpu), other = 0; look_at_flag(vcpu->ready ? &seen : &other); if (seen) TELL(vcpu); }
#elif defined(VARIANT_READ_TWICE)
#define STEP { u64 was = READ_ONCE(vcpu->requests); barrier(); if ((READ_ONCE(vcpu->requests) ^ was) | PMU_ON(vcpu)) TELL(vcpu); }
#elif defined(VARIANT_COMPARED_AND_SWAPPED)
#define STEP                                                                                                                      \
	{                                                                                                                          \
		u8 was = PMU_ON(vcpu);                                                                                             \
		__atomic_compare_exchange_n((u8 *)&vcpu->ready, &was, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
		if (was)                                                                                                           \
			TELL(vcpu);                                                                                                \
	}
#elif defined(VARIANT_HIDDEN_OTHERWISE)
#define STEP if (PMU_ON(vcpu)) TELL(vcpu); else tell_always(vcpu);
#elif defined(VARIANT_HIDDEN_DEEPER)
#define STEP if (PMU_ON(vcpu)) TELL(vcpu); else tell_deeper(vcpu);
#elif defined(VARIANT_ALTERNATIVE)
#define STEP if (has_feature()) TELL(vcpu);
#elif defined(VARIANT_ALTERNATIVE_OR)
#define STEP if (PMU_ON(vcpu) || has_feature()) TELL(vcpu);
#elif defined(VARIANT_ESCAPED_VCPU)
#define STEP { struct kvm_vcpu *seen = vcpu; look_at_vcpu(&seen); if (PMU_ON(seen)) TELL(vcpu); }
#elif defined(VARIANT_ESCAPED_FLAG)
#define STEP { bool seen = PMU_ON(vcpu); look_at_flag(&seen); if (seen) TELL(vcpu); }
#elif defined(VARIANT_ONE_PATH)
#define STEP if (rflags & X86_EFLAGS_TF) { barrier(); TELL(vcpu); } else if (PMU_ON(vcpu)) { TELL(vcpu); }
#elif defined(VARIANT_TEST_AFTER)
#define STEP TELL(vcpu); if (PMU_ON(vcpu)) trace_note(vcpu);
#elif defined(VARIANT_TEST_BEFORE_SOMETHING_ELSE)
#define STEP if (PMU_ON(vcpu)) trace_note(vcpu); TELL(vcpu);
#elif defined(VARIANT_TWICE)
#define STEP if (PMU_ON(vcpu)) { TELL(vcpu); barrier(); } TELL(vcpu);
#elif defined(VARIANT_BEFORE_THE_RESULT)
#define STEP_WITH_RESULT TELL(vcpu);
#elif defined(VARIANT_FAILED_SKIP)
#define STEP_WITH_RESULT if (!r) TELL(vcpu);
#elif defined(VARIANT_WRAPPER_WITHOUT_GUARD)
#define STEP tell_always(vcpu);
#elif defined(VARIANT_REMOVED)
#define STEP ;
#elif defined(VARIANT_JUMP_LABEL_BESIDE)
#define STEP if (is_switched_on()) trace_note(vcpu); TELL(vcpu);
#elif defined(VARIANT_JUMP_LABEL)
#define STEP if (is_switched_on()) TELL(vcpu);
#elif defined(VARIANT_JUMP_LABEL_OR)
#define STEP if (is_switched_on() || PMU_ON(vcpu)) TELL(vcpu);
#else
#define STEP TELL(vcpu);
#endif

#ifndef FIRST
#define FIRST
#endif
#ifndef BEFORE
#define BEFORE
#endif
#ifndef STEP
#define STEP
#endif
#ifndef STEP_WITH_RESULT
#define STEP_WITH_RESULT
#endif

/* ---- The functions ---- */

static int kvm_vcpu_do_singlestep(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (vcpu->guest_debug & 2) {
		run->dr6 = 0xffff4ff0;
		run->pc = kvm_get_linear_rip(vcpu);
		run->exception = 1;
		run->exit_reason = 4;
		return 0;
	}
	kvm_queue_exception(vcpu, 1, 0x4000);
	return 1;
}

int kvm_skip_emulated_instruction(struct kvm_vcpu *vcpu)
{
	FIRST
	unsigned long rflags = __SCT__kvm_x86_get_rflags(vcpu);
	int r;
	BEFORE
	r = __SCT__kvm_x86_skip_emulated_instruction(vcpu);
	STEP_WITH_RESULT
	if (unlikely(!r))
		return 0;
	STEP
	if (unlikely(rflags & X86_EFLAGS_TF))
		r = kvm_vcpu_do_singlestep(vcpu);
	return r;
}
EXPORT(kvm_skip_emulated_instruction);

/* The emulator tells the PMU on its own, guard or not. */
int x86_emulate_instruction(struct kvm_vcpu *vcpu, unsigned long cr2, int type)
{
	unsigned long rflags = __SCT__kvm_x86_get_rflags(vcpu);
	int r = 1;

	if (vcpu->arch.cr2 != cr2)
		return 0;
	if (type & 1) {
		TELL_OF_EMULATOR(vcpu);
		if (rflags & X86_EFLAGS_TF)
			r = kvm_vcpu_do_singlestep(vcpu);
	}
	return r;
}
EXPORT(x86_emulate_instruction);

int kvm_emulate_halt(struct kvm_vcpu *vcpu)
{
	int r = kvm_skip_emulated_instruction(vcpu);

	vcpu->requests |= 8;
	return r && vcpu->ready;
}
EXPORT(kvm_emulate_halt);

static void begin_list(struct kvm_list *list)
{
	list->next = list;
	list->previous = list;
}

int kvm_arch_init_vm(struct kvm *kvm, unsigned long type)
{
	static char key;
	int result;

	if (type)
		return -22;
	result = kvm_page_track_init(kvm);
	if (result)
		return result;
	kvm_mmu_init_vm(kvm);
	result = __SCT__kvm_x86_vm_init(kvm);
	if (result) {
		kvm_mmu_uninit_vm(kvm);
		return result;
	}
	begin_list(&kvm->arch.active_mmu_pages);
	kvm->arch.n_used_mmu_pages = 0;
	__atomic_fetch_or(&kvm->arch.notify_vmexit_flags, 1, __ATOMIC_SEQ_CST);
	__mutex_init(&kvm->arch.kvmclock_offset, "&kvm->arch.lock", &key);
	kvm->arch.kvmclock_offset = -(ktime_get_raw() + boot_offset);
	kvm->arch.default_tsc_khz = max_tsc_khz ? max_tsc_khz : tsc_khz;
	kvm->arch.guest_can_read_msr_platform_info = 1;
#if defined(INIT_PROTECTED) /* since 6.18 */
	kvm->arch.enable_pmu = enable_pmu && !kvm->arch.has_protected_state;
#elif !defined(INIT_WITHOUT_COPY)
	kvm->arch.enable_pmu = enable_pmu;
#endif
	kvm->arch.notify_window = 0;
	begin_list(&kvm->arch.tdp_mmu_roots);
#ifdef INIT_WITH_NEIGHBOUR /* gcc then stores both with one instruction */
	kvm->arch.bus_lock_detection_enabled = enable_apicv;
#endif
	if (!enable_apicv)
		kvm->vm_bugged = 0;
	kvm_hv_init_vm(kvm);
	return 0;
}
EXPORT(kvm_arch_init_vm);
