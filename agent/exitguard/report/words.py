"""What every state, verdict, link and action means, in plain words: a label for tables, and a sentence or two for `explain`.

One dictionary an enumeration, since members of different enumerations may share a name: there are six kinds of `unknown`.
"""

from dataclasses import dataclass
from enum import StrEnum

from exitguard.model.domain import OwnerKind
from exitguard.model.finding import Verdict
from exitguard.model.host import MitigationClass, TargetKind
from exitguard.model.instance import PmuOrigin
from exitguard.model.kernel import Body, EvidenceMethod, KernelState
from exitguard.model.plan import Approval, LeftAloneBecause, Mode
from exitguard.model.pmu import ChainState, LinkName, NextAction, PmuSetting
from exitguard.model.run import EventKind, HostCheck, StepOutcome


@dataclass(frozen=True)
class Words:
    """`label` fits a table's column, `meaning` stands alone as an explanation."""

    label: str
    meaning: str


_CHAIN_STATES: dict[StrEnum, Words] = {
    ChainState.NOT_APPLICABLE: Words(
        "not applicable",
        "The question does not arise for this domain: it is emulated (TCG), a TDX guest, not x86, or no guest of KVM at all.",
    ),
    ChainState.OPT_OUT_VIOLATED: Words(
        "opt-out violated",
        "The guest's owner asked for a PMU, by an element, a flavor or an image, and does not get one: kvm->arch.enable_pmu is "
        "cleared for this guest. Performance counters in the guest silently do not work.",
    ),
    ChainState.MOOT: Words(
        "nothing to save",
        "There is nothing to save on this kernel, whatever the guest's PMU setting is: on a VM exit it makes no call into the virtual "
        "PMU, or one that returns at once. Nothing to do.",
    ),
    ChainState.NOT_RUNNING: Words(
        "not running",
        "The domain is off and has no managed save, so nothing runs that could be in force. Its definition is still judged: it "
        "decides the next start.",
    ),
    ChainState.OPTED_OUT: Words(
        "opted out",
        "The guest's owner asked for a PMU, and has it. This is a wish to be honoured, never to be remedied.",
    ),
    ChainState.PENDING_RESTART: Words(
        "pending restart",
        "The definition says off, this run still has the PMU on. The PMU is guest ABI: it changes only at a cold start, when the "
        "owner does one. A reboot inside the guest or a live migration does not change it.",
    ),
    ChainState.ON: Words(
        "PMU on",
        "The guest has a PMU because nobody said otherwise: it is on in the definition and in this run, by default and not by "
        "anybody's wish. Every VM exit that skips an instruction pays for it.",
    ),
    ChainState.NOT_PROPAGATED: Words(
        "not propagated",
        "The run was started with the PMU off, but QEMU did not tell KVM: kvm->arch.enable_pmu is still set, so the guard never "
        "fires. QEMU up to 10.2 hides only the CPUID leaf; from 11.0 on, or with a backport, it clears the flag.",
    ),
    ChainState.UNGUARDED: Words(
        "kernel unguarded",
        "The guest's PMU is off in full, but the running kernel has no guard and still does the PMU work on every skipped instruction.",
    ),
    ChainState.REVERTS: Words(
        "reverts",
        "The PMU is off in this run and comes back at the next start, because the definition, or the owner that writes it, says so.",
    ),
    ChainState.UNKNOWN: Words(
        "unknown",
        "No link of the chain is known to be broken, and at least one could not be seen. Not a pass: the reason names what was not seen.",
    ),
    ChainState.EFFECTIVE: Words(
        "effective",
        "Every link holds: defined off, running off, known to KVM, guarded by the kernel, and kept by the owner. The saving is real.",
    ),
}

_KERNEL_STATES: dict[StrEnum, Words] = {
    KernelState.GUARDED: Words(
        "guarded",
        "The kernel asks kvm->arch.enable_pmu before it tells the virtual PMU of a skipped instruction: a PMU-off guest pays nothing.",
    ),
    KernelState.EQUIVALENT: Words(
        "equivalent",
        "The kernel makes the call, and the callee returns at once when no counter counts instructions (Linux 6.18 and later).",
    ),
    KernelState.NOT_AFFECTED: Words(
        "not affected", "The kernel has no such call: it is older than 5.17 (commit 9cd803d496e7), or its vendor never took that change."
    ),
    KernelState.AFFECTED: Words(
        "affected", "On every skipped instruction the kernel tells the virtual PMU that one retired, even where no guest counter listens."
    ),
    KernelState.UNKNOWN: Words(
        "unknown",
        "The evidence that could be seen does not settle what this kernel does. Vendors backport: the version alone never decides.",
    ),
}

