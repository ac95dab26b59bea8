"""Every rule of the shipped policy reaches each verdict it can, and a check that breaks is told as that."""

from datetime import timedelta

import pytest
from audit_builders import (
    EMULATOR,
    GUARD_ENTRY,
    HOST_ID,
    NOW,
    QEMU_7,
    QEMU_11,
    RELEASE,
    affected_kernel,
    definition,
    domain,
    facts,
    kvm_module,
    process,
    qemu,
)

from exitguard.audit import rules
from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.domain import DomainFacts
from exitguard.model.finding import Finding, Verdict
from exitguard.model.host import InstalledKernel, UnmanagedGuest
from exitguard.model.pmu import PmuElement
from exitguard.model.record import seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.policy.problem import Problem
from exitguard.policy.schema import Check, Waiver, WaiverScope

RULEBOOK = load_rulebook()
GUARDED = affected_kernel(changelog=(GUARD_ENTRY,))
UNKNOWN_KERNEL = affected_kernel(changelog=None)
EQUIVALENT = affected_kernel(release="6.18.15", symbols=("kvm_pmu_instruction_retired", "kvm_skip_emulated_instruction"))
UNREAD = InstalledKernel(release="6.1.0-57-amd64", guard_entries=None)
OFF, ON_BY_DEFAULT, ASKED = definition(pmu=PmuElement.OFF), definition(), definition(pmu=PmuElement.ON)


def effective(number: int = 1) -> DomainFacts:
    return domain(number=number, defined=OFF, run=OFF, runs=process("host,pmu=off", QEMU_11))


def on() -> DomainFacts:
    return domain(defined=ON_BY_DEFAULT, run=ON_BY_DEFAULT, runs=process("host", QEMU_11))


def asked() -> DomainFacts:
    return domain(defined=ASKED, run=ASKED, runs=process("host,pmu=on", QEMU_11))


def unread() -> DomainFacts:
    return domain(defined="libvirt did not answer within 5 s", run="libvirt did not answer within 5 s", runs="no process", active=True)


def finding_of(rule: str, document: FactsDocument, **more: object) -> Finding:
    report = judge(document, RULEBOOK, **more)
    (found,) = [each for each in report.findings if each.rule == rule]
    return found


