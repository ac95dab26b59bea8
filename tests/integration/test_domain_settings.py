"""PMU off, on and absent under every CPU mode, defined in a real libvirt and run by a real QEMU where it starts."""

import re
from dataclasses import dataclass
from itertools import product

import pytest
from audits import domain_facts, domain_report, observe_uri
from domain_documents import guest_xml, uuid_of
from libvirt_lab import LibvirtLab
from recorded_hosts import on_debian_12

from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.pmu import ChainState, PmuSetting
from exitguard.policy.schema import Rulebook

pytestmark = pytest.mark.integration

ELEMENTS = ("absent", "off", "on")
#: libvirt takes host-passthrough and host-model for KVM only.
CASES = [
    *product(("kvm",), (None, "custom", "host-model", "host-passthrough", "maximum"), ELEMENTS),
    *product(("qemu",), (None, "custom", "maximum"), ELEMENTS),
]
Case = tuple[str, str | None, str]


def name_of(case: Case) -> str:
    kind, mode, element = case
    return f"{kind}-{mode or 'default'}-{element}"


@dataclass(frozen=True)
class Host:
    """All the guests of CASES, looked at once."""

    lab: LibvirtLab
    facts: FactsDocument
    #: Judged as if this were a Debian 12 host whose KVM has its PMU.
    report: AuditReport
    #: Why a guest could not be started, by name.
    failures: dict[str, str]


@pytest.fixture(scope="module")
def host(lab: LibvirtLab, why_no_kvm: str | None, tcg_rulebook: Rulebook) -> Host:
    cases = [case for case in CASES if case[0] == "qemu" or why_no_kvm is None]
    documents = {name_of(case): guest_xml(name_of(case), kind=case[0], mode=case[1], pmu=case[2]) for case in cases}
    lab.define(*documents.values())
    failures = lab.try_to_start(*documents)
    facts = observe_uri(lab.uri)
    return Host(lab, facts, judge(on_debian_12(facts), tcg_rulebook), failures)


@pytest.fixture(params=CASES, ids=name_of)
def case(request: pytest.FixtureRequest, why_no_kvm: str | None) -> Case:
    chosen: Case = request.param
    if chosen[0] == "kvm" and why_no_kvm is not None:
        pytest.skip(f"no KVM guest starts here: {why_no_kvm}")
    return chosen


def by_virsh(document: str) -> PmuSetting:
    """What a domain XML asks for, read without the code under test."""
    element = re.search(r"<pmu state='(on|off)'/>", document)
    if element is not None:
        return PmuSetting(element[1])
    return PmuSetting.DEFAULT_ON if re.search(r"<cpu mode='(host-passthrough|maximum)'", document) else PmuSetting.DEFAULT_OFF


def by_command_line(words: list[str]) -> PmuSetting:
    """What a process was told, read without the code under test."""
    cpu = words[words.index("-cpu") + 1] if "-cpu" in words else ""
    told = re.search(r",pmu=(on|off)\b", cpu)
    if told is not None:
        return PmuSetting(told[1])
    return PmuSetting.DEFAULT_ON if cpu.partition(",")[0] in ("host", "max") else PmuSetting.DEFAULT_OFF


def test_definition_is_told_as_virsh_shows_it(host: Host, case: Case) -> None:
    _, mode, element = case
    default = PmuSetting.DEFAULT_ON if mode in ("host-passthrough", "maximum") else PmuSetting.DEFAULT_OFF
    persistent = domain_report(host.report, name_of(case)).pmu.persistent
    assert persistent is by_virsh(host.lab.xml(name_of(case), inactive=True))
    assert persistent is (default if element == "absent" else PmuSetting(element))


def test_run_is_told_as_its_process_shows_it(host: Host, case: Case) -> None:
    name = name_of(case)
    report, facts = domain_report(host.report, name), domain_facts(host.facts, name)
    if name in host.failures:
        assert report.pmu.live is PmuSetting.NONE
        assert report.active is False
        assert facts.process is None
        return
    words = host.lab.command_line(uuid_of(name))
    assert report.pmu.live is by_command_line(words)
    assert facts.process is not None
    process = facts.process.get()
    assert process.cpu.get().model == words[words.index("-cpu") + 1].partition(",")[0]
    assert process.accelerator.value == ("kvm" if case[0] == "kvm" else "tcg")
    assert process.executable.get().path == str(host.lab.executable(uuid_of(name)))
    assert process.incoming.value is False


def test_state_on_an_affected_host_follows_from_the_setting(host: Host, case: Case) -> None:
    name = name_of(case)
    chain = domain_report(host.report, name).chain
    setting = by_virsh(host.lab.xml(name, inactive=True))
    if name in host.failures:
        expected = ChainState.NOT_RUNNING
    elif setting is PmuSetting.ON:
        expected = ChainState.OPTED_OUT
    elif setting is PmuSetting.DEFAULT_ON:
        expected = ChainState.ON
    else:
        expected = ChainState.UNGUARDED if host.lab.qemu_has_capability() else ChainState.NOT_PROPAGATED
    assert chain.state is expected, chain.reason


def test_at_least_the_tcg_guests_run(host: Host) -> None:
    assert [name for name in host.failures if name.startswith("qemu-")] == []


def test_every_guest_is_told_once(host: Host) -> None:
    names = [domain.name for domain in host.report.domains]
    assert sorted(names) == sorted(set(names))
    assert {"qemu-maximum-off", "qemu-custom-on"} <= set(names)