_BODIES: dict[StrEnum, Words] = {
    Body.A: Words(
        "body A",
        "The callee walks every counter of the vCPU (Linux 5.17 to 6.8). Here a PMU switched off pays only together with the guard.",
    ),
    Body.B: Words(
        "body B",
        "The callee builds bitmaps on the stack first (Linux 6.9 to 6.17). Here PMU off pays by itself, and the guard adds to it.",
    ),
}

_VERDICTS: dict[StrEnum, Words] = {
    Verdict.PASS: Words("pass", "What the rule demands was observed to be so."),
    Verdict.FAIL: Words("fail", "What the rule demands was observed not to be so."),
    Verdict.WAIVED: Words(
        "waived", "The rule fails, and a waiver that has not expired answers for it: who approved it, why, and until when."
    ),
    Verdict.NOT_APPLICABLE: Words("not applicable", "The rule has nothing to say about this subject."),
    Verdict.UNKNOWN: Words(
        "unknown", "What would decide the rule could not be seen. Neither a pass nor a fail; `exitguard doctor` says what would show it."
    ),
    Verdict.ERROR: Words(
        "error",
        "The check itself broke: a defect of exitguard, not a statement about the host. Of a waiver: its entry in the file has a fault, "
        "and is not applied.",
    ),
}

_LINKS: dict[StrEnum, Words] = {
    LinkName.DEFINED: Words("defined", "The definition says that the next start has the PMU off."),
    LinkName.RUNNING: Words("running", "This run was started with the PMU off; a managed save counts as the run that it holds."),
    LinkName.PROPAGATED: Words(
        "propagated",
        "KVM knows: kvm->arch.enable_pmu is cleared for this guest, by QEMU 11.0 or a backport, or for all by kvm.enable_pmu=N.",
    ),
    LinkName.KERNEL: Words("kernel", "The running kernel has the guard."),
    LinkName.KEPT: Words("kept", "Whoever owns the definition (Nova, or the user of virsh) will not undo it at the next start."),
}

_NEXT_ACTIONS: dict[StrEnum, Words] = {
    NextAction.NONE: Words("-", "Nothing to do."),
    NextAction.OBSERVE: Words("look closer", "Something could not be seen: `exitguard doctor` says what, why, and what would show it."),
    NextAction.ASK_OWNER: Words(
        "ask the owner", "Ask whoever owns the definition: another manager writes it, or its owner asked for the PMU."
    ),
    NextAction.SET_PMU_OFF: Words(
        "define PMU off", "Set <pmu state='off'/> in the persistent definition; it takes effect at the guest's next cold start."
    ),
    NextAction.SET_PMU_OFF_IN_NOVA: Words(
        "PMU off in Nova",
        "Set hw:pmu=false on the flavor or hw_pmu=false on the instance's image property; a virsh edit would be lost, Nova owns the XML.",
    ),
    NextAction.RESTART_GUEST: Words(
        "cold start", "Cold-start the guest when its owner next does: stop and start, not a reboot inside the guest."
    ),
    NextAction.UPGRADE_QEMU: Words(
        "upgrade QEMU",
        "Install a QEMU that clears kvm->arch.enable_pmu (11.0, or a backport); a guest uses it from its next "
        "cold start. Check machine types and migration first.",
    ),
    NextAction.INSTALL_GUARDED_KERNEL: Words(
        "install kernel", "Install a kernel that has the guard, or is equivalent (6.18 and later), and boot it in a maintenance window."
    ),
    NextAction.BOOT_INSTALLED_KERNEL: Words(
        "reboot host", "A kernel that has the guard, or is equivalent, is installed but not running: boot it in a maintenance window."
    ),
}

_PMU_SETTINGS: dict[StrEnum, Words] = {
    PmuSetting.OFF: Words("off", "The definition says <pmu state='off'/>."),
    PmuSetting.ON: Words("on", "The definition says <pmu state='on'/>, or <pmu/>: somebody asked for it."),
    PmuSetting.DEFAULT_OFF: Words(
        "off (default)", "The definition is silent, and QEMU's default for its CPU mode (host-model, custom, none) is off."
    ),
    PmuSetting.DEFAULT_ON: Words(
        "on (default)", "The definition is silent, and QEMU's default for its CPU mode (host-passthrough, maximum) is on."
    ),
    PmuSetting.UNKNOWN: Words("unknown", "The definition could not be read, or does not say enough to resolve the default."),
    PmuSetting.NONE: Words("-", "There is no such definition, or no such run."),
}

