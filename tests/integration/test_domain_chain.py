"""Every state of the chain, from real guests: libvirt and QEMU are this machine's, the kernel and KVM are recorded ones."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from audits import domain_facts, domain_report, observe_uri
from domain_documents import LOCKED_METADATA, NOVA_METADATA, UNKNOWN_METADATA, guest_xml
from libvirt_lab import CAPABILITY_STRING, LibvirtLab
from recorded_hosts import on_debian_12, on_linux_6_18, on_unknown_kernel

from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport, DomainReport, FactsDocument
from exitguard.model.domain import OwnerKind
from exitguard.model.finding import Verdict
from exitguard.model.pmu import ChainState, LinkName, NextAction, PmuSetting
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Rulebook

pytestmark = pytest.mark.integration

OVERRIDE = "<qemu:commandline><qemu:arg value='-cpu'/><qemu:arg value='max,pmu=on'/></qemu:commandline>"


@dataclass(frozen=True)
class Hosts:
    """The same guests on several hosts."""

    facts: FactsDocument
    affected: AuditReport
    guarded: AuditReport


@pytest.fixture(scope="module")
def capable_qemu(lab: LibvirtLab) -> Path:
    """A QEMU whose file holds the message of one that sets KVM_PMU_CAP_DISABLE: the real program, with those bytes after its end."""
    copy = lab.copy_qemu("capable")
    with copy.open("ab") as file:
        file.write(b"\0" + CAPABILITY_STRING + b"\0")
    return copy


@pytest.fixture(scope="module")
def facts(lab: LibvirtLab, capable_qemu: Path) -> FactsDocument:
    """Guests in every relation of definition and run; all TCG, so that they start on every machine."""

    def guest(
        name: str, *, mode: str = "maximum", pmu: str = "absent", emulator: Path | None = None, extra: str = "", metadata: str = ""
    ) -> str:
        chosen = {} if emulator is None else {"emulator": emulator}
        return guest_xml(name, mode=mode, pmu=pmu, extra=extra, metadata=metadata, **chosen)

    running = [
        guest("off", pmu="off"),
        guest("on-by-default"),
        guest("asked-for", pmu="on"),
        guest("off-later"),
        guest("on-later", pmu="off", emulator=capable_qemu),
        guest("capable", pmu="off", emulator=capable_qemu),
        guest("capable-by-default", mode="custom", emulator=capable_qemu),
        guest("locked", metadata=LOCKED_METADATA),
        guest("of-nova", metadata=NOVA_METADATA),
        guest("of-another-cloud", metadata=UNKNOWN_METADATA),
        guest("overridden", pmu="off", extra=OVERRIDE),
    ]
    saved = [guest("saved-on"), guest("saved-off", pmu="off", emulator=capable_qemu)]
    lab.define(*running, *saved, guest("shut-off"), guest("shut-off-and-off", pmu="off"), guest("shut-off-asked-for", pmu="on"))
    lab.start(*(name for name in lab.names() if not name.startswith("shut-off")))
    lab.start_transient(guest("transient", pmu="off", emulator=capable_qemu))
    lab.save("saved-on")
    lab.save("saved-off")
    # The definition changes, the run does not.
    lab.define(guest("off-later", pmu="off"), guest("on-later", emulator=capable_qemu), guest("saved-on", pmu="off"))
    return observe_uri(lab.uri)


@pytest.fixture(scope="module")
def hosts(facts: FactsDocument, tcg_rulebook: Rulebook) -> Hosts:
    return Hosts(facts, judge(on_debian_12(facts), tcg_rulebook), judge(on_debian_12(facts, guard=True), tcg_rulebook))


def broken(domain: DomainReport) -> tuple[LinkName, ...]:
    return domain.chain.broken_links


def test_off_on_a_qemu_that_tells_kvm_and_a_kernel_with_the_guard_is_effective(hosts: Hosts) -> None:
    for name in ("capable", "capable-by-default", "saved-off"):
        domain = domain_report(hosts.guarded, name)
        assert domain.chain.state is ChainState.EFFECTIVE, domain.chain.reason
        assert broken(domain) == ()
        assert domain.chain.next_action is NextAction.NONE


def test_off_without_the_guard_is_unguarded(hosts: Hosts) -> None:
    domain = domain_report(hosts.affected, "capable")
    assert domain.chain.state is ChainState.UNGUARDED
    assert broken(domain) == (LinkName.KERNEL,)
    assert domain.chain.next_action is NextAction.INSTALL_GUARDED_KERNEL


def test_unguarded_with_a_better_kernel_installed_asks_to_boot_it(facts: FactsDocument, tcg_rulebook: Rulebook) -> None:
    report = judge(on_debian_12(facts, helpful_kernel=True), tcg_rulebook)
    assert domain_report(report, "capable").chain.next_action is NextAction.BOOT_INSTALLED_KERNEL


def test_off_on_a_qemu_without_the_capability_is_not_propagated(lab: LibvirtLab, hosts: Hosts) -> None:
    if lab.qemu_has_capability():
        pytest.skip("the QEMU of this machine sets KVM_PMU_CAP_DISABLE")
    domain = domain_report(hosts.guarded, "off")
    assert domain.chain.state is ChainState.NOT_PROPAGATED
    assert broken(domain) == (LinkName.PROPAGATED,)
    assert domain.chain.next_action is NextAction.UPGRADE_QEMU


def test_on_by_default_is_on_and_libvirts_own_definition_can_be_changed(hosts: Hosts) -> None:
    domain = domain_report(hosts.guarded, "on-by-default")
    assert domain.chain.state is ChainState.ON
    assert broken(domain) == (LinkName.DEFINED, LinkName.RUNNING, LinkName.PROPAGATED)
    assert domain.chain.next_action is NextAction.SET_PMU_OFF
    assert domain.owner.kind is OwnerKind.LIBVIRT


@pytest.mark.parametrize(
    ("name", "owner", "action"),
    [
        ("locked", OwnerKind.LIBVIRT, NextAction.NONE),
        ("of-nova", OwnerKind.NOVA, NextAction.SET_PMU_OFF_IN_NOVA),
        ("of-another-cloud", OwnerKind.UNKNOWN, NextAction.ASK_OWNER),
    ],
)
def test_what_is_not_ours_gets_no_change_from_us(hosts: Hosts, name: str, owner: OwnerKind, action: NextAction) -> None:
    domain = domain_report(hosts.guarded, name)
    assert (domain.chain.state, domain.owner.kind, domain.chain.next_action) == (ChainState.ON, owner, action)


def test_definition_off_while_running_on_is_pending_restart(hosts: Hosts) -> None:
    domain = domain_report(hosts.guarded, "off-later")
    assert (domain.pmu.persistent, domain.pmu.live) == (PmuSetting.OFF, PmuSetting.DEFAULT_ON)
    assert domain.chain.state is ChainState.PENDING_RESTART
    assert broken(domain) == (LinkName.RUNNING, LinkName.PROPAGATED)
    assert domain.chain.next_action is NextAction.RESTART_GUEST


def test_managed_save_counts_as_the_run_it_holds(hosts: Hosts) -> None:
    domain = domain_report(hosts.guarded, "saved-on")
    assert domain.active is False
    assert domain_facts(hosts.facts, "saved-on").managed_save.value is True
    assert (domain.pmu.persistent, domain.pmu.live) == (PmuSetting.OFF, PmuSetting.DEFAULT_ON)
    assert domain.chain.state is ChainState.PENDING_RESTART


def test_definition_on_while_running_off_reverts(hosts: Hosts) -> None:
    domain = domain_report(hosts.guarded, "on-later")
    assert (domain.pmu.persistent, domain.pmu.live) == (PmuSetting.DEFAULT_ON, PmuSetting.OFF)
    assert domain.chain.state is ChainState.REVERTS
    assert LinkName.DEFINED in broken(domain)
    assert domain.chain.next_action is NextAction.SET_PMU_OFF


def test_guest_that_asked_for_its_pmu_and_has_it_is_opted_out(hosts: Hosts) -> None:
    domain = domain_report(hosts.affected, "asked-for")
    assert domain.chain.state is ChainState.OPTED_OUT
    assert domain.chain.next_action is NextAction.NONE


def test_guest_that_asked_for_its_pmu_where_the_host_clears_it_is_violated(facts: FactsDocument, tcg_rulebook: Rulebook) -> None:
    report = judge(on_debian_12(facts, enable_pmu=False), tcg_rulebook)
    domain = domain_report(report, "asked-for")
    assert domain.chain.state is ChainState.OPT_OUT_VIOLATED
    assert domain.chain.next_action is NextAction.ASK_OWNER
    findings = {finding.subject.name: finding for finding in report.findings if finding.rule == "DOM-OPT-OUT-HONOURED"}
    assert findings["asked-for"].verdict is Verdict.FAIL
    assert findings["shut-off-asked-for"].verdict is Verdict.FAIL
    # For every other guest the host's switch does what its definition does not.
    assert domain_report(report, "on-by-default").chain.state is ChainState.UNGUARDED


@pytest.mark.parametrize(
    ("name", "persistent", "action"),
    [
        ("shut-off", PmuSetting.DEFAULT_ON, NextAction.SET_PMU_OFF),
        ("shut-off-and-off", PmuSetting.OFF, NextAction.NONE),
        ("shut-off-asked-for", PmuSetting.ON, NextAction.NONE),
    ],
)
def test_definition_of_a_guest_that_does_not_run_is_still_judged(
    hosts: Hosts, name: str, persistent: PmuSetting, action: NextAction
) -> None:
    domain = domain_report(hosts.guarded, name)
    assert domain.chain.state is ChainState.NOT_RUNNING
    assert (domain.pmu.persistent, domain.pmu.live) == (persistent, PmuSetting.NONE)
    assert domain.chain.next_action is action


def test_kernel_without_dead_work_makes_every_guest_moot(facts: FactsDocument, tcg_rulebook: Rulebook) -> None:
    report = judge(on_linux_6_18(facts), tcg_rulebook)
    assert {domain.chain.state for domain in report.domains} == {ChainState.MOOT}


def test_kernel_that_cannot_be_told_leaves_only_that_link_open(facts: FactsDocument, tcg_rulebook: Rulebook) -> None:
    chain = domain_report(judge(on_unknown_kernel(facts), tcg_rulebook), "capable").chain
    assert chain.state is ChainState.UNKNOWN
    assert chain.broken_links == ()
    assert "kernel" in chain.reason
    assert chain.next_action is NextAction.OBSERVE


def test_transient_guest_has_no_next_start_to_judge(hosts: Hosts) -> None:
    domain = domain_report(hosts.guarded, "transient")
    assert (domain.pmu.persistent, domain.pmu.live) == (PmuSetting.NONE, PmuSetting.OFF)
    assert domain.chain.state is ChainState.UNKNOWN
    assert "transient" in domain.chain.reason


def test_command_line_of_the_process_beats_the_element_it_overrides(hosts: Hosts) -> None:
    """libvirt's element says off; <qemu:commandline> gave QEMU a second -cpu, which is the one that counts."""
    domain = domain_report(hosts.affected, "overridden")
    assert (domain.pmu.persistent, domain.pmu.live) == (PmuSetting.UNKNOWN, PmuSetting.ON)
    assert domain.chain.next_action is NextAction.OBSERVE


def test_tcg_guest_is_outside_the_shipped_policy(facts: FactsDocument) -> None:
    report = judge(on_debian_12(facts), load_rulebook((), ()))
    assert {domain.chain.state for domain in report.domains} == {ChainState.NOT_APPLICABLE}
    verdicts = {finding.verdict for finding in report.findings if finding.subject.id == domain_report(report, "off").uuid}
    assert verdicts == {Verdict.NOT_APPLICABLE}


def test_every_state_of_the_chain_was_reached(facts: FactsDocument, hosts: Hosts, tcg_rulebook: Rulebook) -> None:
    reports = (
        hosts.affected,
        hosts.guarded,
        judge(on_debian_12(facts, enable_pmu=False), tcg_rulebook),
        judge(on_linux_6_18(facts), tcg_rulebook),
        judge(on_unknown_kernel(facts), tcg_rulebook),
        judge(on_debian_12(facts), load_rulebook((), ())),
    )
    reached = {domain.chain.state for report in reports for domain in report.domains}
    assert reached == set(ChainState)
