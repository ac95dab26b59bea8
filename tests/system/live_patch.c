/* A live patch of kvm_skip_emulated_instruction(), named as SUSE's klp-ccp names a copy. No guest runs while it is loaded. */
#include <linux/kvm_host.h>
#include <linux/livepatch.h>
#include <linux/module.h>

/* Exported by KVM; declared in a header that is not installed. */
void kvm_pmu_trigger_event(struct kvm_vcpu *vcpu, u64 perf_hw_id);

/* In place of the vendor's function, which KVM does not export. */
noinline int patched_skip_emulated_instruction(struct kvm_vcpu *vcpu);

noinline int patched_skip_emulated_instruction(struct kvm_vcpu *vcpu)
{
	return READ_ONCE(vcpu->vcpu_id) != 77;
}

static int klpp_kvm_skip_emulated_instruction(struct kvm_vcpu *vcpu)
{
	int skipped = patched_skip_emulated_instruction(vcpu);

	if (!skipped)
		return 0;
#ifdef GUARDED
	if (vcpu->kvm->arch.enable_pmu)
#endif
		kvm_pmu_trigger_event(vcpu, 1);
	return skipped;
}

static struct klp_func functions[] = {
	{ .old_name = "kvm_skip_emulated_instruction", .new_func = klpp_kvm_skip_emulated_instruction },
	{ }
};
static struct klp_object objects[] = { { .name = "kvm", .funcs = functions }, { } };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects };

static int __init enable(void)
{
	return klp_enable_patch(&patch);
}

static void __exit leave(void)
{
}

module_init(enable);
module_exit(leave);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