@pytest.mark.parametrize(
    ("rule", "document", "verdict"),
    [
        ("HOST-KERNEL-GUARD", facts(kernel=GUARDED), Verdict.PASS),
        ("HOST-KERNEL-GUARD", facts(kernel=EQUIVALENT), Verdict.PASS),
        ("HOST-KERNEL-GUARD", facts(), Verdict.FAIL),
        ("HOST-KERNEL-GUARD", facts(kernel=UNKNOWN_KERNEL), Verdict.UNKNOWN),
        ("HOST-KERNEL-REBOOT", facts(), Verdict.PASS),
        ("HOST-KERNEL-REBOOT", facts(kernel=affected_kernel(installed=None)), Verdict.UNKNOWN),
        ("HOST-KERNEL-REBOOT", facts(kernel=affected_kernel(changelog=(GUARD_ENTRY,), installed=None)), Verdict.PASS),
        (
            "HOST-KERNEL-REBOOT",
            facts(
                kernel=affected_kernel(
                    installed=(InstalledKernel(release=RELEASE, guard_entries=()), InstalledKernel(release="6.18.15", guard_entries=()))
                )
            ),
            Verdict.FAIL,
        ),
        (
            "HOST-KERNEL-REBOOT",
            facts(kernel=affected_kernel(installed=(InstalledKernel(release=RELEASE, guard_entries=()), UNREAD))),
            Verdict.UNKNOWN,
        ),
        ("HOST-KERNEL-REBOOT", facts(kernel=affected_kernel(release=None)), Verdict.UNKNOWN),
        (
            "HOST-KERNEL-REBOOT",
            facts(kernel=affected_kernel(changelog=None, installed=(InstalledKernel(release=RELEASE, guard_entries=(GUARD_ENTRY,)),))),
            Verdict.UNKNOWN,
        ),
        ("HOST-QEMU-PMU-CAP", facts(binaries=(QEMU_11,)), Verdict.PASS),
        ("HOST-QEMU-PMU-CAP", facts(binaries=(QEMU_11, QEMU_7)), Verdict.FAIL),
        ("HOST-QEMU-PMU-CAP", facts(binaries=(QEMU_11, qemu("9.1.0", "qemu-kvm-9.1.0-15.el9"))), Verdict.UNKNOWN),
        ("HOST-QEMU-PMU-CAP", facts(binaries=()), Verdict.NOT_APPLICABLE),
        ("HOST-QEMU-PMU-CAP", facts(binaries=None), Verdict.UNKNOWN),
        ("HOST-QEMU-PMU-CAP", facts(kvm=kvm_module(enable_pmu=False)), Verdict.NOT_APPLICABLE),
        ("HOST-QEMU-PMU-CAP", facts(kernel=EQUIVALENT), Verdict.NOT_APPLICABLE),
        ("HOST-SOURCES", facts(effective()), Verdict.PASS),
        ("HOST-SOURCES", facts(libvirt="no such socket"), Verdict.UNKNOWN),
        ("HOST-SOURCES", facts(kernel=affected_kernel(release=None)), Verdict.UNKNOWN),
        ("HOST-SOURCES", facts(kernel=UNKNOWN_KERNEL), Verdict.UNKNOWN),
        ("HOST-SOURCES", facts(kvm=kvm_module(enable_pmu=None)), Verdict.UNKNOWN),
        ("HOST-SOURCES", facts(unread()), Verdict.UNKNOWN),
        ("DOM-PMU-PERSISTENT", facts(effective()), Verdict.PASS),
        ("DOM-PMU-PERSISTENT", facts(on()), Verdict.FAIL),
        ("DOM-PMU-PERSISTENT", facts(unread()), Verdict.UNKNOWN),
        ("DOM-PMU-PERSISTENT", facts(asked()), Verdict.NOT_APPLICABLE),
        ("DOM-PMU-PERSISTENT", facts(domain(defined=None, run=OFF, runs=process("host,pmu=off"))), Verdict.NOT_APPLICABLE),
        ("DOM-PMU-PERSISTENT", facts(on(), kernel=EQUIVALENT), Verdict.NOT_APPLICABLE),
        ("DOM-PMU-PERSISTENT", facts(domain(defined=ON_BY_DEFAULT)), Verdict.FAIL),
        ("DOM-PMU-LIVE", facts(effective()), Verdict.PASS),
        ("DOM-PMU-LIVE", facts(on()), Verdict.FAIL),
        ("DOM-PMU-LIVE", facts(domain(defined=OFF)), Verdict.NOT_APPLICABLE),
        ("DOM-PMU-LIVE", facts(unread()), Verdict.UNKNOWN),
        ("DOM-PMU-LIVE", facts(asked()), Verdict.NOT_APPLICABLE),
        ("DOM-PMU-EFFECTIVE", facts(effective(), kernel=GUARDED), Verdict.PASS),
        ("DOM-PMU-EFFECTIVE", facts(effective()), Verdict.FAIL),
        ("DOM-PMU-EFFECTIVE", facts(effective(), kernel=UNKNOWN_KERNEL), Verdict.UNKNOWN),
        ("DOM-PMU-EFFECTIVE", facts(domain(defined=OFF)), Verdict.NOT_APPLICABLE),
        ("DOM-OPT-OUT-HONOURED", facts(asked()), Verdict.PASS),
        ("DOM-OPT-OUT-HONOURED", facts(asked(), kvm=kvm_module(enable_pmu=False)), Verdict.FAIL),
        ("DOM-OPT-OUT-HONOURED", facts(asked(), kvm=kvm_module(enable_pmu=None)), Verdict.UNKNOWN),
        ("DOM-OPT-OUT-HONOURED", facts(on()), Verdict.NOT_APPLICABLE),
        ("DOM-OPT-OUT-HONOURED", facts(unread()), Verdict.UNKNOWN),
        ("DOM-OPT-OUT-HONOURED", facts(domain(defined=ASKED)), Verdict.PASS),
        ("DOM-OPT-OUT-HONOURED", facts(domain(defined=ASKED), kvm=kvm_module(enable_pmu=False)), Verdict.FAIL),
        ("DOM-OPT-OUT-HONOURED", facts(domain(defined=ASKED), kvm=kvm_module(enable_pmu=None)), Verdict.UNKNOWN),
    ],
)
def test_a_rule_reaches_its_verdicts(rule: str, document: FactsDocument, verdict: Verdict) -> None:
    found = finding_of(rule, document)
    assert found.verdict is verdict
    assert found.reason
    assert (found.remedy is not None) <= (verdict is Verdict.FAIL)


