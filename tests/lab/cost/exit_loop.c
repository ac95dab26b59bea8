/*
 * What a VM exit takes, counted without the product: a guest of our own on /dev/kvm that does one thing over and over.
 *
 *     exit_loop cpuid|msr|bare on|off ITERATIONS ROUNDS
 *
 * prints the ticks of the TSC that a guest took for ITERATIONS and for twice as many, a line a round, and at last how many exits the
 * loop made:
 *
 *     ticks 1231507 2459758
 *     exits 24000
 *
 * The host reads its own TSC before and after KVM_RUN, of a guest that does ITERATIONS and of one that does twice as many. What both take
 * to be entered and left cancels out, so that no clock of the guest is needed. "off" clears kvm->arch.enable_pmu, as QEMU 11 does for
 * pmu=off.
 * "bare" is cpuid in a guest that was given no CPUID; the others are given the leaves that decide how many counters they have.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <x86intrin.h>

#ifndef KVM_CAP_PMU_CAPABILITY /* since Linux 5.18 */
#define KVM_CAP_PMU_CAPABILITY 212
#define KVM_PMU_CAP_DISABLE (1 << 0)
#endif

enum { PAGE = 4096, ENTRY = 0x1000, MEMORY = 16 * PAGE, MOST_LEAVES = 256, PORT = 0xf1 };

/* Real mode; the host puts the number of iterations into EDI, which neither instruction changes. */
static const uint8_t cpuid_code[] = {
    0x66, 0x31, 0xc0, /* again: xor eax, eax */
    0x0f, 0xa2,       /* cpuid */
    0x66, 0x4f,       /* dec edi */
    0x75, 0xf7,       /* jnz again */
    0xe6, PORT,       /* out PORT, al */
};
static const uint8_t msr_code[] = {
    0x66, 0xb9, 0x1b, 0, 0, 0, /* again: mov ecx, IA32_APIC_BASE */
    0x0f, 0x32,                /* rdmsr */
    0x66, 0x4f,                /* dec edi */
    0x75, 0xf4,                /* jnz again */
    0xe6, PORT,                /* out PORT, al */
};

struct leaves {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[MOST_LEAVES];
};

struct guest {
    int vcpu;
    struct kvm_run *run;
};

static void fail(const char *what)
{
    fprintf(stderr, "exit_loop: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int control(int descriptor, unsigned long request, const void *argument, const char *what)
{
    int result = ioctl(descriptor, request, argument);
    if (result < 0)
        fail(what);
    return result;
}

/* The leaves that decide how many counters a guest has, as KVM supports them, and no others: with more, CPUID itself takes longer. */
static void give_leaves(int kvm, int vcpu)
{
    static struct leaves supported, given;
    supported.head.nent = MOST_LEAVES;
    control(kvm, KVM_GET_SUPPORTED_CPUID, &supported, "KVM_GET_SUPPORTED_CPUID");
    for (uint32_t i = 0; i < supported.head.nent; i++) {
        uint32_t leaf = supported.entries[i].function;
        if (leaf == 0xa || leaf == 0x80000001 || leaf == 0x80000022)
            given.entries[given.head.nent++] = supported.entries[i];
    }
    control(vcpu, KVM_SET_CPUID2, &given, "KVM_SET_CPUID2");
}

static struct guest make_guest(const uint8_t *code, size_t size, int pmu_off, int bare)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        fail("/dev/kvm");
    int machine = control(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    if (pmu_off) {
        struct kvm_enable_cap off = {.cap = KVM_CAP_PMU_CAPABILITY, .args = {KVM_PMU_CAP_DISABLE}};
        control(machine, KVM_ENABLE_CAP, &off, "KVM_CAP_PMU_CAPABILITY");
    }
    uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("memory of the guest");
    memcpy(memory + ENTRY, code, size);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (uint64_t)(uintptr_t)memory};
    control(machine, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");

    struct guest guest;
    guest.vcpu = control(machine, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    int length = control(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    guest.run = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, guest.vcpu, 0);
    if (guest.run == MAP_FAILED)
        fail("struct kvm_run");
    if (!bare)
        give_leaves(kvm, guest.vcpu);
    struct kvm_sregs special;
    control(guest.vcpu, KVM_GET_SREGS, &special, "KVM_GET_SREGS");
    special.cs.base = special.cs.selector = 0;
    control(guest.vcpu, KVM_SET_SREGS, &special, "KVM_SET_SREGS");
    return guest;
}

static uint64_t ticks_of(const struct guest *guest, uint64_t iterations)
{
    struct kvm_regs registers = {.rip = ENTRY, .rflags = 2, .rdi = iterations};
    control(guest->vcpu, KVM_SET_REGS, &registers, "KVM_SET_REGS");
    uint64_t begin = __rdtsc();
    control(guest->vcpu, KVM_RUN, NULL, "KVM_RUN");
    uint64_t end = __rdtsc();
    if (guest->run->exit_reason != KVM_EXIT_IO || guest->run->io.port != PORT) {
        fprintf(stderr, "exit_loop: the guest did not come to its end: exit reason %u\n", guest->run->exit_reason);
        exit(1);
    }
    return end - begin;
}

int main(int count, char **words)
{
    long iterations = count == 5 ? atol(words[3]) : 0, rounds = count == 5 ? atol(words[4]) : 0;
    if (iterations < 1 || rounds < 1) {
        fprintf(stderr, "usage: exit_loop cpuid|msr|bare on|off ITERATIONS ROUNDS\n");
        return 64;
    }
    int off = strcmp(words[2], "off") == 0, msr = strcmp(words[1], "msr") == 0, bare = strcmp(words[1], "bare") == 0;
    struct guest guest = msr ? make_guest(msr_code, sizeof msr_code, off, bare) : make_guest(cpuid_code, sizeof cpuid_code, off, bare);
    for (long round = 0; round < rounds; round++) {
        uint64_t once = ticks_of(&guest, iterations), twice = ticks_of(&guest, 2 * iterations);
        printf("ticks %llu %llu\n", (unsigned long long)once, (unsigned long long)twice);
    }
    printf("exits %ld\n", 3 * iterations * rounds);
    return 0;
}
