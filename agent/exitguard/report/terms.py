"""The words of the reports that belong to no enumeration: headings, the answer of an audit, marks, and the names of remedies."""

from dataclasses import dataclass

from exitguard.facts.domain_xml import LOCK_NAMESPACE
from exitguard.report.words import normal_form

#: What becomes of a remedy.
PLANNED = "Where the policy allows it, `exitguard plan` shows what it would change, and `exitguard apply` does that."


@dataclass(frozen=True)
class Term:
    """`kind` says what sort of word it is, `meaning` stands alone as an explanation."""

    kind: str
    meaning: str


_COLUMN = "column of the domains' table"
_ANSWER = "answer of an audit"
_REMEDY = "name of a remedy"
_CHANGE = "word of plans and rollouts"
_INSTANCES = "column of `exitguard nova report`"

_APPLIED: dict[str, str] = {
    "domain_pmu_off": "Sets <pmu state='off'/> in the persistent definition of a domain that libvirt owns, and nothing else in it. It "
    "takes effect at the guest's next cold start.",
    "kernel_guard": "Installs a kernel that has the guard, or needs none, in a version that the operator pins, for one boot; made the "
    "default once it runs and is healthy. The reboot is the operator's.",
    "kvm_enable_pmu_off": "Sets kvm.enable_pmu=N from the next load of KVM's module on, which takes the PMU from all guests of the host; "
    "refused where one may want it.",
    "qemu_pmu_cap": "Installs a QEMU that clears kvm->arch.enable_pmu for pmu=off, in a version that the operator pins, after a check of "
    "machine types and migration. A guest uses it from its next cold start.",
    "nova_flavor_default": "Sets hw:pmu=false on Nova flavors that say nothing, so that instances made from then on start with their PMU "
    "off. Existing instances keep their silent copy, whatever they go through but a resize.",
    "nova_image_default": "Sets hw_pmu=false on Glance images that say nothing and that the policy names, so that instances made or "
    "rebuilt from them from then on start with their PMU off.",
    "nova_instance_pmu_off": "Sets hw_pmu=false on the stored image properties of a Nova instance that its owner has stopped, so that it "
    "starts with its PMU off from then on. Nothing is stopped or started for it.",
}

