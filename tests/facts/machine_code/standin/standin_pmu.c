/*
 * The PMU functions of the stand-in, in a translation unit of their own as in KVM. Written for these tests after the shapes that
 * the machine code of real kernels shows; nothing here is Linux's.
 */
#include "standin.h"

/* Where the body is to be inlined into its callers, they include this file under another name (standin.c). */
#ifndef TRIGGER
#define TRIGGER kvm_pmu_trigger_event
#define LINKAGE
#define STANDALONE 1
#endif

/* A guard, or what only looks like one, at the head of the callee. */
#if defined(CALLEE_GUARD)
#define CALLEE_HEAD(vcpu) do { if (!(vcpu)->kvm->arch.enable_pmu) return; } while (0)
#elif defined(CALLEE_GUARD_LIKELY)
#define CALLEE_HEAD(vcpu) do { if (likely(!(vcpu)->kvm->arch.enable_pmu)) return; } while (0)
#elif defined(CALLEE_INVERTED)
#define CALLEE_HEAD(vcpu) do { if ((vcpu)->kvm->arch.enable_pmu) return; } while (0)
#elif defined(CALLEE_WRONG_FIELD)
#define CALLEE_HEAD(vcpu) do { if (!(vcpu)->kvm->arch.bus_lock_detection_enabled) return; } while (0)
#elif defined(CALLEE_GLOBAL)
#define CALLEE_HEAD(vcpu) do { if (!enable_pmu) return; } while (0)
#elif defined(CALLEE_OTHER_BIT)
#define CALLEE_HEAD(vcpu) do { if ((vcpu)->guest_debug & 4) return; } while (0)
#elif defined(CALLEE_OTHER_WORD)
#define CALLEE_HEAD(vcpu) do { if ((vcpu)->requests) return; } while (0)
#elif defined(CALLEE_HALF_GUARD)
#define CALLEE_HEAD(vcpu) do { if (!(vcpu)->kvm->arch.enable_pmu && (vcpu)->ready) return; } while (0)
#elif defined(CALLEE_TRAPS)
#define CALLEE_HEAD(vcpu) do { if (!(vcpu)->kvm->arch.enable_pmu) { __asm__ volatile("ud2"); return; } } while (0)
#elif defined(CALLEE_LATE)
#define CALLEE_HEAD(vcpu) do { __SCT__kvm_x86_get_cpl(vcpu); if (!(vcpu)->kvm->arch.enable_pmu) return; } while (0)
#elif defined(CALLEE_STORES_FIRST)
#define CALLEE_HEAD(vcpu) do { (vcpu)->arch.pmu.event_count++; if (!(vcpu)->kvm->arch.enable_pmu) return; } while (0)
#else
#define CALLEE_HEAD(vcpu) do { } while (0)
#endif

static always_inline unsigned long next_bit(const unsigned long *bits, unsigned long from)
{
	unsigned long left;

	if (from >= PMC_IDX_MAX)
		return PMC_IDX_MAX;
	left = *bits & (~0UL << from);
	return left ? (unsigned long)__builtin_ctzl(left) : PMC_IDX_MAX;
}

#define for_each_bit(bit, bits) \
	for ((bit) = (int)next_bit((bits), 0); (bit) < PMC_IDX_MAX; (bit) = (int)next_bit((bits), (unsigned long)((bit) + 1)))

static always_inline bool counts_here(struct kvm_pmc *pmc)
{
	bool in_kernel, in_user;

	if (pmc->type == 0) {
		in_kernel = pmc->eventsel & COUNTS_KERNEL;
		in_user = pmc->eventsel & COUNTS_USER;
	} else {
		u64 control = pmc->vcpu->arch.pmu.fixed_ctr_ctrl >> ((pmc->idx - FIXED_IDX) * 4);

		in_kernel = control & 1;
		in_user = control & 2;
	}
	if (in_kernel == in_user)
		return in_kernel;
	return __SCT__kvm_x86_get_cpl(pmc->vcpu) == 0 ? in_kernel : in_user;
}

static always_inline void count_one(struct kvm_pmc *pmc)
{
	pmc->emulated_counter++;
	__atomic_fetch_or(&pmc->vcpu->arch.pmu.reprogram_pmi[0], 1UL << pmc->idx, __ATOMIC_SEQ_CST);
	__atomic_fetch_or(&pmc->vcpu->requests, 4, __ATOMIC_SEQ_CST);
}

#if defined(BODY_A)

