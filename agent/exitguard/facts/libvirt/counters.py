"""KVM's own counters of all running domains, through one bulk call of libvirt's.

QEMU 7.1 and later hand them on by the names that KVM gives them (virt/kvm and arch/x86/kvm/x86.c, kvm_vcpu_stats_desc); libvirt passes
names outside its API's promise: one that is missing or new must not break anything.
"""

import queue
import re
from collections.abc import Mapping
from typing import Any

from exitguard.facts.libvirt.conversation import Conversation, Counters, Failed
from exitguard.facts.libvirt.patience import Patience
from exitguard.facts.libvirt.words import keep_quiet
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import VCPUS

_SOURCE = "libvirt: domain statistics, vcpu.*.sum"
#: Those that count exits, or bound how many of them skipped an instruction.
KEPT = frozenset(
    {
        "exits",
        "io_exits",
        "mmio_exits",
        "halt_exits",
        "hypercalls",
        "irq_exits",
        "irq_window_exits",
        "nmi_window_exits",
        "insn_emulation",
        "pf_taken",
        "pf_fixed",
        "guest_mode",
    }
)
_NAME = re.compile(r"vcpu\.(?P<vcpu>[0-9]{1,5})\.(?P<counter>[a-z_]{1,40})\.sum")
_MAX_COUNT = (1 << 64) - 1


def read_counters(uri: str, patience: Patience) -> Observed[dict[str, dict[str, int]]]:
    """By domain uuid, KVM's counters summed over the vCPUs; a running domain without any (TCG) has an empty dict.

    One call for the whole host. It blocks behind a domain whose QEMU does not answer: give it BlockedCalls of its own.
    """
    try:
        import libvirt
    except ImportError as error:
        return unseen(_SOURCE, f"libvirt-python cannot be loaded: {error}", unlock="the package exitguard[host]")
    keep_quiet(libvirt)
    obstacle = patience.blocked.why_not_now
    if obstacle is not None:
        return unseen(_SOURCE, obstacle)
    conversation = Conversation(libvirt, uri)
    conversation.begin(conversation.ask_for_counters)
    try:
        answer = conversation.next_answer(patience.call_timeout_seconds, patience.pulse)
    except queue.Empty:
        patience.blocked.add(conversation.thread, None)
        return unseen(_SOURCE, f"no answer within {patience.call_timeout_seconds:g} s: a domain's QEMU may hang")
    match answer:
        case Counters():
            return seen(_SOURCE, {uuid: sum_over_vcpus(values) for uuid, values in answer.by_uuid.items()})
        case Failed():
            return unseen(_SOURCE, answer.reason, unlock=answer.unlock)
        case _:
            return unseen(_SOURCE, "libvirt ended the conversation at once")


def sum_over_vcpus(statistics: Mapping[str, Any]) -> dict[str, int]:
    """The kept counters out of one domain's statistics, and over how many vCPUs; what is no count, or is not kept, is left out."""
    totals: dict[str, int] = {}
    vcpus: set[str] = set()
    for name, value in statistics.items():
        match = _NAME.fullmatch(name)
        if match is not None and match["counter"] in KEPT and isinstance(value, int) and 0 <= value <= _MAX_COUNT:
            totals[match["counter"]] = totals.get(match["counter"], 0) + value
            vcpus.add(match["vcpu"])
    if totals:
        totals[VCPUS] = len(vcpus)
    return totals
