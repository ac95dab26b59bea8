"""The words of the reports that belong to no enumeration: headings, the answer of an audit, marks, and the names of remedies."""

from dataclasses import dataclass

from exitguard.facts.domain_xml import LOCK_NAMESPACE
from exitguard.report.words import normal_form

#: What a remedy is to this version: a name.
ONLY_NAMED = "This version names it and does not apply it: nothing is changed."


@dataclass(frozen=True)
class Term:
    """`kind` says what sort of word it is, `meaning` stands alone as an explanation."""

    kind: str
    meaning: str


_COLUMN = "column of the domains' table"
_ANSWER = "answer of an audit"
_REMEDY = "name of a remedy"

_REMEDIES: dict[str, str] = {
    "domain_pmu_off": "Will set <pmu state='off'/> in the persistent definition of a domain that libvirt owns, and nothing else in it.",
    "kernel_guard": "Will install a kernel that has the guard, or needs none, in a version that the operator pins, for the next boot.",
    "kvm_enable_pmu_off": "Will set kvm.enable_pmu=N on the host, which takes the PMU from all its guests; refused where one may want it.",
    "nova_flavor_default": "Will set hw:pmu=false on Nova flavors that say nothing, so that new instances start with their PMU off.",
    "nova_instance_pmu_off": "Will set hw_pmu=false for a Nova instance that its owner has stopped, so that it starts with its PMU off.",
    "qemu_pmu_cap": "Will install a QEMU that clears kvm->arch.enable_pmu for pmu=off, after a check of machine types and migration.",
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
        _COLUMN, "The one step that would help this domain most, for a person to take: exitguard does not take it. `-` is nothing to do."
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
        f"What would mend a failure: {', '.join(_REMEDIES)}. This version only names remedies: it changes nothing.",
    ),
    **{name: Term(_REMEDY, f"{meaning} {ONLY_NAMED}") for name, meaning in _REMEDIES.items()},
}


def terms_named(topic: str) -> tuple[str, ...]:
    """The term that is written `topic`, if there is one; `-`, `_` and a space are alike, case does not matter."""
    wanted = normal_form(topic)
    return tuple(name for name in TERMS if normal_form(name) == wanted)
