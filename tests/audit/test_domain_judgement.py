"""From a domain's facts to what its chain is judged by."""

import pytest
from audit_builders import (
    EMULATOR,
    GUARD_ENTRY,
    QEMU_7,
    QEMU_11,
    affected_kernel,
    definition,
    domain,
    facts,
    kvm_module,
    nova,
    process,
    qemu,
)

from exitguard.audit.judge import judge
from exitguard.audit.pmu import clears_enable_pmu, setting_of_definition, setting_of_process
from exitguard.facts.qemu_command_line import read_cpu_argument
from exitguard.model.documents import AuditReport, DomainReport
from exitguard.model.domain import DomainDefinition, DomainFacts, OwnerKind
from exitguard.model.finding import Verdict
from exitguard.model.host import KvmDevice, KvmFacts, QemuBinary
from exitguard.model.pmu import ChainState, LinkName, NextAction, PmuElement, PmuSetting, Tri
from exitguard.model.record import seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Rulebook, Scope

RULEBOOK = load_rulebook()
GUARDED = affected_kernel(changelog=(GUARD_ENTRY,))
OFF = definition(pmu=PmuElement.OFF)


def judged(guest: DomainFacts, *, kvm: KvmFacts | None = None, rulebook: Rulebook = RULEBOOK, binary: QemuBinary = QEMU_11) -> DomainReport:
    """The guest on a host where every other link holds."""
    return report_of(guest, kvm=kvm, rulebook=rulebook, binary=binary).domains[0]


def report_of(
    guest: DomainFacts, *, kvm: KvmFacts | None = None, rulebook: Rulebook = RULEBOOK, binary: QemuBinary = QEMU_11
) -> AuditReport:
    return judge(facts(guest, kernel=GUARDED, kvm=kvm, binaries=(binary,)), rulebook)


def link(report: DomainReport, name: LinkName) -> Tri:
    return next(each.holds for each in report.chain.links if each.name is name)


@pytest.mark.parametrize(
    ("mode", "element", "setting"),
    [
        ("host-passthrough", PmuElement.ABSENT, PmuSetting.DEFAULT_ON),
        ("maximum", PmuElement.ABSENT, PmuSetting.DEFAULT_ON),
        ("host-model", PmuElement.ABSENT, PmuSetting.DEFAULT_OFF),
        ("custom", PmuElement.ABSENT, PmuSetting.DEFAULT_OFF),
        (None, PmuElement.ABSENT, PmuSetting.DEFAULT_OFF),
        ("a-mode-of-the-future", PmuElement.ABSENT, PmuSetting.UNKNOWN),
        ("a-mode-of-the-future", PmuElement.OFF, PmuSetting.OFF),
        ("host-passthrough", PmuElement.OFF, PmuSetting.OFF),
        ("custom", PmuElement.ON, PmuSetting.ON),
    ],
)
def test_an_absent_element_is_resolved_by_the_cpu_mode(mode: str | None, element: PmuElement, setting: PmuSetting) -> None:
    assert setting_of_definition(definition(mode, element)) is setting


def test_an_argument_behind_libvirts_back_makes_the_setting_unknown() -> None:
    assert setting_of_definition(definition(pmu=PmuElement.OFF, overrides=("-cpu host",))) is PmuSetting.UNKNOWN


@pytest.mark.parametrize(
    ("cpu", "setting"),
    [
        ("host", PmuSetting.DEFAULT_ON),
        ("max", PmuSetting.DEFAULT_ON),
        ("EPYC", PmuSetting.DEFAULT_OFF),
        ("", PmuSetting.DEFAULT_OFF),
        ("host,migratable=on,pmu=off", PmuSetting.OFF),
        ("EPYC,pmu=on", PmuSetting.ON),
    ],
)
def test_a_running_qemu_is_judged_by_its_own_cpu_argument(cpu: str, setting: PmuSetting) -> None:
    assert setting_of_process(read_cpu_argument(cpu)) is setting


