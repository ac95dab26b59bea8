"""The page of an audit: the answer first, doubt never dressed as a pass, thousands of domains in a screenful."""

from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from exitguard.model.domain import Owner, OwnerKind
from exitguard.model.finding import Finding, Severity, Subject, SubjectKind, Verdict
from exitguard.model.host import UnmanagedGuest
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import ChainState, NextAction, PmuSetting
from exitguard.model.record import seen, unseen
from exitguard.report.page import Look
from exitguard.report.table import Told, audit_table
from exitguard.report.words import label, meaning

LOOK = Look()


def flat(page: str) -> str:
    """The page without its line breaks, for sentences that may wrap."""
    return " ".join(page.split())


@pytest.mark.parametrize(
    ("verdicts", "first_line"),
    [
        ((Verdict.PASS, Verdict.PASS), "COMPLIANT  compute-17.example.net: 2 checks pass."),
        ((Verdict.PASS, Verdict.WAIVED), "COMPLIANT  compute-17.example.net: 1 check passes, but for 1 waived."),
        ((Verdict.PASS, Verdict.UNKNOWN), "UNKNOWN  compute-17.example.net: 1 check could not be decided."),
        ((Verdict.FAIL, Verdict.UNKNOWN, Verdict.PASS), "NOT COMPLIANT  compute-17.example.net: 1 check fails, 1 undecided."),
        ((Verdict.ERROR, Verdict.FAIL), "ERROR  compute-17.example.net: 1 check broke, so the answer is not complete."),
        ((), "NOTHING JUDGED  compute-17.example.net: no rule of the policy applied."),
    ],
)
def test_the_first_line_is_the_answer(build: SimpleNamespace, verdicts: tuple[Verdict, ...], first_line: str) -> None:
    page = audit_table(build.report(findings=tuple(build.finding(verdict) for verdict in verdicts)), LOOK)
    assert page.split("\n")[0] == first_line


@pytest.mark.parametrize(
    ("verdict", "meaning_of_exit"),
    [
        (Verdict.PASS, "exit 0: compliant"),
        (Verdict.FAIL, "exit 2: not compliant"),
        (Verdict.UNKNOWN, "exit 3: unknown or stale"),
        (Verdict.ERROR, "exit 1: error"),
    ],
)
def test_the_second_line_says_what_the_exit_code_means(build: SimpleNamespace, verdict: Verdict, meaning_of_exit: str) -> None:
    page = audit_table(build.report(findings=(build.finding(verdict),)), LOOK)
    assert page.split("\n")[1] == f"{meaning_of_exit} · policy pmu-off 1.0.0 · observed 2026-05-22 03:00 UTC"


def test_stale_report_does_not_claim_that_the_host_is_compliant(build: SimpleNamespace) -> None:
    report = build.report(findings=(build.finding(Verdict.PASS),))
    page = audit_table(report.model_copy(update={"summary": report.summary.model_copy(update={"exit_code": 3})}), LOOK, Told(stale=True))
    assert page.startswith("STALE")
    assert "COMPLIANT" not in page
    assert "does not speak for the host now" in flat(page)


def test_unknown_has_neither_the_word_nor_the_colour_of_a_pass(build: SimpleNamespace) -> None:
    unknown = unseen("somewhere", "permission denied")
    host = build.host(
        hostname=None,
        kernel=build.kernel(state=KernelState.UNKNOWN, body=None, release=None, reason="no evidence"),
        cpu=unknown,
        mitigations=unknown,
        qemu=unknown,
        kvm=build.host().kvm.model_copy(update={"enable_pmu": unknown}),
        libvirt=build.host().libvirt.model_copy(update={"daemon_version": unknown, "driver": unknown, "listing": unknown}),
    )
    page = audit_table(build.report(findings=(build.finding(Verdict.UNKNOWN),), host_report=host), Look(color=True))
    assert "\x1b[32m" not in page  # green
    assert "\x1b[1;32m" not in page
    assert "COMPLIANT" not in page
    assert " pass" not in page.replace("not knowing is not passing", "")


def test_what_was_not_seen_is_named_with_its_reason_and_what_would_show_it(build: SimpleNamespace) -> None:
    hidden = unseen("/proc/cpuinfo", "permission denied", unlock="run as root")
    page = flat(audit_table(build.report(host_report=build.host(cpu=hidden)), LOOK))
    assert "cpu: permission denied (/proc/cpuinfo) To see it: run as root" in page