_OWNERS: dict[StrEnum, Words] = {
    OwnerKind.NOVA: Words("Nova", "OpenStack Nova writes the definition anew at every hard reboot and start."),
    OwnerKind.LIBVIRT: Words("libvirt", "Nobody else claims the definition: whoever uses virsh or virt-manager owns it."),
    OwnerKind.OTHER: Words("other", "Another manager writes the definition."),
    OwnerKind.UNKNOWN: Words("unknown", "Who writes the definition could not be found out; it is not touched."),
}

_MITIGATION_CLASSES: dict[StrEnum, Words] = {
    MitigationClass.HEAVY_RETURN_TAX: Words(
        "heavy return tax", "Each return pays Safe RET or an untrained return thunk (AMD Zen 1 to 4): the call is dear here."
    ),
    MitigationClass.INTEL_RETURN_TAX: Words("Intel return tax", "Each return pays call-depth stuffing or an aligned return thunk (Intel)."),
    MitigationClass.INDIRECT_CALL_TAX: Words("indirect call tax", "Each indirect call pays a retpoline."),
    MitigationClass.LOW: Words("low", "None of the dear mitigations: Enhanced or Automatic IBRS, or none at all."),
}

_TARGETS: dict[StrEnum, Words] = {
    TargetKind.LOCAL: Words("this machine", "This machine, and its libvirt daemon."),
    TargetKind.EMBEDDED: Words("test driver", "The embedded test driver of libvirt: made-up domains, and this machine's kernel."),
    TargetKind.REMOTE: Words("remote libvirt", "A libvirt daemon elsewhere: its kernel, KVM and processes cannot be seen from here."),
    TargetKind.SYSROOT: Words("file tree", "A host's files below a directory; nothing of this machine is read."),
}

_METHODS: dict[StrEnum, Words] = {
    EvidenceMethod.MACHINE_CODE: Words("machine code", "The instructions of the function itself, from the module's file."),
    EvidenceMethod.BUILD_ID: Words("build-id", "A build that was decided once, by its file, and is recognised by its build-id."),
    EvidenceMethod.CHANGELOG: Words("changelog", "The package's changelog names the patch."),
    EvidenceMethod.SYMBOLS: Words("symbols", "Which functions the running kernel has."),
    EvidenceMethod.VERSION: Words("version", "The version of the kernel: the weakest evidence, since vendors backport."),
}

_MODES: dict[StrEnum, Words] = {
    Mode.REPORT: Words("report", "Plans are shown, and none is carried out."),
    Mode.OPPORTUNISTIC: Words(
        "opportunistic",
        "Only what disturbs nobody is done, at any time; it takes effect when a guest's owner, or whoever reboots the host, starts anew.",
    ),
    Mode.WINDOWED: Words("windowed", "As opportunistic, but steps begin only inside a maintenance window that the policy declares."),
}

_APPROVALS: dict[StrEnum, Words] = {
    Approval.REQUIRED: Words("required", "A person names the plan's hash with `exitguard approve` before anything of it is carried out."),
    Approval.NONE: Words("none", "What the policy allows is carried out without anybody's word."),
}

_ORIGINS: dict[StrEnum, Words] = {
    PmuOrigin.FLAVOR: Words(
        "flavor", "The instance's own copy of its flavor says hw:pmu, and its image nothing. The copy changes only with a resize."
    ),
    PmuOrigin.IMAGE: Words(
        "image",
        "The instance's own copy of its image's properties says hw_pmu, and its flavor nothing. The copy changes only with a rebuild.",
    ),
    PmuOrigin.FLAVOR_AND_IMAGE: Words("flavor and image", "The instance's copies of flavor and image say the same about the PMU."),
    PmuOrigin.REMEDY: Words(
        "remedy",
        "The remedy nova_instance_pmu_off set hw_pmu=false on the instance's stored image properties. Nova keeps it until the instance is "
        "rebuilt onto another image.",
    ),
    PmuOrigin.CLOUD_DEFAULT: Words(
        "cloud default",
        "Flavor and image are silent, and the Nova of this compute host writes <pmu state='off'/> by itself, as its instances prove. Only "
        "vendors' builds do that.",
    ),
    PmuOrigin.QEMU_DEFAULT: Words(
        "QEMU default", "Flavor and image are silent, Nova writes no element, and QEMU decides by the CPU mode: nobody chose it."
    ),
    PmuOrigin.BEHIND_NOVA: Words(
        "behind Nova",
        "The definition says what Nova did not write: somebody edited it on the host. The next hard reboot, or stop and start, drops it.",
    ),
    PmuOrigin.CONFLICT: Words(
        "conflict",
        "Flavor and image contradict each other, which Nova refuses: the next start fails, destroys the domain and leaves the instance "
        "SHUTOFF. Until then it runs, and should not be stopped or hard rebooted.",
    ),
    PmuOrigin.UNKNOWN: Words(
        "unknown",
        "Where the instance's PMU setting comes from could not be told: its reason says what was not seen, and what would show it.",
    ),
}