@pytest.mark.parametrize(
    ("binary", "clears"),
    [
        (QEMU_11, Tri.YES),
        (QEMU_7, Tri.NO),
        (qemu("7.2.22", ""), Tri.NO),
        (qemu("10.2.1", ""), Tri.NO),
        (qemu("8.2.2", "Debian 1:8.2.2+ds-0ubuntu1.10"), Tri.UNKNOWN),  # downstream: a missing string is no proof
        (qemu("8.2.2", "Debian 1:8.2.2+ds-0ubuntu1.10", capability=True), Tri.YES),  # a backport is found by the string
        (qemu("9.1.0", "qemu-kvm-9.1.0-15.el9"), Tri.UNKNOWN),
        (qemu("11.0.0", ""), Tri.UNKNOWN),  # the version says yes, the file says no
    ],
)
def test_the_string_decides_and_its_absence_only_for_versions_that_are_known(binary: QemuBinary, clears: Tri) -> None:
    assert clears_enable_pmu(binary, RULEBOOK.qemus)[0] is clears


def test_an_unreadable_binary_or_one_without_a_version_is_unknown() -> None:
    hidden = QEMU_7.model_copy(update={"capability_string": unseen(EMULATOR, "permission denied")})
    unversioned = QEMU_7.model_copy(update={"version": unseen(EMULATOR, "the file holds no QEMU version text")})
    for binary in (hidden, unversioned):
        assert clears_enable_pmu(binary, RULEBOOK.qemus)[0] is Tri.UNKNOWN


@pytest.mark.parametrize(
    ("guest", "applies"),
    [
        (OFF, True),
        (definition(pmu=PmuElement.OFF, kind="qemu"), False),
        (definition(pmu=PmuElement.OFF, kind="test"), False),
        (definition(pmu=PmuElement.OFF, kind="xen"), False),
        (definition(pmu=PmuElement.OFF, arch="i686"), True),
        (definition(pmu=PmuElement.OFF, arch="aarch64"), False),
        (definition(pmu=PmuElement.OFF, launch_security="tdx"), False),
        (definition(pmu=PmuElement.OFF, launch_security="sev-snp"), True),
    ],
)
def test_it_is_about_x86_under_kvm_without_tdx(guest: DomainDefinition, applies: bool) -> None:  # noqa: FBT001 - a column of the table
    report = judged(domain(defined=guest, run=guest, runs=process("host,pmu=off", QEMU_11)))
    assert (report.chain.state is not ChainState.NOT_APPLICABLE) == applies


def test_tcg_is_judged_where_the_policy_admits_it() -> None:
    policy = RULEBOOK.policy.model_copy(update={"scope": Scope(admit_tcg=True)})
    guest = definition(pmu=PmuElement.OFF, kind="qemu")
    report = judged(
        domain(defined=guest, run=guest, runs=process("max,pmu=off", QEMU_11)), rulebook=RULEBOOK.model_copy(update={"policy": policy})
    )
    assert report.chain.state is ChainState.EFFECTIVE


def test_the_process_decides_where_it_contradicts_the_live_xml_and_both_are_shown() -> None:
    report = judged(domain(defined=OFF, run=OFF, runs=process("host", QEMU_11)))
    assert (report.pmu.live, report.chain.state) == (PmuSetting.DEFAULT_ON, ChainState.PENDING_RESTART)
    assert "the process decides" in next(each.value for each in report.evidence if each.source == "disagreement")


def test_without_the_process_the_live_xml_speaks_and_what_qemu_does_is_unknown() -> None:
    report = judged(domain(defined=OFF, run=OFF, runs="permission denied"))
    assert (report.pmu.live, link(report, LinkName.RUNNING), link(report, LinkName.PROPAGATED)) == (PmuSetting.OFF, Tri.YES, Tri.UNKNOWN)
    assert "permission denied" in report.chain.reason