def test_domains_that_could_not_be_listed_are_not_none(build: SimpleNamespace) -> None:
    libvirt = build.host().libvirt.model_copy(update={"listing": unseen("libvirt", "no answer within 5 s")})
    page = audit_table(build.report(host_report=build.host(libvirt=libvirt)), LOOK)
    assert "could not be listed: no answer within 5 s" in page
    assert "Domains  none" not in page
    assert "Domains  none" in audit_table(build.report(), LOOK)


@pytest.mark.parametrize("state", list(ChainState))
@pytest.mark.parametrize("width", [46, 80])
def test_every_chain_state_is_shown_in_words(build: SimpleNamespace, state: ChainState, width: int) -> None:
    page = flat(audit_table(build.report((build.domain("web-1", state, NextAction.NONE),)), Look(width=width)))
    assert label(state) in page


@pytest.mark.parametrize("action", [action for action in NextAction if action is not NextAction.NONE])
def test_every_next_action_is_told_in_full_with_the_domains_it_is_for(build: SimpleNamespace, action: NextAction) -> None:
    page = flat(audit_table(build.report((build.domain("web-1", ChainState.ON, action),)), LOOK))
    assert f"1. {meaning(action)} 1 domain: web-1" in page


@pytest.mark.parametrize("persistent", list(PmuSetting))
def test_set_and_live_are_two_values(build: SimpleNamespace, persistent: PmuSetting) -> None:
    shown = {"off": "off", "on": "on", "default_off": "(off)", "default_on": "(on)", "unknown": "?", "none": "-"}[persistent]
    page = audit_table(build.report((build.domain(pmu=(persistent, PmuSetting.ON)),)), LOOK)
    assert f" {shown} → on " in page


def test_what_is_not_effective_comes_first(build: SimpleNamespace) -> None:
    domains = (
        build.domain("a-fine", ChainState.EFFECTIVE, NextAction.NONE, number=1),
        build.domain("b-doubt", ChainState.UNKNOWN, NextAction.OBSERVE, number=2),
        build.domain("c-violated", ChainState.OPT_OUT_VIOLATED, NextAction.ASK_OWNER, number=3),
    )
    page = audit_table(build.report(domains), LOOK)
    assert page.index("c-violated") < page.index("b-doubt") < page.index("a-fine")
    assert "3 domains, 1 effective" in page


def test_five_thousand_domains_fit_a_few_screens_and_none_is_dropped_silently(build: SimpleNamespace) -> None:
    domains = tuple(
        build.domain(f"vm-{number:04}", list(ChainState)[number % 12], list(NextAction)[number % 9], number=number)
        for number in range(5000)
    )
    findings = tuple(
        build.finding(subject=Subject(kind=SubjectKind.DOMAIN, id=domain.uuid, name=domain.name), reason=f"{domain.name} has its PMU on")
        for domain in domains
    )
    page = audit_table(build.report(domains, findings), LOOK)
    assert page.count("\n") < 200
    assert "5,000 domains" in page
    assert "… and 4,997 findings more of this rule, see --format json" in page
    grouped = sum(int(line.split(" domains:")[0]) for line in page.split("\n") if line.split(" domains:")[0].strip().isdigit())
    assert grouped == 5000


def test_domains_that_differ_in_everything_are_capped_and_counted(build: SimpleNamespace) -> None:
    domains = tuple(
        build.domain(f"vm-{number:04}", number=number, owner=Owner(kind=OwnerKind.OTHER, name=f"manager-{number}"))
        for number in range(5000)
    )
    page = audit_table(build.report(domains), LOOK)
    assert "… and 4,960 more, see --format json" in page
    assert page.count("\n") < 150


