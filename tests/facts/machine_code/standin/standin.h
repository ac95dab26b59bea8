/*
 * The structures of the stand-in: the names that KVM uses for what the reading of machine code looks at, filler for the rest.
 * Written for these tests; nothing here is Linux's. The builder chooses body, variant and PADDING by macros (README.md).
 */
#ifndef STANDIN_H
#define STANDIN_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef _Bool bool;

#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)
#define noinline __attribute__((noinline))
#define always_inline inline __attribute__((always_inline))
#define cold __attribute__((cold))
#define READ_ONCE(place) (*(const volatile __typeof__(place) *)&(place))
#define WRITE_ONCE(place, value) (*(volatile __typeof__(place) *)&(place) = (value))
#define barrier() __asm__ volatile("" ::: "memory")

/* Something else of the module refers to a function, so that it exists on its own. */
#define EXPORT(name) const void *const exported_##name __attribute__((used, section("__ksymtab_gpl"))) = (const void *)&(name)

/* How far the fields lie from the beginning of their structure: another distance in every build. */
#ifndef PADDING
#define PADDING 0
#endif

#if defined(BODY_RETIRED) || defined(BODY_RETIRED_LATE) || defined(BODY_RETIRED_NO_EXIT) || defined(BODY_RETIRED_BRANCHES)
#define HAS_RETIRED 1
#endif

#define PERF_COUNT_HW_INSTRUCTIONS 1
#define X86_EFLAGS_TF 0x100
#define PMC_IDX_MAX 64
#define FIXED_IDX 32
#define GP_COUNTERS 8
#define FIXED_COUNTERS 3
#define COUNTS_USER (1UL << 16)
#define COUNTS_KERNEL (1UL << 17)
#define COUNTS_AT_ALL (1UL << 22)
#define EVENT_MASK 0xf0000ffffUL

struct kvm;
struct kvm_vcpu;

struct kvm_pmc {
	int type;
	u8 idx;
	bool is_paused;
	u64 counter;
	u64 emulated_counter;
	u64 eventsel;
	void *perf_event;
	struct kvm_vcpu *vcpu;
};

struct kvm_pmu {
	u8 version;
	u32 nr_arch_gp_counters;
	u32 nr_arch_fixed_counters;
	u64 fixed_ctr_ctrl;
	u64 global_ctrl;
	u64 global_status;
	struct kvm_pmc gp_counters[GP_COUNTERS];
	struct kvm_pmc fixed_counters[FIXED_COUNTERS];
	unsigned long reprogram_pmi[1];
	unsigned long all_valid_pmc_idx[1];
	unsigned long pmc_in_use[1];
#ifdef HAS_RETIRED
	unsigned long pmc_counting_instructions[1];
	unsigned long pmc_counting_branches[1];
#endif
	bool need_cleanup;
	u8 event_count;
};

struct kvm_vcpu_arch {
	u64 regs[17];
	u64 cr0, cr2, cr3, cr4;
	bool tpr_access_reporting;
	u8 state[400 + 8 * PADDING];
	struct kvm_pmu pmu;
	bool pdptrs_from_userspace;
};

struct kvm_run {
	u32 exit_reason;
	u64 dr6;
	u64 pc;
	u32 exception;
};

struct kvm_vcpu {
	struct kvm *kvm;
	int cpu;
	int vcpu_id;
	u64 requests;
	unsigned long guest_debug;
	struct kvm_run *run;
	bool preempted;
	bool ready;
	struct kvm_vcpu *other;
	void (*tell_pmu)(struct kvm_vcpu *vcpu, u64 event);
	struct kvm_vcpu_arch arch;
};

struct kvm_list {
	struct kvm_list *next, *previous;
};

struct kvm_arch {
	u64 n_used_mmu_pages;
	struct kvm_list active_mmu_pages;
	u8 mmu[256 + 64 * PADDING];
	u64 kvmclock_offset;
	u32 default_tsc_khz;
	bool has_protected_state;
	bool guest_can_read_msr_platform_info;
	bool exception_payload_enabled;
	bool triple_fault_event;
	bool bus_lock_detection_enabled;
	bool enable_pmu;
	bool exit_on_emulation_error;
	u32 notify_window;
	u64 notify_vmexit_flags;
	struct kvm_list tdp_mmu_roots;
};

struct kvm {
	u32 mmu_lock;
	struct kvm_vcpu *vcpus[4];
	u8 memslots[512 + 16 * PADDING];
	u8 srcu[64];
	struct kvm_arch arch;
	u32 max_halt_poll_ns;
	bool vm_bugged;
};

struct kvm_pmu_eventsel {
	u64 INSTRUCTIONS_RETIRED;
	u64 BRANCH_INSTRUCTIONS_RETIRED;
};

/* Static calls, as they look in a file: direct calls to trampolines. */
unsigned long __SCT__kvm_x86_get_rflags(struct kvm_vcpu *vcpu);
int __SCT__kvm_x86_skip_emulated_instruction(struct kvm_vcpu *vcpu);
int __SCT__kvm_x86_get_cpl(struct kvm_vcpu *vcpu);
int __SCT__kvm_x86_vm_init(struct kvm *kvm);
struct kvm_pmc *__SCT__kvm_x86_pmu_pmc_idx_to_pmc(struct kvm_pmu *pmu, int index);
bool __SCT__kvm_x86_pmu_pmc_is_enabled(struct kvm_pmc *pmc);

/* What the kernel itself has. */
u64 perf_get_hw_event_config(int event);
int __srcu_read_lock(void *srcu);
void __srcu_read_unlock(void *srcu, int index);
u64 ktime_get_raw(void);
void __mutex_init(void *lock, const char *name, void *key);
int kvm_page_track_init(struct kvm *kvm);
int kvm_mmu_init_vm(struct kvm *kvm);
void kvm_mmu_uninit_vm(struct kvm *kvm);
void kvm_hv_init_vm(struct kvm *kvm);
unsigned long kvm_get_linear_rip(struct kvm_vcpu *vcpu);
void kvm_queue_exception(struct kvm_vcpu *vcpu, u32 vector, u64 payload);
void reprogram_counter(struct kvm_pmc *pmc);
void trace_note(struct kvm_vcpu *vcpu) cold;
void look_at_vcpu(struct kvm_vcpu **vcpu);
void look_at_flag(bool *flag);
void look_at_last(int a, int b, int c, int d, int e, int f, bool *flag);

extern bool enable_pmu;
extern bool enable_apicv;
extern struct kvm_pmu_eventsel kvm_pmu_eventsel;

#ifdef HAS_RETIRED
void kvm_pmu_instruction_retired(struct kvm_vcpu *vcpu);
void kvm_pmu_branch_retired(struct kvm_vcpu *vcpu);
#else
void kvm_pmu_trigger_event(struct kvm_vcpu *vcpu, u64 event);
#endif

#endif