def test_a_run_is_judged_by_the_file_it_runs_not_by_the_one_on_disk() -> None:
    replaced = QEMU_7.model_copy(update={"deleted": True})
    report = judged(domain(defined=OFF, run=OFF, runs=process("host,pmu=off", replaced)), binary=QEMU_11)
    assert (report.chain.state, report.chain.next_action) == (ChainState.NOT_PROPAGATED, NextAction.RESTART_GUEST)
    report = judged(domain(defined=OFF, run=OFF, runs=process("host,pmu=off", QEMU_7)), binary=QEMU_7)
    assert (report.chain.state, report.chain.next_action) == (ChainState.NOT_PROPAGATED, NextAction.UPGRADE_QEMU)


def test_where_guests_run_another_file_of_the_same_name_the_one_on_disk_is_not_libvirts() -> None:
    """libvirtd in a container: /usr/bin/qemu-system-x86_64 is another file there."""
    running = domain(number=1, defined=OFF, run=OFF, runs=process("host,pmu=off", QEMU_7))
    saved = domain(number=2, defined=OFF, run=OFF, saved=True)
    report = judge(facts(running, saved, kernel=GUARDED, binaries=(QEMU_11,)), RULEBOOK)
    assert [each.chain.state for each in report.domains] == [ChainState.NOT_PROPAGATED, ChainState.UNKNOWN]
    assert report.domains[0].chain.next_action is NextAction.OBSERVE
    (capability,) = [each for each in report.findings if each.rule == "HOST-QEMU-PMU-CAP"]
    assert capability.verdict is Verdict.UNKNOWN


def test_a_save_is_restored_by_the_qemu_that_it_names_itself() -> None:
    newer = qemu("11.1.3", "", capability=True, path="/opt/qemu-11")
    guest = domain(defined=definition(pmu=PmuElement.OFF, emulator="/opt/qemu-11"), run=OFF, saved=True)
    report = judge(facts(guest, kernel=GUARDED, binaries=(newer, QEMU_7)), RULEBOOK).domains[0]
    assert report.chain.state is ChainState.NOT_PROPAGATED


def test_no_qemu_can_clear_it_where_kvm_has_no_such_capability() -> None:
    device = seen("/dev/kvm", KvmDevice(api_version=12, pmu_capability=0))
    kvm = kvm_module().model_copy(update={"device": device})
    report = report_of(domain(defined=OFF, run=OFF, runs=process("host,pmu=off", QEMU_11)), kvm=kvm)
    assert report.domains[0].chain.state is ChainState.NOT_PROPAGATED
    assert report.domains[0].chain.next_action is NextAction.INSTALL_GUARDED_KERNEL
    (capability,) = [each for each in report.findings if each.rule == "HOST-QEMU-PMU-CAP"]
    assert capability.verdict is Verdict.FAIL
    cleared = kvm_module(enable_pmu=False).model_copy(update={"device": device})
    assert judged(domain(defined=OFF, run=OFF, runs=process("host", QEMU_7)), kvm=cleared).chain.state is ChainState.EFFECTIVE


def test_an_xml_without_type_or_architecture_proves_nothing() -> None:
    for nameless in (definition(pmu=PmuElement.OFF, arch=""), definition(pmu=PmuElement.OFF, kind="")):
        assert judged(domain(defined=nameless)).chain.state is ChainState.NOT_RUNNING
        assert judged(domain(defined=nameless, run=nameless)).chain.state is ChainState.UNKNOWN


def test_a_managed_save_counts_as_the_run_it_holds() -> None:
    on = definition()
    report = judged(domain(defined=OFF, run=on, saved=True))
    assert (report.pmu.live, report.chain.state) == (PmuSetting.DEFAULT_ON, ChainState.PENDING_RESTART)
    assert judged(domain(defined=OFF, run=OFF, saved=True)).chain.state is ChainState.EFFECTIVE


def test_a_stopped_domain_has_no_live_setting_and_its_definition_is_judged() -> None:
    report = judged(domain(defined=definition()))
    assert (report.pmu.live, report.chain.state, report.chain.next_action) == (
        PmuSetting.NONE,
        ChainState.NOT_RUNNING,
        NextAction.SET_PMU_OFF,
    )