_LEFT_ALONE: dict[StrEnum, Words] = {
    LeftAloneBecause.NOVA_OWNED: Words(
        "Nova owns it", "Nova writes this definition anew at each hard reboot: it is set in Nova, not here."
    ),
    LeftAloneBecause.OTHER_OWNER: Words(
        "other owner", "Another manager writes this definition: it is set there, and a change here would be lost."
    ),
    LeftAloneBecause.UNKNOWN_OWNER: Words(
        "owner unknown", "Who writes this definition cannot be told, so nobody can be asked to keep a change."
    ),
    LeftAloneBecause.WAIVED: Words("waived", "A failure of this subject is waived: whoever answers for it wants it left as it is."),
    LeftAloneBecause.OPTED_OUT: Words("opted out", "Somebody asked for this guest's PMU, and it keeps it."),
    LeftAloneBecause.LOCKED: Words("locked", "An operator's mark, or Nova's lock, says that this domain is not to be touched."),
    LeftAloneBecause.UNKNOWN: Words("unknown", "What a step would rest on could not be seen; `exitguard doctor` says what would show it."),
    LeftAloneBecause.NOT_ALLOWED: Words(
        "not allowed", "The policy does not allow this remedy: it would have to be named under remedies.allowed."
    ),
    LeftAloneBecause.NOT_PINNED: Words("not pinned", "The policy pins no package version for this host, or one that would not help."),
    LeftAloneBecause.NEEDS_REQUEST: Words(
        "needs a request", "A window, a preflight or an assurance is missing that only the operator can give."
    ),
    LeftAloneBecause.GUEST_WOULD_LOSE: Words(
        "guest would lose", "The change is for every guest of the host, and one that asked for its PMU is there, or may arrive."
    ),
    LeftAloneBecause.MAINTENANCE: Words("in maintenance", "An operator has marked the host as in maintenance: nothing is begun on it."),
    LeftAloneBecause.NOT_REACHABLE: Words(
        "not reachable", "It cannot be changed from here: a remote libvirt, a file tree, or a transient domain without a definition."
    ),
    LeftAloneBecause.NOT_STOPPED: Words(
        "not stopped", "It can be set only while its owner has the instance stopped: a later plan has it when that is so."
    ),
    LeftAloneBecause.WOULD_CONFLICT: Words(
        "would conflict", "Flavor and image would contradict each other, and Nova would refuse to start the instance."
    ),
    LeftAloneBecause.PENDING: Words("pending", "It is done already, and waits for a restart that somebody else chooses."),
    LeftAloneBecause.NO_REMEDY: Words("no remedy", "The rule fails and names no remedy that this version has."),
}

_STEP_OUTCOMES: dict[StrEnum, Words] = {
    StepOutcome.DONE: Words("done", "The step was carried out, and seen to be so."),
    StepOutcome.ALREADY: Words("already", "There was nothing to change: it was so already."),
    StepOutcome.CHANGED_SINCE: Words("changed since", "What the step rested on is no longer so: it was not carried out."),
    StepOutcome.NOT_DONE: Words("not done", "Nobody saw how the step ended, and a fresh look found that it never took effect."),
    StepOutcome.REFUSED: Words("refused", "The step's own checks on the host refused it: nothing was changed."),
    StepOutcome.FAILED: Words("failed", "The step was begun and did not end well: what it changed has to be looked at."),
    StepOutcome.UNREACHABLE: Words(
        "unreachable", "The host could not be reached, or was lost on the way: what was changed has to be looked at."
    ),
    StepOutcome.TIMED_OUT: Words("timed out", "The step did not end in its time and was ended: what it changed has to be looked at."),
}

_HOST_CHECKS: dict[StrEnum, Words] = {
    HostCheck.READY: Words("ready", "A fresh look found at least one step of the host still true."),
    HostCheck.LEFT: Words("left", "A fresh look found nothing left to do on the host: done already, changed since, or in maintenance."),
    HostCheck.FAILED: Words("failed", "The host could not be looked at, so nothing was begun on it."),
}