def test_findings_are_ordered_fail_error_unknown_waived_and_passes_are_counted(build: SimpleNamespace) -> None:
    findings = (
        build.finding(Verdict.PASS, "R-PASS"),
        build.finding(Verdict.WAIVED, "R-WAIVED", waiver="legacy-2026"),
        build.finding(Verdict.UNKNOWN, "R-UNKNOWN"),
        build.finding(Verdict.ERROR, "R-ERROR"),
        build.finding(Verdict.FAIL, "R-LOW", severity=Severity.LOW),
        build.finding(Verdict.FAIL, "R-HIGH", severity=Severity.HIGH),
        build.finding(Verdict.NOT_APPLICABLE, "R-NONE"),
    )
    page = audit_table(build.report(findings=findings), LOOK)
    order = [
        page.index(f"{verdict} {rule}")
        for verdict, rule in (("FAIL", "R-HIGH"), ("FAIL", "R-LOW"), ("ERROR", "R-ERROR"), ("UNKNOWN", "R-UNKNOWN"), ("WAIVED", "R-WAIVED"))
    ]
    assert order == sorted(order)
    assert "legacy-2026" in page
    assert "R-PASS" not in page
    assert "1 pass · 1 not applicable" in page


def test_a_finding_shows_its_reason_and_its_evidence(build: SimpleNamespace) -> None:
    page = flat(audit_table(build.report(findings=(build.finding(remedy="domain_pmu_off"),)), LOOK))
    assert "web-1: this run has the PMU on" in page
    assert "evidence /proc/4711/cmdline: -cpu host" in page
    assert "remedy domain_pmu_off" in page
    assert "1. Remedy domain_pmu_off would mend DOM-PMU-LIVE" in page


def test_kernel_tells_body_pending_reboot_and_disagreement(build: SimpleNamespace) -> None:
    kernel = build.kernel(pending_reboot=True, pending_release="6.18.0-1", disagreements=("the changelog says guarded, the code does not",))
    page = flat(audit_table(build.report(host_report=build.host(kernel=kernel)), LOOK))
    assert "affected, body A 6.1.0-56-amd64" in page
    assert "pending reboot: 6.18.0-1 is installed, and does not run yet" in page
    assert "evidence disagrees: the changelog says guarded, the code does not" in page


def test_compliant_host_has_nothing_to_do(build: SimpleNamespace) -> None:
    page = audit_table(build.report(findings=(build.finding(Verdict.PASS),)), LOOK)
    assert page.endswith("What to do next\n  Nothing.\n")


@pytest.mark.parametrize("width", [32, 46, 71, 72, 80, 120])
def test_every_width_keeps_its_lines_and_its_facts(build: SimpleNamespace, width: int) -> None:
    page = audit_table(build.report((build.domain("ü" * 60),), (build.finding(),)), Look(width=width))
    assert max(cell_len(line) for line in page.split("\n")) <= width
    domains = page[page.index("Domains") : page.index("Findings")]
    assert domains.count("ü") == 60


def test_without_utf_8_the_page_is_ascii(build: SimpleNamespace) -> None:
    domains = tuple(build.domain(f"größe-{number}", number=number) for number in range(60))
    page = audit_table(build.report(domains, (build.finding(),)), Look(unicode=False))
    assert page.isascii()
    assert "->" in page
    assert r"gr\xf6\xdfe-0" in page


def test_provisional_id_is_said_to_be_one(build: SimpleNamespace) -> None:
    page = flat(audit_table(build.report(host_report=build.host(id_provisional=True)), LOOK))
    assert "(provisional: this audit is not stored)" in page


def test_replaced_program_that_still_runs_is_named(build: SimpleNamespace) -> None:
    program = build.host().qemu.value[0].model_copy(update={"deleted": True, "capability_string": seen("strings", True)})
    page = flat(audit_table(build.report(host_report=build.host(qemu=seen("/proc", (program,)))), LOOK))
    assert "still runs, though the file has been replaced" in page
    assert "clears kvm->arch.enable_pmu for pmu=off" in page


def test_guests_outside_libvirt_are_told_with_their_programs(build: SimpleNamespace) -> None:
    guests = (
        UnmanagedGuest(command="qemu-system-x86", executable="/usr/bin/qemu-system-x86_64"),
        UnmanagedGuest(command="firecracker", executable=None),
        UnmanagedGuest(command="qemu-system-x86", executable="/usr/bin/qemu-system-x86_64"),
    )
    page = flat(audit_table(build.report(host_report=build.host(unmanaged=seen("/proc/*/fd", guests))), LOOK))
    told = "3 guests outside libvirt: 2 qemu-system-x86 (/usr/bin/qemu-system-x86_64), firecracker: nothing is known of their PMU"
    assert told in page
    one = build.host(unmanaged=seen("/proc/*/fd", guests[1:2]))
    page = flat(audit_table(build.report(host_report=one), LOOK))
    assert "1 guest outside libvirt: firecracker: nothing is known of its PMU" in page


