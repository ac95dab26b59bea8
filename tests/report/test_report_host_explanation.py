"""What `explain` tells of a rule about the host: this host's verdict, its evidence, and the instructions that decide."""

from pathlib import Path

import pytest
from machine_code_readings import DEBIAN_6_1, DEBIAN_6_18

from exitguard.audit.judge import judge
from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import FactsDocument
from exitguard.model.host import InstalledKernel, KvmModule, LivePatch, Target, TargetKind
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed, seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.report.host_explanation import explain_host_rule
from exitguard.report.page import Look

RULEBOOK = load_rulebook()
RELEASE = "6.1.0-56-cloud-amd64"
SYMBOLS = ("kvm_pmu_trigger_event", "kvm_skip_emulated_instruction")
UNREAD: Observed[MachineCode] = unseen("/lib/modules/6.1/kvm.ko", "permission denied", unlock="read access to the file")


@pytest.fixture
def facts(tmp_path: Path) -> FactsDocument:
    """A Debian 12 host whose kvm.ko was read, on AMD."""
    document = observe(AuditRequest(sysroot=tmp_path)).facts
    kernel = document.host.kernel.model_copy(
        update={
            "release": seen("/proc/sys/kernel/osrelease", RELEASE),
            "symbols": seen("/proc/kallsyms", SYMBOLS),
            "live_patches": seen("/sys/kernel/livepatch", ()),
            "machine_code": seen(DEBIAN_6_1.path, DEBIAN_6_1),
        }
    )
    kvm = document.host.kvm.model_copy(
        update={
            "module": seen("/sys/module/kvm", KvmModule(form="module", vendor_modules=("kvm_amd",))),
            "build_id": seen("/sys/module/kvm/notes", DEBIAN_6_1.build_id),
        }
    )
    target = Target(kind=TargetKind.LOCAL, uri="qemu:///system")
    host = document.host.model_copy(update={"kernel": kernel, "kvm": kvm, "target": target})
    return document.model_copy(update={"host": host})


def with_kernel(facts: FactsDocument, **changes: object) -> FactsDocument:
    kernel = facts.host.kernel.model_copy(update=changes)
    return facts.model_copy(update={"host": facts.host.model_copy(update={"kernel": kernel})})


def page(facts: FactsDocument, rule_id: str = "HOST-KERNEL-GUARD", look: Look | None = None) -> str:
    (rule,) = (rule for rule in RULEBOOK.policy.rules if rule.id == rule_id)
    return explain_host_rule(rule, judge(facts, RULEBOOK), facts, look or Look())


def flat(text: str) -> str:
    return " ".join(text.split())