def test_one_host_id_with_two_machine_ids_is_a_finding() -> None:
    assert finding_of("HOST-IDENTITY", facts(), machine_ids_seen=("a" * 32,)).verdict is Verdict.PASS
    assert finding_of("HOST-IDENTITY", facts(), machine_ids_seen=("a" * 32, "b" * 32)).verdict is Verdict.FAIL
    assert finding_of("HOST-IDENTITY", facts()).verdict is Verdict.NOT_APPLICABLE
    assert finding_of("HOST-IDENTITY", facts(machine_id=None), machine_ids_seen=("a" * 32,)).verdict is Verdict.UNKNOWN


def test_a_missing_source_is_named_with_its_reason_and_what_would_show_it() -> None:
    document = facts(effective())
    libvirt = document.host.libvirt.model_copy(update={"listing": unseen("qemu:///system", "permission denied", unlock="group libvirt")})
    document = document.model_copy(update={"host": document.host.model_copy(update={"libvirt": libvirt})})
    found = finding_of("HOST-SOURCES", document)
    assert "libvirt (permission denied)" in found.reason
    assert "group libvirt" in found.evidence[0].value


def test_guests_outside_libvirt_are_a_doubt_where_they_could_pay() -> None:
    guests = seen("/sys/kernel/debug/kvm", (UnmanagedGuest(command="firecracker", executable=None),))

    def with_guests(document: FactsDocument) -> FactsDocument:
        return document.model_copy(update={"host": document.host.model_copy(update={"unmanaged": guests})})

    found = finding_of("HOST-SOURCES", with_guests(facts(kernel=GUARDED)))
    assert found.verdict is Verdict.UNKNOWN
    assert "1 guests outside libvirt: firecracker" in found.reason
    assert finding_of("HOST-SOURCES", with_guests(facts(kernel=EQUIVALENT))).verdict is Verdict.PASS
    assert finding_of("HOST-SOURCES", with_guests(facts(kvm=kvm_module(enable_pmu=False)))).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (facts(asked()), "and the guest has it"),
        (facts(domain(defined=ASKED)), "and the next start has it"),
        (facts(asked(), kvm=kvm_module(enable_pmu=False)), "kvm.enable_pmu=N takes it away"),
        (facts(domain(defined=ASKED, run=OFF, runs=process("host,pmu=off", QEMU_11))), "this run was started without it"),
        (facts(domain(defined=ASKED, run=OFF, runs=process("host,pmu=off", QEMU_7))), "this run was started without it"),
        (facts(domain(defined=None, run=ASKED, runs=process("host,pmu=off", QEMU_11))), "yet this run has it off"),
        (facts(on()), "nobody asked for the PMU"),
        (facts(domain(defined=definition(kind="xen"))), "nobody asked"),
        (facts(domain(defined=definition(pmu=PmuElement.ON, kind="xen"))), "not a guest that this is about"),
        (facts(unread()), "whether somebody asked for the PMU cannot be told"),
        (facts(domain(defined=ASKED), kvm=kvm_module(enable_pmu=None)), "whether the guest has it cannot be told"),
    ],
)
def test_the_reason_of_an_opt_out_says_who_does_what(document: FactsDocument, words: str) -> None:
    assert words in finding_of("DOM-OPT-OUT-HONOURED", document).reason


def test_the_remedy_is_named_only_where_something_fails() -> None:
    assert finding_of("DOM-PMU-PERSISTENT", facts(on())).remedy == "domain_pmu_off"
    assert finding_of("DOM-PMU-PERSISTENT", facts(effective())).remedy is None


def test_without_domains_there_are_no_domain_findings() -> None:
    report = judge(facts(), RULEBOOK)
    assert {each.subject.kind.value for each in report.findings} == {"host"}
    assert report.domains == ()