def test_many_kinds_of_guests_outside_libvirt_are_capped_and_counted(build: SimpleNamespace) -> None:
    guests = tuple(UnmanagedGuest(command=f"vmm-{number}", executable=None) for number in range(3000))
    page = flat(audit_table(build.report(host_report=build.host(unmanaged=seen("/proc/*/fd", guests))), LOOK))
    assert "3,000 guests outside libvirt: vmm-0, vmm-1, vmm-2, vmm-3 and 2,996 more kinds: nothing is known of their PMU" in page


def test_no_guest_outside_libvirt_is_worth_no_line(build: SimpleNamespace) -> None:
    assert "outside libvirt" not in audit_table(build.report(), LOOK)


def test_guests_that_could_not_be_looked_for_are_among_what_was_not_seen(build: SimpleNamespace) -> None:
    hidden = unseen("/proc/*/fd", "permission denied", unlock="run as root")
    page = flat(audit_table(build.report(host_report=build.host(unmanaged=hidden)), LOOK))
    assert "guests outside libvirt: permission denied (/proc/*/fd) To see it: run as root" in page[page.index("Not seen") :]
    assert "outside libvirt" not in page[: page.index("Not seen")]


def test_unknown_release_is_said_to_be_unknown(build: SimpleNamespace) -> None:
    page = flat(audit_table(build.report(host_report=build.host(kernel=build.kernel(release=None))), LOOK))
    assert "affected, body A release not known" in page


def waiver_finding(build: SimpleNamespace, verdict: Verdict, name: str, place: str = "waivers") -> Finding:
    found: Finding = build.finding(
        verdict,
        "POLICY-WAIVERS",
        subject=Subject(kind=SubjectKind.POLICY, id=f"id of {name}", name=name),
        reason=f"reason of {name}",
        evidence=(build.evidence(place, "what was wrong"),),
    )
    return found


def test_faults_of_waiver_files_are_to_be_corrected_and_are_no_defect(build: SimpleNamespace) -> None:
    faults = (
        waiver_finding(build, Verdict.ERROR, "waivers[0].expires", "/etc/a.yaml:7"),
        waiver_finding(build, Verdict.ERROR, "waivers[1]", "/etc/a.yaml:9"),
        waiver_finding(build, Verdict.ERROR, "/etc/my b.yaml", "/etc/my b.yaml"),
    )
    page = flat(audit_table(build.report(findings=faults), LOOK))
    assert page.startswith("ERROR compute-17.example.net: 3 faults in the waiver files to correct; what is at fault is not applied.")
    assert "1. Correct /etc/a.yaml:7, /etc/a.yaml:9, /etc/my b.yaml, see `exitguard waiver check /etc/a.yaml '/etc/my b.yaml'`" in page
    assert "defect" not in page
    assert "broke" not in page


def test_a_check_that_broke_stays_a_defect_beside_a_fault_of_a_waiver(build: SimpleNamespace) -> None:
    fault = waiver_finding(build, Verdict.ERROR, "waivers[0]", "/etc/a.yaml:7")
    page = flat(audit_table(build.report(findings=(build.finding(Verdict.ERROR, "R-BROKEN"), fault)), LOOK))
    assert "1 check broke" in page
    assert "1. A check broke; that is a defect, report it with its reason above: R-BROKEN 2. Correct /etc/a.yaml:7" in page


def test_a_waiver_that_covers_nothing_gets_a_step(build: SimpleNamespace) -> None:
    one = waiver_finding(build, Verdict.FAIL, "CHG-1")
    page = flat(audit_table(build.report(findings=(one,)), LOOK))
    assert "1. Renew, correct or remove 1 waiver that covers nothing: CHG-1" in page
    several = tuple(waiver_finding(build, Verdict.FAIL, f"CHG-{number}") for number in range(6))
    page = flat(audit_table(build.report(findings=several), LOOK))
    assert "6 waivers that cover nothing: CHG-0, CHG-1, CHG-2, CHG-3 and 2 more" in page


def test_a_waiver_in_force_gets_no_step(build: SimpleNamespace) -> None:
    page = audit_table(build.report(findings=(waiver_finding(build, Verdict.PASS, "CHG-1"),)), LOOK)
    assert page.endswith("What to do next\n  Nothing.\n")