def test_a_transient_domain_has_no_definition_and_nobody_knows_its_next_start() -> None:
    report = judged(domain(defined=None, run=OFF, runs=process("host,pmu=off", QEMU_11)))
    assert (report.pmu.persistent, report.chain.state) == (PmuSetting.NONE, ChainState.UNKNOWN)
    assert "transient" in report.chain.reason


def test_a_transient_domain_that_asks_for_the_pmu_is_opted_out() -> None:
    on = definition(pmu=PmuElement.ON)
    assert judged(domain(defined=None, run=on, runs=process("host,pmu=on", QEMU_11))).chain.state is ChainState.OPTED_OUT


def test_a_definition_that_cannot_be_read_leaves_everything_open_and_changes_nothing() -> None:
    report = judged(domain(defined="libvirt did not answer within 5 s", run="libvirt did not answer within 5 s", runs="not matched"))
    assert (report.chain.state, report.chain.next_action) == (ChainState.UNKNOWN, NextAction.OBSERVE)


def test_an_unread_domain_is_known_to_be_kvms_by_its_process() -> None:
    guest = domain(defined="unreadable", run="unreadable", runs=process("host,pmu=off", QEMU_11), active=True)
    assert judged(guest).chain.reason.startswith("cannot be told: whether somebody asked for the PMU")
    tcg = process("max", QEMU_11)
    tcg = tcg.model_copy(update={"accelerator": tcg.accelerator.model_copy(update={"value": "tcg"})})
    assert judged(domain(defined="unreadable", run="unreadable", runs=tcg, active=True)).chain.state is ChainState.NOT_APPLICABLE


def test_the_host_parameter_clears_every_guest_and_violates_who_asked() -> None:
    cleared = kvm_module(enable_pmu=False)
    default_on = definition()
    assert judged(domain(defined=default_on, run=default_on, runs=process("host")), kvm=cleared).chain.state is ChainState.EFFECTIVE
    asked = definition(pmu=PmuElement.ON)
    report = judged(domain(defined=asked, run=asked, runs=process("host,pmu=on")), kvm=cleared)
    assert (report.chain.state, report.chain.next_action) == (ChainState.OPT_OUT_VIOLATED, NextAction.ASK_OWNER)


def test_a_parameter_that_cannot_be_seen_leaves_open_what_a_default_on_guest_has() -> None:
    guest = domain(defined=definition(), run=definition(), runs=process("host"))
    assert judged(guest, kvm=kvm_module(enable_pmu=True)).chain.state is ChainState.ON
    assert judged(guest, kvm=kvm_module(enable_pmu=None)).chain.state is ChainState.UNKNOWN


def test_an_unknown_owner_is_asked_and_never_overruled() -> None:
    for owner in (OwnerKind.OTHER, OwnerKind.UNKNOWN):
        report = judged(domain(defined=definition(), run=definition(), runs=process("host"), owner=owner))
        assert (report.chain.state, report.chain.next_action) == (ChainState.ON, NextAction.ASK_OWNER)


def test_a_locked_domain_gets_no_action_and_says_so() -> None:
    report = judged(domain(defined=definition(), run=definition(), runs=process("host"), locked=True))
    assert (report.chain.state, report.chain.next_action) == (ChainState.ON, NextAction.NONE)
    assert "locked by an operator's mark" in [each.value for each in report.evidence]


def test_a_wish_in_flavor_or_image_is_an_opt_out_whatever_the_xml_says() -> None:
    for instance in (nova(flavor="true"), nova(image="True")):
        report = judged(domain(defined=OFF, run=OFF, runs=process("host,pmu=off", QEMU_11), nova=instance, generated=False))
        assert report.chain.state is ChainState.OPT_OUT_VIOLATED


def test_every_piece_of_evidence_says_where_what_and_when() -> None:
    report = judged(domain(defined=OFF, run=OFF, runs=process("host,pmu=off", QEMU_11), owner=OwnerKind.OTHER))
    assert {each.source for each in report.evidence} == {
        "libvirt: inactive XML",
        "libvirt: live XML",
        "/proc/<pid>/cmdline",
        "QEMU",
        "owner",
    }
    assert all(each.value and each.observed_at for each in report.evidence)