TERMS: dict[str, Term] = {
    "set": Term(
        _COLUMN,
        "The PMU as the domain's definition has it: what the next start gets. In parentheses it is QEMU's default, which nobody asked for.",
    ),
    "live": Term(_COLUMN, "The PMU of this run: what the guest was started with, and keeps until its next cold start."),
    "owner": Term(_COLUMN, "Who writes the domain's definition: Nova, libvirt (whoever uses virsh or virt-manager), or another manager."),
    "state": Term(
        _COLUMN,
        "How far a PMU that is off reaches, from the definition down to the kernel: `effective` is all the way. Each state is a word "
        "for `exitguard explain`.",
    ),
    "next": Term(
        _COLUMN,
        "The one step that would help this domain most. An audit takes none; `exitguard plan` says which of them a remedy would take. "
        "`-` is nothing to do.",
    ),
    "locked": Term(
        "mark of a domain",
        "An operator's mark in the domain's metadata: no step that changes this domain is ever proposed. Set it with "
        f"`virsh metadata DOMAIN {LOCK_NAMESPACE} --key exitguard --set '<locked/>' --config`, take it off with "
        f"`virsh metadata DOMAIN {LOCK_NAMESPACE} --remove --config`. Nova writes its definitions anew and loses it.",
    ),
    "enable_pmu": Term(
        "switch of KVM",
        "Two switches have this name. The line of the report is KVM's parameter, kvm.enable_pmu: N takes the PMU from every guest of "
        "the host. kvm->arch.enable_pmu is the flag of one guest: QEMU 11.0, or a backport, clears it for pmu=off, and the guard asks it.",
    ),
    "returns_at_once": Term(
        "field of the JSON report",
        "Of an affected kernel: whether the PMU function finds no counter to walk for a PMU-off guest on this host, and returns. Body B "
        "always does; body A does on Intel, and walks every counter on AMD. null: not affected, or the vendor is not known.",
    ),
    "compliant": Term(_ANSWER, "Exit code 0: every rule passes, does not apply, or is waived. What could not be seen is never compliant."),
    "not compliant": Term(_ANSWER, "Exit code 2: at least one rule fails, and no waiver answers for it."),
    "stale": Term(
        _ANSWER,
        "Exit code 3 instead of 0: the stored report is older than a day, or from the future, and does not speak for the host now. "
        "Run `exitguard audit`.",
    ),
    "provisional": Term(
        "mark of a host id",
        "This audit is not stored, so the host has no id of its own: the one shown is derived from its machine-id or its name. A waiver "
        "that names it no longer matches once the host has a store.",
    ),
    "severity": Term(
        "weight of a rule",
        "How much a failure of the rule matters: high, medium, low or info. It orders the findings; no exit code depends on it.",
    ),
    "tcg": Term(
        "kind of domain",
        "A domain of type qemu: QEMU emulates it without KVM, so it has no VM exit to save on. Not applicable, unless the policy's scope "
        "says admit_tcg.",
    ),
    "remedy": Term(
        "what a policy names for a rule",
        f"What mends a failure, with a playbook of its own: {', '.join(sorted(_APPLIED))}. Which may be planned stands in the policy, "
        "under remedies.allowed.",
    ),
    "plan": Term(
        _CHANGE,
        "What would be changed on which hosts, in which order, and what is left alone, each with its reason: `exitguard plan` shows it and "
        "changes nothing. Its hash covers the facts, the policy, the waivers, the playbooks and the inventory that it was made from: where "
        "any of them is another, it is another plan, and an approval of this one does not fit.",
    ),
    "step": Term(
        _CHANGE,
        "One change of one host or domain. It rests on facts that are looked at again right before it: where they are others now, it is "
        "not carried out.",
    ),
    "left alone": Term(
        "part of a plan", "What fails, or may fail, and is not touched, with the reason. Nothing is passed over in silence."
    ),
    "wave": Term(
        _CHANGE,
        "Hosts that are dealt with, and verified, before any of the next wave is touched. Percentages are of the hosts with steps, those "
        "of earlier waves included.",
    ),
    "canary": Term(_CHANGE, "The first wave: the host, or the few hosts, that show whether the rest should follow."),
    "rollout": Term(
        _CHANGE,
        "A plan being carried out, wave by wave. It stops by itself when more hosts fail than the policy's failure_budget; 0 stops at the "
        "first. `exitguard rollout status` shows it; pause, resume and abort steer it.",
    ),
    "run": Term(
        _CHANGE,
        "One rollout with its journal. Each act is on the disk before it is done, so that a run that was killed goes on where it was with "
        "`exitguard rollout resume`, and `exitguard rollback` can undo it.",
    ),
    "interrupted": Term(
        "state of a run", "No process works on the run, and it has not ended: it was killed, or the host went down. Resuming looks first."
    ),
    "window": Term(
        "part of a policy",
        "A time at which steps may begin, as cron's five fields, a length and a time zone. What has begun in it comes to its end.",
    ),
    "unquantified": Term(
        "saving of a step",
        "What the step saves on an exit is not known here: no measured or tabled cost fits this processor, kernel and its mitigations. "
        "It is not zero, and counts nowhere.",
    ),
    "origin": Term(
        "column of the instances' table",
        "Where an instance's PMU setting comes from: its flavor, its image, both, a remedy, the cloud's default, QEMU's default, or an "
        "edit behind Nova's back. Each is a word for `exitguard explain`.",
    ),
    "survives": Term(
        "field of a cloud's report",
        "Whether what the instance's definition says now is what Nova will write at the next hard reboot, or stop and start.",
    ),
    "off and kept": Term(
        _INSTANCES, "Nova starts the instance with its PMU off, each time, and nothing that was seen of it has the PMU on now."
    ),
    "off next": Term(
        _INSTANCES,
        "Nova starts the instance with its PMU off from its next hard reboot, or stop and start; until then its definition or its run has "
        "the PMU on, and nothing is saved.",
    ),
    "on by default": Term(
        _INSTANCES, "The instance has a PMU, or gets one at its next start, since nobody said otherwise: QEMU's default for its CPU mode."
    ),
    **{name: Term(_REMEDY, f"{meaning} {PLANNED}") for name, meaning in _APPLIED.items()},
}


def terms_named(topic: str) -> tuple[str, ...]:
    """The term that is written `topic`, if there is one; `-`, `_` and a space are alike, case does not matter."""
    wanted = normal_form(topic)
    return tuple(name for name in TERMS if normal_form(name) == wanted)