def section(text: str, title: str) -> str:
    """What stands below a heading, to the next one."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(title))
    end = next((place for place, line in enumerate(lines[start + 1 :], start + 1) if line and not line.startswith(" ")), len(lines))
    return "\n".join(lines[start:end])


def test_an_affected_host_is_shown_its_verdict_evidence_and_deciding_instructions(facts: FactsDocument) -> None:
    text = page(facts)
    assert "fail 6.1.0-56-cloud-amd64 is affected, body A: " in flat(section(text, "This host"))
    assert "PMU off its callee walks the counters all the same: PMU off pays only with the guard" in flat(text)
    evidence = flat(section(text, "Evidence  strongest first"))
    assert evidence.index("- machine code ") < evidence.index("- symbols ") < evidence.index("- version ")
    instructions = section(text, "The instructions that decide")
    assert DEBIAN_6_1.path in instructions
    assert "build-id adc52894baba874167c85a83e488aa5227aed415" in instructions
    assert "  > +0x2a   call kvm_pmu_trigger_event          the PMU call" in instructions
    assert "So the call is made for every guest, PMU on or off" in flat(instructions)
    assert "kernel inspect" not in instructions
    assert "Evidence that disagrees" not in text


def test_the_rule_itself_is_still_explained(facts: FactsDocument) -> None:
    text = page(facts)
    assert text.startswith("HOST-KERNEL-GUARD  ")
    assert text.index("\nWhy\n") < text.index("\nThis host") < text.index("\nThe instructions that decide")


def test_evidence_that_disagrees_is_shown_with_its_method(facts: FactsDocument) -> None:
    text = page(with_kernel(facts, machine_code=seen(DEBIAN_6_18.path, DEBIAN_6_18)))
    assert "pass 6.1.0-56-cloud-amd64 is equivalent" in flat(text)
    disagrees = flat(section(text, "Evidence that disagrees"))
    assert "! symbols kvm_pmu_trigger_event is there" in disagrees
    assert "! version 6.1.0-56-cloud-amd64: affected" in disagrees
    assert "PMU off" not in section(text, "This host")
    assert "there is nothing left to save." in flat(text)


def test_where_the_code_was_not_read_the_reason_and_what_would_show_it_stand_there(facts: FactsDocument) -> None:
    instructions = flat(section(page(with_kernel(facts, machine_code=UNREAD)), "The instructions that decide"))
    assert "not read permission denied" in instructions
    assert "source /lib/modules/6.1/kvm.ko" in instructions
    assert "unlock read access to the file" in instructions
    assert f"Hosts recognise this one as {DEBIAN_6_1.build_id}." in instructions
    assert "`exitguard kernel inspect --running --live`" in instructions


def test_a_remote_host_is_not_told_to_read_the_memory_of_this_machine(facts: FactsDocument) -> None:
    unread = with_kernel(facts, machine_code=UNREAD)
    remote = unread.host.model_copy(update={"target": Target(kind=TargetKind.REMOTE, uri="qemu+ssh://h/system")})
    assert "--live" not in page(unread.model_copy(update={"host": remote}))


def test_where_the_code_settles_nothing_its_obstacle_stands_below_what_was_read(facts: FactsDocument) -> None:
    torn = DEBIAN_6_1.model_copy(update={"obstacle": "ends in the middle of a section", "listing": ()})
    instructions = flat(section(page(with_kernel(facts, machine_code=seen(torn.path, torn))), "The instructions that decide"))
    assert "These instructions prove no state: ends in the middle of a section." in instructions
    assert "`exitguard kernel inspect --running --live`" in instructions


def test_code_that_a_live_patch_has_replaced_is_not_shown_as_what_runs(facts: FactsDocument) -> None:
    patch = LivePatch(name="kpatch_7", enabled=True, transition=False, replaces_skip=True)
    instructions = section(page(with_kernel(facts, live_patches=seen("/sys/kernel/livepatch", (patch,)))), "The instructions that decide")
    assert "live patch kpatch_7 replaces kvm_skip_emulated_instruction" in flat(instructions)
    assert "the PMU call" not in instructions
    assert "So the call is made" not in flat(instructions)
    hidden = with_kernel(facts, live_patches=unseen("/sys/kernel/livepatch", "permission denied"))
    assert "call kvm_pmu_trigger_event" not in page(hidden)


def test_a_policy_of_that_audit_without_the_rule_is_said_so(facts: FactsDocument) -> None:
    (rule,) = (rule for rule in RULEBOOK.policy.rules if rule.id == "HOST-KERNEL-GUARD")
    report = judge(facts, RULEBOOK).model_copy(update={"findings": ()})
    text = flat(explain_host_rule(rule, report, facts, Look()))
    assert "The policy of that audit did not have this rule." in text


def test_other_rules_of_the_host_show_verdict_and_evidence_and_no_instructions(facts: FactsDocument) -> None:
    newer = InstalledKernel(release="6.18.15+deb13-cloud-amd64", machine_code=DEBIAN_6_18.model_copy(update={"listing": ()}))
    text = page(with_kernel(facts, installed=seen("/lib/modules", (newer,))), "HOST-KERNEL-REBOOT")
    assert "fail 6.18.15+deb13-cloud-amd64 is installed and would help (equivalent by its machine code: " in flat(text)
    assert "- installed 6.18.15+deb13-cloud-amd64: would help: equivalent by its machine code" in flat(section(text, "Evidence"))
    assert "instructions that decide" not in text


@pytest.mark.parametrize(
    "look", [Look(), Look(color=True), Look(unicode=False), Look(width=32)], ids=["plain", "colour", "ascii", "narrow"]
)
def test_hostile_readings_reach_the_page_harmlessly(facts: FactsDocument, look: Look) -> None:
    hostile = "\x1b[31m\u202e[red]x\n  COMPLIANT"
    listing = tuple(each.model_copy(update={"text": hostile, "note": hostile, "function": hostile}) for each in DEBIAN_6_1.listing[:2])
    code = DEBIAN_6_1.model_copy(update={"path": hostile, "build_id": hostile, "listing": listing, "conditions": (hostile,)})
    for observed in (seen(hostile, code), unseen(hostile, hostile, unlock=hostile)):
        text = page(with_kernel(facts, machine_code=observed), look=look)
        assert "\x1b[31m\u202e" not in text
        assert "\u202e" not in text
        assert all(character.isprintable() for character in text.replace("\n", "").replace("\x1b", ""))
        if not look.unicode:
            assert text.isascii()