def test_a_check_that_breaks_is_an_error_of_its_own_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("the check tripped")

    monkeypatch.setitem(rules._CHECKS, Check.KERNEL_GUARD, broken)
    report = judge(facts(effective()), RULEBOOK)
    verdicts = {each.rule: each for each in report.findings}
    assert verdicts["HOST-KERNEL-GUARD"].verdict is Verdict.ERROR
    assert "the check tripped" in verdicts["HOST-KERNEL-GUARD"].reason
    assert verdicts["DOM-PMU-LIVE"].verdict is Verdict.PASS
    assert report.summary.exit_code == 1


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (facts(effective(), kernel=GUARDED, binaries=(QEMU_11,)), 0),
        (facts(on(), kernel=GUARDED, binaries=(QEMU_11,)), 2),
        (facts(kernel=GUARDED, binaries=(QEMU_11,), libvirt="no such socket"), 3),
        (facts(on(), libvirt="no such socket"), 2),
    ],
)
def test_the_exit_code_follows_the_worst_verdict(document: FactsDocument, code: int) -> None:
    assert judge(document, RULEBOOK).summary.exit_code == code


def test_the_summary_counts_every_finding_and_every_domain_and_names_every_word() -> None:
    report = judge(facts(effective(1), effective(2), on().model_copy(update={"uuid": HOST_ID})), RULEBOOK)
    assert sum(report.summary.by_verdict.values()) == len(report.findings)
    assert report.summary.by_chain["unguarded"] == 2
    assert report.summary.by_chain["on"] == 1
    assert report.summary.by_chain["moot"] == 0


def waiver(**changes: object) -> Waiver:
    return Waiver.model_validate(
        {
            "id": "CHG-1",
            "rules": ("DOM-PMU-PERSISTENT", "DOM-PMU-LIVE"),
            "scope": WaiverScope(hosts=(HOST_ID,)),
            "justification": "the tenant profiles until the release",
            "approver": "ops",
            "created": NOW - timedelta(days=1),
            "expires": NOW + timedelta(days=1),
            **changes,
        }
    )


def judged_with(*waivers: Waiver, problems: tuple[Problem, ...] = ()) -> AuditReport:
    rulebook = RULEBOOK.model_copy(update={"waivers": waivers, "waiver_problems": problems})
    return judge(facts(on(), kernel=GUARDED, binaries=(QEMU_11,)), rulebook)


def waiver_finding(report: AuditReport) -> Finding:
    (found,) = [each for each in report.findings if each.rule == "POLICY-WAIVERS"]
    return found


def test_a_waiver_turns_a_failure_into_waived_and_says_by_whom() -> None:
    report = judged_with(waiver())
    waived = [each for each in report.findings if each.verdict is Verdict.WAIVED]
    assert {each.rule for each in waived} == {"DOM-PMU-PERSISTENT", "DOM-PMU-LIVE"}
    assert all(each.waiver == "CHG-1" and "ops" in each.reason for each in waived)
    assert waiver_finding(report).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": NOW},
        {"created": NOW + timedelta(hours=1)},
        {"rules": ("HOST-KERNEL-GUARD",)},
    ],
)
def test_an_expired_early_or_unmatched_waiver_covers_nothing_and_is_a_finding(changes: dict[str, object]) -> None:
    report = judged_with(waiver(**changes))
    assert not [each for each in report.findings if each.verdict is Verdict.WAIVED]
    assert waiver_finding(report).verdict is Verdict.FAIL


def test_a_malformed_waiver_is_an_error_that_names_the_line() -> None:
    problem = Problem(file="waivers.yaml", line=7, path="waivers[0].expires", message="expected a time with an offset")
    found = waiver_finding(judged_with(problems=(problem,)))
    assert found.verdict is Verdict.ERROR
    assert "waivers.yaml:7" in found.reason


def test_a_waiver_for_another_host_is_no_matter_of_this_one() -> None:
    report = judged_with(waiver(scope=WaiverScope(hosts=("compute-8",))))
    assert not [each for each in report.findings if each.rule == "POLICY-WAIVERS"]


def test_the_emulator_on_disk_is_named_as_evidence() -> None:
    assert EMULATOR in [each.source for each in finding_of("HOST-QEMU-PMU-CAP", facts()).evidence]