_EVENT_KINDS: dict[StrEnum, Words] = {
    EventKind.STARTED: Words("started", "The run exists; nothing has been done."),
    EventKind.BATCH_STARTED: Words("batch started", "These hosts of a wave are in flight from now on."),
    EventKind.HOST_CHECKED: Words("host checked", "A host was observed anew before its steps."),
    EventKind.STEPS_STARTED: Words("steps started", "Steps are about to be carried out: written down before it is done."),
    EventKind.STEP_FINISHED: Words("step finished", "A step ended, with an outcome."),
    EventKind.STEP_SETTLED: Words("step settled", "A step whose end nobody saw was found done or not done by a fresh look."),
    EventKind.HOST_VERIFIED: Words("host verified", "A host was observed anew after its steps."),
    EventKind.WAVE_PASSED: Words("wave passed", "Every host of the wave is through, and the budget for failures is kept."),
    EventKind.STOPPED: Words(
        "stopped", "The rollout stopped by itself: more hosts failed than the budget allows. It starts nothing any more."
    ),
    EventKind.PAUSED: Words("paused", "An operator asked for a pause: what was in flight ended, and nothing more is started."),
    EventKind.RESUMED: Words("resumed", "An operator let the rollout go on."),
    EventKind.ABORTED: Words("aborted", "An operator ended the rollout for good."),
    EventKind.UNDO_STARTED: Words("undo started", "Steps are about to be undone: written down before it is done."),
    EventKind.STEP_UNDONE: Words("step undone", "The undoing of a step ended, with an outcome: done means restored."),
    EventKind.FINISHED: Words("finished", "Every wave is through."),
}

WORDS: dict[type[StrEnum], dict[StrEnum, Words]] = {
    ChainState: _CHAIN_STATES,
    KernelState: _KERNEL_STATES,
    Body: _BODIES,
    Verdict: _VERDICTS,
    LinkName: _LINKS,
    NextAction: _NEXT_ACTIONS,
    PmuSetting: _PMU_SETTINGS,
    OwnerKind: _OWNERS,
    MitigationClass: _MITIGATION_CLASSES,
    TargetKind: _TARGETS,
    PmuOrigin: _ORIGINS,
    EvidenceMethod: _METHODS,
    Mode: _MODES,
    Approval: _APPROVALS,
    LeftAloneBecause: _LEFT_ALONE,
    StepOutcome: _STEP_OUTCOMES,
    HostCheck: _HOST_CHECKS,
    EventKind: _EVENT_KINDS,
}

#: What kind of thing a word is, for `explain`.
KINDS: dict[type[StrEnum], str] = {
    ChainState: "state of a domain's chain",
    KernelState: "state of a kernel",
    Body: "body of an affected kernel's callee",
    Verdict: "verdict of a rule",
    LinkName: "link of a domain's chain",
    NextAction: "next action",
    PmuSetting: "PMU setting",
    OwnerKind: "owner of a definition",
    MitigationClass: "class of CPU mitigations",
    TargetKind: "target of an observation",
    PmuOrigin: "origin of an instance's PMU setting",
    EvidenceMethod: "method of telling a kernel's state",
    Mode: "mode of remedies",
    Approval: "approval of plans",
    LeftAloneBecause: "why a plan leaves something alone",
    StepOutcome: "outcome of a step",
    HostCheck: "what the look before a host's steps found",
    EventKind: "event of a run",
}


def label(member: StrEnum) -> str:
    """A few words for a table's column."""
    return WORDS[type(member)][member].label


def meaning(member: StrEnum) -> str:
    """One to three sentences that stand alone."""
    return WORDS[type(member)][member].meaning


def members_named(topic: str) -> tuple[StrEnum, ...]:
    """Every member that is written `topic`, as in the JSON or as its label; `-` and `_` are alike, case does not matter."""
    wanted = normal_form(topic)
    return tuple(
        member
        for entries in WORDS.values()
        for member, words in entries.items()
        if wanted in {normal_form(member.value), normal_form(words.label)}
    )


def all_names() -> tuple[str, ...]:
    """Every name that `members_named` knows from the JSON, sorted, each once."""
    return tuple(sorted({member.value for entries in WORDS.values() for member in entries}))


def normal_form(text: str) -> str:
    """`text` as names are compared."""
    return text.strip().lower().replace("-", "_").replace(" ", "_")