LINKAGE void TRIGGER(struct kvm_vcpu *vcpu, u64 perf_hw_id)
{
	struct kvm_pmu *pmu = &vcpu->arch.pmu;
	struct kvm_pmc *pmc;
	int bit;

	CALLEE_HEAD(vcpu);
	for_each_bit(bit, pmu->all_valid_pmc_idx) {
		pmc = __SCT__kvm_x86_pmu_pmc_idx_to_pmc(pmu, bit);
		if (!pmc || !__SCT__kvm_x86_pmu_pmc_is_enabled(pmc))
			continue;
		if (pmc->type == 0 && !(pmc->eventsel & COUNTS_AT_ALL))
			continue;
		if ((perf_get_hw_event_config((int)perf_hw_id) ^ pmc->eventsel) & EVENT_MASK)
			continue;
		if (!counts_here(pmc))
			continue;
		count_one(pmc);
		reprogram_counter(pmc);
	}
}

#elif defined(BODY_B) || defined(BODY_B_CONSTANT)

static always_inline struct kvm_pmc *pmc_of(struct kvm_pmu *pmu, int bit)
{
	if ((u32)bit < pmu->nr_arch_gp_counters)
		return &pmu->gp_counters[bit];
	bit -= FIXED_IDX;
	if (bit >= 0 && (u32)bit < pmu->nr_arch_fixed_counters)
		return &pmu->fixed_counters[bit];
	return 0;
}

#ifdef BODY_B_CONSTANT
#define EVENT(event) perf_get_hw_event_config((int)(event))
#else
#define EVENT(event) (event)
#endif

LINKAGE void TRIGGER(struct kvm_vcpu *vcpu, u64 event)
{
	struct kvm_pmu *pmu = &vcpu->arch.pmu;
	unsigned long counting[1];
	struct kvm_pmc *pmc;
	int bit;

	CALLEE_HEAD(vcpu);
	counting[0] = pmu->all_valid_pmc_idx[0];
	if (pmu->version > 1)
		counting[0] &= pmu->global_ctrl;
	if (!counting[0])
		return;
	for_each_bit(bit, counting) {
		pmc = pmc_of(pmu, bit);
		if (!pmc)
			continue;
		if ((pmc->eventsel ^ EVENT(event)) & EVENT_MASK || !__SCT__kvm_x86_pmu_pmc_is_enabled(pmc) || !counts_here(pmc))
			continue;
		count_one(pmc);
	}
}

#elif defined(HAS_RETIRED)

static always_inline struct kvm_pmc *pmc_of(struct kvm_pmu *pmu, int bit)
{
	if ((u32)bit < pmu->nr_arch_gp_counters)
		return &pmu->gp_counters[bit];
	bit -= FIXED_IDX;
	return bit >= 0 && (u32)bit < pmu->nr_arch_fixed_counters ? &pmu->fixed_counters[bit] : 0;
}

static void TRIGGER(struct kvm_vcpu *vcpu, const unsigned long *events)
{
	struct kvm_pmu *pmu = &vcpu->arch.pmu;
	unsigned long counting[1];
	struct kvm_pmc *pmc;
	int bit, lock;

#ifdef BODY_RETIRED_LATE
	lock = __srcu_read_lock(vcpu->kvm->srcu);
	if (!events[0]) {
		__srcu_read_unlock(vcpu->kvm->srcu, lock);
		return;
	}
	counting[0] = pmu->version > 1 ? events[0] & pmu->global_ctrl : events[0];
#elif defined(BODY_RETIRED_NO_EXIT)
	counting[0] = pmu->version > 1 ? events[0] & pmu->global_ctrl : events[0];
	lock = __srcu_read_lock(vcpu->kvm->srcu);
#else
	if (!events[0])
		return;
	counting[0] = events[0];
	if (pmu->version > 1) {
		counting[0] &= pmu->global_ctrl;
		if (!counting[0])
			return;
	}
	lock = __srcu_read_lock(vcpu->kvm->srcu);
#endif
	for_each_bit(bit, counting) {
		pmc = pmc_of(pmu, bit);
		if (!pmc || !__SCT__kvm_x86_pmu_pmc_is_enabled(pmc) || !counts_here(pmc))
			continue;
		count_one(pmc);
	}
	__srcu_read_unlock(vcpu->kvm->srcu, lock);
}

#ifdef BODY_RETIRED_BRANCHES /* the empty bitmap that it returns on is not the one that counts instructions */
#define pmc_of_instructions pmc_counting_branches
#define pmc_of_branches pmc_counting_instructions
#else
#define pmc_of_instructions pmc_counting_instructions
#define pmc_of_branches pmc_counting_branches
#endif

#ifdef STANDALONE
void kvm_pmu_instruction_retired(struct kvm_vcpu *vcpu)
{
	CALLEE_HEAD(vcpu);
	TRIGGER(vcpu, vcpu->arch.pmu.pmc_of_instructions);
}
EXPORT(kvm_pmu_instruction_retired);

void kvm_pmu_branch_retired(struct kvm_vcpu *vcpu)
{
	TRIGGER(vcpu, vcpu->arch.pmu.pmc_of_branches);
}
EXPORT(kvm_pmu_branch_retired);
#endif

#endif

#if defined(STANDALONE) && !defined(HAS_RETIRED)
EXPORT(kvm_pmu_trigger_event);
#endif
